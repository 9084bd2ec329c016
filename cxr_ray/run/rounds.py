"""Rounds of sequential verdicts through Ray: blocks of patients of all models, a model's next round when one is done.

The workers are those of the other passes. What a block found is a file, as of a shard: a run that was killed finds it,
and plans the same rounds again.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cxr_ray import results
from cxr_ray.analysis import primary
from cxr_ray.analysis.sequential_verdicts import Verdicts, steps_of
from cxr_ray.measure import steps
from cxr_ray.measure.donors import DonorMaps
from cxr_ray.measure.steps import verdict_sweep
from cxr_ray.run import deaths, one_by_one, pipeline, progress, terminal
from cxr_ray.run.deaths import Died
from cxr_ray.run.pipeline import PassSettings, ShardPass
from cxr_ray.run.plan import ShardPlan
from cxr_ray.schemas import ERRORS
from cxr_ray.storage import pack

ROUNDS = ".work/rounds"
BLOCK = 4  # patients that a worker scores at a time: several workers share a round


@dataclass
class _Model:
    """One model's rounds: the blocks of the round that is being scored."""

    verdicts: Verdicts
    round: int = 0
    names: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    behind: int = 0  # patients that were told of


def decide(scoring: ShardPass, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score rounds until every comparison of every model is decided or has no patient left; rows of ``verdicts``.

    Args:
        scoring: the scoring pass, after a map pass.
        errors: takes a row for each image that ended its workers.
    """
    context = scoring.context
    settings = primary.of_run(results.open_run(context.store.out))
    sweep = verdict_sweep(context.sweep, settings.grid, settings.fill, settings.metric)
    test = context.manifest.rows("test")
    labels = dict(zip(test["image_id"], test["label"], strict=True))
    maps = DonorMaps(context.store, sweep)
    models = {
        trial_id: _Model(Verdicts(trial_id, steps_of(maps.index(trial_id).images, labels, sweep.seed), sweep))
        for trial_id in scoring.model_refs
    }
    rounds = _Rounds(replace(scoring, context=replace(context, sweep=sweep)), models)
    rounds.run()
    errors += rounds.errors
    return [row for model in models.values() for row in model.verdicts.rows(settings)]


class _Rounds:
    """The rounds of all models: what waits, what runs, and what is there from before."""

    def __init__(self, scoring: ShardPass, models: Mapping[str, _Model]):
        self.scoring, self.models = scoring, models
        self.store, self.sweep = scoring.context.store, scoring.context.sweep
        self.waiting: deque[ShardPlan] = deque()
        self.there = self.store.finished_shards(ROUNDS)
        self.to_begin = deque(models)
        test = scoring.context.manifest.rows("test")
        rows: list[Any] = test[["image_id", "path", "label"]].to_dict("records")
        self.row_of = {row["image_id"]: row for row in rows}
        self.errors: list[dict[str, Any]] = []
        self.stage = progress.Stage("")

    def run(self) -> None:
        """Until no model has a round left."""
        total = sum(len(model.verdicts.steps) for model in self.models.values())
        hint = "workers start, and choose the fastest form of the network"
        with progress.stage("Sequential verdicts", total, "patients", hint=hint) as self.stage:
            self.stage.bound = True
            self._run()

    def _run(self) -> None:
        pool, context = self.scoring.pool, self.scoring.context
        settings = PassSettings(self.sweep)
        decode, write = pipeline._Decode(context.source, None, self.sweep), pipeline._Write(self.store, ROUNDS)
        blocks: dict[Any, ShardPlan] = {}
        while True:
            while self.to_begin and len(self.waiting) <= self.scoring.allocation.workers:
                self._plan(self.to_begin.popleft())
            if not self.waiting and not pool.is_busy:
                return
            pool.start(len(self.waiting))
            while self.waiting and pool.is_free:
                block = self.waiting.popleft()
                row = {"shard": json.dumps(block.to_plain())}
                call = pool.submit(
                    pipeline.compute_block,
                    *(settings, decode, write, row),
                    topic=block.trial_id,
                    kind=f"{ROUNDS} {block.trial_id}",
                    most=deaths.MOST if len(block.rows) > 1 else deaths.ALONE,
                )
                blocks[call] = block
            call, result = pool.wait()
            self._take_block(blocks.pop(call), result)

    def _plan(self, trial_id: str) -> None:
        """Plan a model's rounds until one has a block that is not there yet, or none is left."""
        model, asked = self.models[trial_id], self.sweep.verdicts
        assert asked is not None
        while blocks := model.verdicts.next_round(asked.round, BLOCK):
            plans = [self._shard(trial_id, model.round, n, block) for n, block in enumerate(blocks)]
            model.round += 1
            model.names = [plan.name for plan in plans]
            missing = [plan for plan in plans if plan.name not in self.there]
            model.open = {plan.name for plan in missing}
            if missing:
                self.waiting.extend(missing)
                return
            self._take(model)
        self._advance(model, len(model.verdicts.steps))  # the rest is not needed
        terminal.say(f"  {self._told(model)}")

    def _shard(self, trial_id: str, round: int, n: int, block: Any) -> ShardPlan:
        assert self.sweep.verdicts is not None
        ref = self.scoring.model_refs[trial_id]
        return ShardPlan(
            name=f"{trial_id}.round.{self.sweep.verdicts.round}.{round:05d}.{n:03d}",
            trial_id=trial_id,
            split="test",
            size=ref.size,
            preprocess=ref.preprocess,
            rows=tuple(self.row_of[i] for i in block.image_ids),
            comparisons=block.comparisons,
        )

    def _take_block(self, block: ShardPlan, result: Any) -> None:
        """A block that was computed, or that ended the workers: its images one by one, the guilty ones as errors."""
        model = self.models[block.trial_id]
        if isinstance(result, Died) and len(block.rows) > 1:
            parts = [replace(p, name=f"{block.name}.{n:02d}") for n, p in enumerate(one_by_one.pieces(block))]
            at = model.names.index(block.name)
            model.names[at : at + 1] = [part.name for part in parts]
            model.open |= {part.name for part in parts}
            model.open.remove(block.name)
            self.waiting.extend(parts)
            return
        if isinstance(result, Died):
            row = one_by_one.guilty(block, result.reason, "verdicts")
            terminal.say(f"  left out: {row['path']}, an error: {row['reason']}")
            empty = {("wins", ""): steps.WINS.empty_table(), ("errors", ""): ERRORS.from_rows([row])}
            self.store.write_shard(block.name, pack(empty), ROUNDS)
        self._finish(block)

    def _finish(self, block: ShardPlan) -> None:
        model = self.models[block.trial_id]
        model.open.remove(block.name)
        if not model.open:
            self._take(model)
            self._plan(block.trial_id)

    def _take(self, model: _Model) -> None:
        tables = [self.store.read_shard(name, ROUNDS) for name in model.names]
        model.verdicts.add(made["wins", ""] for made in tables)
        self.errors += [row for made in tables if ("errors", "") in made for row in made["errors", ""].to_pylist()]
        self._advance(model, model.verdicts.position)

    def _advance(self, model: _Model, position: int) -> None:
        self.stage.advance(position - model.behind, lines=[self._told(model)])
        model.behind = position

    def _told(self, model: _Model) -> str:
        verdicts = model.verdicts
        n_patients, n_cells = len(verdicts.steps), len(verdicts.cells)
        decided = sum(cell.decided for cell in verdicts.cells)
        return (
            f"{verdicts.trial_id}: {verdicts.position} of {n_patients} patients, {decided} of {n_cells} comparisons "
            "decided"
        )
