"""Effects of regions are differences of scores, with intervals over patients."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import resampling
from cxr_ray.analysis.region_summary import region_effects, region_rows
from cxr_ray.schemas import REGION_SUMMARY, REGIONS
from tests.builders.regions import marker_rows


def test_region_effects_are_the_untouched_minus_the_changed_score():
    rows = marker_rows()
    first = rows[rows["image_id"] == "i0"]
    drops = (first["logit_full_image"] - first["logit_target"]).to_numpy()
    (effect,) = region_effects(rows).query("image_id == 'i0'").to_dict("records")
    assert effect["effect_logodds"] == pytest.approx(drops[0])
    assert effect["matched_logodds"] == pytest.approx(drops[1:].mean())
    assert effect["advantage_logodds"] == pytest.approx(drops[0] - drops[1:].mean())
    assert (effect["effect_prob"], effect["draws"]) == (0.25, 2)


def test_region_rows_are_means_with_intervals_over_patients():
    effects = region_effects(marker_rows()).assign(outcome="TN")
    patients = pd.Series({f"i{i}": f"p{i // 2 if i < 10 else i}" for i in range(30)})
    rows = region_rows(effects, patients, 3)
    REGION_SUMMARY.from_rows([{"trial_id": "m", "target_rule": "pneumonia", **row} for row in rows])
    assert len(rows) == 2 * 2 * 3  # buckets, scales, quantities
    (row,) = (r for r in rows if (r["bucket"], r["scale"], r["quantity"]) == ("TN", "logodds", "advantage"))
    lower, upper = resampling.patient_bootstrap(
        effects[["advantage_logodds"]], effects["image_id"].map(patients), seed=3
    )
    assert row["mean"] == pytest.approx(effects["advantage_logodds"].mean())
    assert (row["lower"], row["upper"]) == pytest.approx((lower[0], upper[0]))
    assert (row["n"], row["n_patients"], row["draws"]) == (30, 25, 2)
    assert row["share_of_area"] == pytest.approx(0.1)


def test_an_edit_has_no_control_and_its_effect_alone():
    edits = marker_rows(3).query("control == 'none'").assign(region="equalize", fill="edit")
    effects = region_effects(edits).assign(outcome="TN")
    rows = region_rows(effects, pd.Series({f"i{i}": f"p{i}" for i in range(3)}), 0)
    assert {(r["quantity"], r["draws"]) for r in rows} == {("effect", 0)}
    assert np.isnan(rows[0]["lower"])


def test_no_regions_have_no_rows():
    empty = REGIONS.schema.empty_table().to_pandas()
    assert region_rows(region_effects(empty).assign(outcome=None), pd.Series(dtype=str), 0) == []
