"""Explainers run in mixed precision where their maps rank as those of float32 do, and nowhere else."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cxr_ray.measure.donors import Maps
from cxr_ray.measure.mixed_precision import MixedPrecision, agreement
from cxr_ray.models.backends import Form, Layout
from tests.builders.networks import small
from tests.builders.shards import shard, sweep, worker


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_agreement_is_the_least_spearman_correlation_of_a_pair():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 5, (4, 6, 6)).astype(np.float32)  # many ties
    others = maps + rng.normal(0, 1, maps.shape).astype(np.float32)
    expected = min(spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True))
    assert agreement(maps, others) == pytest.approx(expected, abs=1e-12)
    assert agreement(maps, np.exp(maps)) == pytest.approx(1, abs=1e-12)


def test_constant_maps_agree_with_each_other_alone_and_what_is_not_finite_with_nothing():
    flat, ramp = np.zeros((1, 3, 3)), np.arange(9.0).reshape(1, 3, 3)
    assert agreement(flat, flat + 7) == 1
    assert agreement(flat, ramp) == agreement(ramp, flat) == 0
    for bad in (np.nan, np.inf):
        assert agreement(ramp, np.where(ramp == 4, bad, ramp)) == 0


def maker(noise: float):
    """Makes a ramp; under autocast with noise on it, marked by its last value. Grows ``calls`` by whether it was."""
    calls: list[bool] = []

    def make() -> Maps:
        calls.append(torch.is_autocast_enabled("cpu"))
        ramp = torch.arange(100.0).view(1, 10, 10)
        if calls[-1]:
            ramp = ramp + noise * torch.randn(1, 10, 10, generator=torch.Generator().manual_seed(0))
            ramp[0, 9, 9] = 1000
        return Maps(ramp, {})

    return make, calls


@pytest.mark.parametrize(("noise", "agrees"), [(0.01, True), (20.0, False)])
def test_maps_that_agree_are_made_in_mixed_precision_from_the_first_on(noise, agrees):
    (make, calls), mixed, model = maker(noise), MixedPrecision(28, "cpu"), small(size=28)
    for expected in ([False, True], [agrees], [agrees]):
        assert bool(mixed.maps("saliency", model, make).own[0, 9, 9] == 1000) == agrees
        assert calls == expected
        calls.clear()
    assert mixed.note.endswith("): saliency" if agrees else "): none; in float32: saliency")


def test_an_explainer_that_cannot_mix_types_stays_in_float32():
    def make() -> Maps:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("expected scalar type Float but found Half")
        return Maps(torch.ones(1, 2, 2), {})

    mixed = MixedPrecision(28, "cpu")
    assert mixed.maps("deeplift", small(size=28), make).own.sum() == 4
    assert mixed.agreements == {"deeplift": 0.0}


def test_what_was_measured_is_kept_for_these_weights_and_this_explainer():
    make, calls = maker(0.01)
    model, other = small(size=28), small(size=28)
    other.network.fc.bias += 1
    MixedPrecision(28, "cpu").maps("saliency", model, make)
    for name, weights, asked in (
        ("saliency", model, [True]),
        ("occlusion", model, [False, True]),
        ("saliency", other, [False, True]),
    ):
        calls.clear()
        MixedPrecision(28, "cpu").maps(name, weights, make)
        assert calls == asked


def test_only_models_that_are_scored_in_half_are_explained_in_mixed_precision():
    config = sweep(
        explain={"explainers": ["gradcam", "saliency", "occlusion", "intensity"]},
        perturb={"grids": ["7"], "fills": ["mean"], "levels": [0.5]},
        controls={"cell_random": 1},
        regions=None,
    )
    full, half = worker(config, small()), worker(config, small())
    model = half.model("m")
    half.forward = lambda trial_id: Form(lambda x: model.log_odds(x.float()), Layout(torch.float16, channels_last=True))
    one, two = full(shard(3)), half(shard(3))
    assert full.notes == []
    (note,) = half.notes
    assert note.startswith("explainers in mixed precision (rank correlation with float32 at least 0.999): ")
    decided = half.network("m").mixed.agreements
    assert set(decided) == {"gradcam", "saliency", "occlusion"}
    assert max(decided.values()) >= 0.999
    for name in decided:
        a, b = (np.array(t["saliency", name]["map"].to_pylist()) for t in (one, two))
        assert min(spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)) > 0.995
