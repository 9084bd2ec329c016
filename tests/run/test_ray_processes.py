"""A process that ends while Ray starts is told at once, and none is left. With processes of this test alone."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray import _private

from cxr_ray.run import ray_processes, ray_wait
from cxr_ray.run.ray_processes import EndedError, SlowError

services: Any = _private.services
node: Any = _private.node
ENDS, STAYS = "raise SystemExit(3)", "import time; time.sleep(3600)"


@pytest.fixture(autouse=True)
def nothing_is_waited_for():
    yield
    ray_wait.begin("", 0)
    ray_wait.end()


@pytest.fixture
def processes(monkeypatch):
    """What was started by what stands in for Ray."""
    started: list[subprocess.Popen] = []

    def start(command, process_type):
        started.append(subprocess.Popen([sys.executable, "-S", "-c", command]))
        return SimpleNamespace(process=started[-1])

    def wait(timeout_ms):
        raise RuntimeError("Timed out waiting for file")

    monkeypatch.setattr(services, "start_ray_process", start)
    monkeypatch.setattr(services, "get_node", lambda: "node")
    monkeypatch.setattr(node, "wait_for_persisted_port", wait)
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ray_processes.NEEDED)
@pytest.mark.parametrize(
    "wait",
    [lambda: services.get_node(), lambda: node.wait_for_persisted_port(timeout_ms=3_600_000)],
    ids=["a node", "a port"],
)
def test_a_process_that_ended_is_told_and_the_others_are_killed(processes, name, wait):
    def starts():
        with ray_processes.watched():
            services.start_ray_process(STAYS, "reaper")
            services.start_ray_process(ENDS, name).process.wait()
            wait()

    with pytest.raises(EndedError, match=f"its process {name} ended at once, with exit code 3"):
        starts()
    assert all(process.poll() is not None for process in processes)


def test_a_process_that_is_slow_is_waited_for_beyond_rays_own_limit(processes, monkeypatch):
    said = []

    def asked(*_, **__):
        said.append(ray_wait.told())
        if len(said) < 4:
            raise RuntimeError("Timed out")
        return len(said)

    for module, name in ray_processes.REPLACED[1:]:
        monkeypatch.setattr(module, name, asked)
    monkeypatch.setattr(ray_processes, "SLICE_SECONDS", 0.01)
    ray_wait.begin("Ray's processes", 180)
    with ray_processes.watched():
        services.start_ray_process(STAYS, "gcs_server")
        assert node.wait_for_persisted_port(timeout_ms=1) == 4
        assert services.get_node() == 5
    assert said == ["waits for Ray's gcs_server, which runs; gives up after 3 minutes"] * 4 + [
        "waits for Ray's raylet, which runs; gives up after 3 minutes"
    ]
    assert processes[0].poll() is None


def test_processes_that_are_slow_for_too_long_are_told_and_killed(processes):
    def starts():
        ray_wait.begin("Ray's processes", -1)
        with ray_processes.watched():
            services.start_ray_process(STAYS, "gcs_server")
            node.wait_for_persisted_port(timeout_ms=1)

    with pytest.raises(SlowError, match="Ray's gcs_server, which runs, did not answer: Timed out waiting for file"):
        starts()
    assert processes[0].poll() is not None


def test_a_start_that_nobody_needs_any_longer_ends(processes):
    def starts():
        ray_wait.begin("Ray's processes", 180)
        with ray_processes.watched():
            services.start_ray_process(STAYS, "gcs_server")
            ray_wait.give_up()
            node.wait_for_persisted_port(timeout_ms=3_600_000)

    with pytest.raises(EndedError, match="its start was given up"):
        starts()
    assert processes[0].poll() is not None


def test_processes_that_live_are_left_as_they_are_and_so_is_ray(processes):
    before = services.start_ray_process, services.get_node, node.wait_for_persisted_port
    with ray_processes.watched():
        services.start_ray_process(STAYS, "raylet")
        services.start_ray_process(ENDS, "log_monitor").process.wait()
        assert services.get_node() == "node"
    assert (services.start_ray_process, services.get_node, node.wait_for_persisted_port) == before
    assert processes[0].poll() is None
