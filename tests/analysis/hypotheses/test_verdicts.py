"""The rule of verdicts, Holm's families, and the line that each hypothesis is judged against."""

import numpy as np
import pytest

from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows, verdict
from tests.builders.hypotheses import inputs, judged, map_rows, names, pair_tables


@pytest.mark.parametrize(
    ("lower", "upper", "p_holm", "expected"),
    [
        (0.6, 0.9, 0.01, "supported"),
        (0.6, 0.9, 0.06, "undecided"),
        (0.6, 0.9, np.nan, "undecided"),
        (0.5, 0.9, 0.01, "undecided"),  # on the margin is not beyond it
        (0.2, 0.9, 0.01, "undecided"),
        (-0.7, 0.9, 0.01, "undecided"),
        (0.1, 0.4, 0.01, "not supported"),  # an effect, but one that does not count
        (-0.3, 0.3, 0.9, "not supported"),
        (-0.9, 0.3, 0.9, "not supported"),
        (-0.9, -0.6, 1.0, "not supported"),  # beyond the other end
        (-0.9, 0.5, 0.9, "undecided"),
        (np.nan, np.nan, 0.01, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(lower, upper, p_holm, expected):
    assert verdict(lower, upper, p_holm, 0.5) == expected


def test_nothing_at_all_gives_three_undecided_rows():
    rows, secondary = judged(inputs())
    assert {h: row["verdict"] for h, row in rows.items()} == dict.fromkeys(("H1", "H2", "H3"), "undecided")
    assert not secondary


def test_families_are_variants_and_h2_counts_once():
    given = pair_tables(5, 2.0)
    ids = names(120)
    maps = [map_rows(t, ids, 0.5) for t in given["trial_rows"]["trial_id"]]
    rows = [r for r in hypothesis_rows(inputs(**given, maps=maps), 200) if r["role"] == "verdict"]
    assert [(r["hypothesis"], r["subject"]) for r in rows] == [
        ("H1", "plain"),
        ("H1", "balanced"),
        ("H2", "plain-balanced"),
        ("H3", "plain"),
        ("H3", "balanced"),
    ]
    h2, h3 = rows[2], rows[3]
    assert {r["family"] for r in (h2, h3)} == {"H1, H2 and H3 | plain"}
    assert h3["family_size"] == 3  # H1 has no p, and counts as 1
    small, large = sorted([h2["p"], h3["p"]])
    assert sorted([h2["p_holm"], h3["p_holm"]]) == pytest.approx([3 * small, max(3 * small, 2 * large)])


def test_the_third_hypothesis_is_supported_from_below():
    assert (TESTED["H1"].line, TESTED["H1"].side) == (0.5, 1)
    assert (TESTED["H3"].line, TESTED["H3"].side) == (pytest.approx(0.15), -1)
