"""A process that ends while Ray starts is told at once, and none is left. With processes of this test alone."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray import _private

from cxr_ray.run import ray_processes
from cxr_ray.run.ray_processes import EndedError

services: Any = _private.services
node: Any = _private.node
ENDS, STAYS = "raise SystemExit(3)", "import time; time.sleep(3600)"


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


def test_what_ray_waits_for_in_vain_is_rays_error(processes):
    def starts():
        with ray_processes.watched():
            services.start_ray_process(STAYS, "gcs_server")
            node.wait_for_persisted_port(timeout_ms=1)

    with pytest.raises(RuntimeError, match="Timed out"):
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
