"""A run that schema version 2 wrote has the same page as one of today."""

import pytest

from cxr_ray.results import open_run
from tests.builders.older import to_version_2
from tests.builders.pages import page_of, text_of
from tests.builders.runs import make_run


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The texts of the page of a run of today, and of the same run as version 2 wrote it."""
    out = make_run(tmp_path_factory.mktemp("older") / "run", more=True)
    today = text_of(page_of(out))
    to_version_2(out)
    assert open_run(out).schema_version == 2
    return today, text_of(page_of(out))


def test_what_an_older_run_lacks_is_made_from_what_it_has(pages):
    for text in pages:
        assert_has_all_tables(text)


def assert_has_all_tables(older):
    assert "border mean all 36.0% 6 (6) +3.500 +1.000 +2.500" in older
    assert "gradcam weights randomised down to fc 2 (2) 0.750" in older
    assert "scale log-odds probability 4 2 (50%) 1 (25%)" in older
    assert "gradcam all 6 (6) 6 (100%)" in older


def test_columns_of_today_are_filled_in(pages):
    _, older = pages
    assert "of the NORMAL images 1 are called PNEUMONIA and 2 NORMAL" in older
    assert "TP 2 (1) −1.131 −1.130 0 of 2" in older  # images whose probability rose
    assert "gradcam all 6 (5) 6 of 6" in older  # images with a valid baseline


def test_what_an_older_run_did_not_measure_is_said(pages):
    today, older = pages
    said = "Lung enrichment was not measured in this run"
    assert said in older
    assert said not in today
