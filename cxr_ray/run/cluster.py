"""Ray's start, and what a sweep takes of the machines: an allocation, which is a pure function of nodes and request."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cxr_ray import config
from cxr_ray.errors import ClusterError
from cxr_ray.quiet import silent

SPARE_CPUS = 1  # logical CPUs of one machine for tasks that read and write, next to the real ones that compute
PROCESS_MEMORY = 1.25 * 2**30, 1.5 * 2**30 / 224**2  # bytes that a trial or worker takes: always, and a pixel's
UNKNOWN_MEMORY = 2.0**60


def start_ray() -> bool:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine alone. Returns whether it started one.

    Raises:
        ClusterError: the cluster does not answer.
    """
    # Tune's tables, Data's bars and plans give way to our own lines
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    for library in ("ray.data", "ray.tune"):  # their stack traces: one line says what ended a trial or a run
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for name, value in (
        ("RAY_AIR_NEW_OUTPUT", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_BACKEND_LOG_LEVEL", "fatal"),
    ):
        os.environ.setdefault(name, value)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            with silent(2):  # Ray says there that it was asked to be quiet
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as e:
            reason = str(e).strip().splitlines()[0]
            raise ClusterError(
                f"got RAY_ADDRESS={address}, where no cluster answers ({reason}); expected the address of a cluster; "
                "start it, or unset RAY_ADDRESS to run on this machine."
            ) from None
        return False
    with silent(2):
        ray.init(address="local", num_cpus=_cores() + SPARE_CPUS, include_dashboard=False, **quiet)
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Node:
    """One machine: logical CPUs, GPUs, and bytes of memory for processes."""

    cpus: float
    gpus: int = 0
    memory: float = UNKNOWN_MEMORY

    @classmethod
    def from_ray(cls, resources: Mapping[str, float]) -> Node:
        """A machine as Ray counts it."""
        memory = float(resources.get("memory", UNKNOWN_MEMORY))
        return cls(float(resources.get("CPU", 0)), int(resources.get("GPU", 0)), memory)


def ray_nodes() -> list[Node]:
    """The machines of the Ray that was started."""
    return [Node.from_ray(n["Resources"]) for n in ray.nodes() if n["Alive"]]


@dataclass(frozen=True)
class Request:
    """What a run asks of the machines.

    Attributes:
        resources: the sweep's section.
        n_trials: still to be trained.
        size: side of the largest images in pixels.
        local: Ray was started on this machine for this run, with SPARE_CPUS more than it has.
    """

    resources: config.Resources
    n_trials: int
    size: int
    local: bool

    @property
    def process_memory(self) -> float:
        """Bytes that one trial or worker takes."""
        return PROCESS_MEMORY[0] + PROCESS_MEMORY[1] * self.size**2


@dataclass(frozen=True)
class Allocation:
    """What a run takes of the machines.

    Attributes:
        n_nodes: machines.
        cpus, gpus: what they have, without the spare CPUs.
        local: as asked.
        trial_cpus, trial_gpus: of one trial; concurrent_trials: at a time.
        workers: actors that explain; worker_gpus: of each; threads: torch threads of each, 0 for Ray's own choice.
        batch_size: masked images in one forward pass; None: found on the device.
        memory_bound: GiB of one worker, where memory allows fewer of them than the other resources do.
    """

    n_nodes: int
    cpus: float
    gpus: float
    local: bool
    trial_cpus: float
    trial_gpus: float
    concurrent_trials: int
    workers: int
    worker_gpus: float
    threads: int
    batch_size: int | None
    memory_bound: float | None = None

    @property
    def line(self) -> str:
        """One line for the user."""
        where = "this machine" if self.local else f"the cluster of {self.n_nodes} machine{'s' * (self.n_nodes != 1)}"
        device = f"GPUs {self.gpus:g}" if self.gpus else "no GPU, so on CPUs"
        line = (
            f"Ray on {where}: CPUs {self.cpus:g}, {device}. Trials at a time: up to {self.concurrent_trials}; then "
            f"workers: {self.workers}."
        )
        if self.memory_bound is None:
            return line
        return line + (
            f" More would not fit in memory, at {self.memory_bound:.1f} GiB each (resources.workers overrides)."
        )


def allocate(nodes: Sequence[Node], request: Request) -> Allocation:
    """Divide the machines among trials, then among workers.

    Raises:
        ClusterError: the sweep asks for more than there is.
    """
    asked, spare = request.resources, SPARE_CPUS if request.local else 0
    cpus, gpus = sum(n.cpus for n in nodes) - spare, float(sum(n.gpus for n in nodes))
    automatic = 1.0 if gpus else 0.0
    trial_gpus = automatic if asked.gpu_per_trial == "auto" else float(asked.gpu_per_trial)
    worker_gpus = automatic if asked.gpu_per_worker == "auto" else float(asked.gpu_per_worker)
    _check_machines(nodes, request, trial_gpus, worker_gpus)

    by_memory = max(1, sum(int(min(n.memory // request.process_memory, n.cpus)) for n in nodes))
    by_cpu = cpus // asked.cpu_per_trial
    by_gpu = _slots(nodes, trial_gpus) if trial_gpus else by_cpu
    concurrent = max(1, int(min(by_cpu, by_gpu, by_memory, request.n_trials or 1)))
    share = cpus // concurrent if request.local and not trial_gpus else 0  # else CPUs would lie idle

    room = _room(nodes, request, worker_gpus)
    workers = min(room, by_memory) if asked.workers == "auto" else asked.workers
    return Allocation(
        n_nodes=len(nodes),
        cpus=cpus,
        gpus=gpus,
        local=request.local,
        trial_cpus=max(asked.cpu_per_trial, share),
        trial_gpus=trial_gpus,
        concurrent_trials=concurrent,
        workers=workers,
        worker_gpus=worker_gpus,
        threads=max(1, int(cpus) // workers) if request.local and not worker_gpus else 0,
        batch_size=None if asked.batch_size == "auto" else asked.batch_size,
        memory_bound=request.process_memory / 2**30 if asked.workers == "auto" and workers < room else None,
    )


def _check_machines(nodes: Sequence[Node], request: Request, trial_gpus: float, worker_gpus: float) -> None:
    """Raise ClusterError where no single machine has what one trial or one worker takes."""
    most_gpus = max((n.gpus for n in nodes), default=0)
    most_cpus = max((n.cpus for n in nodes), default=0.0) - (SPARE_CPUS if request.local else 0)
    wanted = {"gpu_per_trial": trial_gpus if request.n_trials else 0, "gpu_per_worker": worker_gpus}
    for key, gpus in wanted.items():
        if gpus > most_gpus:
            raise ClusterError(
                f"resources.{key}: got {gpus:g}; expected at most {most_gpus:g}, the GPUs of the largest machine; give "
                f"that, 0 or auto (--set resources.{key}=auto)."
            )
    cpus = request.resources.cpu_per_trial
    if request.n_trials and cpus > most_cpus:
        raise ClusterError(
            f"resources.cpu_per_trial: got {cpus:g}; expected at most {most_cpus:g}, the CPUs of the largest machine; "
            f"give at most that (--set resources.cpu_per_trial={most_cpus:g})."
        )


def _room(nodes: Sequence[Node], request: Request, worker_gpus: float) -> int:
    """How many workers the CPUs and GPUs hold, at least as many as are asked for; ClusterError where they do not."""
    cpus = int(sum(n.cpus for n in nodes)) - 1  # reading and writing need a CPU that no worker holds
    room = min(_slots(nodes, worker_gpus), cpus) if worker_gpus else cpus
    if room < 1:
        gpus = sum(n.gpus for n in nodes)
        raise ClusterError(
            f"got a cluster of {cpus + 1} CPUs and {gpus} GPUs; expected at least 2 CPUs, to read and to explain; "
            "give it more (ray start --num-cpus=2)."
        )
    asked = request.resources.workers
    if asked != "auto" and asked > room:
        raise ClusterError(
            f"resources.workers: got {asked}; expected at most {room}, since each takes one CPU and {worker_gpus:g} "
            "GPUs; give at most that, or auto (--set resources.workers=auto)."
        )
    return room


def _slots(nodes: Sequence[Node], gpus_each: float) -> int:
    """How many pieces of ``gpus_each`` GPUs fit on the machines; a fraction never spans two GPUs."""
    if gpus_each >= 1:
        return sum(int(n.gpus // gpus_each) for n in nodes)
    return sum(n.gpus for n in nodes) * int(1 / gpus_each + 1e-9)
