"""Which output of a network of three classes stands for which, and one class against the rest."""

import dataclasses

import pytest
import torch

from cxr_ray.config import Classes
from cxr_ray.errors import CheckpointError
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.outputs import outputs_of_classes
from tests.builders.networks import varied_resnet18

SIZE = 64
THREE = {"normal": ["NORMAL"], "bacterial": ["bacteria"], "viral": ["virus"]}
NAMES = tuple(THREE)


def classes(target):
    return Classes(several=THREE, target=target)


def spec(outputs=3, **more):
    return ModelSpec("resnet18", SIZE, outputs, **more)


def columns_of(found, target="viral", **more):
    return outputs_of_classes("f.pt", spec(**more), found, classes(target))[0].columns


@torch.no_grad()
@pytest.mark.parametrize("target", NAMES)
def test_log_odds_of_a_class_are_those_of_its_softmax_probability(target):
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    network = varied_resnet18(3)
    z = network(images)
    classifier = Classifier(network, spec().against_the_rest(NAMES, target)).eval()
    place = NAMES.index(target)
    expected = z.double().softmax(1)[:, place].logit()
    torch.testing.assert_close(classifier.log_odds(images).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier(images)[:, 1], z[:, place], rtol=0, atol=0)  # maps explain the class's logit
    called = expected >= 0
    assert (called <= (z.argmax(1) == place)).all()  # half of the probability is more than any other class has


@pytest.mark.parametrize(
    ("found", "columns"),
    [
        (None, ((0, 1), (2,))),  # in the order of the data
        ({"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2}, ((0, 1), (2,))),  # by label, as a folder's classes
        ({"viral": 0, "bacterial": 1, "normal": 2}, ((1, 2), (0,))),  # by name
        ({"bacteria": 0, "virus": 1, "normal": 2}, ((0, 2), (1,))),
    ],
)
def test_outputs_are_those_that_the_file_names_else_in_the_order_of_the_data(found, columns):
    assert columns_of(found) == columns


def test_what_is_concluded_is_said():
    _, (said,) = outputs_of_classes("f.pt", spec(), None, classes("bacterial"))
    assert said == (
        "its outputs stand for normal, bacterial, viral, in the order of data.classes.several; bacterial is measured "
        "against the rest"
    )


@pytest.mark.parametrize("found", [{"NORMAL": 0, "BACTERIA": 1, "COVID": 2}, {"NORMAL": 0, "BACTERIA": 1}])
def test_a_file_that_names_other_classes_is_refused(found):
    with pytest.raises(CheckpointError, match=r"outputs: \{normal: \[0\], bacterial: \[1\], viral: \[2\]\}"):
        columns_of(found)


def test_a_head_of_another_number_of_classes_is_refused_and_of_two_is_the_two():
    with pytest.raises(CheckpointError, match="head of 4 outputs"):
        columns_of(None, outputs=4)
    assert columns_of(None, outputs=2) is None
    with pytest.raises(CheckpointError, match="head of 3 outputs"):
        outputs_of_classes("f.pt", spec(), None, Classes())


def test_what_the_sweep_says_goes_before_what_the_file_says():
    given = ((0,), (1, 2))
    assert columns_of({"viral": 0, "bacterial": 1, "normal": 2}, columns=given) == given


def test_a_saved_network_of_three_classes_can_be_measured_for_another_class(tmp_path):
    path = str(tmp_path / "m.safetensors")
    trained = networks.build("resnet18", spec().against_the_rest(("viral", "normal", "bacterial"), "viral"))
    (tmp_path / "m.safetensors").write_bytes(checkpoints.to_bytes(trained))
    kept = checkpoints.saved_spec(path)
    assert kept == trained.spec
    assert (kept.target, kept.columns) == ("viral", ((1, 2), (0,)))
    again = checkpoints.load(path, dataclasses.replace(kept, columns=None), classes("normal"))
    assert (again.spec.target, again.spec.columns) == ("normal", ((0, 2), (1,)))
    assert checkpoints.load(path).notes[-1].endswith("viral is measured against the rest")


HEALTHY = {"negative": ["Healthy"], "positive": ["Sick", "Very sick"]}
SWAPPED = {"negative": ["PNEUMONIA"], "positive": ["NORMAL"]}
ONE_KIND = {"negative": ["bacteria"], "positive": ["virus"], "ignore": ["normal"]}


@pytest.mark.parametrize(
    ("labels", "outputs", "found", "columns"),
    [
        ({}, 2, {"NORMAL": 0, "PNEUMONIA": 1}, None),  # the usual order
        ({}, 2, {"PNEUMONIA": 0, "NORMAL": 1}, ((1,), (0,))),
        ({}, 2, {"1": 0, "0": 1}, ((1,), (0,))),
        ({}, 3, {"BACTERIA": 0, "NORMAL": 1, "VIRUS": 2}, ((1,), (0, 2))),
        (HEALTHY, 2, {"Sick": 0, "Healthy": 1}, ((1,), (0,))),
        (HEALTHY, 2, {"healthy ": 0, "sick": 1}, ((0,), (1,))),
        (HEALTHY, 3, {"Sick": 0, "Healthy": 1, "very sick": 2}, ((1,), (0, 2))),
        (SWAPPED, 2, {"NORMAL": 0, "PNEUMONIA": 1}, ((1,), (0,))),
        (ONE_KIND, 2, {"VIRUS": 0, "BACTERIA": 1}, ((1,), (0,))),
        ({"negative": ["*"], "positive": ["Edema"]}, 2, {"Edema": 0, "anything": 1}, ((1,), (0,))),
        ({"several": THREE, "target": "viral"}, 2, {"virus": 0, "normal": 1}, ((1,), (0,))),
        ({}, 1, {"NORMAL": 0, "PNEUMONIA": 1}, None),  # one output is the log-odds of the class numbered 1
        ({}, 1, {"PNEUMONIA": 0, "NORMAL": 1}, ((0,), ())),
        (HEALTHY, 1, {"Sick": 0}, ((), (0,))),
    ],
)
def test_names_in_a_file_are_matched_as_labels_of_the_data_are(labels, outputs, found, columns):
    found_spec, said = outputs_of_classes("f.pt", spec(outputs), found, Classes(**labels))
    assert found_spec.columns == columns
    assert bool(said) == (columns is not None)
    # a worker reads the file again by the spec alone
    assert outputs_of_classes("f.pt", found_spec, found, Classes())[0] == found_spec


@pytest.mark.parametrize(
    ("labels", "outputs", "found"),
    [
        ({}, 2, {"cat": 0, "dog": 1}),
        ({}, 1, {"cat": 0, "dog": 1}),
        (HEALTHY, 2, {"NORMAL": 0, "PNEUMONIA": 1}),
        (HEALTHY, 2, {"Sick": 0, "Very sick": 1}),
        (ONE_KIND, 2, {"NORMAL": 0, "VIRUS": 1}),
        (ONE_KIND, 3, {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2}),
        ({"several": THREE, "target": "viral"}, 2, {"viral": 0, "rest": 1}),
    ],
)
def test_names_that_are_no_labels_of_both_classes_are_refused(labels, outputs, found):
    with pytest.raises(CheckpointError, match=r"expected each to be a label of data\.classes.* give the key outputs"):
        outputs_of_classes("f.pt", spec(outputs), found, Classes(**labels))
    given = spec(outputs, columns=((), (0,)))
    assert outputs_of_classes("f.pt", given, found, Classes(**labels))[0] == given


@pytest.mark.parametrize(
    "found",
    [
        {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2},
        {"NORMAL": 1, "PNEUMONIA": 2},
        {"NORMAL": 0, "PNEUMONIA": 0},
        {"NORMAL": -1, "PNEUMONIA": 0},
        {"PNEUMONIA": 1},
    ],
)
def test_numbers_that_are_not_those_of_the_outputs_are_refused(found):
    with pytest.raises(CheckpointError, match=r"head of 2 outputs; expected each number from 0 to 1 once; give"):
        outputs_of_classes("f.pt", spec(2), found, Classes())
