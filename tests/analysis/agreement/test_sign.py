"""Which choice turns the sign of a difference of drops, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.analysis.agreement.sign import sign_cells, sign_rows, sign_turns
from cxr_ray.schemas import AGREEMENT, SUMMARY


@pytest.fixture
def summary():
    """One rule, fill and contrast: below 0 at 0.25 in probability, holding 0 at 0.5, above 0 in log-odds."""
    values = {(0.25, "prob"): (-1, 0.5), (0.5, "prob"): (1, 2), (0.25, "logodds"): (1, 0.5), (0.5, "logodds"): (1, 0.5)}
    same = {
        "target_rule": "pneumonia",
        "fill": "mean",
        "bucket": "TP-FP",
        "matched": False,
        "contrast": True,
        "metric": "drop",
        "control": "none",
        "n": 9,
        "n_patients": 9,
    }
    return pd.DataFrame(
        [
            {**same, "level": level, "scale": scale, "mean": mean, "lower": mean - half, "upper": mean + half}
            for (level, scale), (mean, half) in values.items()
        ]
    )


def test_turns_are_pairs_that_differ_in_one_choice(summary):
    cells = sign_cells(summary)
    assert list(cells["sign"]) == [-1, 0, 1, 1]
    turns = sign_turns(cells).set_index("axis")[["pairs", "turned", "clearly"]]
    assert list(turns.loc["level"]) == [2, 1, 0]  # in probability, but one interval holds 0
    assert list(turns.loc["scale"]) == [2, 1, 1]  # at 0.25


def test_without_intervals_nothing_turns_clearly(summary):
    cells = sign_cells(summary.assign(lower=np.nan, upper=np.nan))
    assert cells["sign"].isna().all()
    assert sign_turns(cells)["clearly"].sum() == 0


def test_rows_count_cells_by_side_and_pairs_by_choice(summary):
    rows = sign_rows(summary, "m", "gradcam", "pixel")
    assert len(AGREEMENT.from_rows(rows).to_pandas().drop_duplicates(list(AGREEMENT.key))) == len(rows)
    sides = {r["statistic"]: (r["count"], r["n"], r["value"]) for r in rows if r["axis"] == "all"}
    assert sides == {"above": (2, 4, 0.5), "below": (1, 4, 0.25), "holds_0": (1, 4, 0.25), "no_interval": (0, 4, 0.0)}
    turned = {(r["axis"], r["statistic"]): (r["count"], r["n"], r["value"]) for r in rows if r["axis"] != "all"}
    assert turned == {
        ("level", "turned"): (1, 2, 0.5),
        ("level", "clearly"): (0, 2, 0.0),
        ("scale", "turned"): (1, 2, 0.5),
        ("scale", "clearly"): (1, 2, 0.5),
    }


def test_a_summary_without_contrasts_has_no_rows():
    empty = SUMMARY.schema.empty_table().to_pandas()
    assert sign_turns(sign_cells(empty)).empty
    assert sign_rows(empty, "m", "gradcam", "pixel") == []
