"""Steps of sequential verdicts: their wins are those of the fixed design, from one code path."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.sequential_verdicts import Verdicts, steps_of
from cxr_ray.measure import donors
from cxr_ray.measure.donors import DonorMaps, build_donor_index
from cxr_ray.measure.shards import Comparison
from cxr_ray.measure.steps import in_random_order, verdict_sweep
from cxr_ray.measure.worker import ModelRef, Worker
from cxr_ray.storage import Store
from tests.builders import networks
from tests.builders.shards import frames, shard, sweep

SIZE = 56
CONTROLS = ["cell_random", "shifted", "random_cam", "other_image", "mean_map"]
EXPLAINERS = ["gradcam", "random"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Twelve images of ten patients in three shards after a map pass: the worker, the shard of all, the sweep."""
    config = sweep(
        data={"size": SIZE},
        explain={"explainers": EXPLAINERS, "targets": ["pneumonia", "predicted"]},
        perturb={"grids": ["7"], "fills": ["black"], "levels": [0.25, 0.5, 0.75]},
        controls=dict.fromkeys(CONTROLS, 1),
        verdicts={"controls": CONTROLS},
        regions=None,
        sanity=None,
    )
    store = Store(str(tmp_path_factory.mktemp("maps")), {})
    worker = Worker(
        config, {"m": ModelRef("m", "none", None, SIZE)}, batch_size=16, donor_maps=DonorMaps(store, config)
    )
    worker.model = lambda trial_id: networks.small(size=SIZE)
    whole = shard(12, SIZE)
    parts = {}
    for n, chosen in enumerate(np.array_split(np.arange(12), 3)):
        parts[f"m.test.{n}"] = dataclasses.replace(whole.only(np.isin(np.arange(12), chosen)), name=f"m.test.{n}")
    for name, part in parts.items():
        store.write_shard(name, worker.map_pass(part), donors.MAPS)
    patients = {image_id: f"p{min(n, 9)}" for n, image_id in enumerate(whole.image_ids)}
    wanted = [(e, t) for e in EXPLAINERS for t in (0, 1)]
    index = build_donor_index(store, parts, patients, wanted)
    worker.donor_maps.write_index("m", index)
    for target in wanted:
        for predicted in (0, 1):
            worker.donor_maps.write_total("m", target, predicted, SIZE)
    return worker, whole, parts, config


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
    from cxr_ray.analysis.primary import resolve

    worker, whole, _, config = measured
    narrow = verdict_sweep(config, "7", "black", "abpc")
    worker.sweep = narrow
    labels = dict(zip(whole.image_ids, whole.labels, strict=True))
    found = []
    for patients in (3, 10):
        verdicts = Verdicts("m", steps_of(worker.donor_maps.index("m").images, labels, 0), narrow)
        while blocks := verdicts.next_round(patients, 4):
            made = []
            for ids, comparisons in blocks:
                part = whole.only(np.isin(whole.image_ids, ids))
                made.append(worker.wins(dataclasses.replace(part, comparisons=comparisons))["wins", ""])
            verdicts.add(made)
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in verdicts.rows(resolve(config))])
    worker.sweep = config
    one, other = (pd.DataFrame(rows) for rows in found)
    pd.testing.assert_frame_equal(one, other)
    assert one.n_patients.max() == 10
