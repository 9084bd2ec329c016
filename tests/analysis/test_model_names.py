"""Models are named by what differs."""

import json

import pandas as pd

from cxr_ray.analysis.model_names import model_names


def names(*rows):
    """rows: trial_id, variant, seed, status, config."""
    columns = ["trial_id", "variant", "seed", "status", "config"]
    return model_names(pd.DataFrame([[*r[:4], json.dumps(r[4])] for r in rows], columns=columns))


def config(**train):
    return {"train": train}


def test_a_model_alone_in_its_variant_has_the_variants_name():
    found = names(("plain-1", "plain", 0, "completed", {}), ("balanced-1", "balanced", 3, "completed", {}))
    assert found == {"plain-1": "plain", "balanced-1": "balanced"}


def test_several_seeds_are_named_by_the_seed_alone_though_their_rates_differ():
    found = names(
        ("plain-1", "plain", 0, "completed", config(seed=0, lr=1e-4)),
        ("plain-2", "plain", 1, "completed", config(seed=1, lr=2e-4)),
    )
    assert found == {"plain-1": "plain, seed 0", "plain-2": "plain, seed 1"}


def test_one_seed_several_times_is_named_by_the_setting_that_differs():
    found = names(
        ("plain-1", "plain", 0, "completed", config(seed=0, lr=1e-4, loss="ce", epochs=3)),
        ("plain-2", "plain", 0, "completed", config(seed=0, lr=2e-4, loss="ce", epochs=3)),
        ("plain-3", "plain", 1, "completed", config(seed=1, lr=2e-4, loss="ce", epochs=3)),
    )
    assert found == {
        "plain-1": "plain, seed 0, lr 0.0001",
        "plain-2": "plain, seed 0, lr 0.0002",
        "plain-3": "plain, seed 1, lr 0.0002",
    }


def test_models_without_any_difference_are_told_apart_by_their_id():
    found = names(("plain-1", "plain", 0, "completed", {}), ("plain-2", "plain", 0, "completed", {}))
    assert found == {"plain-1": "plain, plain-1", "plain-2": "plain, plain-2"}


def test_a_given_model_keeps_the_sweeps_name_and_a_missing_seed_is_not_one():
    found = names(("mine", "plain", None, "given", {}), ("yours", "plain", float("nan"), "given", {}))
    assert found == {"mine": "mine", "yours": "yours"}
