"""Rankings that agree, reverse or turn on one choice alone; accuracy and faithfulness that rise together."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from cxr_ray.analysis.agreement import AXES, accuracy_and_gaps, rank_correlations, ranking_agreement
from cxr_ray.measure.controls import strongest_first
from cxr_ray.schemas import SUMMARY

EXPLAINERS = ("gradcam", "occlusion", "saliency", "random")
CHOICES = {
    "target_rule": ("pneumonia", "predicted"), "grid": ("pixel", "7"), "fill": ("mean", "blur", "noise"),
    "scale": ("prob", "logodds"), "control": ("none", "pixel_random", "shifted"),
}  # fmt: skip


def summary(gap, trial_id="m", measures=(("abpc", np.nan), ("drop", 0.1), ("drop", 0.25), ("drop", 0.5))):
    """A summary of every combination, its mean given by gap(explainer's index, row)."""
    rows = []
    for *chosen, (metric, level), explainer in itertools.product(*CHOICES.values(), measures, EXPLAINERS):
        row = dict(zip(CHOICES, chosen, strict=True)) | {"metric": metric, "level": level, "explainer": explainer}
        row |= {"trial_id": trial_id, "bucket": "all", "contrast": False, "matched": False, "n": 30}
        rows.append({**dict.fromkeys(SUMMARY.columns), **row, "mean": gap(EXPLAINERS.index(explainer), row)})
    return pd.DataFrame(rows)


def taus(frame: pd.DataFrame) -> dict:
    return {(r.axis, r.a, r.b): r for r in frame.itertuples()}


def test_one_ranking_everywhere_gives_tau_one_on_every_axis():
    found = ranking_agreement(summary(lambda i, row: i * (3 if row["scale"] == "logodds" else 1)), "m")
    assert (found[["tau_mean", "tau_min", "tau_max"]] == 1).all(axis=None)
    assert (found.n_explainers == len(EXPLAINERS)).all()
    assert set(found.axis) == set(AXES)
    # areas: 2 x 2 x 3 x 2 x 2 combinations without "none", and each drop as many
    settings = found.groupby("axis").n_settings.unique().map(list).to_dict()
    assert settings == {"target_rule": [24], "grid": [24], "fill": [16], "level": [48], "scale": [24], "control": [24]}
    assert found.axis.value_counts().to_dict() == {**dict.fromkeys(AXES, 1), "fill": 3, "level": 3}


def test_a_choice_that_reverses_the_ranking_gives_minus_one_on_its_axis_alone():
    found = taus(ranking_agreement(summary(lambda i, row: -i if row["fill"] == "blur" else i), "m"))
    assert found["fill", "mean", "blur"].tau_max == -1
    assert found["fill", "blur", "noise"].tau_max == -1
    assert found["fill", "mean", "noise"].tau_min == 1
    assert all(r.tau_min == 1 for (axis, *_), r in found.items() if axis != "fill")


def test_taus_are_averaged_over_the_other_choices():
    """The level turns the ranking under one of three fills: mean (1 + 1 - 1) / 3."""
    found = taus(ranking_agreement(
        summary(lambda i, row: -i if row["level"] == 0.5 and row["fill"] == "noise" else i), "m"))  # fmt: skip
    turned = found["level", "0.25", "0.5"]
    assert (turned.tau_mean, turned.tau_min, turned.tau_max) == (pytest.approx(1 / 3), -1, 1)
    assert found["level", "0.1", "0.25"].tau_min == 1


def test_taus_are_scipys_and_ties_count_half():
    rng = np.random.default_rng(0)
    numbers = {s: rng.integers(0, 3, len(EXPLAINERS)) for s in CHOICES["scale"]}
    numbers["prob"][:2] = 0, 2
    numbers["logodds"][:2] = 1, 0
    found = taus(ranking_agreement(summary(lambda i, row: float(numbers[row["scale"]][i])), "m"))
    assert found["scale", "prob", "logodds"].tau_mean == pytest.approx(kendalltau(*numbers.values()).statistic)


def test_what_cannot_be_ranked_has_no_row():
    frame = summary(lambda i, row: i)
    assert ranking_agreement(frame[frame.explainer == "gradcam"], "m").empty
    assert ranking_agreement(frame, "another").empty
    assert ranking_agreement(summary(lambda i, row: 1.0), "m").empty
    one = frame[(frame.control == "shifted") & (frame.fill == "mean") & (frame.explainer != "random")]
    found = ranking_agreement(one.assign(mean=one["mean"].where(one.explainer != "occlusion")), "m")
    assert set(found.axis) == {"target_rule", "grid", "scale", "level"}
    assert (found.n_explainers == 2).all()
    deletion = ranking_agreement(summary(lambda i, row: i, measures=(("deletion_auc", np.nan),)), "m")
    assert "level" not in set(deletion.axis)
    assert len(deletion)


def models_and_gaps(accuracies, gaps):
    """Tables of as many models; the gap of gradcam to shifted in the first setting is the one given."""
    names = [f"m{i}" for i in range(len(gaps))]
    classification = pd.DataFrame([
        {"trial_id": n, "split": split, "threshold_rule": rule, "n_patients": 20,
         **{f"{m}{end}": a + (split == "val") + shift for m in ("accuracy", "auroc")
            for end, shift in (("", 0), ("_lower", -0.1), ("_upper", 0.1))}}
        for n, a in zip(names, accuracies, strict=True) for split in ("val", "test") for rule in ("half", "youden")
    ])  # fmt: skip
    trials = pd.DataFrame({"trial_id": [*names, "failed"], "variant": "plain", "seed": range(len(names) + 1)})
    first = {"target_rule": "pneumonia", "grid": "pixel", "fill": "mean", "scale": "logodds", "control": "shifted"}

    def gap(own):
        def of(i, row):
            return own if i == 0 and row["metric"] == "abpc" and first.items() <= row.items() else 99.0

        return of

    frames = [summary(gap(g), n) for n, g in zip(names, gaps, strict=True)]
    return classification, trials, pd.concat(frames)


def test_accuracy_stands_beside_the_gap_to_the_strongest_control():
    found = accuracy_and_gaps(*models_and_gaps([0.7, 0.8, 0.9], [1.0, 3.0, 2.0]))
    assert len(found) == 3 * len(EXPLAINERS)
    assert set(found.control) == {"shifted"}
    assert list(found[found.explainer == "gradcam"].gap) == [1.0, 3.0, 2.0]
    assert list(found[found.explainer == "gradcam"].accuracy) == [0.7, 0.8, 0.9]
    assert strongest_first(["pixel_random", "shifted", "other_image"]) == ["other_image", "shifted", "pixel_random"]
    rho = rank_correlations(found).set_index(["explainer", "performance"]).loc["gradcam"]
    assert list(rho.rho) == [pytest.approx(0.5)] * 2
    assert rho.p.isna().all()
    assert set(rho.text) == {"3 models: rho 0.50; too few for a p-value."}


def test_rho_and_its_p_are_exact_for_few_models():
    """Of 5! orders, only two have |rho| = 1; and scipy's rho where there are more models."""
    rho = rank_correlations(accuracy_and_gaps(*models_and_gaps([0.5, 0.6, 0.7, 0.8, 0.9], [1, 2, 3, 4, 5])))
    first = rho[rho.explainer == "gradcam"].iloc[0]
    assert (first.rho, first.n) == (1, 5)
    assert first.p == pytest.approx(2 / 120)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 12))
    more = rank_correlations(accuracy_and_gaps(*models_and_gaps(x, y))).query("explainer == 'gradcam'").iloc[0]
    expected = spearmanr(x, y)
    assert more.rho == pytest.approx(expected.statistic)
    assert more.p == pytest.approx(expected.pvalue, abs=0.03)


def test_two_models_or_equal_ones_are_no_trend():
    found = rank_correlations(accuracy_and_gaps(*models_and_gaps([0.5, 0.6], [1, 2])))
    assert found.rho.isna().all()
    assert set(found.text) == {"2 models: too few to say."}
    same = rank_correlations(accuracy_and_gaps(*models_and_gaps([0.5] * 6, range(6))))
    assert same.rho.isna().all()
    assert set(same.text) == {"6 models, all alike: nothing to rank."}
    classification, trials, frame = models_and_gaps([0.5], [1])
    assert accuracy_and_gaps(classification, trials, frame[frame.control == "none"]).empty
    assert rank_correlations(accuracy_and_gaps(classification, trials, frame.iloc[:0])).empty
