"""The sweep file: YAML and overrides to a resolved sweep, with every mistake in it reported at once.

The sections are those of ``config``; every name in them is looked up in the registry of its kind.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxr_ray.analysis import primary
from cxr_ray.config import NULLABLE, SEGMENTER, SPACES, WITH_SPACES, Data, Sweep
from cxr_ray.credentials import without, without_all
from cxr_ray.data.doubts import SUSPICIONS
from cxr_ray.data.images import PREPROCESS
from cxr_ray.data.sources import SOURCES, known_masks
from cxr_ray.errors import SweepError, shown
from cxr_ray.measure import metrics
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.rankings import GRIDS
from cxr_ray.measure.regions import REGIONS
from cxr_ray.mistakes import part, sentence
from cxr_ray.models import families
from cxr_ray.models.networks import NETWORKS
from cxr_ray.models.training import AUGMENTATIONS, LOSSES, SAMPLERS
from cxr_ray.registry import did_you_mean
from cxr_ray.schemas import CLASSES, NAME_PATTERN, SHARED
from cxr_ray.yamlfile import parse_yaml

# Dotted path (* is any key) to the names that may stand there: as the value, in the list, or as keys of the mapping.
NAMES: dict[str, Collection[str]] = {
    "data.source": SOURCES,
    "data.accept": SUSPICIONS,
    "model.arch": NETWORKS,
    "model.preprocess": PREPROCESS,
    "train.loss": LOSSES,
    "train.sampler": SAMPLERS,
    "train.augment": AUGMENTATIONS,
    "checkpoints.*.arch": NETWORKS,
    "checkpoints.*.preprocess": PREPROCESS,
    "explain.explainers": EXPLAINERS,
    "perturb.grids": GRIDS,
    "perturb.fills": FILLS,
    "controls": CONTROLS,
    "verdicts.explainers": EXPLAINERS,
    "verdicts.controls": CONTROLS,
    "regions.names": REGIONS,
    "regions.edits": EDITS,
}
MOST_BYTES = 2**20  # of a sweep file
MOST_MISTAKES = 50  # that are told
WITH_MAPS = ("verdicts.explainers",)  # the names of ``explain.maps`` may stand there as well
MOST_TRIALS = 10_000


def load_sweep(path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None) -> Sweep:
    """The sweep file at ``path`` merged with the defaults, ``a.b=value`` overrides and dotted ``changes``.

    Args:
        path: a YAML file.
        overrides: ``--set`` texts; values are YAML.
        changes: dotted key to value, applied last (``--data``).

    Raises:
        SweepError: with every mistake in it, one a line.
    """
    path = Path(without(str(path)))
    raw = _read(path)
    raw.setdefault("name", re.sub(r"[^a-z0-9_-]", "_", path.stem.lower()).lstrip("0123456789_-") or "sweep")
    mistakes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            mistakes.append(f"--set: got {override}; expected section.key=value.")
            continue
        try:
            mistakes += _assign(raw, key.strip(), parse_yaml(value, f"--set {override}"))
        except SweepError as e:
            mistakes.append(str(e))
    for key, value in (changes or {}).items():
        mistakes += _assign(raw, key, value)
    return resolve(raw, mistakes)


def _read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    if not path.is_file():
        files = [p.name for p in path.parent.glob("*.y*ml") if p.is_file()]
        near = difflib.get_close_matches(path.name, files, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of one."
        raise SweepError(f"got {path}, which is no file; expected a YAML file; {hint}")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise SweepError(f"got {path} of {size} bytes; expected a sweep file, of at most {MOST_BYTES}; give one.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SweepError(f"got {path}, which cannot be read as text ({e}); expected a YAML file; give one.") from None
    raw = parse_yaml(text, str(path))
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        kind = "a list" if isinstance(raw, list) else "text" if isinstance(raw, str) else shown(raw)
        raise SweepError(f"got {path} with {kind}; expected a mapping; write one, such as 'name: mine'.")
    return raw


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> list[str]:
    """Set a value in place; returns the mistake, if it is one."""
    *parents, last = dotted.split(".")
    section = raw
    for i, parent in enumerate(parents):
        if section.get(parent) is None:
            section[parent] = {}
        if not isinstance(section[parent], dict):
            return [f"--set {dotted}: got a value for {'.'.join(parents[: i + 1])}; expected a section there."]
        section[parent] = dict(section[parent])  # a YAML alias may stand for the same mapping elsewhere
        section = section[parent]
    section[last] = value
    return []


def resolve(raw: Mapping[Any, Any], mistakes: Iterable[str] = ()) -> Sweep:
    """Plain data to a resolved sweep.

    Raises:
        SweepError: with all ``mistakes`` and those found here, one a line.
    """
    found = list(mistakes)
    plain = _with_spaces_checked(without_all(dict(raw)), found)
    found += _unknown_names(plain)
    try:
        sweep = Sweep.model_validate(plain)
    except ValidationError as e:
        unknown = {line.partition(": got ")[0] for line in found}
        found += [
            line
            for error in e.errors()
            if (line := sentence(error)).partition(": got ")[0] not in unknown or "pattern" not in error["type"]
        ]
    else:
        found += [*_repetitions(sweep), *_contradictions(sweep)]
        if not found:
            return sweep
    found = list(dict.fromkeys(found))
    if len(found) > MOST_MISTAKES:
        found = [*found[:MOST_MISTAKES], f"and {len(found) - MOST_MISTAKES} more mistakes; correct these first."]
    raise SweepError("\n".join(found))


def _with_spaces_checked(raw: Mapping[Any, Any], found: list[str]) -> dict[Any, Any]:
    """``raw`` with ``model`` and ``train`` checked and filled with defaults, and a variant if there is no model."""
    plain = {k: {} if v is None and k in ("controls", "checkpoints", "variants") else v for k, v in raw.items()}
    plain = {k: v for k, v in plain.items() if v is not None or k in NULLABLE}
    for section, model in WITH_SPACES.items():
        checked = _checked(section, plain.get(section, {}), found, section)
        plain[section] = {**model().model_dump(mode="json"), **checked}
    if not plain.get("variants") and not plain.get("checkpoints"):
        plain["variants"] = {"plain": {}}
    if isinstance(plain.get("variants"), dict):
        plain["variants"] = {
            variant: _checked_variant(f"variants.{part(variant)}", {} if changes is None else changes, found)
            for variant, changes in plain["variants"].items()
        }
    return plain


def _checked_variant(path: str, changes: Any, found: list[str]) -> Any:
    """What a variant changes, its sections checked; what is no mapping is left to the model."""
    if not isinstance(changes, dict):
        return changes
    sections = {s: changes[s] for s in WITH_SPACES if isinstance(changes.get(s), dict)}
    return {**changes, **{s: _checked(s, values, found, f"{path}.{s}") for s, values in sections.items()}}


def _checked(section: str, given: Any, found: list[str], where: str) -> dict[str, Any]:
    """Values, and each option or bound of a search space, validated against the section: 0 becomes 0.0."""
    if not isinstance(given, dict):
        found.append(f"{where}: got {shown(given)}; expected a mapping of keys.")
        return {}
    checked = {}
    for key, value in given.items():
        path = f"{where}.{part(key)}"
        problem = _space_problem(section, key, value) if isinstance(value, dict) else None
        if problem:
            found.append(f"{path}: {problem}")
            continue
        kind, options = next(iter(value.items())) if isinstance(value, dict) else ("", [value])
        values = [v for option in options for v in _validated(section, key, option, found, where)]
        if kind in ("grid", "choice") and len(set(values)) < len(values):
            found.append(f"{path}: got a {kind} with a value twice, {shown(options)}; expected each once.")
        if len(values) == len(options):
            checked[key] = {kind: values} if kind else values[0]
    return checked


def _validated(section: str, key: Any, option: Any, found: list[str], where: str) -> list[Any]:
    """One value of a section in a list, or an empty list and a mistake."""
    known = NAMES.get(f"{section}.{key}")
    if known is not None and isinstance(option, str) and option not in known:
        found.append(f"{where}.{key}: got {shown(option)}.{_expected(option, known)}")
        return []
    try:
        return [getattr(WITH_SPACES[section].model_validate({key: option}), key)]
    except ValidationError as e:
        found += [sentence(error, where) for error in e.errors()]
        return []


def _space_problem(section: str, key: Any, value: dict[Any, Any]) -> str | None:
    """What is wrong with a search space, apart from its values."""
    if len(value) != 1 or next(iter(value)) not in SPACES:
        return (
            f"got {shown(value)}; expected one of {{grid: [...]}}, {{choice: [...]}}, {{uniform: [low, high]}}, "
            "{loguniform: [low, high]}."
        )
    kind, options = next(iter(value.items()))
    if not isinstance(options, list) or not options:
        return f"got {shown(options)}; expected a list after {kind}."
    if kind in ("grid", "choice"):
        return None
    numbers = [o for o in options if isinstance(o, int | float) and not isinstance(o, bool)]
    if len(options) != 2 or len(numbers) != 2 or not options[0] < options[1]:
        return f"got {shown(options)}; expected [low, high] with low < high after {kind}."
    if kind == "loguniform" and options[0] <= 0:
        return f"got {shown(options)}; expected low > 0 after loguniform."
    field = WITH_SPACES[section].model_fields.get(str(key))
    if field is not None and field.annotation is not float:
        return f"got {kind}, which is for real numbers; expected grid or choice."
    return None


def _unknown_names(plain: Mapping[Any, Any]) -> Iterator[str]:
    """Names that no registry has. Those of ``model`` and ``train`` are checked with their search spaces."""
    outside = [name for _, maps in _values(plain, ["explain", "maps"], "") for _, name in _names_in("", maps, ())]
    for dotted, known in NAMES.items():
        if dotted.split(".")[0] in WITH_SPACES:
            continue
        known = [*known, *outside] if dotted in WITH_MAPS else known
        for path, value in _values(plain, dotted.split("."), ""):
            for place, name in _names_in(path, value, known):
                if name not in known:
                    yield f"{place}: got {shown(name)}.{_expected(name, known)}"


def _expected(name: str, known: Collection[str]) -> str:
    """The nearest known name and all of them."""
    return families.expected(name, known) if isinstance(known, families.Networks) else did_you_mean(name, known)


def _values(value: Any, keys: list[str], path: str) -> Iterator[tuple[str, Any]]:
    """The values at a dotted path, with their own paths."""
    if not keys:
        yield path, value
    elif isinstance(value, Mapping):
        for key in value if keys[0] == "*" else [k for k in keys[:1] if k in value]:
            yield from _values(value[key], keys[1:], f"{path}.{part(key)}" if path else part(key))


def _names_in(path: str, value: Any, known: Collection[str]) -> list[tuple[str, str]]:
    """Texts with their paths; keys that cannot be names are left to the model. A name of digits may be a number."""
    if isinstance(value, Mapping):
        items = [(path, key) for key in value if isinstance(key, str) and re.fullmatch(NAME_PATTERN, key)]
    elif isinstance(value, list):
        numbers = any(name.isdigit() for name in known)
        items = [(f"{path}.{i}", str(v) if numbers and type(v) is int else v) for i, v in enumerate(value)]
    else:
        items = [(path, value)]
    return [(place, name) for place, name in items if isinstance(name, str)]


def _repetitions(sweep: Sweep) -> Iterator[str]:
    """Values that stand in a list twice, and names that stand for two models."""
    plain = {key: value for key, value in sweep.model_dump().items() if key not in ("variants", *WITH_SPACES)}
    for path, values in _lists(plain, ""):
        twice = sorted(str(value) for value, n in Counter(values).items() if n > 1)
        if twice:
            more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
            yield f"{path}: got {', '.join(twice[:5])}{more} twice; expected each once."
    both = sorted(set(sweep.variants) & set(sweep.checkpoints))
    if both:
        yield f"checkpoints: got {', '.join(both)}, also a variant; expected another name."


def _lists(value: Any, path: str) -> Iterator[tuple[str, list[Any]]]:
    """All lists below a value, with their dotted paths; tuples, as of means, may hold a value twice."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _lists(inner, f"{path}.{part(key)}" if path else part(key))
    elif isinstance(value, list):
        yield path, value


def _trials(sweep: Sweep) -> int:
    """How many networks a sweep trains at most, without listing them."""
    total = 0
    for changes in sweep.variants.values():
        sections = ({**sweep.model, **changes.get("model", {})}, {**sweep.train, **changes.get("train", {})})
        spaces = [v for section in sections for v in section.values() if isinstance(v, dict)]
        total += math.prod(len(v["grid"]) for v in spaces if "grid" in v) * sweep.search.num_samples
    return total


def _nothing_to_search(sweep: Sweep) -> Iterator[str]:
    """A searcher without anything that is sampled; a grid is not."""
    values = [v for _, *sections in sweep.trial_points() for section in sections for v in section.values()]
    if sweep.search.searcher != "random" and not any(isinstance(v, dict) for v in values):
        yield (
            f"search.searcher: got {sweep.search.searcher} and nothing to search; expected a choice, uniform or "
            "loguniform under model or train; add one, or leave it out."
        )


def _contradictions(sweep: Sweep) -> Iterator[str]:
    """What one section asks of another that it does not have."""
    perturb = sweep.perturb
    if (trials := _trials(sweep)) > MOST_TRIALS:
        yield (
            f"variants: got {trials} networks to train (variants, grids and search.num_samples multiply); expected at "
            f"most {MOST_TRIALS}; shorten a grid."
        )
    if not metrics.measured(perturb.orders, perturb.levels):
        asked, better = map(metrics.in_words, (perturb.levels, metrics.with_areas(perturb.levels)))
        yield (
            f"perturb.levels: got {asked} with lerf alone, whose only metric is an area; expected no step wider than "
            f"{metrics.WIDEST_STEP:g} (0 and 1 included); give {better}, or add morf to perturb.orders."
        )
    for name, draws in sweep.controls.items():
        most = CONTROLS[name].most_draws if name in CONTROLS else None
        if most is not None and draws > most:
            yield f"controls.{name}: got {draws}; expected at most {most}, since no more of its draws differ."
    for name in sweep.explain.maps:
        if name in EXPLAINERS or name == SHARED:
            yield f"explain.maps.{name}: got a name of something else in the tables; expected another; rename it."
    yield from _nothing_to_search(sweep)
    yield from _data_unused(sweep.data)
    yield from _outputs_unknown(sweep)
    yield from _verdicts_impossible(sweep)
    if sweep.regions is None or sweep.data.source not in SOURCES:
        return
    have = known_masks(sweep)
    for name in sweep.regions.names:
        needs = REGIONS[name].needs if name in REGIONS else None
        if needs is not None and needs not in have:
            yield _mask_missing(sweep, name, needs)


def _outputs_unknown(sweep: Sweep) -> Iterator[str]:
    """Classes that ``outputs`` of a checkpoint names and the data does not have, or leaves out."""
    groups = sweep.data.classes.groups
    for name, checkpoint in sweep.checkpoints.items():
        named = set(checkpoint.outputs or {})
        if named and not named <= set(CLASSES) and named != set(groups):
            either = " and ".join(CLASSES) + (f", or of {', '.join(groups)}" if sweep.data.classes.several else "")
            yield (
                f"checkpoints.{name}.outputs: got {', '.join(map(shown, sorted(named)))}; expected outputs of {either}."
            )


def _data_unused(data: Data) -> Iterator[str]:
    """Keys of ``data`` that its source does not read, or that another one overrides."""
    if data.source not in SOURCES:
        return
    optional = dict.fromkeys(key for kind in SOURCES.values() for key in kind.reads)
    for key in optional:
        if key not in SOURCES[data.source].reads and getattr(data, key) != Data.model_fields[key].default:
            read = ", ".join(name for name, kind in SOURCES.items() if key in kind.reads)
            yield f"data.{key}: got a value with data.source {data.source}; expected source {read}; leave it out."
    if data.patient is not None and data.columns.patient is not None:
        yield "data.patient: got a value beside data.columns.patient; expected one of them; leave one out."


def _verdicts_impossible(sweep: Sweep) -> Iterator[str]:
    """Explainers and controls of ``verdicts`` that the rest of the sweep does not have."""
    if sweep.verdicts is None:
        return
    for name in sweep.verdicts.explainers:
        if name in EXPLAINERS and name not in sweep.explain.explainers:
            yield f"verdicts.explainers: got {name}; expected one of explain.explainers; add it there."
    grid = primary.resolve(sweep).grid
    for name in sweep.verdicts.controls:
        if name in CONTROLS and not CONTROLS[name].grids([grid]):
            yield f"verdicts.controls: got {name}, which is not drawn on grid {grid}; expected another; leave it out."


def _mask_missing(sweep: Sweep, region: str, needs: str) -> str:
    if needs == "lungs":
        return (
            f"regions.names: got {region} without lung masks; expected regions.lungs to name a folder of them or "
            f"{SEGMENTER} (a segmenter); set it, or leave {region} out."
        )
    know = " or ".join(name for name, kind in SOURCES.items() if needs in kind.masks)
    masks = ", or regions.marker to name a folder of masks" if needs == "marker" else ""
    return (
        f"regions.names: got {region}, but {sweep.data.source} images do not say where it is; expected data.source: "
        f"{know}{masks}; leave it out."
    )
