"""Agreement with what other tools define, each recomputed here from its formula in another way than ours.

Nothing of the peers is imported; benchmarks/parity.py runs the real ones. Ours is Canvas, masked_scores and
metrics.evaluate, as the worker calls them.

Shapes: B images, S side, U = S * S pixels, L levels strictly between 0 and 1.
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from captum import attr
from scipy import ndimage
from scipy.special import expit
from sklearn.metrics import auc
from torch import Tensor, nn

from cxr_ray.measure import fills, masking, metrics, rankings, scoring
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec


def classifier(size: int) -> Classifier:
    """A small network whose two outputs move a lot under masking, so that a wrong curve shows."""
    torch.manual_seed(0)
    head = nn.LazyLinear(2)
    network = nn.Sequential(nn.Conv2d(3, 4, 8, stride=7), nn.Tanh(), nn.Flatten(), head)
    network(torch.zeros(1, 3, size, size))
    with torch.no_grad():
        head.weight.mul_(8)
        head.bias.zero_()
    return Classifier(network, ModelSpec("resnet18", size)).eval().requires_grad_(False)


def pixels(size: int, n: int = 4) -> Tensor:
    """Images in [0, 1]: a smooth field and some noise, [B, 3, S, S]."""
    field = rankings.smooth_field(torch.arange(3 * n), size).view(n, 3, size, size)
    return 0.7 * field + 0.3 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def untied_maps(size: int, n: int = 4) -> Tensor:
    """Maps without equal values, [B, S, S]."""
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(size**2, generator=generator) for _ in range(n)]).view(n, size, size).float()


def in_order(maps_BSS: Tensor) -> Tensor:
    """Our ranking with equal values in order of their place, as a stable sort leaves them, int32 [B, U]."""
    flat = maps_BSS.flatten(1)
    return rankings.rank(flat, -torch.arange(flat.shape[1]).expand_as(flat))


def curves(
    model: Classifier, pixels_BCSS: Tensor, fill: str | Tensor, places_BU: Tensor, ns: Sequence[int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Our curves of the probability of the class predicted for the untouched image: order to [B, L + 2]; that class.

    ``fill`` is a name, or model-space images. Levels 0 and 1 are scored apart, as in the worker.
    """
    images = model.normalize(pixels_BCSS)
    if isinstance(fill, str):
        fill = model.normalize(fills.FILLS[fill].make(pixels_BCSS, model.mean, torch.arange(len(images))))
    orders = ("morf", "lerf")
    with torch.no_grad():
        inner = scoring.masked_scores(
            model.log_odds,
            masking.Canvas.of(images, fill[:, None]),
            places_BU,
            torch.arange(len(images)),
            ns,
            orders,
            16,
        )[:, 0]
        untouched, filled = (model.log_odds(x)[:, None, None].expand(-1, 2, 1) for x in (images, fill))
    top = (untouched[:, 0, 0] >= 0).numpy()
    logit = torch.cat([untouched, inner, filled], -1).double().numpy() * np.where(top, 1, -1)[:, None, None]
    return {order: expit(logit[:, o]) for o, order in enumerate(orders)}, top.astype(int)


def areas(by_order: dict[str, np.ndarray], done: Sequence[float]) -> dict[str, np.ndarray]:
    names, values = metrics.evaluate(by_order, list(done)[1:-1], np.asarray(done))
    return {name: values[:, i] for i, (name, _) in enumerate(names) if name != "drop"}


def causal_metric(model: Classifier, image: Tensor, substrate: Tensor, saliency: Tensor, step: int, mode: str) -> float:
    """RISE's CausalMetric.single_run and auc, restated: pixels change cumulatively, ``step`` at a time."""
    probability = nn.Softmax(dim=1)
    with torch.no_grad():
        c = int(probability(model(image[None])).argmax())
        start, finish = (image, substrate) if mode == "del" else (substrate, image)
        now, goal = start.clone().flatten(1), finish.flatten(1)
        order = np.argsort(-saliency.numpy().ravel(), kind="stable")
        scores = [float(probability(model(now.view(1, *image.shape)))[0, c])]
        for first in range(0, len(order), step):
            chosen = torch.from_numpy(order[first : first + step].copy())
            now[:, chosen] = goal[:, chosen]
            scores.append(float(probability(model(now.view(1, *image.shape)))[0, c]))
    p = np.array(scores)
    assert np.ptp(p) > 0.05, "a flat curve would agree with anything"
    return float((p.sum() - p[0] / 2 - p[-1] / 2) / (len(p) - 1))


def rise_kernel() -> np.ndarray:
    """The 11 x 11 kernel of RISE's gkern(11, 5): scipy's filter reflects at the edge, so the tails fold back in."""
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    return ndimage.gaussian_filter(delta, 5)


def rise_blur(images_BCSS: Tensor) -> Tensor:
    """RISE's substrate: its kernel over model-space images, zeros beyond the edge."""
    kernel = torch.from_numpy(rise_kernel()).float().expand(3, 1, 11, 11)
    return torch.nn.functional.conv2d(images_BCSS, kernel, padding=5, groups=3)


@pytest.mark.parametrize("substrate", ["grey", "blur", "RISE's own blur"])
def test_areas_equal_rise_at_its_29_points(substrate):
    """RISE, Petsiuk et al., BMVC 2018, evaluation.py: 224 * 8 pixels a step at 224; tolerance 1e-5.

    Deletion there fills zeros of model space (our grey), insertion starts from a blur. Each metric is compared under
    each substrate, also the blur that its code really makes, handed over as a fill.
    """
    size, step = 224, 224 * 8
    model, given, maps = classifier(size), pixels(size), untied_maps(size)
    images = model.normalize(given)
    if substrate == "RISE's own blur":
        filled = rise_blur(images)
        fill: str | Tensor = filled
    else:
        fill = substrate
        filled = model.normalize(fills.FILLS[substrate].make(given, model.mean, torch.arange(len(given))))
    if substrate == "grey":
        assert filled.abs().max() < 1e-6
    ns = list(range(step, size**2, step))
    assert len(ns) + 2 == 29
    by_order, top = curves(model, given, fill, in_order(maps), ns)
    assert set(top) == {0, 1}
    ours = areas(by_order, [n / size**2 for n in (0, *ns, size**2)])
    for mode, name in (("del", "deletion_auc"), ("ins", "insertion_auc")):
        theirs = [causal_metric(model, images[i], filled[i], maps[i], step, mode) for i in range(len(images))]
        assert np.abs(ours[name] - theirs).max() < 1e-5, name


def test_the_blur_fill_is_the_gaussian_that_rise_names_and_not_the_one_its_code_makes():
    """Our blur is an 11 x 11 Gaussian, sigma 5, mirrored at the edge (tolerance 1e-6).

    RISE's code filters a delta with reflection inside 11 x 11, which makes its kernel nearly flat, and pads with zeros
    of model space. So a blur fill here is a little sharper than RISE's; insertion_auc differs by what that changes.
    """
    model, given = classifier(56), pixels(56)
    x = np.arange(-5, 6)
    g = np.exp(-(x**2) / (2 * 5.0**2))
    gaussian = np.outer(g, g) / g.sum() ** 2
    made = fills.FILLS["blur"].make(given, model.mean, torch.arange(len(given))).double().numpy()
    expected = ndimage.convolve(given.double().numpy(), gaussian[None, None], mode="mirror")
    assert np.abs(made - expected).max() < 1e-6
    assert gaussian.max() / gaussian.min() == pytest.approx(np.e, rel=1e-6)
    assert rise_kernel().max() / rise_kernel().min() == pytest.approx(1.14, abs=0.01)
    assert rise_kernel().sum() == pytest.approx(1)


def test_gradcam_equals_captum_with_bilinear_upsampling():
    """captum's LayerGradCam with its ReLU and LayerAttribution.interpolate(mode bilinear); tolerance 1e-6.

    captum's default, nearest, leaves 49 distinct values (here 4) and another top quarter.
    """
    size = 64
    torch.manual_seed(0)
    model = networks.build("resnet18", ModelSpec("resnet18", size)).requires_grad_(False)
    images, targets = model.normalize(pixels(size)), torch.tensor([0, 1, 0, 1])
    inputs = Inputs(images, images, torch.zeros(3, 1, 1), targets, ["a", "b", "c", "d"], 0)
    ours = rankings.upsample(EXPLAINERS["gradcam"].explain(model, inputs), size)
    leaf = images.clone().requires_grad_()
    low = attr.LayerGradCam(model, model.network.layer4[-1]).attribute(leaf, target=targets, relu_attributions=True)
    theirs = attr.LayerAttribution.interpolate(low, (size, size), interpolate_mode="bilinear")[:, 0].detach()
    assert theirs.abs().amax((1, 2)).min() > 1e-4
    assert (ours - theirs).abs().max() < 1e-6
    nearest = attr.LayerAttribution.interpolate(low, (size, size))[:, 0]
    assert len(nearest[0].unique()) <= 4 < len(ours[0].unique())


@pytest.mark.parametrize("levels", [[0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], [0.013, 0.3, 0.31, 0.6, 0.85]])
def test_areas_are_trapezoids_over_the_shares_that_were_really_perturbed(levels):
    """sklearn.metrics.auc over n / 49, not over the levels asked for; tolerance 1e-12."""
    size, g = 56, 7
    model, given = classifier(size), pixels(size)
    cells = rankings.cell_means(untied_maps(size), g)
    ns = rankings.counts(levels, g * g)
    done = [n / 49 for n in (0, *ns, 49)]
    assert any(abs(d - level) > 1e-3 for d, level in zip(done[1:-1], levels, strict=True))
    by_order, _ = curves(model, given, "mean", in_order(cells), ns)
    ours = areas(by_order, done)
    deletion, insertion = (np.array([auc(done, curve) for curve in by_order[o]]) for o in ("morf", "lerf"))
    assert np.abs(ours["deletion_auc"] - deletion).max() < 1e-12
    assert np.abs(ours["insertion_auc"] - insertion).max() < 1e-12
    assert np.abs(ours["abpc"] - (insertion - deletion)).max() < 1e-12


def test_areas_equal_torch_cam_at_20_steps():
    """torch-cam main, DeletionInsertionMetric: zeros, stable ranks, trapezoid over true fractions; tolerance 1e-5.

    Its step is ceil(U / 20), so the last one is shorter where 20 does not divide U. A count c of inserted pixels is
    lerf at U - c, so lerf is asked for at the complements.
    """
    size = 33
    units = size**2
    model, given = classifier(size), pixels(size)
    maps = (untied_maps(size) / 7).floor()  # ties: both sides sort stably
    images = model.normalize(given)
    counts = [*range(0, units, -(-units // 20)), units]
    assert len(counts) == 21
    assert counts[-1] - counts[-2] < counts[1]
    fractions = torch.tensor(counts, dtype=torch.float64) / units
    probability, ranks = nn.Softmax(1), maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
    with torch.no_grad():
        top = probability(model(images)).argmax(1)
        deletion, insertion = [], []
        for count in counts:
            first = (ranks < count).view(-1, 1, size, size)
            deletion.append(probability(model(torch.where(first, 0.0, images))).gather(1, top[:, None])[:, 0])
            insertion.append(probability(model(torch.where(first, images, 0.0))).gather(1, top[:, None])[:, 0])
    theirs = [torch.trapezoid(torch.stack(c, 1).double(), fractions).numpy() for c in (deletion, insertion)]
    morf, _ = curves(model, given, "grey", in_order(maps), counts[1:-1])
    lerf, _ = curves(model, given, "grey", in_order(maps), [units - c for c in counts[-2:0:-1]])
    ours = areas({"morf": morf["morf"]}, fractions.tolist())
    ours |= areas({"lerf": lerf["lerf"]}, (1 - fractions.flip(0)).tolist())
    assert np.abs(ours["deletion_auc"] - theirs[0]).max() < 1e-5
    assert np.abs(ours["insertion_auc"] - theirs[1]).max() < 1e-5


def test_abpc_is_related_to_the_mean_that_pnpxai_takes():
    """pnpxai, AbPC: the plain mean over N points of p_LeRF - p_MoRF, in probability; tolerance 1e-12.

    Both curves share their first and last point, where the difference is 0. On N equally spaced points from 0 to 1,
    then, mean = abpc (N - 1) / N. Its own ten points are 0, 0.1 to 0.8 and 1, with 0.9 left out; on these the plain
    mean gives 0.8 too little weight: mean = abpc - 0.05 (p_LeRF - p_MoRF)(0.8).
    """
    size = 50
    model, given, places = classifier(size), pixels(size), in_order(untied_maps(size))
    even = [i / 10 for i in range(11)]
    by_order, _ = curves(model, given, "grey", places, rankings.counts(even[1:-1], size**2))
    difference = by_order["lerf"] - by_order["morf"]
    assert np.abs(difference).max() > 0.05
    ours = areas(by_order, even)["abpc"]
    assert np.abs(difference.mean(1) - ours * 10 / 11).max() < 1e-12
    own = [*even[:9], 1.0]
    by_order, _ = curves(model, given, "grey", places, rankings.counts(own[1:-1], size**2))
    difference = by_order["lerf"] - by_order["morf"]
    ours = areas(by_order, own)["abpc"]
    assert np.abs(difference.mean(1) - (ours - 0.05 * difference[:, 8])).max() < 1e-12


def test_a_tied_map_loses_as_many_pixels_as_the_level_says_where_a_percentile_takes_all():
    """grad-cam's ROAD keeps what lies under np.percentile(map, P): at P = 50 nothing of a map that is 64% zero."""
    size = 50
    maps = untied_maps(size, 1)
    maps = torch.where(maps < 0.64 * size**2, 0.0, maps)
    threshold = np.percentile(maps.numpy(), 50)
    assert (maps >= threshold).all()
    [n] = rankings.counts([0.5], size**2)
    filled = in_order(maps) < n
    assert filled.sum() == size**2 // 2
    assert filled[maps.flatten(1) > 0].all()
