"""The benchmarks as commands, at sizes that say nothing about speed: each runs to its end and prints its ratios."""

import json
import math
import subprocess
import sys

import pytest

COMMANDS = {
    "engine": ("--size=32", "--rounds=1", "--seconds=0.05"),
    "linear": ("--size=32", "--batch=2", "--rounds=1", "--seconds=0.05"),
    "explainers": ("--size=64", "--images=1", "--rounds=1", "--seconds=0.05"),
    "startup": ("--images=4", "--rounds=1"),
    "worker": ("--size=64", "--images=1", "--few=1", "--many=1", "--rounds=1", "--seconds=0.05"),
    "training": ("--size=32", "--batch=4", "--batches=1", "--rounds=1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_finite_ratios_for_all_its_targets(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *COMMANDS[name], "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert set(printed["targets"]) <= set(printed["ratios"])
    assert printed["ratios"]
    assert all(math.isfinite(ratio) for ratio in printed["ratios"].values())
