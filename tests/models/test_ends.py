"""Outputs that are no logits are refused, wherever a network comes from."""

import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cxr_ray
from cxr_ray.errors import CheckpointError, UserError
from cxr_ray.measure.given import given
from cxr_ray.models import checkpoints
from cxr_ray.models.networks import ModelSpec, build
from cxr_ray.run.context import untrained_models
from cxr_ray.run.trial_plans import plan_trials
from cxr_ray.sweepfile import resolve

SIZE = 32
IMAGES = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE), dtype=np.uint8)
MODULE = """
import torch
from torch import nn

class Scored(nn.Module):
    def __init__(self, outputs, end):
        super().__init__()
        self.features, self.head, self.end = nn.Conv2d(3, 4, 3), nn.Linear(4, outputs), end

    def forward(self, images):
        return self.end(self.head(torch.relu(self.features(images)).mean((2, 3))))

def sigmoid(outputs): return Scored(outputs, torch.sigmoid)
def pair(outputs): return Scored(outputs, lambda x: (x, x))
def one(outputs): return Scored(1, nn.Identity())
def plain(outputs): return Scored(outputs, nn.Identity())
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "ends_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("ends_of_mine")
    del sys.modules["ends_of_mine"]


def traced(model: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model.eval(), torch.rand(1, 3, SIZE, SIZE))


@pytest.mark.parametrize(
    ("outputs", "columns", "end", "what"),
    [
        (1, None, nn.Sigmoid(), "probabilities .it ends in a sigmoid"),
        (2, None, torch.sigmoid, "probabilities .it ends in a sigmoid"),
        (14, ((), (6,)), nn.Sigmoid(), "probabilities .it ends in a sigmoid"),
        (3, ((0,), (2,)), lambda x: x.softmax(1).clamp(1e-7, 1), "probabilities .it ends in a softmax"),
        (3, ((), (2,)), nn.LogSoftmax(1), "3 outputs are one softmax, with columns of one class alone"),
        (2, None, lambda x: x.softmax(1)[:, 1:], "probabilities .it ends in a softmax"),
        (2, None, lambda x: x.softmax(1)[:, [1]], "probabilities .it ends in a softmax"),
        (2, None, lambda x: x.softmax(1)[:, 1].unsqueeze(1), "probabilities .it ends in a softmax"),
        (1, None, lambda x: 1 - x.sigmoid(), "probabilities .it ends in a sigmoid"),
        (1, None, lambda x: torch.stack([x.sigmoid(), (2 * x).sigmoid()]).mean(0), "probabilities .it ends in a sig"),
        (2, None, lambda x: x.log_softmax(1)[:, 1:], "output is the log-softmax of one class alone"),
    ],
)
def test_a_model_that_ends_in_probabilities_is_refused(module, outputs, columns, end, what):
    model = module.Scored(outputs, end).eval()
    with pytest.raises(CheckpointError, match=f"got a model, whose .*{what}.*; expected"):
        cxr_ray.explain(model, IMAGES, spec=ModelSpec("given", SIZE, columns=columns))
    with pytest.raises(CheckpointError, match=f"got a model, whose .*{what}.*; expected"):
        cxr_ray.explain(lambda x: model(x), IMAGES, "occlusion", spec=ModelSpec("given", SIZE, columns=columns))


def test_a_log_softmax_of_both_classes_gives_their_log_odds(module):
    model = module.Scored(3, nn.Identity()).eval()
    spec = ModelSpec("given", SIZE, columns=((0, 1), (2,)))
    images = torch.rand(4, 3, SIZE, SIZE)
    with torch.no_grad():
        plain = given(model, IMAGES, spec).model.log_odds(images)
        model.end = nn.LogSoftmax(1).eval()
        torch.testing.assert_close(given(model, IMAGES, spec).model.log_odds(images), plain)


def test_a_function_whose_end_cannot_be_seen_is_told_where_its_numbers_look_like_shares(module):
    def score(images):
        return torch.from_numpy(images.numpy()[:, :1].mean((2, 3)) * 0 + 0.7)

    with pytest.warns(UserWarning, match=r"lie between 0.7 and 0.7 for 8 images, and are taken for logits"):
        cxr_ray.explain(score, IMAGES, "centre")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cxr_ray.explain(lambda images: 2 * score(images), IMAGES, "centre")


PROBABILITIES = {
    "clamped": (1, lambda x: x.sigmoid().clamp(1e-6, 1 - 1e-6)),
    "other class": (1, lambda x: 1 - x.sigmoid()),
    "mean of two": (1, lambda x: (x.sigmoid() + (2 * x).sigmoid()) / 2),
    "by hand": (1, lambda x: 1 / (1 + torch.exp(-x))),
    "percent": (1, lambda x: 100 * x.sigmoid()),
    "percent of a softmax": (2, lambda x: 100 * x.softmax(1)),
    "one class of a log-softmax": (2, lambda x: x.log_softmax(1).exp()[:, 1:]),
    "tanh": (1, lambda x: 0.5 + 0.5 * torch.tanh(x)),
    "log-sigmoid": (1, lambda x: nn.functional.logsigmoid(x)),
    "log of a sigmoid": (1, lambda x: x.sigmoid().log()),
    "log of one class": (2, lambda x: x.softmax(1).log()[:, 1:]),
    "losses": (2, lambda x: -x.log_softmax(1)),
}
LOGITS = {
    "plain": (1, nn.Identity()),
    "of a temperature and a scale": (2, lambda x: 3 * x / 2 - 1),
    "mean of two": (2, lambda x: (x + 2 * x) / 2),
    "of probabilities": (1, lambda x: torch.log(x.sigmoid() / (1 - x.sigmoid()))),
    "of log-probabilities": (2, lambda x: x.log_softmax(1)[:, 1:] - x.log_softmax(1)[:, :1]),
    "capped": (2, lambda x: 30 * torch.tanh(x / 30)),
    "gated": (2, lambda x: x * (x + 1).sigmoid()),
}
WHAT = "whose outputs? (are|is) (the |negative )?(probabilities|log-)"


@pytest.mark.parametrize("end", PROBABILITIES)
def test_probabilities_are_refused_whatever_follows_them(module, tmp_path, end):
    outputs, last = PROBABILITIES[end]
    torch.manual_seed(0)
    model = module.Scored(outputs, last).eval()
    for mine in (model, lambda x: model(x), traced(model)):
        with pytest.raises(CheckpointError, match=WHAT):
            cxr_ray.explain(mine, IMAGES, "centre")
    module.mine = lambda outputs: model
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match=WHAT):
        checkpoints.load(str(tmp_path / "mine.pt"), ModelSpec("factory:ends_of_mine:mine", SIZE))


@pytest.mark.parametrize("end", LOGITS)
def test_logits_are_taken_without_a_word_however_they_were_made(module, end):
    outputs, last = LOGITS[end]
    model = module.Scored(outputs, last).eval()
    nn.init.zeros_(model.head.weight)  # as before training: from 0.4 to 0.6 whatever the image
    nn.init.normal_(model.head.weight, std=1e-3)
    nn.init.constant_(model.head.bias, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cxr_ray.explain(model, IMAGES, "centre")
        cxr_ray.explain(lambda x: model(x), IMAGES, "centre")
        script = traced(model)
        cxr_ray.explain(script, IMAGES, "centre")


def test_what_a_loader_told_of_a_network_is_not_told_again(module, tmp_path):
    model = module.Scored(1, lambda x: torch.relu(x) * 0 + 0.5).eval()
    module.mine = lambda outputs: model
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    loaded = checkpoints.load(str(tmp_path / "mine.pt"), ModelSpec("factory:ends_of_mine:mine", SIZE))
    assert loaded.notes[0].startswith("its outputs lie between 0.5 and 0.5 for 8 images, and are taken for logits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cxr_ray.explain(loaded, IMAGES, "centre")
    with pytest.warns(UserWarning, match="for 8 images, and are taken for logits"):
        cxr_ray.explain(model, IMAGES, "centre")


def seldom(x: Tensor) -> Tensor:
    return 20 * nn.functional.dropout(x, 0.02) + torch.tensor([-20.0, 20.0])


@pytest.mark.parametrize(
    ("end", "columns"),
    [
        (lambda x: x + 1000 + torch.randn_like(x), None),
        (lambda x: x + torch.tensor([-30.0, 30.0]) + torch.randn_like(x) / 10, None),
        (lambda x: torch.cat([x[:, :1] * 0 + 100, x[:, 1:] + 0.3 * torch.randn(len(x), 1)], 1), ((), (1,))),
        (lambda x: 10 * (x - x.mean(0) / 2) + torch.tensor([-30.0, 30.0]), None),
        (seldom, None),
    ],
)
def test_large_logits_hide_no_unsteady_ones(module, end, columns):
    torch.manual_seed(1)
    model = module.Scored(2, end).eval()
    for _ in range(3):
        with pytest.raises(CheckpointError, match="logits of one image differ from pass to pass or with the other"):
            cxr_ray.explain(model, IMAGES, "centre", spec=ModelSpec("given", SIZE, columns=columns))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_by_the_batch_is_steady(dtype):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head = nn.Linear(16, 2)
    nn.init.constant_(head.bias, 50)
    model = nn.Sequential(*body, head).eval().to(dtype)
    cxr_ray.explain(lambda x: model(x.to(dtype)).float(), IMAGES, "centre")


@pytest.mark.parametrize(
    ("end", "what"),
    [
        (nn.functional.dropout, "logits of one image differ from pass to pass or with the other images"),
        (lambda x: x - x.sum(0), "logits of one image differ from pass to pass or with the other images"),
        (lambda x: x - x.mean(0), "logits of one image differ from pass to pass or with the other images"),
        (lambda x: x / x.abs().amax(), "logits of one image differ from pass to pass or with the other images"),
        (lambda x: x.reshape(1, 2), "cannot score 3 images at a time"),
    ],
)
def test_logits_that_hang_on_chance_or_on_the_batch_are_refused(module, tmp_path, end, what):
    torch.manual_seed(1)
    model = module.Scored(2, end).eval()
    with pytest.raises(CheckpointError, match=f"got a model, .*{what}"):
        cxr_ray.explain(model, IMAGES, "occlusion")


def test_a_model_that_changes_its_images_is_refused():
    with pytest.raises(CheckpointError, match="got a model, which changes the images that it scores"):
        cxr_ray.explain(lambda x: x.sub_(1).mean((2, 3))[:, :2], IMAGES, "occlusion")


def test_a_layer_in_training_mode_is_refused(module):
    model = nn.Sequential(module.Scored(2, nn.Identity()), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(CheckpointError, match="got a model in training mode, or a layer of it"):
        cxr_ray.explain(model, IMAGES, "occlusion")
    assert model[1].training


def test_a_caller_in_inference_mode_gets_the_same_maps(module):
    model = module.Scored(2, nn.Identity()).eval()
    maps = cxr_ray.explain(model, IMAGES, "saliency")
    with torch.inference_mode():
        np.testing.assert_array_equal(cxr_ray.explain(model, IMAGES, "saliency"), maps)


def test_a_model_that_was_made_in_inference_mode_gets_the_same_maps(module):
    model = module.Scored(2, nn.Identity()).eval()
    with torch.inference_mode():
        made = module.Scored(2, nn.Identity()).eval()
        made.load_state_dict(model.state_dict())
    for explainer in ("saliency", "gradcam"):
        maps = cxr_ray.explain(model, IMAGES, explainer)
        np.testing.assert_array_equal(cxr_ray.explain(made, IMAGES, explainer), maps)


def test_frozen_and_compiled_modules_are_taken(module):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(traced(model))
        of_frozen = cxr_ray.explain(frozen, IMAGES, "occlusion")  # whose end cannot be seen, which is warned of
    np.testing.assert_allclose(of_frozen, cxr_ray.explain(model, IMAGES, "occlusion"), atol=1e-5)
    compiled = torch.compile(model, backend="eager")
    np.testing.assert_array_equal(
        cxr_ray.explain(compiled, IMAGES, "gradcam"), cxr_ray.explain(model, IMAGES, "gradcam")
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_without_finite_logits_is_refused(module, value):
    model = module.Scored(2, lambda x: x * value).eval()
    with pytest.raises(CheckpointError, match=r"gives (nan|inf|-inf) for noise as for an image; expected finite"):
        cxr_ray.explain(model, IMAGES, "occlusion")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sigmoid", "whose outputs are probabilities .it ends in a sigmoid"),
        ("pair", "got a network whose output for 2 images is a tuple; expected one tensor"),
        ("one", "which gives 1 outputs where 2 were asked for"),
    ],
)
def test_a_factory_of_something_else_is_refused_before_it_is_trained_or_loaded(module, tmp_path, name, what):
    sweep = resolve({"model": {"arch": f"factory:ends_of_mine:{name}", "weights": "none"}, "data": {"size": SIZE}})
    with pytest.raises(UserError, match=what):
        untrained_models(sweep, plan_trials(sweep))
    if name != "one":
        spec = ModelSpec(f"factory:ends_of_mine:{name}", SIZE)
        torch.save(build(spec.arch, spec).network.state_dict(), tmp_path / "mine.pt")
        with pytest.raises(UserError, match=what):
            checkpoints.load(str(tmp_path / "mine.pt"), spec)


def test_one_class_of_a_softmax_file_is_refused(module, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would have users export otherwise; files remain
        traced = torch.jit.trace(module.Scored(3, nn.Softmax(1)).eval(), torch.rand(2, 3, SIZE, SIZE))
    traced.save(str(tmp_path / "mine.ts"))
    spec = ModelSpec("torchscript", SIZE, columns=((), (2,)))
    with pytest.raises(CheckpointError, match="3 outputs are one softmax, with columns of one class alone"):
        checkpoints.load(str(tmp_path / "mine.ts"), spec)
    known = checkpoints.load(str(tmp_path / "mine.ts"), ModelSpec("torchscript", SIZE, columns=((0, 1), (2,))))
    assert known.spec.outputs == 3
