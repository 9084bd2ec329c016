"""The map pass and the scoring pass: which models are explained, what is missing, and the tables at the end.

The scoring pass makes all tables. Where a control needs other images' maps, a map pass runs before it, which makes the
predictions and the maps of all test images.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from cxr_ray.analysis import baselines, class_order, primary
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.data.splits import REFERENCE
from cxr_ray.measure import donors, needs, precision
from cxr_ray.measure.controls import CONTROLS, needs_map_pass
from cxr_ray.measure.cost import (
    depends_on_channels,
    passes_of_donor_swaps,
    passes_of_map_pass,
    passes_of_sanity,
    passes_of_stability,
    passes_of_verdicts,
    passes_per_image,
)
from cxr_ray.measure.patch_swap import donor_images
from cxr_ray.measure.worker import ModelRef
from cxr_ray.models import backend_choice, checkpoints
from cxr_ray.run import merging, pipeline, progress, resume, rounds, scored, second_worker, terminal
from cxr_ray.run.cluster import Allocation
from cxr_ray.run.context import RunContext
from cxr_ray.run.pipeline import ShardPass
from cxr_ray.run.plan import Missing, PassCounts, Plan, plan_shards
from cxr_ray.run.workers import WorkerPool
from cxr_ray.schemas import TABLES, to_json
from cxr_ray.storage import PRECISION


def chosen_models(context: RunContext, trials: pd.DataFrame) -> dict[str, ModelRef]:
    """The models that are explained: the best of each (variant, grid point, seed), or all; and those given."""
    store, trial_of = context.store, {t.trial_id: t for t in context.trials}
    usable = trials[trials["status"].isin(["completed", "stopped"])]
    if context.sweep.evaluate == "best_per_variant_seed" and len(usable):
        best = usable.sort_values(["val_auroc", "trial_id"], ascending=[False, True])
        rivals = best["trial_id"].map(lambda trial_id: trial_of[trial_id].rivals)
        usable = usable.loc[best[~rivals.duplicated()].index].sort_index()
    trained = {}
    for trial_id, checkpoint in zip(usable["trial_id"], usable["checkpoint"], strict=True):
        plan, path = trial_of[trial_id], store.named(checkpoint)
        size, preprocess = context.sweep.images_of(plan.model)
        spec = plan.spec(size)  # which the file says itself, but for code that it must not choose
        known = spec if checkpoints.chooses_code(spec) else None
        channels = needs.of_trained(spec) if depends_on_channels(context.sweep) else 0
        trained[trial_id] = ModelRef(trial_id, path, known, size, preprocess, channels=channels)
    return {**trained, **context.given}


def explain(
    context: RunContext,
    model_refs: Mapping[str, ModelRef],
    allocation: Allocation,
    errors: list[dict[str, Any]],
) -> bool:
    """Compute all shards that are not there yet and merge them into the tables. Returns whether all were written.

    ``errors``: rows of the table ``errors`` that were met before.

    Raises:
        DataError: a model scored no test image.
    """
    for model_ref in model_refs.values():
        checkpoints.load(model_ref.checkpoint, model_ref.spec)  # a broken model fails here, not in an endless restart
    plan, passes = plan_of(context, model_refs, "gpu" if allocation.worker_gpus else "cpu")
    make = pipeline.worker_maker(context, model_refs, _passes_of_a_worker(context, allocation, plan, passes))
    pool = WorkerPool(make(allocation), allocation)
    scoring = ShardPass(context, allocation, pool, model_refs, {t: p.test for t, p in passes.items()})
    if first := missing_shards(scoring, plan):
        pool.start(len(first))
        for later in ("cxr_ray.run.statistics", "cxr_ray.report.document"):
            importlib.import_module(later)  # takes seconds, in which the workers start
        if not precision_decided(scoring, plan):
            return False
    settings = primary_settings(scoring, plan)
    if settings is None:
        return False
    scoring = replace(scoring, tested=settings.tested)
    asked = context.sweep.verdicts is not None
    if needs_map_pass(context.sweep) and (asked or missing_shards(scoring, plan)):
        with_maps = map_pass(scoring, plan)
        if with_maps is None:
            return False
        plan = with_maps
    if asked:
        terminal.say("Sequential verdicts: patients in random order, until each comparison is decided")
    context.store.write_table("verdicts", rounds.decide(scoring, errors) if asked else [])
    missing = missing_shards(scoring, plan)
    finished = f"; {len(plan) - len(missing)} were there" if len(missing) < len(plan) else ""
    terminal.say(
        f"Models to explain: {len(model_refs)}, with {missing.n_images} (model, image) pairs in {len(missing)} shards"
        f"{finished}"
    )
    if not _written(scoring, plan, second_worker.compute(scoring, missing, passes, make), "Scoring"):
        return False
    pool.close()
    with progress.stage("Merging the shards"):
        merging.merge(context.store, plan, errors)
    scored.check(context.store, context.manifest, model_refs)
    return True


def plan_of(context: RunContext, model_refs: Mapping[str, ModelRef], device: str) -> tuple[Plan, dict[str, PassCounts]]:
    """All shards of the models, and by trial_id the forward passes of an image. ``device``: cpu or gpu."""
    sweep, swaps = context.sweep, context.donors()
    of_recipient = passes_of_donor_swaps(sweep, swaps["draw"].nunique())
    passes = {
        trial_id: PassCounts(
            passes_per_image(sweep, ref.size, ref.channels)[0],
            passes_of_sanity(sweep, ref.size, ref.channels)[0],
            of_recipient,
            passes_of_stability(sweep, ref.size, ref.channels)[0],
        )
        for trial_id, ref in model_refs.items()
    }
    chosen, donor_of = context.chosen_images(), _donor_images(context)
    plan = plan_shards(context.manifest, model_refs, passes, device, chosen, donor_of, swaps)
    return plan.with_maps(context.maps.members) if context.maps.sets else plan, passes


def _passes_of_a_worker(
    context: RunContext, allocation: Allocation, plan: Plan, passes: Mapping[str, PassCounts]
) -> int:
    """Forward passes that a worker makes with one model: many make a faster backend worth its start-up."""
    missing = plan.missing(context.store.finished_shards())
    total = sum(passes[trial_id].test * n for trial_id, n in missing.n_test.items())
    if context.sweep.verdicts is not None:
        patients = context.manifest.rows("test")["patient_id"].nunique()
        total += len(passes) * patients * passes_of_verdicts(context.sweep)[0]
    return total // (len(passes) * allocation.workers)


def precision_decided(scoring: ShardPass, plan: Plan) -> bool:
    """Decide in which precision each model is scored and explained, once for the run, where a lower one is asked for.

    Returns:
        Whether all was written.
    """
    context, store = scoring.context, scoring.context.store
    device = torch.device("cuda" if scoring.allocation.worker_gpus else "cpu")
    if backend_choice.lower_precision(context.sweep.perturb.precision, device) is None:
        return True
    deciding, reference = replace(scoring, folder=PRECISION), plan.of_split(REFERENCE)
    missing = missing_shards(deciding, reference)
    if not missing:
        return True
    with contextlib.closing(pipeline.compute_shards(deciding, missing)) as computed:
        deque(computed, maxlen=0)
    if lost := missing_shards(deciding, reference):
        terminal.complain(f"precision: {len(lost)} shards were not written; --resume computes them.")
        return False
    decided = {trial_id: precision.read(store, trial_id) for trial_id in plan.model_refs}
    for trial_id, found in decided.items():
        terminal.say(f"{trial_id}, on {len(plan.images[REFERENCE])} reference images: {found}")
    plain = {trial_id: found.to_plain() for trial_id, found in decided.items() if found is not None}
    known = json.loads(store.read(resume.PROVENANCE))
    store.write_json({**known, "precision": plain}, resume.PROVENANCE)
    return True


def primary_settings(scoring: ShardPass, plan: Plan) -> PrimarySettings | None:
    """The primary settings of the run. They are chosen once, when the validation split alone is scored, and written.

    Returns:
        None where a shard of the validation split was not written.
    """
    context, store, sweep = scoring.context, scoring.context.store, scoring.context.sweep
    if store.exists(primary.FILE):
        try:
            return PrimarySettings.from_json(store.read(primary.FILE).decode())
        except ValueError:
            raise store.damaged(primary.FILE) from None
    val = plan.of_split("val")
    if missing := missing_shards(scoring, val):
        terminal.say(f"Validation images first, to choose a fill before test is scored: {len(missing)} shards")
    if not _computed(scoring, val, "Validation"):
        return None
    images = context.manifest.images
    patients = images.set_index("image_id")["patient_id"]
    rules, fills = sweep.explain.targets, sweep.perturb.fills
    rows = []
    for trial_id in plan.model_refs:
        tables = [store.read_shard(name) for name in val.names(trial_id)]
        predictions, filled = (
            pd.concat(
                [TABLES[name].from_rows([]).to_pandas(), *(t[name, ""].to_pandas() for t in tables if (name, "") in t)]
            )
            for name in ("predictions", "filled")
        )
        rows += baselines.baseline_rows(trial_id, predictions, filled, patients, target_rules=rules, fills=fills)
        for question in _questions(context, plan.model_refs[trial_id], predictions):
            terminal.say(question)
    store.write_table("baselines", rows)
    settings = primary.with_baselines(primary.resolve(sweep), sweep, rows)
    store.write(settings.to_json().encode(), primary.FILE)
    terminal.say(baselines.sentence(rows, settings.target_rule, settings.fill))
    return settings


def _questions(context: RunContext, ref: ModelRef, predictions: pd.DataFrame) -> list[str]:
    """What to ask of a model that ranks the validation images the wrong way round, before test is scored."""
    given = ref.trial_id in context.given
    trained = {t.trial_id: {"train": t.train.model_dump()} for t in context.trials}
    config = trained.get(ref.trial_id, vars(ref.spec) if ref.spec else {})
    trial = {"trial_id": ref.trial_id, "status": "given" if given else "completed", "checkpoint": ref.checkpoint}
    return class_order.of_validation({**trial, "config": to_json(config)}, predictions)


def missing_shards(shard_pass: ShardPass, plan: Plan) -> Missing:
    """The shards that no file holds yet."""
    return plan.missing(shard_pass.context.store.finished_shards(shard_pass.folder))


def _donor_images(context: RunContext) -> dict[str, str]:
    """image_id to the path of the image that a region's patch is swapped with; none without regions."""
    if not context.sweep.regions:
        return {}
    return donor_images(context.manifest.rows("test"), context.manifest.rows("val"), context.sweep.seed)


def _computed(shard_pass: ShardPass, plan: Plan, name: str) -> bool:
    """Compute the missing shards; whether all were written. ``name``: of the pass."""
    return _written(shard_pass, plan, pipeline.compute_shards(shard_pass, missing_shards(shard_pass, plan)), name)


def _written(shard_pass: ShardPass, plan: Plan, computed: Generator[terminal.ShardDone, None, None], name: str) -> bool:
    if missing := missing_shards(shard_pass, plan):
        terminal.watch(computed, len(missing), name)
    lost = missing_shards(shard_pass, plan)
    if lost:
        terminal.complain(f"{name}: {len(lost)} shards were not written; --resume computes them.")
    return not lost


def maps_only(context: RunContext) -> RunContext:
    """The same run as its map pass sees it: without regions, and with the controls of verdicts."""
    sweep = context.sweep
    controls = {**dict.fromkeys(sweep.verdicts.controls if sweep.verdicts else (), 1), **sweep.controls}
    return replace(context, sweep=sweep.model_copy(update={"regions": None, "controls": controls}))


def map_pass(scoring: ShardPass, plan: Plan) -> Plan | None:
    """Make the predictions and maps of all test images, and index the donor images of each.

    Returns:
        ``plan`` without the images that could not be decoded, which are among the errors of the map pass; None where
        a shard was not written.
    """
    context, store, sweep = scoring.context, scoring.context.store, scoring.context.sweep
    passes = {
        trial_id: passes_of_map_pass(sweep, ref.size, ref.channels) for trial_id, ref in scoring.model_refs.items()
    }
    maps = replace(scoring, context=maps_only(context), passes=passes, folder=donors.MAPS)
    test = plan.of_split("test")
    if missing := missing_shards(maps, test):
        terminal.say(f"Maps of all images first, since a control needs those of others: {len(missing)} shards")
    if not _computed(maps, test, "Maps"):
        return None
    patients = context.manifest.rows("test").set_index("image_id")["patient_id"]
    targets = [(e, t) for e in sweep.explain.names for t in (0, 1)]
    lost, groups = {}, []
    for trial_id, ref in scoring.model_refs.items():
        index = donors.build_donor_index(store, test.names(trial_id), patients, targets)
        donors.DonorMaps(store, sweep).write_index(trial_id, index)
        lost[trial_id] = set(patients.index[~patients.index.isin(index.table["image_id"])])
        groups += [
            {"trial_id": trial_id, "explainer": e, "target": t, "predicted": p, "size": ref.size}
            for e, t in targets
            for p in (0, 1)
            if index.count(p, (e, t))
        ]
    if groups and any(CONTROLS[c].rank_sums for c in maps.context.sweep.controls):
        pipeline.sum_maps(scoring, groups)
    return plan.without(lost)
