"""Faithfulness beside localisation: known correlations and counts."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from cxr_ray.analysis.agreement.plausibility import plausibility_rows, points, rank_correlation
from cxr_ray.schemas import AGREEMENT


def test_the_correlation_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 50), rng.integers(0, 6, 50) + rng.integers(0, 6, 50)
    value, low, high = rank_correlation(x.astype(float), y.astype(float), np.arange(50), seed=0)
    assert value == pytest.approx(spearmanr(x, y).statistic)
    assert low < value < high


def test_orders_that_agree_and_are_reversed_are_one_and_minus_one():
    x = np.arange(30.0)
    assert rank_correlation(x, x**3, np.arange(30), seed=0) == pytest.approx((1, 1, 1))
    assert rank_correlation(x, -x, np.arange(30), seed=0) == pytest.approx((-1, -1, -1))


def test_without_variation_there_is_no_correlation_and_under_20_patients_no_interval():
    x = np.arange(30.0)
    assert np.isnan(rank_correlation(x, np.ones(30), np.arange(30), seed=0)).all()
    value, low, high = rank_correlation(x, x, np.arange(30) % 19, seed=0)
    assert value == pytest.approx(1)
    assert np.isnan([low, high]).all()


def test_the_interval_covers_no_correlation_95_times_of_100():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        x, y = rng.normal(size=(2, 60))
        _, low, high = rank_correlation(x, y, np.arange(60), seed=0, n_boot=300)
        covered += low <= 0 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_rows_count_the_images_that_win_in_one_alone():
    ids = list("abcd")
    same = {"image_id": ids, "explainer": "gradcam", "control": "shifted"}
    faithfulness = pd.DataFrame({**same, "gap": [1.0, 2.0, -1.0, np.nan], "win_rate": [1.0, 0.75, 0.0, np.nan]})
    localisation = pd.DataFrame({**same, "metric": "rank", "outcome": "TP", "gap": [-0.1, 0.2, 0.3, 0.4]})
    localisation["win_rate"] = [0.5, 1.0, 1.0, 1.0]
    both = points(faithfulness, localisation)
    assert both["image_id"].tolist() == ["a", "b", "c"]  # d has no advantage in faithfulness
    found = list(plausibility_rows(both, pd.Series({i: i for i in ids}), "m", "pneumonia", seed=0))
    AGREEMENT.from_rows(found)
    rows = {r["statistic"]: r for r in found}
    assert rows["spearman"]["value"] == pytest.approx(-0.5)
    assert (rows["faithful_alone"]["count"], rows["plausible_alone"]["count"]) == (1, 1)  # half the draws is no win
    assert {(r["kind"], r["axis"], r["a"], r["b"], r["n"]) for r in found} == {
        ("plausibility", "rank", "gradcam", "shifted", 3)
    }
