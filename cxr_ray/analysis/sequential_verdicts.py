"""Sequential verdicts on one model: which comparisons are decided, which patients come next, and the rows at the end.

A cell is a comparison (explainer, target rule, control) within a bucket of patients. Its steps are the bucket's
patients in random order. It stops at the step at which betting on the win rate has decided it; what was scored beyond
that step, because patients are scored in rounds, changes nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_ray.analysis import betting
from cxr_ray.analysis.betting import Decision
from cxr_ray.analysis.buckets import BUCKETS
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.config import Sweep
from cxr_ray.measure.batch import OUTCOMES
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.shards import Comparison
from cxr_ray.measure.steps import SECONDS, in_random_order

METHOD = "betting on the win rate, patients in random order (Waudby-Smith & Ramdas 2024)"


class Step(NamedTuple):
    """A patient's image: the class that the model predicts, and TP, FP, TN or FN."""

    image_id: str
    predicted: int
    outcome: str


class Block(NamedTuple):
    """Images that are scored together, and what for."""

    image_ids: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


@dataclass
class Cell:
    """A comparison within a bucket.

    Attributes:
        alpha: chance of a wrong decision.
        futile: the win rate below which it is not worth further patients.
        wins: of its steps so far, NaN where the map or the draw is lost.
        decided: whether betting has decided it.
        seconds: of workers, up to the round in which it was decided.
    """

    comparison: Comparison
    bucket: str
    alpha: float
    futile: float
    wins: list[float] = field(default_factory=list)
    decided: bool = False
    seconds: float = 0.0

    def holds(self, step: Step) -> bool:
        """Whether a patient is of its bucket."""
        return self.bucket in ("all", step.outcome)

    def add(self, wins: Sequence[float], seconds: float) -> None:
        """Take the wins of a round, and stop where they decide."""
        self.wins += wins
        self.seconds += seconds
        known = self._known
        if len(known):
            both = betting.e_process(known), betting.e_process(1 - known, 1 - self.futile)
            self.decided = any(betting.crossing(log_e, self.alpha) <= len(known) for log_e in both)

    @property
    def _known(self) -> NDArray[np.float64]:
        wins = np.array(self.wins)
        return wins[~np.isnan(wins)]

    @property
    def found(self) -> Decision | None:
        """What its steps so far show; None without any."""
        known = self._known
        return betting.decide(known, self.alpha, self.futile) if len(known) else None

    def lost(self, used: int) -> int:
        """Steps without a win among those up to the last one used."""
        end = np.flatnonzero(~np.isnan(self.wins))[used - 1] + 1 if self.decided else len(self.wins)
        return int(end - used)


class Verdicts:
    """The cells of one model.

    Attributes:
        trial_id: the model.
        steps: all patients, in random order.
        cells: in the order of the table.
        passes: of a step: the curves of a map and of a draw.
        position: steps that are scored, or that no open cell needed.
    """

    def __init__(self, trial_id: str, steps: Sequence[Step], sweep: Sweep, buckets: Sequence[str] = BUCKETS):
        """Begin at the first patient.

        Args:
            trial_id: the model.
            steps: as ``steps_of`` gives them.
            sweep: a ``verdict_sweep``.
            buckets: those that are judged; each counts in the family, also without patients.
        """
        assert sweep.verdicts is not None  # else there are none
        self.trial_id, self.steps = trial_id, steps
        comparisons = itertools.product(sweep.explain.names, sweep.explain.targets, sweep.controls)
        cells = [(Comparison(*c), bucket) for c in comparisons for bucket in buckets]
        alpha = betting.family_alpha(sweep.verdicts.alpha, len(cells))
        self.cells = [Cell(*cell, alpha, sweep.verdicts.futile) for cell in cells]
        self.passes = 2 * len(sweep.perturb.orders) * len(sweep.perturb.levels)
        self.position = 0
        self._waiting: list[Step] = []  # of the round that is being scored

    def next_round(self, patients: int, images: int) -> list[Block]:
        """The patients that come next; none where every cell is decided or no patient is left.

        Args:
            patients: of a round.
            images: of a block at most.
        """
        blocks: dict[tuple[Comparison, ...], list[str]] = {}
        while self.position < len(self.steps) and len(self._waiting) < patients:
            step = self.steps[self.position]
            self.position += 1
            if needed := self._needed(step):
                self._waiting.append(step)
                blocks.setdefault(needed, []).append(step.image_id)
        return [
            Block(tuple(ids[i : i + images]), needed)
            for needed, ids in blocks.items()
            for i in range(0, len(ids), images)
        ]

    def _needed(self, step: Step) -> tuple[Comparison, ...]:
        """The comparisons of which a cell is open that this patient belongs to."""
        return tuple(dict.fromkeys(c.comparison for c in self.cells if not c.decided and c.holds(step)))

    def add(self, tables: Iterable[pa.Table]) -> None:
        """Take the wins of the round that ``next_round`` asked for, and stop the cells that they decide."""
        wins: dict[tuple[str, str, int, str], float] = {}
        seconds = 0.0
        for table in tables:
            seconds += float((table.schema.metadata or {}).get(SECONDS, 0.0))
            *keys, found = (column.to_pylist() for column in table.columns)
            wins |= {
                key: np.nan if win is None else win for key, win in zip(zip(*keys, strict=True), found, strict=True)
            }
        for cell in (c for c in self.cells if not c.decided):
            explainer, rule, control = cell.comparison
            own = [(s.image_id, 1 if rule == "pneumonia" else s.predicted) for s in self._waiting if cell.holds(s)]
            cell.add([wins.get((image_id, explainer, target, control), np.nan) for image_id, target in own], seconds)
        self._waiting = []

    def lines(self) -> list[str]:
        """How far each cell is, a line each, for a terminal."""
        return [line(cell, sum(map(cell.holds, self.steps))) for cell in self.cells]

    def rows(self, settings: PrimarySettings) -> list[dict[str, Any]]:
        """Rows of ``verdicts``; ``settings``: what maps are compared by."""
        return [self._row(cell, settings) for cell in self.cells]

    def _row(self, cell: Cell, settings: PrimarySettings) -> dict[str, Any]:
        found, available = cell.found, sum(map(cell.holds, self.steps))
        unknown = dict.fromkeys(("e_value", "e_value_futile", "win_rate", "lower", "upper"))
        shown = unknown if found is None else shown_by(found)
        used = 0 if found is None else found.n
        return {
            "trial_id": self.trial_id,
            **cell.comparison._asdict(),
            "bucket": cell.bucket,
            **{name: getattr(settings, name) for name in ("metric", "scale", "grid", "fill")},
            "n_patients": used,
            "n_available": available,
            "n_lost": cell.lost(used),
            "draws": 1,
            "passes": used * self.passes,
            **shown,
            "confidence": 1 - 2 * cell.alpha,
            "futile": cell.futile,
            "alpha": cell.alpha,
            "family": f"explainer x target rule x control x bucket of {self.trial_id}",
            "family_size": len(self.cells),
            "decision": "undecided" if found is None else found.decision,
            "sentence": sentence(self.trial_id, cell, available),
            "method": METHOD,
            "seconds": cell.seconds,
        }


def shown_by(found: Decision) -> dict[str, float]:
    """The numbers of a decision, as the table names them."""
    return {
        "e_value": float(np.exp(found.log_e)),
        "e_value_futile": float(np.exp(found.log_e_futile)),
        "win_rate": found.win_rate,
        "lower": found.lower,
        "upper": found.upper,
    }


def steps_of(images: Mapping[str, Mapping[str, Any]], label_of: Mapping[str, int], seed: int) -> list[Step]:
    """The patients of a model in random order.

    Args:
        images: image_id to patient and predicted, as a ``donors.DonorIndex`` holds them.
        label_of: image_id to its label.
        seed: the sweep's.
    """
    order = in_random_order({image_id: image["patient"] for image_id, image in images.items()}, seed)
    predicted = [int(images[image_id]["predicted"]) for image_id in order]
    return [Step(i, p, str(OUTCOMES[label_of[i], p])) for i, p in zip(order, predicted, strict=True)]


def line(cell: Cell, available: int) -> str:
    """How far a cell is."""
    found = cell.found
    bucket = "" if cell.bucket == "all" else f", {cell.bucket}"
    name = f"  {cell.comparison.explainer} vs {CONTROLS[cell.comparison.control].phrase}{bucket}"
    if found is None:
        return f"{name:<48} 0 of {available} patients"
    state = found.decision if found.decision != "undecided" else "going on" if found.n < available else "undecided"
    return (
        f"{name:<48}{found.n:>4} of {available} patients   largest e-value {np.exp(found.log_e):<8.3g} win rate "
        f"{found.win_rate:.3f} [{found.lower:.3f}, {found.upper:.3f}]   {state}"
    )


def sentence(trial_id: str, cell: Cell, available: int) -> str:
    """What a cell shows, in words: no more than its interval says."""
    (explainer, rule, control), found = cell.comparison, cell.found
    bucket = "" if cell.bucket == "all" else f", {cell.bucket}"
    target = "" if rule == "pneumonia" else f", target {rule}"
    subject = f"{title(explainer)} on {trial_id}{bucket}{target}"
    against = CONTROLS[control].phrase or f"the control {control}"
    if found is None:
        why = "no patient in this bucket" if not available else "no map or no draw to compare"
        return f"{subject}: not shown better than {against} ({why})."
    patients = f"all {found.n} patients" if found.n == available else f"{found.n} patient{'s' * (found.n != 1)}"
    numbers = f"({patients}, win rate {found.win_rate:.3f} [{found.lower:.3f}, {found.upper:.3f}])"
    if found.decision == "better":
        return f"{subject}: more faithful than {against} {numbers}."
    if found.decision == "futile":
        return f"{subject}: beats {against} in less than {cell.futile:.0%} of patients {numbers}."
    return f"{subject}: not shown better than {against} {numbers}."


def title(explainer: str) -> str:
    """An explainer's name in print, from its caption; maps from outside have the name that they were given.

    >>> title("gradcam"), title("rise")
    ('Grad-CAM', 'RISE')
    """
    if explainer not in EXPLAINERS:
        return explainer
    return re.split(r"[:(,]", EXPLAINERS[explainer].caption)[0].strip()
