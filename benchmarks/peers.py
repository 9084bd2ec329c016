"""Images a second beside Quantus, torch-cam and grad-cam's ROADCombined: same images, levels, orders and network.

    pip install "cxr-ray[peers]"
    python -m benchmarks.peers [--json]

Ours ranks the maps, scores every masked image and takes the areas, with the level 0 that Quantus leaves out. Quantus
PixelFlipping flips 12 equal steps of all channel-pixels (``--steps``), in order morf. torch-cam's
DeletionInsertionMetric takes 20 equal steps in both orders, in batches of our size. ROADCombined imputes at 9
percentiles in both orders; ours uses the fill ``linear``. A peer that is missing is named and left out. Maps lie ready
for all, and so does the inference backend that a run would choose. It is a ResNet-18 with random weights, or that of
CXR_RAY_MODEL, on both sides in float32 without TF32; ``--precision`` changes ours alone.

Both sides of the ratios to Quantus and torch-cam run the same forward passes, and on a CPU these are nearly all of the
peers' time too (last ratio): there they are little more than that of the chosen backend to the eager one.
ROADCombined spends its time on sparse systems, and scores the untouched image 18 times.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from benchmarks.common import arguments, rates, ratio, show
from benchmarks.parity import PERCENTILES, chests, classifier, model_space, untied_maps, worker_scores
from benchmarks.plain import PRECISION
from cxr_ray.measure import fills, masking, metrics, rankings, scoring
from cxr_ray.models import backend_choice, backends
from cxr_ray.models.backends import Forward, layout_of
from cxr_ray.models.networks import Classifier

SIZE = 224
PLAIN = "as many plain passes, eager"
QUANTUS = "Quantus PixelFlipping"
TORCH_CAM_STEPS = 20


def areas(
    model: Classifier,
    forward: Forward,
    pixels: NDArray[np.uint8],
    maps: Tensor,
    levels: Sequence[float],
    orders: Sequence[str],
    batch: int,
) -> NDArray:
    """Rank, fill with grey, score and integrate, as the worker does: one row of metrics an image."""
    device = maps.device
    with torch.inference_mode():
        given = torch.from_numpy(pixels).to(device).float() / 255
        images = model.normalize(given)
        filled = model.normalize(fills.FILLS["grey"].make(given, model.mean, torch.arange(len(given), device=device)))
        flat = maps.flatten(1)
        places = rankings.rank(flat, rankings.smooth_field(torch.arange(len(flat), device=device), SIZE).flatten(1))
        ns = rankings.counts(levels, SIZE**2)
        canvas = masking.Canvas.of(images, filled[:, None], layout=layout_of(forward))
        image_of = torch.arange(len(flat), device=device)
        inner = scoring.masked_scores(forward, canvas, places, image_of, ns, orders, batch)[:, 0]
        ends = [forward(x)[:, None, None].expand(-1, len(orders), 1) for x in (images, filled)]
        logit = torch.cat([ends[0], inner, ends[1]], -1).double().cpu().numpy()
    by_order = {order: expit(logit[:, o]) for o, order in enumerate(orders)}
    return metrics.evaluate(by_order, levels, np.array([0, *ns, SIZE**2]) / SIZE**2)[1]


@dataclass(frozen=True)
class Task:
    """What both sides are given.

    Attributes:
        model, forward: ours, eager and on the backend that was chosen.
        theirs: the same network, as a user would hand it over.
        pixels: uint8 [N, 3, S, S]; ``images``: the same in model space, on the host.
        maps: [N, S, S], on the device.
        batch: masked images in a pass.
        steps: of Quantus.
    """

    model: Classifier
    forward: Forward
    theirs: Classifier
    pixels: NDArray[np.uint8]
    images: Tensor
    maps: Tensor
    batch: int
    steps: int

    def areas(self, steps: int, orders: Sequence[str]) -> int:
        """Ours at equal steps; the images that were done."""
        levels = [k / steps for k in range(1, steps)]
        areas(self.model, self.forward, self.pixels, self.maps, levels, orders, self.batch)
        return len(self.pixels)


Ways = dict[str, Callable[[], int]]  # a way's name to a function that does some images, and says how many


def quantus(task: Task, ours: str, theirs: str) -> Ways:
    """PixelFlipping of the top class, and as many passes without anything else."""
    from quantus import PixelFlipping

    images, device = task.images.numpy(), str(task.maps.device)
    top, maps = task.theirs(task.images.to(device)).argmax(1).cpu().numpy(), task.maps.cpu()[:, None].numpy()
    flipping = PixelFlipping(
        features_in_step=3 * SIZE**2 // task.steps, normalise=False, perturb_baseline=0.0, disable_warnings=True
    )

    def pixel_flipping() -> int:
        flipping(task.theirs, images.copy(), top, maps, softmax=True, device=device)
        return len(images)

    def plain() -> int:
        with torch.inference_mode():
            for _ in range(task.steps):
                task.theirs(task.images.to(device)).cpu()
        return len(images)

    return {ours: partial(task.areas, task.steps, ["morf"]), theirs: pixel_flipping, PLAIN: plain}


class _Ready:
    """The extractor of maps that torch-cam's metric asks, with maps that lie ready [N, S, S]."""

    def __init__(self, model: nn.Module, maps: Tensor):
        self.model, self.maps = model, maps

    def __call__(self, *asked: Any, **more: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def torch_cam(task: Task, ours: str, theirs: str) -> Ways:
    """DeletionInsertionMetric of the top class."""
    from torchcam.metrics import DeletionInsertionMetric

    images = task.images.to(task.maps.device)

    def deletion_insertion() -> int:
        extractor, softmax = _Ready(task.theirs, task.maps), partial(torch.softmax, dim=-1)
        metric = DeletionInsertionMetric(extractor, softmax, steps=TORCH_CAM_STEPS, batch_size=task.batch)
        metric.update(images)
        return len(images)

    return {ours: partial(task.areas, TORCH_CAM_STEPS, ["morf", "lerf"]), theirs: deletion_insertion}


def road(task: Task, ours: str, theirs: str) -> Ways:
    """ROADCombined of an image."""
    from pytorch_grad_cam.metrics.road import ROADCombined

    combined, nine = ROADCombined(PERCENTILES), [p / 100 for p in PERCENTILES]
    images, maps = task.images[:1].to(task.maps.device), task.maps[:1].cpu().numpy()

    def both_orders() -> int:  # the whole worker, tables and all: what it fills depends on the mask
        worker_scores(task.model, task.pixels, task.maps, "linear", nine, task.forward)
        return len(task.pixels)

    def road_combined() -> int:
        combined(images, maps, [lambda z: z[1] - z[0]], task.theirs)
        return 1

    return {ours: both_orders, theirs: road_combined}


class Peer(NamedTuple):
    """A package beside ours: its import and requirement, the names of both sides, and the ratios that are to reach."""

    name: str
    module: str
    requirement: str
    ours: str
    theirs: str
    ways: Callable[[Task, str, str], Ways]
    on_gpu: float
    on_cpu: float


PEERS = (
    Peer("Quantus", "quantus", "quantus==0.6.0", "ours, one order", QUANTUS, quantus, 20.0, 4.0),
    Peer(
        "torch-cam",
        "torchcam",
        "torchcam==0.5.0",
        "ours, deletion and insertion",
        "torch-cam DeletionInsertionMetric",
        torch_cam,
        9.0,
        1.0,
    ),
    Peer(
        "grad-cam",
        "pytorch_grad_cam",
        "grad-cam==1.5.7",
        "ours, both orders",
        "grad-cam ROADCombined",
        road,
        20.0,
        6.0,
    ),
)


def main() -> int:
    """Times the peers that are installed beside ours and prints rates, ratios and targets."""
    args = arguments(
        __doc__,
        images=(int, 2, "images"),
        steps=(int, 12, "steps of Quantus, a multiple of 3"),
        batch=(int, 32, "masked images in a pass"),
        rounds=(int, 3, "rounds"),
        seconds=(float, 4.0, "seconds a form and round, at least"),
        precision=PRECISION,
    )
    if args.steps % 3 or SIZE**2 % (args.steps // 3):
        print(f"peers: --steps is {args.steps}; Quantus needs 3 k, with k a divisor of {SIZE**2}", file=sys.stderr)
        return 2
    backends.full_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    theirs, model = classifier(SIZE).to(device), classifier(SIZE).to(device).to(memory_format=torch.channels_last)
    pixels, maps = chests(SIZE, args.images), untied_maps(args.images, SIZE).to(device)
    backend, forward = backend_choice.choose(model, SIZE, args.batch, 10**7, args.precision)
    images = model_space(classifier(SIZE), pixels)
    task = Task(model, forward, theirs, pixels, images, maps, args.batch, args.steps)
    notes, ways, targets = {"backend": str(backend)}, Ways(), {}
    for peer in PEERS:
        if find_spec(peer.module):
            ways |= peer.ways(task, peer.ours, peer.theirs)
            targets[f"{peer.ours} / {peer.theirs}"] = peer.on_gpu if device.type == "cuda" else peer.on_cpu
        else:
            notes[peer.name] = f"missing; pip install {peer.requirement}"
    measured = rates(ways, args.rounds, args.seconds)
    names = [*targets, *([f"{QUANTUS} / {PLAIN}"] if QUANTUS in ways else [])]
    ratios = {name: ratio(measured, *name.split(" / ")) for name in names}
    show("peers", measured, ratios, targets, unit="images/s", as_json=args.json, **notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
