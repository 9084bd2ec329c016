"""A run made by hand, whose numbers the page must repeat, and what a page must survive."""

import itertools
import re
from pathlib import Path

import pytest

from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.report.__main__ import main
from cxr_ray.run.outcome import summary_lines
from tests.builders.chromium import chromium
from tests.builders.pages import page_of, text_of
from tests.builders.runs import TRIAL, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    reason = "<script>alert('x')</script> & more"
    errors = [{"path": f"train/a{i}.png", "image_id": None, "stage": "decode", "reason": reason} for i in range(5)]
    return make_run(tmp_path_factory.mktemp("run") / "run", errors=errors)


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


def test_advantages_are_those_of_the_table_beside_their_definition(page):
    text = text_of(page)
    # gradcam, all, shifted, abpc (third metric), log-odds: -(1 + 0.02 + 6); pixel_random: -(1 + 0.02 + 3)
    assert (
        "−7.020 [−7.520, −6.770] p_holm 1.000 · win rate 0.625 [0.524, 0.726], p_holm 0.042 · differs −4.020 [−4.520,"
        in text
    )
    # occlusion, TP, drop at 0.5 (fifth metric), probability: 2 + 0.1 + 0.04 + 0.001, and + 6 and + 3; 1 patient
    assert "occlusion TP 0.5 2 (1) +2.141 +8.141 win rate 0.625 · not tested +5.141" in text
    for scale in ("log-odds", "probability"):
        where = f"{scale} of the target; model plain; grid pixel, fill mean, target rule pneumonia; level: "
        assert (
            f"Advantage over the control in area between perturbation curves (ABPC), {where}none "
            "(area over all levels)." in text
        )
        assert f"Advantage over the control in drop, {where}each level" in text
    assert "advantage over shifted (1 draw) advantage over pixel_random (2 draws)" in text
    assert "99.999" not in text  # contrasts are another question


def test_bold_needs_the_test_and_the_interval(page):
    assert "<b>+8.020 [+7.520, +8.270]</b>" in page  # occlusion, all, shifted
    assert "<b>−7.020" not in page  # below 0, though p_holm is 0.042
    assert "<b>+8.120</b>" not in page  # occlusion, TP: no interval


def test_models_stand_with_their_counts(page):
    text = text_of(page)
    assert "plain half: 0.500 0.667 [0.311, 0.922] 0.712 0.667 0.667 6 6 2 1 2 1" in text
    assert f"plain {TRIAL} plain 3 completed 4 2 0.877 yes" in text
    assert "plain-ffffffff plain-ffffffff plain – failed: <b>out of memory</b> – – – no" in text


def test_text_from_the_tables_is_escaped(page):
    assert "<script" not in page
    assert "<b>out of memory" not in page
    assert "Six &lt;phantoms&gt;." in page
    assert "decode <script>alert('x')</script> & more 5 train/a0.png, train/a1.png, train/a2.png" in text_of(page)


def test_the_page_opens_offline(page, run):
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert links
    for link in links:
        inside = link.startswith("#") and f'id="{link[1:]}"' in page
        assert inside or link.startswith("data:") or (Path(run) / link.partition("#")[0]).is_file(), link[:80]
    assert not re.search(r"https?://|@import|url\(", page)
    kinds = sorted(p.name.split("-")[0] for p in Path(run, "figures").iterdir())
    once = ["advantages", "concentration", "curves", "curves", "deletion", "ranks", "summary.pdf", "summary.svg"]
    assert kinds == once
    files = {p.name for p in Path(run, "galleries").iterdir()}
    random = {f"random_compact_{i:02d}.png" for i in range(1, 7)}
    assert files == random | {"legend.png", "tp_compact_01.png", "tp_compact_02.png", "fp_compact_01.png"}


def test_drawn_again_it_is_the_same_page(run, page, capsys):
    assert main([run, "--quiet"]) == 0
    *sentences, path = capsys.readouterr().out.splitlines()
    assert path == f"{run}/report.html"
    assert sentences[0].startswith("Grad-CAM on plain: ")
    assert Path(run, "report.html").read_text() == page


def test_absolute_areas_where_the_baseline_is_valid(page):
    assert "gradcam all 6 (5) 6 of 6 −1.000 [−1.500, −0.750] −1.010" in text_of(page)


def test_a_run_that_measured_less_says_what_it_lacks(page):
    text = text_of(page)
    assert "Hypotheses. This run judges no hypothesis" in text
    assert "The run measured no regions" in text
    assert "Not measured in this run (verdicts: null, or an older run)." in text
    assert "The run has no randomised models" in text
    assert "Localisation was not measured in this run: it takes an expert truth" in text
    assert "it takes two models and a control" in text


@pytest.fixture(scope="module")
def findings_text(tmp_path_factory):
    return text_of(page_of(make_run(tmp_path_factory.mktemp("more") / "run", more=True)))


def test_lung_enrichment_stands_beside_its_controls(findings_text):
    assert "gradcam all 6 (6) 0.240 1.250 0.750 0.938 1.875 1.000 0.000" in findings_text


def test_localisation_stands_beside_faithfulness(findings_text):
    """Two true positives with values of 0.375 and 0.4375, and a false negative with 0.625."""
    assert "gradcam all 3 (3) 0.050 0.333 0.479 0.479 0.479 0.479" in findings_text
    assert "gradcam FN 1 (1) 0.050 0.000 0.625 0.625 0.625 0.625" in findings_text
    assert "gradcam all shifted 3 (3) 0.250 +0.229" in findings_text
    assert "gradcam shifted 3 −1.000 0.000 1.000" in findings_text  # gaps fall where localisation rises


def test_hypotheses_have_verdicts_in_words(findings_text):
    assert "Above margin (plain): the interval lies above 0.5 Quantity removing <border> and corners" in findings_text
    assert "Effect +1.750 [+1.250, +2.250], 90% interval [+1.375, +2.125] log-odds; " in findings_text
    assert "margin −0.50 to 0.50; 1 model, 60 images, 50 patients" in findings_text
    assert "Test sign-flip: p 0.001, p_holm 0.002 in the family H1, H2 and H3 | plain (2)" in findings_text
    assert "maps at the border, FP minus TP plain +0.125 share 1 / 60 / 50" in findings_text
    assert TESTED["H1"].question in findings_text
    assert TESTED["H2"].question not in findings_text  # the sweep does not ask it
    assert "H3 (plain) is not applicable: there are no lung masks" in findings_text
    assert "nan" not in findings_text.lower().split()


def test_sequential_verdicts_lead_and_stand_with_their_numbers(findings_text):
    assert findings_text.count(f"Grad-CAM on {TRIAL}, all: told of shifted.") == 2  # a headline, and its section
    assert "gradcam pneumonia shifted all 41 of 427 820 332 0.781 [0.541, 0.937] better" in findings_text
    assert "gradcam pneumonia mean_map FN 0 of 0 0 – – undecided" in findings_text


def test_the_sign_stands_under_every_choice(findings_text):
    up, down = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"
    # probability, all and matched; log-odds, all and matched
    assert (
        f"pneumonia mean 0.5 {down} −0.064 [−0.114, −0.014] n = 60 −0.064 n = 60 {up} +1.500 [+1.450, +1.550] n = 60 "
        "+1.500 n = 60"
    ) in findings_text
    assert "Of 8 cells, 3 lie wholly above 0 (the first bucket falls further), 1 wholly below" in findings_text
    assert "scale log-odds probability 4 2 (50%) 1 (25%)" in findings_text
    assert "level 0.25 0.5 4 2 (50%) 1 (25%)" in findings_text


def test_deletion_has_the_level_of_the_findings_study(findings_text):
    assert "Deletion at level 0.25 by gradcam" in findings_text
    # gradcam, TP, drop at 0.25 (fourth metric), in probability and log-odds; value 0.5 + i never falls below 0
    assert "TP 2 (1) −1.131 −1.130 0 of 2 +2.125 +2.125" in findings_text
    assert "TP minus FP 60 (55) +0.125 [+0.075, +0.175] +1.250 [+1.200, +1.300]" in findings_text


def test_regions_ground_truth_and_randomised_models_have_their_rows(findings_text):
    assert "border mean all 36.0% 6 (6) +3.500 +1.000 +2.500" in findings_text
    assert "border mean FP 36.0% 1 (1) +3.000 +1.000 +2.000" in findings_text
    assert "equalize all 6 (6) −0.250 +0.500" in findings_text
    assert "marker without its marker mean 6 1.00 100%" in findings_text
    assert "gradcam weights randomised down to fc 2 (2) 0.750 0.250 0.375 +0.062 −0.150" in findings_text


def test_one_direction_has_no_abpc_no_maps_no_gallery_no_errors_no_list(tmp_path):
    out = make_run(tmp_path / "a", orders=("morf",), keep_maps=False)
    text = text_of(page_of(out))
    assert "Advantage over the control in deletion area, log-odds" in text
    assert "ABPC" not in text
    assert "There is no gallery: the run kept no maps (explain.keep_maps: false)." in text
    assert "No errors." in text
    assert not Path(out, "galleries").exists()
    text = text_of(page_of(make_run(tmp_path / "b", orders=("lerf",), keep_maps=False)))
    assert "Advantage over the control in insertion area, log-odds" in text
    assert "Advantage over the control in drop" not in text


def test_levels_too_far_apart_for_areas_leave_the_drop_as_the_primary_metric(tmp_path):
    text = text_of(page_of(make_run(tmp_path / "run", levels=(0.1, 0.25, 0.5), more=True)))
    assert "The primary number is the advantage in drop at level 0.25, in log-odds" in text
    assert (
        "Areas are not measured, drops only: the widest step between the levels 0.1, 0.25, 0.5 (0 and 1 included) is "
        "0.5, over 0.3. The primary metric is the drop at level 0.25. Levels that do: 0.1, 0.25, 0.5, 0.75." in text
    )
    # gradcam, all: -(1 + 0.01), and over shifted -(1 + 0.01 + 6)
    assert "gradcam all 0.25 6 (5) −1.010 [−1.510, −0.760] −7.010 [−7.510, −6.760]" in text
    assert "advantage: in drop at level 0.25, log-odds, grid pixel" in text  # sanity
    assert "ABPC" not in text
    assert "auc" not in text.lower().replace("auroc", "").replace("auprc", "")


def test_a_single_invalid_fill_leads_the_page_with_deletion_and_shows_no_area_of_insertion(tmp_path):
    text = text_of(page_of(make_run(tmp_path / "run", val_valid=3, valid=False, more=True)))
    said = (
        "Filled with mean, the image scores at least 1 log-odds below the untouched one for 3 of 20 validation images "
        "of plain: no fill that was asked for is a valid baseline (at least 95% of the images of every model), so "
        "the primary metric is deletion alone and areas of insertion are not shown."
    )
    assert text.count(said) == 2  # at the top and among the limitations
    assert "The primary number is the advantage in deletion area, in log-odds" in text
    assert "Advantage over the control in deletion area, log-odds" in text
    assert "Advantage over the control in area between" not in text
    assert "Advantage over the control in insertion" not in text
    assert "insertion area: higher" not in text
    assert "plain pneumonia mean 20 (20) 3 0.150 [0.120, 0.136] +0.312 no" in text


def test_a_valid_fill_is_told_and_insertion_is_shown(tmp_path):
    text = text_of(page_of(make_run(tmp_path / "run", val_valid=20)))
    assert "for 20 of 20 validation images of plain: a valid baseline, and the primary fill." in text
    assert "Advantage over the control in area between perturbation curves (ABPC), log-odds" in text


def test_missing_values_two_rules_and_a_given_model_have_a_page(tmp_path):
    out = make_run(tmp_path / "run", null_map=True, given=True, rules=("pneumonia", "predicted"))
    page = page_of(out)
    text = text_of(page)
    # maps, compact, diffuse, scattered, border, degenerate, four shares of mass, constant, not finite, ties
    assert "gradcam all 6 (6) 5 (83%) 0 (0%) 0 (0%) 0 (0%) 0 (0%) – – – – 0 1 0.25" in text
    assert "target rule predicted Maps of each spatial concentration" in text
    assert "study study plain – given – – – yes" in text_of(page)
    assert "Images without a finite map are missing from the map" in page
    assert "target rule predicted" in page


def test_missing_images_are_one_sentence_and_invalid_baselines_are_named(tmp_path):
    moved = tmp_path / "moved"
    settings = {"source": "folder", "path": str(moved), "size": 64, "fit": "squash"}
    out = make_run(tmp_path / "run", data=settings, valid=False)
    text = text_of(page_of(out))
    assert f"There is no gallery: none of its 6 images could be read from {moved}." in text
    assert f"python -m cxr_ray.report {out} --data PATH." in text
    assert "gradcam all 6 (5) 0 of 6 not shown: valid baseline for 0 of 6" in text
    assert "these test images score at least 1 log-odds below the untouched one: 0 of 6 of plain." in text
    assert any("below the untouched one for 0 of 6 images of plain" in line for line in summary_lines(out))
    assert "−7.020 [−7.520, −6.770]" in text  # advantages share the baseline, and need no image


@pytest.mark.parametrize("kind", ["nothing", "a file", "a folder without a run", "a run without tables", "a scheme"])
def test_a_wrong_path_is_one_sentence(kind, tmp_path, capsys):
    path = str(tmp_path / "x")
    if kind == "a file":
        Path(path).write_text("text")
    elif kind != "nothing":
        Path(path).mkdir()
    if kind == "a run without tables":
        Path(path, "sweep.yaml").write_text("name: x\n")
    assert main(["nowhere://x" if kind == "a scheme" else path]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cxr_ray: ")
    assert message.count("\n") == 1
    assert {"a run without tables": "finish it with --resume", "a scheme": "nowhere"}.get(
        kind, "is not a run"
    ) in message


def test_chromium_renders_it_without_a_complaint_and_nothing_is_wider_than_the_screen(run, page, tmp_path):
    with chromium(tmp_path / "profile") as tab:
        for width in (390, 768, 1280):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            tab.open(Path(run, "report.html"))
            tab.until("document.readyState === 'complete'")
            tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            assert tab.run("document.documentElement.scrollWidth") <= width
        inside = "[...document.querySelectorAll('table')].every((t) => t.closest('.scroll[tabindex][role=group]'))"
        assert tab.run(inside)  # what is wider scrolls in a box that shows it, with the keyboard too
        assert tab.run("document.querySelectorAll('svg:not([aria-label])').length") == 0
        levels = tab.run("[...document.querySelectorAll('h1, h2, h3, h4, h5')].map((h) => Number(h.tagName[1]))")
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert tab.complaints == []
        assert set(tab.requests) == {Path(run, "report.html").resolve().as_uri()}
