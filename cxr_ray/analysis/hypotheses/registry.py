"""The hypotheses, each one entry: its question, its function and the line that its interval is judged against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from cxr_ray.analysis.hypotheses import h1_shortcuts, h2_imbalance, h3_plausibility
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.rows import Row
from cxr_ray.registry import Registry


@dataclass(frozen=True)
class Hypothesis:
    """What the table and the page need of a hypothesis.

    Attributes:
        question: for the page.
        rows: (inputs, test predictions with patient and variant, subject, bootstrap samples) to its rows; the first
            is judged, the others are secondary outcomes.
        per: judged of each variant (subject: the variant; test: its images), or once of the pair (subject; test: all).
        unit: of the judged effect.
        margin: effects within it do not count.
        line: what the whole interval must pass.
        side: 1: an effect above the line supports the hypothesis; -1: one below.
        line_name: of the line, in reasons.
    """

    question: str
    rows: Callable[[Inputs, pd.DataFrame, str, int], Iterable[Row]]
    per: Literal["variant", "pair"]
    unit: str
    margin: float
    line: float
    side: Literal[1, -1] = 1
    line_name: str = "the margin"


TESTED = Registry(
    "hypothesis",
    {
        "H1": Hypothesis(
            "Shortcuts: where it calls a NORMAL image PNEUMONIA, does the model lean on borders and corners, where "
            "markers lie?",
            h1_shortcuts.shortcuts,
            per="variant",
            unit="log-odds",
            margin=h1_shortcuts.MARGIN,
            line=h1_shortcuts.MARGIN,
        ),
        "H2": Hypothesis(
            "Imbalance: does training on unbalanced classes push the model towards PNEUMONIA?",
            h2_imbalance.imbalance,
            per="pair",
            unit="share",
            margin=h2_imbalance.MARGIN,
            line=h2_imbalance.MARGIN,
        ),
        "H3": Hypothesis(
            "Plausible but unfaithful: can a map look right, in the lungs and not diffuse, where the model did not use "
            "what it shows?",
            h3_plausibility.plausibility,
            per="variant",
            unit="share",
            margin=h3_plausibility.MARGIN,
            line=h3_plausibility.LINE,
            side=-1,
            line_name="chance and margin",
        ),
    },
)
