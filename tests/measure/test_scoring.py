"""Scores of masked images: exact counts, nested masks, closed forms."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_ray.measure import fills, masking, rankings, scoring


def share_filled(images: torch.Tensor) -> torch.Tensor:
    """A "model" whose score is the number of filled pixels, if images are 0 and fills 1."""
    return images[:, 0].flatten(1).sum(1)


def zero_one_canvas(n_images: int, size: int, n_fills: int = 1) -> masking.Canvas:
    return masking.Canvas.of(torch.zeros(n_images, 3, size, size), torch.ones(n_images, n_fills, 3, size, size))


def test_no_rankings_are_no_pass():
    def forward(images):
        raise AssertionError("an empty batch came")

    made = scoring.masked_scores(
        forward,
        zero_one_canvas(1, 4),
        torch.empty(0, 16, dtype=torch.int32),
        torch.empty(0, dtype=torch.long),
        [3, 4, 5],
        ["morf"],
        2,
    )
    assert made.shape == (0, 1, 1, 3)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["pixel", "7", "14", "28"]),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=5, unique=True),
    st.booleans(),
)
def test_a_level_perturbs_exactly_round_f_units_also_when_all_values_tie(grid, levels, constant):
    size = 28
    units = rankings.side(grid, size) ** 2
    maps = torch.zeros(2, units) if constant else torch.rand(2, units).mul(3).round()
    ties = rankings.cell_means(rankings.smooth_field(torch.tensor([1, 2]), size), rankings.side(grid, size)).flatten(1)
    places = rankings.rank(maps, ties)
    scores = scoring.masked_scores(
        share_filled,
        zero_one_canvas(2, size),
        places,
        torch.arange(2),
        rankings.counts(levels, units),
        ["morf", "lerf"],
        batch_size=3,
    )
    expected = torch.tensor([round(f * units) for f in levels]) * (size * size // units)
    assert torch.equal(scores, expected.float().expand(2, 1, 2, -1))


@pytest.mark.parametrize("grid", ["pixel", "7"])
def test_masks_are_nested_over_levels_and_lerf_is_the_reverse_of_morf(grid):
    size, seen = 14, []

    def keep(images):
        seen.append(images[:, 0].bool().clone())
        return share_filled(images)

    units = rankings.side(grid, size) ** 2
    levels = [0.1, 0.3, 0.7, 0.9]
    places = rankings.rank(torch.rand(1, units), torch.rand(1, units))
    scoring.masked_scores(
        keep,
        zero_one_canvas(1, size),
        places,
        torch.zeros(1, dtype=torch.long),
        rankings.counts(levels, units),
        ["morf", "lerf"],
        batch_size=5,
    )
    morf, lerf = torch.cat(seen).view(2, len(levels), size, size)
    for smaller, larger in itertools.pairwise(morf):
        assert (larger | ~smaller).all()
    # 0.1 and 0.9 (0.3 and 0.7) are complements, so lerf at a level is what morf leaves at the other
    assert torch.equal(lerf, ~morf.flip(0))


def test_a_linear_models_curve_is_the_sorted_sum_of_its_exact_attribution():
    """f(x) = sum(w x): filling a pixel changes the score by w (x - fill), so the best ranking is known exactly."""
    size = 8
    rng = torch.Generator().manual_seed(0)
    weight, image, fill = (torch.rand(3, size, size, generator=rng, dtype=torch.float64) - 0.3 for _ in range(3))
    fill = fill.mean((1, 2), keepdim=True).expand_as(fill)
    attribution = (weight * (image - fill)).sum(0).flatten()
    places = rankings.rank(attribution[None], torch.rand(1, size * size))
    ns = [0, 1, 5, 32, 63, 64]
    canvas = masking.Canvas.of(image[None], fill[None, None])
    scores = scoring.masked_scores(
        lambda x: (x * weight).sum((1, 2, 3)), canvas, places, torch.zeros(1, dtype=torch.long), ns, ["morf", "lerf"], 4
    )[0, 0]
    full, ordered = (weight * image).sum(), attribution.sort(descending=True).values
    for i, n in enumerate(ns):
        assert torch.isclose(scores[0, i], full - ordered[:n].sum())
        assert torch.isclose(scores[1, i], full - ordered[len(ordered) - n :].sum())
    assert (scores[0] <= scores[1] + 1e-9).all()


def test_a_canvas_with_one_of_its_fills_gives_its_scores():
    size, given = 14, torch.rand(2, 3, 14, 14)
    filled = torch.rand(2, 3, 3, size, size)
    linear = fills.Linear.of(given, torch.tensor([1, 2]), lambda x: x)
    canvas = masking.Canvas.of(given, filled, {2: linear})
    places = rankings.rank(torch.rand(2, 49), torch.rand(2, 49))
    ask = places, torch.arange(2), [10, 30], ["morf", "lerf"], 5
    score = lambda x: x.sum((1, 2, 3))  # noqa: E731
    every = scoring.masked_scores(score, canvas, *ask)
    for fill in range(3):
        assert torch.allclose(scoring.masked_scores(score, canvas.only(fill), *ask)[:, 0], every[:, fill])
