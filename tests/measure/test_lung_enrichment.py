"""Lung enrichment: known masses, controls that get the map's values, and masks with a rim."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cxr_ray.measure.controls import CONTROLS, Control
from cxr_ray.measure.lung_enrichment import lung_masks, mass_shares
from cxr_ray.measure.rankings import rank
from tests.builders.shards import SIZE, frames, linear_model, shard, sweep, worker


def test_the_share_of_a_ranking_is_that_of_the_values_in_its_order():
    values = torch.tensor([[4.0, 3.0, 2.0, 1.0, -5.0, 0.0]])
    places = torch.tensor([[[0, 1, 2, 3, 5, 4], [3, 2, 1, 0, 4, 5]]], dtype=torch.int32)
    masks = torch.tensor([[[True, True, False, False, False, False], [False, False, False, True, True, True]]])
    shares = mass_shares(values, places, masks)
    assert shares.tolist() == [[[0.7, 0.1], [0.3, 0.4]]]  # the second order is the reverse


def test_a_map_without_positive_values_has_no_share():
    shares = mass_shares(-torch.ones(1, 4), torch.arange(4, dtype=torch.int32)[None, None], torch.ones(1, 1, 4).bool())
    assert shares.isnan().all()


def test_random_rankings_have_an_enrichment_of_one():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.gamma(0.5, size=(1, 400)))
    places = torch.from_numpy(np.argsort(rng.random((1, 600, 400)), 2).astype(np.int32))
    mask = torch.arange(400)[None, None] < 100
    assert float(mass_shares(values, places, mask).mean()) / 0.25 == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("size", "radius"), [(224, 4), (112, 2), (512, 9)])
def test_masks_grow_and_shrink_by_four_pixels_of_224(size, radius):
    lungs = torch.zeros(1, size, size, dtype=torch.bool)
    lungs[0, size // 4 : size // 2, size // 4 : size // 2] = True
    _, dilated, eroded = lung_masks(lungs)[0]
    rows = [int(mask.any(1).sum()) for mask in (dilated, eroded)]
    assert rows == [size // 4 + 2 * radius, size // 4 - 2 * radius]
    assert (eroded & ~lungs[0]).sum() == (lungs[0] & ~dilated).sum() == 0


def test_lungs_at_the_edge_are_not_eroded_from_outside():
    assert lung_masks(torch.ones(1, 56, 56, dtype=torch.bool)).all()


def test_rows_hold_the_map_and_the_mean_over_draws_of_its_controls(monkeypatch):
    """A control whose first draw is the map's ranking and whose second its reverse: by numpy, from the stored maps."""

    def draw(draws, places):
        both = torch.stack([places, places.shape[1] - 1 - places], 1)
        return both[:, list(draws.numbers)]

    monkeypatch.setitem(CONTROLS, "toy", Control("ranking", draw, caption="The map, and its reverse."))
    given = shard()
    lungs = np.zeros((5, SIZE, SIZE), bool)
    lungs[1:, 2:14, 3:20] = True  # the first image has no mask
    config = sweep(
        explain={"explainers": ["input_x_gradient"], "targets": ["pneumonia"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls={"toy": 2, "cell_random": 1},
        regions=None,
        sanity=None,
    )
    out = frames(worker(config, linear_model())(replace(given, masks={"lungs": lungs})))
    found = out["lungs"][out["lungs"]["mask"] == "given"]
    assert set(found["image_id"]) == set(given.image_ids[1:])
    rows = {(row["image_id"], row["control"]): row for row in found.to_dict("records")}
    maps = out["saliency"].set_index("image_id")["map"]
    for image_id in given.image_ids[1:]:
        values = np.array(maps[image_id], float)
        mass = np.clip(values, 0, None)
        own = mass[lungs[1].flatten()].sum() / mass.sum()
        turned = np.empty_like(mass)
        turned[np.argsort(values)] = np.sort(mass)[::-1]
        reverse = turned[lungs[1].flatten()].sum() / mass.sum()
        given_mask, control = rows[image_id, "none"], rows[image_id, "toy"]
        assert given_mask["share"] == pytest.approx(own, abs=1e-5)
        assert control["share"] == pytest.approx((own + reverse) / 2, abs=1e-5)
        assert given_mask["enrichment"] == pytest.approx(own / lungs[1].mean(), rel=1e-4)
        assert (given_mask["draws"], control["draws"]) == (1, 2)


def test_a_ranking_of_the_map_itself_gives_its_own_share():
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.normal(size=(2, 64)).astype(np.float32))
    mask = torch.from_numpy(rng.random((2, 1, 64)) < 0.3)
    own = rank(values, torch.zeros_like(values))
    mass = values.clamp(min=0)
    expected = (mass * mask[:, 0]).sum(1) / mass.sum(1)
    assert mass_shares(values, own[:, None], mask)[:, 0, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
