"""Sequential verdicts on one model on this machine, without Ray: what ``cxr-ray verdict`` does.

The maps of all test images come first: a control may need any of them. Then patients are scored, round by round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch

from cxr_ray.analysis import class_order, primary
from cxr_ray.analysis.baselines import baseline_rows, sentence
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.analysis.sequential_verdicts import Verdicts, steps_of
from cxr_ray.config import Sweep
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.outside_maps import load_maps
from cxr_ray.data.splits import REFERENCE, choose
from cxr_ray.errors import CheckpointError, DataError, UserError
from cxr_ray.measure import donors
from cxr_ray.measure.batch import Batch, filled_rows
from cxr_ray.measure.donors import DonorMaps
from cxr_ray.measure.shards import ModelRef, Shard
from cxr_ray.measure.steps import verdict_sweep
from cxr_ray.measure.worker import Worker
from cxr_ray.models import backend_choice
from cxr_ray.run.context import RunContext, reference_images
from cxr_ray.run.plan import SHARD_IMAGES
from cxr_ray.schemas import to_json
from cxr_ray.storage import Store, chunks

BASELINE_IMAGES = 64  # of the validation split, on which the fill is chosen


Read = Callable[[pd.DataFrame, str, str], Shard]
"""Rows of images, the shard's name and its split to the shard, decoded."""


@dataclass
class LocalVerdict:
    """One given model of a sweep with a section ``verdicts``.

    Attributes:
        sweep: resolved.
        ref: the model.
        store: a folder for the maps.
        images: the splits val and test: image_id, path, label, split, patient_id.
        read: reads images of these.
        where: where the images come from, for messages.
        device: of the worker; None: a GPU, where there is one.
        batch_size: masked images in one pass; None: found for the device.
    """

    sweep: Sweep
    ref: ModelRef
    store: Store
    images: pd.DataFrame
    read: Read
    where: str
    device: str | None = None
    batch_size: int | None = None

    @classmethod
    def of_run(cls, context: RunContext) -> LocalVerdict:
        """The one model of a run's context; its store is a folder for the maps."""
        (ref,) = context.given.values()
        fit, source = context.sweep.data.fit, context.source

        def read(rows: pd.DataFrame, name: str, split: str) -> Shard:
            pixels, keep, errors = load_pixels(source, rows, ref.size, fit, ref.preprocess)
            ids, paths, labels = (list(rows[column][keep]) for column in ("image_id", "path", "label"))
            named = [
                {"image_id": i, "path": path, "maps": context.maps.members.get(i)}
                for i, path in zip(ids, paths, strict=True)
            ]
            sets = context.maps.sets if name else {}  # a shard of a round has none: the map pass keeps its maps
            maps, lost = load_maps(sets, named, ref.size, fit, ref.preprocess)
            return Shard(ref.trial_id, split, ids, paths, labels, pixels, errors=errors + lost, maps=maps, name=name)

        used = pd.concat([context.manifest.rows("test"), context.manifest.rows("val")])
        return cls(context.sweep, ref, context.store, used, read, source.where)

    @property
    def trial_id(self) -> str:
        """The model's name."""
        return self.ref.trial_id

    @cached_property
    def maps(self) -> DonorMaps:
        """The maps of all test images, once they are made."""
        return DonorMaps(self.store, self.sweep)

    @cached_property
    def worker(self) -> Worker:
        """Makes maps and wins."""
        curve = len(self.sweep.perturb.levels) * len(self.sweep.perturb.orders)
        steps = self.test["patient_id"].nunique()
        worker = Worker(
            self.sweep,
            {self.trial_id: self.ref},
            self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            batch_size=self.batch_size,
            passes=steps * curve * (1 + len(self.sweep.controls)),
            donor_maps=self.maps,
        )
        if backend_choice.lower_precision(self.sweep.perturb.precision, worker.device) is not None:
            val = self._split("val")
            shard = self.read(reference_images(val if len(val) else self.test, self.sweep.seed), "", REFERENCE)
            if shard.image_ids:
                worker.precision_of = {self.trial_id: worker.decide(shard)}.get
        return worker

    @property
    def alpha(self) -> float:
        """Chance of any wrong decision."""
        assert self.sweep.verdicts is not None  # else there are none
        return self.sweep.verdicts.alpha

    @cached_property
    def test(self) -> pd.DataFrame:
        """The test split."""
        return self._split("test")

    def _split(self, split: str) -> pd.DataFrame:
        return self.images[self.images["split"] == split]

    def settings(self) -> tuple[PrimarySettings, str]:
        """The primary settings, the fill chosen on validation images as in a sweep; and what they are, in words."""
        sweep, val = self.sweep, self._split("val")
        chosen = val[val["image_id"].isin(choose(val["image_id"], val["label"], BASELINE_IMAGES, sweep.seed))]
        if chosen.empty:
            settings = primary.with_baselines(primary.resolve(sweep), sweep, [])
            return settings, "There are no validation images to check a fill on: maps are compared by deletion alone."
        with torch.no_grad():
            shard = self.read(chosen, "", "val")
            batch = Batch(sweep, shard, self.worker.network(self.trial_id), self.worker.device)
            predictions, filled = batch.prediction_rows().to_pandas(), filled_rows(batch).to_pandas()
        patients = val.set_index("image_id")["patient_id"]
        rules, fills = sweep.explain.targets, sweep.perturb.fills
        rows = baseline_rows(self.trial_id, predictions, filled, patients, target_rules=rules, fills=fills)
        settings = primary.with_baselines(primary.resolve(sweep), sweep, rows)
        said = [sentence(rows, settings.target_rule, settings.fill)]
        trial = {"trial_id": self.trial_id, "status": "given", "checkpoint": self.ref.checkpoint}
        config = to_json(vars(self.ref.spec) if self.ref.spec else {})
        if decided := self.worker.precision_of(self.trial_id):
            said.append(f"On {len(decided.images)} reference images: {decided}.")
        said += class_order.of_validation({**trial, "config": config}, predictions)
        return settings, "\n".join(said)

    def make_maps(self) -> Iterator[tuple[int, int]]:
        """Make the predictions and maps of all test images; yield (images done, all) after each block.

        Raises:
            DataError: no image can be decoded.
            CheckpointError: the model gives no finite score.
        """
        store, blocks = self.store, list(chunks(list(range(len(self.test))), SHARD_IMAGES))
        names, done, unreadable = [f"{self.trial_id}.test.{i:05d}" for i in range(len(blocks))], 0, 0
        with ThreadPoolExecutor(1) as pool:  # the next block is decoded while this one is explained
            decoded = [
                pool.submit(self.read, self.test.iloc[b], name, "test")
                for b, name in zip(blocks[:2], names, strict=False)
            ]
            for n, (block, name) in enumerate(zip(blocks, names, strict=True)):
                shard = decoded.pop(0).result()
                if n + 2 < len(blocks):
                    decoded.append(pool.submit(self.read, self.test.iloc[blocks[n + 2]], names[n + 2], "test"))
                unreadable += len(shard.errors)
                store.write_shard(name, self.worker.map_pass(shard), donors.MAPS)
                done += len(block)
                yield done, len(self.test)
        self._index(names, unreadable)

    def _index(self, names: Sequence[str], unreadable: int) -> None:
        """Note which image has which maps, and sum them where a control needs it."""
        patients = self.test.set_index("image_id")["patient_id"]
        index = donors.index_maps(self.maps, names, (self.trial_id, self.ref.size), patients, self.sweep)
        if not index.images and unreadable == len(self.test):
            raise DataError(f"got {self.where}, of whose test images none can be decoded; expected some.")
        if not index.images:
            raise CheckpointError(
                f"got {self.ref.checkpoint}, which gives no finite score for any test image; expected finite scores; "
                "give weights that do not overflow."
            )

    def rounds(self, settings: PrimarySettings, buckets: Sequence[str], patients: int) -> Iterator[Verdicts]:
        """Score patients until every cell is decided or none is left; yield the verdicts after each round.

        Raises:
            UserError: no patient is in any of the buckets.
        """
        sweep = verdict_sweep(self.sweep, settings.grid, settings.fill, settings.metric)
        self.worker.sweep = sweep
        test = self.test.set_index("image_id", drop=False)
        index = self.maps.index(self.trial_id)
        labels = dict(zip(self.test["image_id"], self.test["label"], strict=True))
        verdicts = Verdicts(self.trial_id, steps_of(index.images, labels, sweep.seed), sweep, buckets)
        for bucket in buckets:
            if not any(bucket in ("all", step.outcome) for step in verdicts.steps):
                raise UserError(
                    f"got bucket {bucket}, in which {self.trial_id} has no patient; expected one that it has "
                    f"({', '.join(['all', *sorted({s.outcome for s in verdicts.steps})])}); give that."
                )
        while blocks := verdicts.next_round(patients, patients):
            tables = []
            for ids, comparisons in blocks:
                shard = replace(self.read(test.loc[list(ids)], "", "test"), comparisons=comparisons)
                tables.append(self.worker.wins(shard)["wins", ""])
            verdicts.add(tables)
            yield verdicts
