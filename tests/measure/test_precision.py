"""One decision a run: in which precision a model is scored, and which explainers run in mixed precision."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cxr_ray.measure import measurement, precision
from cxr_ray.measure.donors import Maps
from cxr_ray.measure.precision import Precision, agreement
from cxr_ray.models import backend_choice, backends
from cxr_ray.storage import PRECISION, Store, pack
from tests.builders.networks import small
from tests.builders.shards import SIZE, shard, sweep, worker

FEW: dict[str, Any] = {
    "explain": {"explainers": ["gradcam", "saliency", "occlusion", "intensity"]},
    "perturb": {"grids": ["7"], "fills": ["mean"], "levels": [0.5], "precision": "half"},
    "controls": {"cell_random": 1},
    "regions": None,
}


@pytest.fixture(autouse=True)
def half_on_cpus(tmp_path, monkeypatch):
    """Half precision as a GPU has it, slow and in float16's own rounding."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backend_choice, "TRIAL_SECONDS", 0.0)
    half = dataclasses.replace(backends.BACKENDS["half"], device=None)
    monkeypatch.setitem(backends.BACKENDS, "half", half)


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


def planted(monkeypatch, disturbed: dict[str, float]) -> None:
    """Maps are ramps; in mixed precision an image's first two pixels change places so that it agrees so much."""

    def made(batch, explainer, model):
        maps = torch.arange(100.0).repeat(len(batch.pairs), 1)
        if torch.is_autocast_enabled("cpu"):
            for place, image_id in enumerate(batch.pairs.ids):
                apart = (1 - disturbed.get(image_id, 1.0)) * 100 * (100**2 - 1) / 12
                step = round(apart**0.5)  # two places so far apart lose step**2 of the sum of squares
                maps[place, [0, step]] = maps[place, [step, 0]].clone()
        return Maps(maps.view(-1, 10, 10), {})

    monkeypatch.setattr(measurement, "_made", made)


def test_maps_that_agree_on_some_images_and_not_on_others_are_decided_alike_by_workers_of_other_images(
    tmp_path, monkeypatch
):
    """The first worker gets images that agree at 0.9995 alone, the second those that agree at 0.9985."""
    given, config = shard(6), sweep(**FEW)
    agree, not_agree = given.image_ids[:3], given.image_ids[3:]
    planted(monkeypatch, {**dict.fromkeys(agree, 0.9995), **dict.fromkeys(not_agree, 0.9985)})
    model, store = small(size=SIZE), Store(str(tmp_path / "run"), {})
    firsts = [given.only(np.isin(given.image_ids, ids)) for ids in (agree, not_agree)]
    on_their_own = [worker(config, model).decide(first).mixed for first in firsts]
    assert on_their_own == [{"gradcam", "saliency", "occlusion"}, set()]

    reference = dataclasses.replace(given, split="reference", name=precision.shard_name("m"))
    store.write_shard(reference.name, pack(worker(config, model)(reference)), PRECISION)
    for again in range(2):  # and after --resume
        workers = [worker(config, model) for _ in firsts]
        for made, first in zip(workers, firsts, strict=True):
            made.precision_of = lambda trial_id: precision.read(store, trial_id)
            made(first)
            assert made.network("m").mixed == frozenset()
            assert made.backend.precision == "half"
            assert again == 0 or made.backend.kept


def test_what_is_decided_comes_back_whole(tmp_path):
    store = Store(str(tmp_path), {})
    assert precision.read(store, "m") is None
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    decided = Precision("half", 0.003, {"gradcam": 0.9995, "occlusion": 0.9985}, pixels)
    store.write_shard(precision.shard_name("m"), pack(decided.to_tables()), PRECISION)
    read = precision.read(store, "m")
    assert read is not None
    assert np.array_equal(read.images, pixels)
    assert read.to_plain() == decided.to_plain()
    assert read.mixed == {"gradcam"}
    assert str(read) == (
        "scoring in half, within 3.0e-03 in probability of float32; explainers in mixed precision (rank correlation "
        "with float32 at least 0.999): gradcam; in float32: occlusion"
    )


def test_without_a_reference_image_that_can_be_read_all_is_float32(tmp_path):
    store, nothing = Store(str(tmp_path), {}), dataclasses.replace(shard(0), split="reference")
    store.write_shard(precision.shard_name("m"), pack(worker(sweep(**FEW), small(size=SIZE))(nothing)), PRECISION)
    read = precision.read(store, "m")
    assert read is not None
    assert (read.scoring, read.mixed) == ("float32", frozenset())
    made = worker(sweep(**FEW), small(size=SIZE))
    made.precision_of = lambda trial_id: read
    made(shard(2))
    assert made.backend.precision == "float32"


def test_an_explainer_that_cannot_mix_types_stays_in_float32(monkeypatch):
    def made(batch, explainer, model):
        if torch.is_autocast_enabled("cpu") and explainer == "saliency":
            raise RuntimeError("expected scalar type Float but found Half")
        return Maps(torch.ones(len(batch.pairs), 2, 2), {})

    monkeypatch.setattr(measurement, "_made", made)
    decided = worker(sweep(**FEW), small(size=SIZE)).decide(shard(2))
    assert decided.agreements == {"gradcam": 1.0, "saliency": 0.0, "occlusion": 1.0}


def test_a_network_beyond_the_tolerance_is_scored_and_explained_in_float32():
    model = small(size=SIZE)
    with torch.no_grad():
        model.network.fc.weight.mul_(1e4)
    decided = worker(sweep(**FEW), model).decide(shard(4))
    assert decided.scoring == "float32"
    assert decided.agreements == {}
    assert str(decided.found).startswith("half: differs by up to")


def test_a_worker_that_cannot_score_in_the_precision_decided_says_so(monkeypatch):
    made = worker(sweep(**FEW), small(size=SIZE))
    pixels = np.asarray(shard(2).pixels, np.uint8)
    made.precision_of = lambda trial_id: Precision("half", 0.0, {}, pixels)

    def fails(model, example):
        raise RuntimeError("no kernel for this card")

    half = dataclasses.replace(backends.BACKENDS["half"], prepare=fails)
    monkeypatch.setitem(backends.BACKENDS, "half", half)
    with pytest.raises(RuntimeError, match="for m; expected half precision, as was decided for the run; give machines"):
        made(shard(2))


def test_a_form_at_the_edge_of_its_tolerance_is_refused_in_deciding_and_kept_where_it_was_decided(monkeypatch):
    def off(model, example):
        return lambda x: model.log_odds(x) + 4 * 0.011  # 1.1 times the tolerance

    monkeypatch.setitem(backends.BACKENDS, "half", dataclasses.replace(backends.BACKENDS["half"], prepare=off))
    model, given = small(size=SIZE), shard(2)
    assert worker(sweep(**FEW), model).decide(given).scoring == "float32"
    made = worker(sweep(**FEW), model)
    made.precision_of = lambda trial_id: Precision("half", 0.0099, {}, np.asarray(given.pixels, np.uint8))
    made(given)
    assert made.backend.precision == "half"


def test_maps_in_mixed_precision_rank_as_those_of_float32():
    config, given = sweep(**FEW), shard(3)
    full = worker(sweep(**{**FEW, "perturb": {**FEW["perturb"], "precision": "float32"}}), small(size=SIZE))
    half = worker(config, small(size=SIZE))
    decided = half.decide(given)
    half.precision_of = lambda trial_id: decided
    one, two = full(given), half(given)
    assert set(decided.agreements) == {"gradcam", "saliency", "occlusion"}, "intensity reads no network"
    assert decided.mixed
    for name in decided.agreements:
        a, b = (np.array(t["saliency", name]["map"].to_pylist()) for t in (one, two))
        least = min(spearmanr(x, y).statistic for x, y in zip(a, b, strict=True))
        assert least > 0.995
        assert (a == b).all() == (name not in decided.mixed)
