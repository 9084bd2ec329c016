"""Metrics of localisation: maps and truths whose values are known, and rows beside controls."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxr_ray.data.loading import load_pixels
from cxr_ray.data.masks import load_parts
from cxr_ray.data.truth import boxes_of, own_truth
from cxr_ray.measure.controls import CONTROLS, Control
from cxr_ray.measure.localisation import LOCALISATION, Located, measured
from cxr_ray.measure.rankings import rank
from cxr_ray.measure.shards import Shard
from tests.builders.images import phantoms
from tests.builders.shards import SIZE, frames, linear_model, shard, sweep, worker

SIDE = 8


def located(maps_NSS: np.ndarray, truth_NSS: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric of the maps themselves, [N]; equal values rank in raster order."""
    values = torch.from_numpy(np.asarray(maps_NSS, np.float32)).flatten(1)
    raster = -torch.arange(values.shape[1], dtype=torch.float32).expand_as(values)
    boxes = np.stack([boxes_of(mask) for mask in truth_NSS])
    found = measured(
        Located(
            values,
            rank(values, raster)[:, None],
            torch.from_numpy(truth_NSS).flatten(1),
            torch.from_numpy(boxes).flatten(1),
        )
    )
    return dict(zip(LOCALISATION, found[:, 0].T.numpy(), strict=True))


def box(top: int = 2, left: int = 3, height: int = 3, width: int = 4) -> np.ndarray:
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, top : top + height, left : left + width] = True
    return mask


def test_a_map_that_is_the_truth_is_perfect():
    found = located(box().astype(float), box())
    assert {name: value.tolist() for name, value in found.items()} == {name: [1.0] for name in LOCALISATION}


def test_a_map_of_all_but_the_truth_is_zero():
    found = located(1.0 - box(), box())
    assert {name: value.tolist() for name, value in found.items()} == {name: [0.0] for name in LOCALISATION}


def test_a_uniform_map_has_the_share_of_the_area():
    found = located(np.ones((1, SIDE, SIDE)), box())
    area = 12 / SIDE**2
    assert found["mass"] == pytest.approx(area)
    assert found["energy"] == pytest.approx(area)


def test_random_rankings_have_the_share_of_the_area_on_average():
    rng = np.random.default_rng(0)
    found = located(rng.random((4000, SIDE, SIDE)), np.repeat(box(), 4000, 0))
    area = 12 / SIDE**2
    for name in ("pointing", "mass", "rank"):
        error = found[name].std() / np.sqrt(4000)
        assert abs(found[name].mean() - area) < 4 * error


def test_half_of_the_truth_among_the_most_salient_is_a_third_in_common():
    truth = box(0, 0, 2, 4)
    found = located(box(0, 0, 4, 2).astype(float), truth)  # as large, and half of it inside
    assert found["rank"] == pytest.approx(0.5)
    assert found["iou"] == pytest.approx(1 / 3)
    assert found["mass"] == pytest.approx(0.5)


def test_energy_is_that_of_the_boxes_around_the_parts():
    truth = np.zeros((1, SIDE, SIDE), bool)
    truth[0, 1, 1] = truth[0, 2, 2] = truth[0, 6, 6] = True  # two parts: of 2 x 2 with two pixels, and one pixel
    values = np.zeros((1, SIDE, SIDE))
    values[0, 1, 2], values[0, 1, 1], values[0, 7, 0] = 3.0, 1.0, 4.0
    found = located(values, truth)
    assert found["energy"] == pytest.approx(4 / 8)
    assert found["mass"] == pytest.approx(1 / 8)
    assert found["pointing"] == 0


def test_a_map_without_positive_values_has_no_mass_but_a_ranking():
    found = located(-np.arange(SIDE**2, dtype=float).reshape(1, SIDE, SIDE), box(0, 0, 1, 1))
    assert np.isnan([found["mass"][0], found["energy"][0]]).all()
    assert (found["pointing"][0], found["rank"][0]) == (1, 1)


values = arrays.arrays(np.float32, (1, 6, 6), elements=st.floats(-5, 5, width=32))
truths = arrays.arrays(bool, (1, 6, 6)).filter(np.any)


@given(values, truths)
def test_metrics_lie_between_0_and_1_and_keep_their_order(maps, truth):
    found = {name: value[0] for name, value in located(maps, truth).items()}
    known = [value for value in found.values() if not np.isnan(value)]
    assert min(known) >= 0
    assert max(known) <= 1 + 1e-12
    assert found["iou"] <= found["rank"]
    assert np.isnan(found["mass"]) == (maps.max() <= 0) == np.isnan(found["energy"])
    if maps.max() > 0:
        assert found["energy"] >= found["mass"] - 1e-12
    if truth.all():
        assert found["rank"] == found["pointing"] == 1


@given(values, truths, st.floats(0.1, 10))
def test_what_keeps_the_order_of_values_keeps_pointing_rank_and_iou(maps, truth, scale):
    maps = np.round(maps, 2)
    before, after = located(maps, truth), located(np.round(scale, 1) * maps.astype(np.float64) ** 3, truth)
    order = np.unique(maps, return_inverse=True)[1]
    cubed = np.unique((np.round(scale, 1) * maps.astype(np.float64) ** 3).astype(np.float32), return_inverse=True)[1]
    if np.array_equal(order, cubed):  # else float32 made two values one
        for name in ("pointing", "rank", "iou"):
            assert before[name] == after[name]


@pytest.fixture
def truth() -> np.ndarray:
    mask = np.zeros((5, SIZE, SIZE), bool)
    mask[1:, 2:14, 3:20] = True  # the first image has none
    return mask


def run_with(truth: np.ndarray, **changes):
    config = sweep(
        **{
            "explain": {"explainers": ["input_x_gradient"], "targets": ["pneumonia"]},
            "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
            "regions": None,
            "sanity": None,
            **changes,
        }
    )
    boxes = np.stack([boxes_of(mask) for mask in truth])
    given_shard = replace(shard(), masks={"truth": truth, "truth_boxes": boxes})
    return frames(worker(config, linear_model())(given_shard))


def test_rows_hold_the_map_and_its_controls(monkeypatch, truth):
    """A control whose first draw is the map's ranking and whose second its reverse: by numpy, from the stored maps."""

    def draw(draws, places):
        both = torch.stack([places, places.shape[1] - 1 - places], 1)
        return both[:, list(draws.numbers)]

    monkeypatch.setitem(CONTROLS, "toy", Control("ranking", draw, caption="The map, and its reverse."))
    out = run_with(truth, controls={"toy": 2, "cell_random": 3})
    found = out["localisation"]
    assert set(found["image_id"]) == set(out["saliency"]["image_id"].iloc[1:])
    assert len(found) == 4 * len(LOCALISATION) * 3
    assert set(found[["metric", "control"]].itertuples(index=False, name=None)) == {
        (metric, control) for metric in LOCALISATION for control in ("none", "toy", "cell_random")
    }
    rows = {(row["image_id"], row["metric"], row["control"]): row for row in found.to_dict("records")}
    maps = out["saliency"].set_index("image_id")["map"]
    inside = truth[1].flatten()
    pixels = inside.sum()
    for image_id in found["image_id"].unique():
        values = np.array(maps[image_id], float)
        order = np.argsort(-values)
        assert len(np.unique(values)) == len(values)  # no ties
        own, reverse = inside[order[:pixels]].mean(), inside[order[::-1][:pixels]].mean()
        row, toy = rows[image_id, "rank", "none"], rows[image_id, "rank", "toy"]
        assert row["value"] == toy["value"] == pytest.approx(own)
        assert row["area"] == pytest.approx(inside.mean())
        assert np.isnan([row["control_mean"], row["gap"], row["win_rate"]]).all()
        assert toy["control_mean"] == pytest.approx((own + reverse) / 2)
        assert toy["gap"] == pytest.approx((own - reverse) / 2, abs=1e-6)
        assert toy["win_rate"] == (0.25 + 0.5 * np.heaviside(own - reverse, 0.5))
        mass = np.clip(values, 0, None)
        assert rows[image_id, "mass", "none"]["value"] == pytest.approx(mass[inside].sum() / mass.sum(), abs=1e-5)
        assert rows[image_id, "pointing", "none"]["value"] == inside[order[0]]
        assert rows[image_id, "iou", "none"]["value"] == pytest.approx(own / (2 - own))
        assert (row["n_draws"], toy["n_draws"], rows[image_id, "rank", "cell_random"]["n_draws"]) == (0, 2, 3)


def test_p_values_take_19_draws(truth):
    out = run_with(truth, controls={"shifted": 20, "cell_random": 18})["localisation"]
    assert out.loc[out["control"] == "cell_random", "p_value"].isna().all()
    shifted = out[(out["control"] == "shifted") & (out["metric"] == "rank")]
    extreme = shifted["p_value"] * 21 - 1
    assert np.allclose(extreme, extreme.round(), atol=1e-4)
    assert (shifted["p_value"] >= 1 / 21 - 1e-6).all()


def test_without_a_truth_there_are_no_rows(truth):
    assert "localisation" not in run_with(np.zeros_like(truth), controls={"shifted": 1})


def test_a_truth_changes_no_other_number(truth):
    controls = {"shifted": 2, "cell_random": 2}
    with_truth, without = run_with(truth, controls=controls), run_with(np.zeros_like(truth), controls=controls)
    for name, table in without.items():
        assert with_truth[name].drop(columns="map", errors="ignore").equals(table.drop(columns="map", errors="ignore"))


def test_maps_that_are_the_opacities_of_phantoms_are_perfect_and_beat_their_controls():
    """Maps from outside, the planted truth, and the same rolled by half of the image."""
    source = phantoms(size=64, test=4, prevalence=0.5)
    rows = [{"path": e.path, "image_id": e.name} for e in source.list() if e.split == "test"]
    config = sweep(
        data={"source": "phantom", "size": 64},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls={"cell_random": 2, "shifted": 4},
        regions=None,
        sanity=None,
    )
    masks = own_truth(config, load_parts(source, (), rows, 64).masks)
    pixels, *_ = load_pixels(source, pd.DataFrame(rows), 64)
    ids = [row["image_id"] for row in rows]
    opacity = masks["truth"].astype(np.float32)
    maps = {"planted": opacity, "elsewhere": np.roll(opacity, (32, 32), (1, 2))}
    config = config.model_copy(
        update={"explain": config.explain.model_copy(update={"explainers": [*maps], "targets": ["pneumonia"]})}
    )
    taken = Shard("m", "test", ids, ids, [int("PNEU" in r["path"]) for r in rows], pixels, masks=masks, maps=maps)
    found = frames(worker(config, linear_model(64))(taken))["localisation"]
    assert found["image_id"].nunique() == masks["truth"].any((1, 2)).sum() == 2  # NORMAL phantoms have no opacity
    planted, elsewhere = (found[found["explainer"] == name] for name in maps)
    assert (planted["value"] == 1).all()
    compared = planted["control"] != "none"
    assert (planted.loc[compared & planted["metric"].isin(["mass", "rank", "iou"]), "win_rate"] == 1).all()
    assert elsewhere["value"].max() < 0.5
