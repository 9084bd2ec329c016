"""Region effects against counterfactual renderings, counted by hand."""

import pandas as pd
import pytest

from cxr_ray.analysis.agreement.truth import truth_points, truth_rows
from cxr_ray.analysis.region_summary import region_effects
from cxr_ray.schemas import AGREEMENT, REGIONS
from tests.builders.regions import marker_rows


def points():
    base = marker_rows(5).query("control == 'none'").assign(logit_full_image=2.0)
    drawn = base.assign(fill="counterfactual", logit_target=[3.0, 1.5, 1.0, 0.0, -1.0])
    filled = base.assign(logit_target=[1.0, 1.9, 1.8, 1.7, 1.6])  # the first has the wrong sign and the highest rank
    return truth_points(region_effects(pd.concat([filled, drawn])).assign(outcome="TP"))


def test_rows_hold_rank_correlation_and_share_of_equal_signs():
    rows = truth_rows(points(), "m", "pneumonia")
    assert len(AGREEMENT.from_rows(rows)) == 2
    rho, same = rows
    assert (rho["axis"], rho["a"], rho["b"], rho["n"]) == ("marker", "mean", "marker", 5)
    assert rho["value"] == pytest.approx(0.0)  # ranks 5 1 2 3 4 against 1 2 3 4 5
    assert (same["statistic"], same["value"], same["count"], same["n"]) == ("same_sign", 0.8, 4, 5)


def test_without_renderings_there_are_no_points():
    empty = REGIONS.schema.empty_table().to_pandas()
    assert truth_rows(truth_points(region_effects(empty).assign(outcome=None)), "m", "pneumonia") == []
