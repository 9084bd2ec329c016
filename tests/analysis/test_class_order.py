"""A model that ranks the two classes the wrong way round is asked about, by every kind of head."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis import class_order


def trial(status="given", **config):
    return {"trial_id": "m", "status": status, "checkpoint": "m.pt", "config": json.dumps(config)}


def rows(**aurocs):
    bounds = {"auroc_lower": 0.05, "auroc_upper": 0.21}
    return pd.DataFrame([{"trial_id": "m", "split": s, "auroc": a, "n": 40, **bounds} for s, a in aurocs.items()])


def texts(aurocs, **of_trial):
    return [q.text for q in class_order.questions(aurocs, pd.DataFrame([trial(**of_trial)]))]


def test_a_question_names_auroc_interval_images_and_the_key():
    (text,) = texts(rows(val=0.123, test=0.9), outputs=2, columns=None)
    assert "0.123 [0.050, 0.210] on 40 validation images" in text
    assert "checkpoints.m.outputs to {NORMAL: [1], PNEUMONIA: [0]}" in text
    assert text.count("?") == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"outputs": 1, "columns": None}, "{NORMAL: [0]}"),
        ({"outputs": 1, "columns": [[0], []]}, "{PNEUMONIA: [0]}"),
        ({"outputs": 2, "columns": [[1], [0]]}, "{NORMAL: [0], PNEUMONIA: [1]}"),
        ({"outputs": 14, "columns": [[], [6]]}, "{NORMAL: [6]}"),
        ({"outputs": 3, "columns": [[0], [1, 2]]}, "which of its outputs stand for which class"),
        ({}, "{NORMAL: [1], PNEUMONIA: [0]}"),
    ],
)
def test_what_turns_the_classes_round_fits_the_head(config, expected):
    (text,) = texts(rows(test=0.2), **config)
    assert expected in text


def test_nothing_is_asked_from_the_bound_on_or_without_an_auroc():
    assert texts(rows(val=0.4, test=0.5)) == []
    assert texts(rows(val=math.nan)) == []
    assert texts(pd.DataFrame()) == []


def test_a_given_model_is_asked_about_once_and_on_test_where_validation_says_nothing():
    assert len(texts(rows(val=0.1, test=0.1))) == 1
    (text,) = texts(rows(val=0.9, test=0.39))
    assert "on 40 test images" in text


def test_a_trained_network_is_asked_about_its_labels_on_validation_alone():
    (text,) = texts(rows(val=0.1), status="completed", train={"labels": "given"})
    assert "labels of train" in text
    assert "outputs" not in text
    assert texts(rows(test=0.1), status="completed", train={"labels": "given"}) == []


def test_nothing_is_asked_of_a_network_that_was_trained_on_shuffled_labels():
    assert texts(rows(val=0.1), status="completed", train={"labels": "shuffled"}) == []


def test_validation_alone_gives_the_question_before_test_is_scored():
    scores = [5.0, 4.0, 3.0, 2.0, 1.0, -1.0, -2.0, math.nan]
    predictions = pd.DataFrame({"label": [0, 0, 0, 0, 1, 1, 1, 1], "logit_pneumonia": scores})
    (text,) = class_order.of_validation(trial(), predictions)
    assert "AUROC of 0.000 on 7 validation images" in text
    assert text.count("?") == 1
    assert class_order.of_validation(trial(), predictions.assign(label=[0] * 7 + [1])) == []  # no score of the other
    assert class_order.of_validation(trial(), predictions.assign(logit_pneumonia=scores[::-1])) == []
    shuffled = trial(train={"labels": "shuffled"})
    assert class_order.of_validation(shuffled, predictions) == []


def test_an_auroc_that_chance_gives_on_few_images_is_no_question():
    few = pd.DataFrame({"label": [0, 1], "logit_pneumonia": [2.0, 1.0]})
    (text,) = class_order.of_validation(trial(), few)
    assert text == (
        "m: an AUROC of 0.000 on 2 validation images, too few to tell whether the classes are the other way round."
    )
    assert texts(rows(val=0.3).assign(auroc_upper=0.6)) == []
    unknown = rows(val=0.0).assign(auroc_lower=None, auroc_upper=None, fp=0, fn=0)
    assert texts(unknown.assign(tp=1, tn=1)) == []
    assert len(texts(unknown.assign(tp=5, tn=5))) == 1


def test_a_model_that_knows_nothing_is_asked_about_in_at_most_one_of_forty_draws():
    generator = np.random.default_rng(0)
    for positive, negative in ((1, 1), (2, 4), (5, 5), (10, 20)):
        label = np.repeat([1, 0], [positive, negative])
        asked = 0
        for _ in range(2000):
            places = generator.permutation(len(label))
            below = (places[label == 1][:, None] > places[label == 0]).mean()
            asked += class_order.is_below_chance(below, positive, negative)
        assert asked <= 2000 * 0.025 + 4 * np.sqrt(2000 * 0.025)


def test_a_row_of_errors_names_the_model_and_the_checkpoint():
    asked = class_order.questions(rows(val=0.1), pd.DataFrame([trial()]))
    assert class_order.error_rows(asked) == [
        {"path": "m.pt", "image_id": None, "stage": "class_order:m", "reason": asked[0].text}
    ]
