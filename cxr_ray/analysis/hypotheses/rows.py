"""A row of the table `hypotheses`, and the means, tests and counts in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.crossed import CROSSED_METHOD, Crossed, crossed, mean_of
from cxr_ray.analysis.hypotheses.margins import Margin
from cxr_ray.analysis.resampling import CI_METHOD, MIN_PATIENTS, patient_bootstrap, sign_flip
from cxr_ray.schemas import HYPOTHESES

Row = dict[str, Any]

ALTERNATIVE = "the effect lies beyond the margin, on the side where the estimate is"


def row(hypothesis: str, subject: str, quantity: str, unit: str, **values: Any) -> Row:
    """A row of nulls with these values; a secondary outcome unless they say otherwise."""
    made = dict.fromkeys(HYPOTHESES.columns) | {"hypothesis": hypothesis, "subject": subject, "quantity": quantity}
    made |= {"unit": unit, "role": "secondary", **values}
    made = {k: _known(v) if isinstance(v, float) else v for k, v in made.items()}
    if made["lower"] is None and made["reason"] is None:
        n = made["n_patients"] or 0
        few = f"{n} patients: under {MIN_PATIENTS} there is no interval"
        made["reason"] = few if n < MIN_PATIENTS else "too few patients differ for an interval"
    return made


def means(part: pd.DataFrame, column: str, seed: int, n_boot: int, margin: Margin | None = None) -> Row:
    """Mean of a column over images, with its intervals, its test against a margin, and the counts.

    Of one model, patients are resampled; of several, models and patients, and the mean is over models.

    Args:
        part: trial_id, image_id, patient_id and the column.
        column: the quantity; NaN is left out.
        seed: of bootstrap and test.
        n_boot: bootstrap samples.
        margin: that p is against; None: no test.
    """
    part = part[part[column].notna()]
    models = part["trial_id"].nunique()
    if models < 2:
        return counts(part) | _of_one(part, column, seed, n_boot, margin)
    if part["patient_id"].nunique() < MIN_PATIENTS:
        effect = float(part.groupby("trial_id")[column].mean().mean())
        return counts(part) | {"effect": effect, "ci_method": CROSSED_METHOD}
    wide = part.pivot(index=["image_id", "patient_id"], columns="trial_id", values=column)
    patients = wide.index.get_level_values("patient_id")
    found = crossed(mean_of(wide.to_numpy(float), patients), patients.nunique(), models, seed, n_boot)
    return counts(part) | of_models(found, margin)


def _of_one(part: pd.DataFrame, column: str, seed: int, n_boot: int, margin: Margin | None) -> Row:
    values_N1, patients = part[[column]].to_numpy(float), part["patient_id"]
    (lower, upper), (lower_90, upper_90) = (
        patient_bootstrap(values_N1, patients, n_boot, seed=seed, level=level) for level in (0.95, 0.90)
    )
    effect = float(part[column].mean())
    found = {"effect": effect, "lower": lower[0], "upper": upper[0], "lower_90": lower_90[0], "upper_90": upper_90[0]}
    found |= {"ci_method": CI_METHOD}
    if margin is None:
        return found
    beyond_N2 = np.concatenate([values_N1 - margin.high, margin.low - values_N1], axis=1)
    above, below = sign_flip(beyond_N2, patients, seed=seed).tolist()
    test = "sign-flip of the patients' sums of effect minus the margin's end"
    return found | {"p": margin.p(effect, above, below), "test": test, "alternative": ALTERNATIVE}


def of_models(found: Crossed, margin: Margin | None = None) -> Row:
    """Effect, intervals and, against a margin, p of a mean over models."""
    (lower, upper), (lower_90, upper_90) = found.interval(0.95), found.interval(0.90)
    row: Row = {"effect": found.effect, "lower": lower, "upper": upper, "lower_90": lower_90, "upper_90": upper_90}
    row |= {"ci_method": CROSSED_METHOD}
    if margin is None:
        return row
    p = margin.p(found.effect, found.p_above(margin.high), found.p_below(margin.low))
    return row | {"p": p, "test": "t of the interval, against the margin's end", "alternative": ALTERNATIVE}


def counts(part: pd.DataFrame) -> Row:
    """n is of one model: the most that any has."""
    sizes = part.groupby("trial_id").size()
    return {
        "n_trials": len(sizes),
        "n": int(sizes.max()) if len(sizes) else 0,
        "n_patients": part["patient_id"].nunique(),
    }


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)
