"""H3: exact shares, what is plausible, and the reasons to be inconclusive."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tests.builders.hypotheses import false_positives, inputs, judged, map_rows, names, predictions, sweep


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "below margin"), (0.05, "below margin"), (0.5, "above margin"), (0.17, "inconclusive")],
)
def test_h3_verdicts(share, expected):
    ids = names(200)
    p_value = np.where(np.arange(200) < 200 * share, 0.025, 0.5)
    h3 = judged(inputs(**false_positives(100), maps=[map_rows("m", ids, p_value)]))[0]["H3"]
    assert h3["effect"] == pytest.approx(share)
    assert h3["verdict"] == expected
    exact = scipy.stats.binomtest(round(200 * share), 200).proportion_ci(method="exact")
    assert h3["upper"] == pytest.approx(exact.high, abs=1e-3)
    assert h3["lower"] == pytest.approx(exact.low, abs=1e-3)
    less, greater = (scipy.stats.binomtest(round(200 * share), 200, 0.15, a).pvalue for a in ("less", "greater"))
    assert h3["p"] == pytest.approx(min(1, 2 * (less if share < 0.15 else greater)), abs=2e-3)


def test_h3_counts_plausible_maps_alone():
    ids = names(200)
    plausible = np.arange(200) % 4 == 0
    lungs, area = np.where(np.arange(200) % 2, 0.4, 0.6), np.where(np.arange(200) % 4 == 2, 0.4, 0.1)
    rows, secondary = judged(
        inputs(**false_positives(100), maps=[map_rows("m", ids, np.where(plausible, 0.5, 0.025), lungs, area)])
    )
    assert (rows["H3"]["n"], rows["H3"]["effect"]) == (50, 0.0)
    (others,) = (r for r in secondary if "implausible" in r["quantity"])
    assert (others["n"], others["effect"]) == (150, 1.0)
    assert others["verdict"] is others["p"] is others["margin_high"] is None


def test_images_of_one_patient_count_as_one_where_they_agree():
    ids = names(200)
    patients = pd.Series([f"p{i // 4}" for i in range(200)], index=ids)
    p_value = np.where(np.arange(200) % 80 < 8, 0.025, 0.5)  # whole patients
    maps = [map_rows("m", ids, p_value)]
    h3 = judged(inputs(**false_positives(100), maps=maps, patients=patients))[0]["H3"]
    exact = scipy.stats.binomtest(6, 50).proportion_ci(method="exact")
    assert h3["n_patients"] == 50
    assert h3["upper"] == pytest.approx(exact.high, abs=0.02)


def test_h3_inconclusive_where_something_is_missing():
    ids = names(60)
    maps = [map_rows("m", ids, 0.5)]
    few_draws = judged(inputs(sweep(controls={"shifted": 38}), **false_positives(30), maps=maps))[0]["H3"]
    assert "38 draws; set 39" in few_draws["reason"]
    sequential = sweep(controls={"shifted": 5}, sequential={"max_draws": 99})
    assert judged(inputs(sequential, **false_positives(30), maps=maps))[0]["H3"]["effect"] == 0
    no_lungs = judged(inputs(**false_positives(30), maps=[map_rows("m", ids, 0.5, lung_share=np.nan)]))[0]["H3"]
    assert "lung masks" in no_lungs["reason"]
    assert no_lungs["verdict"] == "not applicable"
    no_control = judged(inputs(sweep(controls={"pixel_random": 39}), **false_positives(30), maps=maps))[0]["H3"]
    assert "shifted" in no_control["reason"]


def test_confidence_correlates_as_scipy_says():
    rng = np.random.default_rng(0)
    logit, gap = rng.uniform(0.1, 5, 60), rng.normal(size=60)
    given = inputs(
        predicted=[predictions("m", logit, np.repeat([0, 1], 30))], maps=[map_rows("m", names(60), 0.5, gap=gap)]
    )
    (row,) = (r for r in judged(given)[1] if r["unit"] == "Spearman's rho")
    assert row["effect"] == pytest.approx(scipy.stats.spearmanr(logit, gap).statistic)
    assert row["lower"] < row["effect"] < row["upper"]
