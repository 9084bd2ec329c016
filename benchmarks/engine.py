"""Masked forward passes a second beside plain forward passes a second of the same model, in one run.

A plain pass takes a batch that lies ready, in each form that this machine has, in the type and memory format that the
form reads (on CPUs torch's turn it into channels_last, as for a masked pass). A masked pass also makes its image: it
takes ranking, level, order and fill of each job and fills the pixels; it uses the fastest form. Images are grey, as
X-rays are, and made in one channel; beside it the same in three, as images in colour are.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import plain
from benchmarks.common import arguments, rates, ratio, show
from benchmarks.plain import Plain
from cxr_ray.measure import fills, masking, rankings, scoring
from cxr_ray.models import backend_choice
from cxr_ray.models.backends import layout_of


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        rounds=(int, 12, "rounds"),
        seconds=(float, 2.5, "seconds a form and round"),
        precision=plain.PRECISION,
    )
    chosen = Plain.of(args.size, args.precision)
    device, model, batch_size, form = plain.device(), chosen.model, chosen.batch_size, chosen.form
    n_images, n_rankings = 4, batch_size // 4  # two batches
    images = torch.rand(n_images, 1, args.size, args.size, device=device)
    keys = torch.arange(n_images, device=device)
    filled = torch.stack([fills.FILLS[f].make(images, model.mean, keys) for f in ("mean", "blur")], 1)
    layout, look = layout_of(chosen.forward), masking.Normalization(model.mean.flatten(), model.std.flatten())
    grey = masking.Canvas.of_grey(images, filled, look, layout=layout)
    colour = masking.Canvas.of(model.normalize(images), model.normalize(filled), layout=layout)
    levels, orders = [0.1, 0.5], ["morf", "lerf"]
    image_of = torch.arange(n_rankings, device=device) % n_images
    maps = torch.rand(n_rankings, args.size**2, device=device)
    jobs = n_rankings * grey.n_fills * len(orders) * len(levels)

    def masked(canvas: masking.Canvas) -> int:
        places = rankings.rank(maps, maps.flip(1))
        ns = rankings.counts(levels, args.size**2)
        scoring.masked_scores(chosen.forward, canvas, places, image_of, ns, orders, batch_size)
        plain.done()
        return jobs

    with torch.no_grad():
        functions = {
            name: backend_choice.make(name, model, args.size, batch_size)
            for name, tried in form.tried.items()
            if not isinstance(tried, str) and name != form.name
        } | {form.name: chosen.forward}
        kinds = {name: chosen.passes(forward, jobs // batch_size) for name, forward in functions.items()}
        kinds |= {"masked": partial(masked, grey), "masked, three channels": partial(masked, colour)}
        measured = rates(kinds, args.rounds, args.seconds)
    what, channels = f"masked / {form.name}, the fastest form", "masked / masked, three channels"
    show(
        "engine",
        measured,
        {what: ratio(measured, "masked", form.name), channels: ratio(measured, "masked", "masked, three channels")},
        {what: 0.95},
        unit="passes/s",
        as_json=args.json,
        chosen=str(form),
    )


if __name__ == "__main__":
    main()
