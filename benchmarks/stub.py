"""A sweep in this process and its workers with a stub as network, and a clock on each stage: ``growth`` starts it.

The stub has the name and the layers' names of a ResNet-18 that matter here, and costs next to nothing: what is left is
what the product adds to the network.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxr_ray.models import backend_choice, networks
from cxr_ray.models.backend_choice import InferenceBackend
from cxr_ray.models.backends import Forward
from cxr_ray.models.networks import Classifier

SIDE = 4  # of the pooled image that the stub reads
# In the environment: what a masked image takes on a device that is not there, and how many such devices there are.
PASS_SECONDS, DEVICES = "STUB_PASS_SECONDS", "STUB_DEVICES"


class Stub(nn.Module):
    """A linear layer on the image pooled to 4 x 4."""

    def __init__(self, outputs: int):
        super().__init__()
        self.fc = nn.Linear(3 * SIDE * SIDE, outputs)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, outputs]."""
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(images_BCHW, SIDE)
        logits: Tensor = self.fc(pooled.flatten(1))
        return logits


def install() -> None:
    """Put the stub in the place of ResNet-18; in the driver, and in each process that Ray starts."""
    kind = networks.NETWORKS["resnet18"]
    networks.NETWORKS["resnet18"] = networks.Network(Stub, kind.imagenet, "stub")
    if seconds := float(os.environ.get(PASS_SECONDS, "0")):
        backend_choice.choose = functools.partial(_asleep, seconds)


def _asleep(seconds: float, model: Classifier, *settings: Any) -> tuple[InferenceBackend, Forward]:
    """In the place of ``backend_choice.choose``: the stub, and a sleep for what a device would take."""

    def scores(images: Tensor) -> Tensor:
        time.sleep(seconds * len(images))
        return model.log_odds(images)

    return InferenceBackend("eager", {}), scores


class Clock:
    """Seconds of each stage, and what the driver's own CPU spent in it."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self.files: dict[str, int] = {}

    def start(self, name: str) -> Callable[[], None]:
        """Begin a stage; the function returned ends it."""
        begun, cpu = time.monotonic(), _cpu_seconds()

        def end() -> None:
            stage = {"name": name, "start": begun, "end": time.monotonic(), "driver_cpu": _cpu_seconds() - cpu}
            self.stages.append(stage)

        return end

    def time(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of a function of the package."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            end = self.start(name)
            try:
                return function(*args, **kwargs)
            finally:
                end()

        setattr(owner, attribute, timed)

    def time_shards(self, owner: Any, attribute: str) -> None:
        """Time a pass over shards, whose function is a generator, from its first shard on: no start-up."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(shard_pass: Any, shards: Any) -> Iterator[Any]:
            name = "maps" if shard_pass.is_map_pass else "scores"
            started, end, done = self.start(f"{name}, start-up"), None, 0
            for row in function(shard_pass, shards):
                if end is None:
                    started()
                    end = self.start(name)
                else:
                    done += 1
                yield row
            if end is not None:
                end()
                self.stages[-1]["shards"] = done

        setattr(owner, attribute, timed)

    def count_files(self, out: str) -> None:
        """The files of the run where they are most, before the merge, and of its fullest folder."""
        folders = [len(names) for _, _, names in os.walk(out)]
        self.files = {"files": sum(folders), "fullest folder": max(folders)}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(argv: list[str]) -> int:
    """Run ``cxr_ray.sweep`` with these arguments; the file before them gets the clock's stages as JSON."""
    import ray

    from cxr_ray import sweep
    from cxr_ray.report import document
    from cxr_ray.run import context, merging, pipeline, ray_start, statistics

    stages, *arguments = argv
    out = arguments[arguments.index("--out") + 1]
    torch.set_num_threads(1)
    install()
    ray.init = functools.partial(ray.init, runtime_env={"worker_process_setup_hook": f"{__package__}.stub.install"})
    if devices := int(os.environ.get(DEVICES, "0")):
        # One for each worker, as Ray counts; they share those that there are.
        vars(ray_start)["usable_cpus"] = lambda: devices
    clock = Clock()
    clock.time(context, "load_manifest", "manifest")
    clock.time_shards(pipeline, "compute_shards")
    clock.time(pipeline, "sum_maps", "sums of maps")
    clock.time(merging, "merge", "merge")
    clock.time(statistics, "write_statistics", "statistics")
    clock.time(document, "write_report", "page")
    merge = merging.merge

    @functools.wraps(merge)
    def counted(*args: Any, **kwargs: Any) -> Any:
        clock.count_files(out)
        return merge(*args, **kwargs)

    merging.merge = counted
    whole = clock.start("whole")
    code = sweep.main(arguments)
    whole()
    Path(stages).write_text(json.dumps({"stages": clock.stages, "files": clock.files}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
