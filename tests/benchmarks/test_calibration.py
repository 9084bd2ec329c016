"""The calibration benchmark on one network of each kind."""

import pytest

from benchmarks import calibration
from cxr_ray.schemas import PATCH_SWAP


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", [True, False])
def test_h1_tells_a_working_shortcut_from_none(shortcut):
    found = calibration.calibrate(0, shortcut)
    h1 = found["verdicts"][PATCH_SWAP]
    assert found["n"] >= 20
    assert (found["true_effect"] > 1) == shortcut  # it works, or there is none
    if shortcut:
        assert found["agreement"]["blur"]["spearman"] > 0.8
    assert (h1["verdict"] == "above margin") == shortcut, h1["reason"]
