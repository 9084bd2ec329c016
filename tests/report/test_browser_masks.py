"""Masks that the browser draws again are those that were scored: the table ``curves`` tells how far they overlap."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report.browser import masks, pictures
from cxr_ray.report.browser.masks import Masking
from tests.builders import networks
from tests.builders.donors import PATIENTS, both_executions
from tests.builders.shards import SIZE, sweep

LEVEL = 0.25
DRAWN = ("smooth_random", "shifted", "other_image", "mean_map")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Twelve images after both passes: the sweep and its tables."""
    config = sweep(
        explain={"explainers": ["gradcam"], "targets": ["pneumonia"]},
        perturb={"grids": ["pixel", "7"], "fills": ["mean"], "levels": [LEVEL, 0.5, 0.75]},
        controls=dict.fromkeys(DRAWN, 1),
        regions=None,
        sanity=None,
    )
    return config, both_executions(config, networks.small(size=SIZE), tmp_path_factory.mktemp("measured"))


@pytest.mark.parametrize("grid", ["pixel", "7"])
def test_masks_overlap_as_those_that_were_scored(measured, grid):
    config, tables = measured
    maps = {r.image_id: r.map.reshape(r.map_height, r.map_width) for r in tables["saliency"].itertuples()}
    predicted = dict(zip(tables["predictions"]["image_id"], tables["predictions"]["predicted"], strict=True))
    donors = masks.donor_index(predicted, PATIENTS, {})
    of_target = masks.MapsOfTarget("gradcam", dict.fromkeys(maps, 1), maps, donors)
    masking = Masking(config.seed, grid, SIZE, LEVEL)
    with ThreadPoolExecutor(2) as pool:
        of_target.sum_ranks(masking, pool)
    curves = tables["curves"].query(
        f"grid == '{grid}' and direction == 'morf' and level == {LEVEL} and control != 'none'"
    )
    shares = []
    for row in curves.itertuples():
        own = masking.of_map(row.image_id, maps[row.image_id])
        control = of_target.control(row.control, masking, row.image_id)
        assert own.sum() == control.mask.sum() == row.n_perturbed * (SIZE // masking.side) ** 2
        shares.append((own & control.mask).sum() / own.sum())
    assert set(curves["control"]) == set(DRAWN)
    assert np.allclose(shares, curves["overlap"], atol=1e-6)
    assert np.std(shares) > 0.02  # they differ from image to image


def test_controls_of_weights_cannot_be_drawn_again_and_the_others_can():
    known = {name for name in CONTROLS if masks.can_be_drawn(name)}
    assert known == set(CONTROLS) - {"random_cam"}


def test_an_image_without_other_patients_has_no_donor():
    maps = {"a": np.eye(3, dtype=np.float32), "b": np.eye(3, dtype=np.float32)}
    donors = masks.donor_index({"a": 1, "b": 1}, {"a": "p", "b": "p"}, {})
    of_target = masks.MapsOfTarget("gradcam", {"a": 1, "b": 1}, maps, donors)
    masking = Masking(0, "pixel", 8, LEVEL)
    with ThreadPoolExecutor(1) as pool:
        of_target.sum_ranks(masking, pool)
    assert of_target.control("other_image", masking, "a") is None
    assert of_target.control("mean_map", masking, "a") is None


def test_a_fill_is_one_value_or_pixels():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    assert pictures.filled(grey, "black", "a", 0, 0.5) == 0
    assert pictures.filled(grey, "grey", "a", 0, 0.5) == 128
    assert pictures.filled(grey, "mean", "a", 0, 0.5) == 126
    noise = pictures.filled(grey, "noise", "a", 0, 0.5)
    assert noise.shape == (8, 8)
    assert noise.std() > 30


def test_a_fill_that_depends_on_the_mask_changes_what_is_inside_alone():
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    made = pictures.deleted(grey, "linear", "a", 0, inside)
    assert (made[~inside] == grey[~inside]).all()
    blurred = ndimage.uniform_filter(grey.astype(float), 3)
    assert np.abs(made[inside] - blurred[inside]).max() < 30  # a ramp is interpolated as one
    assert (made[inside] != grey[inside]).any()
