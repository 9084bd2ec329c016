"""Reliability of a fill: the intraclass correlation against its textbook value and planted variances."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.agreement.reliability import intraclass, reliability_rows


def test_the_textbook_value():
    """Shrout & Fleiss (1979), table 2: six subjects, four judges; ICC(2,1) is 0.29."""
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    value, lower, upper = intraclass(ratings.T, np.arange(4), seed=0)  # here judges are images: the rows
    assert value == pytest.approx(0.29, abs=0.005)
    assert np.isnan([lower, upper]).all()


def test_planted_variances_are_found():
    rng = np.random.default_rng(0)
    explainers, n = rng.normal(0, 2, 400), 300
    values = explainers + rng.normal(0, 1, (n, 1)) + rng.normal(0, 3, (n, 400))
    value, lower, upper = intraclass(values, np.arange(n), seed=0)
    truth = explainers.var(ddof=1) / (explainers.var(ddof=1) + 1 + 9)
    assert value == pytest.approx(truth, abs=0.02)
    assert lower < truth < upper


@pytest.mark.parametrize(("shift", "value"), [([0, 1, 5], 1.0), ([0, 0, 0], np.nan)])
def test_images_that_agree_wholly_are_fully_reliable(shift, value):
    found = intraclass(np.tile(np.array(shift, float), (30, 1)), np.arange(30), seed=0)[0]
    assert found == pytest.approx(value, nan_ok=True)


def test_rows_of_a_fill_hold_the_correlation_and_what_random_gains():
    rng = np.random.default_rng(0)
    values = pd.DataFrame(
        [
            {"image_id": f"i{i}", "explainer": e, "grid": "7", "fill": "mean", "value": v + rng.normal()}
            for e, v in {"gradcam": 2.0, "random": 0.0}.items()
            for i in range(30)
        ]
    )
    known = {"grid": "7", "fill": "mean", "mean": 0.25, "lower": 0.125, "upper": 0.375, "mean_p": 0.001, "n": 30}
    summary = pd.DataFrame(
        [{"explainer": e, "control": c, **known} for e in ("gradcam", "random") for c in ("none", "shifted")]
    )
    patients = pd.Series({f"i{i}": f"p{i}" for i in range(30)})
    icc, gain = reliability_rows(values, patients, summary, "m", seed=0)
    assert (icc["statistic"], icc["a"], icc["b"], icc["n"]) == ("icc", "mean", "7", 30)
    assert 0 < icc["low"] < icc["value"] < icc["high"] < 1
    assert (gain["statistic"], gain["control"]) == ("random_over_shifted", "shifted")
    assert (gain["value"], gain["low"]) == (0.25, 0.125)
