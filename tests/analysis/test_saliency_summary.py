"""Maps counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.saliency_summary import COLUMNS, KINDS, MEANS, saliency_rows
from cxr_ray.schemas import SALIENCY_SUMMARY


def maps():
    """Four maps of one explainer: compact, compact and constant, border, not finite."""
    frame = pd.DataFrame(
        {
            "explainer": "gradcam",
            "image_id": ["a", "b", "c", "d"],
            "target": 1,
            "tied": [0.1, 0.2, 0.6, np.nan],
            "degenerate": [False, True, False, None],
            "concentration": ["compact", "compact", "border", None],
            "border_share": [0.25, 0.5, 0.75, np.nan],
            "corner_share": [0.0, 0.0, 0.3, np.nan],
            "centre_share": [1.0, 0.5, 0.0, np.nan],
            "lung_share": [0.5, np.nan, np.nan, np.nan],
            "half_mass_area": [0.1, 0.2, 0.3, np.nan],
        }
    )
    return frame[list(COLUMNS)].assign(outcome=["TP", "TP", "FP", "FP"])


@pytest.fixture
def rows():
    patients = pd.Series({"a": "p", "b": "p", "c": "q", "d": "r"})
    found = saliency_rows(maps(), patients, lung_area=0.3, seed=0)
    SALIENCY_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in found])
    return {(row["bucket"], row["quantity"]): row for row in found}


def test_each_bucket_has_each_quantity_once(rows):
    assert set(rows) == {(b, q) for b in ("all", "TP", "FP") for q in (*KINDS, *MEANS, "tied")}


def test_shares_of_maps_are_of_all_maps_of_the_bucket(rows):
    expected = {"compact": 2, "border": 1, "diffuse": 0, "not_finite": 1, "constant": 1}
    for kind, count in expected.items():
        row = rows["all", kind]
        assert (row["count"], row["n"], row["n_patients"], row["value"]) == (count, 4, 3, count / 4)
    assert (rows["TP", "compact"]["count"], rows["TP", "compact"]["value"]) == (2, 1.0)


def test_means_are_over_maps_that_have_the_quantity(rows):
    border = rows["all", "border_share"]
    assert (border["value"], border["n"], border["count"]) == (pytest.approx(0.5), 3, None)
    assert border["area"] == pytest.approx(0.36)  # of the outer 10% on each side
    lungs = rows["all", "lung_share"]
    assert (lungs["value"], lungs["n"], lungs["area"]) == (0.5, 1, 0.3)
    assert rows["all", "half_mass_area"]["value"] == pytest.approx(0.2)


def test_tied_is_a_median_without_an_interval(rows):
    tied = rows["all", "tied"]
    assert (tied["value"], tied["n"], tied["n_patients"]) == (pytest.approx(0.2), 3, 2)
    assert tied["lower"] is tied["ci_method"] is None


def test_no_maps_have_no_rows():
    assert saliency_rows(maps().iloc[:0], pd.Series(dtype=str), np.nan, 0) == []
