"""What becomes of a run whose trials fail."""

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_ray.errors import UserError
from cxr_ray.run import execute, tuning
from cxr_ray.storage import Store


def trained(monkeypatch, tmp_path, *errors: str | None) -> list[dict[str, Any]]:
    """Trains trials that end with these errors; returns the run's errors."""
    rows = [
        {"trial_id": f"t-{n}", "status": "completed" if error is None else "failed", "error": error}
        for n, error in enumerate(errors)
    ]
    monkeypatch.setattr(tuning, "tune_sweep", lambda *_: rows)
    monkeypatch.setattr(Store, "write_table", lambda *_: None)
    context: Any = SimpleNamespace(
        store=Store(str(tmp_path), {}), manifest=SimpleNamespace(errors=[]), given={}, trials=()
    )
    data: Any = SimpleNamespace(errors=[])
    trials: Any = tuple(errors)
    return execute.train(context, trials, data, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_trial_that_found_the_disk_full_is_trained_again_and_never_a_failed_one(monkeypatch, tmp_path, number):
    """Whether others ended well or not: the command ends with the sentence on space, and writes no table of trials."""
    reason = f"OSError: {OSError(number, os.strerror(number))}"
    for errors in ([None, reason], [reason, reason]):
        with pytest.raises(OSError, match=r"t-\d: OSError") as raised:
            trained(monkeypatch, tmp_path, *errors)
        assert raised.value.errno == number


def test_a_run_goes_on_with_the_trials_that_ended_well_and_ends_where_none_did(monkeypatch, tmp_path):
    assert trained(monkeypatch, tmp_path, None, "TrainingError: got a loss of nan") == []
    with pytest.raises(UserError, match=r"every trial failed; the last one with: TrainingError: got a loss of nan\."):
        trained(monkeypatch, tmp_path, "TrainingError: got a loss of inf", "TrainingError: got a loss of nan")
