"""Perimeters of masks, random fields that are as smooth as a map, and the control that is made of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cxr_ray.measure import rankings, smoothness
from cxr_ray.measure.attribution.inputs import Inputs
from cxr_ray.measure.controls import CONTROLS, Draws
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import ModelSpec

DRAWS = 5


def asked(n: int, numbers=range(DRAWS), seed: int = 0) -> Draws:
    return Draws([f"{i:016x}" for i in range(n)], seed, numbers, torch.device("cpu"))


def lengths(places: Tensor) -> Tensor:
    """Perimeters of the highest quarter."""
    return smoothness.perimeter(smoothness.quarter(places)).double()


def smooth_random(draws: Draws, places: Tensor) -> Tensor:
    return CONTROLS["smooth_random"].draw(draws, places)


def ranked(maps_NGG: Tensor) -> Tensor:
    return rankings.rank(maps_NGG.flatten(1), torch.zeros_like(maps_NGG.flatten(1)))


def blobs(n: int, g: int, width: float) -> Tensor:
    """Maps of one Gaussian blob at a random place, with a little noise of the same width: no Gaussian fields."""
    at = torch.rand(n, 2, 1, generator=torch.Generator().manual_seed(1)) * g
    y, x = torch.exp(-0.5 * ((torch.arange(g) - at) / (width * g)) ** 2).unbind(1)
    noise = smoothness.gaussian_fields(torch.arange(n), width * g / 2, g)
    return y[:, :, None] * x[:, None, :] + 0.02 * noise / noise.std()


def test_the_perimeter_counts_edges_between_inside_and_outside():
    masks = torch.zeros(3, 6, 6, dtype=torch.bool)
    masks[0, 2:4, 2:5] = True  # a rectangle of 2 x 3
    masks[1, :2] = True  # the upper third: the border of the image is no edge
    masks[2] = (torch.arange(6)[:, None] + torch.arange(6)) % 2 == 0  # a chessboard
    assert smoothness.perimeter(masks).tolist() == [10, 6, 60]
    assert smoothness.perimeter(~masks).tolist() == [10, 6, 60]


def test_the_quarter_holds_the_first_quarter_of_a_ranking():
    mask = smoothness.quarter(torch.arange(49).flip(0)[None])
    assert mask.shape == (1, 7, 7)
    assert mask.sum() == 12
    assert mask[0].flatten()[-12:].all()


@pytest.mark.parametrize(
    ("g", "sigma", "tolerance"),
    [(7, 0.3, 0.15), (7, 1.0, 0.15), (7, 4.0, 0.15)]
    + [(g, sigma, 0.05) for g, sigma in [(14, 0.3), (14, 1.0), (14, 4.0), (56, 0.6), (56, 1.5), (56, 8), (56, 30)]],
)
def test_the_expected_perimeter_is_that_of_simulated_fields(g, sigma, tolerance):
    n = 400
    found = lengths(ranked(smoothness.gaussian_fields(torch.arange(n), sigma, g)))
    assert float(found.std()) / n**0.5 < tolerance / 4 * float(found.mean())
    assert smoothness.expected_perimeter(sigma, g) == pytest.approx(float(found.mean()), rel=tolerance)


def test_the_expected_perimeter_of_white_noise_is_known():
    """Two neighbours are on different sides of the quartile with the probability 2 x 1/4 x 3/4."""
    assert smoothness.expected_perimeter(0.2, 100) == pytest.approx(2 * 100 * 99 * 3 / 8, rel=1e-3)


def test_gaussian_fields_are_stationary_and_normal():
    fields = smoothness.gaussian_fields(torch.arange(3000), 5.7, 20).double()
    spread = fields.std(0)
    assert float(spread.max() / spread.min()) < 1.12
    kurtosis = ((fields / spread) ** 4).mean()
    assert kurtosis == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize("g", [7, 14, 28, 112])
@pytest.mark.parametrize("kind", ["blobs", "smooth", "rough", "noise"])
def test_smooth_random_has_the_perimeter_of_the_map(kind, g):
    n = 12
    maps = {
        "blobs": lambda: blobs(n, g, 0.2),
        "smooth": lambda: smoothness.gaussian_fields(torch.arange(100, 100 + n), g / 8, g),
        "rough": lambda: smoothness.gaussian_fields(torch.arange(100, 100 + n), 0.8, g),
        "noise": lambda: torch.rand(n, g, g, generator=torch.Generator().manual_seed(3)),
    }[kind]()
    places = ranked(maps)
    made = smooth_random(asked(n, range(15)), places)
    assert float(lengths(made).mean()) == pytest.approx(float(lengths(places).mean()), rel=0.15)


def test_smooth_random_knows_nothing_of_the_map_but_its_perimeter():
    places = ranked(blobs(3, 28, 0.2))
    turned = places.view(3, 28, 28).flip(1).transpose(1, 2).flatten(1)
    assert torch.equal(smooth_random(asked(3), places), smooth_random(asked(3), turned))


def test_smooth_random_is_a_function_of_seed_image_and_draw():
    places = ranked(torch.cat([blobs(2, 14, 0.2), torch.rand(2, 14, 14)]))
    made = smooth_random(asked(4), places)
    assert torch.equal(made.sort(-1).values, torch.arange(196, dtype=torch.int32).expand(4, DRAWS, -1))
    assert len({tuple(p.tolist()) for p in made.flatten(0, 1)}) == 4 * DRAWS
    alone = Draws([f"{2:016x}"], 0, [4, 1], torch.device("cpu"))  # in another batch, other draws
    assert torch.equal(smooth_random(alone, places[2:3]), made[2:3, [4, 1]])
    assert not torch.equal(smooth_random(asked(4, seed=1), places), made)


def test_a_map_smoother_or_rougher_than_any_field_gets_the_smoothest_or_roughest():
    g = 14
    half = torch.arange(g * g, dtype=torch.int32)[None]  # rows from above: a perimeter of one or two sides
    board = ((torch.arange(g)[:, None] + torch.arange(g)) % 2).float()[None]
    sigmas, _ = smoothness.length_scales(g)
    assert smoothness.scale_of(lengths(half).numpy() * 0.5, g) == sigmas[-1]
    assert smoothness.scale_of(lengths(ranked(board)).numpy() * 2, g) == sigmas[0]


@pytest.fixture(scope="module")
def real_maps(shared_data, shared_model) -> dict[str, Tensor]:
    """Maps of 16 real images by explainer, [16, 224, 224]."""
    model = checkpoints.load(str(shared_model), ModelSpec("resnet18", 224)).requires_grad_(False)
    files = sorted((shared_data / "chest_xray_224" / "test").glob("*/*"))[::39]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files])
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    blurred = FILLS["blur"].make(pixels, model.mean, torch.zeros(len(files)).long())
    ids, targets = [f"{i:016x}" for i in range(len(files))], torch.ones(len(files)).long()
    black = model.normalize(torch.zeros(3, 1, 1))
    given = Inputs(model.normalize(pixels), model.normalize(blurred), black, targets, ids, 0)
    return {e: rankings.at_size(EXPLAINERS[e].explain(model, given).detach(), 224) for e in ("gradcam", "saliency")}


@pytest.mark.parametrize("grid", ["pixel", "7", "14", "28"])
@pytest.mark.parametrize("explainer", ["gradcam", "saliency"])
def test_smooth_random_has_the_perimeter_of_real_maps(real_maps, explainer, grid):
    maps = real_maps[explainer]
    ties = rankings.tie_fields([f"{i:016x}" for i in range(len(maps))], 0, 224)
    places = rankings.rank_on(maps, ties, rankings.side(grid, 224))
    made = smooth_random(asked(len(maps)), places)
    assert float(lengths(made).mean()) == pytest.approx(float(lengths(places).mean()), rel=0.15)


@pytest.mark.parametrize(("explainer", "least", "most"), [("gradcam", 0.05, 0.2), ("saliency", 0.0, 0.05)])
def test_a_tenth_of_the_shifts_of_a_class_activation_map_cover_more_than_half_of_it(real_maps, explainer, least, most):
    maps = real_maps[explainer]
    ids = [f"{i:016x}" for i in range(len(maps))]
    places = rankings.rank_on(maps, rankings.tie_fields(ids, 0, 224), 28)
    made = CONTROLS["shifted"].draw(asked(len(maps), range(100)), places)
    covered = smoothness.overlap_of_quarters(places, made)
    assert float(covered.mean()) == pytest.approx(0.25, abs=0.05)
    assert least <= float((covered > 0.5).float().mean()) <= most
