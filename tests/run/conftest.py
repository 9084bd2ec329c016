"""The command line on a tiny folder, where Ray may not start."""

from pathlib import Path

import pytest
import ray

from cxr_ray import sweep
from cxr_ray.errors import ClusterError
from cxr_ray.run import ray_start

SWEEP = """
name: tiny
data: {size: 32, val_share: 0.2}
model: {weights: none}
train: {epochs: 1, batch_size: 4}
explain: {explainers: [gradcam]}
perturb: {grids: [pixel], fills: [mean], levels: [0.5]}
controls: {shifted: 2}
"""


@pytest.fixture
def folder_with_a_sweep(tmp_path, monkeypatch):
    """An empty current folder with one sweep file. Ray may not start."""

    def started():
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_start, "start_ray", started)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SWEEP)


@pytest.fixture
def refusal(capsys, tiny_folder):
    """Runs the command line on the tiny folder, checks that it says no, and returns what it says, line by line."""

    def run(*argv: str, given_data: str | None = None) -> list[str]:
        code = sweep.main([*argv, "--data", str(tiny_folder) if given_data is None else given_data])
        lines = capsys.readouterr().err.splitlines()
        assert code == 2
        assert not ray.is_initialized()
        assert all(line.startswith("cxr_ray: ") and line.endswith((".", "?")) for line in lines), lines
        return [line.removeprefix("cxr_ray: ") for line in lines]

    return run


@pytest.fixture
def reaches_ray(capsys, monkeypatch, tiny_folder):
    """Whether a command gets past every check, up to the start of Ray."""

    def stop():
        raise ClusterError("here Ray would start.")

    monkeypatch.setattr(ray_start, "start_ray", stop)

    def run(*argv: str, given_data: str | None = None) -> bool:
        code = sweep.main([*argv, "--data", str(tiny_folder) if given_data is None else given_data])
        return (code, capsys.readouterr().err) == (2, "cxr_ray: here Ray would start.\n")

    return run


@pytest.fixture
def running_ray():
    """Ray as a notebook has it, before a sweep begins and after it ended."""
    ray_start.start_ray()
    yield
    assert ray.is_initialized(), "a sweep ended a Ray that was not its own"
    ray.shutdown()
