"""A shard's images on the device: grey ones are masked in one channel, with the scores that three would give."""

import dataclasses

import numpy as np
import pytest
import torch

from cxr_ray.measure.batch import Batch, Network
from cxr_ray.measure.fills import FILLS
from cxr_ray.models.backends import Form, Layout
from tests.builders.networks import small
from tests.builders.shards import frames, shard, sweep, worker

NAMES = [name for name in FILLS if name != "grey"]


def grey_shard():
    """The builders' shard with the first channel of each image and donor image in all three."""
    given = shard(3)
    donors = {name: image[:1].repeat(3, 0) for name, image in given.donor_images.items()}
    return dataclasses.replace(given, pixels=given.pixels[:, :1].repeat(3, 1), donor_images=donors)


def config(fills: list[str]):
    return sweep(
        explain={"explainers": ["occlusion"]},
        perturb={"grids": ["pixel"], "fills": fills, "levels": [0.5]},
        controls={"shifted": 1},
        regions={"names": ["border", "corners"], "draws": 1},
    )


def batch(given, fills: list[str], layout: Layout | None = None) -> Batch:
    model = small()
    forward = Form(lambda x: model.log_odds(x.float()), layout) if layout else model.log_odds
    return Batch(config(fills), given, Network(model, forward, 16), torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_a_fill_of_one_channel_is_each_of_the_three(name, monkeypatch):
    one, three = batch(grey_shard(), [name]), batch(grey_shard(), [name])
    monkeypatch.setattr(three, "grey", False)
    assert one.filled(name).shape[1] == 1
    assert three.filled(name).shape[1] == 3
    assert torch.allclose(one.filled(name).expand(-1, 3, -1, -1), three.filled(name), atol=1e-6)


def test_all_tables_of_grey_images_are_those_of_three_channels(monkeypatch):
    """Fills, regions, patch swaps and explainers' blurred images, in float32."""
    one = frames(worker(config(NAMES), small())(grey_shard()))
    monkeypatch.setattr(Batch, "one_channel", False)
    monkeypatch.setattr(Batch, "grey", False)
    three = frames(worker(config(NAMES), small())(grey_shard()))
    assert {"curves", "faithfulness", "regions", "saliency"} <= set(one) == set(three)
    assert set(one["curves"].fill) == set(NAMES)
    assert "patch_swap" in set(one["regions"].fill)
    for name, expected in three.items():
        for column in expected:
            made = one[name][column]
            if expected[column].dtype.kind == "f" and column not in ("win_rate", "u", "p_value"):
                assert np.allclose(made, expected[column], atol=1e-5, equal_nan=True), (name, column)
            elif expected[column].dtype.kind != "f" and column != "map":
                assert made.equals(expected[column]), (name, column)


@pytest.mark.parametrize(
    "change", ["an image", "a donor image", "the fill grey", "an uncompiled form in channels_last"]
)
def test_what_is_not_exact_or_slower_takes_three_channels(change):
    given, fills, layout = grey_shard(), ["mean"], None
    assert batch(given, fills).one_channel
    if change == "an image":
        given.pixels[2, 2, 0, 0] ^= 1
    elif change == "a donor image":
        given.donor_images[given.image_ids[0]][1, 5, 5] ^= 1
    elif change == "the fill grey":
        fills = ["mean", "grey"]
    else:
        layout = Layout(torch.float16, channels_last=True)
        assert batch(given, fills, dataclasses.replace(layout, fused=True)).one_channel
    made = batch(given, fills, layout)
    assert not made.one_channel
    assert made.canvas.normalization is None
