"""Two runs compared: planted differences, a run against itself, other images, other settings."""

import json

import numpy as np
import pytest

from cxr_ray.analysis import between_runs, between_settings
from cxr_ray.analysis.between_settings import Pair
from cxr_ray.errors import RunError
from cxr_ray.results import open_run
from tests.builders.pairs import ids, planted_run

N = 80
CLASSIFIED = {(name, None) for name in ("accuracy", "sensitivity", "specificity", "auroc")}
RIGHT = [i % 4 != 0 for i in range(N)]
GAPS = {
    ("gradcam", "shifted"): np.random.default_rng(1).normal(0.3, 1, N),
    ("gradcam", "mean_map"): np.random.default_rng(2).normal(0.0, 1, N),
}


def compared(tmp_path, b: dict, **options):
    """Rows over all images by (quantity, control), the row of images and what was told; the reference has GAPS."""
    one = planted_run(tmp_path / "a", GAPS, RIGHT)
    other = planted_run(tmp_path / "b", b.pop("gaps", GAPS), b.pop("right", RIGHT), **b)
    pair = Pair("a", "b", open_run(one), open_run(other))
    models, told = between_runs.paired_models(pair)
    both, images = between_runs.predictions(pair, models[0])
    rows, more = between_runs.differences(pair, models[0], both)
    tested = [r["bucket"] for r in rows if r["p"] is not None]
    assert all(r["family_size"] == tested.count(r["bucket"]) for r in rows if r["p"] is not None)
    return {(r["quantity"], r["control"]): r for r in rows if r["bucket"] == "all"}, images, told + more, pair


def test_a_run_against_itself_differs_by_zero_with_an_interval_of_zero(tmp_path):
    rows, images, told, pair = compared(tmp_path, {})
    assert len(rows) == 8
    assert {(r["difference"], r["lower"], r["upper"]) for r in rows.values()} == {(0.0, 0.0, 0.0)}
    assert (images["n"], images["n_only_reference"], images["n_only_run"], images["n_other_label"]) == (N, 0, 0, 0)
    assert told == []
    assert list(between_settings.differing(pair)) == []


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
    n = {"sensitivity": 30, "specificity": 30}
    assert all(r["n"] == n.get(name, 60) and r["difference"] == 0 for (name, _), r in rows.items())


def test_images_of_another_label_are_counted_and_left_out(tmp_path):
    shifted = [f"{i + 1:016x}" for i in range(N)]  # every image that both have gets the other label
    rows, row, *_ = compared(tmp_path, {"images": shifted})
    assert (row["n"], row["n_other_label"], row["n_only_run"]) == (0, N - 1, 1)
    assert rows["accuracy", None]["difference"] is None


def test_what_only_one_run_measured_is_told(tmp_path):
    gaps = {("gradcam", "shifted"): GAPS["gradcam", "shifted"], ("saliency", "shifted"): np.zeros(N)}
    rows, _, told, _ = compared(tmp_path, {"gaps": gaps})
    assert set(rows) == {*CLASSIFIED, ("advantage", "shifted"), ("win_rate", "shifted")}
    assert told == [
        "a: gradcam against mean_map are not in the other run and are not compared.",
        "b: saliency against shifted are not in the other run and are not compared.",
    ]


def test_runs_of_different_fills_are_compared_each_in_its_own_and_that_is_told(tmp_path):
    gaps = {key: values + 0.5 for key, values in GAPS.items()}
    rows, _, told, pair = compared(tmp_path, {"setting": {"fill": "blur"}, "gaps": gaps})
    r = rows["advantage", "shifted"]
    assert r["difference"] == pytest.approx(0.5, abs=1e-6)
    assert (r["fill"], json.loads(r["setting_run"])["fill"]) == ("mean", "blur")
    assert [text.partition(": ")[0] for text in told] == [
        "a and b differ in the fill (mean, blur), and measured no map in one setting. Each is taken in its own, in "
        "deletion area, log-odds"
    ]
    (changed,) = between_settings.differing(pair)
    assert (changed["key"], changed["value"], changed["value_run"]) == ("perturb.fills", '["mean"]', '["blur"]')


def test_runs_without_a_shared_metric_are_compared_by_predictions_and_told_why(tmp_path):
    rows, _, (told,), _ = compared(tmp_path, {"setting": {"fill": "blur", "metric": "drop"}})
    assert set(rows) == CLASSIFIED
    assert told == (
        "a and b share no metric of maps (they differ in the fill (mean, blur)), and areas of other curves have other "
        "sizes: accuracy and AUROC alone are compared."
    )


def test_a_bucket_holds_the_images_of_its_outcome_in_both_runs(tmp_path):
    one = planted_run(tmp_path / "a", GAPS, RIGHT)
    other = planted_run(tmp_path / "b", GAPS, [not right for right in RIGHT[:40]] + RIGHT[40:])
    pair = Pair("a", "b", open_run(one), open_run(other))
    both, _ = between_runs.predictions(pair, ("study", "study"))
    rows, _ = between_runs.differences(pair, ("study", "study"), both)
    n = {r["bucket"]: r["n"] for r in rows if (r["quantity"], r["control"]) == ("advantage", "shifted")}
    assert n == {"all": 80, "TP": 20, "FP": 10, "TN": 10}  # of the last forty alone


def test_models_are_paired_by_name_or_as_the_only_ones_or_as_named(tmp_path):
    pair = compared(tmp_path, {"trial": "mine"})[3]
    assert between_runs.paired_models(pair) == ([("study", "mine")], [])
    assert between_runs.paired_models(pair, [("study", "mine")]) == ([("study", "mine")], [])
    with pytest.raises(RunError, match="got the model other, which b does not have; expected one of: mine"):
        between_runs.paired_models(pair, [("study", "other")])


def test_verdicts_of_the_same_subject_stand_beside_each_other(tmp_path):
    pair = compared(tmp_path, {"trial": "mine"})[3]
    rows = between_runs.verdicts(pair, [("study", "mine")])
    assert [r["subject"] for r in rows if r["kind"] == "answer"] == ["gradcam on study"]
    assert all(r["verdict"] == r["verdict_run"] for r in rows)
