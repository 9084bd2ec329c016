"""Phantoms: nothing but the opacity (and, as often as asked, the marker's glyph) tells one label from the other."""

import re
import subprocess
import sys
from math import sqrt

import numpy as np
import pytest

from cxr_ray.data.phantoms import render

SIZE = 64  # the smallest, for speed; what depends on size is tested at several


def changed(first, second):
    return first.image != second.image


def test_a_seed_means_the_same_bytes():
    again = render(3, 1, 96)
    for name in ("image", "lungs", "opacity", "marker"):
        assert getattr(render(3, 1, 96), name).tobytes() == getattr(again, name).tobytes()
    assert changed(render(4, 1, 96), again).mean() > 0.5


@pytest.mark.parametrize("size", [64, 100, 112, 224, 512])
def test_sizes(size):
    phantom = render(1, 1, size)
    assert phantom.image.shape == (size, size)
    assert phantom.image.dtype == np.uint8
    for mask in (phantom.lungs, phantom.opacity, phantom.marker):
        assert mask.shape == (size, size)
        assert mask.dtype == np.bool_
        assert mask.any()


@pytest.mark.parametrize("seed", range(5))
def test_the_anatomy_is_the_same_at_each_size(seed):
    small, large = render(seed, 1, 64), render(seed, 1, 256)
    for name in ("lungs", "opacity"):
        shrunk = getattr(large, name).reshape(64, 4, 64, 4).mean((1, 3)) > 0.5
        mask = getattr(small, name)
        assert (mask & shrunk).sum() > 0.9 * (mask | shrunk).sum(), name
    coarse = [p.image.reshape(16, p.image.shape[0] // 16, 16, -1).mean((1, 3)) for p in (small, large)]
    assert np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("seed", range(20))
def test_the_label_shows_in_the_opacity_alone(seed):
    normal, pneumonia = render(seed, 0, SIZE, marker="none"), render(seed, 1, SIZE, marker="none")
    assert not normal.opacity.any()
    assert pneumonia.opacity.any()
    assert not changed(normal, pneumonia)[~pneumonia.opacity].any()
    assert np.array_equal(normal.lungs, pneumonia.lungs)
    without = render(seed, 1, SIZE, opacity=False, marker="none")
    assert np.array_equal(normal.image, without.image)
    assert not without.opacity.any()


def test_the_opacity_brightens_lungs_visibly():
    for seed in range(40):
        phantom, without = render(seed, 1, SIZE), render(seed, 1, SIZE, opacity=False)
        brighter = phantom.image.astype(int) - without.image
        assert (phantom.opacity & phantom.lungs).sum() > 0.8 * phantom.opacity.sum(), seed
        assert 0.005 < phantom.opacity.mean() < 0.35, seed
        assert brighter.min() >= -25, seed  # noise grows with attenuation, in both directions
        assert brighter[phantom.opacity & ~phantom.marker].mean() > 5, seed


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("label", [0, 1])
def test_the_marker_changes_its_box_alone(seed, label):
    own, other, none = (render(seed, label, SIZE, marker=marker) for marker in ("own", "other", "none"))
    assert own.marker.any()
    assert np.array_equal(own.marker, other.marker)
    assert not none.marker.any()
    for first, second in ((own, other), (own, none), (other, none)):
        assert changed(first, second).any()
        assert not changed(first, second)[~own.marker].any()


def test_the_marker_stays_clear_of_the_lungs():
    phantoms = [render(seed, 0, SIZE) for seed in range(40)]
    assert np.mean([(p.marker & p.lungs).sum() / p.marker.sum() for p in phantoms]) < 0.02


@pytest.mark.parametrize("size", [64, 112])
def test_the_two_glyphs_can_be_told_apart(size):
    for seed in range(10):
        first, second = (render(seed, label, size, marker_correlation=1.0) for label in (0, 1))
        far = np.abs(first.image.astype(int) - second.image)[first.marker & ~second.opacity] > 60
        assert far.sum() >= 6, seed


def test_the_glyph_is_the_class_at_correlation_1_and_the_other_at_0():
    for seed in range(10):
        always, never = render(seed, 0, SIZE, marker_correlation=1.0), render(seed, 0, SIZE, marker_correlation=0.0)
        assert changed(always, never).any()
        assert np.array_equal(never.image, render(seed, 0, SIZE, marker_correlation=1.0, marker="other").image)
        # The glyph of class 1 on a normal image is the one that an image of class 1 shows.
        assert np.array_equal(never.image, render(seed, 1, SIZE, marker_correlation=1.0, opacity=False).image)


def test_the_glyph_agrees_as_often_as_asked():
    n = 160
    agree = {0.5: 0, 0.8: 0}
    for seed in range(n):
        true = render(seed, seed % 2, SIZE, marker_correlation=1.0).image
        for correlation in agree:
            agree[correlation] += not (render(seed, seed % 2, SIZE, marker_correlation=correlation).image != true).any()
    for correlation, count in agree.items():
        assert abs(count / n - correlation) < 3.3 * sqrt(correlation * (1 - correlation) / n)


def test_side_place_and_extent_vary():
    masks = [render(seed, 1, SIZE).opacity for seed in range(60)]
    left = np.array([mask[:, : SIZE // 2].sum() / mask.sum() for mask in masks])
    top = np.array([mask[: SIZE // 2].sum() / mask.sum() for mask in masks])
    assert (left > 0.99).mean() > 0.2
    assert (left < 0.01).mean() > 0.2
    assert ((left > 0.1) & (left < 0.9)).mean() > 0.15
    assert (top > 0.9).mean() > 0.1
    assert (top < 0.1).mean() > 0.1
    share = [mask.mean() for mask in masks]
    assert max(share) > 4 * min(share)


def test_brightness_says_little_about_the_label():
    means = [np.array([render(seed, label, SIZE).image.mean() for seed in range(80)]) for label in (0, 1)]
    auroc = (means[1][:, None] > means[0][None, :]).mean()
    assert auroc < 0.7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"seed": -1}, ["-1", "0 or more"]),
        ({"label": 2}, ["2", "0 (NORMAL) or 1 (PNEUMONIA)"]),
        ({"size": 63}, ["63", "64 pixels or more"]),
        ({"marker_correlation": 1.5}, ["1.5", "0 to 1"]),
        ({"marker_correlation": float("nan")}, ["nan", "0 to 1"]),
        ({"marker": "both"}, ["'both'", "'own', 'other' or 'none'"]),
    ],
)
def test_errors_say_what_came_and_what_is_allowed(arguments, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        render(**({"seed": 0, "label": 0, "size": SIZE} | arguments))


def test_importing_is_light():
    code = "import sys, cxr_ray.data.phantoms; print({'torch', 'ray', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
