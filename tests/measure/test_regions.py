"""Regions, their matched controls, edits and lungs: areas, places, exact effects on a linear network, failures."""

import itertools
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cxr_ray import randomness
from cxr_ray.data import markers
from cxr_ray.errors import WeightsError
from cxr_ray.measure import lungs, patch_swap, regions
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.regions import REGIONS
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.randomness import key
from cxr_ray.sweepfile import resolve

SIZE = 32
FIXED = ("border", "corners", "centre")


def keys(n: int, draws: int, name: str = "x") -> torch.Tensor:
    return torch.tensor([[key(0, f"{i}", f"region {name}", d) for d in range(draws)] for i in range(n)])


def fixed(name: str, size: int = SIZE) -> torch.Tensor:
    return regions.masks(size)[name]


@st.composite
def shapes(draw) -> torch.Tensor:
    """One to three ellipses or boxes, anywhere, as an opacity or a marker would be; neither empty nor everything."""
    size = draw(st.integers(12, 40))
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(draw(st.integers(1, 3))):
        cy, cx = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
        ry, rx = draw(st.integers(1, size // 2)), draw(st.integers(1, size // 2))
        if draw(st.booleans()):
            mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        else:
            mask |= ((y - cy).abs() < ry) & ((x - cx).abs() < rx)
    mask[0, 0] = False
    mask[5, 7] = True
    return mask


@settings(max_examples=40, deadline=None)
@given(mask=shapes(), seed=st.integers(0, 1000), name=st.sampled_from(["opacity", "marker", "outside_lungs"]))
def test_a_matched_control_has_the_same_area_elsewhere(mask, seed, name):
    k = torch.tensor([[key(seed, "i", name, d) for d in range(3)]])
    first = REGIONS[name].matched(mask[None], k)[0]
    beside = REGIONS[name].matched(torch.stack([mask.t(), mask]), torch.cat([k + 1, k]))[1]
    assert torch.equal(first, beside)
    assert (first.flatten(1).sum(1) == mask.sum()).all()
    assert not (first == mask).flatten(1).all(1).any()

    # where a control is turned and rolled, it is so as a whole: as many pixels have each number of neighbours
    def neighbours(m):
        return sorted(sum(m.roll(s, d).int() for s in (1, -1) for d in (0, 1))[m].tolist())

    assert all(neighbours(c) == neighbours(mask) for c in first)
    # no place that is free of the region, once there is one
    overlaps = [(c & mask).sum() for c in first]
    if any(o == 0 for o in overlaps):
        assert all(o == 0 for o in overlaps)


def test_a_small_region_moves_whole_and_leaves_itself_free():
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 1:6, 2:9] = True
    controls = REGIONS["marker"].matched(mask, keys(1, 60))[0]
    assert not (controls & mask).any()
    for control in controls:
        rows, columns = control.any(1).nonzero(), control.any(0).nonzero()
        assert {len(rows), len(columns)} == {5, 7}  # a box still, on its side or not
        assert {int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1} == {5, 7}
    assert len({tuple(c.flatten().tolist()) for c in controls}) > 50


def test_a_region_that_fills_two_thirds_is_met_least_where_it_must_be():
    mask = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    mask[0, 8:28, 4:14] = mask[0, 8:28, 18:28] = False
    controls = REGIONS["outside_lungs"].matched(mask, keys(1, 40))[0]
    overlap = (controls & mask[0]).flatten(1).float().sum(1) / mask.sum()
    by_chance = mask.float().mean()
    assert (controls.flatten(1).sum(1) == mask.sum()).all()
    assert overlap.max() < by_chance - 0.05
    assert len({tuple(c.flatten().tolist()) for c in controls}) > 20


@pytest.mark.parametrize("size", [28, 33, 64, 100, 112, 224])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_regions_have_controls_of_the_same_area_that_leave_them_free(size, name):
    mask = fixed(name, size)
    controls = REGIONS[name].matched(mask.expand(2, -1, -1), keys(2, 7))
    assert controls.shape == (2, 7, size, size)
    assert (controls.flatten(2).sum(2) == mask.sum()).all()
    free = not (controls & mask).any()
    assert free or (name == "centre" and size % 2)  # an odd side has no roll that leaves its middle half free
    assert torch.equal(controls, REGIONS[name].matched(mask.expand(2, -1, -1), keys(2, 7)))
    assert not torch.equal(controls[0], controls[1])


@pytest.mark.parametrize("size", [28, 33, 112, 224])
def test_a_borders_control_is_a_frame_at_another_radius(size):
    n = int(fixed("border", size).sum())
    at = torch.arange(size)
    ring = torch.minimum(torch.minimum(at, size - 1 - at)[:, None], torch.minimum(at, size - 1 - at))
    first = set()
    for frame in REGIONS["border"].matched(fixed("border", size)[None], keys(1, 9))[0]:
        of = ring[frame]
        low, high = int(of.min()), int(of.max())
        whole = (ring >= low) & (ring < high)
        assert (frame & whole).sum() == whole.sum()  # all of it but the innermost ring is whole
        assert 0 < n - int(whole.sum()) <= int((ring == high).sum())
        first.add(low)
    available = sum((size - 2 * r) ** 2 >= n for r in range(int(ring[fixed("border", size)].max()) + 1, size // 2))
    assert len(first) == min(9, available)


def test_corners_controls_are_four_squares_moved_alike():
    mask = fixed("corners", 40)
    for control in REGIONS["corners"].matched(mask[None], keys(1, 20))[0]:
        assert torch.equal(control, control.flip(0))
        assert torch.equal(control, control.flip(1))
        quarter = control[:20, :20].nonzero()
        assert (quarter.max(0).values - quarter.min(0).values == 5).all()
        assert len(quarter) == 36


# Worker rows against the closed form: on a linear network, removing pixels takes w (x - fill) of exactly those.


def linear_model(size: int = SIZE) -> Classifier:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 2))
    return Classifier(network, ModelSpec("resnet18", size)).eval().requires_grad_(False)


def config(**changes):
    base = {
        "data": {"source": "phantom", "size": SIZE},
        "explain": {"explainers": ["input_x_gradient"], "targets": ["pneumonia", "predicted"]},
        "perturb": {"grids": ["7"], "fills": ["black", "grey", "mean", "linear"], "levels": [0.5]},
        "controls": {},
        "regions": {"names": list(REGIONS), "draws": 3, "edits": list(EDITS)},
    }
    return resolve({**base, **changes})


def shard(n: int = 4, size: int = SIZE) -> Shard:
    rng = np.random.default_rng(5)
    masks = {name: np.zeros((n, size, size), bool) for name in ("lungs", "marker", "opacity")}
    masks["lungs"][1:, 8:25, 4:14] = True  # the first has no lungs
    masks["marker"][:, 2:6, 3:9] = True
    masks["opacity"][2:, 10:17, 5:12] = True  # and two have no opacity
    again = {name: rng.integers(0, 256, (n, 3, size, size), np.uint8) for name in ("opacity", "marker", "glyph")}
    pixels = rng.integers(0, 256, (n, 3, size, size), np.uint8)
    ids, paths, labels = [f"{i:016x}" for i in range(n)], [f"{i}.png" for i in range(n)], [i % 2 for i in range(n)]
    return Shard("m", "test", ids, paths, labels, pixels, masks=masks, counterfactuals=again)


def worked(sweep, model, given, batch_size=16):
    worker = Worker(sweep, {"m": ModelRef("m", "none", None, SIZE)}, batch_size=batch_size)
    worker.model = lambda trial_id: model
    return worker(given)


@pytest.fixture(scope="module")
def tables():
    return worked(config(), linear_model(), shard())


@pytest.fixture(scope="module")
def rows(tables):
    return tables["regions", ""].to_pandas()


def test_a_linear_networks_effect_is_known_exactly(rows):
    model, given = linear_model(), shard()
    weight = (model.network[1].weight[1] - model.network[1].weight[0]).view(3, SIZE, SIZE) / model.std
    pixels = torch.from_numpy(given.pixels).float() / 255
    full = model.log_odds(model.normalize(pixels))
    mean = pixels.mean((2, 3), keepdim=True)
    fills = {"black": torch.zeros_like(mean), "grey": model.mean.expand(4, -1, -1, -1), "mean": mean}
    known = {name: torch.from_numpy(m) for name, m in given.masks.items()}
    parts = regions.of_images(list(REGIONS), known, 4, SIZE, torch.device("cpu"))
    checked = 0
    for (name, fill), i in itertools.product(itertools.product(parts, fills), range(4)):
        mine = rows[
            (rows.image_id == given.image_ids[i]) & (rows.region == name) & (rows.fill == fill) & (rows.target == 1)
        ]
        mask = parts[name][i]
        if not mask.any():
            assert mine.empty
            continue
        k = torch.tensor([[key(0, given.image_ids[i], f"region {name}", d) for d in range(3)]])
        controls = REGIONS[name].matched(mask[None], k)[0]
        removed = {("none", 0): mask, **{("matched", d): c for d, c in enumerate(controls)}}
        assert set(zip(mine.control, mine.draw, strict=True)) == set(removed)
        for row in mine.itertuples():
            where = removed[row.control, row.draw]
            lost = (weight * (pixels[i] - fills[fill][i]) * where).sum()
            assert row.logit_target == pytest.approx(float(full[i] - lost), abs=1e-3)
            assert row.share_of_area == pytest.approx(float(mask.float().mean()))
            assert row.logit_full_image == pytest.approx(float(full[i]), abs=1e-4)
            checked += 1
    assert checked == 4 * 3 * (3 * 4 + 4) + 4 * 3 * (3 + 3 + 2)


def test_versions_and_edits_are_scored_as_they_are(rows):
    model, given = linear_model(), shard()
    for name, images in given.counterfactuals.items():
        mine = rows[(rows.region == name) & (rows.fill == "counterfactual") & (rows.target == 1)].set_index("image_id")
        scores = model.log_odds(model.normalize(torch.from_numpy(images).float() / 255))
        present = np.array([mask.any() for mask in given.masks[regions.mask_of_version(name)]])
        assert list(mine.index) == [i for i, p in zip(given.image_ids, present, strict=True) if p]
        assert np.allclose(mine.logit_target, scores[torch.from_numpy(present)].numpy(), atol=1e-4)
        assert set(mine.control) == {"none"}
    for name, edit in EDITS.items():
        mine = rows[(rows.region == name) & (rows.target == 1)]
        scores = model.log_odds(model.normalize(edit.edit(torch.from_numpy(given.pixels))))
        assert np.allclose(mine.logit_target, scores.numpy(), atol=1e-4)
        assert set(mine.fill) == {"edit"}
        assert len(mine) == 4


def test_patches_are_swapped_with_those_of_the_donor_image_at_the_images_own_exposure():
    model, given = linear_model(), shard()
    rng = np.random.default_rng(6)
    donors = {i: rng.integers(40, 90, (3, SIZE, SIZE), np.uint8) for i in given.image_ids[:2]}
    rows = worked(config(), model, replace(given, donor_images=donors))["regions", ""].to_pandas()
    swapped = rows[(rows.fill == "patch_swap") & (rows.target == 1)]
    assert set(swapped.image_id) == set(donors)  # the others have no donor image
    weight = (model.network[1].weight[1] - model.network[1].weight[0]).view(3, SIZE, SIZE) / model.std
    for i, image_id in enumerate(donors):
        own, other = (torch.from_numpy(x).float() / 255 for x in (given.pixels[i], donors[image_id]))
        alike = (other * own.mean() / other.mean()).clamp(max=1)
        for name in ("border", "corners"):
            mine = swapped[(swapped.image_id == image_id) & (swapped.region == name)]
            k = torch.tensor([[key(0, image_id, f"region {name}", d) for d in range(3)]])
            mask = regions.masks(SIZE)[name]
            removed = [mask, *REGIONS[name].matched(mask[None], k)[0]]
            expected = [float((weight * (own - alike) * where).sum()) for where in removed]
            effect = (mine.logit_full_image - mine.logit_target).tolist()
            assert effect == pytest.approx(expected, abs=1e-3)
    filled = rows[rows.fill != "patch_swap"].reset_index(drop=True)
    without = worked(config(), model, given)["regions", ""].to_pandas()
    assert np.allclose(filled.logit_target, without.logit_target, atol=1e-4)


def test_donor_images_are_normal_images_of_other_patients():
    rows = pd.DataFrame(
        {
            "image_id": [f"{i:016x}" for i in range(6)],
            "path": list("abcdef"),
            "label": [0, 0, 0, 1, 1, 1],
            "patient_id": ["p", "p", "q", "q", "r", "p"],
        }
    )
    allowed = {"a": "c", "b": "c", "c": "ab", "d": "ab", "e": "abc", "f": "c"}
    seen: dict[str, set[str]] = {path: set() for path in allowed}
    for seed in range(40):
        chosen = patch_swap.donor_images(rows, rows.iloc[:0], seed)
        assert chosen == patch_swap.donor_images(rows.sample(frac=1, random_state=seed), rows.iloc[:0], seed)
        for image_id, path in zip(rows["image_id"], rows["path"], strict=True):
            seen[path].add(chosen[image_id])
    assert seen == {path: set(others) for path, others in allowed.items()}
    assert patch_swap.donor_images(rows[rows.path.isin(["a", "b"])], rows.iloc[:0], 0) == {}
    val = pd.DataFrame({"image_id": ["0", "1"], "path": ["v", "w"], "label": [0, 1], "patient_id": ["s", "t"]})
    assert set(patch_swap.donor_images(rows, val, 0).values()) == {"v"}


def test_donor_images_are_those_that_the_hash_picks_among_other_patients():
    """An independent oracle: the images of other patients written out for each image."""
    rng = np.random.default_rng(0)
    n = 60
    frame = {"image_id": [f"{i:04x}" for i in rng.permutation(n)], "path": [f"{i}.png" for i in range(n)]}
    rows = pd.DataFrame({**frame, "label": rng.integers(0, 2, n), "patient_id": rng.integers(0, 12, n).astype(str)})
    normal = rows[rows["label"] == 0].sort_values("image_id")
    chosen = patch_swap.donor_images(rows, rows.iloc[:0], 7)
    assert len(chosen) == n
    for image_id, patient in zip(rows["image_id"], rows["patient_id"], strict=True):
        others = normal.loc[normal["patient_id"] != patient, "path"].tolist()
        assert chosen[image_id] == others[randomness.key(7, image_id, "exchange") % len(others)]


def test_a_black_frame_stays_black_when_it_is_exchanged():
    rng = np.random.default_rng(0)
    donors, images = (torch.from_numpy(rng.random((3, 3, SIZE, SIZE), np.float32)) for _ in range(2))
    frame = regions.masks(SIZE)["border"]
    donors[..., frame] = 0
    images *= 0.5  # else some would be clamped
    alike = patch_swap.match_exposure(0.6 * donors, images)
    assert torch.equal(alike[..., frame], torch.zeros_like(alike[..., frame]))
    assert torch.allclose(alike.mean((1, 2, 3)), images.mean((1, 2, 3)))
    assert patch_swap.match_exposure(0.1 * donors, 2 * images).max() == 1


def test_targets_mirror_each_other_and_probabilities_follow(rows):
    wide = rows.pivot_table(
        index=["image_id", "region", "fill", "control", "draw"],
        columns="target",
        values=["logit_target", "prob_target", "logit_full_image"],
    ).dropna()
    assert len(wide)
    assert np.allclose(wide["logit_target"][0], -wide["logit_target"][1])
    assert np.allclose(wide["logit_full_image"][0], -wide["logit_full_image"][1])
    assert np.allclose(wide["prob_target"][0] + wide["prob_target"][1], 1)


def test_nothing_depends_on_the_batch_size(tables):
    other = worked(config(), linear_model(), shard(), 7)
    for name, table in tables.items():
        one, two = (t.to_pandas().select_dtypes("float").fillna(0) for t in (table, other[name]))
        assert np.allclose(one, two, atol=1e-4)


def test_lung_share_is_the_mass_in_the_lungs_and_null_without_a_mask(tables):
    given = shard()
    for row in tables["saliency", "input_x_gradient"].to_pylist():
        i = given.image_ids.index(row["image_id"])
        mass = np.clip(np.array(row["map"]).reshape(SIZE, SIZE), 0, None)
        if i == 0:
            assert row["lung_share"] is None
        else:
            assert row["lung_share"] == pytest.approx(mass[given.masks["lungs"][i]].sum() / mass.sum(), abs=1e-5)


def test_without_masks_there_are_no_rows_of_what_needs_them():
    given = shard()
    bare = Shard(given.trial_id, "test", given.image_ids, given.paths, given.labels, given.pixels)
    out = worked(config(), linear_model(), bare)
    found = out["regions", ""].to_pandas()
    assert set(found.region) == {*FIXED, *EDITS}
    assert set(out["saliency", "input_x_gradient"]["lung_share"].to_pylist()) == {None}


def test_null_turns_regions_off():
    assert ("regions", "") not in worked(config(regions=None), linear_model(), shard())


# Edits.


def test_a_pasted_marker_is_a_bright_p_in_the_top_left_corner_and_nothing_else():
    pixels = torch.full((2, 3, 112, 112), 90, dtype=torch.uint8)
    edited = EDITS["paste_marker"].edit(pixels)
    changed = (edited - 90 / 255).abs() > 1e-6
    ys, xs = changed[0, 0].nonzero().unbind(1)
    assert ys.max() < 0.16 * 112
    assert xs.max() < 0.16 * 112
    assert changed[0, 0].float().mean() == pytest.approx(EDITS["paste_marker"].share(112), abs=1e-6)
    assert edited.max() == pytest.approx(0.9)
    assert torch.equal(pixels, torch.full_like(pixels, 90))
    ink, (rows_, columns) = markers.pasted_marker(112)
    assert torch.allclose(edited[0, 0, rows_, columns] > 0.5, torch.from_numpy(ink > 0.5))


def test_contrast_moves_values_about_the_mean():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(60, 200, (2, 3, 112, 112), np.uint8))
    images = pixels.float() / 255
    for name, factor in (("lower_contrast", 0.7), ("raise_contrast", 1.4)):
        edited = EDITS[name].edit(pixels)
        inside = (edited > 0) & (edited < 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        assert torch.allclose(edited[inside], (mean + factor * (images - mean))[inside], atol=1e-6)
    flat = EDITS["equalize"].edit(pixels)
    assert flat.amin() == 0
    assert flat.amax() == 1
    quarters = torch.histc(flat, 4, 0, 1) / flat.numel()
    assert (quarters - 0.25).abs().max() < 0.02


# Lungs by a segmenter.


def stand_in(monkeypatch, network):
    module = types.ModuleType("torchxrayvision.baseline_models.chestx_det")
    vars(module)["PSPNet"] = network
    for name in ("torchxrayvision", "torchxrayvision.baseline_models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


class BrightIsLung(nn.Module):
    """Left Lung where the left half is bright, Right Lung where the right half is; what is read is a CT-like range."""

    targets = ("Heart", "Left Lung", "Right Lung")

    def forward(self, x):
        assert x.shape[1:] == (1, 512, 512)
        assert x.min() >= -1024
        assert x.max() <= 1024
        left = torch.arange(512) < 256
        return torch.cat([torch.full_like(x, 9.0), torch.where(left, x, -1.0), torch.where(left, -1.0, x)], 1)


def test_the_segmenters_lungs_are_the_union_of_left_and_right(monkeypatch):
    stand_in(monkeypatch, BrightIsLung)
    pixels = np.zeros((4, 3, SIZE, SIZE), np.uint8)
    pixels[1:, :, 8:24, 4:12] = pixels[1:, :, 8:24, 20:28] = 255
    given = shard()
    given = Shard("m", "test", given.image_ids, given.paths, given.labels, pixels)
    sweep = config(
        data={"source": "folder", "size": SIZE},
        regions={"names": ["outside_lungs"], "draws": 1, "lungs": "torchxrayvision"},
    )
    found = worked(sweep, linear_model(), given)["regions", ""].to_pandas()
    assert set(found.image_id) == set(given.image_ids[1:])  # no lungs, no rows
    assert np.allclose(found.share_of_area, 1 - 2 * 16 * 8 / SIZE**2)


def test_a_segmenter_that_cannot_be_had_says_what_to_do(monkeypatch):
    class NoNetwork(nn.Module):
        def __init__(self):
            raise OSError("<urlopen error [Errno -2] Name or service not known>\nand more")

    stand_in(monkeypatch, NoNetwork)
    with pytest.raises(
        WeightsError, match=r"PSPNet \(<urlopen.*known>\); expected them; try again with network access, or giv"
    ):
        lungs.segmenter()
    monkeypatch.setitem(sys.modules, "torchxrayvision.baseline_models.chestx_det", None)
    with pytest.raises(WeightsError, match=r"pip install 'cxr-ray\[lungs\]'"):
        lungs.segmenter()
