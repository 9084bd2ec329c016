"""The page and the terminal name the hardest comparison."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray.report.load import load
from cxr_ray.report.sections.headlines import headlines
from cxr_ray.results import open_run
from cxr_ray.run.outcome import summary_lines
from cxr_ray.schemas import TABLES
from tests.builders.pages import page_of, text_of
from tests.builders.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("strong") / "run", strong=True, keep_maps=False)


def with_values(out, explainer, control, **values):
    """Rewrites a row of `summary`: all images, area between perturbation curves, log-odds."""
    for file in Path(out, "tables", "summary").rglob("*.parquet"):
        table = pq.ParquetFile(file).read()
        rows = table.to_pylist()
        for row in rows:
            same = (row["explainer"], row["control"], row["bucket"], row["metric"], row["scale"])
            if same == (explainer, control, "all", "abpc", "logodds") and not row["contrast"]:
                row.update(values)
        pq.write_table(pa.Table.from_pylist(rows, TABLES["summary"].schema), file)


def test_the_headline_is_the_strong_control_that_is_not_beaten(run):
    """A fixed order of controls named other_image, which is beaten, and hid mean_map, which is not."""
    clear = {"mean": 1.03, "lower": 0.86, "upper": 1.19, "beaten": "yes", "hardest": False, "mean_p_holm": 0.001}
    close = {"mean": 0.26, "lower": -0.11, "upper": 0.63, "beaten": "no", "hardest": True, "mean_p_holm": 0.52}
    with_values(run, "gradcam", "other_image", **clear)
    with_values(run, "gradcam", "mean_map", **close)
    (sentence,) = (x for x in headlines(load(open_run(run))) if x.startswith("gradcam, all ("))
    assert "hardest strong control mean_map: +0.260 [−0.110, +0.630], win rate" in sentence
    assert ": not beaten; 1 of 2 strong controls beaten." in sentence
    (line,) = (x for x in summary_lines(run) if "gradcam" in x and " all " in x and "win rate" in x)
    assert "mean_map     0.260 [-0.110, 0.630]" in line
    assert line.endswith("not beaten")


def test_the_hardest_control_is_named_for_every_bucket_and_explainer(run):
    found = headlines(load(open_run(run)))
    buckets = [x.split(", ")[1].split(" (")[0] for x in found if x.startswith("gradcam, ") and "hardest" in x]
    assert buckets == ["all", "TP", "FP", "TN", "FN"]
    (other,) = (x for x in found if x.startswith("occlusion, ") and "hardest" in x)
    assert "other_image: +11.020 [+10.520, +11.270], win rate 0.625 [0.524, 0.726]: beaten; 2 of 2" in other


def test_win_rate_and_mean_advantage_that_differ_are_named(run):
    with_values(run, "gradcam", "mean_map", mean=-0.26, lower=-0.5, upper=-0.1, beaten="differs", hardest=True)
    words = "differs: the win rate is above chance, the mean advantage is not shown to be; win rate and mean advantage "
    assert any(words + "have opposite signs" in x for x in headlines(load(open_run(run))))
    assert any(words + "have opposite signs" in x for x in summary_lines(run))


def test_without_a_strong_control_nothing_is_shown_to_be_faithful(tmp_path):
    out = make_run(tmp_path / "run", keep_maps=False)
    words = "not shown: no strong control was measured."
    assert f"Maps against strong controls: {words}" in headlines(load(open_run(out)))
    assert any(words in x for x in summary_lines(out))


def test_the_best_explainer_is_told_by_paired_comparisons_alone(run):
    (sentence,) = (x for x in headlines(load(open_run(run))) if x.startswith("Explainers compared"))
    assert "None is shown to be the best; every one of them may be. On grid pixel rough maps" in sentence


def test_a_model_that_ranks_the_classes_the_wrong_way_round_is_a_question_and_no_result(tmp_path):
    out = make_run(tmp_path / "run", given=True, keep_maps=False)
    (file,) = Path(out, "tables", "classification").glob("*.parquet")
    rows = pq.ParquetFile(file).read().to_pylist()
    for row in rows:
        row.update(auroc=0.123, auroc_lower=0.1, auroc_upper=0.15)
    pq.write_table(pa.Table.from_pylist(rows, TABLES["classification"].schema), file)
    found = headlines(load(open_run(out)))
    question = "study: got an AUROC of 0.123 [0.100, 0.150] on 6 test images; expected at least 0.4; may the classes be"
    assert found[0].startswith(question)
    assert not any(x.startswith("Performance of ") for x in found)
    assert question in text_of(page_of(out))
    lines = list(summary_lines(out))
    assert any(line.startswith("  study ") and line.endswith("?") for line in lines)
    assert any(line.startswith(f"  ? {question}") for line in lines)


def test_nothing_is_asked_of_a_model_that_ranks_them_right(run):
    assert headlines(load(open_run(run)))[0].startswith("Performance of ")
    assert not any("AUROC of" in line for line in summary_lines(run))
