"""Areas and drops of hand-made curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc

from cxr_ray.measure import metrics

LEVELS = [0.3, 0.5, 0.75]
DONE = np.array([0, 0.3, 0.5, 0.75, 1.0])
scores = hnp.arrays(np.float64, (2, 5), elements=st.floats(-30, 30, width=32))


@given(scores, scores)
def test_areas_are_trapezoids_and_abpc_is_insertion_minus_deletion(morf, lerf):
    names, values = metrics.evaluate({"morf": morf, "lerf": lerf}, LEVELS, DONE)
    by_name = {name: values[:, i] for i, (name, _) in enumerate(names) if name != "drop"}
    for i in range(2):
        assert by_name["deletion_auc"][i] == pytest.approx(auc(DONE, morf[i]), abs=1e-9)
        # insertion of share k shows what lerf shows at 1 - k
        assert by_name["insertion_auc"][i] == pytest.approx(auc(1 - DONE[::-1], lerf[i][::-1]), abs=1e-9)
    assert by_name["abpc"] == pytest.approx(by_name["insertion_auc"] - by_name["deletion_auc"])


def test_drops_and_missing_orders():
    morf = np.array([[5.0, 4.0, 1.0, 0.5, 0.0]])
    names, values = metrics.evaluate({"morf": morf}, LEVELS, DONE)
    assert names[1:] == [("drop", 0.3), ("drop", 0.5), ("drop", 0.75)]
    assert values[0, 1:].tolist() == [1.0, 4.0, 4.5]
    assert [n for n, _ in metrics.evaluate({"lerf": morf}, LEVELS, DONE)[0]] == ["insertion_auc"]


def test_a_chord_to_the_filled_image_is_no_area():
    """Two maps: one curve falls at once beyond 0.5, the other not before 0.95. Levels to 0.5 cannot tell them apart."""
    levels, fine = [0.1, 0.25, 0.5], [0.1, 0.25, 0.5, 0.75, 0.95]
    seen = [6.0, 6.0, 6.0, 6.0]
    early, late = [*seen, 0.0, 0.0, 0.0], [*seen, 6.0, 6.0, 0.0]
    done = np.array([0, *fine, 1])
    both = {"morf": np.array([early, late]), "lerf": np.array([early, late])}
    names, values = metrics.evaluate(both, fine, done)
    areas = dict(zip([n for n, _ in names], values.T, strict=True))["deletion_auc"]
    assert areas[1] - areas[0] == pytest.approx(6 * (0.2 + 0.125 + 0.025))
    coarse = {name: curve[:, [0, 1, 2, 3, 6]] for name, curve in both.items()}
    assert np.trapezoid(coarse["morf"], [0, *levels, 1]).tolist() == [4.5, 4.5]  # what an area would have been
    names, _ = metrics.evaluate(coarse, levels, np.array([0, *levels, 1]))
    assert names == [("drop", 0.1), ("drop", 0.25), ("drop", 0.5)]


@pytest.mark.parametrize(
    ("levels", "allowed"),
    [
        ([0.3, 0.6, 0.9], True),  # 0.9 - 0.6 is above 0.3 in floating point
        ([0.7, 0.1, 0.4], True),
        ([0.25, 0.5, 0.75], True),
        ([0.25], False),
        ([0.31, 0.5, 0.75], False),
        ([0.25, 0.5, 0.69], False),
        ([0.1, 0.25, 0.5], False),
    ],
)
def test_areas_need_levels_no_more_than_0_3_apart_the_ends_included(levels, allowed):
    assert metrics.has_areas(levels) is allowed
    assert ("abpc" in metrics.measured(["morf", "lerf"], levels)) is allowed


@given(st.lists(st.integers(1, 999), min_size=1, max_size=5, unique=True))
def test_the_levels_that_are_offered_hold_those_asked_for_and_do(thousandths):
    levels = [n / 1000 for n in thousandths]
    offered = metrics.with_areas(levels)
    assert metrics.has_areas(offered)
    assert set(levels) <= set(offered)
    assert len(set(offered)) == len(offered)
