"""A trial small enough to count by hand, and larger ones against cxr_ray.analysis.resampling, cell by cell."""

import itertools

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import resampling as stats
from tests.builders.faithfulness import faithfulness_of, images_of, one, summary_of


@pytest.fixture
def tiny():
    """Six images: TP i0 i1 i2 (i0 and i1 of one patient), FP i3, TN i4, FN i5; gaps 1 to 6, values ten times that."""
    predictions, images = images_of(["TP", "TP", "TP", "FP", "TN", "FN"], patients=["a", "a", "b", "c", "d", "e"])
    faithfulness = faithfulness_of(predictions)
    gaps = faithfulness["image_id"].str[1:].astype(int) + 1.0
    none = faithfulness["control"] == "none"
    faithfulness["value"] = 10 * gaps
    faithfulness["gap"] = np.where(none, np.nan, gaps)
    faithfulness["win_rate"] = np.where(none, np.nan, [1.0, 0.4, 0.8, 1.0, 1.0, 0.0] * 2)
    return faithfulness, predictions, images


def test_means_counts_and_tests_by_hand(tiny):
    frame = summary_of(*tiny)
    tp = one(frame, bucket="TP", control="shifted")
    assert (tp["mean"], tp["n"], tp["n_patients"], tp["n_null"], tp["draws"]) == (2, 3, 2, 0, 5)
    assert tp["win_rate"] == pytest.approx(0.5 + 0.7 / 3)
    assert tp["p"] == pytest.approx(1 / 4)  # patients' sums .4 and .3: of four flips only one reaches .7
    assert np.isnan(tp["lower"])  # two patients
    assert (tp["variant"], tp["seed"], tp["cluster"], tp["alternative"]) == ("plain", 3, "patient", "greater")

    none = one(frame, bucket="TP", control="none")
    assert (none["mean"], none["draws"]) == (20, 0)
    assert pd.isna([none[c] for c in ("test", "alternative", "p", "family", "family_size", "p_holm", "win_rate")]).all()

    assert {b: one(frame, bucket=b, control="shifted")["mean"] for b in ("correct", "wrong", "all")} == {
        "correct": 11 / 4,
        "wrong": 5,
        "all": 3.5,
    }
    contrast = one(frame, bucket="correct-wrong", contrast=True, control="shifted")
    assert (contrast["mean"], contrast["n"], contrast["n_patients"]) == (-2.25, 6, 5)
    assert pd.isna([contrast[c] for c in ("test", "p", "family", "p_holm", "win_rate")]).all()


def test_empty_buckets_have_no_rows():
    predictions, images = images_of(["TP", "TP", "TN"])
    frame = summary_of(faithfulness_of(predictions), predictions, images)
    assert set(frame["bucket"]) == {"TP", "TN", "correct", "all"}


def test_no_rows_without_faithfulness(tiny):
    faithfulness, predictions, images = tiny
    assert summary_of(faithfulness.iloc[:0], predictions, images).empty


def test_images_without_a_value_are_counted_not_averaged(tiny):
    faithfulness, predictions, images = tiny
    hit = faithfulness["image_id"] == "i0001"
    faithfulness.loc[hit, ["value", "gap", "win_rate"]] = np.nan  # a map that is not finite
    faithfulness = faithfulness.loc[faithfulness["image_id"] != "i0003"]  # an image that could not be explained
    frame = summary_of(faithfulness, predictions, images)
    for control, mean in (("shifted", 2), ("none", 20)):
        row = one(frame, bucket="TP", control=control)
        assert (row["mean"], row["n"], row["n_null"], row["n_patients"]) == (mean, 2, 1, 2)
        lost = one(frame, bucket="FP", control=control)
        assert (lost["n"], lost["n_null"], lost["n_patients"]) == (0, 1, 0)
        assert np.isnan(lost["mean"])
    assert np.isnan(one(frame, bucket="FP", control="shifted")["p"])
    assert one(frame, bucket="FP", control="shifted")["family_size"] == 0


def test_degenerate_maps_stay_in_the_mean_and_are_counted(tiny):
    faithfulness, predictions, images = tiny
    degenerate = pd.DataFrame(
        {
            "explainer": ["gradcam", "gradcam", "gradcam", "occlusion", "gradcam"],
            "image_id": ["i0000", "i0001", "i0002", "i0002", "i0004"],
            "target": [1, 1, 0, 1, 1],  # i0002's is of the other target
            "degenerate": [True, False, True, True, True],
        }
    )
    frame = summary_of(faithfulness, predictions, images, degenerate)
    counts = {b: one(frame, bucket=b, control="shifted")["n_degenerate"] for b in ("TP", "FP", "TN", "all")}
    assert counts == {"TP": 1, "FP": 0, "TN": 1, "all": 2}
    assert one(frame, bucket="TP", control="shifted")["mean"] == 2
    faithfulness.loc[faithfulness["image_id"] == "i0000", "gap"] = np.nan  # a degenerate map without a value
    assert (
        one(summary_of(faithfulness, predictions, images, degenerate), bucket="all", control="shifted")["n_degenerate"]
        == 1
    )


def test_target_rules_choose_the_rows():
    predictions, images = images_of(["TP", "FP", "TN", "FN"])
    faithfulness = faithfulness_of(predictions, target=(0, 1))
    faithfulness["gap"] = np.where(faithfulness["control"] == "none", np.nan, faithfulness["target"])
    frame = summary_of(faithfulness, predictions, images, rules=["pneumonia", "predicted"])
    means = frame.loc[(frame["control"] == "shifted") & ~frame["contrast"]].set_index(["target_rule", "bucket"])["mean"]
    assert means["pneumonia"].eq(1).all()
    assert means["predicted"][["TP", "FP", "TN", "FN", "all"]].tolist() == [1, 1, 0, 0, 0.5]


def many(n=200, **kwargs):
    rng = np.random.default_rng(1)
    outcomes = rng.choice(["TP", "FP", "TN", "FN"], n, p=[0.35, 0.2, 0.25, 0.2])
    logits = rng.normal(0, 2, n)
    logits = np.where(np.isin(outcomes, ["TP", "FP"]), abs(logits), -abs(logits))
    predictions, images = images_of(outcomes, logits, [f"p{p}" for p in rng.integers(0, 110, n)])
    return faithfulness_of(predictions, **kwargs), predictions, images


def test_one_cell_is_that_of_stats():
    faithfulness, predictions, images = many(explainer=("gradcam", "occlusion"))
    frame = summary_of(faithfulness, predictions, images, n_boot=1000)
    row = one(frame, bucket="TP", control="shifted", explainer="occlusion")
    cell = faithfulness.merge(images).query("outcome == 'TP' and control == 'shifted' and explainer == 'occlusion'")
    gaps, u, patients = cell[["gap"]].to_numpy(), cell[["win_rate"]].to_numpy() - 0.5, cell["patient_id"]
    lower, upper = stats.patient_bootstrap(gaps, patients, seed=0)
    assert row["mean"] == pytest.approx(gaps.mean(), abs=1e-6)
    assert (row["lower"], row["upper"]) == pytest.approx((lower[0], upper[0]), abs=1e-6)
    assert row["p"] == pytest.approx(stats.sign_flip(u, patients, seed=0)[0], abs=1e-6)
    assert row["win_rate"] == pytest.approx(u.mean() + 0.5, abs=1e-6)


def test_contrast_is_the_difference_of_the_buckets():
    faithfulness, predictions, images = many()
    frame = summary_of(faithfulness, predictions, images)
    for (first, second), control in itertools.product(
        [("TP", "FP"), ("TN", "FN"), ("correct", "wrong")], ["none", "shifted"]
    ):
        a, b = (one(frame, bucket=x, control=control) for x in (first, second))
        contrast = one(frame, bucket=f"{first}-{second}", contrast=True, control=control)
        assert contrast["mean"] == pytest.approx(a["mean"] - b["mean"], abs=1e-5)
        assert contrast["n"] == a["n"] + b["n"]
        assert contrast["lower"] < contrast["mean"] < contrast["upper"]


def test_matched_contrast_uses_the_pairs_of_stats():
    faithfulness, predictions, images = many()
    frame = summary_of(faithfulness, predictions, images)
    row = one(frame, bucket="TN-FN", contrast=True, matched=True, control="shifted")
    gaps = faithfulness.query("control == 'shifted'").set_index("image_id")["gap"]
    tn, fn = (predictions.query(f"outcome == '{o}'") for o in ("TN", "FN"))
    pairs = stats.matched_pairs(tn["logit_pneumonia"], fn["logit_pneumonia"])
    assert 0 < len(pairs) < min(len(tn), len(fn))
    expected = gaps[tn["image_id"].iloc[pairs[:, 0]]].mean() - gaps[fn["image_id"].iloc[pairs[:, 1]]].mean()
    assert row["mean"] == pytest.approx(expected, abs=1e-6)
    assert row["n"] == 2 * len(pairs)


def test_predicted_rule_matches_on_the_predicted_class():
    # Far apart in the log-odds of PNEUMONIA, but each as sure of its own class as the other.
    predictions, images = images_of(["TP", "FN"], logits=[1.0, -1.1])
    frame = summary_of(
        faithfulness_of(predictions, target=(0, 1)), predictions, images, rules=["pneumonia", "predicted"]
    )
    matched = frame.loc[frame["matched"] & (frame["control"] == "shifted")].set_index("target_rule")
    assert matched["n"].to_dict() == {"pneumonia": 0, "predicted": 2}
    assert np.isnan(matched.loc["pneumonia", "mean"])


def test_a_pair_with_a_null_is_left_out_whole():
    predictions, images = images_of(["TP", "TP", "FP", "FP"], logits=[1.0, 3.0, 1.1, 3.1])
    faithfulness = faithfulness_of(predictions, control=("shifted",))
    faithfulness["gap"] = [1.0, 5.0, 2.0, np.nan]
    row = one(summary_of(faithfulness, predictions, images), bucket="TP-FP", contrast=True, matched=True)
    assert (row["mean"], row["n"], row["n_null"]) == (-1, 2, 1)


def test_absolute_areas_need_a_valid_baseline():
    metrics = (("abpc", np.nan), ("deletion_auc", np.nan), ("drop", 0.25))
    faithfulness, predictions, images = many(metric=metrics)
    tp = predictions.loc[predictions["outcome"] == "TP", "image_id"]
    faithfulness.loc[faithfulness["image_id"].isin(tp.iloc[: len(tp) // 10]), "baseline_valid"] = False
    frame = summary_of(faithfulness, predictions, images)
    frame = frame.assign(hidden=frame["mean"].isna(), bare=frame["lower"].isna())
    plain = frame.loc[~frame["matched"]]
    should = (
        (plain["control"] == "none")
        & (plain["metric"] != "drop")
        & plain["bucket"].isin(["TP", "TP-FP", "correct", "correct-wrong"])
    )
    np.testing.assert_array_equal(plain["hidden"], should)
    np.testing.assert_array_equal(plain["bare"], should)
    assert one(frame, bucket="TP", control="none", metric="abpc")["n"] == len(tp)
    assert not one(frame, bucket="all", control="none", metric="abpc")["hidden"]  # 7 of 200 images


def test_overlap_is_its_mean_over_a_buckets_images_and_null_where_no_map_enters():
    faithfulness, predictions, images = many(control=("none", "shifted", "cell_random"))
    faithfulness.loc[faithfulness.control == "cell_random", "overlap"] = np.nan
    frame = summary_of(faithfulness, predictions, images)
    cell = faithfulness.query("outcome == 'TP' and control == 'shifted'")
    assert one(frame, bucket="TP", control="shifted")["overlap"] == pytest.approx(cell.overlap.mean(), abs=1e-6)
    assert frame[frame.contrast | frame.control.isin(["none", "cell_random"])].overlap.isna().all()


def test_families_are_explainers_by_controls():
    faithfulness, predictions, images = many(
        explainer=("gradcam", "occlusion", "saliency"),
        control=("none", "shifted", "cell_random"),
        grid=("14", "pixel"),
        metric=(("abpc", np.nan), ("drop", 0.1), ("drop", 0.25)),
        scale=("prob", "logodds"),
    )
    only_cam = (faithfulness["explainer"] != "gradcam") & (faithfulness["control"] == "cell_random")
    frame = summary_of(faithfulness.loc[~only_cam], predictions, images)
    tests = frame.loc[frame["test"].notna()]
    assert (tests["family_size"] == 4).all()
    families = tests.groupby("family")
    assert (families.size() == 4).all()
    fixed = ["bucket", "grid", "fill", "metric", "level", "scale"]
    assert (families[fixed].nunique(dropna=False) == 1).all(axis=None)
    assert families.ngroups == 7 * 2 * 3 * 2
    for _, family in families:
        np.testing.assert_allclose(family["p_holm"], stats.holm(family["p"]), rtol=1e-6)
    assert "explainer x control | plain-1, TP, pneumonia, 14, mean, drop at 0.25, prob" in families.groups


def test_order_of_rows_changes_nothing():
    faithfulness, predictions, images = many(explainer=("gradcam", "occlusion"))
    shuffled = [f.sample(frac=1, random_state=i) for i, f in enumerate((faithfulness, predictions, images))]
    pd.testing.assert_frame_equal(summary_of(*shuffled), summary_of(faithfulness, predictions, images))


def test_other_splits_are_left_out(tiny):
    faithfulness, predictions, images = tiny
    val = predictions.assign(split="val", image_id="v" + predictions["image_id"])
    frame = summary_of(faithfulness, pd.concat([predictions, val]), images)
    assert one(frame, bucket="all", control="shifted")["n"] == 6


def test_mistakes_are_named(tiny):
    faithfulness, predictions, images = tiny
    with pytest.raises(ValueError, match="got the target rule 'label'; expected pneumonia or predicted"):
        summary_of(faithfulness, predictions, images, rules=["label"])
    with pytest.raises(ValueError, match="1 images are not in `images`, such as i0000"):
        summary_of(faithfulness, predictions, images.iloc[1:])
    with pytest.raises(ValueError, match="has image i0000, which is not in the test split"):
        summary_of(faithfulness, predictions.iloc[1:], images)
    with pytest.raises(ValueError, match="holds a row twice"):
        summary_of(pd.concat([faithfulness, faithfulness.iloc[:1]]), predictions, images)
