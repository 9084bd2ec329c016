"""What a sweep takes of the machines: an allocation, which is a pure function of nodes and request.

No machine is asked for more than it has: an actor that fits on none would wait for ever, without a word. Workers
leave CPUs for the tasks that read and write, which could not run otherwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cxr_ray import config
from cxr_ray.errors import ClusterError
from cxr_ray.run.ray_start import SPARE_CPUS
from cxr_ray.run.sharing import GRAIN, PER_GPU, smallest_gpu, trials_per_gpu, whole_share

PROCESS_MEMORY = 1.25 * 2**30, 1.5 * 2**30 / 224**2  # bytes that a trial or worker takes: always, and a pixel's
UNKNOWN_MEMORY = 2.0**60


@dataclass(frozen=True)
class Node:
    """One machine: logical CPUs, GPUs, bytes of memory for processes, and bytes of its smallest GPU (0: unknown)."""

    cpus: float
    gpus: int = 0
    memory: float = UNKNOWN_MEMORY
    gpu_memory: float = 0.0

    @classmethod
    def from_ray(cls, resources: Mapping[str, float]) -> Node:
        """A machine as Ray counts it."""
        memory = float(resources.get("memory", UNKNOWN_MEMORY))
        return cls(float(resources.get("CPU", 0)), int(resources.get("GPU", 0)), memory)


def ray_nodes(ask_gpus: bool = False) -> list[Node]:
    """The machines of the Ray that was started. ``ask_gpus``: for their memory, which Ray does not know."""
    nodes = {n["NodeID"]: Node.from_ray(n["Resources"]) for n in ray.nodes() if n["Alive"]}
    if ask_gpus:
        asked = {node_id: _ask_gpus(node_id) for node_id, node in nodes.items() if node.gpus}
        for node_id, answer in asked.items():
            with contextlib.suppress(ray.exceptions.RayError):  # it stays unknown
                nodes[node_id] = replace(nodes[node_id], gpu_memory=ray.get(answer, timeout=60))
    return list(nodes.values())


def _ask_gpus(node_id: str) -> Any:
    """A reference to the bytes of a machine's smallest GPU."""
    if node_id == ray.get_runtime_context().get_node_id():
        return ray.put(smallest_gpu())
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(smallest_gpu).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()


@dataclass(frozen=True)
class Request:
    """What a run asks of the machines.

    Attributes:
        resources: the sweep's section.
        n_trials: still to be trained.
        size: side of the largest images in pixels.
        local: Ray was started on this machine for this run, with SPARE_CPUS more than it has.
        trial_gpu_memory: bytes of a GPU that one trial takes.
    """

    resources: config.Resources
    n_trials: int
    size: int
    local: bool
    trial_gpu_memory: float = math.inf

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
        workers: actors that explain; worker_cpus, worker_gpus: of each; threads: torch threads of each, 0 for Ray's own
            choice.
        batch_size: masked images in one forward pass; None: found on the device.
        memory_bound: GiB of one worker, where memory allows fewer of them than the other resources do.
        rounded: a sentence for each fraction of a GPU that was rounded.
        doubled: the same with two workers on each GPU, where that may be tried.
    """

    n_nodes: int
    cpus: float
    gpus: float
    local: bool
    trial_cpus: float
    trial_gpus: float
    concurrent_trials: int
    workers: int
    worker_cpus: float
    worker_gpus: float
    threads: int
    batch_size: int | None
    memory_bound: float | None = None
    rounded: tuple[str, ...] = ()
    doubled: Allocation | None = None

    @property
    def line(self) -> str:
        """One line for the user, and one for each fraction of a GPU that was rounded."""
        where = "this machine" if self.local else f"the cluster of {self.n_nodes} machine{'s' * (self.n_nodes != 1)}"
        device = f"GPUs {self.gpus:g}" if self.gpus else "no GPU, so on CPUs"
        shared = f", {int(1 / self.trial_gpus)} on a GPU" if 0 < self.trial_gpus < 1 else ""
        line = (
            f"Ray on {where}: CPUs {self.cpus:g}, {device}. Trials at a time: up to {self.concurrent_trials}{shared}; "
            f"then workers: {self.workers}."
        )
        if self.memory_bound is not None:
            line += f" More would not fit in memory, at {self.memory_bound:.1f} GiB each (resources.workers overrides)."
        return "\n".join([line, *self.rounded])


def allocate(nodes: Sequence[Node], request: Request) -> Allocation:
    """Divide the machines among trials, then among workers.

    Raises:
        ClusterError: the sweep asks for more than there is.
    """
    asked, spare = request.resources, SPARE_CPUS if request.local else 0
    cpus, gpus = sum(n.cpus for n in nodes) - spare, float(sum(n.gpus for n in nodes))
    trial_gpus, worker_gpus, rounded = _gpus_of_each(nodes, request)
    _check_machines(nodes, request, trial_gpus, worker_gpus)

    free = [replace(n, cpus=n.cpus - spare) for n in nodes]
    room = sum(_trials_on(n, request, trial_gpus) for n in free)
    concurrent = max(1, min(room, request.n_trials or 1))
    share = cpus // concurrent if request.local and not trial_gpus else 0  # else CPUs would lie idle

    room, by_memory, worker_cpus = _room(nodes, request, worker_gpus)
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
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        threads=max(1, int(cpus) // workers) if request.local and not worker_gpus else 0,
        batch_size=None if asked.batch_size == "auto" else asked.batch_size,
        memory_bound=request.process_memory / 2**30 if asked.workers == "auto" and workers < room else None,
        rounded=rounded,
    )


def with_doubled(allocation: Allocation, nodes: Sequence[Node], request: Request) -> Allocation:
    """The allocation, with what two workers on each GPU would take where workers are auto and both would fit."""
    asked = request.resources
    if asked.workers != "auto" or asked.gpu_per_worker != "auto" or not allocation.worker_gpus:
        return allocation
    halves = asked.model_copy(update={"gpu_per_worker": 0.5})
    doubled = allocate(nodes, replace(request, resources=halves))
    return replace(allocation, doubled=doubled if doubled.workers == 2 * allocation.workers else None)


def _gpus_of_each(nodes: Sequence[Node], request: Request) -> tuple[float, float, tuple[str, ...]]:
    """GPUs of a trial and of a worker, and a sentence for each that is not what was asked for."""
    any_gpu = any(n.gpus for n in nodes)
    automatic = {"gpu_per_trial": _share_of_trial(nodes, request) if any_gpu else 0.0, "gpu_per_worker": float(any_gpu)}
    sentences = []
    for key, gpus in automatic.items():
        wanted = getattr(request.resources, key)
        if wanted == "auto":
            continue
        automatic[key] = gpus = whole_share(wanted)
        if abs(gpus - wanted) > 1 / GRAIN:
            sentences.append(
                f"resources.{key}: got {wanted:g}; expected 1, 1/2, 1/3, ... or 1/{PER_GPU} of a GPU; taken as "
                f"{gpus:g}, {int(1 / gpus)} on each."
            )
    return automatic["gpu_per_trial"], automatic["gpu_per_worker"], tuple(sentences)


def _share_of_trial(nodes: Sequence[Node], request: Request) -> float:
    """The part of a GPU that a trial takes where none is asked for: one for all machines, so the smallest decides."""
    if not request.n_trials:
        return 1.0
    spare = SPARE_CPUS if request.local else 0
    with_gpus = [n for n in nodes if n.gpus]
    by_cpu = min((n.cpus - spare) // request.resources.cpu_per_trial / n.gpus for n in with_gpus)
    by_number = request.n_trials / sum(n.gpus for n in with_gpus)
    memory = min(n.gpu_memory for n in with_gpus)
    return whole_share(1 / trials_per_gpu(memory, request.trial_gpu_memory, min(int(by_cpu), by_number)))


def _check_machines(nodes: Sequence[Node], request: Request, trial_gpus: float, worker_gpus: float) -> None:
    """Raise ClusterError where no single machine has what one trial or one worker takes."""
    spare = SPARE_CPUS if request.local else 0
    most_gpus = max((n.gpus for n in nodes), default=0)
    wanted = {"gpu_per_trial": trial_gpus if request.n_trials else 0, "gpu_per_worker": worker_gpus}
    for key, gpus in wanted.items():
        if gpus > most_gpus:
            raise ClusterError(
                f"resources.{key}: got {gpus:g}; expected at most {most_gpus:g}, the GPUs of the largest machine; give "
                f"that, 0 or auto (--set resources.{key}=auto)."
            )
    cpus = request.resources.cpu_per_trial
    most_cpus = max((n.cpus - spare for n in nodes if n.gpus >= trial_gpus), default=0.0)
    if request.n_trials and cpus > most_cpus:
        where = "the largest machine" + " with GPUs" * (trial_gpus > 0)
        raise ClusterError(
            f"resources.cpu_per_trial: got {cpus:g}; expected at most {most_cpus:g}, the CPUs of {where}; give at most "
            f"that (--set resources.cpu_per_trial={most_cpus:g})."
        )


def _trials_on(node: Node, request: Request, gpus_each: float) -> int:
    """Trials that one machine holds at a time."""
    by_cpu = int(node.cpus // request.resources.cpu_per_trial)
    by_memory = int(node.memory // request.process_memory)
    return min(by_cpu, by_memory, _slots(node, gpus_each) if gpus_each else by_cpu)


def _room(nodes: Sequence[Node], request: Request, gpus_each: float) -> tuple[int, int, float]:
    """How many workers the machines hold; how many of them in memory, at least one; and the CPUs of each.

    A worker takes a whole CPU where there are enough. Workers on GPUs take less where a machine has fewer CPUs than
    places on its GPUs, so that no GPU lies idle. One CPU in each machine with GPUs, or one in all, is left for reading
    and writing: half of it, where a machine has no more.

    Raises:
        ClusterError: fewer than are asked for.
    """
    cpus_each = 1.0
    if gpus_each:
        places = [_slots(n, gpus_each) if n.cpus >= 1 else 0 for n in nodes]
        shares = [_left(n.cpus) / slots for n, slots in zip(nodes, places, strict=True) if slots]
        cpus_each = min([1.0, *shares])
    else:
        total = sum(int(n.cpus) for n in nodes)
        places = [int(n.cpus) for n in nodes]
        if total == 1:
            cpus_each = _left(total)
        else:  # the CPU that is left is of the machine with the most
            places[places.index(max(places, default=0))] -= 1 if total else 0
    cpus_each = math.floor(cpus_each * GRAIN) / GRAIN
    room = sum(places)
    if room < 1:
        cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
        raise ClusterError(
            f"got a cluster of {cpus:g} CPUs and {gpus} GPUs; expected at least 1 CPU on a machine that can explain; "
            "give it more (ray start --num-cpus=2)."
        )
    asked = request.resources.workers
    if asked != "auto" and asked > room:
        raise ClusterError(
            f"resources.workers: got {asked}; expected at most {room}, since each takes {cpus_each:g} CPUs and "
            f"{gpus_each:g} GPUs; give at most that, or auto (--set resources.workers=auto)."
        )
    in_memory = sum(min(int(n.memory // request.process_memory), p) for n, p in zip(nodes, places, strict=True))
    return room, max(1, in_memory), cpus_each


def _left(cpus: float) -> float:
    """CPUs of a machine that workers may hold: all but one, or half of the only one."""
    return max(cpus - 1, cpus / 2)


def _slots(node: Node, gpus_each: float) -> int:
    """How many pieces of ``gpus_each`` GPUs fit on a machine; a fraction never spans two GPUs."""
    return int(node.gpus // gpus_each) if gpus_each >= 1 else node.gpus * int(1 / gpus_each)
