"""A row of the table `hypotheses`, and the means and counts in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cxr_ray.analysis.resampling import CI_METHOD, MIN_PATIENTS, patient_bootstrap
from cxr_ray.schemas import HYPOTHESES

Row = dict[str, Any]


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


def means(part: pd.DataFrame, column: str, seed: int, n_boot: int) -> Row:
    """Mean of a column over images, with its interval over patients and the counts."""
    part = part[part[column].notna()]
    lower, upper = patient_bootstrap(part[[column]].to_numpy(float), part["patient_id"], n_boot, seed=seed)
    effect = float(part[column].mean())
    return counts(part) | {"effect": effect, "lower": lower[0], "upper": upper[0], "ci_method": CI_METHOD}


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
