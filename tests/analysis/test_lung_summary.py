"""Lung enrichment by bucket, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.lung_summary import area_of, lung_rows
from cxr_ray.schemas import LUNG_SUMMARY

ENRICHMENT = {"none": [0.5, 1.25, 1.75, np.nan], "shifted": [1.0, 1.0, 1.25, 1.0]}


@pytest.fixture
def lungs():
    same = {"explainer": "gradcam", "image_id": list("abcd"), "target": 1, "outcome": ["TP", "TP", "FP", "FP"]}
    frames = [
        pd.DataFrame({**same, "control": control, "mask": mask, "draws": 2, "area": 0.25, "enrichment": values})
        for control, values in ENRICHMENT.items()
        for mask in ("given", "eroded")
    ]
    return pd.concat(frames).assign(area=lambda f: np.where(f["mask"] == "given", 0.25, 0.125))


def test_maps_and_controls_have_means_and_maps_have_shares(lungs):
    patients = pd.Series({"a": "p", "b": "p", "c": "q", "d": "r"})
    found = lung_rows(lungs, patients, seed=0, n_boot=20)
    LUNG_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in found])
    rows = {(r["bucket"], r["control"], r["mask"], r["quantity"]): r for r in found}
    assert len(rows) == len(found)
    own = rows["all", "none", "given", "enrichment"]
    assert (own["value"], own["n"], own["n_patients"], own["area"]) == (pytest.approx(3.5 / 3), 3, 2, 0.25)
    assert rows["TP", "shifted", "given", "enrichment"]["value"] == 1.0
    assert rows["TP", "shifted", "given", "advantage"]["value"] == pytest.approx(-0.125)
    assert rows["all", "shifted", "given", "advantage"]["n"] == 3  # one map has no enrichment
    assert rows["all", "none", "given", "above_1"]["value"] == pytest.approx(2 / 3)
    assert rows["all", "none", "given", "above_1.5"]["value"] == pytest.approx(1 / 3)
    assert ("all", "shifted", "given", "above_1") not in rows
    assert rows["FP", "none", "eroded", "enrichment"]["area"] == 0.125


def test_intervals_are_over_patients():
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 0.2, 60)
    ids = [f"i{k}" for k in range(60)]
    frame = pd.DataFrame({"explainer": "gradcam", "image_id": ids, "target": 1, "outcome": "TP", "control": "none"})
    frame = frame.assign(mask="given", draws=1, area=0.25, enrichment=values)
    found = {r["quantity"]: r for r in lung_rows(frame, pd.Series(ids, index=ids), seed=0) if r["bucket"] == "all"}
    error = values.std(ddof=1) / np.sqrt(60)
    assert found["enrichment"]["upper"] - found["enrichment"]["value"] == pytest.approx(2 * error, rel=0.1)
    assert found["above_1"]["lower"] < (values > 1).mean() < found["above_1"]["upper"]


def test_the_area_of_the_lungs_is_over_images(lungs):
    assert area_of(lungs) == 0.25
    assert np.isnan(area_of(lungs[:0]))
