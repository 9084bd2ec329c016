"""Explainers on the network as they hook it, batch norms folded, beside the plain module: maps a second, in one run."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import common
from cxr_ray.measure.attribution.inputs import Inputs, images_in_a_pass
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import backends, networks
from cxr_ray.models.networks import Classifier, ModelSpec

NAMES = ("gradcam", "saliency")  # a forward pass; forward and backward


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        arch=(str, "resnet18", "network, of random weights"),
        size=(int, 224, "side of the images"),
        images=(int, 8, "explained at a time"),
        rounds=(int, 5, "of each form"),
        seconds=(float, 2.0, "of a round, at least"),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = networks.build(args.arch, ModelSpec(args.arch, args.size)).requires_grad_(False)
    plain = plain.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folded = backends.for_explainers(plain)
    if folded is plain:
        raise SystemExit(f"explainers: nothing of {args.arch} is folded, so there is nothing to compare.")
    images = torch.randn(args.images, 3, args.size, args.size, device=device)
    targets, ids = torch.ones(args.images, dtype=torch.long, device=device), [str(i) for i in range(args.images)]
    black = torch.zeros(3, 1, 1, device=device)
    inputs = Inputs(images, images, black, targets, ids, 0, images_in_a_pass(device, args.size))

    def explained(name: str, model: Classifier) -> int:
        EXPLAINERS[name].explain(model, inputs).cpu()
        return len(inputs.ids)

    forms = {
        f"{name}, {form}": partial(explained, name, model)
        for name in NAMES
        for form, model in (("plain", plain), ("folded", folded))
    }
    measured = common.rates(forms, args.rounds, args.seconds)
    ratios = {
        f"{name}: folded over plain": common.ratio(measured, f"{name}, folded", f"{name}, plain") for name in NAMES
    }
    common.show("explainers", measured, ratios, {}, unit="maps/s", as_json=args.json)


if __name__ == "__main__":
    main()
