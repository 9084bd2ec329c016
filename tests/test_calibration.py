"""The calibration benchmark on one network of each kind."""

import pytest

from benchmarks import calibration

FALSE_ALARM = "H1 is supported where the marker does nothing: filling an edge costs log-odds for other reasons"


@pytest.mark.slow
@pytest.mark.parametrize(
    "shortcut", [True, pytest.param(False, marks=pytest.mark.xfail(strict=True, reason=FALSE_ALARM))]
)
def test_h1_tells_a_working_shortcut_from_none(shortcut):
    found = calibration.calibrate(0, shortcut, fills=["linear"])
    h1 = found["verdicts"]["linear"]
    assert found["n"] >= 20
    if shortcut:
        assert found["true_effect"] > 1  # it works
        assert found["agreement"]["linear"]["spearman"] > 0.8
    assert (h1["verdict"] == "supported") == shortcut, h1["reason"]
