"""The library: maps and their measurement for a model and images in memory, without Ray, files or a sweep.

``cxr_ray.explain``, ``cxr_ray.measure`` and ``cxr_ray.verdict`` are these. A sweep's worker makes every number.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, Unpack, get_type_hints

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cxr_ray.analysis.summary import Model as Row
from cxr_ray.analysis.summary import Sampling, summarize
from cxr_ray.config import Sweep
from cxr_ray.counting import done
from cxr_ray.data.patients import FILLED_IN, known_patients
from cxr_ray.errors import DataError, UserError, shown
from cxr_ray.measure import donors, given, needs
from cxr_ray.measure.batch import Batch, Pairs
from cxr_ray.measure.controls import needs_map_pass
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.given import TRIAL, Given, Images, Model
from cxr_ray.measure.measurement import make_maps, require_drawable, undrawable
from cxr_ray.measure.shards import ModelRef, Shard, Tables
from cxr_ray.measure.worker import Worker
from cxr_ray.models.networks import ModelSpec
from cxr_ray.run.local_verdict import LocalVerdict
from cxr_ray.schemas import SHARED, TABLES
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve

Maps = str | Sequence[str] | ArrayLike | Tensor | Mapping[str, ArrayLike | Tensor]
Target = Literal["pneumonia", "predicted"]

GIVEN = "maps"  # the name of maps that come without one
CONTROLS = ("other_image", "mean_map", "shifted")  # of a verdict
FILLS = ("mean", "blur")
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
ROUND = 8  # patients that are scored at a time
BATCH = 32  # masked images in a pass on a CPU


class About(TypedDict, total=False):
    """What ``measure`` and ``verdict`` may be told besides; as the keys of a sweep file, with the same defaults.

    Attributes:
        labels: 0 (negative) or 1 (positive) for each image; without them there are no outcomes and no buckets.
        target: the class whose score is explained and measured: pneumonia (the positive class) or predicted.
        spec: size and normalisation of the model's images; None: the images' size, ImageNet's normalisation.
        ids: one for each image; every draw for an image follows from its id and the seed.
        grids, fills, orders: what is ranked, what replaces pixels, in which direction.
        sequential: draws beyond the fixed ones, as {"max_draws": 199, "extreme": 10}.
        truth: where experts see the finding, bool [N, S, S], nowhere where they see none; ``measure`` alone.
        stability: whether maps stay when images hardly change, as the section of a sweep file ({} for its defaults), of
            all images; ``measure`` alone.
        seed: of draws, ties, bootstrap and tests.
        batch_size: masked images in a pass.
    """

    labels: Sequence[int] | ArrayLike
    target: Target
    spec: ModelSpec | None
    ids: Sequence[str] | None
    grids: Sequence[str | int]
    fills: Sequence[str]
    orders: Sequence[str]
    sequential: Mapping[str, int] | None
    truth: ArrayLike
    stability: Mapping[str, Any] | None
    seed: int
    batch_size: int


class AboutVerdict(About, total=False):
    """What ``verdict`` may be told besides.

    Attributes:
        buckets: all; or TP, FP, TN and FN, which need labels.
        validation: other images, on which the first valid fill is chosen before any verdict; None: the first of the
            fills, and maps are compared by deletion alone.
        alpha: chance of any wrong decision.
        futile: a win rate shown to lie below it ends a comparison as well.
    """

    buckets: Sequence[str]
    validation: Images
    alpha: float
    futile: float


@dataclass(frozen=True)
class Measurement:
    """The tables of a measurement, with the columns of a sweep's (docs/tables.md).

    Attributes:
        predictions: an image a row.
        saliency: where each map's mass lies.
        curves: scores of masked images, of each map and each draw of its controls.
        faithfulness: an image's metrics beside its control's.
        localisation: a map's agreement with the expert truth beside its control's; no rows without.
        stability: maps of altered copies of an image beside its own, and infidelity; no rows unless asked for.
        summary: means, intervals over patients and tests, by bucket; without labels the bucket ``all`` alone.
        errors: what could not be measured, and why.
    """

    predictions: pd.DataFrame
    saliency: pd.DataFrame
    curves: pd.DataFrame
    faithfulness: pd.DataFrame
    localisation: pd.DataFrame
    stability: pd.DataFrame
    summary: pd.DataFrame
    errors: pd.DataFrame


@contextmanager
def _as_in_a_sweep() -> Iterator[None]:
    """Torch as a worker has it, whatever the caller set: gradients can be had, and numbers are float32."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        yield


@_as_in_a_sweep()
def explain(
    model: Model,
    images: Images,
    explainer: str = "gradcam",
    *,
    target: Target | int | Sequence[int] = "pneumonia",
    spec: ModelSpec | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Maps of images: where a model's score of a class comes from, as an explainer says.

    Args:
        model: a module in eval mode, or a function, of model-space images [B, 3, S, S] to logits [B, 2] (negative and
            positive class) or [B, 1] (log-odds of the positive class). Explainers that read layers need a module.
        images: in pixel space, uint8 or floating point in [0, 1], [N, 3, S, S], [N, 1, S, S] or [N, S, S]; or paths of
            files: a list, an array or a column of texts.
        explainer: a name; docs/names.md lists them.
        target: the class that is explained: pneumonia (the positive class), predicted, or 0 or 1, for all or for each.
        spec: size and normalisation of the model's images; None: the images' size, ImageNet's normalisation.
        ids: one for each image, for explainers that draw random numbers; None: paths, or the images' numbers.
        seed: of those.

    Returns:
        float32 [N, V, V], at the explainer's own resolution, signed, never rescaled.

    Raises:
        UserError: an unknown name, or a model or images that are not that.
    """
    if not isinstance(explainer, str):
        raise UserError(
            f"got the explainer {shown(explainer)}; expected the name of one, a text; ask for one at a time."
        )
    EXPLAINERS[explainer]
    images = given.listed(images)
    given.tell_dark(images)
    here = given.given(model, images, spec, ids)
    needs.require(here.model, [explainer])
    rule = target if isinstance(target, str) else "pneumonia"
    sweep = _sweep([explainer], {}, None, {"target": rule, "seed": seed})
    classes = None if isinstance(target, str) else _classes(target, len(here))
    maps, first = [], 0
    worker = _worker(here, sweep)
    with torch.no_grad():
        for shard in here.shards():
            batch = Batch(sweep, shard, worker.network(TRIAL), worker.device)
            if classes is not None:
                n = len(shard.image_ids)
                batch.pairs = Pairs(np.arange(n), classes[first : first + n].astype(np.int64), batch.ids)
                first += n
            maps.append(make_maps(batch, explainer, batch.network.model).own.cpu().numpy())
    return np.concatenate(maps)


@_as_in_a_sweep()
def measure(
    model: Model,
    images: Images,
    maps: Maps,
    *,
    controls: Mapping[str, int] | None = None,
    levels: Sequence[float] | None = None,
    patients: Sequence[str] | ArrayLike | None = None,
    **about: Unpack[About],
) -> Measurement:
    """Measure whether maps show what the model used: the tables of a sweep, for one model.

    Args:
        model, images: as for ``explain``.
        maps: maps of the images, [N, V, V], NaN where there is none, resized where they are larger than the images;
            several by name; or names of explainers.
        controls: name to number of draws; None: those of a sweep.
        levels: shares of pixels or cells that are perturbed; None: those of a sweep.
        patients: one for each image; None: every image is a patient of its own, which makes intervals too narrow where
            that is not so.
        about: see ``About``.

    Raises:
        UserError: anything that was given is not what it should be.
    """
    _check_keys(about, About)
    here, names = _with_maps(model, images, maps, about)
    sweep = _sweep(names, controls, levels, about)
    patient_of = _patients(here, patients)
    with _prepared(here, sweep, patient_of, _batch_size(about)) as (worker, shards):
        tables = [_scored(worker, shard) for shard in shards]
        if sweep.stability is not None:
            tables += [worker(replace(shard, split="stability")) for shard in shards]
    names = ["predictions", "saliency", "curves", "faithfulness", "localisation", "stability", "errors"]
    frames = {name: _frame(name, tables) for name in names}
    _tell_errors(frames["errors"])
    _tell_uncompared(frames["curves"], frames["faithfulness"], sweep)
    frames["summary"] = _summary(frames, sweep, patient_of)
    if here.labels is None:
        frames["predictions"] = frames["predictions"].assign(label=None, outcome=None)
        frames["faithfulness"] = frames["faithfulness"].assign(outcome=None)
        frames["localisation"] = frames["localisation"].assign(outcome=None)
        frames["summary"] = frames["summary"].query("bucket == 'all'").reset_index(drop=True)
    return Measurement(**frames)


def _scored(worker: Worker, shard: Shard) -> Tables:
    tables = worker(shard)
    done(len(shard.image_ids))
    return tables


@_as_in_a_sweep()
def verdict(
    model: Model,
    images: Images,
    maps: Maps,
    *,
    controls: Sequence[str] = CONTROLS,
    levels: Sequence[float] = LEVELS,
    patients: Sequence[str] | ArrayLike | None = None,
    **about: Unpack[AboutVerdict],
) -> pd.DataFrame:
    """Ask whether maps are more faithful than controls: patients in random order, until that is decided.

    Args:
        model, images, maps, patients: as for ``measure``.
        controls: one draw of each is compared.
        levels: shares that are perturbed.
        about: see ``AboutVerdict``.

    Returns:
        The table ``verdicts``: a comparison a row, with win rate, interval, e-value, decision and sentence. The chance
        of any wrong decision is at most ``alpha`` (0.05).

    Raises:
        UserError: anything that was given is not what it should be.
    """
    _check_keys(about, AboutVerdict)
    if unused := [key for key in ("truth", "stability") if about.get(key) is not None]:
        raise UserError(
            f"got the argument {' and '.join(unused)} for a verdict, which asks about faithfulness alone; expected "
            "none; give it to measure."
        )
    if isinstance(controls, Mapping):
        raise UserError(
            f"got controls {shown(controls)}; expected names, as one draw of each is compared; give {list(controls)}."
        )
    controls, buckets = _several(controls), _several(about.get("buckets", ["all"]))
    if about.get("labels") is None and buckets != ["all"]:
        raise DataError(
            f"got buckets {', '.join(map(str, buckets))} without labels; expected labels, which tell right from wrong; "
            "give them (labels), or leave buckets out."
        )
    settings = {"controls": controls, "alpha": about.get("alpha", 0.05), "futile": about.get("futile", 0.6)}
    plain: dict[str, Any] = {"grids": ["pixel"], "fills": FILLS, **about}
    here, names = _with_maps(model, images, maps, plain)
    sweep = _sweep(names, dict.fromkeys(controls, 1), levels, plain, settings)
    require_drawable(sweep)
    _tell_undrawable(sweep)
    validation = about.get("validation")
    checked = None if validation is None else given.given(here.model, validation)
    patient_of = _patients(here, patients)
    labels = here.whole.labels
    rows = [(i, label, "test", patient_of[i]) for i, label in zip(here.ids, labels, strict=True)]
    rows += [] if checked is None else [(i, 0, "val", f"validation {i}") for i in checked.ids]
    split = pd.DataFrame(rows, columns=["image_id", "label", "split", "patient_id"])

    def read(wanted: pd.DataFrame, name: str, of: str) -> Shard:
        source = here if of == "test" or checked is None else checked
        return replace(source.shard(list(wanted["image_id"])), name=name, split=of)

    with tempfile.TemporaryDirectory() as folder:
        device, batch_size = str(here.device), _batch_size(about)
        local = LocalVerdict(sweep, _ref(here), Store(folder, {}), split, read, "images", device, batch_size)
        primary, _ = local.settings()
        for _ in local.make_maps():
            pass
        *_, verdicts = local.rounds(primary, buckets, ROUND)
        return TABLES["verdicts"].from_rows(verdicts.rows(primary)).to_pandas()


def _classes(target: int | Sequence[int], n: int) -> NDArray[np.integer]:
    """The class that is explained for each of N images."""
    given_classes = np.asarray(target)
    if given_classes.shape not in ((), (n,)) or not np.isin(given_classes, (0, 1)).all():
        raise DataError(
            f"got targets of shape {list(given_classes.shape)}, {_among(given_classes)} among them; expected 0 or 1, "
            f"for all or for each of {n} images; give these."
        )
    return np.broadcast_to(given_classes, n)


def _several(value: Any) -> list[Any]:
    """A list of one or more things; a name or a number alone is one, and numbers of numpy are Python's."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    alone = isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0
    found = [value] if alone else list(value)
    return [one.tolist() if isinstance(one, np.generic | Tensor) else one for one in found]


def _among(array: NDArray[Any]) -> str:
    """The first values of an array, each once."""
    return ", ".join(sorted({shown(value) for value in array.ravel().tolist()})[:5])


def _batch_size(about: Mapping[str, Any]) -> int:
    size = about.get("batch_size", BATCH)
    if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 1:
        raise UserError(f"got batch_size {shown(size)}; expected a whole number from 1; give one.")
    return int(size)


def _check_keys(about: Mapping[str, Any], known: type) -> None:
    names = list(get_type_hints(known))
    if unknown := sorted(set(about) - set(names)):
        raise UserError(f"got the argument {', '.join(unknown)}; expected one of: {', '.join(names)}; give these.")


def _with_maps(model: Model, images: Images, maps: Maps, about: Mapping[str, Any]) -> tuple[Given, list[str]]:
    """The model, images and labels with the maps, and the names of the maps and explainers."""
    _batch_size(about)
    images = given.listed(images)
    given.tell_dark(images)
    here = given.given(model, images, about.get("spec"), about.get("ids"))
    if isinstance(maps, str):
        maps = [maps]
    if isinstance(maps, (list, tuple)) and maps and all(isinstance(name, str) for name in maps):
        names = [str(name) for name in maps]
        for name in names:
            EXPLAINERS[name]
        needs.require(here.model, names)
    else:
        by_name = maps if isinstance(maps, Mapping) else {GIVEN: maps}
        names = list(by_name)
        if not names or not all(isinstance(name, str) and name.strip() and name != SHARED for name in names):
            raise DataError(
                f"got maps named {shown(names)}; expected one name or more, each a text other than {SHARED!r}, which "
                "stands for controls in the tables; name them so."
            )
        found = {}
        for name, of in by_name.items():
            found[name] = given.maps_of(name, of, len(here), here.pixels.shape[-1])
        here = replace(here, maps=found)
    if (truth := about.get("truth")) is not None:
        here = replace(here, masks=given.truth_of(truth, here.pixels.shape[-1], len(here)))
    labels = about.get("labels")
    if labels is not None:
        array = given.array_of(labels, "labels")
        if array.shape != (len(here),) or not np.isin(array, (0, 1)).all():
            raise DataError(
                f"got labels of shape {list(array.shape)}, {_among(array)} among them; "
                f"expected [{len(here)}] of 0 (negative) or 1 (positive); give these."
            )
        here = replace(here, labels=array.astype(int).tolist())
    return here, names


def _sweep(
    names: Sequence[str],
    controls: Mapping[str, int] | None,
    levels: Sequence[float] | None,
    about: Mapping[str, Any],
    verdicts: Mapping[str, Any] | None = None,
) -> Sweep:
    """The sweep that measures the same; its checks are the library's."""
    perturb: dict[str, Any] = {
        key: _several(about[key]) for key in ("grids", "fills", "orders") if about.get(key) is not None
    }
    if levels is not None:
        perturb["levels"] = np.ravel(given.array_of(levels, "levels")).tolist()
    raw: dict[str, Any] = {
        "checkpoints": {TRIAL: {"path": "in memory"}},
        "explain": {"targets": [about.get("target", "pneumonia")]},
        "perturb": perturb,
        "sequential": about.get("sequential"),
        "seed": about.get("seed", 0),
        "verdicts": verdicts,
        "regions": None,
        "sanity": None,
        "stability": about.get("stability"),
    }
    if controls is not None and not isinstance(controls, Mapping):
        raise DataError(
            f"got controls {shown(controls)}; expected each name with its number of draws, such as "
            '{"shifted": 5}; give these.'
        )
    if controls is not None:
        raw["controls"] = dict(controls)
    sweep = resolve(raw)
    return sweep.model_copy(update={"explain": sweep.explain.model_copy(update={"explainers": list(names)})})


def _ref(here: Given) -> ModelRef:
    return ModelRef(TRIAL, "the model", here.model.spec, here.pixels.shape[-1], model=here.model)


def _worker(here: Given, sweep: Sweep, donor_maps: donors.DonorMaps | None = None, batch_size: int = BATCH) -> Worker:
    return Worker(sweep, {TRIAL: _ref(here)}, str(here.device), batch_size, donor_maps=donor_maps)


@contextmanager
def _prepared(
    here: Given, sweep: Sweep, patient_of: Mapping[str, str], batch_size: int
) -> Iterator[tuple[Worker, list[Shard]]]:
    """The worker and the shards that it can score: after a map pass, where a control needs other images' maps."""
    shards = list(here.shards())
    if not needs_map_pass(sweep):
        yield _worker(here, sweep, None, batch_size), shards
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, {})
        maps = donors.DonorMaps(store, sweep)
        worker = _worker(here, sweep, maps, batch_size)
        for shard in shards:
            store.write_shard(shard.name, worker.map_pass(shard), donors.MAPS)
        trial = TRIAL, here.pixels.shape[-1]
        scored = donors.index_maps(maps, [shard.name for shard in shards], trial, pd.Series(patient_of), sweep).images
        yield worker, [shard.only(np.array([i in scored for i in shard.image_ids])) for shard in shards]


def _patients(here: Given, patients: Sequence[str] | ArrayLike | None) -> dict[str, str]:
    """image_id to patient_id."""
    found = list(here.ids) if patients is None else np.asarray(patients, dtype=object).ravel().tolist()
    numbers = {int(n) for n in found if isinstance(n, int | np.integer) and not isinstance(n, bool)}
    codes = len(numbers) > 1 and numbers == set(range(len(numbers)))  # as of pd.factorize, whose 0 is a patient
    given_names = ["" if pd.isna(patient) else str(patient) for patient in found]
    names = known_patients(given_names, () if codes else FILLED_IN)
    if missing := [i for i, name in enumerate(names) if not name]:
        raise DataError(
            f"got no patient for {len(missing)} of {len(names)} images (image {missing[0]}); expected one for each, or "
            "images would count as those of one patient; give the image's own name where it is not known."
        )
    if len(names) != len(here):
        raise DataError(f"got {len(names)} patients for {len(here)} images; expected one for each image; give these.")
    return dict(zip(here.ids, names, strict=True))


def _frame(name: str, tables: Sequence[Tables]) -> pd.DataFrame:
    """A table of all shards, with the columns that a run has in its path."""
    table, found = TABLES[name], []
    for part in tables:
        for (of, explainer), rows in part.items():
            if of == name:
                path = {"trial_id": TRIAL, "explainer": explainer}
                found.append(rows.to_pandas().assign(**{column: path[column] for column in table.partitions}))
    if not found:
        found = [table.from_rows([]).to_pandas().assign(**dict.fromkeys(table.partitions, ""))]
    return pd.concat(found, ignore_index=True)


def _tell_errors(errors: pd.DataFrame) -> None:
    """Warn of what could not be measured."""
    for (stage, reason), rows in errors.groupby(["stage", "reason"], sort=False):
        warnings.warn(f"{len(rows)} images, {stage}: {reason} (the table errors lists them)", stacklevel=3)


def _tell_undrawable(sweep: Sweep) -> None:
    for explainer, control, why in undrawable(sweep):
        warnings.warn(f"{explainer} is not compared with {control}: {why}", stacklevel=5)


def _tell_uncompared(curves: pd.DataFrame, faithfulness: pd.DataFrame, sweep: Sweep) -> None:
    """Warn of maps that a control has no draw for, and of masked images without a score."""
    _tell_undrawable(sweep)
    own = curves[curves["control"] == "none"]
    lost = own["logit_target"].isna().groupby([own["explainer"], own["image_id"], own["target"]], observed=True)
    in_part = lost.any() & ~lost.all()  # a map that is missing has no score at all
    if n := in_part[in_part].index.get_level_values("image_id").nunique():
        warnings.warn(f"{n} images, whose masked copies have no finite score: their values are null", stacklevel=4)
    known = {(explainer, control) for explainer, control, _ in undrawable(sweep)}
    of_maps = faithfulness[faithfulness["value"].notna()]  # what has no map is counted as null
    for (explainer, control), draws in of_maps.groupby(["explainer", "control"], sort=False)["n_draws"]:
        if control != "none" and not draws.max() and (explainer, control) not in known:
            why = "no other patient's image of the same prediction has a map"
            warnings.warn(f"{explainer} is not compared with {control}: {why}", stacklevel=4)


def _summary(frames: Mapping[str, pd.DataFrame], sweep: Sweep, patient_of: Mapping[str, str]) -> pd.DataFrame:
    images = pd.DataFrame({"image_id": list(patient_of), "patient_id": list(patient_of.values())})
    rows: list[dict[str, Any]] = []
    for _, part in frames["faithfulness"].groupby(["grid", "fill"], sort=False):
        rows += summarize(
            part,
            frames["predictions"],
            images,
            frames["saliency"][["explainer", "image_id", "target", "degenerate"]],
            Row(TRIAL, TRIAL, None),
            target_rules=list(sweep.explain.targets),
            sampling=Sampling(sweep.seed),
        )
    return TABLES["summary"].from_rows(rows).to_pandas()
