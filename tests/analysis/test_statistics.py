"""Statistics tables of a run made by hand, and of one that an older version wrote without them."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from cxr_ray.analysis import groups, statistics
from cxr_ray.errors import RunError
from cxr_ray.results import open_run
from cxr_ray.schemas import TABLES
from tests.builders.runs import TRIAL, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Without the tables that came with schema version 3."""
    out = make_run(tmp_path_factory.mktemp("statistics") / "run", more=True)
    for name in statistics.DERIVED:
        shutil.rmtree(Path(out, "tables", name), ignore_errors=True)
    return open_run(out)


@pytest.mark.parametrize("name", statistics.DERIVED)
def test_a_table_that_an_older_run_lacks_is_computed(run, name):
    found = statistics.table(run, name)
    assert list(found.columns) == list(TABLES[name].columns)
    assert len(found)
    assert not found.duplicated(list(TABLES[name].key)).any()


def test_a_table_that_nothing_gives_is_an_error(run):
    with pytest.raises(RunError):
        statistics.table(run, "hypothesis")


def test_a_table_of_the_run_is_read_as_it_stands(run, monkeypatch):
    monkeypatch.setitem(statistics.DERIVED, "summary", lambda measured: pytest.fail("it is there"))
    assert statistics.table(run, "summary").equals(run.pandas("summary"))


def test_region_effects_are_those_of_the_images(run):
    """Border: effects of 1 to 6 against controls of 0.5 and 1.5."""
    rows = statistics.table(run, "region_summary").query(
        "region == 'border' and bucket == 'all' and scale == 'logodds'"
    )
    means = rows.set_index("quantity")["mean"].to_dict()
    assert means == pytest.approx({"effect": 3.5, "matched": 1.0, "advantage": 2.5})
    assert set(rows["n"]) == {6}
    assert set(rows["draws"]) == {2}


def test_region_effects_are_compared_with_the_truth(run):
    """Marker: an effect of i where the truth is 2 i."""
    truth = statistics.table(run, "agreement").query("kind == 'truth' and a == 'mean'").set_index("statistic")
    assert truth.loc["spearman", "value"] == pytest.approx(1.0)
    assert list(truth.loc["same_sign", ["count", "n"]]) == [6, 6]


def test_randomised_maps_are_compared_with_the_models_own(run):
    """Two images: likeness 0.25 and 1.25 at fc; own gaps to shifted of -0.1 and -0.2."""
    fc = statistics.table(run, "sanity_summary").query("layer == 'fc'").set_index("quantity")["mean"]
    assert fc["spearman"] == pytest.approx(0.75)
    assert fc["gap"] == pytest.approx(0.0625)
    assert fc["own_gap"] == pytest.approx(-0.15)


def test_the_sign_turns_with_the_level_in_probability_alone(run):
    sign = statistics.table(run, "agreement").query("kind == 'sign' and statistic == 'turned'").set_index("axis")
    assert list(sign.loc["level", ["count", "n"]]) == [2, 4]  # matched and not
    assert list(sign.loc["scale", ["count", "n"]]) == [2, 4]


def test_families_read_apart_give_the_rows_of_all_read_together(run, monkeypatch):
    together = statistics.summary(statistics.Measured(run))
    monkeypatch.setattr(groups, "ROWS", 0)
    apart = list(groups.groups(run, TRIAL, "pixel", "mean"))
    assert len(apart) == len({tuple(key) for part in apart for key in part[list(groups.FAMILY)].astype(str).to_numpy()})
    assert len(apart) > 1
    rows = statistics.summary(statistics.Measured(run))
    pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(together), rtol=1e-12)
    assert len(rows) == len({tuple(row[name] for name in TABLES["summary"].key) for row in rows})
