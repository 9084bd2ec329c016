"""A model that ranks the two classes the wrong way round is asked about, by every kind of head."""

import json
import math

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
    predictions = pd.DataFrame({"label": [0, 0, 1, 1], "logit_pneumonia": [2.0, 1.0, -1.0, math.nan]})
    (text,) = class_order.of_validation(trial(), predictions)
    assert "AUROC of 0.000 on 3 validation images" in text
    assert class_order.of_validation(trial(), predictions.assign(label=[0, 0, 0, 1])) == []  # no score of the other
    assert class_order.of_validation(trial(), predictions.assign(logit_pneumonia=[-1.0, -2, 3, 2])) == []


def test_a_row_of_errors_names_the_model_and_the_checkpoint():
    asked = class_order.questions(rows(val=0.1), pd.DataFrame([trial()]))
    assert class_order.error_rows(asked) == [
        {"path": "m.pt", "image_id": None, "stage": "class_order:m", "reason": asked[0].text}
    ]
