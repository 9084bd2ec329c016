"""p-values of fixed and sequential draws: exact counts, and validity under the null."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_ray.measure import faithfulness, sequential

DONE = np.array([0, 0.1, 0.5, 1.0])
scores = hnp.arrays(np.float64, (2, 4), elements=st.floats(-30, 30, width=32))


@given(st.integers(19, 60), st.integers(0, 60))
def test_p_value_formula(draws, extreme):
    extreme = min(extreme, draws)
    assert sequential.p_value(np.array([float(extreme)]), np.array([float(draws)]))[0] == (1 + extreme) / (1 + draws)


def test_p_value_is_null_under_nineteen_draws():
    assert np.isnan(sequential.p_value(np.array([0.0]), np.array([18.0]))).all()


def test_p_values_of_exchangeable_values_are_valid():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, 20, 1))
    out = faithfulness.compare(values[:, 0], values[:, 1:], np.array([True]))
    p = sequential.p_value(out["n_as_extreme"], np.full(1, 19.0))
    assert abs((p <= 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)


def test_draws_that_are_not_there_are_left_out():
    value = np.array([[2.0], [2.0], [2.0]])
    draws = np.array([[[1.0], [4.0], [np.nan]], [[1.0], [2.0], [6.0]], [[np.nan]] * 3])
    out = faithfulness.compare(value, draws, np.array([True]))
    assert out["n_draws"][:, 0].tolist() == [2, 3, 0]
    assert out["gap"][:2, 0].tolist() == [-0.5, -1.0]
    assert out["win_rate"][:2, 0].tolist() == pytest.approx([0.5, 0.5])
    assert out["control_sd"][0, 0] == pytest.approx(np.std([1, 4], ddof=1))
    assert all(np.isnan(column[2, 0]) for name, column in out.items() if name != "n_draws")
    p = sequential.p_value(out["n_as_extreme"], out["n_draws"])
    assert np.isnan(p).all()


def by_hand(value: float, draws: list[float], extreme: int) -> tuple[float, int]:
    """Besag and Clifford's rule for one map, one draw after another; higher is more faithful."""
    found = 0
    for n, draw in enumerate(draws, start=1):
        found += draw >= value
        if found == extreme:
            return extreme / n, n
    return (1 + found) / (1 + len(draws)), len(draws)


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_sequential_p_values_by_hand(seed, extreme):
    rng = np.random.default_rng(seed)
    value, draws = rng.integers(0, 6, 20).astype(float), rng.integers(0, 6, (20, 25)).astype(float)
    expected = [by_hand(v, list(d), extreme) for v, d in zip(value, draws, strict=True)]
    p, used, stopped = sequential.sequential_p(value, draws, True, extreme)
    assert list(zip(p, used, strict=True)) == expected
    lower, used_lower, _ = sequential.sequential_p(-value, -draws, False, extreme)
    assert np.array_equal(p, lower)
    assert np.array_equal(used, used_lower)
    # what was drawn beyond the stop, or not drawn there, changes nothing
    late = np.where(np.arange(25) < used[:, None], draws, np.nan)
    assert np.array_equal(sequential.sequential_p(value, late, True, extreme)[0], p)
    fixed = faithfulness.compare(value[:, None], draws[:, :, None], np.array([True]))["n_as_extreme"][:, 0]
    assert np.array_equal(p[~stopped], sequential.p_value(fixed, np.full(20, 25.0))[~stopped])


def test_sequential_p_values_are_null_without_a_value_and_under_nineteen_draws():
    draws = np.where(np.arange(25) < 18, 0.0, np.nan)[None].repeat(2, 0)
    p, used, stopped = sequential.sequential_p(np.array([1.0, np.nan]), draws, True, 5)
    assert np.isnan(p).all()
    assert used.tolist() == [18, 18]
    assert not stopped.any()


@pytest.mark.parametrize(("most", "extreme"), [(19, 1), (99, 5), (199, 10)])
def test_sequential_p_values_of_exchangeable_values_are_valid(most, extreme):
    """P(p <= a) <= a for every a that p can take, ties and all, within Monte Carlo error."""
    rng = np.random.default_rng(most)
    n = 20_000
    for values in (rng.normal(size=(n, most + 1)), rng.integers(0, 50, (n, most + 1)).astype(float)):
        p, used, _ = sequential.sequential_p(values[:, 0], values[:, 1:], True, extreme)
        for a in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5):
            assert (p <= a).mean() <= a + 4 * np.sqrt(a * (1 - a) / n)
    assert used.mean() < most / 2  # most maps are decided early
