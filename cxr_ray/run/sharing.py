"""How many processes share a GPU: functions of its memory, which nvidia-smi tells."""

from __future__ import annotations

import math
import subprocess

PER_GPU = 32  # workers or trials on one GPU: each has a CUDA context
GRAIN = 10_000  # Ray counts CPUs and GPUs in parts of this
TRIALS_PER_GPU = 4  # one trial at a time left an H200 idle for nine tenths, its process's start included
FREE = 0.1  # of a GPU's memory, for what the estimates leave out


def whole_share(gpus: float) -> float:
    """The least share of a GPU, 1/2, 1/3, ... that holds ``gpus``, in Ray's grain; a whole number as it is.

    A share that does not divide a GPU leaves a rest on each. Ray adds these up, takes a machine of many GPUs for free,
    and waits there for ever: https://github.com/ray-project/ray/issues/52133.

    >>> [whole_share(gpus) for gpus in (0, 0.5, 0.4, 0.3, 0.6, 1, 2)]
    [0.0, 0.5, 0.5, 0.3333, 1.0, 1.0, 2.0]
    """
    if not 0 < gpus < 1:
        return float(gpus)
    pieces = min(int(1 / gpus + 1e-9), PER_GPU)
    return GRAIN // pieces / GRAIN


def trials_per_gpu(gpu_memory: float, trial_memory: float, places: float) -> int:
    """Trials that share a GPU: as memory allows, at most TRIALS_PER_GPU, and no more than spread over all GPUs.

    Ray fills one GPU before it takes the next, so that a share too small would leave GPUs idle.

    Args:
        gpu_memory: bytes of the smallest GPU, 0 where it is unknown: then a trial has a GPU of its own.
        trial_memory: bytes of a GPU that a trial takes.
        places: trials at a time for each GPU, from their number and the CPUs; parts count as whole ones.
    """
    by_memory = int(gpu_memory * (1 - FREE) // trial_memory)
    return max(1, min(by_memory, TRIALS_PER_GPU, math.ceil(places)))


def smallest_gpu() -> float:
    """Bytes of the smallest GPU of this machine, as nvidia-smi says; 0 where it does not, or where GPUs are sliced."""
    query = ["nvidia-smi", "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        lines = [line.split(",") for line in answer.strip().splitlines()]
        return 0.0 if any("Enabled" in mig for _, mig in lines) else min(float(mib) for mib, _ in lines) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0.0
