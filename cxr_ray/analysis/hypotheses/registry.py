"""The hypotheses, each one entry: its question, its function, the margin it is judged against, and what that says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from cxr_ray.analysis.hypotheses import h1_shortcuts, h2_imbalance, h3_plausibility
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import ABOVE, BELOW, WITHIN, Margin
from cxr_ray.analysis.hypotheses.rows import Row
from cxr_ray.registry import Registry


@dataclass(frozen=True)
class Hypothesis:
    """What the table and the page need of a hypothesis.

    Attributes:
        question: for the page.
        rows: (inputs, test predictions with patient and variant, subject, bootstrap samples) to its rows; the first
            is judged, the others are secondary outcomes. The first holds effect, lower, upper, lower_90, upper_90 and
            p against the margin (``rows.means`` gives them); or a reason, which makes it inconclusive; or a reason and
            the verdict not applicable, where nothing in the sweep asks the question.
        per: judged of each variant (subject: the variant; test: its images), or once of the pair (subject; test: all).
        unit: of the judged effect.
        margin: effects that do not count.
        says: what above, within and below the margin mean here, in words.
        limits: what no verdict on it can show; stands beside each.
    """

    question: str
    rows: Callable[[Inputs, pd.DataFrame, str, int], Iterable[Row]]
    per: Literal["variant", "pair"]
    unit: str
    margin: Margin
    says: Mapping[str, str]
    limits: str = ""


TESTED = Registry(
    "hypothesis",
    {
        "H1": Hypothesis(
            "Shortcuts: does the model read the class from the corners of an image, where markers lie?",
            h1_shortcuts.shortcuts,
            per="variant",
            unit="log-odds",
            margin=h1_shortcuts.MARGIN,
            says={
                ABOVE: "uses class information from the corners (or a known marker) beyond the margin: a shortcut "
                "candidate",
                WITHIN: "uses no class information from the corners (or a known marker) beyond the margin",
                BELOW: "corners (or known markers) of PNEUMONIA images speak for NORMAL, beyond the margin",
            },
            limits=h1_shortcuts.LIMITS,
        ),
        "H2": Hypothesis(
            "Imbalance: does training on unbalanced classes push the model towards PNEUMONIA?",
            h2_imbalance.imbalance,
            per="pair",
            unit="share",
            margin=h2_imbalance.MARGIN,
            says={
                ABOVE: "unbalanced training makes more false positives",
                WITHIN: "unbalanced and balanced training make about as many false positives",
                BELOW: "unbalanced training makes fewer false positives",
            },
        ),
        "H3": Hypothesis(
            "Plausible but unfaithful: do maps that lie on the lungs show no better what the model used than another "
            "patient's map, or the same map elsewhere?",
            h3_plausibility.plausibility,
            per="variant",
            unit="share",
            margin=h3_plausibility.MARGIN,
            says={
                ABOVE: "plausible maps are faithful: they beat the harder control more often than the line",
                BELOW: "plausible but unfaithful: plausible maps beat the harder control less often than the line",
            },
        ),
    },
)
