"""An allocation is a pure function of the machines and of what a run asks of them: tables of cases, without Ray."""

from typing import Any

import pytest

from cxr_ray.errors import ClusterError
from cxr_ray.run import cluster, sharing
from cxr_ray.run.cluster import Allocation, Node, Request, allocate
from cxr_ray.sweepfile import resolve

GIB = 2**30


def allocated(*nodes: tuple, n_trials: int = 9, size: int = 224, local: bool = True, **asked) -> Allocation:
    """What machines of (CPUs, GPUs, GiB, GiB of a GPU) give; a local one has its spare CPUs as well."""
    spare = cluster.SPARE_CPUS if local else 0
    machines = [Node(cpus + spare, gpus, gib * GIB, *(g * GIB for g in of_gpu)) for cpus, gpus, gib, *of_gpu in nodes]
    of_trial = 5.0 * GIB if n_trials else 0.0  # as a run says it
    return allocate(machines, Request(resolve({"resources": asked}).resources, n_trials, size, local, of_trial))


LAPTOP = (8, 0, 64)
TWO_GPUS = (8, 2, 64)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "no GPU: workers share the CPUs, one thread each": (
        lambda: allocated(LAPTOP),
        {"workers": 8, "threads": 1, "worker_gpus": 0, "concurrent_trials": 8, "trial_cpus": 1, "trial_gpus": 0},
    ),
    "few workers are given more threads": (lambda: allocated(LAPTOP, workers=2), {"workers": 2, "threads": 4}),
    "one GPU: one worker and one trial hold it": (
        lambda: allocated((8, 1, 64)),
        {"workers": 1, "worker_gpus": 1, "threads": 0, "concurrent_trials": 1, "trial_cpus": 1, "trial_gpus": 1},
    ),
    "two GPUs: a worker and a trial each": (
        lambda: allocated(TWO_GPUS),
        {"workers": 2, "concurrent_trials": 2, "trial_cpus": 1},
    ),
    "a GPU that is left alone": (
        lambda: allocated(TWO_GPUS, gpu_per_worker=0, gpu_per_trial=0),
        {"workers": 8, "worker_gpus": 0, "trial_gpus": 0, "concurrent_trials": 8},
    ),
    "fractions fill each GPU": (
        lambda: allocated(TWO_GPUS, gpu_per_worker=0.25, gpu_per_trial=0.5),
        {"workers": 8, "worker_gpus": 0.25, "concurrent_trials": 4},
    ),
    "fractions never span two GPUs": (
        lambda: allocated(TWO_GPUS, gpu_per_worker=0.6, gpu_per_trial=0.4),
        {"workers": 2, "worker_gpus": 1, "concurrent_trials": 4, "trial_gpus": 0.5},
    ),
    "whole GPUs never span two machines": (
        lambda: allocated((8, 3, 64), (8, 3, 64), local=False, gpu_per_worker=2),
        {"workers": 2, "concurrent_trials": 6, "n_nodes": 2},
    ),
    "a cluster keeps a CPU for reading and writing": (
        lambda: allocated(LAPTOP, LAPTOP, local=False, n_trials=99),
        {"workers": 15, "threads": 0, "concurrent_trials": 16, "trial_cpus": 1},
    ),
    "no more trials at a time than there are": (lambda: allocated(LAPTOP, n_trials=3), {"concurrent_trials": 3}),
    "nothing to train": (lambda: allocated(LAPTOP, n_trials=0, gpu_per_trial=4), {"workers": 8}),
    "nothing to train on a machine with a GPU": (
        lambda: allocated((8, 1, 64, 80), n_trials=0),
        {"workers": 1, "worker_gpus": 1},
    ),
    "memory bounds workers and trials": (
        lambda: allocated((8, 0, 6)),
        {"workers": 2, "threads": 4, "concurrent_trials": 2},
    ),
    "small images take less memory": (
        lambda: allocated((8, 0, 6), size=64),
        {"workers": 4, "threads": 2, "concurrent_trials": 4},
    ),
    "workers that are asked for are had": (
        lambda: allocated((8, 0, 6), workers=8),
        {"workers": 8, "threads": 1, "memory_bound": None},
    ),
    "one worker is had whatever the memory": (lambda: allocated((8, 0, 0.5)), {"workers": 1}),
    "memory counts by machine": (
        lambda: allocated((17, 0, 5), (16, 0, 5), (16, 0, 2), local=False),
        {"workers": 2, "concurrent_trials": 2, "threads": 0},
    ),
    # few CPUs: who reads and writes must find one
    "one CPU: half of it for the worker": (
        lambda: allocated((1, 0, 64), local=False),
        {"workers": 1, "worker_cpus": 0.5, "concurrent_trials": 1, "trial_cpus": 1},
    ),
    "one CPU of this machine, and the spare one": (
        lambda: allocated((1, 0, 64)),
        {"workers": 1, "worker_cpus": 1, "threads": 1, "concurrent_trials": 1, "trial_cpus": 1},
    ),
    "two CPUs": (lambda: allocated((2, 0, 64), local=False), {"workers": 1, "worker_cpus": 1, "concurrent_trials": 2}),
    "three CPUs": (lambda: allocated((3, 0, 64), local=False), {"workers": 2, "worker_cpus": 1}),
    "three machines of one CPU each": (
        lambda: allocated(*[(1, 0, 64)] * 3, local=False),
        {"workers": 2, "worker_cpus": 1, "concurrent_trials": 3},
    ),
    "a GPU and one CPU": (
        lambda: allocated((1, 1, 64), local=False),
        {"workers": 1, "worker_cpus": 0.5, "concurrent_trials": 1},
    ),
    "a GPU and two CPUs": (lambda: allocated((2, 1, 64), local=False), {"workers": 1, "worker_cpus": 1}),
    "four GPUs and one CPU: all of them work": (
        lambda: allocated((1, 4, 64), local=False),
        {"workers": 4, "worker_cpus": 0.125, "concurrent_trials": 1},
    ),
    "four GPUs and two CPUs": (
        lambda: allocated((2, 4, 64), local=False),
        {"workers": 4, "worker_cpus": 0.25, "concurrent_trials": 2},
    ),
    "four GPUs and three CPUs, on this machine": (
        lambda: allocated((3, 4, 64)),
        {"workers": 4, "worker_cpus": 0.75, "concurrent_trials": 3},
    ),
    "as many GPUs as CPUs": (lambda: allocated((8, 8, 64), local=False), {"workers": 8, "worker_cpus": 0.875}),
    "CPUs of a machine without GPUs help no GPU": (
        lambda: allocated((1, 4, 64), (64, 0, 64), local=False),
        {"workers": 4, "worker_cpus": 0.125, "concurrent_trials": 1},
    ),
    "a head without CPUs": (
        lambda: allocated((0, 0, 64), (8, 2, 64), local=False),
        {"workers": 2, "worker_cpus": 1, "concurrent_trials": 2},
    ),
    "GPUs without a CPU are left alone": (
        lambda: allocated((0, 2, 64), (8, 2, 64), local=False),
        {"workers": 2, "worker_cpus": 1, "concurrent_trials": 2},
    ),
    "CPUs for a trial are of one machine": (
        lambda: allocated((3, 0, 64), (3, 0, 64), local=False, cpu_per_trial=2),
        {"concurrent_trials": 2},
    ),
    # trials of 5 GiB share GPUs
    "a large GPU is shared": (
        lambda: allocated((16, 1, 64, 80)),
        {"trial_gpus": 0.25, "concurrent_trials": 4, "worker_gpus": 1, "workers": 1},
    ),
    "by three, as memory allows": (
        lambda: allocated((16, 1, 64, 20)),
        {"trial_gpus": 0.3333, "concurrent_trials": 3},
    ),
    "a small GPU is not shared": (lambda: allocated((16, 1, 64, 8)), {"trial_gpus": 1, "concurrent_trials": 1}),
    "nor one whose memory is unknown": (lambda: allocated((16, 1, 64, 0)), {"trial_gpus": 1, "concurrent_trials": 1}),
    "few trials spread over all GPUs": (
        lambda: allocated((16, 4, 64, 80), n_trials=4),
        {"trial_gpus": 1, "concurrent_trials": 4},
    ),
    "five trials on four GPUs": (
        lambda: allocated((16, 4, 64, 80), n_trials=5),
        {"trial_gpus": 0.5, "concurrent_trials": 5},
    ),
    "few CPUs spread over all GPUs": (
        lambda: allocated((4, 4, 64, 80), n_trials=99),
        {"trial_gpus": 1, "concurrent_trials": 4},
    ),
    "CPUs bound the trials on a GPU": (
        lambda: allocated((2, 1, 64, 80)),
        {"trial_gpus": 0.5, "concurrent_trials": 2, "trial_cpus": 1},
    ),
    "the smallest GPU decides": (
        lambda: allocated((16, 1, 64, 80), (16, 1, 64, 12), local=False),
        {"trial_gpus": 0.5, "concurrent_trials": 4},
    ),
    "a trial has a GPU of its own where that is asked for": (
        lambda: allocated((16, 1, 64, 80), gpu_per_trial=1),
        {"trial_gpus": 1, "concurrent_trials": 1},
    ),
    "batches as asked": (lambda: allocated(LAPTOP, batch_size=32), {"batch_size": 32}),
    "batches found on the device": (lambda: allocated(LAPTOP), {"batch_size": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_machines_are_divided(case):
    made, expected = CASES[case]
    allocation = made()
    assert {name: getattr(allocation, name) for name in expected} == expected


def test_trials_share_the_cpus_of_a_machine_that_has_no_gpu_and_no_more_of_them():
    assert [allocated(LAPTOP, n_trials=n).trial_cpus for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    assert allocated(LAPTOP, n_trials=1, cpu_per_trial=3).trial_cpus == 8
    assert allocated(LAPTOP, n_trials=20, cpu_per_trial=3).trial_cpus == 4
    assert allocated(TWO_GPUS, n_trials=1).trial_cpus == 1
    assert allocated(LAPTOP, n_trials=1, local=False).trial_cpus == 1


def test_the_line_says_where_memory_is_the_bound():
    assert allocated((8, 0, 6)).line == (
        "Ray on this machine: CPUs 8, no GPU, so on CPUs. Trials at a time: up to 2; then workers: 2. More would not "
        "fit in memory, at 2.8 GiB each (resources.workers overrides)."
    )
    assert allocated(TWO_GPUS, TWO_GPUS, local=False).line == (
        "Ray on the cluster of 2 machines: CPUs 16, GPUs 4. Trials at a time: up to 4; then workers: 4."
    )


def test_the_line_says_how_many_trials_share_a_gpu():
    assert allocated((16, 2, 64, 20)).line == (
        "Ray on this machine: CPUs 16, GPUs 2. Trials at a time: up to 6, 3 on a GPU; then workers: 2."
    )


TOO_MUCH = {
    "a GPU for workers": (
        lambda: allocated(LAPTOP, gpu_per_worker=1),
        "resources.gpu_per_worker: got 1; expected at most 0, the GPUs of the largest machine; give that, 0 or auto "
        "(--set resources.gpu_per_worker=auto).",
    ),
    "GPUs for trials on several machines": (
        lambda: allocated(TWO_GPUS, TWO_GPUS, local=False, gpu_per_trial=3),
        "resources.gpu_per_trial: got 3; expected at most 2, ",
    ),
    "CPUs for a trial": (
        lambda: allocated(LAPTOP, cpu_per_trial=9),
        "resources.cpu_per_trial: got 9; expected at most 8, the CPUs of the largest machine; give at most that (--set "
        "resources.cpu_per_trial=8).",
    ),
    "workers on CPUs": (
        lambda: allocated(LAPTOP, workers=999),
        "resources.workers: got 999; expected at most 8, since each takes 1 CPUs and 0 GPUs; give at most that, or ",
    ),
    "workers on GPUs": (
        lambda: allocated(TWO_GPUS, workers=3),
        "resources.workers: got 3; expected at most 2, since each takes 1 CPUs and 1 GPUs; ",
    ),
    "explaining without a CPU": (
        lambda: allocated((0, 0, 64), local=False, n_trials=0),
        "got a cluster of 0 CPUs and 0 GPUs; expected at least 1 CPU on a machine that can explain; ",
    ),
    "explaining on GPUs without a CPU": (
        lambda: allocated((0, 2, 64), (8, 0, 64), local=False, n_trials=0),
        "got a cluster of 8 CPUs and 2 GPUs; expected at least 1 CPU on a machine that can explain; ",
    ),
    "CPUs for a trial on another machine than the GPUs": (
        lambda: allocated((1, 4, 64), (64, 0, 64), local=False, cpu_per_trial=2),
        "resources.cpu_per_trial: got 2; expected at most 1, the CPUs of the largest machine with GPUs; ",
    ),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_more_than_there_is_is_refused(case):
    made, sentence = TOO_MUCH[case]
    with pytest.raises(ClusterError) as refused:
        made()
    assert str(refused.value).startswith(sentence)


def test_a_machine_without_a_trial_may_be_asked_for_any_gpus_of_trials():
    assert allocated(LAPTOP, n_trials=0, gpu_per_trial=8).concurrent_trials == 1


@pytest.mark.parametrize("pieces", range(1, sharing.PER_GPU + 1))
def test_equal_shares_of_a_gpu_leave_no_rest_on_eight_gpus_that_looks_like_another_share(pieces):
    share = sharing.whole_share(1 / pieces)
    grains = round(share * sharing.GRAIN)
    assert grains / sharing.GRAIN == share, "what Ray counts"
    assert pieces * grains <= sharing.GRAIN, "all of them fit"
    assert 8 * (sharing.GRAIN - pieces * grains) < grains
    assert allocated((64, 8, 9e9), gpu_per_worker=1 / pieces, n_trials=0, local=False).workers == 8 * pieces


@pytest.mark.parametrize(
    ("asked", "taken", "on_each"), [(0.3, 0.3333, 3), (0.34, 0.5, 2), (0.4, 0.5, 2), (0.51, 1, 1), (0.001, 0.0312, 32)]
)
def test_a_fraction_that_does_not_divide_a_gpu_is_rounded_up_and_said(asked, taken, on_each):
    allocation = allocated((64, 2, 9e9), gpu_per_worker=asked, n_trials=0)
    assert (allocation.worker_gpus, allocation.workers) == (taken, 2 * on_each)
    assert allocation.line.splitlines()[1:] == [
        f"resources.gpu_per_worker: got {asked:g}; expected 1, 1/2, 1/3, ... or 1/32 of a GPU; taken as {taken:g}, "
        f"{on_each} on each."
    ]


def test_fractions_that_divide_a_gpu_are_not_mentioned():
    for fraction in (0, 0.5, 1 / 3, 0.3333, 0.25, 0.2, 1 / 7, 1, 2):
        assert "\n" not in allocated((64, 2, 9e9), gpu_per_worker=fraction, gpu_per_trial=fraction).line


def test_a_node_is_as_ray_counts_it():
    assert Node.from_ray({"CPU": 4.0, "GPU": 1.0, "memory": 5e9}) == Node(4.0, 1, 5e9)
    assert Node.from_ray({}) == Node(0.0, 0, cluster.UNKNOWN_MEMORY)
