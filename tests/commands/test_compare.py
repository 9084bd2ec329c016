"""cxr-ray compare: tables, page, last lines, and what is refused."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from cxr_ray.commands import compare
from cxr_ray.report import comparison
from cxr_ray.report.page import number
from cxr_ray.schemas import COMPARED
from cxr_ray.storage import Store
from tests.builders.pairs import ids, planted_run

N = 60
GAPS = {("gradcam", "shifted"): np.random.default_rng(1).normal(0.3, 1, N)}


@pytest.fixture
def runs(tmp_path):
    """The reference; the same with a planted difference; one of other images."""
    better = {("gradcam", "shifted"): GAPS["gradcam", "shifted"] + np.random.default_rng(2).normal(2, 0.1, N)}
    right = [True] * N
    return [
        planted_run(tmp_path / "one", GAPS, right),
        planted_run(tmp_path / "two", better, right, seed=1),
        planted_run(tmp_path / "three", GAPS, right, images=ids(N + 30)[30:]),
        planted_run(tmp_path / "four", GAPS, right, images=ids(3 * N)[2 * N :]),
    ]


def said(capsys, *argv: str):
    code = compare.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_it_ends_with_a_sentence_a_run_and_one_path(capsys, runs, tmp_path):
    out = str(tmp_path / "out")
    code, lines, err = said(capsys, *runs[:3], "--out", out)
    assert (code, err) == (0, [])
    assert lines[0] == (
        "study: 30 test images are in both runs; 30 are in one alone, 30 in three alone, and 0 of both have another "
        "label: these are left out."
    )
    assert re.fullmatch(
        r"two, study: accuracy the same, AUROC the same on 60 images; advantage of Grad-CAM higher over shifted maps\.",
        lines[-3],
    )
    assert lines[-2].startswith("three, study: ")
    assert lines[-1] == f"Page: {out}/comparison.html"


def test_tables_have_their_schema_and_every_number_of_the_page(capsys, runs, tmp_path):
    out = str(tmp_path / "out")
    assert said(capsys, *runs[:3], "--out", out)[0] == 0
    for name, table in COMPARED.items():
        found = pq.read_table(f"{out}/tables/{name}")
        assert found.schema.equals(table.schema, check_metadata=False)
        keys = found.select(list(table.key)).to_pandas()
        assert not keys.duplicated().any()
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    known = set()
    for frame in comparison.read(Store(out, {})).values():
        for column in frame.select_dtypes("number"):
            known |= {number(v, sign=sign) for v in frame[column].dropna() for sign in (False, True)}
    known.add("0.001")  # of p-values below it
    rows = re.findall(r"<td>(.*?)</td>", page)
    shown = {n for cell in rows for n in re.findall(r"[+−]?\d\.\d{3}", cell)}
    assert shown
    assert shown <= known


def test_the_page_asks_nothing_of_the_network(capsys, runs, tmp_path):
    assert said(capsys, *runs[:2], "--out", str(tmp_path / "out"))[0] == 0
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "two compared with one" in page


@pytest.mark.parametrize(
    ("chosen", "more", "message"),
    [
        ([0], [], "got one run"),
        ([0, 3], [], "which scored no test image in common"),
        ([0, 1], ["--pair", "study"], "--pair: got 'study'"),
        ([0, 1], ["--pair", "study=mine"], "got the model mine, which two does not have"),
    ],
)
def test_a_wrong_request_is_a_sentence(capsys, runs, tmp_path, chosen, more, message):
    code, lines, (error,) = said(capsys, *(runs[i] for i in chosen), *more, "--out", str(tmp_path / "out"))
    assert (code, lines) == (2, [])
    assert message in error


def test_what_is_no_run_is_a_sentence(capsys, runs, tmp_path):
    code, _, (error,) = said(capsys, runs[0], str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "is not a run" in error
