"""What all stages of one run share, made once and frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from cxr_ray.config import Sweep
from cxr_ray.counting import telling
from cxr_ray.data import doubts, labels, masks, sources
from cxr_ray.data.entries import Source
from cxr_ray.data.loading import reading_by
from cxr_ray.data.manifest import Manifest, load_manifest
from cxr_ray.data.mask_checks import Frame, mask_notes
from cxr_ray.data.outside_maps import OutsideMaps, load_outside_maps
from cxr_ray.data.splits import REFERENCE, REFERENCE_IMAGES, choose
from cxr_ray.data.truth import truth_notes, truth_of
from cxr_ray.errors import NoFolderError, SweepError, shown
from cxr_ray.measure import metrics, needs
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.cost import depends_on_channels, passes_of_sanity
from cxr_ray.measure.donor_swaps import assign_donors
from cxr_ray.measure.worker import ModelRef
from cxr_ray.models import checkpoints, ends, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.models.scoring_only import FILES
from cxr_ray.run import progress, reading, trackers
from cxr_ray.run.ahead import RayAhead
from cxr_ray.run.trial_plans import TrialPlan, plan_trials, reachable, search_notes
from cxr_ray.storage import Store


@dataclass(frozen=True)
class RunContext:
    """One run.

    Attributes:
        sweep: resolved.
        source: where the images come from.
        manifest: the images, and notes for the user.
        trials: the networks to be trained; where Optuna searches, as many that stand for them until they are trained.
        given: the models under ``checkpoints``, by name.
        store: the run folder.
        maps: those from outside.
    """

    sweep: Sweep
    source: Source
    manifest: Manifest
    trials: tuple[TrialPlan, ...]
    given: Mapping[str, ModelRef]
    store: Store
    maps: OutsideMaps = field(default_factory=OutsideMaps)

    def sanity_images(self) -> pd.DataFrame:
        """The test images of ``sanity``, the same for every model; none where no explainer reads the model."""
        test = self.manifest.rows("test")
        asked = self.sweep.sanity
        if asked is None or passes_of_sanity(self.sweep, self.sweep.data.size)[0] == 0:
            return test.iloc[:0]
        chosen = choose(test["image_id"], test["label"], asked.images, self.sweep.seed)
        return test[test["image_id"].isin(chosen)]

    def stability_images(self) -> pd.DataFrame:
        """The test images of ``stability``, the same for every model; none where it is off."""
        test, asked = self.manifest.rows("test"), self.sweep.stability
        if asked is None:
            return test.iloc[:0]
        return test[test["image_id"].isin(choose(test["image_id"], test["label"], asked.images, self.sweep.seed))]

    def chosen_images(self) -> dict[str, pd.DataFrame]:
        """Reference images, and the test images of sanity and stability, by the name of their shards' split."""
        named = {"sanity": self.sanity_images(), "stability": self.stability_images()}
        val, test = (self.manifest.rows(split) for split in ("val", "test"))
        return {**named, REFERENCE: reference_images(val if len(val) else test, self.sweep.seed)}

    def donors(self) -> pd.DataFrame:
        """The donor images of ``regions.donors`` and their recipients, the same for every model; none where off."""
        asked = self.sweep.regions.donors if self.sweep.regions else None
        return assign_donors(self.manifest.rows("test"), self.manifest.rows("val"), asked or 0, self.sweep.seed)


def reference_images(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The images on which precision is decided, the same for every model: of val, or of test where val has none."""
    return rows[rows["image_id"].isin(choose(rows["image_id"], rows["label"], REFERENCE_IMAGES, seed))]


def prepare(sweep: Sweep, out: str, ahead: RayAhead | None = None) -> RunContext:
    """Sample the trials, load the given models and read the images; nothing is written.

    Args:
        sweep: resolved.
        out: the run's folder.
        ahead: begun once the models are known to do and there are images; None: Ray is not started.

    Raises:
        UserError: the images, a package or a checkpoint is not there, or not what the sweep needs.
    """
    trackers.require([*sweep.track.targets, *(["optuna"] if sweep.search.searcher == "optuna" else [])])
    source = sources.source_of(sweep.data, sweep.seed)
    try:
        entries = source.list()
    except NoFolderError as e:  # the text may be meant for another kind of source
        raise NoFolderError(f"{e} --data takes {sources.usages()}.") from e
    sources.require_own_val(sweep.data, entries)
    doubts.settle(doubts.remarks(entries), sweep.data.accept)  # before a file is read
    trials = plan_trials(sweep)
    given, told = given_models(sweep)
    told = [*search_notes(sweep), *untrained_models(sweep, reachable(sweep, trials)), *told]
    if ahead is not None:
        ahead.start()
    reading_all = reading_by(reading.reader(source, ahead))
    with progress.stage("Reading the images", len(entries), "files") as read, telling(read.advance), reading_all:
        manifest = load_manifest(
            source,
            entries,
            seed=sweep.seed,
            val_share=sweep.data.val_share,
            limit=sweep.data.limit,
            training=bool(sweep.variants),
            own_val=sources.validates_own(sweep.data),
        )
        read.total = read.done  # files outside the classes and splits are not read
    manifest.notes.extend(labels.meaning(sweep.data.classes))
    manifest.notes.extend(doubts.settle(manifest.doubts, sweep.data.accept))
    manifest.notes.extend(told)
    sizes = [ref.size for ref in given.values()] + [sweep.images_of(t.model)[0] for t in trials]
    manifest.notes.extend(notes_on_masks(sweep, manifest, Frame(frozenset(sizes), sweep.data.accept)))
    maps = load_outside_maps(sweep.explain.maps, manifest)
    manifest.notes.extend(maps.notes)
    manifest.errors.extend(maps.errors)
    manifest.notes.extend(
        f"Control {c} has nothing to rank on these grids ({', '.join(map(str, sweep.perturb.grids))}) and is left out."
        for c in sweep.controls
        if not CONTROLS[c].grids(sweep.perturb.grids)
    )
    if not metrics.has_areas(sweep.perturb.levels):
        manifest.notes.append(metrics.no_areas(sweep.perturb.levels))
    known = [sweep.hash, manifest.fingerprint, *maps.digests.values()]
    run_id = hashlib.sha256(":".join(known).encode()).hexdigest()[:16]
    store = Store(out, {"run_id": run_id, "sweep_hash": sweep.hash})
    return RunContext(sweep, source, manifest, tuple(trials), given, store, maps)


def notes_on_masks(sweep: Sweep, manifest: Manifest, frame: Frame) -> list[str]:
    """Notes on the masks of lungs and markers and on the expert truth, each of which is read.

    Raises:
        DataError: as ``mask_notes`` and ``truth_notes``.
    """
    folders = [folder for folder in (masks.lungs_of(sweep), masks.marker_of(sweep)) if folder is not None]
    truth, notes = truth_of(sweep), []
    if not folders and truth is None:
        return []
    with progress.stage("Reading masks and annotations") as read, telling(read.advance):
        for folder in folders:
            notes += mask_notes(replace(folder, shared=manifest.shared), manifest, frame)
        if truth is not None:
            notes += truth_notes(replace(truth, shared=manifest.shared), manifest, frame)
    return notes


def untrained_models(sweep: Sweep, trials: Sequence[TrialPlan]) -> list[str]:
    """Build a network of each kind that is to be trained; notes on what explainers read of it.

    Raises:
        UserError: there is no such network, a package is missing, or an explainer cannot have it.
    """
    kinds = dict.fromkeys((t.model.arch, t.model.cam_layer, sweep.images_of(t.model)[0]) for t in trials)
    notes = []
    for arch, cam_layer, size in kinds:
        if needs.has_all(arch, cam_layer, sweep.explain.explainers):
            continue  # and importing torchvision takes as long as importing torch
        model = networks.build(arch, ModelSpec(arch, size, cam_layer=cam_layer))
        ends.require_trainable(model)
        notes += needs.check("To be trained", model, sweep.explain.explainers)
    for arch, weights in dict.fromkeys((t.model.arch, t.model.weights) for t in trials):
        if weights not in ("none", "imagenet"):
            model = networks.build(arch, ModelSpec(arch, sweep.data.size))
            notes += [f"{weights}: {note}." for note in checkpoints.starting_notes(weights, model)]
    return list(dict.fromkeys(notes))


def _check_said(sweep: Sweep, name: str, saved: ModelSpec) -> None:
    """Refuse what the sweep says of a file that says otherwise.

    Raises:
        SweepError: it does.
    """
    c = sweep.checkpoints[name]
    for key in ("arch", "size", "preprocess", "mean", "std"):
        value, own = getattr(c, key), getattr(saved, key)
        if value not in (None, own, type(c).model_fields[key].default):  # a run's own sweep file names defaults too
            raise SweepError(
                f"checkpoints.{name}.{key}: got {shown(value)}; expected {shown(own)}, as {c.path} says; leave it out."
            )
    if saved.fit not in (None, sweep.data.fit):
        raise SweepError(
            f"data.fit: got {sweep.data.fit!r}; expected {saved.fit!r}, as {c.path} was trained with; set that."
        )


def given_models(sweep: Sweep) -> tuple[dict[str, ModelRef], list[str]]:
    """The models under ``checkpoints``, each loaded once here so that a broken one fails now, and notes on them."""
    model_refs, notes = {}, []
    for name, c in sweep.checkpoints.items():
        model_spec = checkpoints.saved_spec(c.path)
        columns = c.columns(sweep.data.classes)
        if model_spec is not None:
            _check_said(sweep, name, model_spec)
            model_spec = replace(
                model_spec,
                cam_layer=c.cam_layer or model_spec.cam_layer,
                columns=columns or (None if sweep.data.classes.several and model_spec.names else model_spec.columns),
            )
        if model_spec is None or checkpoints.chooses_code(model_spec):
            model_spec = ModelSpec(
                c.arch,
                c.size or sweep.data.size,
                mean=c.mean,
                std=c.std,
                variant=name,
                preprocess=c.preprocess,
                cam_layer=c.cam_layer,
                columns=columns,
            )
        model = checkpoints.load(c.path, model_spec, sweep.data.classes)
        notes += needs.check(name, model, sweep.explain.explainers)
        if model.spec.arch in FILES and sweep.sanity is not None:
            notes.append(
                f"{name} ({model.spec.arch}): its weights cannot be randomised, so that it has no rows of sanity."
            )
        path = c.path if "://" in c.path else str(Path(c.path).expanduser().resolve())
        channels = needs.channels(model) if depends_on_channels(sweep) else 0
        model_refs[name] = ModelRef(name, path, model.spec, model.spec.size, model.spec.preprocess, channels=channels)
    return model_refs, notes
