"""Areas and drops of hand-made curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import auc

from cxr_ray.measure import metrics

DONE = np.array([0, 0.1, 0.5, 1.0])
scores = hnp.arrays(np.float64, (2, 4), elements=st.floats(-30, 30, width=32))


@given(scores, scores)
def test_areas_are_trapezoids_and_abpc_is_insertion_minus_deletion(morf, lerf):
    names, values = metrics.evaluate({"morf": morf, "lerf": lerf}, [0.1, 0.5], DONE)
    by_name = {name: values[:, i] for i, (name, _) in enumerate(names) if name != "drop"}
    for i in range(2):
        assert by_name["deletion_auc"][i] == pytest.approx(auc(DONE, morf[i]), abs=1e-9)
        # insertion of share k shows what lerf shows at 1 - k
        assert by_name["insertion_auc"][i] == pytest.approx(auc(1 - DONE[::-1], lerf[i][::-1]), abs=1e-9)
    assert by_name["abpc"] == pytest.approx(by_name["insertion_auc"] - by_name["deletion_auc"])


def test_drops_and_missing_orders():
    morf = np.array([[5.0, 4.0, 1.0, 0.0]])
    names, values = metrics.evaluate({"morf": morf}, [0.1, 0.5], DONE)
    assert names[1:] == [("drop", 0.1), ("drop", 0.5)]
    assert values[0, 1:].tolist() == [1.0, 4.0]
    assert [n for n, _ in metrics.evaluate({"lerf": morf}, [0.1, 0.5], DONE)[0]] == ["insertion_auc"]
