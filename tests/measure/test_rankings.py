"""Rankings, cells, ties and overlaps against closed forms and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_ray.measure import rankings


@given(hnp.arrays(np.float32, (3, 20), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, -1.0, 3.5])))
def test_rank_is_a_permutation_in_descending_order_with_ties_broken_by_the_field(values):
    ties = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    places = rankings.rank(torch.from_numpy(values), ties).numpy()
    for row, field, place in zip(values, ties.numpy(), places, strict=True):
        expected = sorted(range(20), key=lambda i: (-row[i], -field[i]))
        assert [int(p) for p in np.argsort(place)] == expected


def test_rank_agrees_with_lexsort_on_as_many_units_as_an_image_has():
    """From 32,768 numbers on, torch sorts a row otherwise."""
    rng = np.random.default_rng(0)
    values = rng.integers(-50, 50, (2, 40_000)).astype(np.float32) / 7
    values[0, :9] = -0.0  # ties with 0
    ties = rng.random((2, 40_000), np.float32) - 0.5
    places = rankings.rank(torch.from_numpy(values), torch.from_numpy(ties)).numpy()
    for row, field, place in zip(values, ties, places, strict=True):
        assert (np.argsort(place) == np.lexsort((np.arange(len(row)), -field, -row))).all()


def test_a_map_that_is_made_smaller_loses_no_spot():
    maps = torch.zeros(1, 64, 64)
    maps[0, 33:35, 38:40] = 1
    small = rankings.at_size(maps, 8)[0]
    assert int(small.argmax()) == 4 * 8 + 4
    assert (small > 0).sum() <= 9


def test_cells_follow_the_stated_formula():
    for size, g in ((30, 7), (224, 14), (33, 28)):
        cell = rankings.cell_of(size, g)
        assert cell.tolist() == [int(np.floor(y * g / size)) for y in range(size)]
        values = torch.rand(1, size, size)
        expected = torch.stack(
            [torch.stack([values[0][cell == a][:, cell == b].mean() for b in range(g)]) for a in range(g)]
        )
        assert torch.allclose(rankings.cell_means(values, g)[0], expected, atol=1e-6)


def test_overlap_counts_shared_units():
    a = torch.tensor([[0, 1, 2, 3]], dtype=torch.int32)
    b = torch.tensor([[[3, 2, 1, 0], [0, 1, 2, 3], [1, 0, 3, 2]]], dtype=torch.int32)
    assert rankings.overlap(a, b, 2, "morf").tolist() == [[0.0, 1.0, 1.0]]
    assert rankings.overlap(a, b, 1, "morf").tolist() == [[0.0, 1.0, 0.0]]
    assert rankings.overlap(a, b, 3, "lerf")[0].tolist() == pytest.approx([2 / 3, 1.0, 2 / 3])
    assert rankings.overlap(a, b, 0, "morf").isnan().all()


def test_cells_that_are_equal_but_for_the_order_of_a_sum_tie():
    """A peak in the corner of a small map: what lies right of it and what lies below it are equal."""
    peak = torch.zeros(1, 2, 2)
    peak[0, 0, 0] = 0.1
    full = rankings.at_size(peak, 64)
    noisy = full * (1 + 1e-7 * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)))
    ties = rankings.tie_fields(["a"], 0, 64)
    for g in (7, 14):
        assert torch.equal(rankings.rank_on(full, ties, g), rankings.rank_on(noisy, ties, g))


@given(
    hnp.arrays(np.float32, (2, 20), elements=st.sampled_from([0.0, 0.5, 1.0, -1.0])),
    hnp.arrays(np.float32, (2, 20), elements=st.sampled_from([0.25, 0.5])),
    st.integers(0, 20),
)
def test_the_first_units_are_those_of_the_ranking(values, ties, n):
    maps, fields = torch.from_numpy(values), torch.from_numpy(ties)
    assert torch.equal(rankings.first(maps, fields, n), rankings.rank(maps, fields) < n)
