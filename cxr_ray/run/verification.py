"""Check a finished run: hashes of its data and models, a sample of its rows computed again, and its statistics.

All in this process, without Ray, from the images and the checkpoints. Nothing is written into the run.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import torch

from cxr_ray import results, usercache
from cxr_ray.analysis import primary, statistics
from cxr_ray.config import Checkpoint, Sweep
from cxr_ray.data.loading import one_line
from cxr_ray.data.splits import REFERENCE, choose
from cxr_ray.errors import RunError, UserError
from cxr_ray.machine import usable_cpus
from cxr_ray.measure import donors
from cxr_ray.measure.controls import needs_map_pass
from cxr_ray.measure.shards import ModelRef
from cxr_ray.models import backend_choice
from cxr_ray.run import context, explaining, pipeline, progress, resume
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.compared import Compared, compare
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import PassSettings
from cxr_ray.run.plan import Images, Plan, ShardPlan
from cxr_ray.run.trial_plans import of_table
from cxr_ray.schemas import SCHEMA_VERSION, TABLES
from cxr_ray.storage import PER_SHARD, PRECISION, Store, pack
from cxr_ray.sweepfile import resolve

TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "half": 1e-2, "auto": 1e-2}  # by perturb.precision, on a GPU
# Of two maps: where one is nearly constant, or has places that nearly tie, they magnify the rounding of another batch.
LIKENESS = dict.fromkeys(("spearman", "spearman_abs", "ssim"), 0.01)
FEWER = 4  # sanity and donor swaps cost far more an image, so one in so many is taken
NOTED = {"sweep_hash": str, "data_fingerprint": str, "cxr_ray": str, "checkpoints": dict}  # of what is compared
BATCH = 32  # masked images in one pass, on CPUs

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to verify.

    Attributes:
        path: the run, local or a URI.
        images: of test, and of val.
        seed: which of them.
        changes: dotted keys of section data to where the images lie now.
        models: by the name of a given model, where its checkpoint lies now.
        maps: by the name of maps from outside, where they lie now.
    """

    path: str
    images: int = 8
    seed: int = 0
    changes: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    maps: Mapping[str, str] = field(default_factory=dict)


WAIT = "a store that does not answer is asked for minutes; ?retry_limit_seconds=30 in the URI gives up sooner"


@dataclass(frozen=True)
class _Finished:
    """A finished run, and its sweep with the paths of the request."""

    run: results.Run
    provenance: Mapping[str, Any]
    sweep: Sweep
    trials: pd.DataFrame


def verify(request: Request, say: Say) -> bool:
    """Verify a run; say what was found, line by line. Returns whether it holds.

    Raises:
        UserError: it is no finished run of this version, or its data or models are not where they were.
    """
    with progress.stage(f"Reading {request.path}", hint=WAIT if "://" in request.path else ""):
        finished = _open(request, say)
    if finished is None or not _models_hold(finished, request, say):
        return False
    with usercache.unused(), tempfile.TemporaryDirectory() as folder:  # every file is read
        here = context.prepare(finished.sweep, finished.run.path)
        if not _images_hold(finished, here, say) or not _maps_hold(finished, here, say):
            return False
        here = replace(here, trials=of_table(here.sweep, here.trials, finished.trials))
        refs = explaining.chosen_models(here, finished.trials)
        found = _rows(finished, replace(here, store=Store(folder, here.store.run)), refs, request, say)
    _read_whole(finished.run, say)
    say("Statistics, computed again from the rows of the run:")
    found += _statistics(finished, say)
    return all(part.holds for part in found)


def _open(request: Request, say: Say) -> _Finished | None:
    """The run; None where its sweep file is another than its provenance says."""
    run = results.open_run(request.path)
    provenance = run.json(resume.PROVENANCE)
    if not provenance.get("finished"):
        raise RunError(
            f"got {request.path}, an unfinished run; expected a finished one; finish it with --resume, then verify it."
        )
    if lacking := [key for key, kind in NOTED.items() if not isinstance(provenance.get(key), kind)]:
        raise RunError(
            f"got {request.path}/{resume.PROVENANCE} without {', '.join(lacking)}; expected what a finished run notes; "
            "ask for the run's own file."
        )
    version = provenance.get("schema_version", 1)
    if version != SCHEMA_VERSION:
        raise RunError(
            f"got {request.path}, with tables of schema version {version}; expected version {SCHEMA_VERSION}, which "
            "this cxr_ray computes; verify it with the cxr_ray that wrote it."
        )
    sweep = resolve(run.sweep)
    holds = sweep.hash == provenance["sweep_hash"]
    say(f"Run {request.path}: {sweep.name}, finished {provenance['finished']} by cxr_ray {provenance['cxr_ray']}.")
    say(_checked("sweep.yaml", f"hash {sweep.hash}", holds))
    if not holds:
        return None
    return _Finished(run, provenance, _moved(sweep, request), run.pandas("trials"))


def _moved(sweep: Sweep, request: Request) -> Sweep:
    """The sweep with its images, models and maps where they lie now."""
    if unknown := sorted(set(request.models) - set(sweep.checkpoints)):
        known = ", ".join(sweep.checkpoints) or "none, since all its models lie in the run"
        raise UserError(f"--model: got {', '.join(unknown)}; expected a name under checkpoints ({known}); give that.")
    if unknown := sorted(set(request.maps) - set(sweep.explain.maps)):
        known = ", ".join(sweep.explain.maps) or "none, since the run has no maps from outside"
        raise UserError(f"--maps: got {', '.join(unknown)}; expected a name under explain.maps ({known}); give that.")
    explain = sweep.explain.model_copy(update={"maps": {**sweep.explain.maps, **request.maps}})
    data = sweep.data.model_copy(update={key.removeprefix("data."): to for key, to in request.changes.items()})
    if data.source != sweep.data.source:
        raise UserError(
            f"--data: got source {data.source}; expected {sweep.data.source}, as in the run; give where these lie."
        )
    models: dict[str, Checkpoint] = {
        name: given.model_copy(update={"path": request.models.get(name, given.path)})
        for name, given in sweep.checkpoints.items()
    }
    return sweep.model_copy(update={"data": data, "checkpoints": models, "explain": explain})


def _models_hold(finished: _Finished, request: Request, say: Say) -> bool:
    """Compare the hashes of all checkpoints with those of the provenance."""
    run, known = finished.run, finished.provenance
    all_hold = True
    for name, given in finished.sweep.checkpoints.items():
        try:
            holds = resume.digest(given.path) == known["checkpoints"].get(name)
        except (OSError, pa.ArrowException) as e:
            raise UserError(
                f"checkpoints.{name}.path: got {given.path}, which cannot be read ({one_line(e)}); expected the "
                f"checkpoint of the run; say where it lies now (--model {name}=PATH)."
            ) from None
        say(_checked(f"model {name}", f"sha256 of {given.path}", holds))
        all_hold &= holds
    checkpoints = finished.trials.set_index("trial_id")["checkpoint"]
    for trial_id, expected in known.get("trained", {}).items():
        path = f"{run.root}/{checkpoints.get(trial_id)}"
        there = run.fs.get_file_info(path).is_file
        holds = there and resume.digest(path, run.fs) == expected
        say(_checked(f"model {trial_id}", "sha256" if there else "its checkpoint is gone", holds))
        all_hold &= holds
    if "trained" not in known and (finished.trials["status"] != "given").any():
        say("  trained models: an earlier version made the run and noted no hashes of them")
    return all_hold


def _maps_hold(finished: _Finished, here: RunContext, say: Say) -> bool:
    """Compare the hashes of all maps from outside with those of the provenance."""
    all_hold = True
    for name, path in finished.sweep.explain.maps.items():
        holds = here.maps.digests[name] == finished.provenance.get("maps", {}).get(name)
        say(_checked(f"maps {name}", f"sha256 of the values in {path}", holds))
        all_hold &= holds
    return all_hold


def _images_hold(finished: _Finished, here: RunContext, say: Say) -> bool:
    """Compare the images' fingerprint, and each of them, with the run's."""
    known = finished.provenance["data_fingerprint"]
    before, now = finished.run.pandas("images"), here.manifest.table.to_pandas()
    compared = compare("images", before, now, 0)
    holds = here.manifest.fingerprint == known and compared.holds
    say(_checked("images", f"{len(now):,}, fingerprint {known[:16]}", holds))
    if not holds:
        old, new = (dict(zip(frame["path"], frame["image_id"], strict=True)) for frame in (before, now))
        changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
        for path in changed[:3]:
            what = "new" if path not in old else "gone" if path not in new else "changed"
            say(f"    {path}: {what}")
        if not changed:
            _tell(compared, say)
    return holds


def _rows(
    finished: _Finished, here: RunContext, refs: Mapping[str, ModelRef], request: Request, say: Say
) -> list[Compared]:
    """Compute a sample of rows again and compare them with the run's. The store of ``here`` is for what is made."""
    sweep, run = finished.sweep, finished.run
    settings = primary.of_run(run)
    allocation = _allocation(sweep)
    plan, _ = explaining.plan_of(here, refs, "gpu" if allocation.worker_gpus else "cpu")
    sample = {split: _sampled(images, split, request) for split, images in plan.images.items()}
    tolerance = TOLERANCES[sweep.perturb.precision if allocation.worker_gpus else "float32"]
    say(
        f"Rows of {len(sample['test'])} of {len(plan.images['test'])} test images (seed {request.seed}) and "
        f"{len(refs)} models, computed again on {_device(allocation)}; differences up to {tolerance:g} hold "
        f"({max(LIKENESS.values()):g} in rank correlations and SSIM):"
    )
    if backend_choice.lower_precision(sweep.perturb.precision, torch.device(_kind(allocation))) is not None:
        reference = plan.of_split(REFERENCE).missing()
        for shard, tables in pipeline.compute_here(here, refs, allocation, PassSettings(sweep), reference):
            here.store.write_shard(shard.name, pack(tables), PRECISION)
    if needs_map_pass(sweep):
        plan = _with_maps(here, refs, allocation, plan, say)
    made = _computed(here, refs, allocation, PassSettings(sweep, tested=settings.tested), _cut(plan, sample))
    found = []
    for name in PER_SHARD:
        frame, splits = made.get(name, (_none(name), {"test"}))
        ids = set().union(*(sample[split] for split in splits))
        compared = compare(name, _stored(run, name, list(refs), ids), frame, tolerance, LIKENESS)
        say(compared.line())
        _tell(compared, say)
        found.append(compared)
    return found


def _sampled(images: Images, split: str, request: Request) -> set[str]:
    """image_ids of a split that are computed again: of each group the first."""
    starts = range(len(images)) if images.ends is None else [0, *images.ends[:-1].tolist()]
    first = images.columns.iloc[list(starts) if len(images) else []]
    n = request.images if split in ("val", "test") else max(2, request.images // FEWER)
    return choose(first["image_id"], first["label"], n, request.seed)


def _cut(plan: Plan, sample: Mapping[str, Collection[str]]) -> Iterator[ShardPlan]:
    """The plan's shards without the images that are not in the sample."""
    for shard in plan.missing():
        rows, kept = [], False
        for row in shard.rows:
            if row.get("swap") is None:  # else a donor image of the recipient before it
                kept = row["image_id"] in sample[shard.split]
            if kept:
                rows.append(row)
        if rows:
            yield replace(shard, rows=tuple(rows))


def _with_maps(here: RunContext, refs: Mapping[str, ModelRef], allocation: Allocation, plan: Plan, say: Say) -> Plan:
    """Make the maps of all test images, as a control needs those of others; the plan without what has none."""
    maps, of_test = explaining.maps_only(here), plan.of_split("test")
    say(f"  (maps of all {len(plan.images['test'])} test images first, since a control needs those of others)")
    settings = PassSettings(maps.sweep, is_map_pass=True)
    for shard, file in pipeline.compute_here(maps, refs, allocation, settings, of_test.missing()):
        here.store.write_shard(shard.name, file, donors.MAPS)
    patients = here.manifest.rows("test").set_index("image_id")["patient_id"]
    donor_maps, lost = donors.DonorMaps(here.store, here.sweep), {}
    for trial_id, ref in refs.items():
        names = list(of_test.names(trial_id))
        index = donors.index_maps(donor_maps, names, (trial_id, ref.size), patients, maps.sweep)
        lost[trial_id] = set(patients.index[~patients.index.isin(index.table["image_id"])])
    return plan.without(lost)


def _computed(
    here: RunContext,
    refs: Mapping[str, ModelRef],
    allocation: Allocation,
    settings: PassSettings,
    shards: Iterator[ShardPlan],
) -> dict[str, tuple[pd.DataFrame, set[str]]]:
    """By table: its rows with the partition columns, and the splits that gave some."""
    parts: dict[str, list[pd.DataFrame]] = defaultdict(list)
    splits: dict[str, set[str]] = defaultdict(set)
    for shard, tables in pipeline.compute_here(here, refs, allocation, settings, shards):
        for (name, explainer), table in tables.items():
            if name == "errors":
                continue
            path = {"trial_id": shard.trial_id, "explainer": explainer}
            parts[name].append(table.to_pandas().assign(**{c: path[c] for c in TABLES[name].partitions}))
            splits[name].add(shard.split)
    return {name: (pd.concat(parts[name], ignore_index=True), splits[name]) for name in PER_SHARD if name in parts}


def _none(name: str) -> pd.DataFrame:
    table = TABLES[name]
    return table.from_rows([]).to_pandas().assign(**dict.fromkeys(table.partitions, ""))


def _stored(run: results.Run, name: str, trials: Sequence[str], image_ids: set[str]) -> pd.DataFrame:
    chosen = pads.field("trial_id").isin(list(trials)) & pads.field("image_id").isin(list(image_ids))
    if name == "sanity":
        chosen &= pads.field("mode") == "cascade"  # labels: of maps that are kept, not of shards
    return run.pandas(name, filter=chosen)


def _read_whole(run: results.Run, say: Say) -> None:
    """Read every table, whose pages have checksums. Raises DamagedRunError."""
    n_rows = sum(len(batch) for name in TABLES for batch in run.batches(name))
    say(f"Tables, read whole: {len(TABLES)}, with {n_rows:,} rows.")


def _statistics(finished: _Finished, say: Say) -> list[Compared]:
    found = []
    for name, rows in statistics.tables(statistics.Measured(finished.run), finished.sweep):
        compared = compare(name, finished.run.pandas(name), TABLES[name].from_rows(rows).to_pandas(), 1e-4)
        say(compared.line())
        _tell(compared, say)
        found.append(compared)
    return found


def _allocation(sweep: Sweep) -> Allocation:
    """This process alone, on a GPU where there is one."""
    gpus = float(torch.cuda.is_available())
    asked = sweep.resources.batch_size
    batch_size = asked if isinstance(asked, int) else None if gpus else BATCH
    cpus = float(usable_cpus())
    return Allocation(1, cpus, gpus, True, 0, 0, 0, 1, cpus, gpus, 0, batch_size)


def _kind(allocation: Allocation) -> str:
    return "cuda" if allocation.worker_gpus else "cpu"


def _device(allocation: Allocation) -> str:
    return torch.cuda.get_device_name() if allocation.worker_gpus else "a CPU"


def _checked(what: str, how: str, holds: bool) -> str:
    return f"  {what}: {'holds' if holds else 'DOES NOT HOLD'} ({how})"


def _tell(compared: Compared, say: Say) -> None:
    for line in compared.examples:
        say(f"    {line}")
