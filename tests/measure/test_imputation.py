"""Linear imputation against the sparse solution, and the fill that it becomes."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve
from torch.nn import functional as F

from cxr_ray import randomness
from cxr_ray.measure import fills, imputation, masking, scoring


def exact(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """ROAD's system, solved directly: a missing pixel times the sum of its weights is its neighbours' weighted sum."""
    size = len(image)
    step = sparse.diags([np.ones(size - 1), np.ones(size - 1)], [-1, 1])
    one = sparse.identity(size)
    weights = ((sparse.kron(step, one) + sparse.kron(one, step)) / 6 + sparse.kron(step, step) / 12).tocsr()
    inside, out = missing.ravel(), image.ravel().astype(np.float64)
    system = (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()[inside]
    out[inside] = spsolve(system[:, inside].tocsc(), -(system[:, ~inside] @ out[~inside]))
    return out.reshape(size, size)


def image(size: int, seed: int = 0) -> torch.Tensor:
    """Rough and smooth at once, over all of [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(1, 1, 5, 5, generator=rng), (size, size), mode="bicubic")[0, 0]
    made = coarse + 0.2 * torch.rand(size, size, generator=rng)
    return (made - made.min()) / (made.max() - made.min())


def highest(field: torch.Tensor, share: float) -> torch.Tensor:
    mask = torch.zeros(field.numel(), dtype=torch.bool)
    mask[field.flatten().argsort(descending=True)[: round(share * field.numel())]] = True
    return mask.view(field.shape)


def masks(size: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(size)
    found = {f"random {p}": highest(torch.rand(size, size, generator=rng), p) for p in (0.1, 0.5, 0.9, 0.99)}
    blobs = F.interpolate(torch.randn(3, 1, 7, 7, generator=rng), (size, size), mode="bilinear")[:, 0]
    found |= {f"blob {p}": highest(b, p) for p, b in zip((0.25, 0.5, 0.9), blobs, strict=True)}
    cells = (torch.rand(14, 14, generator=rng) < 0.5).float()
    found["cells"] = F.interpolate(cells[None, None], (size, size))[0, 0].bool()
    known: dict[str, list[Any]] = {
        "a row": [(0, slice(None))],
        "thin lines": [(slice(None, None, 37), slice(None)), (slice(None), size // 2 + 1)],
        "two pixels": [(3, 5), (size - 2, size // 2)],
    }
    for name, places in known.items():
        found[name] = torch.ones(size, size, dtype=torch.bool)
        for place in places:
            found[name][place] = False
    return found


@pytest.mark.parametrize("size", [33, 112, 224])
def test_imputed_pixels_are_the_sparse_solution(size):
    given = masks(size)
    images = torch.stack([image(size, i) for i in range(len(given))])
    made = imputation.linear(images, torch.stack(list(given.values())))
    for name, mask, whole, filled in zip(given, given.values(), images, made, strict=True):
        assert np.abs(filled.numpy() - exact(whole.numpy(), mask.numpy())).max() < 1e-3, name
        assert torch.equal(filled[~mask], whole[~mask]), name


def test_every_pixel_but_one_takes_its_value_and_without_any_the_mean():
    images = torch.stack([image(56), image(56)])
    missing = torch.ones(2, 56, 56, dtype=torch.bool)
    missing[0, 50, 3] = False
    made = imputation.linear(images, missing)
    assert torch.allclose(made[0], images[0, 50, 3], atol=1e-6)
    assert torch.allclose(made[1], images[1].mean(), atol=1e-6)


def test_a_constant_is_a_fixed_point_and_a_ramp_is_continued_inside():
    missing = torch.zeros(64, 64, dtype=torch.bool)
    missing[10:50, 8:60] = True
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    ramp = (2 * y + x) / 200
    made = imputation.linear(torch.stack([torch.full((64, 64), 0.3), ramp]), missing.expand(2, -1, -1))
    assert torch.allclose(made[0], torch.tensor(0.3), atol=1e-6)
    assert (made[1] - ramp).abs().max() < 5e-4


def test_a_plane_does_not_depend_on_its_batch():
    given = list(masks(56).values())
    images = torch.stack([image(56, i) for i in range(len(given))])
    together = imputation.linear(images, torch.stack(given))
    for i, mask in enumerate(given):
        alone = imputation.linear(images[i : i + 1], mask[None])[0]
        assert (alone - together[i]).abs().max() < 1e-5
    assert imputation.linear(images[:0], torch.stack(given)[:0]).shape == (0, 56, 56)


def canvas(images: torch.Tensor, keys: list[int]) -> masking.Canvas:
    """Fills mean and linear, in pixel space."""
    grey, keys_B = torch.zeros(3, 1, 1), torch.tensor(keys)
    made = torch.stack([fills.FILLS[f].make(images, grey, keys_B) for f in ("mean", "linear")], 1)
    return masking.Canvas.of(images, made, {1: fills.Linear.of(images, keys_B, lambda pixels: pixels)})


def masked(images: torch.Tensor, keys: list[int], ns: list[int], batch_size: int = 5) -> torch.Tensor:
    """The masked images themselves: [N, F, O, L, 3, S, S]."""
    seen = []
    size = images.shape[-1]
    places = torch.stack([torch.randperm(size * size, generator=torch.Generator().manual_seed(k)) for k in keys]).int()

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return x[:, 0, 0, 0]

    image_of, orders = torch.arange(len(images)), ["morf", "lerf"]
    scores = scoring.masked_scores(forward, canvas(images, keys), places, image_of, ns, orders, batch_size)
    return torch.cat(seen).view(*scores.shape, *images.shape[1:])


@pytest.mark.parametrize("grey", [True, False])
def test_the_fill_is_the_solution_of_each_channel_plus_one_field_of_noise(grey):
    size, n = 56, 1500
    images = torch.stack([torch.stack([image(size, 3 * i + c * (not grey)) for c in range(3)]) for i in range(2)])
    made = masked(images, [7, 8], [0, n, size * size])
    assert torch.equal(made[:, :, :, 0], images[:, None, None].expand_as(made[:, :, :, 0]))
    whole = made[:, 1, :, 2]
    assert torch.allclose(whole, images.mean((2, 3))[:, None, :, None, None].expand_as(whole), atol=1e-6)
    fields = []
    for i in range(2):
        for order in range(2):
            here = made[i, 1, order, 1]
            mean_filled = made[i, 0, order, 1]
            mask = (mean_filled == images[i].mean((1, 2))[:, None, None]).all(0)
            assert abs(int(mask.sum()) - n) <= 1
            assert torch.equal(here[:, ~mask], images[i][:, ~mask])
            solved = np.stack([exact(c.numpy(), mask.numpy()) for c in images[i]])
            noise = here.numpy() - solved
            assert abs(noise[:, mask].std() / 0.01 - 1) < 0.1
            assert np.abs(noise - noise[0]).max() < 2e-3  # one field for all channels
            fields.append(np.where(mask, noise[0], np.nan))
    both = ~np.isnan(fields[0]) & ~np.isnan(fields[1])
    assert np.allclose(fields[0][both], fields[1][both], atol=2e-3)  # and for all masks
    assert np.nanstd(fields[0] - fields[2]) > 0.012  # another one for another image


def test_masked_images_do_not_depend_on_the_batch():
    images = torch.stack([image(28, i).expand(3, -1, -1) for i in range(2)])
    levels = [78, 400, 700]
    assert torch.allclose(masked(images, [1, 2], levels, 3), masked(images, [1, 2], levels, 64), atol=1e-5)


def test_noise_is_a_function_of_the_key():
    keys = torch.tensor([randomness.key(0, i, "linear fill") for i in ("a", "b")])
    images = torch.rand(2, 3, 224, 224)
    made = fills.Linear.of(images, keys, lambda pixels: pixels)
    assert torch.allclose(made.noise.std((1, 2, 3)), torch.tensor(0.01), rtol=0.02)
    assert torch.equal(fills.Linear.of(images[1:], keys[1:], lambda pixels: pixels).noise[0], made.noise[1])
    assert made.planes.shape[1] == 3
    assert fills.Linear.of(images[:, :1].expand(-1, 3, -1, -1), keys, lambda p: p).planes.shape[1] == 1
