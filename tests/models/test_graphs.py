"""A recorded step gives the weights of the eager one. Without a GPU, a stand-in records and replays."""

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxr_ray.config import Train
from cxr_ray.models import graphs, networks, training
from cxr_ray.models.networks import ModelSpec


class Recording:
    """A stand-in for a CUDA graph: recording runs nothing that lasts, and a replay writes into the memory it used."""

    def __init__(self, model: nn.Module, gradients: Any):
        self.model, self.gradients = model, gradients
        self.inputs: tuple[Tensor, ...] = ()
        self.loss = torch.zeros(())

    def record(self, *inputs: Tensor) -> Tensor:
        """Called in the place of the step; the last call is the recorded one."""
        self.inputs, self.loss = inputs, self.gradients(*inputs)
        self.grads = [p.grad for p in self.model.parameters()]
        return self.loss

    def replay(self) -> None:
        loss = self.gradients(*self.inputs)
        for parameter, memory in zip(self.model.parameters(), self.grads, strict=True):
            assert memory is not None
            assert parameter.grad is not None
            memory.copy_(parameter.grad)
            parameter.grad = memory
        self.loss.copy_(loss)


@pytest.fixture
def recorded(monkeypatch):
    """Replaces what graphs takes of torch.cuda; returns a step that can be recorded."""

    def step(gradients: Any, model: nn.Module) -> Any:
        recording = Recording(model, gradients)
        nothing = lambda *_, **__: contextlib.nullcontext()  # noqa: E731
        stream = type("Stream", (), {"wait_stream": lambda *_: None})()
        fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nothing, "graph": nothing}
        for name, fake in {**fakes, "CUDAGraph": lambda: recording}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        return recording.record

    return step


def pair(seed: int = 0) -> tuple[nn.Module, Any, Any]:
    """A small model with batch norm, its optimizer, and the gradients of a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def gradients(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    return model, optimizer, gradients


def test_a_replayed_step_gives_the_weights_statistics_and_losses_of_the_eager_one(recorded):
    batches = [(torch.randn(6, 4), torch.randint(2, (6,))) for _ in range(4)]
    eager_model, eager_optimizer, eager = pair()
    model, optimizer, gradients = pair()
    replayed = graphs.graphed(recorded(gradients, model), model, batches[0])
    losses = []
    for batch in batches:
        losses.append((eager(*batch), replayed(*batch)))
        eager_optimizer.step()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in losses), "each loss is its own, not the last one"
    ours, theirs = model.state_dict(), eager_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_cannot_be_recorded_stays_eager_with_a_warning_and_statistics_as_they_were(recorded, monkeypatch):
    model, _, gradients = pair()
    step = recorded(gradients, model)

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="no CUDA graph of a training step, which is slower without: operation not"):
        assert graphs.graphed(step, model, (torch.randn(6, 4), torch.randint(2, (6,)))) is step
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("loss", ["ce", "weighted", "focal"])
def test_on_a_gpu_training_by_graph_is_training_eagerly(monkeypatch, loss):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8, generator=generator).numpy()
    data = training.Split(pixels, torch.arange(64).numpy() % 2)
    config, losses = Train(epochs=2, batch_size=16, lr=1e-4, loss=loss), {}
    for name in ("graph", "eager"):
        torch.manual_seed(0)
        model = networks.build("resnet18", ModelSpec("resnet18", 64))
        if name == "eager":
            monkeypatch.setattr(training, "graphed", lambda gradients, *_: gradients)
        epochs: list[training.Epoch] = []
        training.fit(model, data, data, config, epochs.append, device="cuda")
        losses[name] = [epoch.train_loss for epoch in epochs]
    assert losses["graph"] == pytest.approx(losses["eager"], rel=0.02)
