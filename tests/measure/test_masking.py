"""Masked images come in the type and memory format that a form reads, whatever makes them."""

import itertools

import pytest
import torch

from cxr_ray.measure import fills, masking, rankings, scoring
from cxr_ray.models.backends import Layout
from tests.builders.networks import small
from tests.builders.shards import sweep, worker

SIZE = 14
HALF = Layout(torch.float16, channels_last=True)
FUSED = Layout(torch.float16, channels_last=True, fused=True)


def seen(canvas: masking.Canvas, grid: str = "pixel", batch_size: int = 5) -> list[torch.Tensor]:
    """The batches of masked images that a form gets."""
    batches: list[torch.Tensor] = []

    def forward(images):
        batches.append(images.clone(memory_format=torch.preserve_format))
        return images.float().sum((1, 2, 3))

    units = rankings.side(grid, SIZE) ** 2
    generator = torch.Generator().manual_seed(0)
    places = rankings.places_of(torch.rand(3, units, generator=generator).argsort(1))
    ns = rankings.counts([0.1, 0.5], units)
    scoring.masked_scores(forward, canvas, places, torch.tensor([0, 1, 1]), ns, ["morf", "lerf"], batch_size)
    return batches


def canvas_of(layout: Layout | None, masked: bool = False) -> masking.Canvas:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    filled = torch.rand(2, 2, 3, SIZE, SIZE, generator=generator)
    linear = {1: fills.Linear.of(images, torch.tensor([1, 2]), lambda x: x)} if masked else {}
    return masking.Canvas.of(images, filled, linear, layout)


def kernel(monkeypatch, compiled) -> None:
    """Another compiled kernel, in a process that has none yet."""
    fresh = masking._Kernel()
    fresh.compiled = compiled
    monkeypatch.setattr(masking, "_KERNEL", fresh)


def grey_canvases(layout: Layout | None, masked: bool) -> tuple[masking.Canvas, masking.Canvas]:
    """Grey images and fills in one channel, and the same in three."""
    generator = torch.Generator().manual_seed(1)
    images, filled = (torch.rand(*shape, 1, SIZE, SIZE, generator=generator) for shape in ((2,), (2, 2)))
    normalize, keys = small().normalize, torch.tensor([1, 2])
    one, three = (
        {1: fills.Linear.of(images.expand(-1, c, -1, -1), keys, look)} if masked else {}
        for c, look in ((1, lambda x: x), (3, normalize))
    )
    look = masking.Normalization(small().mean.flatten(), small().std.flatten())
    in_three = normalize(images), normalize(filled.flatten(0, 1)).unflatten(0, (2, 2))
    return masking.Canvas.of_grey(images, filled, look, one, layout), masking.Canvas.of(*in_three, three, layout)


@pytest.mark.parametrize("layout", [None, HALF, Layout(torch.float32, channels_last=True), Layout(torch.float16)])
@pytest.mark.parametrize(("grid", "masked"), [("pixel", False), ("7", True)])
def test_one_channel_of_grey_images_becomes_the_three_that_it_stands_for(layout, grid, masked):
    one, three = grey_canvases(layout, masked)
    assert one.images.numel() * 3 == three.images.numel()
    more = torch.rand(2, 1, SIZE, SIZE)
    pairs = [
        (one, three),
        (one.only(1), three.only(1)),
        (one.with_fill(more), three.with_fill(small().normalize(more))),
    ]
    for a, b in pairs:
        assert torch.equal(a.as_images(a.fills), b.as_images(b.fills))
        for made, expected in zip(seen(a, grid), seen(b, grid), strict=True):
            assert made.dtype == expected.dtype
            assert made.stride() == expected.stride()
            assert torch.equal(made, expected)


@pytest.mark.parametrize(("grid", "masked"), list(itertools.product(["pixel", "7"], [False, True])))
def test_images_in_the_forms_own_layout_are_those_of_float32_rounded_once(grid, masked):
    for plain, laid_out in zip(seen(canvas_of(None, masked), grid), seen(canvas_of(HALF, masked), grid), strict=True):
        assert plain.dtype == torch.float32
        assert plain.is_contiguous()
        assert laid_out.dtype == torch.float16
        assert laid_out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(laid_out, plain.half())


def test_a_fill_that_is_added_or_alone_keeps_the_layout():
    plain, laid_out = canvas_of(None), canvas_of(HALF)
    more = torch.rand(2, 3, SIZE, SIZE)
    pairs = (plain.with_fill(more), laid_out.with_fill(more)), (plain.only(1), laid_out.only(1))
    for expected, made in pairs:
        for a, b in zip(seen(expected), seen(made), strict=True):
            assert torch.equal(b, a.half())
    assert torch.equal(laid_out.as_images(laid_out.fills), plain.as_images(plain.fills).half())


def test_region_masks_keep_the_layout():
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(5, SIZE * SIZE, generator=generator) > 0.5
    made = {}
    for name, layout in (("plain", None), ("half", HALF)):
        batches: list[torch.Tensor] = []

        def forward(images, batches=batches):
            batches.append(images.clone(memory_format=torch.preserve_format))
            return images[:, 0, 0, 0].float()

        scoring.region_scores(forward, canvas_of(layout, masked=True), masks, torch.tensor([0, 1, 0, 1, 0]), 3)
        made[name] = batches
    for a, b in zip(made["plain"], made["half"], strict=True):
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(b, a.half())


def test_the_kernel_is_one_graph_for_all_batch_sizes_grids_apart(monkeypatch):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(masking.blend, dynamic=True, fullgraph=True, backend=backend)
    kernel(monkeypatch, compiled)
    for batch_size in (5, 4, 7):
        for a, b in zip(seen(canvas_of(HALF), "7", batch_size), seen(canvas_of(FUSED), "7", batch_size), strict=True):
            assert torch.equal(a, b)
    assert len(graphs) <= 2  # the first size may stand for itself


def test_one_channel_is_normalised_in_the_same_kernel(monkeypatch):
    torch._dynamo.reset()
    kernel(monkeypatch, torch.compile(masking.blend, dynamic=True, fullgraph=True, backend="eager"))
    one, three = grey_canvases(FUSED, masked=False)
    for a, b in zip(seen(one), seen(three), strict=True):
        assert torch.equal(a, b)


def test_without_a_compiler_the_same_images_come_and_one_warning_says_so(monkeypatch):
    asked = []

    def backend(graph, example_inputs):
        asked.append(1)
        raise RuntimeError("Failed to find C compiler.\nSee the manual.")

    torch._dynamo.reset()
    kernel(monkeypatch, torch.compile(masking.blend, dynamic=True, backend=backend))
    assert not masking.kernel_note()
    plain, laid_out = seen(canvas_of(HALF)), canvas_of(FUSED)
    with pytest.warns(UserWarning, match=r"without a compiled kernel: Failed to find C compiler\.$") as told:
        made = seen(laid_out)  # four batches
    assert all(torch.equal(a, b) for a, b in zip(plain, made, strict=True))
    assert len(made) > len(told) == len(asked) == 1
    assert worker(sweep(), small()).notes == [str(told[0].message)]


def test_memory_that_runs_out_is_not_taken_for_a_missing_compiler(monkeypatch):
    def fails(*given):
        raise torch.OutOfMemoryError

    kernel(monkeypatch, fails)
    with pytest.raises(torch.OutOfMemoryError):
        seen(canvas_of(FUSED))
    assert not masking.kernel_note()
