"""Images a second beside Quantus PixelFlipping and grad-cam's ROADCombined: same images, levels, orders and network.

    pip install "cxr-ray[peers]"
    python -m benchmarks.peers [--json]

Ours ranks the maps, scores every masked image and takes the areas, with the level 0 that Quantus leaves out. Quantus
flips 12 equal steps of all channel-pixels (``--steps``), in order morf. ROADCombined imputes at 9 percentiles in both
orders; ours uses the fill ``linear``. A peer that is missing is named and left out. Maps lie ready for all, and so does
the inference backend that a run would choose. It is a ResNet-18 with random weights, or that of CXR_RAY_MODEL, on
both sides in float32 without TF32; ``--precision`` changes ours alone.

Both sides of the first ratio run the same forward passes, and on a CPU these are nearly all of Quantus's time too (last
ratio): there the first is little more than that of the chosen backend to the eager one.
ROADCombined spends its time on sparse systems, and scores the untouched image 18 times.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from benchmarks.common import arguments, rates, ratio, show
from benchmarks.parity import PERCENTILES, chests, classifier, model_space, untied_maps, worker_scores
from benchmarks.plain import PRECISION
from cxr_ray.measure import fills, masking, metrics, rankings, scoring
from cxr_ray.models import backend_choice, backends
from cxr_ray.models.backends import Forward, layout_of
from cxr_ray.models.networks import Classifier

SIZE = 224
PLAIN = "as many plain passes, eager"
OURS_FLIPPING, OURS_ROAD = "ours, one order", "ours, both orders"
QUANTUS, ROAD = "Quantus PixelFlipping", "grad-cam ROADCombined"


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
    model = classifier(SIZE)
    theirs = classifier(SIZE).to(device)  # as a user would hand it over
    model = model.to(device).to(memory_format=torch.channels_last)
    pixels, maps = chests(SIZE, args.images), untied_maps(args.images, SIZE)
    backend, forward = backend_choice.choose(model, SIZE, args.batch, 10**7, args.precision)
    notes = {"backend": str(backend)}
    on_device, images = maps.to(device), model_space(classifier(SIZE), pixels)
    ways: dict[str, Callable[[], int]] = {}
    targets: dict[str, float] = {}

    if find_spec("quantus"):
        import quantus

        top = theirs(images.to(device)).argmax(1).cpu().numpy()
        flipping = quantus.PixelFlipping(
            features_in_step=3 * SIZE**2 // args.steps, normalise=False, perturb_baseline=0.0, disable_warnings=True
        )
        levels = [k / args.steps for k in range(1, args.steps)]

        def one_order() -> int:
            areas(model, forward, pixels, on_device, levels, ["morf"], args.batch)
            return args.images

        def pixel_flipping() -> int:
            flipping(theirs, images.numpy().copy(), top, maps[:, None].numpy(), softmax=True, device=str(device))
            return args.images

        def plain() -> int:
            with torch.inference_mode():
                for _ in range(args.steps):
                    theirs(images.to(device)).cpu()
            return args.images

        ways |= {OURS_FLIPPING: one_order, QUANTUS: pixel_flipping, PLAIN: plain}
        targets[f"{OURS_FLIPPING} / {QUANTUS}"] = 20.0 if device.type == "cuda" else 4.0
    else:
        notes["Quantus"] = "missing; pip install quantus==0.6.0"

    if find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam.metrics.road import ROADCombined

        combined = ROADCombined(PERCENTILES)
        nine = [p / 100 for p in PERCENTILES]

        def both_orders() -> int:  # the whole worker, tables and all: what it fills depends on the mask
            worker_scores(model, pixels, on_device, "linear", nine, forward)
            return args.images

        def road_combined() -> int:
            combined(images[:1].to(device), maps[:1].numpy(), [lambda z: z[1] - z[0]], theirs)
            return 1

        ways |= {OURS_ROAD: both_orders, ROAD: road_combined}
        targets[f"{OURS_ROAD} / {ROAD}"] = 20.0 if device.type == "cuda" else 6.0
    else:
        notes["grad-cam"] = "missing; pip install grad-cam==1.5.7"

    measured = rates(ways, args.rounds, args.seconds)
    names = [*targets, *([f"{QUANTUS} / {PLAIN}"] if QUANTUS in ways else [])]
    ratios = {name: ratio(measured, *name.split(" / ")) for name in names}
    show("peers", measured, ratios, targets, unit="images/s", as_json=args.json, **notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
