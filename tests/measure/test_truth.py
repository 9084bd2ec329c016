"""The instrument against known truth: networks whose cause is known by construction, and phantoms drawn again."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from cxr_ray.analysis import resampling as stats
from cxr_ray.config import Train
from cxr_ray.data import images, markers, phantoms
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.masks import load_parts
from cxr_ray.data.phantom_source import PhantomSource
from cxr_ray.measure import patch_swap
from cxr_ray.measure.attribution.inputs import Explainer
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.worker import ModelRef, Shard, Worker
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.training import Split, fit
from cxr_ray.sweepfile import resolve

SIZE = 64
VERSIONS = ("opacity", "marker", "glyph")
FILLS = ["black", "grey", "mean", "blur", "noise", "linear"]


@lru_cache(maxsize=2)
def phantom_block(n: int, correlation: float, size: int = SIZE, train: int = 0) -> tuple[PhantomSource, Shard]:
    """n test phantoms, half of them PNEUMONIA, as the worker gets them."""
    source = PhantomSource(train, n, 0.5, correlation, size, seed=1)
    rows = load_manifest(source, training=False).rows("test")
    pixels = load_pixels(source, rows, size).images_NCHW
    parts = load_parts(source, (), rows.to_dict("records"), size, changes=VERSIONS)
    by_path = dict(zip(rows["path"], pixels, strict=True))
    donors = {i: by_path[path] for i, path in patch_swap.donor_images(rows, rows.iloc[:0], seed=0).items()}
    shard = Shard(
        "m",
        "test",
        list(rows["image_id"]),
        list(rows["path"]),
        list(rows["label"]),
        pixels,
        masks=parts.masks,
        counterfactuals=parts.counterfactuals,
        donor_images=donors,
    )
    return source, shard


def config(**changes):
    base = {
        "data": {"source": "phantom", "size": SIZE},
        "explain": {"explainers": ["input_x_gradient"], "targets": ["predicted"]},
        "perturb": {"grids": ["7"], "fills": ["mean", "linear"], "levels": [0.5], "orders": ["morf"]},
        "controls": {},
        "regions": {"names": ["corners", "centre", "marker", "opacity"], "draws": 5},
    }
    return resolve({**base, **changes})


def classifier(network: nn.Module, size: int = SIZE) -> Classifier:
    """One output; model space is pixel space."""
    spec = ModelSpec("resnet18", size, outputs=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Classifier(network, spec).eval().requires_grad_(False)


def worked(sweep, model: Classifier, shard: Shard):
    worker = Worker(sweep, {"m": ModelRef("m", "none", None, model.spec.size)}, batch_size=64)
    worker.model = lambda trial_id: model
    return worker(shard)


def effects(tables) -> pd.DataFrame:
    """Rows of regions with effect: the log-odds of the target that the change takes away."""
    rows = tables["regions", ""].to_pandas()
    return rows.assign(effect=rows.logit_full_image - rows.logit_target)


class ReadsMarker(nn.Module):
    """Log-odds from the corners alone: the best match with the glyph P there, minus the best with E."""

    def __init__(self, size: int = SIZE):
        super().__init__()
        self.window = round(0.2 * size)
        boxes = {str(box): box for h in np.linspace(0.095, 0.135, 9) for box in [markers.plate_box(0, h, 0, 0, size)]}
        self.filters = [
            [torch.from_numpy(ink - ink.mean())[None, None] / (ink.var() * ink.size) for ink in inks]
            for inks in ([markers.ink(markers.GLYPHS[g], box) for box in boxes.values()] for g in (0, 1))
        ]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        w, grey = self.window, images[:, :1]
        corners = torch.cat(
            [
                grey[..., rows, columns]
                for rows in (slice(w), slice(-w, None))
                for columns in (slice(w), slice(-w, None))
            ]
        )
        best = []
        for filters in self.filters:
            at = torch.stack([F.conv2d(corners, f).flatten(1).amax(1) for f in filters]).amax(0)
            best.append(at.view(4, -1).amax(0))
        return 20 * (best[1] - best[0])[:, None]


class ReadsOpacity(nn.Module):
    """Log-odds from the opacity alone: the mean brightening, over the opacity's place, of the image that this one is.

    It knows every image without its opacity, and where an opacity would lie; it recognises an image by how many of 256
    pixels are as they were, which survives the removal of most of them.
    """

    def __init__(self, source: PhantomSource, paths, size: int = SIZE):
        super().__init__()
        clean, where = [], []
        for path in paths:
            seed, _, *_ = source._arguments(path)
            ill = phantoms.render(seed, 1, size, marker_correlation=source.marker_correlation)
            where.append(torch.from_numpy(ill.opacity))
            clean.append(torch.from_numpy(images.decode(source.version(path, "opacity"), size)[0]).float() / 255)
        self.clean, self.where = torch.stack(clean), torch.stack(where)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images[:, 0]
        few = (slice(None), slice(None, None, SIZE // 16), slice(None, None, SIZE // 16))
        same = (grey[few][:, None] - self.clean[few]).abs() < 0.002
        nearest = same.flatten(2).sum(2).argmax(1)
        where = self.where[nearest]
        brighter = ((grey - self.clean[nearest]) * where).flatten(1).sum(1) / where.flatten(1).sum(1)
        return (40 * (brighter - 0.04))[:, None]


def bounds(by_image: pd.Series) -> tuple[float, float]:
    """The 95% interval of the mean; each phantom is a patient."""
    lower, upper = stats.patient_bootstrap(by_image.to_numpy()[:, None], list(by_image.index), seed=0)
    return float(lower[0]), float(upper[0])


def shows_p(source: PhantomSource, path: str) -> bool:
    seed, label, size, correlation = source._arguments(path)
    drawn, own = (phantoms.render(seed, label, size, marker_correlation=c).image for c in (correlation, 1.0))
    return (label == 1) == np.array_equal(drawn, own)


@pytest.fixture(scope="module")
def shard():
    return phantom_block(32, 0.9)[1]


@pytest.fixture(scope="module")
def marker_effects(shard):
    return effects(worked(config(), classifier(ReadsMarker()), shard))


@pytest.fixture(scope="module")
def opacity_network():
    source, shard = phantom_block(32, 0.9)
    return classifier(ReadsOpacity(source, shard.paths))


def test_the_marker_network_tells_the_glyphs_apart_and_sees_nothing_but_corners():
    source, shard = phantom_block(32, 0.9)
    images = (torch.from_numpy(shard.pixels).float() / 255).requires_grad_()
    network = ReadsMarker()
    scores = network(images)[:, 0]
    scores.sum().backward()
    assert [z > 0 for z in scores.tolist()] == [shows_p(source, path) for path in shard.paths]
    seen = images.grad.abs().amax((0, 1)) > 0
    w = network.window
    assert seen.any()
    assert not seen[w:-w].any()
    assert not seen[:, w:-w].any()


def test_the_marker_network_comes_out_as_marker_driven(marker_effects, shard):
    own = marker_effects[marker_effects.control == "none"].set_index(["region", "fill", "image_id"]).effect.sort_index()
    others = marker_effects[marker_effects.control == "matched"].groupby(["region", "fill", "image_id"]).effect.mean()
    truth = own["marker", "counterfactual"]
    assert (truth > 1).all()
    assert (own["glyph", "counterfactual"] > truth).all()  # the other glyph speaks for the other class
    for fill in ("mean", "linear"):
        assert (own["marker", fill] - others["marker", fill] > 1).all()
        assert spearmanr(own["marker", fill], truth[own["marker", fill].index]).statistic > 0.8
        assert own["centre", fill].abs().max() == 0
        assert own["opacity", fill].abs().max() < 1e-5
        assert bounds(own["corners", fill] - others["corners", fill])[0] > 0.5
    assert own["centre", "patch_swap"].abs().max() == 0
    for region in ("corners", "marker"):
        assert bounds(own[region, "patch_swap"] - others[region, "patch_swap"])[0] > 0.5  # what H1 asks of the corners
    assert own["opacity", "counterfactual"].abs().max() < 1e-5


def test_the_opacity_network_does_not(opacity_network, shard):
    rows = effects(worked(config(), opacity_network, shard))
    own = rows[rows.control == "none"].set_index(["region", "fill", "image_id"]).effect.sort_index()
    others = rows[rows.control == "matched"].groupby(["region", "fill", "image_id"]).effect.mean()
    ill = [i for i, label in zip(shard.image_ids, shard.labels, strict=True) if label == 1]
    assert sorted(own["opacity", "counterfactual"].index) == sorted(ill)
    assert (own["opacity", "counterfactual"] > 1).all()
    assert own["glyph", "counterfactual"].abs().max() == 0
    assert own["marker", "counterfactual"].abs().max() == 0
    for fill in ("mean", "linear"):
        assert own["marker", fill].abs().max() < 1e-5
    assert own["marker", "patch_swap"].abs().max() < 1e-5
    assert bounds(own["corners", "patch_swap"] - others["corners", "patch_swap"])[1] < 0.5  # H1 is not above its margin
    assert (own["opacity", "mean"] - others["opacity", "mean"]).mean() > 1
    assert (own["opacity", "patch_swap"] - others["opacity", "patch_swap"]).mean() > 1


def test_the_true_opacity_beats_every_control_and_random_maps_beat_none(opacity_network, shard, monkeypatch):
    masks = dict(zip(shard.image_ids, torch.from_numpy(shard.masks["opacity"]).float(), strict=True))

    truth = Explainer(lambda model, inputs: torch.stack([masks[i] for i in inputs.ids]), lambda size: (0, 0), "a toy")
    monkeypatch.setitem(EXPLAINERS, "truth", truth)
    levels = [0.01, 0.02, 0.05]
    sweep = config(
        explain={"explainers": ["truth", "random"], "targets": ["pneumonia"]},
        perturb={"grids": ["pixel"], "fills": ["black"], "levels": levels, "orders": ["morf"]},
        controls=dict.fromkeys(("pixel_random", "cell_random", "smooth_random", "shifted"), 5),
        regions=None,
    )
    tables = worked(sweep, opacity_network, shard)

    def gaps(explainer: str, control: str, level: float) -> pd.Series:
        rows = tables["faithfulness", explainer].to_pandas().set_index("image_id")
        rows = rows[(rows.metric == "drop") & (rows.level == level) & (rows.scale == "logodds")]
        return rows[rows.control == control].gap

    for level in levels:
        for control in sweep.controls:
            gap = gaps("truth", control, level)
            gap = gap[[float(masks[i].mean()) >= level for i in gap.index]]
            assert len(gap) >= 8
            assert (gap > 0).all()
        assert bounds(gaps("random", "pixel_random", level))[0] <= 0


@pytest.mark.slow
def test_region_effects_agree_with_the_truth_on_a_trained_network():
    """In sign and in rank over (image, region), where the fill leaves a plausible image; noise does not."""
    source, shard = phantom_block(48, 0.9, train=240)
    manifest = load_manifest(source, val_share=0.15)
    train, val = (
        Split(load_pixels(source, rows, SIZE).images_NCHW, rows["label"].to_numpy("int64"))
        for rows in (manifest.rows("train"), manifest.rows("val"))
    )
    torch.manual_seed(0)
    model = networks.build("resnet18", ModelSpec("resnet18", SIZE))
    fit(model, train, val, Train(epochs=5, batch_size=16, lr=2e-3, augment="none"), lambda epoch: None)
    sweep = config(
        explain={"explainers": ["input_x_gradient"], "targets": ["pneumonia"]},
        perturb={"grids": ["7"], "fills": FILLS, "levels": [0.5], "orders": ["morf"]},
        regions={"names": ["marker", "opacity"], "draws": 1},
    )
    rows = effects(worked(sweep, model.requires_grad_(False), shard)).query("control == 'none' and region != 'glyph'")
    wide = rows.pivot_table(index=["image_id", "region"], columns="fill", values="effect")
    rank = {fill: spearmanr(wide[fill], wide["counterfactual"]).statistic for fill in wide.columns}
    sign = {fill: float((np.sign(wide[fill]) == np.sign(wide["counterfactual"])).mean()) for fill in wide.columns}
    print("Spearman", rank, "equal sign", sign)
    assert len(wide) == 48 + 24
    for fill in ("patch_swap", "blur", "linear"):
        assert rank[fill] >= 0.8
        assert sign[fill] >= 0.8
