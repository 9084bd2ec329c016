"""Fills, against their definitions."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from cxr_ray.measure import fills


def test_fills_are_what_their_captions_say():
    images = torch.rand(2, 3, 32, 32)
    grey = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    keys = torch.tensor([5, 6])
    made = {name: fill.make(images, grey, keys) for name, fill in fills.FILLS.items()}
    assert made["black"].abs().max() == 0
    assert torch.equal(made["grey"][1, :, 3, 4], grey[:, 0, 0])
    assert torch.allclose(made["mean"][0, :, 0, 0], images[0].mean((1, 2)))
    # kernel 11, sigma 5: the Gaussian cut off at 5 pixels, away from the edge
    expected = gaussian_filter(images[0, 0].double().numpy(), 5, radius=5)
    assert np.allclose(made["blur"][0, 0, 6:-6, 6:-6], expected[6:-6, 6:-6], atol=1e-5)
    noise = made["noise"]
    assert torch.equal(noise[:, 0], noise[:, 2])
    assert not torch.equal(noise[0], noise[1])
    assert 0 < noise.min() < 0.05
    assert 0.95 < noise.max() < 1
    assert torch.equal(fills.FILLS["noise"].make(images[1:], grey, keys[1:])[0], noise[1])
