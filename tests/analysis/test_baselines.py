"""Fills as baselines on hand-made validation scores, and the primary fill that follows."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import primary
from cxr_ray.analysis.baselines import baseline_rows, sentence
from cxr_ray.schemas import BASELINES
from cxr_ray.sweepfile import resolve


def scores(logits, **filled):
    """(predictions, filled) of images that score so untouched and, wholly filled, so by fill."""
    ids = [f"i{n}" for n in range(len(logits))]
    predictions = pd.DataFrame(
        {"image_id": ids, "logit_pneumonia": logits, "predicted": (np.array(logits) >= 0).astype(int)}
    )
    rows = [
        {"image_id": i, "fill": fill, "logit_pneumonia": z}
        for fill, of_fill in filled.items()
        for i, z in zip(ids, of_fill, strict=True)
    ]
    return predictions, pd.DataFrame(rows)


def rows_of(logits, rules=("pneumonia", "predicted"), trial_id="m", **filled):
    predictions, frame = scores(logits, **filled)
    patients = pd.Series({i: f"p{i}" for i in predictions["image_id"]})
    rows = baseline_rows(trial_id, predictions, frame, patients, target_rules=rules, fills=list(filled))
    assert len(BASELINES.from_rows(rows)) == len(rules) * len(filled)
    return rows


def by_key(rows):
    return {(r["target_rule"], r["fill"]): r for r in rows}


def test_a_fill_is_valid_where_the_filled_image_scores_one_log_odds_below():
    found = by_key(rows_of([2.0, 3.0, -1.0], black=[1.0, 0.0, -9.0], mean=[2.0, 2.1, -9.0]))
    black, mean = found["pneumonia", "black"], found["pneumonia", "mean"]
    assert (black["n"], black["n_valid"], black["share"], black["valid"]) == (2, 2, 1.0, True)
    assert black["mean_drop"] == pytest.approx(2.0)
    assert (mean["n"], mean["n_valid"], mean["share"], mean["valid"]) == (2, 0, 0.0, False)
    assert np.isnan(black["lower"])  # under 20 patients


def test_towards_the_predicted_class_all_images_count_each_with_its_own_sign():
    predicted = by_key(rows_of([2.0, 3.0, -4.0], black=[-1.0, 0.0, -6.0]))["predicted", "black"]
    assert (predicted["n"], predicted["n_valid"]) == (3, 2)  # the third rises towards NORMAL, 4 to 6
    assert predicted["mean_drop"] == pytest.approx((3 + 3 - 2) / 3)


def test_nineteen_of_twenty_do_and_eighteen_do_not():
    for wrong, valid in ((1, True), (2, False)):
        row = by_key(rows_of([5.0] * 20, black=[5.0] * wrong + [0.0] * (20 - wrong)))["pneumonia", "black"]
        assert row["valid"] is valid
        assert row["lower"] < row["share"] < row["upper"]


def test_without_an_image_that_is_predicted_pneumonia_no_fill_is_valid():
    row = by_key(rows_of([-5.0], black=[-9.0]))["pneumonia", "black"]
    assert (row["n"], row["share"], row["valid"]) == (0, None, False)


def sweep(**perturb):
    fills = {"fills": ["mean", "black", "blur"], "levels": [0.25, 0.5, 0.75]}
    return resolve({"data": {"source": "phantom", "size": 64}, "perturb": {**fills, **perturb}})


def chosen(config, *models):
    rows = [row for n, shares in enumerate(models) for row in made(f"m{n}", shares)]
    return primary.with_baselines(primary.resolve(config), config, rows)


def made(trial_id, shares, n=20):
    """Rows of one model, of 20 images each, these shares of which are valid by fill."""
    filled = {fill: [0.0] * round(share * n) + [5.0] * round((1 - share) * n) for fill, share in shares.items()}
    return rows_of([5.0] * n, trial_id=trial_id, **filled)


def test_the_primary_fill_is_the_first_that_is_valid_for_every_model():
    settings = chosen(sweep(), {"mean": 0, "black": 1, "blur": 1}, {"mean": 1, "black": 0.5, "blur": 1})
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("blur", "abpc", True)
    settings = chosen(sweep(), {"mean": 0, "black": 1, "blur": 1})
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("black", "abpc", True)
    assert settings.shows("insertion_auc")


def test_without_a_valid_fill_deletion_alone_is_primary_under_the_fill_that_comes_nearest():
    models = {"mean": 0.9, "black": 0.2, "blur": 0.5}, {"mean": 0.1, "black": 0.8, "blur": 0.5}
    settings = chosen(sweep(), *models)
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("blur", "deletion_auc", False)
    assert [m for m in ("deletion_auc", "insertion_auc", "abpc", "drop") if settings.shows(m)] == [
        "deletion_auc",
        "drop",
    ]
    assert chosen(sweep(levels=[0.25]), *models).metric == "drop"
    alone = chosen(sweep(orders=["lerf"]), *models)
    assert (alone.metric, alone.baseline_valid) == ("insertion_auc", False)
    assert alone.shows("insertion_auc")  # else nothing would be


def test_a_single_fill_that_is_invalid_stays_and_leads_to_deletion():
    settings = chosen(sweep(fills=["mean"]), {"mean": 0})
    assert (settings.fill, settings.metric, settings.baseline_valid) == ("mean", "deletion_auc", False)


def test_a_model_without_an_image_to_judge_by_says_nothing_of_the_fills():
    config = sweep(fills=["mean", "black"])
    rows = [*made("m", {"mean": 0, "black": 1}), *rows_of([-5.0], trial_id="none", mean=[-9.0], black=[-9.0])]
    assert primary.with_baselines(primary.resolve(config), config, rows).fill == "black"
    none = rows_of([-5.0], mean=[-9.0], black=[-9.0])
    assert primary.with_baselines(primary.resolve(config), config, none).baseline_valid is False


def test_the_primary_target_rule_decides():
    rows = rows_of([5.0, -5.0], rules=("pneumonia", "predicted"), mean=[0.0, -5.0], black=[0.0, 0.0])
    for targets, fill in ((["pneumonia", "predicted"], "mean"), (["predicted"], "black")):
        config = sweep(fills=["mean", "black"]).model_copy()
        config = config.model_copy(update={"explain": config.explain.model_copy(update={"targets": targets})})
        assert primary.with_baselines(primary.resolve(config), config, rows).fill == fill


def test_the_choice_is_said_with_its_counts():
    assert sentence(made("m", {"mean": 1}), "pneumonia", "mean") == (
        "Filled with mean, the image scores at least 1 log-odds below the untouched one for 20 of 20 validation images "
        "of m: a valid baseline, and the primary fill."
    )
    assert "for 10 of 20 validation images of m: no fill" in sentence(made("m", {"mean": 0.5}), "pneumonia", "mean")
