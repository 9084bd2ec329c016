"""The rows of the table `hypotheses`: each hypothesis judged, its family, and whom the verdict is about.

H1 and H3 are judged of each variant (a given checkpoint is one), H2 of the pair. Where a variant has several trained
models, H2 and H3 resample these with the patients. H1 averages them first, since they share their donors, and says so.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from cxr_ray.analysis.hypotheses.h2_imbalance import PAIR
from cxr_ray.analysis.hypotheses.inputs import Inputs
from cxr_ray.analysis.hypotheses.margins import INCONCLUSIVE, NOT_APPLICABLE, Margin, verdict
from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.analysis.hypotheses.rows import Row
from cxr_ray.analysis.resampling import holm


def hypothesis_rows(inputs: Inputs, n_boot: int = 1000) -> list[Row]:
    """The rows of `hypotheses`: what is judged, and the secondary outcomes.

    Holm corrects over the applicable verdict rows of one variant, those of the pair being among them; the pair's own
    correction is that of `plain`. An applicable one without a p counts as 1: what could not be tested spares the others
    nothing. One that nothing in the sweep asks is in no family.
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


def _judged(per: str, inputs: Inputs, test: pd.DataFrame, subject: str, n_boot: int, secondary: list[Row]) -> list[Row]:
    """The rows to judge of one subject; the others are added to ``secondary``."""
    judged = []
    for hypothesis in TESTED.values():
        if hypothesis.per == per:
            first, *others = hypothesis.rows(inputs, test, subject, n_boot)
            ends = {"margin_low": hypothesis.margin.low, "margin_high": hypothesis.margin.high}
            known = {"role": "verdict", "unit": hypothesis.unit, "about": _about(inputs, subject, first)}
            own = {name: first[name] for name in (*ends, "about") if first[name] is not None}
            judged.append({**first, **ends, **known, **own})
            secondary += others
    return judged


def _about(inputs: Inputs, subject: str, row: Row) -> str | None:
    """Whom a verdict is about: a given model, one trained model, or variants whose trained models are resampled."""
    models = row["n_trials"] or 0
    if models == 0:
        return None
    if subject == "-".join(PAIR):
        return f"the variants {' and '.join(PAIR)}: {models // 2} trained pairs, resampled with the patients"
    if inputs.trials.loc[inputs.trials["variant"] == subject, "seed"].isna().all():
        return f"the given model {subject}"
    if models == 1:
        return f"one trained model of the variant {subject}: another seed may differ"
    return f"the variant {subject}: {models} trained models, resampled with the patients"


def _correct(rows: list[Row], variant: str, n_corrected: int) -> None:
    """Adds Holm's correction over the applicable ones of ``rows`` to those among the first ``n_corrected``."""
    corrected = [row for row in rows[:n_corrected] if row["verdict"] != NOT_APPLICABLE]
    others = [row for row in rows[n_corrected:] if row["verdict"] != NOT_APPLICABLE]
    family = [*corrected, *others]
    adjusted = holm([1.0 if row["p"] is None else row["p"] for row in family])
    *names, last = sorted(row["hypothesis"] for row in family) or [""]
    members = f"{', '.join(names)} and {last}" if names else last
    for row, p_holm in zip(corrected, adjusted, strict=False):
        p_known = None if row["p"] is None else float(p_holm)
        row |= {"family": f"{members} | {variant}", "family_size": len(family), "p_holm": p_known}


def _judge(row: Row) -> None:
    """Adds the verdict and, where there is none yet, its reason."""
    row["verdict"] = row["verdict"] or INCONCLUSIVE
    if row["reason"] is not None:
        return
    hypothesis = TESTED[row["hypothesis"]]
    lower, upper, lower_90, upper_90, p_holm = (
        np.nan if row[name] is None else row[name] for name in ("lower", "upper", "lower_90", "upper_90", "p_holm")
    )
    margin = Margin(row["margin_low"], row["margin_high"])
    row["verdict"] = verdict(margin, (lower, upper), (lower_90, upper_90), p_holm)
    found = hypothesis.says.get(row["verdict"], "neither beyond nor within the margin is shown")
    inner = "" if np.isnan(lower_90) else f", 90% interval [{lower_90:.3g}, {upper_90:.3g}]"
    row["reason"] = (
        f"{found}: 95% interval [{lower:.3g}, {upper:.3g}]{inner}, margin {margin} {row['unit']}; p "
        f"{p_holm:.2g} after Holm's correction"
    )
