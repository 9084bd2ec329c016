"""One shard of images and one model in, table rows out: a plain class, which Ray calls, or a test, or a notebook."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cxr_ray.config import Sweep
from cxr_ray.data.splits import REFERENCE
from cxr_ray.errors import first_line
from cxr_ray.measure import lungs, masking, metrics, precision, sanity, stability, steps
from cxr_ray.measure.batch import Batch, Network, filled_rows, finite_scores, in_pixel_space
from cxr_ray.measure.capacity import Capacity
from cxr_ray.measure.controls import needs_map_pass, of_family
from cxr_ray.measure.donor_swaps import donor_swap_rows
from cxr_ray.measure.donors import DonorMaps, MapFile, MapPiece, Maps, pack_maps
from cxr_ray.measure.measurement import begin, make_maps, maps_alone
from cxr_ray.measure.metrics import Tested
from cxr_ray.measure.precision import Precision
from cxr_ray.measure.region_effects import begin_regions
from cxr_ray.measure.shards import ModelRef, Shard, Tables
from cxr_ray.measure.shared import SharedControls
from cxr_ray.measure.transfer import to_device
from cxr_ray.models import backend_choice, backends, checkpoints
from cxr_ray.models.backend_choice import InferenceBackend
from cxr_ray.models.networks import Classifier
from cxr_ray.models.scoring_only import ScoringOnly
from cxr_ray.schemas import ERRORS

Errors = list[Mapping[str, Any]]  # rows of the table errors


class Worker:
    """Explains and perturbs blocks of images. Keeps the models that it used last.

    Attributes:
        precision_of: by trial_id what was decided of a model's precision; None: nothing, so that the images which come
            first decide, as is right for a worker alone.
    """

    def __init__(
        self,
        sweep: Sweep,
        model_refs: Mapping[str, ModelRef],
        device: str = "cpu",
        batch_size: int | None = 32,
        passes: int = 0,
        donor_maps: DonorMaps | None = None,
        tested: Tested | None = None,
    ):
        """Takes a sweep and the models it may be asked about.

        Args:
            sweep: what to explain and how to perturb.
            model_refs: the models by trial_id.
            device: cpu or cuda.
            batch_size: masked images in one pass; None: found once for the device.
            passes: forward passes that each model will make; many make a faster backend worth its start-up.
            donor_maps: what the map pass made, for controls that need those of other images.
            tested: the primary metric and fill; None: those of the sweep alone.
        """
        self.sweep, self.model_refs, self.passes, self.donor_maps = sweep, dict(model_refs), passes, donor_maps
        self.tested = tested or metrics.tested(sweep.perturb)
        self._batch_size = batch_size
        self._found: dict[int, int] = {}  # by size of the images
        self.precision_of: Callable[[str], Precision | None] = lambda trial_id: None
        self._mixed: dict[str, Collection[str]] = {}  # explainers in mixed precision, by trial_id
        self._images: torch.Tensor | None = None  # pixel space, of the shard that comes: backends must agree on them
        self.device = torch.device(device)
        sizes = [ref.size for ref in self.model_refs.values()]
        self.capacity = Capacity.of(self.device, max(sizes, default=1), len(sweep.explain.targets))
        backends.full_float32()
        self.backend = InferenceBackend("eager", {})
        # Shards come model by model; where one follows another, two are kept.
        self.model: Callable[[str], Classifier] = lru_cache(maxsize=2)(self._load)
        self.forward: Callable[[str], backends.Forward] = lru_cache(maxsize=2)(self._forward)
        self.hooked: Callable[[str], Classifier] = lru_cache(maxsize=2)(self._hooked)
        self.segmenter = lungs.segmenter(self.device) if lungs.wants_segmenter(sweep) else None

    def begin(self, sweep: Sweep, donor_maps: DonorMaps | None = None, tested: Tested | None = None) -> None:
        """Begin another pass of the same run; models, batch sizes and the inference backend stay.

        Args:
            sweep: of the pass; its precision is the run's.
            donor_maps, tested: as in the constructor.
        """
        self.sweep, self.donor_maps = sweep, donor_maps
        self.tested = tested or metrics.tested(sweep.perturb)
        if self.segmenter is None and lungs.wants_segmenter(sweep):
            self.segmenter = lungs.segmenter(self.device)

    def _load(self, trial_id: str) -> Classifier:
        model_ref = self.model_refs[trial_id]
        if model_ref.model is not None:  # the caller's own, which stays as it is
            return model_ref.model
        model = checkpoints.load(model_ref.checkpoint, model_ref.spec).requires_grad_(False)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _forward(self, trial_id: str) -> backends.Forward:
        """The function that scores. Rates that were measured for one model are kept, so the next one only starts."""
        model, size = self.model(trial_id), self.model_refs[trial_id].size
        if self.model_refs[trial_id].model is not None or isinstance(model.network, ScoringOnly):
            # as it is: it may not take another memory format
            self.backend = InferenceBackend("eager", {})
            return model.log_odds
        images, asked, slack = self._images, self.sweep.perturb.precision, 1.0
        if (decided := self.precision_of(trial_id)) is not None:
            images = in_pixel_space(to_device(decided.images, self.device)) if len(decided.images) else None
            asked, slack = "float32" if decided.scoring == "float32" else asked, backend_choice.SLACK
        example = None if images is None else model.normalize(images)
        settings = self.batch_size(trial_id), self.passes, asked, example, slack
        self.backend, forward = backend_choice.choose(model, size, *settings)
        if decided is not None and self.backend.precision != decided.scoring:
            raise RuntimeError(
                f"got {self.backend} for {trial_id}; expected {decided.scoring} precision, as was decided for the run; "
                "give machines with the same kind of GPU, or perturb.precision: float32."
            )
        return forward

    def batch_size(self, trial_id: str) -> int:
        """Masked images in one pass."""
        size = self.model_refs[trial_id].size
        if self._batch_size is None and size not in self._found:
            self._found[size] = backend_choice.batch_size(self.model(trial_id), size)
        return self._batch_size or self._found[size]

    @property
    def notes(self) -> list[str]:
        """What else there is to know of how this worker computes, a sentence each."""
        return [note for note in (masking.kernel_note(), self.capacity.note) if note]

    def network(self, trial_id: str) -> Network:
        """The model in its two forms."""
        forward = self.forward(trial_id)
        if trial_id not in self._mixed:
            decided = self.precision_of(trial_id)
            self._mixed[trial_id] = () if decided is None else decided.mixed
        sizes = self.batch_size(trial_id), self.capacity.places
        return Network(self.model(trial_id), forward, *sizes, self._mixed[trial_id], partial(self.hooked, trial_id))

    def _hooked(self, trial_id: str) -> Classifier:
        """The model as explainers hook it; a caller's own stays as it is."""
        model = self.model(trial_id)
        return model if self.model_refs[trial_id].model is not None else backends.for_explainers(model)

    def decide(self, shard: Shard) -> Precision:
        """Decide in which precision a model is scored and explained, on a shard of reference images."""
        with torch.no_grad():
            return precision.decide(self.model(shard.trial_id), self.sweep, shard, self.device)

    def _network_for(self, shard: Shard) -> Network:
        self._images = in_pixel_space(to_device(shard.pixels, self.device))
        return self.network(shard.trial_id)

    def __call__(self, shard: Shard) -> Tables:
        """The scoring pass: rows of predictions and errors; of val also of filled, of test of all that is measured.

        For a shard of sanity, stability or donors, rows of sanity, stability or donor_swaps and errors. For one of
        reference images, what ``decide`` found.
        """
        if shard.split == REFERENCE:
            return self.decide(shard).to_tables() if shard.image_ids else {}
        tables: Tables = {}
        errors = list(shard.errors)
        file = None
        if shard.split == "test" and needs_map_pass(self.sweep):
            file = self._map_file(shard)
            errors += file.errors
        if shard.image_ids:
            with torch.no_grad():
                if shard.split == "sanity":
                    tables |= self._sanity(shard, errors)
                elif shard.split == "stability":
                    tables |= self._stability(shard, errors)
                elif shard.split == "donors":
                    tables |= self._donor_swaps(shard, errors)
                else:
                    tables |= self._scored(shard, errors, file)
        if errors:
            tables["errors", ""] = ERRORS.from_rows(errors)
        return tables

    def _map_file(self, shard: Shard) -> MapFile:
        if self.donor_maps is None:
            names = of_family("other images", self.sweep.controls)
            raise ValueError(
                f"got {' and '.join(names)} without the maps of other images; expected donor_maps; give them."
            )
        return self.donor_maps.file(shard.name)

    def _batch(self, shard: Shard, sweep: Sweep, errors: Errors, file: MapFile | None = None) -> Batch | None:
        """The shard on the device; images without a finite score become errors, None where no other is left."""
        network = self._network_for(shard)
        logits = None if file is None else file.logits
        segmenter = self.segmenter if lungs.wants_segmenter(sweep) else None
        given = (network, self.device, logits, segmenter, self.tested)
        batch = Batch(sweep, shard, *given)
        finite, unscored = finite_scores(batch)
        errors += unscored
        if finite.all():
            return batch
        return Batch(sweep, shard.only(finite), *given) if finite.any() else None

    def _scored(self, shard: Shard, errors: Errors, file: MapFile | None) -> Tables:
        """Predictions, and all else of val or test. A GPU works on the next images while rows of the last are made."""
        begun: deque[Callable[[], Tables]] = deque()
        parts: list[Tables] = []
        for piece in self._pieces(shard, file):
            if (batch := self._batch(piece, self.sweep, errors, file)) is None:
                continue
            if shard.split == "test":
                begun.append(self._begin(batch, errors, file))
            else:
                begun.append(partial(_baseline_rows, batch))
            if len(begun) > 1:
                parts.append(begun.popleft()())
        parts += [rows() for rows in begun]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: pa.concat_tables([part[name] for part in parts if name in part]) for name in names}

    def _pieces(self, shard: Shard, file: MapFile | None) -> list[Shard]:
        """The shard in pieces, each within one of the map pass: an explainer failed on all of that or on none."""
        most = self.capacity.scored_together(len(shard.image_ids))
        if file is None:
            return shard.pieces(most)
        made_with = np.array([file.piece[i] for i in shard.image_ids])
        return [piece for n in np.unique(made_with) for piece in shard.only(made_with == n).pieces(most)]

    def _begin(self, batch: Batch, errors: Errors, file: MapFile | None) -> Callable[[], Tables]:
        """Ask the device for all that is scored of a test shard; the tables are made when they are called for."""
        shared = SharedControls(batch) if self.sweep.has_fixed_design else None
        regions = begin_regions(batch) if self.sweep.regions else None
        begun: dict[str, Callable[[], Tables]] = {}
        for explainer in self.sweep.explain.names:
            with _lost_maps(batch.shard, "explain", explainer, errors):
                if file is None:
                    maps: Maps | None = make_maps(batch, explainer, batch.network.model)
                else:
                    maps = file.maps(explainer, batch.pairs.keys())
                if maps is None:  # it failed in the map pass: an entry in errors says so
                    continue
                if shared is None:
                    begun[explainer] = partial(maps_alone, batch, explainer, maps, self.donor_maps)
                else:
                    begun[explainer] = begin(batch, shared, explainer, maps, self.donor_maps)

        def tables() -> Tables:
            made = {("predictions", ""): batch.prediction_rows()} | (shared.rows() if shared else {})
            if regions is not None:
                made["regions", ""] = regions()
            for explainer, rows in begun.items():
                with _lost_maps(batch.shard, "explain", explainer, errors):
                    made |= rows()
            return made

        return tables

    def map_pass(self, shard: Shard) -> bytes:
        """The map pass: the predictions and maps of a test shard, as a file."""
        errors: Errors = list(shard.errors)
        with torch.no_grad():
            made = [self._maps(piece, errors) for piece in shard.pieces(self.capacity.images)]
        return pack_maps([piece for piece in made if piece is not None], errors)

    def _maps(self, piece: Shard, errors: Errors) -> MapPiece | None:
        batch = self._batch(piece, self.sweep, errors)
        if batch is None:
            return None
        maps: dict[str, Maps] = {}
        for explainer in self.sweep.explain.names:
            with _lost_maps(batch.shard, "explain", explainer, errors):
                own, drawn = make_maps(batch, explainer, batch.network.model)
                maps[explainer] = Maps(own.cpu(), {control: of.cpu() for control, of in drawn.items()})
        return MapPiece(dict(zip(batch.ids, batch.logit.tolist(), strict=True)), batch.pairs.keys(), maps)

    def _donor_swaps(self, shard: Shard, errors: Errors) -> Tables:
        batch = self._batch(shard, self.sweep, errors)
        rows = None if batch is None else donor_swap_rows(batch)
        return {} if rows is None else {("donor_swaps", ""): rows}

    def wins(self, shard: Shard) -> Tables:
        """A round of sequential verdicts: wins of the comparisons that the shard asks for; after a map pass."""
        assert self.donor_maps is not None  # a round follows a map pass
        if not shard.image_ids:
            return {("wins", ""): steps.WINS.empty_table()}
        logits = {i: self.donor_maps.logit(shard.trial_id, i) for i in shard.image_ids}
        sweep = steps.narrowed(self.sweep, shard.comparisons)
        with torch.no_grad():
            batch = Batch(sweep, shard, self._network_for(shard), self.device, logits)
            return {("wins", ""): steps.wins(batch, shard.comparisons, self.donor_maps)}

    def _sanity(self, shard: Shard, errors: Errors) -> Tables:
        assert self.sweep.sanity is not None  # else there is no such shard
        test = sanity.narrowed(self.sweep, self.tested.fill)
        batch = self._batch(shard, test, errors)
        if batch is None:
            return {}
        shared = SharedControls(batch)
        layers = self.sweep.sanity.layers
        randomised = list(sanity.cascade(batch.network.model, layers, self.sweep.seed, shard.trial_id))
        tables = []
        for explainer in test.explain.explainers:
            with _lost_maps(batch.shard, "sanity", explainer, errors):
                tables += sanity.sanity_rows(batch, shared, explainer, randomised)
        return {("sanity", ""): pa.concat_tables(tables)} if tables else {}

    def _stability(self, shard: Shard, errors: Errors) -> Tables:
        assert self.sweep.stability is not None  # else there is no such shard
        batch = self._batch(shard, stability.narrowed(self.sweep, self.tested.fill), errors)
        if batch is None:
            return {}
        altered, tables = stability.Altered(batch, self.sweep.stability), []
        for explainer in batch.sweep.explain.names:
            with _lost_maps(batch.shard, "stability", explainer, errors):
                tables.append(stability.stability_rows(altered, explainer, self.donor_maps))
        return {("stability", ""): pa.concat_tables(tables)} if tables else {}


def _baseline_rows(batch: Batch) -> Tables:
    return {("predictions", ""): batch.prediction_rows(), ("filled", ""): filled_rows(batch)}


@contextlib.contextmanager
def _lost_maps(shard: Shard, what: str, explainer: str, errors: Errors) -> Iterator[None]:
    """A lost map is an entry in errors, never a lost run; but a device without memory or sanity will lose them all."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as e:
        reason = first_line(e)
        stage = f"{what}:{shard.trial_id}:{explainer}"
        errors += [
            {"path": path, "image_id": image_id, "stage": stage, "reason": reason}
            for path, image_id in zip(shard.paths, shard.image_ids, strict=True)
        ]
