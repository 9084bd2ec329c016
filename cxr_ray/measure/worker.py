"""One shard of images and one model in, table rows out. A plain class: Ray calls it, and so can a test or a notebook.

Shapes: B images, P (image, target) pairs, D draws, F fills, O orders, L levels asked for, M metrics, U units, S side.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.config import Sweep
from cxr_ray.measure import controls as control_masks
from cxr_ray.measure import donors, faithfulness, metrics, rankings, regions, sanity
from cxr_ray.measure.controls import CONTROLS, Draws
from cxr_ray.measure.donors import MapFile, Maps, OtherMaps
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import EXPLAINERS, Inputs, combine
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.regions import REGIONS as PARTS
from cxr_ray.measure.scoring import Canvas, masked_scores, region_scores
from cxr_ray.models import backends, checkpoints
from cxr_ray.models.backends import InferenceBackend
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.randomness import key
from cxr_ray.schemas import CURVES, ERRORS, FAITHFULNESS, PATCH_SWAP, PREDICTIONS, REGIONS, SALIENCY, SANITY, SHARED

MAX_MAP_SIDE = 56
MAX_PLACES = 2**23  # of rankings in memory at a time: 32 MiB, and eight times as much while they are made
OUTCOMES = np.array([["TN", "FP"], ["FN", "TP"]])  # [label, predicted]
Tables = dict[tuple[str, str], pa.Table]  # (table, explainer or "") to rows


@dataclass(frozen=True)
class ModelRef:
    """A model to be explained.

    Attributes:
        trial_id: its name in the tables.
        checkpoint: its weights.
        spec: what they mean; None: the file says so itself.
        size, preprocess: what its images become, as in its meaning.
    """

    trial_id: str
    checkpoint: str
    spec: ModelSpec | None
    size: int
    preprocess: str = "none"


@dataclass(frozen=True)
class Shard:
    """Images of one split for one model.

    Attributes:
        split: val, test, or sanity (images of test whose maps are compared with those of random weights).
        pixels: uint8 [B, 3, S, S].
        image_ids, paths, labels: one for each image.
        errors: rows of the errors table for images that could not be decoded.
        masks: lungs, marker and opacity as far as they are known: bool [B, S, S]; nowhere: not known, or not there.
        counterfactuals: phantoms rendered without their opacity, without their marker, with the other glyph: uint8
            [B, 3, S, S].
        partners: image_id to the NORMAL image of another patient that it exchanges parts with: uint8 [3, S, S].
        unit: the name under which a first execution kept its maps.
    """

    trial_id: str
    split: str
    image_ids: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    pixels: NDArray[np.uint8]
    errors: Sequence[Mapping[str, Any]] = field(default_factory=list)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    counterfactuals: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    partners: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    unit: str = ""

    def only(self, kept_B: NDArray[np.bool_]) -> Shard:
        """The shard of some of its images."""
        at = np.flatnonzero(kept_B).tolist()
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in at],
            paths=[self.paths[i] for i in at],
            labels=[self.labels[i] for i in at],
            pixels=self.pixels[at],
            masks={name: mask[at] for name, mask in self.masks.items()},
            counterfactuals={name: images[at] for name, images in self.counterfactuals.items()},
        )


class Worker:
    """Explains and perturbs blocks of images. Keeps the models that it used last."""

    def __init__(
        self,
        sweep: Sweep,
        model_refs: Mapping[str, ModelRef],
        device: str = "cpu",
        batch_size: int | None = 32,
        passes: int = 0,
        others: OtherMaps | None = None,
    ):
        """Takes a sweep and the models it may be asked about.

        Args:
            sweep: what to explain and how to perturb.
            model_refs: the models by trial_id.
            device: cpu or cuda.
            batch_size: masked images in one pass; None: found once for the device.
            passes: forward passes that each model will make; many make a faster form of it worth its start-up.
            others: the maps that ``first`` made, for controls that need those of other images.
        """
        self.sweep, self.model_refs, self.passes, self.others = sweep, dict(model_refs), passes, others
        self._batch_size = batch_size
        self._found: dict[int, int] = {}  # by size of the images
        self.device = torch.device(device)
        backends.full_float32()
        self.form = InferenceBackend("eager", {})
        self.model = lru_cache(maxsize=2)(self._load)  # units come model by model; where one follows another, two
        self.forward = lru_cache(maxsize=2)(self._forward)
        self.segmenter = regions.segmenter(self.device) if regions.wants_segmenter(sweep) else None

    def _load(self, trial_id: str) -> Classifier:
        model_ref = self.model_refs[trial_id]
        model = checkpoints.load(model_ref.checkpoint, model_ref.spec).requires_grad_(False)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, trial_id: str) -> backends.Forward:
        """The function that scores; its form is measured for the first model and then kept."""
        model, size = self.model(trial_id), self.model_refs[trial_id].size
        if self.form.tried:
            return backends.make(self.form.name, model, size, self.batch_size(trial_id))
        self.form, forward = backends.choose(
            model, size, self.batch_size(trial_id), self.passes, self.sweep.perturb.precision
        )
        return forward

    def batch_size(self, trial_id: str) -> int:
        """Masked images in one pass."""
        size = self.model_refs[trial_id].size
        if self._batch_size is None and size not in self._found:
            self._found[size] = backends.batch_size(self.model(trial_id), size)
        return self._batch_size or self._found[size]

    def __call__(self, shard: Shard) -> Tables:
        """Rows of predictions and errors; for the test split also of saliency, curves and faithfulness.

        For a shard of sanity, rows of sanity and errors.
        """
        tables: Tables = {}
        errors = list(shard.errors)
        file = None
        if shard.split == "test" and control_masks.need_donors(self.sweep):
            if self.others is None:
                names = control_masks.of_family("other images", self.sweep.controls)
                raise ValueError(f"{' and '.join(names)} need the maps of other images: give others.")
            file = self.others.file(shard.unit)
            errors += file.errors
        if shard.image_ids:
            with torch.no_grad():
                if shard.split == "sanity":
                    tables |= self._sanity(shard, errors)
                elif (work := self._work(shard, self.sweep, errors, file)) is not None:
                    tables |= self._explain(work, errors)
        if errors:
            tables["errors", ""] = ERRORS.from_rows(errors)
        return tables

    def _work(
        self, shard: Shard, sweep: Sweep, errors: list[Mapping[str, Any]], file: MapFile | None = None
    ) -> _Work | None:
        """The shard on the device; images without a finite score become errors, None where no other is left."""
        work = _Work(self, shard, sweep, file)
        finite = np.isfinite(work.logit_B)
        if finite.all():
            return work
        stage = f"score:{shard.trial_id}"
        errors += [
            {"path": shard.paths[i], "image_id": shard.image_ids[i], "stage": stage, "reason": "no finite score"}
            for i in np.flatnonzero(~finite).tolist()
        ]
        return _Work(self, shard.only(finite), sweep, file) if finite.any() else None

    def _explain(self, work: _Work, errors: list[Mapping[str, Any]]) -> Tables:
        shard, tables = work.shard, {("predictions", ""): work.predictions()}
        if shard.split == "test":
            tables |= work.shared_controls()
            if self.sweep.regions:
                tables |= work.regions()
            for explainer in self.sweep.explain.explainers:
                with _lost_maps(shard, "explain", explainer, errors):
                    tables |= work.explain(explainer)
        return tables

    def first(self, shard: Shard) -> bytes:
        """What the first of two executions keeps of a test shard: its predictions and maps."""
        errors = list(shard.errors)
        if not shard.image_ids:
            return donors.pack_maps({}, [], {}, errors)
        maps = {}
        with torch.no_grad():
            work = self._work(shard, self.sweep, errors)
            if work is None:
                return donors.pack_maps({}, [], {}, errors)
            for explainer in self.sweep.explain.explainers:
                with _lost_maps(work.shard, "explain", explainer, errors):
                    maps[explainer] = work.maps(explainer, work.model)
        logits = dict(zip(work.ids, work.logit_B.tolist(), strict=True))
        return donors.pack_maps(logits, list(zip(work.pair_ids, work.target_P.tolist(), strict=True)), maps, errors)

    def _sanity(self, shard: Shard, errors: list[Mapping[str, Any]]) -> Tables:
        assert self.sweep.sanity is not None  # else there is no such shard
        test = sanity.narrowed(self.sweep)
        work = self._work(shard, test, errors)
        if work is None:
            return {}
        work.shared_controls()
        model, layers = self.model(shard.trial_id), self.sweep.sanity.layers
        randomised = list(sanity.cascade(model, layers, self.sweep.seed, shard.trial_id))
        tables = []
        for explainer in test.explain.explainers:
            with _lost_maps(work.shard, "sanity", explainer, errors):
                tables += work.sanity(explainer, randomised)
        return {("sanity", ""): pa.concat_tables(tables)} if tables else {}


@contextlib.contextmanager
def _lost_maps(shard: Shard, what: str, explainer: str, errors: list[Mapping[str, Any]]) -> Iterator[None]:
    """A lost map is an entry in errors, never a lost run; but a device without memory or sanity will lose them all."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        stage = f"{what}:{shard.trial_id}:{explainer}"
        errors += [
            {"path": path, "image_id": image_id, "stage": stage, "reason": reason}
            for path, image_id in zip(shard.paths, shard.image_ids, strict=True)
        ]


class _Work:
    """One shard on the device: what its explainers and controls share."""

    def __init__(self, worker: Worker, shard: Shard, sweep: Sweep, file: MapFile | None = None):
        """``file`` holds the predictions and maps of a first execution, so that they are not made again."""
        self.model, self.forward = worker.model(shard.trial_id), worker.forward(shard.trial_id)
        self.sweep, self.shard, self.batch_size = sweep, shard, worker.batch_size(shard.trial_id)
        self.device, self.seed = worker.device, sweep.seed
        self.file, self.others, self.segmenter = file, worker.others, worker.segmenter
        self.ids = list(shard.image_ids)
        self.bytes = torch.from_numpy(np.array(shard.pixels)).to(self.device)
        self.pixels = self.bytes.float() / 255
        self.size = self.pixels.shape[-1]
        self.images = self.model.normalize(self.pixels)
        if file is None:
            self.logit_B = self._scores(self.images).double().cpu().numpy()
        else:
            self.logit_B = np.array([file.logits[i] for i in self.ids])
        self.predicted_B = (self.logit_B >= 0).astype(np.int64)
        labels = np.asarray(shard.labels, dtype=np.int64)
        self.outcome_B = OUTCOMES[labels, self.predicted_B]
        if shard.split != "val":
            self._prepare()

    def _scores(self, images_BCHW: Tensor) -> Tensor:
        """Log-odds of PNEUMONIA of model-space images, float32 [B], in batches."""
        if not len(images_BCHW):  # not every form takes an empty batch
            return images_BCHW.new_empty(0)
        return torch.cat([self.forward(batch) for batch in images_BCHW.split(self.batch_size)])

    def _prepare(self) -> None:
        """Pairs and tie-breaking fields."""
        wanted = {
            (i, 1 if rule == "pneumonia" else int(self.predicted_B[i]))
            for rule, i in itertools.product(self.sweep.explain.targets, range(len(self.ids)))
        }
        self.pairs = sorted(wanted)
        self.image_P = np.array([i for i, _ in self.pairs])
        self.target_P = np.array([t for _, t in self.pairs])
        self.sign_P = np.where(self.target_P == 1, 1.0, -1.0)
        self.pair_ids = [self.ids[i] for i in self.image_P]
        self.ties_PSS = rankings.tie_fields(self.ids, self.seed, self.size, self.device)[self.image_P]
        self.shared: dict[tuple[str, str], NDArray[np.floating]] = {}
        self.further: dict[tuple[str, str, int], NDArray[np.floating]] = {}  # by control, grid and fill

    def _keys(self, purpose: str) -> Tensor:
        return torch.tensor([key(self.seed, i, purpose) for i in self.ids], device=self.device)

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Lungs, and what else is known of where things are: bool [B, S, S]; nowhere where it is not."""
        masks = {name: torch.from_numpy(np.array(m)).to(self.device) for name, m in self.shard.masks.items()}
        if self.segmenter and self.shard.split == "test":
            masks["lungs"] = self.segmenter(self.bytes)
        nowhere = torch.zeros(len(self.ids), self.size, self.size, dtype=torch.bool, device=self.device)
        return {"lungs": nowhere, **masks}

    @cached_property
    def blurred(self) -> Tensor:
        """Images under the fill blur, in model space."""
        return self.model.normalize(FILLS["blur"].make(self.pixels, self.model.mean, self._keys("noise fill")))

    @cached_property
    def canvas(self) -> Canvas:
        """Images and fills, laid out for masked passes."""
        made, masked = [], {}
        for place, name in enumerate(self.sweep.perturb.fills):
            fill, keys = FILLS[name], self._keys(FILLS[name].purpose)
            made.append(self.model.normalize(fill.make(self.pixels, self.model.mean, keys)))
            if fill.for_masks:
                masked[place] = fill.for_masks(self.pixels, keys, self.model.normalize)
        return Canvas.of(self.images, torch.stack(made, dim=1), masked)

    @cached_property
    def blank_BF(self) -> NDArray[np.floating]:
        """Log-odds of the wholly filled images."""
        filled = self.canvas.fills.unflatten(2, (self.size, self.size))
        return self._scores(filled).double().cpu().numpy().reshape(len(self.ids), -1)

    def predictions(self) -> pa.Table:
        return PREDICTIONS.build({
            "image_id": self.ids,
            "split": [self.shard.split] * len(self.ids),
            "label": np.asarray(self.shard.labels),
            "prob_pneumonia": expit(self.logit_B),
            "logit_pneumonia": self.logit_B,
            "predicted": self.predicted_B,
            "outcome": self.outcome_B,
        })  # fmt: skip

    # Curves

    def _portions(self, draws: int, n_rankings: int, grid: str) -> list[range]:
        """The numbers of the draws, so many at a time as memory is meant to hold with ``n_rankings`` in each draw."""
        n = max(1, MAX_PLACES // (n_rankings * rankings.side(grid, self.size) ** 2))
        return [range(first, min(first + n, draws)) for first in range(0, draws, n)]

    def _curves(self, places_NDU: Tensor, image_N: NDArray[np.integer], fill: int | None = None,
                scored_ND: NDArray[np.bool_] | None = None) -> NDArray[np.floating]:  # fmt: skip
        """Log-odds of PNEUMONIA over the levels 0, asked for, 1: float64 [N, D, F, O, L + 2], NaN if not scored.

        ``fill``: the only one; None: all.
        """
        n, draws, units = places_NDU.shape
        asked = rankings.counts(self.sweep.perturb.levels, units)
        at = np.arange(n * draws) if scored_ND is None else np.flatnonzero(scored_ND)
        here = torch.from_numpy(at).to(self.device)
        scores = masked_scores(
            self.forward, self.canvas if fill is None else self.canvas.only(fill), places_NDU.flatten(0, 1)[here],
            torch.from_numpy(image_N).to(self.device)[here // draws], asked, self.sweep.perturb.orders,
            self.batch_size,
        )  # fmt: skip
        blank_BF = self.blank_BF if fill is None else self.blank_BF[:, [fill]]
        image = image_N[at // draws]
        curves = np.full((n * draws, *scores.shape[1:-1], len(asked) + 2), np.nan)
        curves[at, ..., 0] = self.logit_B[image, None, None]
        curves[at, ..., 1:-1] = scores.double().cpu().numpy()
        curves[at, ..., -1] = blank_BF[image][:, :, None]
        return curves.reshape(n, draws, *curves.shape[1:])

    def _curve_rows(self, control: str, grid: str, logit_PDFOL: NDArray[np.floating],
                    overlap_PDOL: NDArray[np.floating] | None, drawn_PD: NDArray[np.bool_] | None = None
                    ) -> pa.Table:  # fmt: skip
        """Rows of ``curves`` from log-odds of the target, for the draws that there are."""
        p = self.sweep.perturb
        units = rankings.side(grid, self.size) ** 2
        levels = np.array([0.0, *p.levels, 1.0])
        done = np.array([0, *rankings.counts(p.levels, units), units])
        shape = logit_PDFOL.shape
        drawn = np.ones(shape[:2], dtype=bool) if drawn_PD is None else drawn_PD
        kept = np.broadcast_to(drawn[:, :, None, None, None], shape)
        pair, draw, fill, order, level = np.nonzero(kept)
        logit = logit_PDFOL[kept]
        if overlap_PDOL is None:
            overlap = np.full(logit.shape, np.nan)
        else:
            overlap = np.broadcast_to(overlap_PDOL[:, :, None], shape)[kept]
        return CURVES.build({
            "image_id": _take(self.pair_ids, pair),
            "target": self.target_P[pair],
            "control": _take([control], np.zeros_like(pair)),
            "draw": draw,
            "grid": _take([grid], np.zeros_like(pair)),
            "fill": _take(p.fills, fill),
            "direction": _take(p.orders, order),
            "level": levels[level],
            "level_done": done[level] / units,
            "n_perturbed": done[level],
            "prob_target": expit(logit),
            "logit_target": logit,
            "overlap": overlap,
        })  # fmt: skip

    def _towards_target(self, curves: NDArray[np.floating]) -> NDArray[np.floating]:
        return curves * self.sign_P.reshape(-1, *[1] * (curves.ndim - 1))

    def shared_controls(self) -> Tables:
        """Curves of the controls that know nothing of a map, once for every explainer and target."""
        rows = []
        for control, draws in self.sweep.controls.items():
            entry = CONTROLS[control]
            if entry.family != "nothing":
                continue
            for grid in entry.grids(self.sweep.perturb.grids):
                curves = []
                for some in self._portions(draws, len(self.ids), grid):
                    places = entry.draw(Draws(self.ids, self.seed, some, self.device), grid, self.size)
                    assert places is not None
                    curves.append(self._curves(places, np.arange(len(self.ids))))
                self.shared[control, grid] = self._towards_target(np.concatenate(curves, 1)[self.image_P])
                rows.append(self._curve_rows(control, grid, self.shared[control, grid], None))
        return {("curves", SHARED): pa.concat_tables(rows)} if rows else {}

    def regions(self) -> Tables:
        """What it does to remove parts of an image, or the same shapes elsewhere, or to change the image otherwise."""
        wanted = self.sweep.regions
        assert wanted is not None
        canvas, fills = self.canvas, [str(f) for f in self.sweep.perturb.fills]
        if partners := self.shard.partners:
            pixels = np.stack([partners.get(i, own) for i, own in zip(self.ids, self.shard.pixels, strict=True)])
            donors = torch.from_numpy(pixels).to(self.device).float() / 255
            canvas = canvas.with_fill(self.model.normalize(regions.exposed_alike(donors, self.pixels)))
            fills.append(PATCH_SWAP)
        parts = regions.of_images(wanted.names, self.masks, len(self.ids), self.size, self.device)
        rows: list[tuple[int, str, str, str, int, float]] = []  # image, region, fill, control, draw, share of area
        masks, images = [], []
        for name, mask_BSS in parts.items():
            there = mask_BSS.flatten(1).any(1).nonzero()[:, 0]
            if not len(there):
                continue
            keys = [
                [key(self.seed, self.ids[i], f"region {name}", d) for d in range(wanted.draws)] for i in there.tolist()
            ]
            own = mask_BSS[there]
            groups = torch.cat([own[:, None], PARTS[name].matched(own, torch.tensor(keys, device=self.device))], 1)
            share = groups.flatten(2).float().mean(2).tolist()
            masks.append(groups.flatten(0, 1))
            images.append(there.repeat_interleave(1 + wanted.draws))
            rows += [
                (i, name, fill, "matched" if d else "none", max(d - 1, 0), share[n][d])
                for n, i in enumerate(there.tolist())
                for d in range(1 + wanted.draws)
                for fill in fills
            ]
        scores = []
        if masks:
            scores.append(
                region_scores(
                    self.forward, canvas, torch.cat(masks).flatten(1), torch.cat(images), self.batch_size
                ).flatten()
            )
        changed = []
        for edit in wanted.edits:
            changed.append(EDITS[edit].edit(self.bytes))
            share_of_edit = EDITS[edit].share(self.size)
            rows += [(i, edit, "edit", "none", 0, share_of_edit) for i in range(len(self.ids))]
        for name, versions in self.shard.counterfactuals.items():
            area = self.masks[regions.mask_of_version(name)].flatten(1).float().mean(1)
            there = area.nonzero()[:, 0]
            changed.append(torch.from_numpy(np.array(versions)).to(self.device)[there].float() / 255)
            rows += [(i, name, "counterfactual", "none", 0, float(area[i])) for i in there.tolist()]
        if changed:
            scores.append(self._scores(self.model.normalize(torch.cat(changed))))
        if not rows:
            return {}
        image, region, fill, control, draw, share_R = zip(*rows, strict=True)
        alone = np.array([f == PATCH_SWAP and self.ids[i] not in partners for i, f in zip(image, fill, strict=True)])
        pair, row = np.nonzero((self.image_P[:, None] == np.array(image)) & ~alone)
        logit = torch.cat(scores).double().cpu().numpy()[row] * self.sign_P[pair]
        untouched = self.logit_B[self.image_P[pair]] * self.sign_P[pair]
        return {("regions", ""): REGIONS.build({
            "image_id": _take(self.pair_ids, pair),
            "target": self.target_P[pair],
            "region": _take(region, row),
            "fill": _take(fill, row),
            "control": _take(control, row),
            "draw": np.array(draw)[row],
            "share_of_area": np.array(share_R)[row],
            "prob_target": expit(logit),
            "logit_target": logit,
            "prob_full_image": expit(untouched),
            "logit_full_image": untouched,
        })}  # fmt: skip

    def explain(self, explainer: str) -> Tables:
        """Maps of one explainer, their curves, their own controls, and how they compare with every control."""
        if self.file is None:
            return self.measure(explainer, self.maps(explainer, self.model))
        maps = self.file.maps(explainer, list(zip(self.pair_ids, self.target_P.tolist(), strict=True)))
        return {} if maps is None else self.measure(explainer, maps)  # it failed: an entry in errors says so

    def maps(self, explainer: str, model: Classifier) -> Maps:
        """Maps of one explainer, of this model or another, and of the controls made from its class weights."""
        inputs = Inputs(
            images=self.images[self.image_P],
            blurred=self.blurred[self.image_P],
            black=self.model.normalize(torch.zeros(3, 1, 1, device=self.device)),
            targets=torch.from_numpy(self.target_P).to(self.device),
            ids=self.pair_ids,
            seed=self.seed,
        )
        entry = EXPLAINERS[explainer]
        wanted = control_masks.of_family("class weights", self.sweep.controls) if entry.cam else []
        with torch.enable_grad():
            if entry.cam is None or not wanted:
                return Maps(entry.explain(model, inputs).detach().float(), {})
            weights, activations = (part.detach() for part in entry.cam(model, inputs))
        drawn = {}
        for control in wanted:
            most = control_masks.draws_at_most(control, self.sweep.controls[control], self.sweep.sequential)
            made = []
            for number in range(most):  # one by one: weights may be as large as activations
                asked = Draws(self.pair_ids, self.seed, [number], self.device)
                other = CONTROLS[control].draw(asked, weights)
                assert other is not None
                made.append(combine(other[:, 0], activations))
            drawn[control] = torch.stack(made, 1).float()
        return Maps(combine(weights, activations).float(), drawn)

    def measure(self, explainer: str, maps: Maps) -> Tables:
        """Rows of saliency, curves and faithfulness of one explainer's maps."""
        own = maps.own.to(self.device)
        finite = torch.isfinite(own).flatten(1).all(1)
        flat = own.flatten(1)
        constant = flat.amax(1) == flat.amin(1)
        full = rankings.at_size(torch.where(finite[:, None, None], own, 0.0), self.size)
        tables = {("saliency", explainer): self._saliency_rows(own, full, finite, constant)}
        missing_P = ~finite.cpu().numpy()
        controls = _OwnControls(self, explainer, full, maps.drawn)
        curve_rows, faith_rows = [], []
        for grid in self.sweep.perturb.grids:
            parts = {}
            for control, (curves, overlap, drawn) in self._measured(controls, grid, missing_P).items():
                parts[control] = curves
                curve_rows.append(self._curve_rows(control, grid, curves, overlap, drawn))
            parts |= {c: part for (c, g), part in self.shared.items() if g == grid}
            tests = {c: self._sequential(controls, c, grid, parts) for c in parts if self._is_sequential(c)}
            faith_rows += self._faithfulness_rows(grid, parts, tests)
        tables["curves", explainer] = pa.concat_tables(curve_rows)
        tables["faithfulness", explainer] = pa.concat_tables(faith_rows)
        return tables

    def _measured(
        self, controls: _OwnControls, grid: str, missing_P: NDArray[np.bool_]
    ) -> dict[str, tuple[NDArray, ...]]:
        """The map ("none") and each control made from or for it: curves, overlaps and whether there is such a draw.

        Log-odds of the target [P, D, F, O, L + 2], [P, D, O, L + 2], [P, D].
        """
        wanted, (own_places, is_own) = controls.wanted, controls.map(grid)
        portions: dict[str, list[tuple[NDArray, ...]]] = {}
        for some in self._portions(max(wanted.values(), default=1), len(self.pairs) * max(1, len(wanted)), grid):
            made = {} if portions else {"none": (own_places, is_own)}
            for control, draws in wanted.items():
                if some.start < draws:
                    these = range(some.start, min(some.stop, draws))
                    made[control] = controls.draws(control, grid, range(len(self.pairs)), these)
            places = torch.cat([places for places, _ in made.values()], 1)
            drawn = np.concatenate([drawn for _, drawn in made.values()], 1)
            # what ranks as the map does has its curve: another batch might round it apart
            equal = (places == own_places).all(2).cpu().numpy() & drawn
            equal[:, 0] &= "none" not in made
            curves = self._towards_target(self._curves(places, self.image_P, scored_ND=drawn & ~equal))
            if "none" in made:
                own = curves[:, 0]
            curves[equal] = own[np.nonzero(equal)[0]]
            curves[missing_P] = np.nan
            last = np.cumsum([places.shape[1] for places, _ in made.values()])[:-1]
            for (control, (places, drawn)), part in zip(made.items(), np.split(curves, last, axis=1), strict=True):
                overlap = self._overlap(own_places[:, 0], places)
                if control == "none":
                    overlap[:] = np.nan
                portions.setdefault(control, []).append((part, overlap, drawn))
        return {c: tuple(np.concatenate(each, 1) for each in zip(*parts, strict=True)) for c, parts in portions.items()}

    def sanity(self, explainer: str, randomised: Sequence[tuple[str, Classifier]]) -> list[pa.Table]:
        """Rows of ``sanity``: maps of each randomised model beside this one's, and through the test on this one."""
        own = self.maps(explainer, self.model).own.cpu().numpy()
        metric, control = metrics.primary(self.sweep.perturb.orders), next(iter(self.sweep.controls), None)
        tables = []
        for layer, model in randomised:
            maps = self.maps(explainer, model)
            gap = np.full(len(self.pairs), np.nan)
            if control is not None:
                faith = self.measure(explainer, maps)["faithfulness", explainer].to_pandas()
                faith = faith[(faith.metric == metric) & (faith.scale == "logodds") & (faith.control == control)]
                gap = faith.set_index(["image_id", "target"]).gap[list(zip(self.pair_ids, self.target_P, strict=True))]
            same = {
                "explainer": explainer,
                "mode": "cascade",
                "layer": layer,
                "seed": self.seed,
                "grid": self.sweep.perturb.grids[0],
                "fill": self.sweep.perturb.fills[0],
                "metric": metric,
                "scale": "logodds",
                "control": control,
                "n_draws": next(iter(self.sweep.controls.values()), None),
            }
            tables.append(SANITY.build({
                "image_id": self.pair_ids, "target": self.target_P, "gap": np.asarray(gap),
                **sanity.similarity(own, maps.own.cpu().numpy()),
                **{name: [value] * len(self.pairs) for name, value in same.items()},
            }))  # fmt: skip
        return tables

    def _is_sequential(self, control: str) -> bool:
        return self.sweep.sequential is not None and control != "none" and CONTROLS[control].sequential

    def _primary(self, curves_NDFOL: NDArray[np.floating], grid: str) -> NDArray[np.floating]:
        """The area that is tested, [N, D, F]."""
        p = self.sweep.perturb
        by_order = {str(order): curves_NDFOL[..., o, :] for o, order in enumerate(p.orders)}
        names, values = faithfulness.metrics(by_order, p.levels, self._done(grid))
        return values[..., [name for name, _ in names].index(metrics.primary(p.orders))]

    def _done(self, grid: str) -> NDArray[np.floating]:
        """Shares perturbed at the levels 0, asked for, 1."""
        units = rankings.side(grid, self.size) ** 2
        return np.array([0, *rankings.counts(self.sweep.perturb.levels, units), units]) / units

    def _sequential(
        self, controls: _OwnControls, control: str, grid: str, parts: Mapping[str, NDArray[np.floating]]
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """p-values of the tested area and the draws behind them, [P, F]: more are drawn until each test is decided."""
        rule, p = self.sweep.sequential, self.sweep.perturb
        assert rule is not None
        most = control_masks.draws_at_most(control, self.sweep.controls[control], rule)
        higher = METRICS[metrics.primary(p.orders)].higher_is_faithful
        value_PF = self._primary(parts["none"], grid)[:, 0]
        seen_PFD = self._primary(parts[control], grid).swapaxes(1, 2)
        cells = value_PF.shape
        while True:
            n = seen_PFD.shape[2]
            p_values, draws, stopped = faithfulness.sequential_p(
                value_PF.ravel(), seen_PFD.reshape(-1, n), higher, rule.extreme
            )
            # a control without a next draw has run out
            going = ~stopped.reshape(cells) & ~np.isnan(value_PF) & ~np.isnan(seen_PFD[:, :, -1])
            if n >= most or not going.any():
                return p_values.reshape(cells), draws.reshape(cells)
            jobs = int(going.sum()) * len(p.orders) * len(p.levels)
            more = range(n, min(most, n + max(1, self.batch_size // jobs)))
            seen_PFD = np.concatenate([seen_PFD, np.full((*cells, len(more)), np.nan)], axis=2)
            for f in np.flatnonzero(going.any(0)):
                pairs = np.flatnonzero(going[:, f])
                sign = self.sign_P[pairs].reshape(-1, 1, 1, 1, 1)
                if CONTROLS[control].family == "nothing":
                    curves = sign * self._shared_draws(controls, control, grid, int(f), pairs, more)
                else:
                    places, drawn = controls.draws(control, grid, pairs, more)
                    curves = sign * self._curves(places, self.image_P[pairs], int(f), drawn)
                    equal = (places == controls.map(grid)[0][pairs]).all(2).cpu().numpy() & drawn
                    curves[equal] = parts["none"][pairs[np.nonzero(equal)[0]], 0, f : f + 1]
                seen_PFD[pairs, f, n:] = self._primary(curves, grid)[:, :, 0]

    def _shared_draws(
        self, controls: _OwnControls, control: str, grid: str, fill: int, pairs: NDArray[np.integer], draws: range
    ) -> NDArray[np.floating]:
        """``_curves`` of further draws of a control that knows nothing of a map: once for every explainer and target.

        [N, D, 1, O, L + 2].
        """
        images, first = np.unique(self.image_P[pairs], return_index=True)
        numbers, of = np.array(draws), (control, grid, fill)
        if of not in self.further:
            sweep, p = self.sweep, self.sweep.perturb
            most = control_masks.draws_at_most(control, sweep.controls[control], sweep.sequential)
            self.further[of] = np.full((len(self.ids), most, len(p.orders), len(p.levels) + 2), np.nan)
        curves_BDOL = self.further[of]
        lacking = np.isnan(curves_BDOL[np.ix_(images, numbers)][:, :, 0, 0])
        if lacking.any():
            places, _ = controls.draws(control, grid, pairs[first], draws)
            n, d = np.nonzero(lacking)
            curves_BDOL[images[n], numbers[d]] = self._curves(places, images, fill, lacking)[n, d, 0]
        return curves_BDOL[np.ix_(self.image_P[pairs], numbers)][:, :, None]

    def _overlap(self, places_PU: Tensor, control_PDU: Tensor) -> NDArray[np.floating]:
        """[P, D, O, L + 2]; NaN at level 0."""
        units = places_PU.shape[1]
        ns = [0, *rankings.counts(self.sweep.perturb.levels, units), units]
        shares = [
            torch.stack([rankings.overlap(places_PU, control_PDU, n, order) for n in ns], -1)
            for order in self.sweep.perturb.orders
        ]
        return torch.stack(shares, 2).cpu().numpy()

    def _saliency_rows(self, maps: Tensor, full: Tensor, finite: Tensor, constant: Tensor) -> pa.Table:
        side = maps.shape[-1]
        if side > MAX_MAP_SIDE:
            maps = F.adaptive_avg_pool2d(maps[:, None], MAX_MAP_SIDE)[:, 0]
            side = MAX_MAP_SIDE
        where = {
            name: column.cpu().numpy()
            for name, column in regions.describe(full, self.masks["lungs"][self.image_P]).items()
        }
        none = ~finite.cpu().numpy()
        degenerate = constant.cpu().numpy() & ~none
        kind = np.where(degenerate, regions.CONCENTRATIONS.index("degenerate"), where.pop("concentration"))
        components = where.pop("components")
        tied = regions.tied_share(full.flatten(1)).cpu().numpy()
        kept = maps.flatten(1).cpu().numpy()
        count = len(self.pairs)
        return SALIENCY.build({
            "image_id": self.pair_ids,
            "target": self.target_P,
            "map": list(kept) if self.sweep.explain.keep_maps else [None] * count,
            "map_height": np.full(count, side),
            "map_width": np.full(count, side),
            "tied": np.where(none, np.nan, tied),
            "degenerate": degenerate,
            "components": [None if bad else int(n) for bad, n in zip(none, components, strict=True)],
            "concentration": [
                None if bad else regions.CONCENTRATIONS[k] for bad, k in zip(none, kind, strict=True)
            ],
            **{name: np.where(none, np.nan, column) for name, column in where.items()},
        })  # fmt: skip

    def _faithfulness_rows(
        self,
        grid: str,
        parts: Mapping[str, NDArray[np.floating]],
        tests: Mapping[str, tuple[NDArray[np.floating], NDArray[np.floating]]],
    ) -> list[pa.Table]:
        """Rows for one grid.

        Args:
            grid: its name.
            parts: "none" (the map) and each control to log-odds [P, D, F, O, L + 2], NaN where there is no draw.
            tests: control to p-values and draws [P, F] of sequential draws.
        """
        p, done = self.sweep.perturb, self._done(grid)
        valid_PF = (parts["none"][:, 0, :, 0, 0] - parts["none"][:, 0, :, 0, -1]) >= faithfulness.VALID_BASELINE
        tables = []
        for f, scale in itertools.product(range(len(p.fills)), ("prob", "logodds")):
            scored = {}
            for control, part in parts.items():
                curves = part[:, :, f] if scale == "logodds" else expit(part[:, :, f])
                by_order = {str(order): curves[:, :, o] for o, order in enumerate(p.orders)}
                names, scored[control] = faithfulness.metrics(by_order, p.levels, done)
            value = scored["none"][:, 0]
            full = parts["none"][:, 0, f, 0, -1]
            higher = np.array([METRICS[name].higher_is_faithful for name, _ in names])
            for control, draws_PDM in scored.items():
                if control == "none":
                    nothing = np.full(value.shape, np.nan)
                    compared = dict.fromkeys(("control_mean", "control_sd", "gap", "win_rate", "n_as_extreme"), nothing)
                    compared |= {"n_draws": np.zeros(value.shape)}
                else:
                    compared = faithfulness.compare(value, draws_PDM, higher)
                logodds = scale == "logodds"
                p_draws = compared["n_draws"] * logodds
                p_values = faithfulness.p_value(compared["n_as_extreme"], p_draws)
                if logodds and control in tests:
                    tested = [name for name, _ in names].index(metrics.primary(p.orders))
                    p_values[:, tested], p_draws[:, tested] = (part[:, f] for part in tests[control])
                p_draws = np.where(np.isnan(p_values), np.nan, p_draws)
                pair, metric = (i.ravel() for i in np.indices(value.shape))
                tables.append(FAITHFULNESS.build({
                    "image_id": _take(self.pair_ids, pair),
                    "target": self.target_P[pair],
                    "grid": _take([grid], np.zeros_like(pair)),
                    "fill": _take([p.fills[f]], np.zeros_like(pair)),
                    "metric": _take([name for name, _ in names], metric),
                    "level": np.array([level for _, level in names])[metric],
                    "scale": _take([scale], np.zeros_like(pair)),
                    "control": _take([control], np.zeros_like(pair)),
                    "outcome": _take(list(self.outcome_B), self.image_P[pair]),
                    "value": value.ravel(),
                    **{name: column.ravel() for name, column in compared.items()},
                    "p_value": p_values.ravel(),
                    "p_draws": p_draws.ravel(),
                    "score_full": (full if logodds else expit(full))[pair],
                    "baseline_valid": valid_PF[pair, f],
                }))  # fmt: skip
        return tables


class _OwnControls:
    """The rankings of one explainer's maps, and any draws of any control beside them."""

    def __init__(self, work: _Work, explainer: str, full_PSS: Tensor, drawn: Mapping[str, Tensor]):
        """Takes maps at image size, finite, and the draws of controls made from class weights, [P, D, V, V]."""
        self.work, self.explainer, self.full, self.drawn = work, explainer, full_PSS, drawn
        self._places: dict[str, Tensor] = {}
        families = {c: CONTROLS[c].family for c in work.sweep.controls}
        self.wanted = {  # made from or for these maps
            c: n for c, n in work.sweep.controls.items() if families[c] in ("ranking", "other images") or c in drawn
        }

    def map(self, grid: str) -> tuple[Tensor, NDArray[np.bool_]]:
        """The map's own ranking, as ``draws`` gives them: [P, 1, U], [P, 1]."""
        if grid not in self._places:
            g = rankings.side(grid, self.work.size)
            self._places[grid] = rankings.rank_on(self.full, self.work.ties_PSS, g)[:, None]
        return self._places[grid], np.ones((len(self.full), 1), dtype=bool)

    def draws(
        self, control: str, grid: str, pairs: Sequence[int] | NDArray[np.integer], draws: range
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """These draws of a control for N of the pairs: rankings int32 [N, D, U], and whether there is one, [N, D]."""
        work, g = self.work, rankings.side(grid, self.work.size)
        pairs = np.asarray(pairs)
        ids = [work.pair_ids[i] for i in pairs]
        all_drawn = np.ones((len(pairs), len(draws)), dtype=bool)
        entry, asked = CONTROLS[control], Draws(ids, work.seed, draws, work.device)
        own = self.map(grid)[0][pairs, 0]
        if entry.family in ("nothing", "ranking"):
            made = entry.draw(asked, own) if entry.family == "ranking" else entry.draw(asked, grid, work.size)
            assert made is not None
            return made, all_drawn
        found = self._maps(control, pairs, draws)
        drawn = np.arange(len(draws)) < np.array([len(maps) for maps in found])[:, None]
        places = own[:, None].repeat(1, len(draws), 1)
        if drawn.any():
            ties = work.ties_PSS[pairs[np.nonzero(drawn)[0]]]
            places[torch.from_numpy(drawn).to(work.device)] = rankings.rank_on(torch.cat(found), ties, g)
        return places, drawn

    def _maps(self, control: str, pairs: NDArray[np.integer], draws: range) -> list[Tensor]:
        """Each pair's maps at image size that stand for draws of a control, [<= D, S, S]: as many as there are."""
        work, none = self.work, self.full[:0]
        if control in self.drawn:
            maps = self.drawn[control][torch.from_numpy(pairs)][:, list(draws)].to(work.device)
            return list(rankings.at_size(maps.flatten(0, 1), work.size).split(len(draws)))
        assert work.others is not None  # else the worker has refused the shard
        found = []
        for pair in pairs:  # each has its own file and its own places in it
            name = (work.shard.trial_id, work.pair_ids[pair], (self.explainer, int(work.target_P[pair])))
            given = CONTROLS[control].draw(work.others, name, draws, work.size)
            found.append(none if given is None else rankings.at_size(given.to(work.device), work.size))
        return found


def _take(values: Sequence[str], index: NDArray[np.integer]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(index))
