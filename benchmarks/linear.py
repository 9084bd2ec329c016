"""Linear imputation of a batch beside one sparse solve an image, and beside forward passes of ResNet-18, in one run.

A sparse solve takes an image's missing pixels from the system of all, which stands ready, factorises and solves
(scipy's spsolve): one channel, as ours does where an image's channels are equal. It is as fast as we could make it. A
peer's is grad-cam's, where that is installed: it builds the system anew and solves three channels.
Masks are smooth fields above a threshold, as a class activation map gives them (``--shape random``: random pixels).
Each image has its own. The error is ours against the sparse solution, the greatest of all pixels, images and levels.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from benchmarks.common import arguments, rates, ratio, show
from cxr_ray import randomness
from cxr_ray.measure import imputation, rankings
from cxr_ray.models import backends, networks
from cxr_ray.models.networks import ModelSpec

LEVELS = (0.1, 0.25, 0.5, 0.9)
TARGET = 20.0


def sparse_solver(size: int) -> Callable[[NDArray[np.floating], NDArray[np.bool_]], NDArray[np.floating]]:
    """Image and missing pixels, both [S * S], to the exact imputation."""
    step, one = sparse.diags([np.ones(size - 1), np.ones(size - 1)], [-1, 1]), sparse.identity(size)
    weights = ((sparse.kron(step, one) + sparse.kron(one, step)) / 6 + sparse.kron(step, step) / 12).tocsr()
    system = (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()

    def solve(image: NDArray[np.floating], missing: NDArray[np.bool_]) -> NDArray[np.floating]:
        out, rows = image.astype(np.float64), system[missing]
        out[missing] = spsolve(rows[:, missing].tocsc(), -(rows[:, ~missing] @ out[~missing]))
        return out

    return solve


def main() -> None:
    """Measures and prints."""
    args = arguments(__doc__, size=(int, 224, "side of the images"), batch=(int, 32, "images in a batch"),
                     rounds=(int, 5, "rounds"), seconds=(float, 1.0, "seconds a form and round"),
                     threads=(int, 1, "torch threads"), shape=(str, "smooth", "of the masks: smooth or random"),
                     levels=(str, ",".join(map(str, LEVELS)), "shares of missing pixels"))  # fmt: skip
    torch.set_num_threads(args.threads)
    backends.full_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys, size = torch.arange(args.batch, device=device), args.size
    images = rankings.smooth_field(keys, size) * 0.8
    images = images + 0.2 * randomness.uniform(keys + 1000, size * size).view_as(images)
    if args.shape == "smooth":
        fields = rankings.smooth_field(keys + 2000, size, gaussian=True).flatten(1)
    else:
        fields = randomness.uniform(keys + 2000, size * size)
    places = rankings.rank(fields, fields)
    masks = {level: (places < round(level * size**2)).view_as(images) for level in map(float, args.levels.split(","))}
    model = networks.build("resnet18", ModelSpec("resnet18", size)).to(device, memory_format=torch.channels_last)
    batch = images[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    direct = sparse_solver(size)

    def done(count: int) -> int:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count

    def imputed(level: float) -> Callable[[], int]:
        return lambda: done(len(imputation.linear(images, masks[level])))

    def solved(level: float) -> Callable[[], int]:
        turn = iter(range(10**9))

        def one() -> int:
            i = next(turn) % args.batch
            direct(images[i].flatten().cpu().numpy(), masks[level][i].flatten().cpu().numpy())
            return 1

        return one

    def peer(level: float) -> Callable[[], int]:
        from pytorch_grad_cam.metrics.road import NoisyLinearImputer

        imputer = NoisyLinearImputer(noise=0)
        image, known = images[:1].expand(3, -1, -1).cpu(), (~masks[level][0]).float().cpu()
        return lambda: len(imputer(image, known)[None])

    def forward() -> int:
        model.log_odds(batch)
        return done(len(batch))

    def error(level: float) -> float:
        made = imputation.linear(images, masks[level]).flatten(1).cpu().numpy()
        pairs = zip(images.flatten(1).cpu().numpy(), masks[level].flatten(1).cpu().numpy(), made, strict=True)
        return max(float(np.abs(direct(image, mask) - ours).max()) for image, mask, ours in pairs)

    with torch.inference_mode():
        kinds: dict[str, Callable[[], int]] = {"forward": forward}
        for level in masks:
            kinds |= {f"imputed {level:g}": imputed(level), f"sparse {level:g}": solved(level)}
            if find_spec("pytorch_grad_cam"):
                kinds[f"grad-cam {level:g}"] = peer(level)
        measured = rates(kinds, args.rounds, args.seconds)
        errors = {f"{level:g}": error(level) for level in masks}
    ratios = {
        f"imputed / {other} {level:g}": ratio(measured, f"imputed {level:g}", f"{other} {level:g}")
        for other in ("sparse", "grad-cam")
        for level in masks
        if f"{other} {level:g}" in measured
    }
    costs = {f"{level:g}": round(ratio(measured, "forward", f"imputed {level:g}"), 4) for level in masks}
    show("linear", measured, ratios, dict.fromkeys(ratios, TARGET), unit="images/s", as_json=args.json,
         **{"masks": args.shape, "max error": f"{max(errors.values()):.1e} (1e-3 is allowed)",
            "imputation in forward passes": costs})  # fmt: skip


if __name__ == "__main__":
    main()
