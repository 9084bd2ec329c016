"""Two runs compared: planted differences, a run against itself, other images, other settings."""

import numpy as np
import pytest

from cxr_ray.analysis import between_runs
from cxr_ray.analysis.between_runs import Pair, paired
from cxr_ray.errors import RunError
from cxr_ray.results import open_run
from tests.builders.pairs import ids, planted_run

N = 80
RIGHT = [i % 4 != 0 for i in range(N)]
GAPS = {
    ("gradcam", "shifted"): np.random.default_rng(1).normal(0.3, 1, N),
    ("gradcam", "mean_map"): np.random.default_rng(2).normal(0.0, 1, N),
}


def compared(tmp_path, b: dict, **options):
    """Rows of differences by (quantity, control), the row of images and what was told; the reference has GAPS."""
    one = planted_run(tmp_path / "a", GAPS, RIGHT)
    other = planted_run(tmp_path / "b", b.pop("gaps", GAPS), b.pop("right", RIGHT), **b)
    pair = Pair("a", "b", open_run(one), open_run(other))
    models, told = between_runs.paired_models(pair)
    both, images = between_runs.predictions(pair, models[0])
    rows, more = between_runs.differences(pair, models[0], both)
    return {(r["quantity"], r["control"]): r for r in rows}, images, told + more, pair


def test_a_run_against_itself_differs_by_zero_with_an_interval_of_zero(tmp_path):
    rows, images, told, pair = compared(tmp_path, {})
    assert len(rows) == 5
    assert {(r["difference"], r["lower"], r["upper"]) for r in rows.values()} == {(0.0, 0.0, 0.0)}
    assert (images["n"], images["n_only_reference"], images["n_only_run"], images["n_other_label"]) == (N, 0, 0, 0)
    assert told == []
    assert list(between_runs.settings(pair)) == []


def test_a_planted_difference_is_found_with_an_interval_that_holds_it(tmp_path):
    noise = np.random.default_rng(3).normal(0, 0.5, N)
    gaps = {**GAPS, ("gradcam", "shifted"): GAPS["gradcam", "shifted"] + 0.8 + noise}
    rows, *_ = compared(tmp_path, {"gaps": gaps})
    r = rows["advantage", "shifted"]
    assert r["difference"] == pytest.approx(0.8 + noise.mean(), abs=1e-6)
    assert r["mean"] == pytest.approx(GAPS["gradcam", "shifted"].mean(), abs=1e-6)
    assert 0 < r["lower"] < 0.8 < r["upper"] < 1.1
    assert rows["advantage", "mean_map"]["upper"] == 0


def test_accuracy_is_paired_image_by_image(tmp_path):
    right = [True if i < 8 else ok for i, ok in enumerate(RIGHT)]  # two images that were wrong
    r = compared(tmp_path, {"right": right})[0]["accuracy", None]
    assert (r["mean"], r["mean_run"]) == (0.75, 0.775)
    assert r["difference"] == pytest.approx(2 / N)


def test_images_that_are_not_in_both_runs_are_counted_and_left_out(tmp_path):
    images = ids(N + 20)[20:]  # the last sixty of the reference, and twenty others
    gaps = {key: np.concatenate([values[20:], np.full(20, 99.0)]) for key, values in GAPS.items()}
    rows, row, *_ = compared(tmp_path, {"images": images, "gaps": gaps, "right": [*RIGHT[20:], *[False] * 20]})
    assert (row["n"], row["n_only_reference"], row["n_only_run"]) == (60, 20, 20)
    assert all(r["n"] == 60 and r["difference"] == 0 for r in rows.values())


def test_images_of_another_label_are_counted_and_left_out(tmp_path):
    shifted = [f"{i + 1:016x}" for i in range(N)]  # every image that both have gets the other label
    rows, row, *_ = compared(tmp_path, {"images": shifted})
    assert (row["n"], row["n_other_label"], row["n_only_run"]) == (0, N - 1, 1)
    assert rows["accuracy", None]["difference"] is None


def test_what_only_one_run_measured_is_told(tmp_path):
    gaps = {("gradcam", "shifted"): GAPS["gradcam", "shifted"], ("saliency", "shifted"): np.zeros(N)}
    rows, _, told, _ = compared(tmp_path, {"gaps": gaps})
    assert set(rows) == {("accuracy", None), ("advantage", "shifted"), ("win_rate", "shifted")}
    assert told == [
        "a: gradcam against mean_map is not in the other run and is not compared.",
        "b: saliency against shifted is not in the other run and is not compared.",
    ]


def test_runs_without_a_shared_setting_are_compared_by_accuracy_and_told(tmp_path):
    rows, _, told, pair = compared(tmp_path, {"fill": "blur"})
    assert set(rows) == {("accuracy", None)}
    assert told == ["b measured no map in a setting of a: accuracy alone is compared."]
    (changed,) = between_runs.settings(pair)
    assert (changed["key"], changed["value"], changed["value_run"]) == ("perturb.fills", '["mean"]', '["blur"]')


def test_models_are_paired_by_name_or_as_the_only_ones_or_as_named(tmp_path):
    pair = compared(tmp_path, {"trial": "mine"})[3]
    assert between_runs.paired_models(pair) == ([("study", "mine")], [])
    assert between_runs.paired_models(pair, {"study": "mine"}) == ([("study", "mine")], [])
    with pytest.raises(RunError, match="got the model other, which b does not have; expected one of: mine"):
        between_runs.paired_models(pair, {"study": "other"})


def test_verdicts_of_the_same_subject_stand_beside_each_other(tmp_path):
    pair = compared(tmp_path, {"trial": "mine"})[3]
    rows = between_runs.verdicts(pair, [("study", "mine")])
    assert [r["subject"] for r in rows if r["kind"] == "answer"] == ["gradcam on study"]
    assert all(r["verdict"] == r["verdict_run"] for r in rows)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Patients of two images that share an effect; 95% of 200 intervals, give or take four standard errors."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        patients = np.repeat(np.arange(40), 2)
        a = random.normal(size=80)
        r = paired(a, a + 0.5 + random.normal(size=40)[patients] + random.normal(0, 0.3, 80), patients, 0)
        held += r["lower"] <= 0.5 <= r["upper"]
    assert 0.88 < held / 200 <= 1


def test_values_that_one_run_lacks_and_few_patients_give_no_interval():
    r = paired([1.0, np.nan, 3.0], [2.0, 2.0, np.nan], ["p", "q", "r"], 0)
    assert (r["n"], r["n_patients"], r["difference"], r["lower"], r["ci_method"]) == (1, 1, 1.0, None, None)
