"""Maps of other images: kept and fetched one by one, given to other patients alone; the controls that they make."""

import dataclasses
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs
from torch import nn

from cxr_ray import randomness
from cxr_ray.config import Sweep
from cxr_ray.measure import donors, rankings
from cxr_ray.measure import worker as worker_module
from cxr_ray.measure.attribution.inputs import Explainer
from cxr_ray.measure.capacity import Capacity
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.measure.donor_index import COLUMNS, DonorIndex
from cxr_ray.measure.donors import DonorMaps, MapFile, MapPiece, Maps, build_donor_index, pack_maps
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.worker import ModelRef, Worker
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store
from tests.builders.donors import IDS, PATIENTS, both_executions, worker
from tests.builders.shards import SIZE, frames, linear_model, shard, sweep

# Files


def packed(maps: torch.Tensor, ids: list[str]) -> bytes:
    """A shard of the explainer e, all images predicted PNEUMONIA."""
    return pack_maps([MapPiece(dict.fromkeys(ids, 1.0), [(i, 1) for i in ids], {"e": Maps(maps, {})})], [])


@pytest.mark.parametrize("apart", [False, True])
def test_single_maps_are_fetched_as_they_were_packed(tmp_path, apart):
    """At once, or in parts that were joined."""
    store = Store(str(tmp_path), {})
    own, cams = torch.rand(3, 5, 5), torch.rand(3, 4, 5, 5)
    own[1, 2, 2] = torch.nan
    pairs = [("a", 0), ("a", 1), ("b", 1)]
    error = {"path": "x", "image_id": "c", "stage": "decode", "reason": "broken"}
    first = MapPiece({"z": 2.0}, [("z", 1)], {"flat": Maps(own[:1] + 1, {}), "late": Maps(own[:1], {})})
    second = MapPiece({"a": -0.1, "b": 1 / 3}, pairs, {"cam": Maps(own, {"random_cam": cams}), "flat": Maps(own, {})})
    parts = [pack_maps([first], []), pack_maps([second], [error])]
    store.write_shard("u.0", donors.join_maps(parts) if apart else pack_maps([first, second], [error]), donors.MAPS)
    file = MapFile(store, "u.0")
    assert file.logits == {"z": 2.0, "a": -0.1, "b": 1 / 3}
    assert file.piece == {"z": 0, "a": 1, "b": 1}
    assert np.array_equal(file.read("flat", "z", 1)[0], own[0].numpy() + 1)
    assert file.errors == [error]
    one, draws = file.read("cam", "b", 1)
    assert np.array_equal(one, own[2].numpy())
    assert np.array_equal(draws["random_cam"], cams[2].numpy())
    assert file.read("flat", "a", 0)[1] == {}
    assert file.has_finite("cam", "a", 0)
    assert file.has("cam", "a", 1)
    assert not file.has_finite("cam", "a", 1)
    assert not file.has("cam", "z", 1), "the explainer failed on its piece"
    assert not file.has("late", "a", 1)
    back = file.maps("cam", pairs[1:])
    assert torch.equal(back.own, own[1:]) is False  # not a number is not itself
    assert torch.equal(back.drawn["random_cam"], cams[1:])
    assert file.maps("failed", pairs) is None


# Donor images


class Part(io.FileIO):
    """A file of which a store answers the first ``answers`` requests."""

    answers = 0

    def read(self, n=-1):
        self.answers -= 1
        if self.answers < 0:
            raise OSError("AWS Error SLOW_DOWN during GetObject operation")
        return super().read(n)


class Slow(pafs.LocalFileSystem):
    """A store that does not answer all requests for parts of a file."""

    def open_input_file(self, path):
        return Part(path)


@pytest.mark.parametrize("answers", [0, 1, 2, 3, 4, 5])
def test_a_store_that_does_not_answer_is_no_damage(tmp_path, monkeypatch, answers):
    store, maps = Store(str(tmp_path), {}), torch.rand(3, 8, 8)
    store.write_shard("u.0", packed(maps, ["a", "b", "c"]), donors.MAPS)
    monkeypatch.setattr(Store, "fs", Slow())
    monkeypatch.setattr(Part, "answers", answers)
    file = MapFile(store, "u.0")
    for n, image_id in enumerate("abc"):
        np.testing.assert_array_equal(file.read("e", image_id, 1)[0], maps[n])


def test_a_store_that_never_answers_says_so(tmp_path, monkeypatch):
    store = Store(str(tmp_path), {})
    store.write_shard("u.0", packed(torch.rand(1, 8, 8), ["a"]), donors.MAPS)

    def silent(self, *parts):
        raise OSError("AWS Error SLOW_DOWN during GetObject operation")

    monkeypatch.setattr(Store, "fs", Slow())
    monkeypatch.setattr(Store, "read", silent)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        MapFile(store, "u.0")


def index_of(images: dict[str, dict[str, Any]]) -> DonorIndex:
    """Takes image_id to {patient, predicted, shard, lost}."""
    rows = [{"image_id": i, **{name: image[name] for name in COLUMNS.names[1:]}} for i, image in images.items()]
    lost = {i: image["lost"] for i, image in images.items() if image["lost"]}
    return DonorIndex(pa.Table.from_pylist(rows, COLUMNS), lost)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.booleans()), min_size=1, max_size=25), st.integers(0, 3)
)
def test_donors_are_of_other_patients_and_the_same_prediction_without_replacement(images, seed):
    known = {
        f"{n:04d}": {"patient": str(p), "predicted": y, "shard": "u.0", "lost": [["cam", 1]] if lost else []}
        for n, (p, y, lost) in enumerate(images)
    }
    index = index_of(known)
    for me, mine in known.items():
        eligible = {
            i
            for i, v in known.items()
            if v["patient"] != mine["patient"] and v["predicted"] == mine["predicted"] and not v["lost"]
        }
        drawn = index.donors(me, ("cam", 1), seed, 999)
        assert len(drawn) == len(set(drawn))
        assert set(drawn) == eligible  # all of them, where fewer are there than are wanted
        assert index.donors(me, ("cam", 1), seed, 2) == drawn[:2]
        everyone = index.donors(me, ("other", 1), seed, 999)
        assert drawn == [i for i in everyone if i in eligible]  # paired over explainers
        family = set(index.of_same_patient(me, ("cam", 1)))
        assert family | eligible == set(index.group(mine["predicted"], ("cam", 1)))
        assert not family & eligible


def test_maps_of_another_target_that_are_lost_cost_no_draws(monkeypatch):
    """A sweep of one target has no maps of the other: with 100,000 images no image may look at all of them."""
    asked, drawn = [], randomness.first_of_permutation

    def first_of_permutation(keys, n, first):
        asked.append(first)
        return drawn(keys, n, first)

    monkeypatch.setattr(randomness, "first_of_permutation", first_of_permutation)
    known: dict[str, dict[str, Any]] = {
        f"{n:04d}": {"patient": str(n), "predicted": n % 2, "shard": "u.0", "lost": [["cam", 0]]} for n in range(50)
    }
    known["0006"]["lost"] = [["cam", 0], ["cam", 1]]
    index = index_of(known)
    assert len(index.donors("0000", ("cam", 1), 0, 2)) == 2
    assert len(index.donors("0001", ("cam", 1), 0, 2)) == 2
    assert index.donors("0000", ("cam", 0), 0, 2) == []
    assert asked == [3, 2, 24]  # two, and as many as may have no map


def test_an_index_survives_its_file():
    known = {
        f"{n:04d}": {
            "patient": str(n // 2),
            "predicted": n % 2,
            "shard": f"m.{n}",
            "lost": [["cam", 1]] if n == 3 else [],
        }
        for n in range(9)
    }
    index = index_of(dict(reversed(known.items())))
    back = DonorIndex.from_bytes(index.to_bytes())
    for one in (index, back):
        assert {i: dict(v) for i, v in one.images.items()} == {
            i: {name: value for name, value in row.items() if name != "lost"} for i, row in known.items()
        }
        assert [*one.group(0, ("cam", 1)), *one.group(1, ("cam", 1))] == [
            *sorted(i for i in known if int(i) % 2 == 0),
            *sorted(i for i in known if int(i) % 2 and int(i) != 3),
        ]
        assert one.count(1, ("cam", 1)) == 3
        assert list(one.images) == sorted(known)
        assert "0010" not in one.images
    assert back.donors("0002", ("cam", 1), 0, 5) == index.donors("0002", ("cam", 1), 0, 5)
    empty = DonorIndex.from_bytes(index_of({}).to_bytes())
    assert (len(empty.images), empty.group(1, ("cam", 1))) == (0, [])


def test_every_donor_is_as_likely():
    known = {f"{n:04d}": {"patient": str(n), "predicted": 1, "shard": "u.0", "lost": []} for n in range(7)}
    index = index_of(known)
    first = [index.donors("0003", ("cam", 1), seed, 1)[0] for seed in range(1200)]
    counts = pd.Series(first).value_counts()
    assert len(counts) == 6
    assert (counts - 200).abs().max() < 4.5 * (1200 * (1 / 6) * (5 / 6)) ** 0.5


# The controls, through both executions


def fake(function) -> Explainer:
    return Explainer(function, lambda size: (0, 0), "a toy")


def by_id(maps: dict[str, torch.Tensor]) -> Explainer:
    return fake(lambda model, inputs: torch.stack([maps[i] for i in inputs.ids]))


def others_sweep(**changes) -> Sweep:
    base = {
        "explain": {"explainers": ["saliency"], "targets": ["pneumonia"]},
        "perturb": {"grids": ["pixel", "7"], "fills": ["mean"], "levels": [0.1, 0.5]},
        "controls": {"other_image": 3, "mean_map": 1},
        "regions": None,
        "sanity": None,
    }
    return sweep(**{**base, **changes})


def test_a_map_equal_to_its_donors_has_u_0(tmp_path, monkeypatch):
    same = torch.rand(9, 9)
    monkeypatch.setitem(EXPLAINERS, "same", by_id(dict.fromkeys(IDS, same)))
    monkeypatch.setitem(EXPLAINERS, "zero", by_id(dict.fromkeys(IDS, torch.zeros(7, 7))))
    config = others_sweep(explain={"explainers": ["same", "zero"], "targets": ["pneumonia"]})
    out = both_executions(config, linear_model(), tmp_path)
    faith = out["faithfulness"].query("control == 'other_image'")
    assert set(faith.n_draws) <= {1, 2, 3}
    assert (faith.win_rate == 0.5).all()
    assert (faith.gap.abs() < 1e-5).all()
    assert (out["curves"].query("control == 'other_image' and level > 0").overlap == 1).all()


def test_donors_curves_are_those_of_their_maps(tmp_path, monkeypatch):
    """Each draw's curve is what its donor's map gives as the image's own."""
    maps = {i: torch.rand(7, 7, generator=torch.Generator().manual_seed(n)) for n, i in enumerate(IDS)}
    monkeypatch.setitem(EXPLAINERS, "made", by_id(maps))
    config = others_sweep(explain={"explainers": ["made"], "targets": ["pneumonia"]})
    out = both_executions(config, linear_model(), tmp_path / "a")
    predicted = out["predictions"].set_index("image_id").predicted
    images = {i: {"patient": PATIENTS[i], "predicted": predicted[i], "shard": "", "lost": []} for i in IDS}
    mine = IDS[4]
    chosen = index_of(images).donors(mine, ("made", 1), config.seed, 3)
    key = ["draw", "grid", "direction", "level"]
    drawn = out["curves"].query("image_id == @mine and control == 'other_image'").set_index(key).logit_target
    assert drawn.index.get_level_values("draw").max() == len(chosen) - 1
    for draw, donor in enumerate(chosen):
        monkeypatch.setitem(EXPLAINERS, "made", by_id({**maps, mine: maps[donor]}))
        swapped = both_executions(config, linear_model(), tmp_path / str(draw))["curves"]
        own = swapped.query("image_id == @mine and control == 'none'").set_index(key[1:]).logit_target
        assert np.allclose(drawn.loc[draw].sort_index(), own.sort_index(), atol=1e-4)


def test_the_mean_map_of_two_patients_is_the_others_rank_map(tmp_path):
    """An explainer's images a (patient 1), b and c (patient 2): a's mean map ranks as the sum of b's and c's ranks."""
    store, config, size = Store(str(tmp_path), {}), others_sweep(), 14
    maps = torch.rand(4, 7, 7, generator=torch.Generator().manual_seed(0))
    maps[3, 0, 0] = torch.inf
    ids = ["a", "b", "c", "d"]
    store.write_shard("u.0", packed(maps, ids), donors.MAPS)
    others = DonorMaps(store, config)
    patients = {"a": "1", "b": "2", "c": "2", "d": "3"}
    others.write_index("m", build_donor_index(store, ["u.0"], pd.Series(patients), [("e", 1)]))
    others.write_total("m", ("e", 1), 1, size)
    full = rankings.at_size(maps[:3], size)
    rank = rankings.rank_on(full, rankings.tie_fields(ids[:3], config.seed, size), size)

    def ranked(image_id):
        (made,) = others.means((("m", image_id, ("e", 1)),), size)
        assert made is not None
        return rankings.rank_on(made[None], rankings.tie_fields([image_id], config.seed, size), size)[0]

    assert torch.equal(ranked("b"), rank[0])  # c is b's own patient, and d's map is not finite
    _, mean = others.means((("m", "b", ("e", 1)), ("m", "a", ("e", 1))), size)
    assert torch.equal(mean.flatten(), -(rank[1] + rank[2]).double() / 2)
    lonely = index_of({"a": {"patient": "1", "predicted": 1, "shard": "u.0", "lost": []}})
    others.write_index("alone", lonely)
    others.write_total("alone", ("e", 1), 1, size)
    assert others.means((("alone", "a", ("e", 1)),), size) == [None]
    assert others.donated("alone", "a", ("e", 1), range(3)) is None


def test_the_total_is_the_sum_of_the_rank_maps_of_each_image(tmp_path, monkeypatch):
    store, config, size = Store(str(tmp_path), {}), others_sweep(), 14
    ids = [f"i{n:02d}" for n in range(30)]
    maps = torch.rand(len(ids), 7, 7, generator=torch.Generator().manual_seed(1))
    store.write_shard("u.0", packed(maps, ids), donors.MAPS)
    monkeypatch.setattr(donors, "usable_cpus", lambda: 3)  # several portions, several threads
    made = DonorMaps(store, config)
    made.write_index("m", build_donor_index(store, ["u.0"], pd.Series(ids, ids), [("e", 1)]))
    made.write_total("m", ("e", 1), 1, size)
    full = rankings.at_size(maps, size)
    expected = rankings.rank_on(full, rankings.tie_fields(ids, config.seed, size), size).sum(0)
    assert made.total("m", ("e", 1), 1).tolist() == expected.tolist()


def test_an_image_without_donors_is_kept_and_counted(tmp_path, monkeypatch):
    def partly_lost(model, inputs):
        maps = torch.stack([torch.full((7, 7), float(IDS.index(i))) + torch.eye(7) for i in inputs.ids])
        maps[[IDS.index(i) > 3 for i in inputs.ids]] = torch.nan
        return maps

    monkeypatch.setitem(EXPLAINERS, "lost", fake(partly_lost))
    model = linear_model()
    model.network[1].bias += 100 * torch.tensor([-1.0, 1.0])  # every image is PNEUMONIA
    config = others_sweep(explain={"explainers": ["lost"], "targets": ["pneumonia"]})
    out = both_executions(config, model, tmp_path)
    faith = out["faithfulness"].query("control == 'other_image'")
    whole = faith[faith.image_id.isin(IDS[:4])]
    assert (whole.n_draws == 2).all()  # of four finite maps, two are the patient's own
    assert whole.win_rate.notna().all()
    broken = faith[~faith.image_id.isin(IDS[:4])]
    assert broken.gap.isna().all()
    model.network[1].bias[:] = 0
    out = both_executions(config, model, tmp_path / "mixed")
    predicted = out["predictions"].set_index("image_id").predicted
    rows = out["faithfulness"].query("control == 'other_image' and image_id in @IDS[:4]")
    expected = {i: sum(predicted[j] == predicted[i] and PATIENTS[j] != PATIENTS[i] for j in IDS[:4]) for i in IDS[:4]}
    assert dict(rows.groupby("image_id").n_draws.first()) == expected
    assert rows[rows.n_draws == 0][["gap", "win_rate", "p_value", "control_mean", "n_as_extreme"]].isna().all().all()
    drawn = out["curves"].query("control == 'other_image' and image_id in @IDS[:4]").groupby("image_id").draw.nunique()
    assert dict(drawn) == {i: n for i, n in expected.items() if n}


@pytest.fixture
def network() -> Classifier:
    """A small network that ends in pooling and one layer, as class activation maps need."""
    torch.manual_seed(1)
    layers = nn.Sequential()
    layers.layer4 = nn.Sequential(nn.Conv2d(3, 16, 5, stride=4), nn.ReLU())
    layers.avgpool, layers.flat, layers.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    return Classifier(layers, ModelSpec("resnet18", SIZE)).eval().requires_grad_(False)


FULL: dict[str, Any] = {
    "explain": {"explainers": ["gradcam", "saliency"], "targets": ["pneumonia", "predicted"]},
    "perturb": {"grids": ["pixel", "7"], "fills": ["mean", "black"], "levels": [0.1, 0.5]},
    "controls": {"pixel_random": 2, "cell_random": 2, "shifted": 2, "random_cam": 3, "other_image": 2, "mean_map": 1},
}
CELLS = {**FULL, "perturb": {"grids": ["7"], "fills": ["mean", "black"], "levels": [0.3]}}


def test_random_cam_stands_for_class_activation_maps_alone_and_has_no_p_value(network, tmp_path):
    out = both_executions(others_sweep(**FULL), network, tmp_path)
    controls = out["faithfulness"].groupby("explainer").control.unique().map(set)
    assert controls["gradcam"] - controls["saliency"] == {"random_cam"}
    assert set(FULL["controls"]) < controls["gradcam"]
    random_cam = out["curves"].query("control == 'random_cam'")
    assert set(random_cam.draw) == {0, 1, 2}
    assert random_cam[random_cam.level > 0].overlap.between(0, 1).all()
    mean_map = out["faithfulness"].query("control == 'mean_map'")
    assert mean_map.p_value.isna().all()
    assert set(mean_map.n_draws) == {1}
    for name, frame in out.items():
        assert not frame.duplicated([k for k in TABLES[name].key if k in frame]).any()


def test_tables_do_not_depend_on_batches_and_portions(network, tmp_path, monkeypatch):
    config = others_sweep(**FULL, sequential={"max_draws": 20, "extreme": 3})
    one = both_executions(config, network, tmp_path / "one", n=6, batch_size=64)
    monkeypatch.setattr(Capacity, "of", lambda *_: Capacity(places=1))  # a draw at a time
    other = both_executions(config, network, tmp_path / "other", n=6, batch_size=3)
    assert one.keys() == other.keys()
    for name in one:
        pd.testing.assert_frame_equal(one[name], other[name], rtol=0, atol=1e-4)


def test_no_pass_is_made_twice(network, tmp_path):
    """Both executions together make exactly the passes that the dry run says."""
    config = others_sweep(**{**FULL, "explain": {**FULL["explain"], "targets": ["pneumonia"]}})
    forward, backward = [], []
    _ = network.structure  # read once, with passes of its own
    network.network.register_forward_pre_hook(lambda m, a: forward.append(len(a[0])))
    network.network.layer4.register_full_backward_hook(lambda m, i, o: backward.append(len(o[0])))
    out = both_executions(config, network, tmp_path)
    assert set(out["faithfulness"].query("control == 'other_image'").n_draws) == {2}
    assert sum(forward) + 2 * sum(backward) == 12 * passes_per_image(config, SIZE)[0]


def test_sequential_draws_change_the_p_value_alone(network, tmp_path):
    fixed = both_executions(others_sweep(**CELLS), network, tmp_path / "fixed")
    drawn = both_executions(
        others_sweep(**CELLS, sequential={"max_draws": 30, "extreme": 3}), network, tmp_path / "seq"
    )
    pd.testing.assert_frame_equal(fixed["curves"], drawn["curves"])
    columns = [c for c in fixed["faithfulness"] if c not in ("p_value", "p_draws")]
    pd.testing.assert_frame_equal(fixed["faithfulness"][columns], drawn["faithfulness"][columns])
    rows = drawn["faithfulness"]
    tested = rows.query("metric == 'drop' and scale == 'logodds' and control not in ('none', 'mean_map')")
    assert rows.drop(tested.index).p_value.isna().all()
    endless = tested[tested.control != "other_image"]
    assert endless.p_value.notna().all()
    assert endless.p_draws.between(3, 30).all()
    stopped = endless[endless.p_draws < 30]
    assert len(stopped)
    assert np.allclose(stopped.p_value, 3 / stopped.p_draws)
    whole = endless[endless.p_draws == 30]
    assert len(whole)
    assert (np.abs(whole.p_value.to_numpy()[:, None] - [1 / 31, 2 / 31, 3 / 31, 3 / 30]).min(1) < 1e-6).all()


def test_sequential_draws_that_never_stop_are_fixed_draws(network, tmp_path):
    few = {**CELLS, "controls": {"cell_random": 2, "shifted": 1, "random_cam": 2, "other_image": 1}}
    many = {**CELLS, "controls": dict.fromkeys(few["controls"], 25)}
    sequential = both_executions(
        others_sweep(**few, sequential={"max_draws": 25, "extreme": 99}), network, tmp_path / "a"
    )
    fixed = both_executions(others_sweep(**many), network, tmp_path / "b")
    key = [*TABLES["faithfulness"].key[1:]]
    chosen = "metric == 'drop' and scale == 'logodds' and control != 'none'"
    one, other = (t["faithfulness"].query(chosen).set_index(key).sort_index() for t in (sequential, fixed))
    assert other.p_value.notna().any()
    pd.testing.assert_series_equal(one.p_value, other.p_value)
    pd.testing.assert_series_equal(one.p_draws, other.p_draws)


def test_a_worker_without_other_images_says_so():
    config = others_sweep()
    w = Worker(config, {"m": ModelRef("m", "none", None, SIZE)})
    w.model = lambda trial_id: linear_model()
    with pytest.raises(ValueError, match="got other_image and mean_map without the maps of other images"):
        w(shard())


def test_an_explainer_that_fails_in_the_map_pass_is_an_error_of_the_scoring_pass(tmp_path, monkeypatch):
    def broken(model, inputs):
        raise RuntimeError("out of ideas")

    monkeypatch.setitem(EXPLAINERS, "broken", fake(broken))
    config = others_sweep(explain={"explainers": ["broken", "saliency"], "targets": ["pneumonia"]})
    out = both_executions(config, linear_model(), tmp_path)
    assert sorted(out["errors"].image_id) == IDS
    assert set(out["errors"].stage) == {"explain:m:broken"}
    assert set(out["saliency"].explainer) == {"saliency"}


def test_a_long_shard_gives_the_rows_of_short_ones_and_loses_the_maps_of_one_piece_alone(tmp_path, monkeypatch):
    def fails_on_one(model, inputs):
        if IDS[5] in inputs.ids:
            raise RuntimeError("out of ideas")
        return inputs.images.mean(1)

    monkeypatch.setitem(EXPLAINERS, "fragile", fake(fails_on_one))
    monkeypatch.setattr(worker_module.Capacity, "of", lambda *_: worker_module.Capacity(images=4))
    config = others_sweep(explain={"explainers": ["fragile", "saliency"], "targets": ["pneumonia", "predicted"]})
    long = both_executions(config, linear_model(), tmp_path / "long", units=1)
    short = both_executions(config, linear_model(), tmp_path / "short", units=3)
    assert sorted(long["errors"].image_id) == IDS[4:8]
    assert set(long["saliency"].query("explainer == 'fragile'").image_id) == {*IDS[:4], *IDS[8:]}
    assert long.keys() == short.keys()
    for name in long:
        pd.testing.assert_frame_equal(long[name], short[name], rtol=0, atol=1e-5)


def test_images_that_a_scoring_pass_leaves_out_move_no_other_to_another_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module.Capacity, "of", lambda *_: worker_module.Capacity(images=4))
    store, config = Store(str(tmp_path), {}), others_sweep(controls={"other_image": 1})
    w, whole = worker(config, linear_model(), store), dataclasses.replace(shard(12), name="m.test.0")
    store.write_shard("m.test.0", w.map_pass(whole), donors.MAPS)
    w.donor_maps.write_index("m", build_donor_index(store, ["m.test.0"], pd.Series(PATIENTS), [("saliency", 1)]))
    left = whole.only(np.arange(12) != 2)
    pieces = w._pieces(left, w._map_file(left))
    assert [list(piece.image_ids) for piece in pieces] == [[*IDS[:2], IDS[3]], IDS[4:8], IDS[8:]]
    assert frames(w(left))["predictions"].image_id.tolist() == left.image_ids
