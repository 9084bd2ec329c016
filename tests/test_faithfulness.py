"""Areas, drops, gaps and p-values against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc

from cxr_ray import faithfulness

DONE = np.array([0, 0.1, 0.5, 1.0])
scores = hnp.arrays(np.float64, (2, 4), elements=st.floats(-30, 30, width=32))


@given(scores, scores)
def test_areas_are_trapezoids_and_abpc_is_insertion_minus_deletion(morf, lerf):
    names, values = faithfulness.metrics({"morf": morf, "lerf": lerf}, [0.1, 0.5], DONE)
    by_name = {name: values[:, i] for i, (name, _) in enumerate(names) if name != "drop"}
    for i in range(2):
        assert by_name["deletion_auc"][i] == pytest.approx(auc(DONE, morf[i]), abs=1e-9)
        # insertion of share k shows what lerf shows at 1 - k
        assert by_name["insertion_auc"][i] == pytest.approx(auc(1 - DONE[::-1], lerf[i][::-1]), abs=1e-9)
    assert by_name["abpc"] == pytest.approx(by_name["insertion_auc"] - by_name["deletion_auc"])


def test_drops_and_missing_orders():
    morf = np.array([[5.0, 4.0, 1.0, 0.0]])
    names, values = faithfulness.metrics({"morf": morf}, [0.1, 0.5], DONE)
    assert names[1:] == [("drop", 0.1), ("drop", 0.5)]
    assert values[0, 1:].tolist() == [1.0, 4.0]
    assert [n for n, _ in faithfulness.metrics({"lerf": morf}, [0.1, 0.5], DONE)[0]] == ["insertion_auc"]


def test_comparison_by_hand():
    value = np.array([[2.0, 2.0]])
    draws = np.array([[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]])
    out = faithfulness.compare(value, draws, np.array([True, False]))
    assert out["control_mean"].tolist() == pytest.approx(np.array([[7 / 3, 7 / 3]]))
    assert out["gap"][0].tolist() == pytest.approx([-1 / 3, 1 / 3])  # positive: the map is more faithful
    assert out["u"][0].tolist() == [0.0, 0.0]  # beats one, ties one, loses one
    assert out["n_as_extreme"][0].tolist() == [2.0, 2.0]
    assert out["control_sd"][0, 0] == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_a_missing_value_gives_nulls():
    out = faithfulness.compare(np.array([[np.nan]]), np.ones((1, 3, 1)), np.array([True]))
    assert out.pop("n_draws").tolist() == [[3]]
    assert all(np.isnan(column).all() for column in out.values())


@given(st.integers(19, 60), st.integers(0, 60))
def test_p_value_formula(draws, extreme):
    extreme = min(extreme, draws)
    assert faithfulness.p_value(np.array([float(extreme)]), draws)[0] == (1 + extreme) / (1 + draws)


def test_p_value_is_null_under_nineteen_draws():
    assert np.isnan(faithfulness.p_value(np.array([0.0]), 18)).all()


def test_p_values_of_exchangeable_values_are_valid():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 20, 1))
    out = faithfulness.compare(values[:, 0], values[:, 1:], np.array([True]))
    p = faithfulness.p_value(out["n_as_extreme"], 19)
    assert abs((p <= 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
