"""Accuracy and faithfulness that rise together, over models."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from cxr_ray.analysis.agreement.accuracy import (
    accuracy_and_gaps,
    accuracy_rows,
    rank_correlations,
    sentence,
)
from cxr_ray.analysis.primary import PrimarySettings
from cxr_ray.measure.controls import strong_first
from cxr_ray.schemas import AGREEMENT
from tests.builders.summaries import EXPLAINERS, summary

PRIMARY = PrimarySettings(
    metric="abpc",
    scale="logodds",
    directions=("morf", "lerf"),
    grid="pixel",
    first_grid="pixel",
    fill="mean",
    target_rule="pneumonia",
    explainer="gradcam",
    level=0.25,
)


def models_and_gaps(accuracies, gaps):
    """Tables of as many models; the gap of gradcam to shifted in the first setting is the one given."""
    names = [f"m{i}" for i in range(len(gaps))]
    classification = pd.DataFrame(
        [
            {
                "trial_id": n,
                "split": split,
                "threshold_rule": rule,
                "n_patients": 20,
                **{
                    f"{m}{end}": a + (split == "val") + shift
                    for m in ("accuracy", "auroc")
                    for end, shift in (("", 0), ("_lower", -0.1), ("_upper", 0.1))
                },
            }
            for n, a in zip(names, accuracies, strict=True)
            for split in ("val", "test")
            for rule in ("half", "youden")
        ]
    )
    trials = pd.DataFrame({"trial_id": [*names, "failed"], "variant": "plain", "seed": range(len(names) + 1)})
    first = {"target_rule": "pneumonia", "grid": "pixel", "fill": "mean", "scale": "logodds", "control": "shifted"}

    def gap(own):
        def of(i, row):
            return own if i == 0 and row["metric"] == "abpc" and first.items() <= row.items() else 99.0

        return of

    frames = [summary(gap(g), n) for n, g in zip(names, gaps, strict=True)]
    return classification, trials, pd.concat(frames), PRIMARY


def test_accuracy_stands_beside_the_gap_to_one_control():
    found = accuracy_and_gaps(*models_and_gaps([0.7, 0.8, 0.9], [1.0, 3.0, 2.0]))
    assert len(found) == 3 * len(EXPLAINERS)
    assert set(found.control) == {"shifted"}
    assert list(found[found.explainer == "gradcam"].gap) == [1.0, 3.0, 2.0]
    assert list(found[found.explainer == "gradcam"].accuracy) == [0.7, 0.8, 0.9]
    assert strong_first(["pixel_random", "shifted", "other_image"]) == ["other_image", "shifted", "pixel_random"]
    rho = rank_correlations(found).set_index(["explainer", "performance"]).loc["gradcam"]
    assert list(rho.rho) == [pytest.approx(0.5)] * 2
    assert rho.p.isna().all()
    assert sentence(3, rho.rho.iloc[0], rho.p.iloc[0]) == "3 models: rho 0.50; too few for a p-value."


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
    assert sentence(2, np.nan, np.nan) == "2 models: too few to say."
    same = rank_correlations(accuracy_and_gaps(*models_and_gaps([0.5] * 6, range(6))))
    assert same.rho.isna().all()
    assert sentence(6, np.nan, np.nan) == "6 models, all alike: nothing to rank."
    classification, trials, frame, _ = models_and_gaps([0.5], [1])
    assert accuracy_and_gaps(classification, trials, frame[frame.control == "none"], PRIMARY).empty
    assert rank_correlations(accuracy_and_gaps(classification, trials, frame.iloc[:0], PRIMARY)).empty


def test_rows_of_variants_are_means_with_their_range():
    models = accuracy_and_gaps(*models_and_gaps([0.5, 0.75, 1.0], [1.0, 3.0, 5.0])).query("explainer == 'gradcam'")
    rows = [r for r in accuracy_rows(models) if r["kind"] == "variants"]
    assert {r["axis"]: (r["value"], r["low"], r["high"], r["n"]) for r in rows} == {
        "accuracy": (0.75, 0.5, 1.0, 3),
        "auroc": (0.75, 0.5, 1.0, 3),
        "gap": (3.0, 1.0, 5.0, 3),
    }
    assert {(r["subject"], r["a"], r["b"], r["grid"], r["metric"]) for r in rows} == {
        ("plain", "gradcam", "shifted", "pixel", "abpc")
    }


def test_rows_of_accuracy_are_rank_correlations_over_models():
    rows = accuracy_rows(accuracy_and_gaps(*models_and_gaps([0.5, 0.6, 0.7, 0.8, 0.9], [1, 2, 3, 4, 5])))
    assert len(AGREEMENT.from_rows(rows).to_pandas().drop_duplicates(list(AGREEMENT.key))) == len(rows)
    first = next(r for r in rows if r["kind"] == "accuracy" and r["subject"] == "gradcam")
    assert (first["axis"], first["value"], first["n"]) == ("accuracy", 1.0, 5)
    assert first["p"] == pytest.approx(2 / 120)


def test_one_model_has_no_rows():
    assert accuracy_rows(accuracy_and_gaps(*models_and_gaps([0.5], [1]))) == []
