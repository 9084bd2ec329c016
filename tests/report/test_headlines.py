"""The first screen and the terminal name the hardest strong control."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray.report.load import load
from cxr_ray.report.section import Folder
from cxr_ray.report.sections import answer
from cxr_ray.results import open_run
from cxr_ray.run.outcome import summary_lines
from cxr_ray.schemas import TABLES
from cxr_ray.storage import Store
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


def first_screen(out):
    run = open_run(out)
    return answer.first_screen(load(run), Folder(Store(run.path, {})))


def test_the_strong_control_that_is_not_beaten_is_named_though_another_is(run):
    """A fixed order of controls named other_image, which is beaten, and hid mean_map, which is not."""
    clear = {"mean": 1.03, "lower": 0.86, "upper": 1.19, "beaten": "yes", "hardest": False, "mean_p_holm": 0.001}
    close = {"mean": 0.26, "lower": -0.11, "upper": 0.63, "beaten": "no", "hardest": True, "mean_p_holm": 0.52}
    with_values(run, "gradcam", "other_image", **clear)
    with_values(run, "gradcam", "mean_map", **close)
    screen = first_screen(run)
    (sentence,) = screen["answers"]
    assert sentence.startswith("Grad-CAM on plain: more faithful than other patients' maps; ")
    assert "not shown to be better than the average map" in sentence
    (group,) = (x for x in screen["groups"] if x.startswith("all ("))
    assert "advantage over the hardest strong control, mean_map: +0.260 [−0.110, +0.630], win rate" in group
    assert ": not beaten; 1 of 2 strong controls beaten." in group
    (line,) = (x for x in summary_lines(run) if "gradcam" in x and " all " in x and "win rate" in x)
    assert "mean_map     0.260 [-0.110, 0.630]" in line
    assert line.endswith("not beaten")


def test_the_hardest_control_is_named_for_every_group_and_other_explainers_have_their_sentence(run):
    screen = first_screen(run)
    assert [x.split(" (")[0] for x in screen["groups"]] == ["all", "TP", "FP", "TN", "FN"]
    assert screen["others"] == [
        "Occlusion on plain: more faithful than the average map, other patients' maps, shifted maps and random pixels."
    ]


def test_win_rate_and_mean_advantage_that_differ_are_named(run):
    with_values(run, "gradcam", "mean_map", mean=-0.26, lower=-0.5, upper=-0.1, beaten="differs", hardest=True)
    words = "differs: the win rate is above chance, the mean advantage is not shown to be; win rate and mean advantage "
    assert any(words + "have opposite signs" in x for x in first_screen(run)["groups"])
    assert any(words + "have opposite signs" in x for x in summary_lines(run))


def test_the_figure_has_the_smallest_advantage_at_the_bottom_and_its_numbers_in_words(run):
    with_values(run, "gradcam", "mean_map", mean=-9.5, lower=-9.75, upper=-9.25, beaten="no", hardest=True)
    (panel,) = first_screen(run)["panels"]
    names = re.findall(r'font-size="12"[^>]*>([^<]+)<', panel["svg"])
    assert names[-1] == "the average map"
    assert len(names) == 4
    alt = re.search(r'aria-label="([^"]+)"', panel["svg"]).group(1)
    assert "over the average map −9.500 [−9.750, −9.250]" in alt
    assert {"summary.svg", "summary.pdf"} <= {p.name for p in Path(run, "figures").iterdir()}
    assert Path(run, "figures", "summary.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_strong_control_nothing_is_shown_to_be_faithful(tmp_path):
    out = make_run(tmp_path / "run", keep_maps=False)
    words = "not shown: no strong control was measured."
    assert f"Maps against strong controls: {words}" in first_screen(out)["caveats"]
    assert any(words in x for x in summary_lines(out))


def test_the_best_explainer_is_told_by_paired_comparisons_alone(run):
    (sentence,) = (x for x in first_screen(run)["findings"] if x.startswith("Explainers compared"))
    assert sentence.endswith("None is shown to be the best; every one of them may be.")


def test_a_model_that_ranks_the_classes_the_wrong_way_round_is_a_question_and_no_result(tmp_path):
    out = make_run(tmp_path / "run", given=True, keep_maps=False)
    (file,) = Path(out, "tables", "classification").glob("*.parquet")
    rows = pq.ParquetFile(file).read().to_pylist()
    for row in rows:
        row.update(auroc=0.123, auroc_lower=0.1, auroc_upper=0.15)
    pq.write_table(pa.Table.from_pylist(rows, TABLES["classification"].schema), file)
    screen = first_screen(out)
    question = "study: got an AUROC of 0.123 [0.100, 0.150] on 6 test images; expected at least 0.4; may the classes be"
    assert screen["questions"][0].startswith(question)
    assert screen["performance"] == []
    assert screen["answers"] == [
        "Grad-CAM on study: no answer before it is settled which output stands for which class."
    ]
    assert question in text_of(page_of(out))
    lines = list(summary_lines(out))
    assert any(line.startswith("  study ") and line.endswith("?") for line in lines)
    assert any(line.startswith(f"  ? {question}") for line in lines)


def test_nothing_is_asked_of_a_model_that_ranks_them_right(run):
    screen = first_screen(run)
    assert screen["questions"] == []
    assert screen["performance"][0].startswith("plain: accuracy 0.667")
    assert not any("AUROC of" in line for line in summary_lines(run))
