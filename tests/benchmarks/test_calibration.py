"""The calibration benchmark on one network of each kind."""

import pytest

from benchmarks import calibration


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", [True, False])
def test_h1_tells_a_working_shortcut_from_none(shortcut):
    found = calibration.calibrate(0, shortcut)
    h1 = found["h1"]
    assert h1["quantity"].startswith("donor swap of the marker")
    assert h1["n"] == calibration.RECIPIENTS or not shortcut
    assert (found["true_effect"] > 1) == shortcut  # it works, or there is none
    assert (h1["verdict"] == "above margin") == shortcut, h1["reason"]
