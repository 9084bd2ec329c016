"""Steps of sequential verdicts: their wins are those of the fixed design, from one code path."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.primary import resolve
from cxr_ray.analysis.sequential_verdicts import Verdicts, steps_of
from cxr_ray.measure import donors
from cxr_ray.measure.cost import passes_of_verdicts
from cxr_ray.measure.donors import DonorMaps, build_donor_index
from cxr_ray.measure.shards import Comparison
from cxr_ray.measure.steps import in_random_order, verdict_sweep
from cxr_ray.measure.worker import ModelRef, Worker
from cxr_ray.storage import Store
from tests.builders import networks
from tests.builders.shards import frames, linear_model, shard, sweep

SIZE = 56
CONTROLS = ["cell_random", "shifted", "random_cam", "other_image", "mean_map"]
EXPLAINERS = ["gradcam", "random"]


def after_map_pass(folder, config, model, whole, patients):
    """A worker and its shards, the maps of all images kept and indexed."""
    store = Store(str(folder), {})
    size = whole.pixels.shape[-1]
    worker = Worker(
        config, {"m": ModelRef("m", "none", None, size)}, batch_size=16, donor_maps=DonorMaps(store, config)
    )
    worker.model = lambda trial_id: model
    parts, n = {}, len(whole.image_ids)
    for k, chosen in enumerate(np.array_split(np.arange(n), 3)):
        parts[f"m.test.{k}"] = dataclasses.replace(whole.only(np.isin(np.arange(n), chosen)), name=f"m.test.{k}")
    for name, part in parts.items():
        store.write_shard(name, worker.map_pass(part), donors.MAPS)
    wanted = [(e, t) for e in config.explain.explainers for t in (0, 1)]
    index = build_donor_index(store, parts, pd.Series(patients, whole.image_ids), wanted)
    worker.donor_maps.write_index("m", index)
    for target in wanted:
        for predicted in (0, 1):
            worker.donor_maps.write_total("m", target, predicted, size)
    return worker, parts


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Twelve images of ten patients in three shards after a map pass: the worker, all images, the shards, the sweep."""
    config = sweep(
        data={"size": SIZE},
        explain={"explainers": EXPLAINERS, "targets": ["pneumonia", "predicted"]},
        perturb={"grids": ["7"], "fills": ["black"], "levels": [0.25, 0.5, 0.75]},
        controls=dict.fromkeys(CONTROLS, 1),
        verdicts={"controls": CONTROLS},
        regions=None,
        sanity=None,
    )
    whole = shard(12, SIZE)
    patients = [f"p{min(n, 9)}" for n in range(12)]
    folder = tmp_path_factory.mktemp("maps")
    worker, parts = after_map_pass(folder, config, networks.small(size=SIZE), whole, patients)
    return worker, whole, parts, config


def decided(worker, whole, narrow, patients):
    """The verdicts after all rounds of so many patients."""
    worker.sweep = narrow
    labels = dict(zip(whole.image_ids, whole.labels, strict=True))
    verdicts = Verdicts("m", steps_of(worker.donor_maps.index("m").images, labels, 0), narrow)
    while blocks := verdicts.next_round(patients, 4):
        made = []
        for ids, comparisons in blocks:
            part = whole.only(np.isin(whole.image_ids, ids))
            made.append(worker.wins(dataclasses.replace(part, comparisons=comparisons))["wins", ""])
        verdicts.add(made)
    return verdicts


def wins_of(worker, part, comparisons):
    return worker.wins(dataclasses.replace(part, comparisons=comparisons))["wins", ""].to_pandas()


def every(config):
    return [Comparison(e, r, c) for e in EXPLAINERS for r in config.explain.targets for c in CONTROLS]


def test_a_step_wins_where_the_map_beats_the_first_draw_of_the_fixed_design(measured):
    worker, whole, parts, config = measured
    tables = [frames(worker(part))["faithfulness"] for part in parts.values()]
    fixed = pd.concat(tables).query("scale == 'logodds' and metric == 'abpc' and control != 'none'")
    key = ["explainer", "image_id", "target", "control"]
    worker.sweep = verdict_sweep(config, "7", "black", "abpc")
    order = np.random.default_rng(0).permutation(12)
    blocks = [whole.only(np.isin(np.arange(12), part)) for part in np.array_split(order, 5)]
    found = pd.concat(wins_of(worker, block, every(config)) for block in blocks)
    worker.sweep = config
    both = fixed.set_index(key).win_rate.astype(float).to_frame().join(found.set_index(key).win, how="outer")
    assert len(both) == len(fixed) == len(found)
    assert both.win_rate.notna().mean() > 0.8
    pd.testing.assert_series_equal(both.win_rate, both.win, check_names=False)


def test_only_what_is_asked_for_is_scored(measured):
    worker, whole, _, config = measured
    worker.sweep = verdict_sweep(config, "7", "black", "abpc")
    asked = [Comparison("gradcam", "pneumonia", "shifted"), Comparison("random", "pneumonia", "other_image")]
    found = wins_of(worker, whole.only(np.arange(12) < 2), asked)
    worker.sweep = config
    assert set(zip(found.explainer, found.control, strict=True)) == {("gradcam", "shifted"), ("random", "other_image")}
    assert set(found.target) == {1}
    assert len(found) == 2 * 2


def test_a_step_takes_the_passes_that_are_said(measured, monkeypatch):
    worker, whole, _, config = measured
    narrow = verdict_sweep(config, "7", "black", "abpc").model_copy(
        update={"explain": config.explain.model_copy(update={"targets": ["pneumonia"]})}
    )
    worker.sweep, forward, passes = narrow, worker.forward("m"), []

    def counted(images):
        passes.append(len(images))
        return forward(images)

    monkeypatch.setattr(worker, "forward", lambda trial_id: counted)
    found = wins_of(worker, whole.only(np.arange(12) < 3), every(narrow))
    worker.sweep = config
    assert found.win.notna().all()
    assert len(found) == 3 * (2 * len(CONTROLS) - 1)  # random has no class weights
    assert sum(passes) == 3 * passes_of_verdicts(narrow)[0]


def test_deletion_alone_scores_one_direction(measured):
    worker, whole, _, config = measured
    worker.sweep = verdict_sweep(config, "7", "black", "deletion_auc")
    assert worker.sweep.perturb.orders == ["morf"]
    found = wins_of(worker, whole, [Comparison("gradcam", "pneumonia", "shifted")])
    worker.sweep = config
    assert len(found) == 12
    assert found.win.isin([0, 0.5, 1]).all()


def test_an_explainer_whose_maps_are_lost_has_no_wins(measured):
    worker, whole, _, config = measured
    worker.sweep = verdict_sweep(config, "7", "black", "abpc")
    found = wins_of(worker, whole, [Comparison("saliency", "pneumonia", "shifted")])
    worker.sweep = config
    assert found.empty


def test_every_order_of_patients_is_as_likely():
    patient_of = {f"{i}": f"p{i}" for i in range(4)}
    first = pd.Series([in_random_order(patient_of, seed)[0] for seed in range(1200)]).value_counts()
    assert len(first) == 4
    assert (first - 300).abs().max() < 4.5 * (1200 * 0.25 * 0.75) ** 0.5


def test_rounds_of_any_length_give_the_same_rows(measured):
    worker, whole, _, config = measured
    narrow = verdict_sweep(config, "7", "black", "abpc")
    one, other = (
        pd.DataFrame(decided(worker, whole, narrow, patients).rows(resolve(config))).drop(columns="seconds")
        for patients in (3, 10)
    )
    worker.sweep = config
    pd.testing.assert_frame_equal(one, other)
    assert one.n_patients.max() == 10


def test_a_map_that_is_right_is_better_than_its_controls_and_a_random_one_is_not(tmp_path):
    """Of a linear network, input times gradient ranks pixels by their exact effect under a fill of 0 in model space."""
    config = sweep(
        explain={"explainers": ["input_x_gradient", "random"], "targets": ["pneumonia"]},
        perturb={"grids": ["7"], "fills": ["grey"], "levels": [0.25, 0.5, 0.75]},
        controls={},
        verdicts={"controls": ["shifted", "cell_random"], "alpha": 0.4},
        regions=None,
        sanity=None,
    )
    whole = shard(40)
    worker, _ = after_map_pass(tmp_path, config, linear_model(), whole, whole.image_ids)
    verdicts = decided(worker, whole, verdict_sweep(config, "7", "grey", "abpc"), 8)
    everyone = {(c.comparison.explainer, c.comparison.control): c.found for c in verdicts.cells if c.bucket == "all"}
    for control in ("shifted", "cell_random"):
        right, chance = everyone["input_x_gradient", control], everyone["random", control]
        assert (right.decision, right.win_rate) == ("better", 1.0)
        assert right.n < 20
        assert chance.decision in ("futile", "undecided")
        assert chance.lower < 0.5
