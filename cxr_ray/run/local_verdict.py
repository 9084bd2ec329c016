"""Sequential verdicts on one model on this machine, without Ray: what ``cxr-ray verdict`` does.

The maps of all test images come first: a control may need any of them. Then patients are scored, round by round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import pandas as pd
import torch

from cxr_ray.analysis import primary
from cxr_ray.analysis.baselines import baseline_rows, sentence
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.analysis.sequential_verdicts import Verdicts, steps_of
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.splits import choose
from cxr_ray.errors import CheckpointError, DataError, UserError
from cxr_ray.measure import donors
from cxr_ray.measure.batch import Batch, filled_rows
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.donors import DonorMaps
from cxr_ray.measure.shards import Shard
from cxr_ray.measure.steps import verdict_sweep
from cxr_ray.measure.worker import Worker
from cxr_ray.run.context import RunContext
from cxr_ray.run.plan import SHARD_IMAGES
from cxr_ray.storage import chunks

BASELINE_IMAGES = 64  # of the validation split, on which the fill is chosen


class LocalVerdict:
    """One given model of a sweep with a section ``verdicts``.

    Attributes:
        context: of the run; its store is a folder for the maps.
        trial_id: the model's name.
        worker: makes maps and wins.
    """

    def __init__(self, context: RunContext):
        self.context, self.sweep = context, context.sweep
        (self.trial_id,) = context.given
        self.ref = context.given[self.trial_id]
        self.maps = DonorMaps(context.store, self.sweep)
        curve = len(self.sweep.perturb.levels) * len(self.sweep.perturb.orders)
        steps = self.test["patient_id"].nunique()
        self.worker = Worker(
            self.sweep,
            context.given,
            "cuda" if torch.cuda.is_available() else "cpu",
            batch_size=None,
            passes=steps * curve * (1 + len(self.sweep.controls)),
            donor_maps=self.maps,
        )

    @property
    def alpha(self) -> float:
        """Chance of any wrong decision."""
        assert self.sweep.verdicts is not None  # else there are none
        return self.sweep.verdicts.alpha

    @cached_property
    def test(self) -> pd.DataFrame:
        """The test split."""
        return self.context.manifest.rows("test")

    def _shard(self, rows: pd.DataFrame, name: str = "", split: str = "test") -> Shard:
        """Images, read and decoded."""
        fit = self.sweep.data.fit
        pixels, keep, errors = load_pixels(self.context.source, rows, self.ref.size, fit, self.ref.preprocess)
        ids, paths, labels = (list(rows[column][keep]) for column in ("image_id", "path", "label"))
        return Shard(self.trial_id, split, ids, paths, labels, pixels, errors=errors, name=name)

    def settings(self) -> tuple[PrimarySettings, str]:
        """The primary settings, the fill chosen on validation images as in a sweep; and what they are, in words."""
        sweep, val = self.sweep, self.context.manifest.rows("val")
        chosen = val[val["image_id"].isin(choose(val["image_id"], val["label"], BASELINE_IMAGES, sweep.seed))]
        if chosen.empty:
            settings = primary.with_baselines(primary.resolve(sweep), sweep, [])
            return settings, "There are no validation images to check a fill on: maps are compared by deletion alone."
        with torch.no_grad():
            shard = self._shard(chosen, split="val")
            batch = Batch(sweep, shard, self.worker.network(self.trial_id), self.worker.device)
            predictions, filled = batch.prediction_rows().to_pandas(), filled_rows(batch).to_pandas()
        patients = val.set_index("image_id")["patient_id"]
        rules, fills = sweep.explain.targets, sweep.perturb.fills
        rows = baseline_rows(self.trial_id, predictions, filled, patients, target_rules=rules, fills=fills)
        settings = primary.with_baselines(primary.resolve(sweep), sweep, rows)
        return settings, sentence(rows, settings.target_rule, settings.fill)

    def make_maps(self) -> Iterator[tuple[int, int]]:
        """Make the predictions and maps of all test images; yield (images done, all) after each block.

        Raises:
            DataError: no image can be decoded.
            CheckpointError: the model gives no finite score.
        """
        store, blocks = self.context.store, list(chunks(list(range(len(self.test))), SHARD_IMAGES))
        names, done, unreadable = [f"{self.trial_id}.test.{i:05d}" for i in range(len(blocks))], 0, 0
        with ThreadPoolExecutor(1) as pool:  # the next block is decoded while this one is explained
            decoded = [
                pool.submit(self._shard, self.test.iloc[b], name) for b, name in zip(blocks[:2], names, strict=False)
            ]
            for n, (block, name) in enumerate(zip(blocks, names, strict=True)):
                shard = decoded.pop(0).result()
                if n + 2 < len(blocks):
                    decoded.append(pool.submit(self._shard, self.test.iloc[blocks[n + 2]], names[n + 2]))
                unreadable += len(shard.errors)
                store.write_shard(name, self.worker.map_pass(shard), donors.MAPS)
                done += len(block)
                yield done, len(self.test)
        self._index(names, unreadable)

    def _index(self, names: Sequence[str], unreadable: int) -> None:
        """Note which image has which maps, and sum them where a control needs it."""
        patients = self.test.set_index("image_id")["patient_id"]
        targets = [(e, t) for e in self.sweep.explain.explainers for t in (0, 1)]
        index = donors.build_donor_index(self.context.store, names, patients, targets)
        if not index.images and unreadable == len(self.test):
            raise DataError(
                f"got {self.context.source.where}, of whose test images none can be decoded; expected some."
            )
        if not index.images:
            raise CheckpointError(
                f"got {self.ref.checkpoint}, which gives no finite score for any test image; expected finite scores; "
                "give weights that do not overflow."
            )
        self.maps.write_index(self.trial_id, index)
        if any(CONTROLS[c].rank_sums for c in self.sweep.controls):
            for wanted in targets:
                for predicted in (0, 1):
                    if index.group(predicted, wanted):
                        self.maps.write_total(self.trial_id, wanted, predicted, self.ref.size)

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
                shard = replace(self._shard(test.loc[list(ids)]), comparisons=comparisons)
                tables.append(self.worker.wins(shard)["wins", ""])
            verdicts.add(tables)
            yield verdicts
