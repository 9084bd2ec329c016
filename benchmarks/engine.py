"""Masked forward passes a second beside plain forward passes a second of the same model, in one run.

A plain pass takes a batch that lies ready, in each form that this machine has (torch's first turn it into
channels_last, as for a masked pass). A masked pass also makes its image: it takes ranking, level, order and fill of
each job and fills the pixels; it uses the fastest form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.common import arguments, rates, ratio, show
from cxr_ray.measure import fills, masking, rankings, scoring
from cxr_ray.models import backend_choice, backends, networks
from cxr_ray.models.networks import ModelSpec


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        rounds=(int, 12, "rounds"),
        seconds=(float, 2.5, "seconds a form and round"),
    )
    backends.full_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = networks.build("resnet18", ModelSpec("resnet18", args.size)).requires_grad_(False)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size = backend_choice.batch_size(model, args.size)
    n_images, n_rankings = 4, batch_size // 4  # two batches
    images = torch.rand(n_images, 3, args.size, args.size, device=device)
    keys = torch.arange(n_images, device=device)
    filled = torch.stack([fills.FILLS[f].make(images, model.mean, keys) for f in ("mean", "blur")], 1)
    canvas = masking.Canvas.of(model.normalize(images), model.normalize(filled))
    levels, orders = [0.1, 0.5], ["morf", "lerf"]
    image_of = torch.arange(n_rankings, device=device) % n_images
    maps = torch.rand(n_rankings, args.size**2, device=device)
    batch = torch.rand(batch_size, 3, args.size, args.size, device=device)
    jobs = n_rankings * canvas.n_fills * len(orders) * len(levels)

    def done() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def plain(forward: backends.Forward) -> Callable[[], int]:
        def run() -> int:
            for _ in range(jobs // batch_size):
                forward(batch)
            done()
            return jobs // batch_size * batch_size

        return run

    def masked() -> int:
        places = rankings.rank(maps, maps.flip(1))
        ns = rankings.counts(levels, args.size**2)
        scoring.masked_scores(functions[form.name], canvas, places, image_of, ns, orders, batch_size)
        done()
        return jobs

    with torch.no_grad():
        form, _ = backend_choice.choose(model, args.size, batch_size, 10**7)
        functions = {
            n: backend_choice.make(n, model, args.size, batch_size)
            for n, v in form.tried.items()
            if not isinstance(v, str)
        }
        kinds = {name: plain(forward) for name, forward in functions.items()} | {"masked": masked}
        measured = rates(kinds, args.rounds, args.seconds)
    target = 0.90 if device.type == "cuda" else 0.95
    what = f"masked / {form.name}, the fastest form"
    show(
        "engine",
        measured,
        {what: ratio(measured, "masked", form.name)},
        {what: target},
        unit="passes/s",
        as_json=args.json,
        chosen=str(form),
    )


if __name__ == "__main__":
    main()
