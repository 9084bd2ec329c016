"""Oracle: scikit-learn, for the estimates by hand and for every bootstrap sample through sample_weight."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from cxr_ray.analysis import classification, resampling
from cxr_ray.analysis.classification import METRICS, classification_rows
from cxr_ray.analysis.resampling import bootstrap_weights, patient_codes
from cxr_ray.schemas import CLASSIFICATION


def predictions(n=120, split="test", seed=0, n_patients=50, decimals=1):
    """Images of a fair model; log-odds are rounded, so that scores tie."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    logit = np.round(rng.normal(2 * label - 0.7, 1.5), decimals).astype(np.float32)
    prob = 1 / (1 + np.exp(-logit))
    return pd.DataFrame(
        {
            "image_id": [f"{split}{i:04d}" for i in range(n)],
            "split": split,
            "label": label,
            "prob_pneumonia": prob.astype(np.float32),
            "logit_pneumonia": logit,
            "predicted": (prob >= 0.5).astype(int),
            "outcome": np.array([["TN", "FP"], ["FN", "TP"]])[label, (prob >= 0.5).astype(int)],
            "patient_id": [f"p{p}" for p in rng.integers(0, n_patients, n)],
        }
    )


def both_splits():
    return pd.concat([predictions(60, "val", 1), predictions()])


def by_key(rows):
    return {(r["split"], r["threshold_rule"]): r for r in rows}


def test_rows_fit_the_schema():
    rows = classification_rows(both_splits(), "plain-1", 0, 200)
    assert all(set(r) == set(CLASSIFICATION.columns) for r in rows)
    assert [(r["split"], r["threshold_rule"]) for r in rows] == [
        (s, t) for s in ("val", "test") for t in ("half", "youden", "sens95")
    ]
    table = CLASSIFICATION.from_rows(rows)
    assert table["auroc_lower"].null_count == 0
    assert table["trial_id"].to_pylist() == ["plain-1"] * 6


def test_estimates_are_those_of_scikit_learn():
    frame = predictions()
    row = by_key(classification_rows(frame, "t", 0, 50))["test", "half"]
    y, p, hat = frame["label"], frame["prob_pneumonia"], frame["predicted"]
    expected = {
        "accuracy": metrics.accuracy_score(y, hat),
        "auroc": metrics.roc_auc_score(y, p),
        "auprc": metrics.average_precision_score(y, p),
        "sensitivity": metrics.recall_score(y, hat),
        "specificity": metrics.recall_score(y, hat, pos_label=0),
        "f1": metrics.f1_score(y, hat),
        "brier": metrics.brier_score_loss(y, p),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert (row["n"], row["n_patients"]) == (120, frame["patient_id"].nunique())


def test_bootstrap_samples_are_those_of_scikit_learn_with_weights():
    frame = predictions()
    codes, n_patients = patient_codes(frame["patient_id"])
    weights = bootstrap_weights(n_patients, 20, 3)
    y, hat = frame["label"].to_numpy(), frame["predicted"].to_numpy()
    p, logit = (frame[c].to_numpy(float) for c in ("prob_pneumonia", "logit_pneumonia"))
    samples = classification._threshold_free_samples(weights, codes, y, p, logit)
    samples |= classification._at_threshold_samples(weights, codes, y, hat)
    for b, weight in enumerate(weights[:, codes]):
        drawn = np.repeat(np.arange(len(y)), weight.astype(int))
        expected = {
            "auroc": metrics.roc_auc_score(y, logit, sample_weight=weight),
            "auprc": metrics.average_precision_score(y, logit, sample_weight=weight),
            "brier": metrics.brier_score_loss(y, p, sample_weight=weight),
            "ece": classification.expected_calibration_error(y[drawn], p[drawn]),
            "accuracy": metrics.accuracy_score(y, hat, sample_weight=weight),
            "sensitivity": metrics.recall_score(y, hat, sample_weight=weight),
            "specificity": metrics.recall_score(y, hat, pos_label=0, sample_weight=weight),
            "f1": metrics.f1_score(y, hat, sample_weight=weight),
        }
        assert {name: samples[name][b] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_intervals_hold_the_estimate_and_repeat():
    rows = classification_rows(both_splits(), "t", 7)
    for row in rows:
        for name in set(METRICS) - {"ece"}:  # noise only adds to an ECE, so that resampling raises it
            assert row[f"{name}_lower"] <= row[name] <= row[f"{name}_upper"]
    assert rows == classification_rows(both_splits().sample(frac=1, random_state=0), "t", 7)


def test_thresholds_by_hand():
    label = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    prob = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    # At 0.4: 4/4 and 3/4; at 0.7: 3/4 and 4/4. Both sum to 1.75, and the higher threshold stands.
    assert classification.thresholds(label, prob) == {"half": 0.5, "youden": 0.7, "sens95": 0.4}


def test_a_sensitivity_of_exactly_95_percent_is_enough():
    label, prob = np.array([0] + [1] * 20), np.linspace(0, 1, 21)
    assert classification.thresholds(label, prob)["sens95"] == pytest.approx(0.1)  # 19 of 20


def test_thresholds_come_from_val_and_apply_to_both_splits():
    val, test = predictions(200, "val", 1), predictions()
    rows = by_key(classification_rows(pd.concat([val, test]), "t", 0, 20))
    for rule in ("youden", "sens95"):
        threshold = rows["val", rule]["threshold"]
        assert threshold == rows["test", rule]["threshold"]
        assert threshold in set(val["prob_pneumonia"].astype(float))
        assert rows["test", rule]["accuracy"] == pytest.approx(
            np.mean((test["prob_pneumonia"] >= threshold) == test["label"])
        )
    assert rows["val", "sens95"]["sensitivity"] >= 0.95
    youden = rows["val", "youden"]
    for cut in val["prob_pneumonia"].unique():
        hat = val["prob_pneumonia"] >= cut
        other = metrics.recall_score(val["label"], hat) + metrics.recall_score(val["label"], hat, pos_label=0)
        assert youden["sensitivity"] + youden["specificity"] >= other - 1e-9


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nulls_not_errors(label):
    frame = predictions().assign(label=label)
    (row,) = classification_rows(frame, "t", 0, 100)
    assert [row[f"{m}{end}"] for m in ("auroc", "auprc") for end in ("", "_lower", "_upper")] == [None] * 6
    assert row["sensitivity" if label == 0 else "specificity"] is None
    assert row["specificity" if label == 0 else "sensitivity"] == row["accuracy"]
    assert row["ece_lower"] is not None


def test_a_val_split_of_one_class_chooses_no_threshold():
    rows = classification_rows(pd.concat([predictions(40, "val").assign(label=1), predictions()]), "t", 0, 20)
    assert [(r["split"], r["threshold_rule"]) for r in rows] == [("val", "half"), ("test", "half")]


def test_no_interval_under_twenty_patients():
    (row,) = classification_rows(predictions(n_patients=19), "t", 0, 100)
    assert row["n_patients"] == 19
    assert row["auroc"] is not None
    assert [row[f"{m}_lower"] for m in METRICS] == [None] * len(METRICS)


def test_samples_of_one_class_are_left_out():
    frame = predictions().sort_values("label").assign(label=lambda f: (np.arange(len(f)) == 0).astype(int))
    frame["patient_id"] = [f"p{i}" for i in range(len(frame))]
    (row,) = classification_rows(frame, "t", 0)  # a third of the samples miss the one patient with PNEUMONIA
    assert row["auroc_lower"] <= row["auroc"] <= row["auroc_upper"]


def test_a_score_that_is_not_a_number_leaves_the_image_out():
    frame = predictions()
    frame.loc[3, ["prob_pneumonia", "logit_pneumonia"]] = np.nan
    (row,) = classification_rows(frame, "t", 0, 20)
    assert row["n"] == 119
    assert classification_rows(frame.iloc[[3]], "t", 0, 20) == []


def test_calibration_error_by_hand():
    # 15 bins: 0.01 and 0.06 share the first, 0.07 is in the second, 1.0 in the last.
    prob, label = np.array([0.01, 0.06, 0.07, 1.0]), np.array([0, 1, 0, 1])
    assert classification.expected_calibration_error(label, prob) == pytest.approx((0.93 + 0.07 + 0) / 4)


def test_auroc_ranks_by_log_odds_where_probabilities_saturate():
    frame = predictions(40).assign(prob_pneumonia=np.float32(1))
    frame["logit_pneumonia"] = 20 + frame["label"] + np.linspace(0, 0.5, 40)
    (row,) = classification_rows(frame, "t", 0, 20)
    assert row["auroc"] == 1


def test_a_share_of_one_has_an_exact_interval_and_what_is_no_share_has_none():
    """Twenty patients of each class with two images each, all separated: 0.025 ** (1 / 20) by Clopper and Pearson."""
    label = np.repeat([0, 1], 40)
    logit = np.where(label == 1, 3.0, -3.0) + np.linspace(0, 1, 80)
    frame = pd.DataFrame(
        {
            "image_id": [f"{i:03d}" for i in range(80)],
            "patient_id": [f"p{i // 2}" for i in range(80)],
            "split": "test",
            "label": label,
            "logit_pneumonia": logit,
            "prob_pneumonia": 1 / (1 + np.exp(-logit)),
        }
    )
    (row,) = classification_rows(frame, "m", seed=0)
    for name, n in (("sensitivity", 20), ("specificity", 20), ("accuracy", 40)):
        assert row[f"{name}_lower"] == pytest.approx(0.025 ** (1 / n))
        assert (row[name], row[f"{name}_upper"]) == (1, 1)
    for name in ("auroc", "auprc", "f1"):
        assert (row[name], row[f"{name}_lower"], row[f"{name}_upper"]) == (1, None, None)
    assert row["brier_lower"] < row["brier"] < row["brier_upper"]
    wrong = frame.assign(prob_pneumonia=1 - frame["prob_pneumonia"], logit_pneumonia=-logit)
    (row,) = classification_rows(wrong, "m", seed=0)
    assert (row["specificity_lower"], row["specificity"]) == (0, 0)
    assert row["specificity_upper"] == pytest.approx(1 - 0.025 ** (1 / 20))


def test_samples_drawn_in_pieces_give_the_same_rows(monkeypatch):
    whole = classification_rows(both_splits(), "t", 7)
    monkeypatch.setattr(resampling, "_BLOCK", 5000)
    in_pieces = classification_rows(both_splits(), "t", 7)
    pd.testing.assert_frame_equal(pd.DataFrame(in_pieces), pd.DataFrame(whole), rtol=1e-12)
