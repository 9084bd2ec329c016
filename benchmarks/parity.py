"""The real Quantus, grad-cam and captum beside ours, on the same images: does each number agree, and where not, why?

    pip install "cxr-ray[peers]"
    python -m benchmarks.parity [--json]

What should agree has a tolerance; the exit code is 1 if something does not. What a peer does that ours deliberately
does not is shown below the table, with its numbers. A package that is missing is named and left out. The network is a
ResNet-18 with random weights (seed 0), or the two-output state dict that CXR_RAY_MODEL names.

Shapes: B images, S side, U = S * S pixels, O orders (morf, lerf), L levels.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from captum import attr
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit
from torch import Tensor, nn

from benchmarks.common import arguments, machine
from cxr_ray.data import phantoms
from cxr_ray.measure import fills, masking, metrics, rankings, scoring
from cxr_ray.measure.attribution.gradients import IG_STEPS
from cxr_ray.measure.attribution.inputs import Explainer, Inputs
from cxr_ray.measure.attribution.relus import with_separate_relus
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.backends import Forward
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.sweepfile import resolve

ORDERS = ("morf", "lerf")
PERCENTILES = [10, 20, 30, 40, 50, 60, 70, 80, 90]  # grad-cam's


@dataclass(frozen=True)
class Row:
    """One comparison: both values where they differ most, by how much, and what is allowed."""

    what: str
    ours: float
    theirs: float
    difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance; never where it is NaN."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Fault:
    """What a peer does that ours does not, in one sentence with its numbers."""

    peer: str
    sentence: str


@dataclass(frozen=True)
class Skipped:
    """A comparison that could not be made, and what it needs."""

    sentence: str


Findings = Iterator[Row | Fault | Skipped]


def compared(what: str, ours: NDArray, theirs: NDArray, tolerance: float) -> Row:
    """A row of two arrays of equal shape."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    apart = np.abs(ours - theirs)
    worst = int(np.nan_to_num(apart, nan=np.inf).argmax())  # a NaN agrees with nothing
    return Row(what, float(ours.flat[worst]), float(theirs.flat[worst]), float(apart.flat[worst]), tolerance)


def classifier(size: int) -> Classifier:
    """The network that both sides score, in eval mode, without gradients of its weights."""
    spec = ModelSpec("resnet18", size)
    path = os.environ.get("CXR_RAY_MODEL")
    if path:
        return checkpoints.load(path, spec).requires_grad_(False)
    torch.manual_seed(0)
    return networks.build("resnet18", spec).requires_grad_(False)


def chests(size: int, n: int) -> NDArray[np.uint8]:
    """Phantom chest X-rays, uint8 [B, 3, S, S], NORMAL and PNEUMONIA in turn."""
    grey = np.stack([phantoms.render(i, i % 2, size).image for i in range(n)])
    return np.repeat(grey[:, None], 3, axis=1)


def model_space(model: Classifier, pixels: NDArray[np.uint8]) -> Tensor:
    """The network's input, [B, 3, S, S]."""
    return model.normalize(torch.from_numpy(pixels).float() / 255)


def untied_maps(n: int, size: int) -> Tensor:
    """Smooth maps without equal values, [B, S, S]: multiples of 2 ** -16 in [0, 1), so that 1 - map is exact."""
    fields = rankings.smooth_field(torch.arange(n) + 77, size).flatten(1)
    return (fields.argsort(1).argsort(1).float() / 2**16).view(n, size, size)


def ranking(maps_BSS: Tensor) -> Tensor:
    """Our places, equal values in order of their place, int32 [B, U]."""
    flat = maps_BSS.flatten(1)
    return rankings.rank(flat, -torch.arange(flat.shape[1]).expand_as(flat))


def scores(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    fill: Tensor,
    places: Tensor,
    ns: Sequence[int],
    orders: Sequence[str] = ORDERS,
) -> NDArray:
    """Our masked scores of one fill, float64 [B, O, L]."""
    canvas = masking.Canvas.of(images, fill[:, None])
    with torch.no_grad():
        made = scoring.masked_scores(forward, canvas, places, torch.arange(len(images)), ns, orders, 16)
    return made[:, 0].double().numpy()


def blurred(model: Classifier, pixels: NDArray[np.uint8]) -> Tensor:
    """Our fill ``blur`` in model space, [B, 3, S, S]."""
    given = torch.from_numpy(pixels).float() / 255
    return model.normalize(fills.FILLS["blur"].make(given, model.mean, torch.arange(len(given))))


# captum


def with_captum() -> Findings:
    """Every explainer that captum has, called as its documentation says; its upsampling at 224."""
    size = 112
    model, pixels = classifier(size), chests(size, 2)
    images, fill = model_space(model, pixels), blurred(model, pixels)
    black = model.normalize(torch.zeros(3, 1, 1))
    targets = torch.tensor([1, 0])
    given = Inputs(images, fill, black, targets, ["a", "b"], 0)
    window, stride = size // 7, size // 14
    separate = with_separate_relus(model)

    def theirs(name: str) -> Tensor | None:
        leaf = images.clone().requires_grad_()
        match name:
            case "gradcam":
                low = attr.LayerGradCam(model, model.cam_layer).attribute(leaf, target=targets, relu_attributions=True)
                return attr.LayerAttribution.interpolate(low, (size, size), interpolate_mode="bilinear")
            case "saliency":
                return attr.Saliency(model).attribute(leaf, target=targets, abs=True)
            case "input_x_gradient":
                return attr.InputXGradient(model).attribute(leaf, target=targets)
            case "integrated_gradients":
                baseline = black.expand_as(images)
                return attr.IntegratedGradients(model).attribute(
                    images, baselines=baseline, target=targets, n_steps=IG_STEPS, method="gausslegendre"
                )
            case "occlusion":
                return attr.Occlusion(model).attribute(
                    images, (3, window, window), strides=(3, stride, stride), baselines=fill, target=targets
                )
            case "guided_gradcam":
                guided = attr.GuidedGradCam(separate, separate.cam_layer)
                return guided.attribute(leaf, target=targets, interpolate_mode="bilinear")
        return None

    alone = []
    for name, entry in ((n, e) for n, e in EXPLAINERS.items() if "attention" not in e.needs):  # this network has none
        maps = theirs(name)
        if maps is None:
            alone.append(name)
            continue
        expected = maps.detach().sum(1)
        made = rankings.upsample(entry.explain(model, given), size)
        top = expected.abs().amax((1, 2), keepdim=True)
        yield compared(f"captum {name}, by its largest value", (made / top).numpy(), (expected / top).numpy(), 1e-5)
    yield Skipped(f"captum: nothing that should equal {', '.join(alone)}")
    z, nothing = (model(x).gather(1, targets[:, None])[:, 0] for x in (images, black.expand_as(images)))
    change = (z - nothing).numpy()
    ours = EXPLAINERS["deeplift"].explain(model, given).sum((1, 2)).numpy()
    yield compared("DeepLIFT's axiom: its map sums to z(image) - z(black)", ours, change, 1e-3)
    lift = attr.DeepLift(separate).attribute(images.clone(), baselines=black.expand_as(images), target=targets)
    apart = np.abs(lift.detach().sum((1, 2, 3)).numpy() - change).max()
    yield Fault(
        "captum",
        "DeepLift refuses a network whose ReLU serves twice; with separate ones, its rule for max pooling where "
        f"windows overlap misses z(image) - z(black) by up to {apart:.4f}, ours by {np.abs(ours - change).max():.1e}",
    )
    size = 224
    images = model_space(model, chests(size, 2))
    leaf = images.clone().requires_grad_()
    low = attr.LayerGradCam(model, model.cam_layer).attribute(leaf, target=targets, relu_attributions=True)
    nearest = attr.LayerAttribution.interpolate(low, (size, size))[:, 0].detach()
    smooth = rankings.upsample(EXPLAINERS["gradcam"].explain(model, dataclasses.replace(given, images=images)), size)
    n = size**2 // 4
    shared = rankings.overlap(ranking(smooth), ranking(nearest)[:, None], n, "morf")
    values = [len(maps[0].unique()) for maps in (nearest, smooth)]
    yield Fault(
        "captum",
        f"interpolate's default, nearest, leaves {values[0]} values, bilinear {values[1]}; their top quarters share "
        f"{float(shared.min()):.2f}",
    )


# grad-cam


def with_grad_cam() -> Findings:
    """CAMs at the last block; ROADCombined's formula, and its imputation against the fill ``linear``."""
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
    from pytorch_grad_cam.metrics import road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    size = 224
    model, pixels = classifier(size), chests(size, 4)
    images = model_space(model, pixels)
    targets = torch.tensor([0, 1, 0, 1])

    def both(name: str, peer: type, model: Classifier, images: Tensor) -> tuple[NDArray, NDArray]:
        """Ours and theirs, upsampled and scaled to [0, 1]."""
        with torch.enable_grad(), peer(model, [model.cam_layer]) as cam:
            theirs = cam(images.clone().requires_grad_(), [ClassifierOutputTarget(int(t)) for t in chosen(images)])
        given = Inputs(images, images, torch.zeros(3, 1, 1), chosen(images), list("abcd")[: len(images)], 0)
        ours = rankings.upsample(EXPLAINERS[name].explain(model, given), images.shape[-1])
        low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
        return ((ours - low) / (high - low)).numpy(), theirs

    def chosen(images: Tensor) -> Tensor:
        return targets[: len(images)]

    steep = copy.deepcopy(model)
    steep.network.fc.weight *= 1e4
    for name, peer, scored, note in (
        ("gradcam", GradCAM, model, ""),
        ("layercam", LayerCAM, model, ""),
        ("gradcam_plus_plus", GradCAMPlusPlus, steep, ", head x 10,000"),
    ):
        made, theirs = both(name, peer, scored, images)
        yield compared(f"grad-cam {peer.__name__}, both scaled to [0, 1]{note}", made, theirs, 1e-5)
    made, theirs = both("gradcam_plus_plus", GradCAMPlusPlus, model, images)
    yield Fault(
        "grad-cam",
        "GradCAMPlusPlus adds 1e-6 to its denominator, 2 g^2 + sum(A) g^3; with gradients as small as a ResNet's, its "
        f"map is up to {np.abs(made - theirs).max():.2f} of its range away from the formula",
    )
    few = model_space(model, chests(64, 2))
    with (
        mock.patch("pytorch_grad_cam.score_cam.tqdm.tqdm", iter),
        mock.patch("torch.nn.UpsamplingBilinear2d", lambda size: nn.Upsample(size, mode="bilinear")),
    ):
        yield compared(
            "grad-cam ScoreCAM, masks without aligned corners", *both("scorecam", ScoreCAM, model, few), 1e-4
        )

    size = 64
    model, pixels = classifier(size), chests(size, 4)
    images, maps = model_space(model, pixels), untied_maps(4, size)
    ns = [int((maps[0] >= np.percentile(maps[0].numpy(), p)).sum()) for p in reversed(PERCENTILES)]
    rounded = rankings.counts([p / 100 for p in PERCENTILES], size**2)
    log_odds = [lambda z: z[1] - z[0]] * 4

    def combined(imputer: Callable, given: Tensor) -> NDArray:
        with mock.patch.object(road, "NoisyLinearImputer", imputer):
            return road.ROADCombined(PERCENTILES)(images, given.numpy(), log_odds, model)

    fill = blurred(model, pixels)
    fill_of = {image.numpy().tobytes(): f for image, f in zip(images, fill, strict=True)}

    def by_blur() -> Callable:
        return lambda image, mask: torch.where(mask == 1, image, fill_of[image.numpy().tobytes()])

    made = scores(model.log_odds, images, fill, ranking(maps), ns)
    ours_B = (made[:, 1] - made[:, 0]).mean(1) / 2
    yield compared("grad-cam ROADCombined, its imputer replaced by our blur", ours_B, combined(by_blur, maps), 1e-5)
    apart = max(abs(a - b) for a, b in zip(ns, rounded, strict=True))
    yield Fault(
        "grad-cam", f"np.percentile and round(level * units) are up to {apart} pixel of {size**2} apart, untied"
    )

    class WithoutNoise(road.NoisyLinearImputer):
        def __init__(self) -> None:
            super().__init__(noise=0.0)

    if "linear" in fills.FILLS:
        with mock.patch.object(fills, "LINEAR_NOISE", 0.0):
            made = worker_scores(model, pixels, maps, "linear", [n / size**2 for n in ns])
        ours_B = (made[:, 1] - made[:, 0]).mean(1) / 2
        yield compared("grad-cam ROADCombined, our fill linear, no noise", ours_B, combined(WithoutNoise, maps), 1e-4)
    else:
        yield Skipped("grad-cam ROADCombined against our fill linear: cxr_ray has no fill linear yet")

    tied = torch.where(maps < maps.flatten(1).quantile(0.64, dim=1)[:, None, None], 0.0, maps)
    kept = (tied[0] < np.percentile(tied[0].numpy(), 50)).sum().item()
    zero, half = float((tied[0] == 0).float().mean()), int((ranking(tied)[0] < size**2 // 2).sum())
    yield Fault(
        "grad-cam",
        f"of a map that is {zero:.0%} zero, P = 50 removes {size**2 - kept} of {size**2} pixels; ours removes {half}",
    )
    made = scores(model.log_odds, images, fill, ranking(tied), rounded)
    ours_B = (made[:, 1] - made[:, 0]).mean(1) / 2
    theirs = combined(by_blur, tied)
    yield Fault(
        "grad-cam",
        f"on that map ROADCombined (imputer: our blur) gives {theirs[0]:+.4f} log-odds, exact counts {ours_B[0]:+.4f}; "
        f"over {len(tied)} images they differ by up to {np.abs(theirs - ours_B).max():.4f}",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        constant = combined(WithoutNoise, torch.zeros_like(tied))
    yield Fault(
        "grad-cam",
        f"a constant map scores {constant[0]}: every level removes all, so that LeRF and MoRF are one singular system; "
        "ours ranks it by its tie-breaking field and counts it as degenerate",
    )


def worker_scores(
    model: Classifier,
    pixels: NDArray[np.uint8],
    maps: Tensor,
    fill: str,
    levels: list[float],
    forward: Forward | None = None,
) -> NDArray:
    """Log-odds of PNEUMONIA of given maps as a run computes them, through the worker, float64 [B, O, L].

    ``forward``: the function that scores; None: the eager one.
    """
    size, n = pixels.shape[-1], len(pixels)
    sweep = resolve(
        {
            "data": {"size": size},
            "controls": {},
            "explain": {"explainers": ["gradcam"], "targets": ["pneumonia"]},
            "perturb": {"grids": ["pixel"], "fills": [fill], "levels": levels, "orders": list(ORDERS)},
        }
    )
    worker = Worker(sweep, {"given": ModelRef("given", "none", None, size)}, device=str(maps.device))
    worker.model = lambda trial_id: model
    worker.forward = lambda trial_id: forward or model.log_odds
    ids = [f"{i:016x}" for i in range(n)]
    block = Shard("given", "test", ids, ids, [0] * n, pixels)
    with mock.patch.dict(EXPLAINERS, {"gradcam": Explainer(lambda m, inputs: maps, lambda s: (0, 0), "a given map")}):
        tables = worker(block)
    curves = tables["curves", "gradcam"].to_pandas()
    inner = curves[curves.level.isin(levels) & (curves.control == "none")]
    cube = inner.set_index(["image_id", "direction", "level"]).logit_target.unstack("level")
    return np.stack([cube.xs(order, level="direction").loc[ids].to_numpy(float) for order in ORDERS], axis=1)


# Quantus


class OneChannel(nn.Module):
    """The network for images of one channel, since Quantus counts each channel of a pixel as a feature."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, S, S] or [B, 3, S, S] to logits [B, 2]; keeps what it was given."""
        self.seen.append(images.detach().clone())
        return self.network(images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1))


def with_quantus() -> Findings:
    """PixelFlipping on one channel; what it does on three; ROAD over more than one batch."""
    import quantus

    size, steps = 64, 16
    model, pixels = classifier(size), chests(size, 4)
    network = OneChannel(model.network).eval()
    images, maps = model_space(model, pixels)[:, :1], untied_maps(4, size)
    units = size**2
    with torch.no_grad():
        top = network(images).argmax(1).numpy()
    options = {"normalise": False, "disable_warnings": True, "perturb_baseline": 0.0}
    given = {
        "model": network,
        "x_batch": images.numpy(),
        "y_batch": top,
        "a_batch": maps[:, None].numpy(),
        "softmax": True,
        "device": "cpu",
    }
    flipping = quantus.PixelFlipping(features_in_step=units // steps, **options)
    theirs = np.asarray(flipping(**given))
    with mock.patch.object(np, "trapz", np.trapezoid, create=True):  # gone in numpy 2.4; Quantus 0.6.0 calls it
        area = np.asarray(
            quantus.PixelFlipping(features_in_step=units // steps, return_auc_per_sample=True, **options)(**given)
        )

    def forward(x: Tensor) -> Tensor:
        z = network(x[:, :1])
        return z[:, 1] - z[:, 0]

    wide = images.expand(-1, 3, -1, -1)
    ns = [units * k // steps for k in range(steps + 1)]
    made = scores(forward, wide, torch.zeros_like(wide), ranking(maps), ns, ["morf"])[:, 0]
    p = expit(made * np.where(top == 1, 1, -1)[:, None])
    yield compared(f"Quantus PixelFlipping, one channel, {steps} points", p[:, 1:], theirs, 1e-5)
    done = np.array(ns) / units
    names, values = metrics.evaluate({"morf": p}, list(done[1:-1]), done)
    ours = values[:, [name for name, _ in names].index("deletion_auc")] * steps - (p[:, 0] + p[:, 1]) / 2
    yield compared("Quantus's area = n deletion_auc - (p0 + p1) / 2", ours, area, 1e-4)
    yield Fault(
        "Quantus",
        f"its area starts at the first step and counts steps: {area[0]:.4f} for a deletion_auc of {values[0, 0]:.4f}; "
        "with twice the steps it about doubles",
    )

    network.seen.clear()
    rgb = given | {"x_batch": wide.numpy().copy()}
    quantus.PixelFlipping(features_in_step=units // steps, **options)(**rgb)
    first = next(x for x in network.seen if len(x) == len(wide))
    changed = (first != wide).sum(1)[0]
    touched, partly = int((changed > 0).sum()), int(((changed > 0) & (changed < 3)).sum())
    yield Fault(
        "Quantus",
        f"on RGB, a first step of {units // steps} features touches {touched} pixels, {partly} of them in some "
        f"channels only; ours takes {units // steps} pixels whole",
    )

    labels = np.where(np.arange(4) < 2, top, 1 - top)
    by_batch = {
        batch: quantus.ROAD(percentages=[1], noise=0.0, normalise=False, disable_warnings=True)(
            **given | {"y_batch": labels}, batch_size=batch
        )[1]
        for batch in (4, 2)
    }
    yield Fault(
        "Quantus",
        "ROAD of 4 images, the first 2 labelled as predicted and the others not: accuracy "
        f"{by_batch[4]:.2f} in one batch, {by_batch[2]:.2f} in two, since only the first is scored",
    )


# RISE


def with_rise() -> Findings:
    """RISE's evaluation.py is a script, so its formula stands in tests/test_parity.py; here the blur that it makes."""
    size = 224
    model, pixels = classifier(size), chests(size, 2)
    images = model_space(model, pixels)
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    kernel = ndimage.gaussian_filter(delta, 5)  # as RISE's gkern: the tails reflect back into 11 x 11
    x = np.exp(-(np.arange(-5, 6) ** 2) / 50)
    gaussian = np.outer(x, x) / x.sum() ** 2
    weight = torch.from_numpy(kernel).float().expand(3, 1, 11, 11)
    theirs = nn.functional.conv2d(images, weight, padding=5, groups=3)
    ours = blurred(model, pixels)
    inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
    grey = float(model.std.mean()) * 255
    apart = (theirs - ours).abs() * grey
    within, edge = float(apart[inside].max()), float(apart.max())
    yield Fault(
        "RISE",
        f"its kernel runs from {kernel.min():.5f} to {kernel.max():.5f}, an 11 x 11 Gaussian of sigma 5 from "
        f"{gaussian.min():.5f} to {gaussian.max():.5f}; its blur and ours differ by up to {within:.1f} of 255 inside "
        f"the image and by {edge:.1f} at the edge, where RISE pads with zeros",
    )
    ns = [224 * 8 * k for k in range(29)]
    maps = ranking(untied_maps(2, size))
    own = []
    for fill in (ours, theirs):
        lerf = expit(scores(model.log_odds, images, fill, maps, ns, ["lerf"])[:, 0])
        own.append(np.trapezoid(lerf, np.array(ns) / size**2, axis=1))
    yield Fault(
        "RISE",
        f"insertion_auc of PNEUMONIA with its blur in place of ours: {own[1][0]:.4f} for {own[0][0]:.4f}; over "
        f"{len(images)} images they differ by up to {np.abs(own[0] - own[1]).max():.4f}",
    )


PEERS: dict[str, tuple[str, Callable[[], Findings]]] = {
    "captum": ("captum", with_captum),
    "grad-cam": ("grad-cam==1.5.7", with_grad_cam),
    "Quantus": ("quantus==0.6.0", with_quantus),
    "RISE": ("scipy", with_rise),
}


def main() -> int:
    """Runs every comparison and prints it; 0 if all that should agree does."""
    args = arguments(__doc__)
    found: list[Row | Fault | Skipped] = []
    for peer, (package, compare) in PEERS.items():
        try:
            found += compare()
        except ImportError as e:
            found.append(Skipped(f"{peer}: {e.name or e} is missing; pip install '{package}'"))
    rows = [f for f in found if isinstance(f, Row)]
    faults = [f for f in found if isinstance(f, Fault)]
    skipped = [f.sentence for f in found if isinstance(f, Skipped)]
    print(f"parity: {machine()}")
    print(f"  {'what':<60}{'ours':>10}{'theirs':>10}{'difference':>12}{'tolerance':>11}")
    for row in rows:
        numbers = f"{row.ours:>10.4f}{row.theirs:>10.4f}{row.difference:>12.1e}{row.tolerance:>11.0e}"
        print(f"  {row.what:<60}{numbers}  {'agrees' if row.agrees else 'DIFFERS'}")
    for fault in faults:
        print(f"  {fault.peer}: {fault.sentence}.")
    for sentence in skipped:
        print(f"  not compared: {sentence}.")
    if args.json:
        print(
            json.dumps(
                {
                    "name": "parity",
                    "rows": [dataclasses.asdict(row) | {"agrees": row.agrees} for row in rows],
                    "faults": [dataclasses.asdict(fault) for fault in faults],
                    "skipped": skipped,
                    "machine": machine(),
                }
            )
        )
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
