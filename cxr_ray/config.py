"""The sweep file: every key with its type, range, default and meaning; all mistakes are reported at once.

Any value under ``model`` and ``train`` may be a search space: ``{grid: [...]}`` (every value is a group of its own),
``{choice: [...]}``, ``{uniform: [low, high]}`` or ``{loguniform: [low, high]}`` (sampled ``search.num_samples`` times).
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator, model_validator

from cxr_ray.errors import SweepError
from cxr_ray.schemas import NAME_PATTERN, to_json

Fill = Literal["black", "grey", "mean", "blur", "noise", "linear"]
Grid = Literal["pixel", "7", "14", "28"]
Arch = Literal["resnet18", "resnet18d", "seresnet18"]
Preprocess = Literal["none", "crop_border", "mask_border", "clahe"]
Region = Literal["border", "corners", "centre", "outside_lungs", "marker", "opacity"]
Edit = Literal["paste_marker", "lower_contrast", "raise_contrast", "equalize"]
Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Scale = Annotated[float, Field(gt=0)]
MAX_SHIFTED = 7 * 7 * 8 - 1  # rolls by sevenths x the dihedral group, without the identity
NULLABLE = ("sequential", "regions", "sanity")  # sections that null turns off
SEGMENTER = "torchxrayvision"  # as regions.lungs: masks by its network
SPACES = ("grid", "choice", "uniform", "loguniform")


class Section(BaseModel):
    """Frozen; unknown keys, numbers in quotes and numbers that are not finite are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class Phantoms(Section):
    """What ``data.source: phantom`` renders."""

    train: int = Field(480, ge=8, description="images in the train split")
    test: int = Field(96, ge=4, description="images in the test split")
    prevalence: float = Field(0.5, gt=0, lt=1, description="share of PNEUMONIA")
    marker_correlation: float = Field(0.5, ge=0, le=1, description="P(the marker's glyph is that of the label)")


class Data(Section):
    """Where the images come from and how they become squares."""

    source: Literal["folder", "phantom", "hub"] = "folder"
    path: str = Field("data/chest_xray", min_length=1, description="folder: its path; hub: kaggle or huggingface")
    size: int = Field(224, ge=32, le=1024, description="side of the model's input in pixels")
    fit: Literal["squash", "pad", "crop"] = "squash"
    val_share: float = Field(0.1, gt=0, le=0.5, description="share of train, by patient, that validates")
    limit: int | None = Field(None, ge=2, description="at most so many images of each split, balanced by label")
    phantom: Phantoms = Phantoms()


class Model(Section):
    """The network that is trained."""

    arch: Arch = "resnet18"
    weights: str = Field("imagenet", min_length=1, description="imagenet, none, or a file with a state dict")
    freeze: Literal["none", "backbone"] = Field("none", description="backbone: only the last block and the head train")
    size: int | None = Field(None, ge=32, le=1024, description="side of its input in pixels; null: data.size")
    preprocess: Preprocess = Field("none", description="what is done to every image before this model sees it")


class Train(Section):
    """How it is trained."""

    epochs: int = Field(8, ge=1, le=10_000)
    batch_size: int = Field(32, ge=2, le=65_536)
    lr: float = Field(1e-3, gt=0, lt=1, description="peak learning rate of a one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0, lt=1)
    loss: Literal["ce", "weighted", "focal"] = "ce"
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    augment: Literal["none", "light"] = "light"
    labels: Literal["given", "shuffled"] = Field("given", description="shuffled: a model that has nothing to learn")
    seed: int = Field(0, ge=0, le=2**31 - 1)


class Search(Section):
    """How often each variant and grid point is sampled, and whether ASHA stops the worst early."""

    num_samples: int = Field(4, ge=1)
    scheduler: Literal["asha", "none"] = "asha"
    metric: Literal["val_auroc"] = "val_auroc"


class Checkpoint(Section):
    """A model that exists: a state dict with one or two outputs. A file that we saved says the rest itself."""

    path: str = Field(min_length=1)
    arch: Arch = "resnet18"
    size: int | None = Field(None, ge=32, le=1024, description="side of its input; null: data.size")
    preprocess: Preprocess = Field("none", description="what was done to the images that it was trained on")
    mean: Annotated[tuple[float, float, float], Field(strict=False, description="of its normalisation")] = (
        0.485, 0.456, 0.406,
    )  # fmt: skip
    std: Annotated[tuple[Scale, Scale, Scale], Field(strict=False, description="of its normalisation")] = (
        0.229, 0.224, 0.225,
    )  # fmt: skip


class Explain(Section):
    """Which maps are made, and of which class's score."""

    explainers: list[Name] = Field(["gradcam", "integrated_gradients", "occlusion"], min_length=1)
    targets: list[Literal["pneumonia", "predicted"]] = Field(["pneumonia"], min_length=1)
    keep_maps: bool = True


class Perturb(Section):
    """What is removed and restored."""

    grids: list[Grid] = Field(["pixel", "14"], min_length=1)
    fills: list[Fill] = Field(["mean", "blur"], min_length=1)
    levels: list[Share] = Field([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], min_length=1)
    orders: list[Literal["morf", "lerf"]] = Field(["morf", "lerf"], min_length=1)
    precision: Literal["float32", "half"] = Field(
        "float32", description="of scoring; half: float16 on GPUs, within 1e-2 in probability"
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("grids"), list):
            data = {**data, "grids": [str(g) if type(g) is int else g for g in data["grids"]]}
        return data

    @field_validator("levels")
    @classmethod
    def _ascending(cls, levels: list[float]) -> list[float]:
        return sorted(levels)  # areas are integrals over them


class Sequential(Section):
    """Draws beyond the fixed ones of ``controls``, for p_value alone (Besag & Clifford, Biometrika 1991)."""

    max_draws: int = Field(199, ge=19, le=9999, description="draws of a control for a map at most, the fixed ones too")
    extreme: int = Field(10, ge=1, le=9999, description="stop once so many draws are at least as faithful as the map")


class Regions(Section):
    """Parts of an image that are removed on their own, beside the same shapes elsewhere."""

    names: list[Region] = Field(["border", "corners", "centre"], min_length=1)
    draws: int = Field(5, ge=1, le=99, description="matched controls of each region")
    lungs: str | None = Field(None, min_length=1, description="lung masks: a folder, or torchxrayvision; phantoms: own")
    edits: list[Edit] = Field([], description="changes of the whole image beside them, each scored once")


class Sanity(Section):
    """Cascading randomisation of a model's weights, from the head down (Adebayo et al., NeurIPS 2018)."""

    images: int = Field(32, ge=2, description="test images, chosen by the seed")
    layers: list[Literal["fc", "layer4", "layer3", "layer2", "layer1"]] = Field(
        ["fc", "layer4", "layer3"], min_length=1, description="each is randomised beside those before it"
    )


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{_show(value)} came; allowed is auto, or a whole number from 1")


def _auto_or_gpus(value: Any) -> Any:
    if value == "auto":
        return value
    if type(value) in (int, float) and (0 <= value <= 1 or (1 < value < 1e6 and value % 1 == 0)):
        return float(value)
    raise ValueError(f"{_show(value)} came; allowed is auto, 0 to 1, or a whole number")


Count = Annotated[int | Literal["auto"], PlainValidator(_auto_or_count, json_schema_input_type=int | Literal["auto"])]
Gpus = Annotated[float | Literal["auto"], PlainValidator(_auto_or_gpus, json_schema_input_type=float | Literal["auto"])]


class Resources(Section):
    """How the cluster is used; never part of what the numbers are."""

    workers: Count = Field("auto", description="actors that explain")
    gpu_per_worker: Gpus = "auto"
    gpu_per_trial: Gpus = "auto"
    cpu_per_trial: float = Field(
        1, gt=0, description="at least; one machine without GPUs shares its CPUs among its trials"
    )
    batch_size: Count = Field("auto", description="masked images in one forward pass")


class Sweep(Section):
    """One resolved sweep. ``model`` and ``train`` may hold search spaces, so they stay plain mappings here."""

    name: Name = "sweep"
    data: Data = Data()
    variants: dict[Name, dict[Literal["model", "train"], dict[str, Any]]] = {}
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    search: Search = Search()
    evaluate: Literal["best_per_variant_seed", "all"] = "best_per_variant_seed"
    checkpoints: dict[Name, Checkpoint] = {}
    explain: Explain = Explain()
    perturb: Perturb = Perturb()
    controls: dict[Name, Annotated[int, Field(ge=1, le=999)]] = {"pixel_random": 5, "cell_random": 5, "shifted": 5}
    sequential: Sequential | None = None
    regions: Regions | None = Regions()
    sanity: Sanity | None = Sanity()
    resources: Resources = Resources()
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @property
    def hash(self) -> str:
        """16 hex digits of the sweep without resources and data.path: equal where the numbers must be equal."""
        plain = self.model_dump(mode="json")
        plain.pop("resources")
        plain["data"].pop("path")
        return hashlib.sha256(to_json(plain).encode()).hexdigest()[:16]

    def images_of(self, model: Model) -> tuple[int, str]:
        """Size and preprocessing of the images that a model section without spaces asks for."""
        return model.size or self.data.size, model.preprocess

    def to_yaml(self) -> str:
        """The resolved sweep as YAML that loads back to itself."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)

    def trial_points(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(variant, model, train) for every variant and grid point; what is left of a space is to be sampled."""
        points = []
        for variant, changes in self.variants.items():
            sections = {
                "model": {**self.model, **changes.get("model", {})},
                "train": {**self.train, **changes.get("train", {})},
            }
            grids = [
                (section, key, value["grid"])
                for section, values in sections.items()
                for key, value in values.items()
                if isinstance(value, dict) and "grid" in value
            ]
            for chosen in itertools.product(*(values for _, _, values in grids)):
                point = copy.deepcopy(sections)
                for (section, key, _), value in zip(grids, chosen, strict=True):
                    point[section][key] = value
                points.append((variant, point["model"], point["train"]))
        return points


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise SweepError(f"line {key_node.start_mark.line + 1}: a key must be a plain name.")
        if key in seen:
            raise SweepError(f"line {key_node.start_mark.line + 1}: the key {key!r} is given twice; keep one.")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, origin: str) -> Any:
    """YAML to plain data.

    Raises:
        SweepError: it does not parse, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except SweepError as e:
        raise SweepError(f"{origin}, {e}") from None
    except Exception as e:  # beside its own errors, PyYAML raises IndexError, KeyError and others on ill-formed scalars
        mark, what = getattr(e, "problem_mark", None), getattr(e, "problem", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = " ".join(str(what or e).split()) or type(e).__name__
        raise SweepError(f"{origin}{where}: not valid YAML: {what}.") from None


def load_sweep(
    path: str | Path,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
    *,
    explainers: Iterable[str] = (),
    controls: Iterable[str] = (),
) -> Sweep:
    """The sweep file at ``path`` merged with the defaults, ``a.b=value`` overrides and dotted ``changes``.

    Args:
        path: a YAML file.
        overrides: ``--set`` texts; values are YAML.
        changes: dotted key to value, applied last (``--data``).
        explainers: the names that exist.
        controls: the names that exist.

    Raises:
        SweepError: with every mistake in it, one a line.
    """
    path = Path(path)
    if not path.is_file():
        files = [p.name for p in path.parent.glob("*.y*ml") if p.is_file()]
        near = difflib.get_close_matches(path.name, files, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else " Give the path of a YAML file."
        raise SweepError(f"there is no sweep file {path}.{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SweepError(f"{path} cannot be read as text: {e}.") from None
    raw = parse_yaml(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise SweepError(f"{path} holds a {type(raw).__name__}; a sweep file is a mapping such as 'name: mine'.")
    raw.setdefault("name", re.sub(r"[^a-z0-9_-]", "_", path.stem.lower()).lstrip("0123456789_-") or "sweep")
    mistakes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            mistakes.append(f"--set {override}: write --set section.key=value.")
            continue
        try:
            mistakes += _assign(raw, key.strip(), parse_yaml(value, f"--set {override}"))
        except SweepError as e:
            mistakes.append(str(e))
    for key, value in (changes or {}).items():
        mistakes += _assign(raw, key, value)
    return resolve(raw, explainers=explainers, controls=controls, mistakes=mistakes)


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> list[str]:
    *parents, last = dotted.split(".")
    here = raw
    for i, parent in enumerate(parents):
        if here.get(parent) is None:
            here[parent] = {}
        if not isinstance(here[parent], dict):
            return [f"--set {dotted}: {'.'.join(parents[: i + 1])} is a value, not a section."]
        here[parent] = dict(here[parent])  # a YAML alias may stand for the same mapping elsewhere
        here = here[parent]
    here[last] = value
    return []


def resolve(
    raw: dict[str, Any],
    *,
    explainers: Iterable[str] = (),
    controls: Iterable[str] = (),
    mistakes: Iterable[str] = (),
) -> Sweep:
    """Plain data to a resolved sweep; raises SweepError with all ``mistakes`` and those found here."""
    found = list(mistakes)
    raw = {k: {} if v is None and k in ("controls", "checkpoints", "variants") else v for k, v in raw.items()}
    raw = {k: v for k, v in raw.items() if v is not None or k in NULLABLE}
    for section in ("model", "train"):
        raw[section] = _with_defaults(section, raw.get(section, {}), found, section)
    if not raw.get("variants") and not raw.get("checkpoints"):
        raw["variants"] = {"plain": {}}
    if isinstance(raw.get("variants"), dict):
        raw["variants"] = {k: {} if v is None else v for k, v in raw["variants"].items()}
        for variant, changes in raw["variants"].items():
            for section in ("model", "train"):
                if isinstance(changes, dict) and isinstance(changes.get(section), dict):
                    checked = _checked(section, changes[section], found, f"variants.{_part(variant)}.{section}")
                    changes = {**changes, section: checked}
            raw["variants"][variant] = changes
    explain = raw.get("explain")
    given_explainers = explain.get("explainers") if isinstance(explain, dict) else None
    known: list[tuple[str, Any, list[str]]] = [
        ("explain.explainers", given_explainers, list(explainers)),
        ("controls", raw.get("controls"), list(controls)),
    ]
    for where, given, exist in known:
        names = [n for n in given if isinstance(n, str)] if isinstance(given, list | dict) else []
        names = [n for n in names if re.fullmatch(NAME_PATTERN, n)]
        found += [f"{where}: {n!r} is unknown.{_did_you_mean(n, exist)}" for n in names if exist and n not in exist]
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as e:
        found += [_sentence(error) for error in e.errors()]
        sweep = None
    if sweep is not None:
        lists: dict[str, list[Any]] = {
            "explain.explainers": sweep.explain.explainers, "explain.targets": sweep.explain.targets,
            "perturb.grids": sweep.perturb.grids, "perturb.fills": sweep.perturb.fills,
            "perturb.levels": sweep.perturb.levels, "perturb.orders": sweep.perturb.orders,
            "regions.names": sweep.regions.names if sweep.regions else [],
            "regions.edits": sweep.regions.edits if sweep.regions else [],
        }  # fmt: skip
        for where, values in lists.items():
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                found.append(f"{where}: {', '.join(twice)} given twice; keep one.")
        both = sorted(set(sweep.variants) & set(sweep.checkpoints))
        if both:
            found.append(f"checkpoints: {', '.join(both)} is also a variant; give it another name.")
        if sweep.controls.get("shifted", 0) > MAX_SHIFTED:
            found.append(f"controls.shifted: {sweep.controls['shifted']} came; at most {MAX_SHIFTED} shifts differ.")
        if sweep.regions and sweep.data.source != "phantom":
            found += [
                f"regions.names: {name} came, but {sweep.data.source} images do not say where it is; only those of "
                "data.source: phantom do. Leave it out."
                for name in sweep.regions.names
                if name in ("marker", "opacity")
            ]
            if "outside_lungs" in sweep.regions.names and sweep.regions.lungs is None:
                found.append(
                    "regions.names: outside_lungs needs lung masks; set regions.lungs to a folder of them or to "
                    "torchxrayvision (a segmenter), or leave it out."
                )
        if sweep.controls.get("mean_map", 1) != 1:
            found.append(f"controls.mean_map: {sweep.controls['mean_map']} came; there is one mean, so give 1.")
    if found or sweep is None:
        raise SweepError("\n".join(dict.fromkeys(found)))
    return sweep


_CONCRETE: dict[str, type[Section]] = {"model": Model, "train": Train}


def _with_defaults(section: str, given: Any, found: list[str], where: str) -> dict[str, Any]:
    return {**_CONCRETE[section]().model_dump(mode="json"), **_checked(section, given, found, where)}


def _checked(section: str, given: Any, found: list[str], where: str) -> dict[str, Any]:
    """Values, and each option or bound of a search space, validated against the concrete section: 0 becomes 0.0."""
    if not isinstance(given, dict):
        found.append(f"{where}: {_show(given)} came; a mapping of keys is allowed.")
        return {}
    checked = {}
    for key, value in given.items():
        path, kind, options = f"{where}.{_part(key)}", "", [value]
        if isinstance(value, dict):
            problem = _space_problem(value)
            if problem:
                found.append(f"{path}: {problem}")
                continue
            kind, options = next(iter(value.items()))
            if kind in ("uniform", "loguniform") and _CONCRETE[section].model_fields.get(str(key)):
                annotation = _CONCRETE[section].model_fields[str(key)].annotation
                if annotation is not float:
                    found.append(f"{path}: {kind} is for real numbers; use grid or choice here.")
                    continue
        values = []
        for option in options:
            try:
                values.append(getattr(_CONCRETE[section].model_validate({key: option}), key))
            except ValidationError as e:
                found += [_sentence(error, where) for error in e.errors()]
        if kind in ("grid", "choice") and len(set(values)) < len(values):
            found.append(f"{path}: {kind} holds a value twice: {_show(options)}.")
        if len(values) == len(options):
            checked[key] = {kind: values} if kind else values[0]
    return checked


def _space_problem(value: dict[str, Any]) -> str | None:
    if len(value) != 1 or next(iter(value)) not in SPACES:
        return (
            f"{_show(value)} came; a search space is one of {{grid: [...]}}, {{choice: [...]}}, "
            "{uniform: [low, high]}, {loguniform: [low, high]}."
        )
    kind, options = next(iter(value.items()))
    if not isinstance(options, list) or not options:
        return f"{kind} takes a list, got {_show(options)}."
    if kind in ("uniform", "loguniform"):
        numbers = [o for o in options if isinstance(o, int | float) and not isinstance(o, bool)]
        if len(options) != 2 or len(numbers) != 2 or not options[0] < options[1]:
            return f"{kind} takes [low, high] with low < high, got {_show(options)}."
        if kind == "loguniform" and options[0] <= 0:
            return f"loguniform needs low > 0, got {options[0]}."
    return None


def concrete(model: dict[str, Any], train: dict[str, Any]) -> tuple[Model, Train]:
    """Sampled sections, without any space left, as frozen objects."""
    return Model.model_validate(model), Train.model_validate(train)


def _show(value: Any) -> str:
    """What came, short enough for a sentence."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of more than 4300 digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _part(key: Any) -> str:
    """One part of a dotted path, on one line."""
    return key if isinstance(key, str) and key.isprintable() and key else _show(key)


def _did_you_mean(name: Any, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.5)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" Allowed: {', '.join(allowed)}."


def _allowed_keys(loc: tuple[Any, ...], prefix: str) -> list[str]:
    """Keys of the section in which an unknown key stands."""
    if prefix:
        return list(_CONCRETE[prefix.rsplit(".", 1)[-1]].model_fields)
    here: Any = Sweep
    for part in loc[:-1]:
        field = here.model_fields.get(part) if isinstance(here, type) and issubclass(here, BaseModel) else None
        if field is None:
            break
        here = field.annotation
        args = [a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
        if args:
            here = args[-1]
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _sentence(error: Any, prefix: str = "") -> str:
    """One pydantic error as 'dotted.path: what came, what is allowed'."""
    loc = tuple(error["loc"])
    named = [_part(p) for p in loc if p != "[key]"]
    path = ".".join([prefix, *named] if prefix else named) or "the sweep"
    came, shown = error.get("input"), _show(error.get("input"))
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key.{_did_you_mean(loc[-1], _allowed_keys(loc, prefix))}"
    if "[key]" in loc or error["type"] == "string_pattern_mismatch":
        if len(loc) > 2 and loc[0] == "variants" and error["type"] == "literal_error":
            return f"{path}: unknown key.{_did_you_mean(came, _CONCRETE)}"
        return f"{path}: {shown} is no name; names match {NAME_PATTERN}."
    if error["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{path}: {shown} came.{_did_you_mean(came, allowed)}"
    if error["type"] in ("model_type", "dict_type"):
        return f"{path}: {shown} came; a mapping of keys is allowed."
    if error["type"] == "value_error":
        return f"{path}: {error['msg'].removeprefix('Value error, ')}."
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{path}: {shown} came; {message.replace('input should', 'it should')}."


def json_schema() -> dict[str, Any]:
    """The JSON schema of a sweep file, for editors: sections with every key, search spaces under model and train."""
    schema = Sweep.model_json_schema()
    defs = schema["$defs"]
    sections = {}
    for name, section in _CONCRETE.items():
        plain = section.model_json_schema()
        properties = {key: _or_space(key, value) for key, value in plain["properties"].items()}
        sections[name] = {"type": "object", "properties": properties, "additionalProperties": False}
    change = {"type": ["object", "null"], "properties": sections, "additionalProperties": False}
    schema["properties"] |= sections
    schema["properties"]["variants"] = {"type": "object", "additionalProperties": change}
    cells = [int(g) for g in get_args(Grid) if g.isdigit()]  # as they may be written
    defs["Perturb"]["properties"]["grids"]["items"] = {"enum": [*get_args(Grid), *cells]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_space(key: str, value: dict[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in value.items() if k not in ("title", "description", "default")}
    told = {k: v for k, v in value.items() if k in ("description", "default")}
    kinds = {"grid": {"type": "array", "items": plain, "minItems": 1}}
    kinds["choice"] = kinds["grid"]
    if plain.get("type") == "number":
        bounds = {"type": "array", "items": plain, "minItems": 2, "maxItems": 2}
        kinds |= {"uniform": bounds, "loguniform": bounds}
    space = {
        "type": "object",
        "properties": kinds,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {**told, "anyOf": [plain, space]}


if __name__ == "__main__":  # python -m cxr_ray.config > sweeps/schema.json
    import json
    import sys

    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
