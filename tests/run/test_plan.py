"""What a run will do: trials from search spaces, and shards that hold every image once."""

from typing import Any

import pytest

from cxr_ray.data.manifest import Manifest, load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.measure.donor_swaps import assign_donors
from cxr_ray.measure.worker import ModelRef
from cxr_ray.run.plan import SHARD_IMAGES, PassCounts, Plan, ShardPlan, plan_shards
from cxr_ray.run.trial_plans import TrialPlan, plan_trials
from cxr_ray.sweepfile import resolve


def trials(**sections) -> list[TrialPlan]:
    return plan_trials(resolve({"data": {"source": "phantom"}, "model": {"weights": "none"}, **sections}))


def test_each_point_of_a_grid_is_one_trial_and_equal_samples_are_one():
    grid = {"grid": [0, 1, 2]}
    assert [t.train.seed for t in trials(train={"seed": grid}, search={"num_samples": 4})] == [0, 1, 2]
    chosen = trials(train={"lr": {"choice": [1e-3]}}, search={"num_samples": 4})
    assert [t.train.lr for t in chosen] == [1e-3]


def test_samples_depend_on_the_seed_of_the_sweep_and_on_nothing_else():
    space = {"lr": {"loguniform": [1e-5, 1e-2]}}
    first, again, other = (trials(train=space, search={"num_samples": 3}, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert len({t.train.lr for t in first}) == 3
    assert all(1e-5 <= t.train.lr <= 1e-2 for t in first)
    assert not {t.trial_id for t in first} & {t.trial_id for t in other}


def test_a_new_variant_leaves_the_samples_of_the_others_as_they_are():
    space = {"train": {"lr": {"loguniform": [1e-5, 1e-2]}}, "search": {"num_samples": 3}}
    one = trials(**space, variants={"plain": {}})
    two = trials(**space, variants={"balanced": {"train": {"loss": "weighted"}}, "plain": {}})
    assert [t for t in two if t.variant == "plain"] == one


def test_a_trial_survives_the_way_through_plain_data():
    (trial,) = trials(train={"epochs": 3})
    assert TrialPlan.from_config(trial.to_config()) == trial


def test_a_trained_network_keeps_how_its_images_were_made_square():
    (trial,) = trials(train={"epochs": 3}, data={"fit": "pad"})
    assert trial.spec(64).fit == "pad"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    sweep = resolve({"data": {"source": "phantom", "size": 64, "phantom": {"train": 40, "test": 37}}})
    return load_manifest(source_of(sweep.data, sweep.seed), training=False)


def swaps_of(shard):
    return [row["swap"] for row in shard.rows if row["swap"] is not None]


def recipients_of(shard):
    return {row["image_id"] for row in shard.rows if row["swap"] is None}


@pytest.mark.parametrize(("passes", "length"), [(1, SHARD_IMAGES), (100, 10), (5000, 1)])
def test_shards_hold_every_image_once_within_the_budget(manifest, passes, length):
    refs = {name: ModelRef(name, f"{name}.pt", None, 64) for name in ("a", "b")}
    counts = {name: PassCounts(passes) for name in refs}
    test = manifest.rows("test")
    donors = assign_donors(test, manifest.rows("val"), 120, 0)
    plan = plan_shards(manifest, refs, counts, "cpu", {"sanity": test.iloc[:3], "stability": test.iloc[:2]}, {}, donors)
    shards = list(plan.missing())
    assert len(shards) == len(plan)
    assert [shard.name for shard in shards] == [name for trial_id in refs for name in plan.names(trial_id)]
    for trial_id in refs:
        own = [shard for shard in shards if shard.trial_id == trial_id]
        of_test = [shard for shard in own if shard.split == "test"]
        assert [row["image_id"] for shard in of_test for row in shard.rows] == test["image_id"].tolist()
        assert max(len(shard.rows) for shard in of_test) == length
        assert sum(len(s.rows) for s in own if s.split == "sanity") == 3
        assert [row["image_id"] for s in own if s.split == "stability" for row in s.rows] == list(test["image_id"][:2])
        of_donors = [shard for shard in own if shard.split == "donors"]
        swaps = [swap for shard in of_donors for swap in swaps_of(shard)]
        assert swaps == donors.to_dict("records"), "the same for every model"
        assert all({s["image_id"] for s in swaps_of(shard)} <= recipients_of(shard) for shard in of_donors)
    assert len({shard.name for shard in shards}) == len(shards)


def test_what_is_missing_is_counted_as_it_is_made(manifest):
    refs = {name: ModelRef(name, f"{name}.pt", None, 64) for name in ("a", "b")}
    test, donors = manifest.rows("test"), assign_donors(manifest.rows("test"), manifest.rows("val"), 120, 0)
    counts = {name: PassCounts(100) for name in refs}
    plan = plan_shards(manifest, refs, counts, "cpu", {"sanity": test.iloc[:3]}, {}, donors)
    finished = {*list(plan.of_split("test").names("a"))[:2], *list(plan.of_split("donors").names("b"))[-1:]}
    missing = plan.missing(finished)
    shards = list(missing)
    assert len(missing) == len(shards) == len(plan) - len(finished)
    assert not finished & {shard.name for shard in shards}
    assert missing.n_images == sum(len(shard.rows) for shard in shards)
    assert missing.n_test == {t: sum(len(s.rows) for s in shards if (s.trial_id, s.split) == (t, "test")) for t in refs}


def test_images_that_the_map_pass_lost_are_left_out_of_the_shards_of_test_alone(manifest):
    ref, rows = ModelRef("a", "a.pt", None, 64), manifest.rows("test")
    nothing = assign_donors(rows.iloc[:0], rows.iloc[:0], 0, 0)
    plan = plan_shards(manifest, {"a": ref}, {"a": PassCounts(100)}, "cpu", {"sanity": rows.iloc[:3]}, {}, nothing)
    lost = rows["image_id"].iloc[1]
    left = plan.without({"a": {lost}})
    assert list(left.names("a")) == list(plan.names("a"))
    ids = {split: [r["image_id"] for s in left.of_split(split).missing() for r in s.rows] for split in left.splits}
    assert ids["test"] == [i for i in rows["image_id"] if i != lost]
    assert lost in ids["sanity"]


def test_a_plan_of_many_models_makes_a_shard_only_when_it_is_asked_for(manifest, monkeypatch):
    refs = {f"m{i}": ModelRef(f"m{i}", "a.pt", None, 64) for i in range(1000)}
    rows = manifest.rows("test")
    nothing = assign_donors(rows.iloc[:0], rows.iloc[:0], 0, 0)
    plan = plan_shards(manifest, refs, dict.fromkeys(refs, PassCounts(5000)), "cpu", {}, {}, nothing)
    made: list[tuple[str, str, int]] = []
    shard = Plan.shard

    def counted(self: Plan, *place: Any) -> ShardPlan:
        made.append(place)
        return shard(self, *place)

    monkeypatch.setattr(Plan, "shard", counted)
    missing = iter(plan.of_split("test").missing())
    assert not made
    next(missing)
    assert made == [("m0", "test", 0)]
    assert len(plan.of_split("test")) == 1000 * len(rows)


@pytest.mark.parametrize(
    ("models", "device", "of_test", "expected"),
    [
        (1, "gpu", 400, (64, 64)),
        (1, "gpu", 5000, (6, 64)),  # as in a small run
        (1000, "gpu", 400, (64, 64)),  # 37 images each: between 2 and 3 times MANY_SHARDS
        (1000, "gpu", 1000, (64, 64)),  # by their passes, of which there may be more
        (20_000, "gpu", 400, (256, 256)),
        (20_000, "gpu", 5000, (26, 256)),  # by their passes: seconds of a GPU
        (20_000, "cpu", 400, (2, 256)),  # a CPU takes long for two images
    ],
)
def test_a_large_run_has_longer_shards_of_val_and_test(manifest, models, device, of_test, expected):
    ref, rows = ModelRef("m", "a.pt", None, 64), manifest.rows("test")
    refs = {f"m{i}": ref for i in range(models)}
    nothing = assign_donors(rows.iloc[:0], rows.iloc[:0], 0, 0)
    counts = dict.fromkeys(refs, PassCounts(of_test, sanity=1))
    plan = plan_shards(manifest, refs, counts, device, {"sanity": rows.iloc[:3]}, {}, nothing)
    assert (plan.lengths["m0", "test"], plan.lengths["m0", "val"]) == expected
    assert plan.lengths["m0", "sanity"] == 16
    (name, *_) = plan.of_split("test").names("m0")
    assert name == f"m0.test.{expected[0]}.00000"
