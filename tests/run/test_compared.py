"""Two versions of a table: values, rows and nulls that differ are found and counted, and no others."""

import numpy as np
import pandas as pd
import pytest

from cxr_ray.run.compared import compare
from cxr_ray.schemas import TABLES

KEY = {"trial_id": "m", "explainer": "e", "target": 1, "grid": "7", "fill": "mean"}


def faithfulness(n: int = 4) -> pd.DataFrame:
    rows = [
        {**KEY, "image_id": f"{i}", "metric": "drop", "level": level, "scale": "prob", "control": control, "gap": i / 7}
        for i in range(n)
        for control, level in (("none", 0.1), ("shifted", np.nan))
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(value=np.float32(2.0), n_draws=3, outcome="TP", p_value=np.nan)


def test_a_table_equals_itself_in_any_order_of_rows_and_with_nulls_in_the_key():
    one = faithfulness()
    found = compare("faithfulness", one, one.sample(frac=1, random_state=0), 0)
    assert found.holds
    assert (found.rows, found.columns, found.greatest, found.examples) == (8, 5, 0, ())


@pytest.mark.parametrize(
    ("column", "value", "greatest"),
    [
        ("value", 2.5, 0.2),
        ("gap", 0.25, 0.25),
        ("n_draws", 4, np.inf),
        ("outcome", "FP", np.inf),
        ("p_value", 1, np.inf),
    ],
)
def test_one_value_that_differs_is_found_with_its_place(column, value, greatest):
    one, other = faithfulness(), faithfulness()
    other.loc[1, column] = value
    found = compare("faithfulness", one, other, 1e-4)
    assert not found.holds
    assert (found.n_differing, found.n_missing, found.n_extra, found.column) == (1, 0, 0, column)
    assert found.greatest == pytest.approx(greatest)
    (example,) = found.examples
    assert example.startswith(f"{column}: ")
    assert "image_id 0" in example
    assert "control shifted" in example


def test_differences_within_the_tolerance_hold_and_are_told():
    one = faithfulness()
    found = compare("faithfulness", one, one.assign(value=2.0 + 1e-5), 1e-4)
    assert found.holds
    assert found.greatest == pytest.approx(0.5e-5, rel=0.1)


def test_a_gap_has_the_rounding_of_the_scores_that_it_lies_between():
    """A gap of 0.09 between scores of 12.6 and more moves by 1.2e-4 with the batch; between scores of 1 it may not."""
    large = faithfulness().assign(value=12.7, control_mean=12.6, control_sd=0.1, score_full=-14.6, gap=0.09)
    assert compare("faithfulness", large, large.assign(gap=0.09 + 1.2e-4), 1e-4).holds
    assert not compare("faithfulness", large, large.assign(gap=0.09 + 2e-3), 1e-4).holds
    small = large.assign(value=0.7, control_mean=0.6, score_full=-0.3)
    assert not compare("faithfulness", small, small.assign(gap=0.09 + 1.2e-4), 1e-4).holds


def test_a_column_may_have_a_wider_tolerance_and_no_other_has_it():
    one = faithfulness()
    off = one.assign(value=one["value"] + 1e-3)
    assert compare("faithfulness", one, off, 1e-4, {"value": 0.01}).holds
    assert not compare("faithfulness", one, off, 1e-4, {"gap": 0.01}).holds
    assert not compare("faithfulness", one, off.assign(value=one["value"] + 0.1), 1e-4, {"value": 0.01}).holds


def test_rows_that_are_missing_too_many_or_twice_are_counted():
    one, other = faithfulness(3), faithfulness(3)
    found = compare("faithfulness", pd.concat([one.drop(index=0), one.loc[[2, 2]]]), other.drop(index=5), 1e-4)
    assert (found.rows, found.n_missing, found.n_extra) == (4, 1, 3)
    assert [line.partition(":")[0] for line in found.examples] == ["missing", "too many", "twice", "twice"]


@pytest.mark.parametrize(
    ("changed", "greatest"),
    [([0, 5.0, -10], 0), ([0, 5.1, -10], 0.01), ([0, 5.0], np.inf), ([0, np.nan, -10], np.inf), (None, np.inf)],
)
def test_maps_are_compared_by_their_greatest_value(changed, greatest):
    def maps(values):
        table = TABLES["saliency"]
        row = {**dict.fromkeys(table.columns), "image_id": "a", "target": 1, "map": values}
        return table.from_rows([row]).to_pandas().assign(trial_id="m", explainer="e")

    found = compare("saliency", maps(changed), maps([0, 5.0, -10]), 1e-4)
    assert found.greatest == pytest.approx(greatest)
    assert found.holds == (greatest == 0)


def test_tables_without_rows_are_equal():
    empty = TABLES["sanity"].from_rows([]).to_pandas().assign(trial_id="")
    assert compare("sanity", empty, empty, 0).holds
