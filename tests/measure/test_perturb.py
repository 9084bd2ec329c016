"""Rankings, masks, fills, controls and masked scores against closed forms and numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from cxr_ray import randomness
from cxr_ray.measure import perturb

IDS = ["0123456789abcdef", "fedcba9876543210", "00000000000000aa"]
CPU = torch.device("cpu")


def share_filled(images: torch.Tensor) -> torch.Tensor:
    """A "model" whose score is the number of filled pixels, if images are 0 and fills 1."""
    return images[:, 0].flatten(1).sum(1)


def zero_one_canvas(n_images: int, size: int, n_fills: int = 1) -> perturb.Canvas:
    return perturb.Canvas.of(torch.zeros(n_images, 3, size, size), torch.ones(n_images, n_fills, 3, size, size))


@given(hnp.arrays(np.float32, (3, 20), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, -1.0, 3.5])))
def test_rank_is_a_permutation_in_descending_order_with_ties_broken_by_the_field(values):
    ties = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    places = perturb.rank(torch.from_numpy(values), ties).numpy()
    for row, field, place in zip(values, ties.numpy(), places, strict=True):
        expected = sorted(range(20), key=lambda i: (-row[i], -field[i]))
        assert [int(p) for p in np.argsort(place)] == expected


def test_rank_agrees_with_lexsort_on_as_many_units_as_an_image_has():
    """From 32,768 numbers on, torch sorts a row otherwise."""
    rng = np.random.default_rng(0)
    values = rng.integers(-50, 50, (2, 40_000)).astype(np.float32) / 7
    values[0, :9] = -0.0  # ties with 0
    ties = rng.random((2, 40_000), np.float32) - 0.5
    places = perturb.rank(torch.from_numpy(values), torch.from_numpy(ties)).numpy()
    for row, field, place in zip(values, ties, places, strict=True):
        assert (np.argsort(place) == np.lexsort((np.arange(len(row)), -field, -row))).all()


def test_no_rankings_are_no_pass():
    def forward(images):
        raise AssertionError("an empty batch came")

    made = perturb.masked_scores(forward, zero_one_canvas(1, 4), torch.empty(0, 16, dtype=torch.int32),
                                 torch.empty(0, dtype=torch.long), [3, 4, 5], ["morf"], 2)  # fmt: skip
    assert made.shape == (0, 1, 1, 3)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["pixel", "7", "14", "28"]),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True),
    st.booleans(),
)
def test_a_level_perturbs_exactly_round_f_units_also_when_all_values_tie(grid, levels, constant):
    size = 28
    units = perturb.side(grid, size) ** 2
    maps = torch.zeros(2, units) if constant else torch.rand(2, units).mul(3).round()
    ties = perturb.cell_means(perturb.smooth_field(torch.tensor([1, 2]), size), perturb.side(grid, size)).flatten(1)
    places = perturb.rank(maps, ties)
    scores = perturb.masked_scores(
        share_filled, zero_one_canvas(2, size), places, torch.arange(2), perturb.counts(levels, units),
        ["morf", "lerf"], batch_size=3,
    )  # fmt: skip
    expected = torch.tensor([round(f * units) for f in levels]) * (size * size // units)
    assert torch.equal(scores, expected.float().expand(2, 1, 2, -1))


@pytest.mark.parametrize("grid", ["pixel", "7"])
def test_masks_are_nested_over_levels_and_lerf_is_the_reverse_of_morf(grid):
    size, seen = 14, []

    def keep(images):
        seen.append(images[:, 0].bool().clone())
        return share_filled(images)

    units = perturb.side(grid, size) ** 2
    levels = [0.1, 0.3, 0.7, 0.9]
    places = perturb.rank(torch.rand(1, units), torch.rand(1, units))
    perturb.masked_scores(keep, zero_one_canvas(1, size), places, torch.zeros(1, dtype=torch.long),
                          perturb.counts(levels, units), ["morf", "lerf"], batch_size=5)  # fmt: skip
    morf, lerf = torch.cat(seen).view(2, len(levels), size, size)
    for smaller, larger in itertools.pairwise(morf):
        assert (larger | ~smaller).all()
    # 0.1 and 0.9 (0.3 and 0.7) are complements, so lerf at a level is what morf leaves at the other
    assert torch.equal(lerf, ~morf.flip(0))


def test_cells_follow_the_stated_formula():
    for size, g in ((30, 7), (224, 14), (33, 28)):
        cell = perturb.cell_of(size, g)
        assert cell.tolist() == [int(np.floor(y * g / size)) for y in range(size)]
        values = torch.rand(1, size, size)
        expected = torch.stack([
            torch.stack([values[0][cell == a][:, cell == b].mean() for b in range(g)]) for a in range(g)
        ])  # fmt: skip
        assert torch.allclose(perturb.cell_means(values, g)[0], expected, atol=1e-6)


def test_a_linear_models_curve_is_the_sorted_sum_of_its_exact_attribution():
    """f(x) = sum(w x): filling a pixel changes the score by w (x - fill), so the best ranking is known exactly."""
    size = 8
    rng = torch.Generator().manual_seed(0)
    weight, image, fill = (torch.rand(3, size, size, generator=rng, dtype=torch.float64) - 0.3 for _ in range(3))
    fill = fill.mean((1, 2), keepdim=True).expand_as(fill)
    attribution = (weight * (image - fill)).sum(0).flatten()
    places = perturb.rank(attribution[None], torch.rand(1, size * size))
    ns = [0, 1, 5, 32, 63, 64]
    canvas = perturb.Canvas.of(image[None], fill[None, None])
    scores = perturb.masked_scores(lambda x: (x * weight).sum((1, 2, 3)), canvas, places,
                                   torch.zeros(1, dtype=torch.long), ns, ["morf", "lerf"], 4)[0, 0]  # fmt: skip
    full, ordered = (weight * image).sum(), attribution.sort(descending=True).values
    for i, n in enumerate(ns):
        assert torch.isclose(scores[0, i], full - ordered[:n].sum())
        assert torch.isclose(scores[1, i], full - ordered[len(ordered) - n :].sum())
    assert (scores[0] <= scores[1] + 1e-9).all()


def test_fills():
    images = torch.rand(2, 3, 32, 32)
    grey = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    keys = torch.tensor([5, 6])
    made = {name: fill(images, grey, keys) for name, fill in perturb.FILLS.items()}
    assert made["black"].abs().max() == 0
    assert torch.equal(made["grey"][1, :, 3, 4], grey[:, 0, 0])
    assert torch.allclose(made["mean"][0, :, 0, 0], images[0].mean((1, 2)))
    # kernel 11, sigma 5: the Gaussian cut off at 5 pixels, away from the edge
    expected = gaussian_filter(images[0, 0].double().numpy(), 5, radius=5)
    assert np.allclose(made["blur"][0, 0, 6:-6, 6:-6], expected[6:-6, 6:-6], atol=1e-5)
    noise = made["noise"]
    assert torch.equal(noise[:, 0], noise[:, 2])
    assert not torch.equal(noise[0], noise[1])
    assert 0 < noise.min() < 0.05
    assert 0.95 < noise.max() < 1
    assert torch.equal(perturb.FILLS["noise"](images[1:], grey, keys[1:])[0], noise[1])


@pytest.mark.parametrize(
    ("control", "grid"),
    [(c, g) for c in perturb.SHARED_CONTROLS for g in perturb.control_grids(c, ["pixel", "7", "14"])],
)
def test_shared_controls_are_permutations_that_depend_on_the_image_alone(control, grid):
    size = 28
    make = perturb.SHARED_CONTROLS[control]
    places = make(IDS, 3, range(4), grid, size, CPU)
    units = perturb.side(grid, size) ** 2
    assert places.shape == (3, 4, units)
    assert torch.equal(places.sort(-1).values, torch.arange(units, dtype=torch.int32).expand(3, 4, -1))
    assert torch.equal(make(IDS[2:], 3, range(1, 3), grid, size, CPU)[0], places[2, 1:3])  # other batch, other draws
    assert len({tuple(p.tolist()) for p in places.flatten(0, 1)}) == 12
    assert not torch.equal(make(IDS, 4, range(4), grid, size, CPU), places)


def test_pixel_random_is_uniform():
    places = (
        perturb.pixel_random([f"{i:016x}" for i in range(200)], 0, range(5), "pixel", 7, CPU).flatten(0, 1).double()
    )
    expected, spread = 24.0, (49**2 - 1) / 12
    assert (places.mean(0) - expected).abs().max() < 4.5 * (spread / 1000) ** 0.5
    assert abs(float(places.var()) / spread - 1) < 0.05


def test_cell_random_on_pixels_fills_whole_sevenths():
    places = perturb.cell_random(IDS[:1], 0, range(1), "pixel", 28, CPU)[0, 0].view(7, 4, 7, 4)
    cells = (places < 16 * 10).float().mean((1, 3))
    assert sorted(set(cells.flatten().tolist())) == [0.0, 1.0]
    assert int(cells.sum()) == 10


@pytest.mark.parametrize("g", [7, 14, 28, 30])
def test_shifted_draws_distinct_rolls_and_turns_and_never_the_map_itself(g):
    places = torch.randperm(g * g, generator=torch.Generator().manual_seed(1)).int()[None]
    draws = 60
    made = perturb.shifted(places, IDS[:1], 0, range(draws))[0].view(draws, g, g)
    original = places.view(g, g).numpy()
    orbit = {}
    for turn in range(8):
        image = original.T if turn & 4 else original
        image = image[::-1] if turn & 1 else image
        image = image[:, ::-1] if turn & 2 else image
        for down in range(7):
            for right in range(7):
                steps = [int(np.floor(k * g / 7 + 0.5)) for k in (down, right)]
                rolled = np.roll(image, steps, (0, 1))
                orbit[rolled.tobytes()] = (turn, down, right)
    found = [orbit[np.ascontiguousarray(m.numpy()).tobytes()] for m in made]
    assert len(set(found)) == draws
    assert (0, 0, 0) not in found


def test_shifted_reaches_every_element_but_the_identity_once():
    places = torch.arange(49, dtype=torch.int32)[None]
    made = perturb.shifted(places, IDS[:1], 0, range(391))[0]
    assert len({tuple(m.tolist()) for m in made}) == 391
    assert tuple(range(49)) not in {tuple(m.tolist()) for m in made}


@pytest.mark.parametrize("shape", [(3, 64), (3, 64, 7, 7)])
def test_random_cams_weights_are_permuted_over_channels(shape):
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    made = [perturb.permuted_weights(weights, IDS, 0, draw) for draw in range(5)]
    for draw in made:
        assert torch.equal(draw.sort(1).values, weights.sort(1).values)  # so their sum is conserved
        assert not torch.equal(draw, weights)
    assert len({tuple(draw[0].flatten().tolist()) for draw in made}) == 5
    assert torch.equal(perturb.permuted_weights(weights[1:2], IDS[1:2], 0, 3)[0], made[3][1])  # other batch
    assert not torch.equal(perturb.permuted_weights(weights, IDS, 1, 0), made[0])
    if len(shape) == 4:  # a channel keeps its places
        channels = {tuple(c.flatten().tolist()) for c in weights[0]}
        assert {tuple(c.flatten().tolist()) for c in made[0][0]} == channels


def test_a_canvas_with_one_of_its_fills_gives_its_scores():
    size, given = 14, torch.rand(2, 3, 14, 14)
    fills = torch.rand(2, 3, 3, size, size)
    linear = perturb.Linear.of(2, given, torch.tensor([1, 2]), lambda x: x)
    canvas = perturb.Canvas.of(given, fills, linear)
    places = perturb.rank(torch.rand(2, 49), torch.rand(2, 49))
    ask = places, torch.arange(2), [10, 30], ["morf", "lerf"], 5
    score = lambda x: x.sum((1, 2, 3))  # noqa: E731
    every = perturb.masked_scores(score, canvas, *ask)
    for fill in range(3):
        assert torch.allclose(perturb.masked_scores(score, canvas.only(fill), *ask)[:, 0], every[:, fill])


def test_overlap_counts_shared_units():
    a = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
    b = torch.tensor([[[3, 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]]], dtype=torch.int32)
    assert perturb.overlap(a, b, 2, "morf").tolist() == [[0.0, 1.0, 1.0]]
    assert perturb.overlap(a, b, 1, "morf").tolist() == [[0.0, 1.0, 0.0]]
    assert perturb.overlap(a, b, 3, "lerf")[0].tolist() == pytest.approx([2 / 3, 1.0, 2 / 3])
    assert perturb.overlap(a, b, 0, "morf").isnan().all()


def test_random_numbers_are_uniform_and_normal_and_do_not_depend_on_the_batch():
    keys = torch.tensor([randomness.key(0, i, "test") for i in IDS])
    u = randomness.uniform(keys, 40_000)
    assert torch.equal(randomness.uniform(keys[1:2], 100)[0], u[1, :100])
    assert u.min() > 0
    assert u.max() < 1
    assert (torch.histc(u, 20, 0, 1) - 6000).abs().max() < 5 * 6000**0.5
    z = randomness.normal(keys, 40_000)
    assert abs(float(z.mean())) < 0.015
    assert abs(float(z.std()) - 1) < 0.015
    assert randomness.key(0, "a", "b", 1) != randomness.key(0, "a", "b1", 0)


def test_cells_that_are_equal_but_for_the_order_of_a_sum_tie():
    """A peak in the corner of a small map: what lies right of it and what lies below it are equal."""
    peak = torch.zeros(1, 2, 2)
    peak[0, 0, 0] = 0.1
    full = perturb.at_size(peak, 64)
    noisy = full * (1 + 1e-7 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)))
    ties = perturb.tie_fields(["a"], 0, 64)
    for g in (7, 14):
        assert torch.equal(perturb.rank_on(full, ties, g), perturb.rank_on(noisy, ties, g))
