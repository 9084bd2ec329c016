"""One rule for all verdicts, and the rows of the table `hypotheses` that it judges.

H1 and H3 are judged of each variant (a given checkpoint is one), its trials pooled: patients are resampled, models are
not. H2 is judged of the pair, resampling seeds and patients.
"""

from __future__ import annotations

import pandas as pd

from cxr_ray.analysis.hypotheses.h2_imbalance import PAIR
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.analysis.hypotheses.rows import Row
from cxr_ray.analysis.resampling import holm

ALPHA = 0.05


def hypothesis_rows(inputs: Inputs, n_boot: int = 1000) -> list[Row]:
    """The rows of `hypotheses`: what is judged, and the secondary outcomes.

    Holm corrects over the verdict rows of one variant, those of the pair being among them; the pair's own correction is
    that of `plain`. One without a p counts as 1: what could not be tested spares the others nothing.
    """
    test = inputs.test
    variants = [v for v in dict.fromkeys(inputs.trials["variant"]) if v in set(test["variant"])] or ["none"]
    by_subject: dict[str, list[Row]] = {}
    secondary: list[Row] = []
    for variant in variants:
        by_subject[variant] = _judged("variant", inputs, test[test["variant"] == variant], variant, n_boot, secondary)
    of_pair = _judged("pair", inputs, test, "-".join(PAIR), n_boot, secondary)
    main = PAIR[0] if PAIR[0] in variants else variants[0]
    for variant, of_variant in by_subject.items():
        _correct([*of_variant, *of_pair], variant, len(of_variant) + len(of_pair) * (variant == main))
    judged = [*(row for rows in by_subject.values() for row in rows), *of_pair]
    for row in judged:
        _judge(row)
    return sorted([*judged, *secondary], key=lambda r: (r["hypothesis"], r["role"] != "verdict"))


def verdict(lower: float, upper: float, p_holm: float, threshold: float) -> str:
    """One rule for all: supported, not supported or undecided, of "the effect is above the threshold".

    Supported: the 95% interval lies above the threshold and p_holm < 0.05. Not supported: it lies below, be it within
    the margin or beyond its other end. Else, or without an interval, undecided.

    >>> verdict(0.6, 0.9, 0.01, 0.5), verdict(0.1, 0.4, 0.01, 0.5), verdict(0.2, 0.9, 0.01, 0.5)
    ('supported', 'not supported', 'undecided')
    """
    if lower > threshold and p_holm < ALPHA:
        return "supported"
    return "not supported" if upper < threshold else "undecided"


def _judged(per: str, inputs: Inputs, test: pd.DataFrame, subject: str, n_boot: int, secondary: list[Row]) -> list[Row]:
    """The rows to judge of one subject; the others are added to ``secondary``."""
    judged = []
    for hypothesis in TESTED.values():
        if hypothesis.per == per:
            first, *others = hypothesis.rows(inputs, test, subject, n_boot)
            judged.append({**first, "role": "verdict", "margin": hypothesis.margin, "unit": hypothesis.unit})
            secondary += others
    return judged


def _correct(rows: list[Row], variant: str, n_corrected: int) -> None:
    """Adds Holm's correction over ``rows`` to the first ``n_corrected`` of them."""
    adjusted = holm([1.0 if row["p"] is None else row["p"] for row in rows])
    *names, last = sorted(row["hypothesis"] for row in rows)
    family = f"{', '.join(names)} and {last} | {variant}"
    for row, p_holm in list(zip(rows, adjusted, strict=True))[:n_corrected]:
        corrected = None if row["p"] is None else float(p_holm)
        row |= {"family": family, "family_size": len(rows), "p_holm": corrected}


def _judge(row: Row) -> None:
    """Adds verdict and, where there is none yet, its reason."""
    row["verdict"] = "undecided"
    if row["reason"] is not None:
        return
    hypothesis = TESTED[row["hypothesis"]]
    line, lower, upper, p_holm = hypothesis.line, row["lower"], row["upper"], row["p_holm"]
    ends = (lower, upper) if hypothesis.side > 0 else (-upper, -lower)
    row["verdict"] = verdict(*ends, p_holm, hypothesis.side * line)
    where = f"the 95% interval [{lower:.3g}, {upper:.3g}] lies"
    side = "above" if lower > line else "below" if upper < line else "on both sides of"
    limit = f"{line:g} {row['unit']} ({hypothesis.line_name})"
    row["reason"] = f"{where} {side} {limit}; p {p_holm:.2g} after Holm's correction"
