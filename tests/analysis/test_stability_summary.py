"""Stability and infidelity over images, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.stability_summary import stability_rows
from cxr_ray.schemas import STABILITY, STABILITY_SUMMARY

PATIENTS = pd.Series({"a": "p", "b": "q"})


def frame(*rows) -> pd.DataFrame:
    """Rows of (image_id, perturbation, size, control, draw, values)."""
    names = ("image_id", "perturbation", "size", "control", "draw")
    empty = dict.fromkeys(STABILITY.columns, np.nan) | {"explainer": "gradcam", "target": 1}
    return pd.DataFrame([{**empty, **dict(zip(names, row[:-1], strict=True)), **row[-1]} for row in rows])


ROWS = frame(
    ("a", "noise", 0.1, "none", 0, {"sensitivity": 0.1, "spearman": 0.9, "ssim": 0.8, "logit_change": -1.0}),
    ("a", "noise", 0.1, "none", 1, {"sensitivity": 0.3, "spearman": 0.7, "ssim": 0.6, "logit_change": 3.0}),
    ("b", "noise", 0.1, "none", 0, {"sensitivity": 0.2, "spearman": 0.5, "ssim": 0.5, "logit_change": 0.5}),
    ("b", "noise", 0.1, "none", 1, {"sensitivity": 0.5, "spearman": np.nan, "ssim": 0.5, "logit_change": 0.5}),
    ("a", "none", np.nan, "shifted", 0, {"sensitivity": 1.0, "spearman": 0.1, "ssim": 0.0}),
    ("a", "none", np.nan, "shifted", 1, {"sensitivity": 2.0, "spearman": 0.3, "ssim": 0.2}),
    ("b", "none", np.nan, "shifted", 0, {"sensitivity": 1.0, "spearman": 0.0, "ssim": 0.1}),
    ("a", "square", np.nan, "none", 0, {"infidelity": 1.0, "unexplained": 0.25}),
    ("b", "square", np.nan, "none", 0, {"infidelity": 3.0, "unexplained": 0.75}),
    ("a", "square", np.nan, "shifted", 0, {"infidelity": 2.0, "unexplained": 0.5}),
    ("b", "square", np.nan, "shifted", 0, {"infidelity": 2.0, "unexplained": 0.5}),
)


def by_quantity(rows: pd.DataFrame):
    found = stability_rows(rows, PATIENTS, 0)
    STABILITY_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in found])
    keys = [(r["perturbation"], r["quantity"], r["control"]) for r in found]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, found, strict=True))


def test_the_largest_of_the_copies_and_the_mean_of_the_rest():
    rows = by_quantity(ROWS)
    assert rows["noise", "max_sensitivity", "none"]["mean"] == pytest.approx((0.3 + 0.5) / 2)
    assert rows["noise", "ssim", "none"]["mean"] == pytest.approx((0.7 + 0.5) / 2)
    assert rows["noise", "logit_change", "none"]["mean"] == pytest.approx((2 + 0.5) / 2)
    assert rows["noise", "ssim", "none"]["draws"] == 2
    assert rows["square", "unexplained", "none"]["mean"] == pytest.approx(0.5)


def test_an_image_of_which_a_copy_has_no_value_has_none():
    rows = by_quantity(ROWS)
    assert rows["noise", "spearman", "none"]["mean"] == pytest.approx(0.8)
    assert rows["noise", "spearman", "none"]["n"] == 1
    assert rows["noise", "spearman", "shifted"]["n"] == 1
    assert rows["noise", "spearman", "shifted"]["control_mean"] == pytest.approx(0.2)  # of that image alone


def test_an_advantage_is_above_0_where_the_map_is_better():
    rows = by_quantity(ROWS)
    assert rows["noise", "max_sensitivity", "shifted"]["mean"] == pytest.approx(((1.5 - 0.3) + (1.0 - 0.5)) / 2)
    assert rows["noise", "max_sensitivity", "shifted"]["control_mean"] == pytest.approx(1.25)
    assert rows["noise", "spearman", "shifted"]["mean"] == pytest.approx(0.8 - 0.2)
    assert rows["noise", "ssim", "shifted"]["mean"] == pytest.approx(((0.7 - 0.1) + (0.5 - 0.1)) / 2)
    assert rows["square", "infidelity", "shifted"]["mean"] == pytest.approx(((2 - 1) + (2 - 3)) / 2)
    assert rows["square", "unexplained", "shifted"]["mean"] == pytest.approx(0)
    assert ("noise", "logit_change", "shifted") not in rows


def test_sizes_stand_apart():
    more = ROWS[ROWS["perturbation"] == "noise"].assign(size=0.2, spearman=0.0)
    found = stability_rows(pd.concat([ROWS, more]), PATIENTS, 0)
    means = {r["size"]: r["mean"] for r in found if (r["quantity"], r["control"]) == ("spearman", "none")}
    assert means == {0.1: pytest.approx(0.8), 0.2: 0.0}
