"""Masked forward passes a second beside plain forward passes a second of the same model, in one run.

A plain pass takes a batch that lies ready, in each form that this machine has, in the type and memory format that the
form reads (on CPUs torch's turn it into channels_last, as for a masked pass). A masked pass also makes its image: it
takes ranking, level, order and fill of each job and fills the pixels; it uses the fastest form. Images are grey, as
X-rays are, and made in one channel; beside it the same in three, as images in colour are.

Several networks (``--arch resnet18,torchvision:densenet121``) are measured in turn, each ratio beside the first one's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import plain
from benchmarks.common import arguments, rates, ratio, show
from benchmarks.plain import Plain
from cxr_ray.measure import fills, masking, rankings, scoring
from cxr_ray.models import backend_choice
from cxr_ray.models.backends import layout_of

MASKED, COLOUR = "masked", "masked, three channels"


def main() -> None:
    """The command."""
    args = arguments(
        __doc__,
        size=(int, 224, "side of the images"),
        rounds=(int, 12, "rounds"),
        seconds=(float, 2.5, "seconds a form and round"),
        precision=plain.PRECISION,
        arch=(str, "resnet18", "networks, with commas between"),
    )
    archs = args.arch.split(",")
    chosen = {arch: Plain.of(args.size, args.precision, arch) for arch in archs}
    labels = {arch: "" if len(archs) == 1 else f"{arch}: " for arch in archs}
    with torch.no_grad():
        kinds = {labels[arch] + name: run for arch in archs for name, run in _kinds(chosen[arch], len(archs) == 1)}
        measured = rates(kinds, args.rounds, args.seconds)
    ratios, asked, over = {}, {}, {}
    for arch, label in labels.items():
        fastest = chosen[arch].form.name
        what = f"{label}{MASKED} / {fastest}, the fastest form"
        over[arch] = ratios[what] = ratio(measured, label + MASKED, label + fastest)
        asked[what] = 0.95
        ratios[f"{label}{MASKED} / {COLOUR}"] = ratio(measured, label + MASKED, label + COLOUR)
    for arch in archs[1:]:
        what = f"{arch}: that ratio over {archs[0]}'s"
        ratios[what], asked[what] = over[arch] / over[archs[0]], 0.95
    forms = "; ".join(f"{labels[arch]}{chosen[arch].form}" for arch in archs)
    show("engine", measured, ratios, asked, unit="passes/s", as_json=args.json, chosen=forms)


def _kinds(chosen: Plain, all_forms: bool) -> Iterator[tuple[str, Callable[[], int]]]:
    """Plain passes in the fastest form, or in all, and masked ones."""
    device, model, batch_size, form = plain.device(), chosen.model, chosen.batch_size, chosen.form
    size = model.spec.size
    n_images, n_rankings = 4, batch_size // 4  # two batches
    images = torch.rand(n_images, 1, size, size, device=device)
    keys = torch.arange(n_images, device=device)
    filled = torch.stack([fills.FILLS[f].make(images, model.mean, keys) for f in ("mean", "blur")], 1)
    layout, look = layout_of(chosen.forward), masking.Normalization(model.mean.flatten(), model.std.flatten())
    grey = masking.Canvas.of_grey(images, filled, look, layout=layout)
    colour = masking.Canvas.of(model.normalize(images), model.normalize(filled), layout=layout)
    levels, orders = [0.1, 0.5], ["morf", "lerf"]
    image_of = torch.arange(n_rankings, device=device) % n_images
    maps = torch.rand(n_rankings, size**2, device=device)
    jobs = n_rankings * grey.n_fills * len(orders) * len(levels)

    def masked(canvas: masking.Canvas) -> int:
        places = rankings.rank(maps, maps.flip(1))
        ns = rankings.counts(levels, size**2)
        scoring.masked_scores(chosen.forward, canvas, places, image_of, ns, orders, batch_size)
        plain.done()
        return jobs

    for name, tried in form.tried.items():
        if all_forms and not isinstance(tried, str) and name != form.name:
            other = backend_choice.make(name, model, size, batch_size)
            yield name, chosen.passes(other, jobs // batch_size)
    yield form.name, chosen.passes(chosen.forward, jobs // batch_size)
    yield MASKED, partial(masked, grey)
    yield COLOUR, partial(masked, colour)


if __name__ == "__main__":
    main()
