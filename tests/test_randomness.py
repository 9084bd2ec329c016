"""Random numbers: their distribution, and that they depend on the key alone."""

import torch

from cxr_ray import randomness

IDS = ["0123456789abcdef", "fedcba9876543210", "00000000000000aa"]


def test_random_numbers_are_uniform_and_normal_and_do_not_depend_on_the_batch():
    keys = torch.tensor([randomness.key(0, i, "test") for i in IDS])
    u = randomness.uniform(keys, 40_000)
    assert torch.equal(randomness.uniform(keys[1:2], 100)[0], u[1, :100])
    assert u.min() > 0
    assert u.max() < 1
    assert (torch.histc(u, 20, 0, 1) - 6000).abs().max() < 5 * 6000**0.5
    z = randomness.normal(keys, 40_000)
    assert abs(float(z.mean())) < 0.015
    assert abs(float(z.std()) - 1) < 0.015
    assert randomness.key(0, "a", "b", 1) != randomness.key(0, "a", "b1", 0)
