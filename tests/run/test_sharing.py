"""How many processes share a GPU."""

import stat

import pytest

from cxr_ray.run import sharing

GIB = 2**30


def answers(folder, monkeypatch, script: str) -> None:
    """A machine whose nvidia-smi does this."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '81559, Disabled'", 81559 * 2**20),
        ("echo '81559, [N/A]'; echo '24576, [N/A]'", 24576 * 2**20),
        ("echo '81559, Enabled'", 0),
        ("echo 'No devices were found'; exit 6", 0),
        ("echo '[N/A], [N/A]'", 0),
        ("echo", 0),
    ],
)
def test_the_smallest_gpu_is_as_nvidia_smi_says_and_unknown_where_it_does_not(tmp_path, monkeypatch, script, expected):
    answers(tmp_path, monkeypatch, script)
    assert sharing.smallest_gpu() == expected


def test_without_nvidia_smi_the_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sharing.smallest_gpu() == 0


@pytest.mark.parametrize(
    ("gpu", "trial", "places", "expected"),
    [
        (80, 5, 99, sharing.TRIALS_PER_GPU),
        (80, 5, 2, 2),
        (80, 5, 1.25, 2),
        (80, 5, 0.1, 1),
        (10, 5, 99, 1),
        (10, 4.5, 99, 2),
        (4, 5, 99, 1),
        (0, 5, 99, 1),
        (80, float("inf"), 99, 1),
    ],
)
def test_trials_on_a_gpu_are_bounded_by_memory_and_by_their_number(gpu, trial, places, expected):
    assert sharing.trials_per_gpu(gpu * GIB, trial * GIB, places) == expected
