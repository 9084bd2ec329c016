"""A CUDA graph of a training step's gradients: its kernels are launched at once, where one by one the GPU waits.

The kernels are those of the eager step, so that gradients are what they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

WARM_UP = 3  # steps before the recording: libraries choose kernels and take their memory in the first ones

Gradients = Callable[[Tensor, Tensor], Tensor]  # inputs of one step to its loss; leaves gradients on the parameters


def graphed(gradients: Gradients, model: nn.Module, example: tuple[Tensor, Tensor]) -> Gradients:
    """Record ``gradients``, and return what replays it; ``gradients`` itself, with a warning, where that cannot be.

    Args:
        gradients: one step without its optimizer. It clears the gradients first, and waits for nothing.
        model: whose parameters get gradients. Its weights and statistics stay as they are.
        example: inputs of a step, on the GPU. Later ones have their shapes and types.
    """
    before = [b.clone() for b in model.buffers()]
    try:
        return _record(gradients, model, example)
    except RuntimeError as e:
        warnings.warn(f"no CUDA graph of a training step, which is slower without: {e}", stacklevel=2)
        return gradients
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)


def _record(gradients: Gradients, model: nn.Module, example: tuple[Tensor, Tensor]) -> Gradients:
    inputs = tuple(e.clone() for e in example)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            gradients(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for parameter in model.parameters():
        parameter.grad = None  # the graph's gradients lie in memory of its own
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads of a trial's process go on
        loss = gradients(*inputs)

    def replay(*step: Tensor) -> Tensor:
        for target, value in zip(inputs, step, strict=True):
            target.copy_(value)
        graph.replay()
        return loss.clone()  # the next replay writes over it

    return replay
