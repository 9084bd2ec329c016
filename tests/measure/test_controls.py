"""Control masks: permutations, their distribution and what they depend on."""

import numpy as np
import pytest
import torch

from cxr_ray.measure import controls, rankings
from cxr_ray.measure.controls import CONTROLS, Draws, of_family

IDS = ["0123456789abcdef", "fedcba9876543210", "00000000000000aa"]


def asked(ids, numbers, seed=0) -> Draws:
    return Draws(ids, seed, numbers, torch.device("cpu"))


@pytest.mark.parametrize(
    ("control", "grid"),
    [(c, g) for c in of_family("nothing", CONTROLS) for g in CONTROLS[c].grids(["pixel", "7", "14"])],
)
def test_shared_controls_are_permutations_that_depend_on_the_image_alone(control, grid):
    size = 28
    draw = CONTROLS[control].draw
    places = draw(asked(IDS, range(4), 3), grid, size)
    units = rankings.side(grid, size) ** 2
    assert places.shape == (3, 4, units)
    assert torch.equal(places.sort(-1).values, torch.arange(units, dtype=torch.int32).expand(3, 4, -1))
    assert torch.equal(draw(asked(IDS[2:], range(1, 3), 3), grid, size)[0], places[2, 1:3])  # other batch, other draws
    assert len({tuple(p.tolist()) for p in places.flatten(0, 1)}) == 12
    assert not torch.equal(draw(asked(IDS, range(4), 4), grid, size), places)


def test_pixel_random_is_uniform():
    places = (
        controls.pixel_random(asked([f"{i:016x}" for i in range(200)], range(5)), "pixel", 7).flatten(0, 1).double()
    )
    expected, spread = 24.0, (49**2 - 1) / 12
    assert (places.mean(0) - expected).abs().max() < 4.5 * (spread / 1000) ** 0.5
    assert abs(float(places.var()) / spread - 1) < 0.05


def test_cell_random_on_pixels_fills_whole_sevenths():
    places = controls.cell_random(asked(IDS[:1], range(1)), "pixel", 28)[0, 0].view(7, 4, 7, 4)
    cells = (places < 16 * 10).float().mean((1, 3))
    assert sorted(set(cells.flatten().tolist())) == [0.0, 1.0]
    assert int(cells.sum()) == 10


@pytest.mark.parametrize("g", [7, 14, 28, 30])
def test_shifted_draws_distinct_rolls_and_turns_and_never_the_map_itself(g):
    places = torch.randperm(g * g, generator=torch.Generator().manual_seed(1)).int()[None]
    draws = 60
    made = controls.shifted(asked(IDS[:1], range(draws)), places)[0].view(draws, g, g)
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
    made = controls.shifted(asked(IDS[:1], range(391)), places)[0]
    assert len({tuple(m.tolist()) for m in made}) == 391
    assert tuple(range(49)) not in {tuple(m.tolist()) for m in made}


@pytest.mark.parametrize("shape", [(3, 64), (3, 64, 7, 7)])
def test_random_cams_weights_are_permuted_over_channels(shape):
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    made = list(controls.random_cam(asked(IDS, range(5)), weights).unbind(1))
    for draw in made:
        assert torch.equal(draw.sort(1).values, weights.sort(1).values)  # so their sum is conserved
        assert not torch.equal(draw, weights)
    assert len({tuple(draw[0].flatten().tolist()) for draw in made}) == 5
    assert torch.equal(controls.random_cam(asked(IDS[1:2], [3]), weights[1:2])[0, 0], made[3][1])  # other batch
    assert not torch.equal(controls.random_cam(asked(IDS, [0], seed=1), weights)[:, 0], made[0])
    if len(shape) == 4:  # a channel keeps its places
        channels = {tuple(c.flatten().tolist()) for c in weights[0]}
        assert {tuple(c.flatten().tolist()) for c in made[0][0]} == channels


def test_without_the_draws_that_overlap_the_map_p_of_shifted_would_be_too_small():
    """Maps in random places of their orbit are true nulls. What each place loses is a smooth random field."""
    g, draws, maps, fields = 14, 19, 20, 200
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(g), torch.arange(g), indexing="ij")
    lobes = torch.randn(maps, 3, 3, generator=generator)  # one or two blobs, as a class activation map has
    places = rankings.rank(rankings.upsample(lobes, g).flatten(1), (y * g + x).float().flatten().expand(maps, -1))
    orbits = torch.cat([places[:, None], controls.shifted(asked([f"{i}" for i in range(maps)], range(391)), places)], 1)
    quarters = (orbits < g * g // 4).float()
    rejected = {"all": 0, "apart": 0}
    rng = np.random.default_rng(0)
    for quarter in quarters:
        apart = (quarter @ quarter.T / (g * g // 4) <= 0.5).numpy()
        lost = rankings.upsample(torch.randn(fields, 7, 7, generator=generator), g).flatten(1)
        for score in (quarter @ lost.T).T.numpy():
            own = rng.integers(len(score))
            for which, allowed in (("all", np.arange(len(score)) != own), ("apart", apart[own])):
                drawn = rng.choice(np.flatnonzero(allowed), draws, replace=False)
                rejected[which] += (1 + (score[drawn] >= score[own]).sum()) / (1 + draws) <= 0.05
    share = {which: count / (maps * fields) for which, count in rejected.items()}
    assert abs(share["all"] - 0.05) < 0.011  # three standard errors of 4,000 tests
    assert share["apart"] > 0.061
