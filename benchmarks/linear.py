"""Linear imputation of a batch beside one sparse solve an image, and beside forward passes of ResNet-18, in one run.

A sparse solve takes an image's missing pixels from the system of all, which stands ready, factorises and solves
(scipy's spsolve): one channel, as ours does where an image's channels are equal. It is as fast as we could make it. A
peer's is grad-cam's, where that is installed: it builds the system anew and solves three channels.
Masks are smooth fields above a threshold, as a class activation map gives them (``--shape random``: random pixels).
Each image has its own. The error is ours against the sparse solution, the greatest of all pixels, images and levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch import Tensor

from benchmarks.common import arguments, rates, ratio, show
from cxr_ray import randomness
from cxr_ray.measure import imputation, rankings, smoothness
from cxr_ray.models import backends, networks
from cxr_ray.models.networks import ModelSpec

LEVELS = (0.1, 0.25, 0.5, 0.9)
TARGET = 20.0

Solver = Callable[[NDArray[np.floating], NDArray[np.bool_]], NDArray[np.floating]]


def sparse_solver(size: int) -> Solver:
    """Image and missing pixels, both [S * S], to the exact imputation."""
    step, one = sparse.diags([np.ones(size - 1), np.ones(size - 1)], [-1, 1]), sparse.identity(size)
    weights = ((sparse.kron(step, one) + sparse.kron(one, step)) / 6 + sparse.kron(step, step) / 12).tocsr()
    system = (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()

    def solve(image: NDArray[np.floating], missing: NDArray[np.bool_]) -> NDArray[np.floating]:
        out, rows = image.astype(np.float64), system[missing]
        out[missing] = spsolve(rows[:, missing].tocsc(), -(rows[:, ~missing] @ out[~missing]))
        return out

    return solve


@dataclass(frozen=True)
class Task:
    """Images with missing pixels, and the ways to impute them.

    Attributes:
        images: [B, S, S], all channels equal.
        masks: level to what is missing, bool [B, S, S].
        direct: image and missing pixels to the exact imputation.
    """

    images: Tensor
    masks: Mapping[float, Tensor]
    direct: Solver

    def imputed(self, level: float) -> Callable[[], int]:
        """The package's imputation of the whole batch."""
        return lambda: done(imputation.linear(self.images, self.masks[level]))

    def solved(self, level: float) -> Callable[[], int]:
        """One sparse solve, of the next image in turn."""
        turn = itertools.cycle(range(len(self.images)))

        def one() -> int:
            i = next(turn)
            self.direct(self.images[i].flatten().cpu().numpy(), self.masks[level][i].flatten().cpu().numpy())
            return 1

        return one

    def peer(self, level: float) -> Callable[[], int]:
        """The imputation of grad-cam, of one image."""
        from pytorch_grad_cam.metrics.road import NoisyLinearImputer

        imputer = NoisyLinearImputer(noise=0)
        image, known = self.images[:1].expand(3, -1, -1).cpu(), (~self.masks[level][0]).float().cpu()
        return lambda: len(imputer(image, known)[None])

    def error(self, level: float) -> float:
        """Largest difference of the package's imputation from the exact one."""
        made = imputation.linear(self.images, self.masks[level]).flatten(1).cpu().numpy()
        images, masks = (x.flatten(1).cpu().numpy() for x in (self.images, self.masks[level]))
        pairs = zip(images, masks, made, strict=True)
        return max(float(np.abs(self.direct(image, mask) - ours).max()) for image, mask, ours in pairs)


def done(made: Tensor) -> int:
    """Number of images made, once the device has made them."""
    if made.device.type == "cuda":
        torch.cuda.synchronize()
    return len(made)


def task(batch: int, size: int, shape: str, levels: Sequence[float], device: torch.device) -> Task:
    """Smooth images with a tenth of noise, and masks of the given shape (smooth or random)."""
    keys = torch.arange(batch, device=device)
    images = rankings.smooth_field(keys, size) * 0.8
    images = images + 0.2 * randomness.uniform(keys + 1000, size * size).view_as(images)
    if shape == "smooth":
        fields = smoothness.gaussian_fields(keys + 2000, size / 14, size).flatten(1)
    else:
        fields = randomness.uniform(keys + 2000, size * size)
    places = rankings.rank(fields, fields)
    masks = {level: (places < round(level * size**2)).view_as(images) for level in levels}
    return Task(images, masks, sparse_solver(size))


def main() -> None:
    """Measures and prints."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        batch=(int, 32, "images in a batch"),
        rounds=(int, 5, "rounds"),
        seconds=(float, 1.0, "seconds a form and round"),
        threads=(int, 1, "torch threads"),
        shape=(str, "smooth", "of the masks: smooth or random"),
        levels=(str, ",".join(map(str, LEVELS)), "shares of missing pixels"),
    )
    torch.set_num_threads(args.threads)
    backends.full_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    levels = [float(level) for level in args.levels.split(",")]
    work = task(args.batch, args.size, args.shape, levels, device)
    model = networks.build("resnet18", ModelSpec("resnet18", args.size))
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = work.images[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    with torch.inference_mode():
        kinds: dict[str, Callable[[], int]] = {"forward": lambda: done(model.log_odds(batch))}
        for level in levels:
            kinds |= {f"imputed {level:g}": work.imputed(level), f"sparse {level:g}": work.solved(level)}
            if find_spec("pytorch_grad_cam"):
                kinds[f"grad-cam {level:g}"] = work.peer(level)
        measured = rates(kinds, args.rounds, args.seconds)
        errors = {f"{level:g}": work.error(level) for level in levels}
    ratios = {
        f"imputed / {other} {level:g}": ratio(measured, f"imputed {level:g}", f"{other} {level:g}")
        for other in ("sparse", "grad-cam")
        for level in levels
        if f"{other} {level:g}" in measured
    }
    costs = {f"{level:g}": round(ratio(measured, "forward", f"imputed {level:g}"), 4) for level in levels}
    notes = {
        "masks": args.shape,
        "max error": f"{max(errors.values()):.1e} (1e-3 is allowed)",
        "imputation in forward passes": costs,
    }
    show("linear", measured, ratios, dict.fromkeys(ratios, TARGET), unit="images/s", as_json=args.json, **notes)


if __name__ == "__main__":
    main()
