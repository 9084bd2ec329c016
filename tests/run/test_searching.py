"""Optuna as a searcher: what is suggested, what a run that was interrupted goes on with, and what is not trusted."""

import json
import math
from itertools import takewhile
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cxr_ray.errors import DamagedRunError, SweepError
from cxr_ray.run import dryrun, searching
from cxr_ray.run.searching import Known, OptunaSearches, known_trials
from cxr_ray.run.trial_files import TrialFiles
from cxr_ray.run.trial_plans import found_again, plan_trials, points, reachable, search_notes
from cxr_ray.storage import Store
from cxr_ray.sweepfile import resolve

SPACE = {"train": {"epochs": 2, "lr": {"loguniform": [1e-4, 1e-2]}}, "search": {"searcher": "optuna", "num_samples": 3}}


def sweep_of(**sections) -> Any:
    return resolve({"data": {"source": "phantom"}, "model": {"weights": "none"}, **SPACE, **sections})


@pytest.fixture
def told(monkeypatch):
    """In Optuna's place: a learning rate that follows from the number and from what is known; what was known."""
    seen: list[tuple[str, int, list[float]]] = []

    def suggestion(point, number, known):
        over = [k for k in sorted(known, key=lambda k: k.number) if k.over]
        seen.append((point.variant, number, [max(k.values.values()) for k in over]))
        return {"train": {"lr": 1e-3 + 1e-4 * number + 1e-5 * sum(seen[-1][2])}}

    monkeypatch.setattr(searching, "suggestion", suggestion)
    return seen


def trained(searches: OptunaSearches, store: Store, n: int) -> list[str]:
    """Tune's hooks, as it calls them: ``n`` trials one after another, each of two epochs; their trial_ids."""
    done = []
    for k in range(n):
        suggested = searches.suggest(f"tune-{k}")
        if suggested == OptunaSearches.FINISHED:
            break
        plan = suggested["plan"]
        history = []
        for epoch in (1, 2):
            quality = plan["train"]["lr"] * 100 + epoch / 100
            kept = {"epoch": epoch, "val_auroc": quality, "best_epoch": epoch, "best_auroc": quality}
            history.append({**kept, "seconds": 1.0, "trained_on": "cpu"})
            TrialFiles(store, plan["trial_id"]).save(history, {}, None)
            searches.on_trial_result(f"tune-{k}", history[-1])
        searches.on_trial_complete(f"tune-{k}", history[-1])
        done.append(plan["trial_id"])
    return done


def test_a_search_that_is_interrupted_goes_on_as_it_would_have(told, tmp_path):
    sweep = sweep_of(variants={"plain": {}, "balanced": {"train": {"loss": "weighted"}}})
    whole_store, store = Store(str(tmp_path / "whole"), {}), Store(str(tmp_path / "parts"), {})
    whole = trained(OptunaSearches(sweep, whole_store, "plan"), whole_store, 99)
    assert [(variant, number, len(values)) for variant, number, values in told] == [
        (variant, n, n) for n in range(3) for variant in ("plain", "balanced")
    ]
    first = trained(OptunaSearches(sweep, store, "plan"), store, 3)
    begun = OptunaSearches(sweep, store, "plan")
    (left,) = [begun.suggest("killed")["plan"]["trial_id"]]  # and nothing of it is trained
    again = OptunaSearches(sweep, store, "plan")
    assert (again.n_left, begun.n_left) == (3, 2)
    then = trained(again, store, 99)
    assert then[0] == left
    assert first + then == whole
    assert {known.plan.trial_id for known in known_trials(sweep, store)} == set(whole)


def test_equal_suggestions_are_one_trial(monkeypatch, tmp_path):
    monkeypatch.setattr(searching, "suggestion", lambda point, number, known: {"train": {"lr": 1e-3}})
    store = Store(str(tmp_path), {})
    assert len(trained(OptunaSearches(sweep_of(), store, "plan"), store, 99)) == 1


def test_a_trial_that_failed_tells_nothing_and_is_tried_again(told, tmp_path):
    store = Store(str(tmp_path), {})
    searches = OptunaSearches(sweep_of(), store, "plan")
    failed = searches.suggest("one")["plan"]["trial_id"]
    searches.on_trial_complete("one", None, error=True)
    searches.suggest("two")
    assert told[-1] == ("plain", 1, [])
    assert OptunaSearches(sweep_of(), store, "plan").suggest("again")["plan"]["trial_id"] == failed


@pytest.mark.parametrize("change", [{"arch": "factory:mine:make"}, {"lr": 0.5}, {"epochs": 99}, {"number": "many"}])
def test_a_trial_of_a_file_that_the_sweep_cannot_have_is_not_trained(told, tmp_path, change):
    store = Store(str(tmp_path), {})
    (trial_id,) = trained(OptunaSearches(sweep_of(), store, "plan"), store, 1)
    file = tmp_path / ".work" / "trials" / trial_id / "plan.json"
    kept = json.loads(file.read_text())
    del kept["sha256"]
    for section in (kept, kept["model"], kept["train"]):
        section.update({key: value for key, value in change.items() if key in section})
    file.write_text(json.dumps(kept))
    with pytest.raises(DamagedRunError, match=r"plan\.json, which is damaged"):
        known_trials(sweep_of(), store)


def test_a_trial_is_found_again_by_its_values_at_its_own_grid_point():
    sweep = sweep_of(train={**SPACE["train"], "seed": {"grid": [0, 1]}})
    for plan in plan_trials(sweep):
        sections = {"model": plan.model.model_dump(), "train": plan.train.model_dump()}
        assert found_again(sweep, "plain", json.loads(json.dumps(sections))) == plan
        assert found_again(sweep, "other", sections) is None


def test_every_network_that_optuna_may_choose_is_reachable():
    sweep = sweep_of(model={"weights": {"choice": ["none", "imagenet"]}, "size": {"choice": [64, 96, 128]}})
    kinds = {(t.model.weights, t.model.size) for t in reachable(sweep, plan_trials(sweep))}
    assert kinds == {(weights, size) for weights in ("none", "imagenet") for size in (64, 96, 128)}


def test_the_searcher_is_part_of_the_hash_only_where_it_is_not_random():
    assert resolve({"search": {"searcher": "random"}}).hash == resolve({}).hash
    assert sweep_of().hash != sweep_of(search={"num_samples": 3}).hash


def test_optuna_without_anything_to_search_is_a_mistake():
    with pytest.raises(SweepError, match=r"^search\.searcher: got optuna and nothing to search; "):
        sweep_of(train={"lr": {"grid": [1e-3, 1e-4]}})


def test_a_search_that_ends_before_optuna_chooses_anything_says_so():
    (note,) = search_notes(sweep_of())
    assert "so all 3 are" in note
    assert search_notes(sweep_of(search={"searcher": "optuna", "num_samples": 11})) == []
    assert search_notes(sweep_of(search={"num_samples": 3})) == []


def test_dry_run_says_what_optuna_chooses():
    sweep = sweep_of(variants={"plain": {}, "fixed": {"train": {"lr": 0.001}}})
    context = SimpleNamespace(sweep=sweep, manifest=SimpleNamespace(notes=[]), trials=tuple(plan_trials(sweep)))
    said = list(takewhile(lambda line: "Models" not in line, _until_costs(context)))
    assert said[1] == "\nTrials to train: 4"
    assert said[2].startswith("  fixed-")
    assert said[3].startswith("  3 of plain, by Optuna, each after the results before it: epochs 2, ")
    assert ", lr loguniform [0.0001, 0.01], " in said[3]


def _until_costs(context):
    for line in dryrun.lines(cast(Any, context)):
        yield line
        if "by Optuna" in line:
            return


@pytest.mark.slow
def test_optuna_finds_a_planted_optimum_better_than_chance_and_repeats_itself():
    pytest.importorskip("optuna")
    (point,) = points(sweep_of(train={"epochs": 1, "lr": {"loguniform": [1e-6, 0.5]}}))

    def searched() -> list[float]:
        known: list[Known] = []
        for number in range(30):
            plan = point.plan(searching.suggestion(point, number, known))
            known.append(Known(plan, number, {1: -abs(math.log10(plan.train.lr) + 3)}, over=True))
        return [k.plan.train.lr for k in known]

    found = searched()
    assert found == searched()
    assert all(1e-6 <= lr <= 0.5 for lr in found)
    near = sum(abs(math.log10(lr) + 3) < 0.5 for lr in found[10:])  # by chance 20 x 1 / 5.7 decades: 3.5
    assert near >= 8
