"""One block of images and one model in, table rows out. A plain class: Ray calls it, and so can a test or a notebook.

Shapes: B images, P (image, target) pairs, D draws, F fills, O orders, L levels asked for, M metrics, U units, S side.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from cxr_ray import faithfulness, forms, models, perturb, regions, sanity
from cxr_ray.config import Sweep
from cxr_ray.explainers import EXPLAINERS, Inputs
from cxr_ray.forms import Form
from cxr_ray.models import Classifier, Meaning
from cxr_ray.randomness import key
from cxr_ray.schemas import CURVES, ERRORS, FAITHFULNESS, PREDICTIONS, REGIONS, SALIENCY, SANITY, SHARED

MAX_MAP_SIDE = 56
OUTCOMES = np.array([["TN", "FP"], ["FN", "TP"]])  # [label, predicted]
Tables = dict[tuple[str, str], pa.Table]  # (table, explainer or "") to rows


@dataclass(frozen=True)
class Subject:
    """A model to be explained.

    Attributes:
        trial_id: its name in the tables.
        checkpoint: its weights.
        meaning: what they mean; None: the file says so itself.
        size, preprocess: what its images become, as in its meaning.
    """

    trial_id: str
    checkpoint: str
    meaning: Meaning | None
    size: int
    preprocess: str = "none"


@dataclass(frozen=True)
class Block:
    """Images of one split for one model.

    Attributes:
        split: val, test, or sanity (images of test whose maps are compared with those of random weights).
        pixels: uint8 [B, 3, S, S].
        image_ids, paths, labels: one for each image.
        errors: rows of the errors table for images that could not be decoded.
        masks: lungs, marker and opacity as far as they are known: bool [B, S, S]; nowhere: not known, or not there.
        rerendered: phantoms drawn again without their opacity, without their marker, with the other glyph: uint8
            [B, 3, S, S].
    """

    trial_id: str
    split: str
    image_ids: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    pixels: NDArray[np.uint8]
    errors: Sequence[Mapping[str, Any]] = field(default_factory=list)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    rerendered: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


class Worker:
    """Explains and perturbs blocks of images. Keeps the models that it used last."""

    def __init__(
        self,
        sweep: Sweep,
        subjects: Mapping[str, Subject],
        device: str = "cpu",
        batch_size: int | None = 32,
        passes: int = 0,
    ):
        """Takes a sweep and the models it may be asked about.

        Args:
            sweep: what to explain and how to perturb.
            subjects: the models by trial_id.
            device: cpu or cuda.
            batch_size: masked images in one pass; None: found once for the device.
            passes: forward passes that each model will make; many make a faster form of it worth its start-up.
        """
        self.sweep, self.subjects, self.passes = sweep, dict(subjects), passes
        self._batch_size = batch_size
        self._found: dict[int, int] = {}  # by size of the images
        self.device = torch.device(device)
        self.form = Form("eager", {})
        self.model = lru_cache(maxsize=4)(self._load)
        self.forward = lru_cache(maxsize=4)(self._forward)
        self.segmenter = regions.segmenter(self.device) if regions.wants_segmenter(sweep) else None

    def _load(self, trial_id: str) -> Classifier:
        subject = self.subjects[trial_id]
        model = models.load(subject.checkpoint, subject.meaning).requires_grad_(False)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, trial_id: str) -> forms.Forward:
        """The function that scores; its form is measured for the first model and then kept."""
        model, size = self.model(trial_id), self.subjects[trial_id].size
        if self.form.tried:
            return forms.make(self.form.name, model, size, self.batch_size(trial_id))
        self.form, forward = forms.choose(model, size, self.batch_size(trial_id), self.passes)
        return forward

    def batch_size(self, trial_id: str) -> int:
        """Masked images in one pass."""
        size = self.subjects[trial_id].size
        if self._batch_size is None and size not in self._found:
            self._found[size] = forms.batch_size(self.model(trial_id), size)
        return self._batch_size or self._found[size]

    def __call__(self, block: Block) -> Tables:
        """Rows of predictions and errors; for the test split also of saliency, curves and faithfulness.

        For a block of sanity, rows of sanity and errors.
        """
        tables: Tables = {}
        errors = list(block.errors)
        if block.image_ids:
            with torch.no_grad():
                if block.split == "sanity":
                    tables |= self._sanity(block, errors)
                else:
                    tables |= self._explain(block, errors)
        if errors:
            tables["errors", ""] = ERRORS.from_rows(errors)
        return tables

    def _explain(self, block: Block, errors: list[Mapping[str, Any]]) -> Tables:
        work = _Work(self, block, self.sweep)
        tables = {("predictions", ""): work.predictions()}
        if block.split == "test":
            tables |= work.shared_controls()
            if self.sweep.regions:
                tables |= work.regions()
            for explainer in self.sweep.explain.explainers:
                with _lost_maps(block, "explain", explainer, errors):
                    tables |= work.explain(explainer)
        return tables

    def _sanity(self, block: Block, errors: list[Mapping[str, Any]]) -> Tables:
        assert self.sweep.sanity is not None  # else there is no such block
        test = sanity.narrowed(self.sweep)
        work = _Work(self, block, test)
        work.shared_controls()
        model, layers = self.model(block.trial_id), self.sweep.sanity.layers
        randomised = list(sanity.cascade(model, layers, self.sweep.seed, block.trial_id))
        tables = []
        for explainer in test.explain.explainers:
            with _lost_maps(block, "sanity", explainer, errors):
                tables += work.sanity(explainer, randomised)
        return {("sanity", ""): pa.concat_tables(tables)} if tables else {}


@contextlib.contextmanager
def _lost_maps(block: Block, what: str, explainer: str, errors: list[Mapping[str, Any]]) -> Iterator[None]:
    """A lost map is an entry in errors, never a lost run."""
    try:
        yield
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        stage = f"{what}:{block.trial_id}:{explainer}"
        errors += [
            {"path": path, "image_id": image_id, "stage": stage, "reason": reason}
            for path, image_id in zip(block.paths, block.image_ids, strict=True)
        ]


class _Work:
    """One block on the device: what its explainers and controls share."""

    def __init__(self, worker: Worker, block: Block, sweep: Sweep):
        self.model, self.forward = worker.model(block.trial_id), worker.forward(block.trial_id)
        self.sweep, self.block, self.batch_size = sweep, block, worker.batch_size(block.trial_id)
        self.device, self.seed = worker.device, sweep.seed
        self.ids = list(block.image_ids)
        self.bytes = torch.from_numpy(np.array(block.pixels)).to(self.device)
        pixels = self.bytes.float() / 255
        self.size = pixels.shape[-1]
        self.images = self.model.normalize(pixels)
        self.logit_B = self._scores(self.images).double().cpu().numpy()
        self.predicted_B = (self.logit_B >= 0).astype(np.int64)
        labels = np.asarray(block.labels, dtype=np.int64)
        self.outcome_B = OUTCOMES[labels, self.predicted_B]
        if block.split != "val":
            self._prepare(pixels)
            self.masks = {name: torch.from_numpy(np.array(m)).to(self.device) for name, m in block.masks.items()}
            if worker.segmenter and block.split == "test":
                self.masks["lungs"] = worker.segmenter(self.bytes)
            nowhere = torch.zeros(len(self.ids), self.size, self.size, dtype=torch.bool, device=self.device)
            self.masks.setdefault("lungs", nowhere)

    def _scores(self, images_BCHW: Tensor) -> Tensor:
        """Log-odds of PNEUMONIA of model-space images, float32 [B], in batches."""
        return torch.cat([
            self.forward(b.contiguous(memory_format=torch.channels_last))
            for b in images_BCHW.split(self.batch_size)
        ])  # fmt: skip

    def _prepare(self, pixels: Tensor) -> None:
        """Pairs, fills and their scores, tie-breaking fields, and the layout for masked passes."""
        wanted = {
            (i, 1 if rule == "pneumonia" else int(self.predicted_B[i]))
            for rule, i in itertools.product(self.sweep.explain.targets, range(len(self.ids)))
        }
        self.pairs = sorted(wanted)
        self.image_P = np.array([i for i, _ in self.pairs])
        self.target_P = np.array([t for _, t in self.pairs])
        self.sign_P = np.where(self.target_P == 1, 1.0, -1.0)
        self.pair_ids = [self.ids[i] for i in self.image_P]
        perturbation = self.sweep.perturb
        grey = self.model.mean
        noise_keys = torch.tensor([key(self.seed, i, "noise fill") for i in self.ids], device=self.device)
        fills = torch.stack(
            [self.model.normalize(perturb.FILLS[f](pixels, grey, noise_keys)) for f in perturbation.fills], dim=1
        )
        self.blank_BF = self._scores(fills.flatten(0, 1)).double().cpu().numpy().reshape(len(self.ids), -1)
        linear = None
        if "linear" in perturbation.fills:
            linear_keys = torch.tensor([key(self.seed, i, "linear fill") for i in self.ids], device=self.device)
            linear = perturb.Linear.of(perturbation.fills.index("linear"), pixels, linear_keys, self.model.normalize)
        self.canvas = perturb.Canvas.of(self.images, fills, linear)
        self.blurred = self.model.normalize(perturb.FILLS["blur"](pixels, grey, noise_keys))
        tie_keys = torch.tensor([key(self.seed, i, "ties") for i in self.ids], device=self.device)
        self.ties_BSS = perturb.smooth_field(tie_keys, self.size)
        self.shared: dict[tuple[str, str], NDArray[np.floating]] = {}

    def predictions(self) -> pa.Table:
        return PREDICTIONS.build({
            "image_id": self.ids,
            "split": [self.block.split] * len(self.ids),
            "label": np.asarray(self.block.labels),
            "prob_pneumonia": expit(self.logit_B),
            "logit_pneumonia": self.logit_B,
            "predicted": self.predicted_B,
            "outcome": self.outcome_B,
        })  # fmt: skip

    # Curves

    def _curves(self, places_NDU: Tensor, image_N: NDArray[np.integer], grid: str) -> NDArray[np.floating]:
        """Log-odds of PNEUMONIA over the levels 0, asked for, 1: float64 [N, D, F, O, L + 2]."""
        n, draws, units = places_NDU.shape
        asked = perturb.counts(self.sweep.perturb.levels, units)
        image_of = torch.from_numpy(np.repeat(image_N, draws)).to(self.device)
        scores = perturb.masked_scores(
            self.forward, self.canvas, places_NDU.flatten(0, 1), image_of, asked, self.sweep.perturb.orders,
            self.batch_size,
        )  # fmt: skip
        inner = scores.double().cpu().numpy().reshape(n, draws, *scores.shape[1:])
        edge = inner.shape[:-1]
        untouched = np.broadcast_to(self.logit_B[image_N][:, None, None, None], edge)
        filled = np.broadcast_to(self.blank_BF[image_N][:, None, :, None], edge)
        return np.concatenate([untouched[..., None], inner, filled[..., None]], axis=-1)

    def _curve_rows(self, control: str, grid: str, logit_PDFOL: NDArray[np.floating],
                    overlap_PDOL: NDArray[np.floating] | None) -> pa.Table:  # fmt: skip
        """Rows of ``curves`` from log-odds of the target."""
        p = self.sweep.perturb
        units = perturb.side(grid, self.size) ** 2
        levels = np.array([0.0, *p.levels, 1.0])
        done = np.array([0, *perturb.counts(p.levels, units), units])
        shape = logit_PDFOL.shape
        pair, draw, fill, order, level = (i.ravel() for i in np.indices(shape))
        logit = logit_PDFOL.ravel()
        if overlap_PDOL is None:
            overlap = np.full(logit.shape, np.nan)
        else:
            overlap = np.broadcast_to(overlap_PDOL[:, :, None], shape).ravel()
        return CURVES.build({
            "image_id": _take(self.pair_ids, pair),
            "target": self.target_P[pair],
            "control": _take([control], np.zeros_like(pair)),
            "draw": draw,
            "grid": _take([grid], np.zeros_like(pair)),
            "fill": _take(p.fills, fill),
            "order": _take(p.orders, order),
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
            if control not in perturb.SHARED_CONTROLS:
                continue
            for grid in perturb.control_grids(control, self.sweep.perturb.grids):
                places = perturb.SHARED_CONTROLS[control](self.ids, self.seed, draws, grid, self.size, self.device)
                curves = self._curves(places, np.arange(len(self.ids)), grid)
                self.shared[control, grid] = self._towards_target(curves[self.image_P])
                rows.append(self._curve_rows(control, grid, self.shared[control, grid], None))
        return {("curves", SHARED): pa.concat_tables(rows)} if rows else {}

    def regions(self) -> Tables:
        """What it does to remove parts of an image, or the same shapes elsewhere, or to change the image otherwise."""
        wanted = self.sweep.regions
        assert wanted is not None
        fills = self.sweep.perturb.fills
        parts = regions.of_images(wanted.names, self.masks, len(self.ids), self.size, self.device)
        rows: list[tuple[int, str, str, str, int, float]] = []  # image, region, fill, control, draw, share of area
        masks, images = [], []
        for name, mask_BSS in parts.items():
            there = mask_BSS.flatten(1).any(1).nonzero()[:, 0]
            if not len(there):
                continue
            keys = [[key(self.seed, self.ids[i], f"region {name}", d) for d in range(wanted.draws)] for i in there]
            own = mask_BSS[there]
            groups = torch.cat([own[:, None], regions.matched(name, own, torch.tensor(keys, device=self.device))], 1)
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
                perturb.region_scores(
                    self.forward, self.canvas, torch.cat(masks).flatten(1), torch.cat(images), self.batch_size
                ).flatten()
            )
        changed = []
        for edit in wanted.edits:
            changed.append(regions.EDITS[edit](self.bytes))
            share_of_edit = regions.edited_share(edit, self.size)
            rows += [(i, edit, "edit", "none", 0, share_of_edit) for i in range(len(self.ids))]
        for name, versions in self.block.rerendered.items():
            area = self.masks["marker" if name == "glyph" else name].flatten(1).float().mean(1)
            there = area.nonzero()[:, 0]
            changed.append(torch.from_numpy(np.array(versions)).to(self.device)[there].float() / 255)
            rows += [(i, name, "rerender", "none", 0, float(area[i])) for i in there.tolist()]
        if changed:
            scores.append(self._scores(self.model.normalize(torch.cat(changed))))
        if not rows:
            return {}
        image, region, fill, control, draw, share_R = zip(*rows, strict=True)
        pair, row = np.nonzero(self.image_P[:, None] == np.array(image))
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
        return self.measure(explainer, self.maps(explainer, self.model))

    def maps(self, explainer: str, model: Classifier) -> Tensor:
        """Maps of one explainer, float32 [P, V, V], of this model or another."""
        inputs = Inputs(
            images=self.images[self.image_P],
            blurred=self.blurred[self.image_P],
            black=self.model.normalize(torch.zeros(3, 1, 1, device=self.device)),
            targets=torch.from_numpy(self.target_P).to(self.device),
            ids=self.pair_ids,
            seed=self.seed,
        )
        with torch.enable_grad():
            return EXPLAINERS[explainer].explain(model, inputs).detach().float()

    def measure(self, explainer: str, maps: Tensor) -> Tables:
        """Rows of saliency, curves and faithfulness of one explainer's maps."""
        finite = torch.isfinite(maps).flatten(1).all(1)
        clean = torch.where(finite[:, None, None], maps, 0.0)
        flat = clean.flatten(1)
        constant = flat.amax(1) == flat.amin(1)
        full = perturb.upsample(clean, self.size)
        full = torch.where(constant[:, None, None], 0.0, full)  # upsampling a constant may round it apart
        tables = {("saliency", explainer): self._saliency_rows(maps, full, finite, constant)}
        missing_P = ~finite.cpu().numpy()
        curve_rows, faith_rows = [], []
        own = {c: n for c, n in self.sweep.controls.items() if c in perturb.MAP_CONTROLS}
        for grid in self.sweep.perturb.grids:
            g = perturb.side(grid, self.size)
            ties = perturb.cell_means(self.ties_BSS, g).flatten(1)[self.image_P]
            places = perturb.rank(perturb.cell_means(full, g).flatten(1), ties)
            groups = {"none": places[:, None]}
            groups |= {c: perturb.MAP_CONTROLS[c](places, self.pair_ids, self.seed, n) for c, n in own.items()}
            curves = self._towards_target(self._curves(torch.cat(list(groups.values()), 1), self.image_P, grid))
            curves[missing_P] = np.nan
            widths = [group.shape[1] for group in groups.values()]
            parts = dict(zip(groups, np.split(curves, np.cumsum(widths)[:-1], axis=1), strict=True))
            for control, part in parts.items():
                shares = None if control == "none" else self._overlap(places, groups[control])
                curve_rows.append(self._curve_rows(control, grid, part, shares))
            parts |= {c: part for (c, g_), part in self.shared.items() if g_ == grid}
            faith_rows += self._faithfulness_rows(grid, parts)
        tables["curves", explainer] = pa.concat_tables(curve_rows)
        tables["faithfulness", explainer] = pa.concat_tables(faith_rows)
        return tables

    def sanity(self, explainer: str, randomised: Sequence[tuple[str, Classifier]]) -> list[pa.Table]:
        """Rows of ``sanity``: maps of each randomised model beside this one's, and through the test on this one."""
        own = self.maps(explainer, self.model).cpu().numpy()
        metric, control = sanity.metric(self.sweep), next(iter(self.sweep.controls), None)
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
                **sanity.similarity(own, maps.cpu().numpy()),
                **{name: [value] * len(self.pairs) for name, value in same.items()},
            }))  # fmt: skip
        return tables

    def _overlap(self, places_PU: Tensor, control_PDU: Tensor) -> NDArray[np.floating]:
        """[P, D, O, L + 2]; NaN at level 0."""
        units = places_PU.shape[1]
        ns = [0, *perturb.counts(self.sweep.perturb.levels, units), units]
        shares = [
            torch.stack([perturb.overlap(places_PU, control_PDU, n, order) for n in ns], -1)
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
        focus = np.where(degenerate, regions.FOCUS.index("degenerate"), where.pop("focus"))
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
            "focus": [None if bad else regions.FOCUS[f] for bad, f in zip(none, focus, strict=True)],
            **{name: np.where(none, np.nan, column) for name, column in where.items()},
        })  # fmt: skip

    def _faithfulness_rows(self, grid: str, parts: Mapping[str, NDArray[np.floating]]) -> list[pa.Table]:
        """Rows for one grid: ``parts`` maps "none" (the map) and each control to log-odds [P, D, F, O, L + 2]."""
        p = self.sweep.perturb
        units = perturb.side(grid, self.size) ** 2
        done = np.array([0, *perturb.counts(p.levels, units), units]) / units
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
            higher = np.array([faithfulness.HIGHER_IS_FAITHFUL[name] for name, _ in names])
            for control, draws_PDM in scored.items():
                n_draws = 0 if control == "none" else draws_PDM.shape[1]
                if control == "none":
                    nothing = np.full(value.shape, np.nan)
                    compared = dict.fromkeys(("control_mean", "control_sd", "gap", "u", "n_as_extreme"), nothing)
                else:
                    compared = faithfulness.compare(value, draws_PDM, higher)
                logodds = scale == "logodds"
                p_values = faithfulness.p_value(compared["n_as_extreme"], n_draws if logodds else 0)
                p_draws = np.where(np.isnan(p_values), np.nan, n_draws)
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
                    "n_draws": np.full(pair.shape, n_draws),
                    "p_value": p_values.ravel(),
                    "p_draws": p_draws.ravel(),
                    "score_full": (full if logodds else expit(full))[pair],
                    "baseline_valid": valid_PF[pair, f],
                }))  # fmt: skip
        return tables


def _take(values: Sequence[str], index: NDArray[np.integer]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(index))
