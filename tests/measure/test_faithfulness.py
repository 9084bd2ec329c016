"""How a map compares with draws of a control, against hand-made values."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_ray.measure import faithfulness

DONE = np.array([0, 0.1, 0.5, 1.0])
scores = hnp.arrays(np.float64, (2, 4), elements=st.floats(-30, 30, width=32))


def test_comparison_by_hand():
    value = np.array([[2.0, 2.0]])
    draws = np.array([[[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]])
    out = faithfulness.compare(value, draws, np.array([True, False]))
    assert out["control_mean"].tolist() == pytest.approx(np.array([[7 / 3, 7 / 3]]))
    assert out["gap"][0].tolist() == pytest.approx([-1 / 3, 1 / 3])  # positive: the map is more faithful
    assert out["win_rate"][0].tolist() == [0.5, 0.5]  # beats one, ties one, loses one
    assert out["n_as_extreme"][0].tolist() == [2.0, 2.0]
    assert out["control_sd"][0, 0] == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_a_missing_value_gives_nulls():
    out = faithfulness.compare(np.array([[np.nan]]), np.ones((1, 3, 1)), np.array([True]))
    assert out.pop("n_draws").tolist() == [[3]]
    assert all(np.isnan(column).all() for column in out.values())
