"""A run made by hand, whose numbers the page must repeat, and what a page must survive."""

import html
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cxr_ray import galleries, report
from cxr_ray import page as page_
from cxr_ray.schemas import SHARED, TABLES
from cxr_ray.sweep import print_summary
from cxr_ray.tables import Store

OUTCOMES = ["TP", "TP", "FP", "TN", "FN", "TN"]
TRIAL = "plain-01234567"
CONTROLS = {"pixel_random": 2, "shifted": 1}
LEVELS = (0.25, 0.5)


def make_run(out, *, orders=("morf", "lerf"), keep_maps=True, null_map=False, given=False, errors=(), data=None,
             rules=("pneumonia",), valid=True, more=False):  # fmt: skip
    """A finished run on six phantoms; each number of `summary` is its own, so that a page cannot mix them up.

    `more`: with regions, randomised models, hypotheses and contrasts of drops, as runs before them lack.
    """
    store = Store(str(out), {"run_id": "feedfeedfeedfeed", "sweep_hash": "0123456789abcdef"})
    trial = "study" if given else TRIAL
    phantom = {"train": 8, "test": 6, "prevalence": 0.5, "marker_correlation": 0.5}
    sweep = {
        "name": "byhand", "seed": 0, "controls": CONTROLS,
        "data": data or {"source": "phantom", "size": 64, "fit": "squash", "phantom": phantom},
        "explain": {"explainers": ["gradcam", "occlusion"], "targets": list(rules), "keep_maps": keep_maps},
        "perturb": {"grids": ["pixel"], "fills": ["mean"], "levels": list(LEVELS), "orders": list(orders)},
    }  # fmt: skip
    store.write(yaml.safe_dump(sweep).encode(), "sweep.yaml")
    store.write_json(
        {"name": "byhand", "run_id": "feedfeedfeedfeed", "data_notes": ["Six <phantoms>."]}, "provenance.json"
    )

    n, ids = len(OUTCOMES), [f"{i:016x}" for i in range(len(OUTCOMES))]
    labels = [int(o in ("TP", "FN")) for o in OUTCOMES]
    predicted = [int(o in ("TP", "FP")) for o in OUTCOMES]
    files = [f"test/{('NORMAL', 'PNEUMONIA')[label]}/phantom-{8 + i:06d}.pgm" for i, label in enumerate(labels)]
    image = {"content_hash": "0" * 64, "duplicate_of": None, "split": "test", "kind": "unknown", "width": 64,
             "height": 64, "mode": "L"}  # fmt: skip
    store.write_table("images", [
        {**image, "image_id": i, "path": p, "label": label, "patient_id": f"p{i}"}
        for i, p, label in zip(ids, files, labels, strict=True)
    ])  # fmt: skip
    none = dict.fromkeys(TABLES["trials"].columns)
    store.write_table("trials", [
        {**none, "trial_id": trial, "variant": "plain", "status": "given", "config": "{}"} if given else
        {**none, "trial_id": trial, "variant": "plain", "seed": 3, "status": "completed", "epochs": 4, "best_epoch": 2,
         "val_auroc": 0.87654, "config": '{"train": {"lr": 0.001}}'},
        {**none, "trial_id": "plain-ffffffff", "variant": "plain", "status": "failed", "error": "<b>out of memory</b>"},
    ])  # fmt: skip
    store.write_table("classification", [
        {**dict.fromkeys(TABLES["classification"].columns), "trial_id": trial, "split": "test", "threshold_rule":
         "half", "threshold": 0.5, "accuracy": 0.66667, "accuracy_lower": 0.3111, "accuracy_upper": 0.9222,
         "auroc": 0.71234, "sensitivity": 2 / 3, "specificity": 2 / 3, "n": n, "n_patients": n}
    ])  # fmt: skip
    contrasts = contrast_rows(trial) if more else []
    store.write_table("summary", summary_rows(trial, orders, rules, valid) + contrasts)
    store.write_table("errors", list(errors))
    if more:
        store.write_table("hypotheses", hypothesis_rows())
        _partition(store, "regions", {"trial_id": trial}, _columns("regions", region_rows(ids)))
        _partition(store, "sanity", {"trial_id": trial}, _columns("sanity", sanity_rows(ids)))

    logits = np.where(predicted, 2.0, -2.0)
    _partition(store, "predictions", {"trial_id": trial}, {
        "image_id": ids, "split": ["test"] * n, "label": labels, "prob_pneumonia": 1 / (1 + np.exp(-logits)),
        "logit_pneumonia": logits, "predicted": predicted, "outcome": OUTCOMES,
    })  # fmt: skip
    pairs = sorted({(i, 1 if rule == "pneumonia" else predicted[i]) for rule in rules for i in range(n)})
    for e, explainer in enumerate(["gradcam", "occlusion"]):
        where = {"trial_id": trial, "explainer": explainer}
        bad = [null_map and i == 0 and e == 0 for i, _ in pairs]
        maps = [np.arange(9.0) - 4 * e + i for i, _ in pairs]
        nothing = dict.fromkeys(TABLES["saliency"].columns, [None] * len(pairs))
        _partition(store, "saliency", where, {
            **nothing, "image_id": [ids[i] for i, _ in pairs], "target": [t for _, t in pairs],
            "map": [np.full(9, np.nan) if b else m if keep_maps else None for m, b in zip(maps, bad, strict=True)],
            "map_height": [3] * len(pairs), "map_width": [3] * len(pairs), "tied": [0.25] * len(pairs),
            "degenerate": [False] * len(pairs), "focus": [None if b else "localized" for b in bad],
        })  # fmt: skip
        _partition(store, "faithfulness", where, _columns("faithfulness", [
            {"image_id": ids[i], "target": t, "grid": "pixel", "fill": "mean", "metric": metric, "level": level,
             "scale": scale, "control": control, "outcome": OUTCOMES[i], "value": None if b else 0.5 + i,
             "gap": None if b or control == "none" else -0.1 * (i + 1), "u": None if b or control == "none" else -0.5,
             "n_draws": CONTROLS.get(control, 0), "baseline_valid": valid}
            for (i, t), b in zip(pairs, bad, strict=True) for metric, level in metrics(orders)
            for scale in ("prob", "logodds") for control in ("none", *CONTROLS)
        ]))  # fmt: skip
        _partition(store, "curves", where, curve_columns(ids, pairs, orders, {"none": 1, "shifted": 1}, bad))
    _partition(store, "curves", {"trial_id": trial, "explainer": SHARED},
               curve_columns(ids, pairs, orders, {"pixel_random": 2}, [False] * len(pairs)))  # fmt: skip
    return str(out)


def metrics(orders):
    areas = [m for m, o in (("deletion_auc", {"morf"}), ("insertion_auc", {"lerf"}), ("abpc", {"morf", "lerf"}))
             if o <= set(orders)]  # fmt: skip
    return [(m, None) for m in areas] + ([("drop", level) for level in LEVELS] if "morf" in orders else [])


def summary_rows(trial, orders, rules, valid):
    rows = []
    combinations = itertools.product(
        rules, enumerate(["gradcam", "occlusion"]), enumerate(["all", "TP", "FP", "TN", "FN"]),
        enumerate(metrics(orders)), enumerate(["logodds", "prob"]), enumerate(["none", *CONTROLS]),
    )  # fmt: skip
    for rule, (e, explainer), (b, bucket), (m, (metric, level)), (s, scale), (c, control) in combinations:
        mean = (1 if e else -1) * (1 + e + b / 10 + m / 100 + s / 1000 + c * 3)
        hidden = control == "none" and level is None and not valid
        known = bucket == "all" and not hidden
        rows.append({
            **dict.fromkeys(TABLES["summary"].columns), "trial_id": trial, "explainer": explainer, "target_rule": rule,
            "grid": "pixel", "fill": "mean", "metric": metric, "level": level, "scale": scale, "control": control,
            "bucket": bucket, "contrast": False, "matched": False, "n": 6 if bucket == "all" else 2,
            "n_patients": 5 if bucket == "all" else 1, "n_null": 0, "n_degenerate": 0,
            "draws": CONTROLS.get(control, 0), "mean": None if hidden else mean, "n_boot": 1000,
            "lower": mean - 0.5 if known else None, "upper": mean + 0.25 if known else None,
            "p_holm": None if control == "none" else 0.0421, "effect": None if control == "none" else 0.625,
        })  # fmt: skip
    contrast = {**rows[0], "bucket": "TP-FP", "contrast": True, "mean": 99.999}
    return [*rows, contrast]


def contrast_rows(trial):
    """Drop of TP less that of FP: in log-odds above 0, and in probability below it at 0.5 alone."""
    values = {("logodds", 0.25): 1.25, ("logodds", 0.5): 1.5, ("prob", 0.25): 0.125, ("prob", 0.5): -0.064}
    return [
        {**dict.fromkeys(TABLES["summary"].columns), "trial_id": trial, "explainer": "gradcam", "target_rule":
         "pneumonia", "grid": "pixel", "fill": "mean", "metric": "drop", "level": level, "scale": scale, "control":
         "none", "bucket": "TP-FP", "contrast": True, "matched": matched, "cluster": "patient", "n": 60, "n_patients":
         55, "n_null": 0, "n_degenerate": 0, "draws": 0, "mean": mean, "lower": None if matched else mean - 0.05,
         "upper": None if matched else mean + 0.05}
        for (scale, level), mean in values.items() for matched in (False, True)
    ]  # fmt: skip


def region_rows(ids):
    """Effects in log-odds: border 1 to 6 beside controls of 0.5 and 1.5; marker i, in truth 2 i; equalize -0.25."""
    effects = [
        *(("border", "mean", "none", 0, 1.0 + i, i) for i in range(6)),
        *(("border", "mean", "matched", d, 0.5 + d, i) for i in range(6) for d in range(2)),
        *(("marker", "mean", "none", 0, float(i), i) for i in range(6)),
        *(("marker", "rerender", "none", 0, 2.0 * i, i) for i in range(6)),
        *(("equalize", "edit", "none", 0, -0.25, i) for i in range(6)),
    ]
    return [
        {"image_id": ids[i], "target": 1, "region": region, "fill": fill, "control": control, "draw": draw,
         "share_of_area": 0.36, "prob_target": 0.25, "logit_target": 2.0 - effect, "prob_full_image": 0.75,
         "logit_full_image": 2.0}
        for region, fill, control, draw, effect, i in effects
    ]  # fmt: skip


def sanity_rows(ids):
    same = {"target": 1, "seed": 0, "grid": "pixel", "fill": "mean", "metric": "abpc", "scale": "logodds",
            "control": "shifted", "n_draws": 1}  # fmt: skip
    return [
        {**same, "explainer": "gradcam", "image_id": ids[i], "mode": "cascade", "layer": layer, "spearman": value + i,
         "spearman_abs": value, "ssim": 0.375, "gap": 0.0625}
        for i in range(2) for layer, value in (("fc", 0.25), ("layer4", -0.25))
    ]  # fmt: skip


def hypothesis_rows():
    same = {**dict.fromkeys(TABLES["hypotheses"].columns), "n_trials": 1, "n": 60, "n_patients": 50}
    judged = {**same, "role": "verdict", "test": "sign-flip", "family": "H1, H2 and H3 | plain", "family_size": 2}
    return [
        {**judged, "hypothesis": "H1", "subject": "plain", "quantity": "removing <border> and corners",
        "unit": "log-odds",
         "effect": 1.75, "lower": 1.25, "upper": 2.25, "margin": 0.5, "p": 0.0011, "p_holm": 0.0022, "verdict":
         "supported", "reason": "the interval lies above 0.5"},
        {**same, "hypothesis": "H1", "subject": "plain", "role": "beside", "quantity": "focus border, FP less TP",
         "unit": "share", "effect": 0.125},
        {**judged, "hypothesis": "H3", "subject": "plain", "quantity": "share that beats shifted", "unit": "share",
         "margin": 0.1, "verdict": "undecided", "reason": "there are no lung masks"},
    ]  # fmt: skip


def curve_columns(ids, pairs, orders, controls, bad):
    return _columns("curves", [
        {"image_id": ids[i], "target": t, "control": control, "draw": draw, "grid": "pixel", "fill": "mean",
         "order": order, "level": level, "level_done": level, "n_perturbed": int(level * 100),
         "prob_target": None if b else 1 / (1 + np.exp(4 * level - 2)), "logit_target": None if b else 2 - 4 * level}
        for control, draws in controls.items() for draw in range(draws) for order in orders
        for (i, t), b in zip(pairs, bad, strict=True) for level in (0.0, *LEVELS, 1.0)
    ])  # fmt: skip


def _columns(name, rows):
    return {c: [r.get(c) for r in rows] for c in TABLES[name].columns}


def _partition(store, name, where, columns):
    folder = Path(store.path("tables", name, *(f"{k}={v}" for k, v in where.items())))
    folder.mkdir(parents=True)
    pq.write_table(TABLES[name].build(columns), folder / "part-0.parquet")


def page_of(out):
    report.write_report(out)
    return (Path(out) / "report.html").read_text()


def text_of(page):
    """What a reader sees, one space between words."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|figure).*?</\1>", " ", page))).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    reason = "<script>alert('x')</script> & more"
    errors = [{"path": f"train/a{i}.png", "image_id": None, "stage": "decode", "reason": reason} for i in range(5)]
    return make_run(tmp_path_factory.mktemp("run") / "run", errors=errors)


@pytest.fixture(scope="module")
def page(run):
    return page_of(run)


def test_gaps_are_those_of_the_table_beside_their_definition(page):
    text = text_of(page)
    # gradcam, all, shifted, abpc (third metric), log-odds: -(1 + 0.02 + 6); pixel_random: -(1 + 0.02 + 3)
    assert "−7.020 [−7.520, −6.770] p_holm 0.042 · effect 0.62 −4.020 [−4.520, −3.770]" in text
    # occlusion, TP, drop at 0.5 (fifth metric), probability: 2 + 0.1 + 0.04 + 0.001, and + 6 and + 3; 1 patient
    assert "occlusion TP 0.5 2 (1) +2.141 +8.141 p_holm 0.042 · effect 0.62 +5.141" in text
    for scale in ("log-odds", "probability"):
        where = f"{scale} of the target; model {TRIAL}; grid pixel, fill mean, target rule pneumonia; level: "
        assert f"Gap in abpc, {where}none (area over all levels)." in text
        assert f"Gap in drop, {where}each level" in text
    assert "gap to shifted (1 draw) gap to pixel_random (2 draws)" in text
    assert "99.999" not in text  # contrasts are another question


def test_bold_needs_the_test_and_the_interval(page):
    assert "<b>+8.020 [+7.520, +8.270]</b>" in page  # occlusion, all, shifted
    assert "<b>−7.020" not in page  # below 0, though p_holm is 0.042
    assert "<b>+8.120</b>" not in page  # occlusion, TP: no interval


def test_models_and_counts(page):
    text = text_of(page)
    assert f"{TRIAL} half: 0.500 0.667 [0.311, 0.922] 0.712 0.667 0.667 6 6 2 1 2 1" in text
    assert f"{TRIAL} plain 3 completed 4 2 0.877 yes" in text
    assert "plain-ffffffff plain – failed: <b>out of memory</b> – – – no" in text


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
        assert inside or link.startswith("data:") or (Path(run) / link).is_file(), link[:80]
    assert not re.search(r"https?://|@import|url\(", page)
    kinds = sorted(p.name.split("-")[0] for p in Path(run, "figures").iterdir())
    assert kinds == ["curves", "curves", "deletion", "focus", "gaps"]
    files = {p.name for p in Path(run, "galleries").iterdir()}
    assert files == {"legend.png", "tp_localized_01.png", "tp_localized_02.png", "fp_localized_01.png",
                     *(f"random_localized_{i:02d}.png" for i in range(1, 7))}  # fmt: skip


def test_drawn_again_it_is_the_same_page(run, page, capsys):
    assert report.main([run]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert Path(run, "report.html").read_text() == page


def test_absolute_areas_where_the_baseline_is_valid(page):
    assert "gradcam all 6 (5) 6 of 6 −1.000 [−1.500, −0.750] −1.010" in text_of(page)


def test_an_older_run_says_what_it_lacks(page):
    text = text_of(page)
    assert "This run judges no hypothesis" in text
    assert "The run measured no regions" in text
    assert "The run has no randomised models" in text
    assert "it takes two models and a control" in text


@pytest.fixture(scope="module")
def findings_text(tmp_path_factory):
    return text_of(page_of(make_run(tmp_path_factory.mktemp("more") / "run", more=True)))


def test_hypotheses_with_verdicts_in_words(findings_text):
    assert "Supported (plain): the interval lies above 0.5 Quantity removing <border> and corners" in findings_text
    assert "Effect +1.750 [+1.250, +2.250] log-odds; margin 0.50; 1 models, 60 images, 50 patients" in findings_text
    assert "Test sign-flip: p 0.001, p_holm 0.002 in the family H1, H2 and H3 | plain (2)" in findings_text
    assert "focus border, FP less TP plain +0.125 share 1 / 60 / 50" in findings_text
    assert "This run has no verdict on H2." in findings_text
    assert "Undecided (plain): there are no lung masks" in findings_text
    assert "nan" not in findings_text.lower().split()


def test_the_sign_under_every_choice(findings_text):
    up, down = "\N{BLACK UP-POINTING TRIANGLE}", "\N{BLACK DOWN-POINTING TRIANGLE}"
    # probability, all and matched; log-odds, all and matched
    assert (
        f"pneumonia mean 0.5 {down} −0.064 [−0.114, −0.014] n = 60 −0.064 n = 60 {up} +1.500 [+1.450, +1.550] n = 60 "
        "+1.500 n = 60"
    ) in findings_text
    assert "Of 8 cells, 3 lie wholly above 0 (the first bucket falls further), 1 wholly below" in findings_text
    assert "scale logodds prob 4 2 (50%) 1 (25%)" in findings_text
    assert "level 0.25 0.5 4 2 (50%) 1 (25%)" in findings_text


def test_deletion_as_the_study_did_it(findings_text):
    assert "Deletion at level 0.25 by gradcam" in findings_text
    # gradcam, TP, drop at 0.25 (fourth metric), in probability and log-odds; value 0.5 + i never falls below 0
    assert "TP 2 (1) −1.131 −1.130 0 of 2" in findings_text
    assert "TP minus FP 60 (55) +0.125 [+0.075, +0.175] +1.250 [+1.200, +1.300]" in findings_text


def test_regions_truth_and_randomised_models(findings_text):
    assert "border mean all 36.0% 6 (6) +3.500 +1.000 +2.500" in findings_text
    assert "border mean FP 36.0% 1 (1) +3.000 +1.000 +2.000" in findings_text
    assert "equalize all 6 (6) −0.250 +0.500" in findings_text
    assert "marker without its marker mean 6 1.00 100%" in findings_text
    assert "gradcam weights randomised down to fc 2 (2) 0.750 0.250 0.375 +0.062 −0.150" in findings_text


def test_one_order_has_no_abpc_no_maps_no_gallery_no_errors_no_list(tmp_path):
    out = make_run(tmp_path / "a", orders=("morf",), keep_maps=False)
    text = text_of(page_of(out))
    assert "Gap in deletion_auc, log-odds" in text
    assert "it has no abpc and deletion_auc stands in its place" in text
    assert "There is no gallery: the run kept no maps (explain.keep_maps: false)." in text
    assert "No errors." in text
    assert not Path(out, "galleries").exists()
    text = text_of(page_of(make_run(tmp_path / "b", orders=("lerf",), keep_maps=False)))
    assert "Gap in insertion_auc, log-odds" in text
    assert "Gap in drop" not in text


def test_missing_values_two_rules_and_a_given_model(tmp_path):
    out = make_run(tmp_path / "run", null_map=True, given=True, rules=("pneumonia", "predicted"))
    page = page_of(out)
    text = text_of(page)
    # maps, border, localized, diffuse, degenerate, four shares of mass, constant, not finite, ties
    assert "gradcam all 6 0 (0%) 5 (83%) 0 (0%) 0 (0%) – – – – 0 1 0.25" in text
    assert "target rule predicted What the maps look like" in text
    assert "study plain – given – – – yes" in text_of(page)
    assert "1 images without a finite map are missing from the map" in page
    assert "target rule predicted" in page


def test_missing_images_are_one_sentence_and_invalid_baselines_are_told(tmp_path):
    moved = tmp_path / "moved"
    settings = {"source": "folder", "path": str(moved), "size": 64, "fit": "squash"}
    out = make_run(tmp_path / "run", data=settings, valid=False)
    text = text_of(page_of(out))
    assert f"There is no gallery: none of its 6 images could be read from {moved}." in text
    assert f"python -m cxr_ray.report {out} --data PATH." in text
    assert "gradcam all 6 (5) 0 of 6 not shown: valid baseline for 0 of 6" in text
    assert "Mind: filled with mean, 0% of the images score at least 1 log-odds below the untouched one." in text
    lines: list[str] = []
    print_summary(out, lines.append)
    assert any("below the untouched one for 0 of 6 (image, target) of plain" in line for line in lines)
    assert "−7.020 [−7.520, −6.770]" in text  # gaps share the baseline, and need no image


@pytest.mark.parametrize("kind", ["nothing", "a file", "a folder without a run", "a run without tables", "a scheme"])
def test_a_wrong_path_is_one_sentence(kind, tmp_path, capsys):
    path = str(tmp_path / "x")
    if kind == "a file":
        Path(path).write_text("text")
    elif kind != "nothing":
        Path(path).mkdir()
    if kind == "a run without tables":
        Path(path, "sweep.yaml").write_text("name: x\n")
    assert report.main(["nowhere://x" if kind == "a scheme" else path]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cxr_ray: ")
    assert message.count("\n") == 1
    assert {"a run without tables": "finish the run with --resume", "a scheme": "nowhere"}.get(
        kind, "is not a run"
    ) in message


def test_numbers():
    assert page_.number(-0.0004, sign=True) == "−4e−04"
    assert page_.number(0.0, sign=True) == "0.000"
    assert page_.number(0.0005, sign=True) == "+0.001"
    assert page_.number(-1.5) == "−1.500"
    assert page_.number(None) == page_.number(float("nan")) == "–"
    assert page_.interval(0.5, None, None) == "0.500"
    assert page_.p_text(0.0001) == "<0.001"
    assert page_.p_text(0.9999) == "1.000"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_chromium_renders_it_without_a_complaint(run, page, tmp_path):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2000",
               f"--screenshot={tmp_path / 's.png'}",
               "--virtual-time-budget=2000", f"file://{run}/report.html"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (tmp_path / "s.png").stat().st_size > 20_000
    assert ":CONSOLE" not in done.stderr


def test_captions_have_a_glyph_for_what_numbers_are_made_of():
    font = galleries._font(12)
    missing = bytes(font.getmask("\uffff"))
    for sign in (*page_.number(-0.5), "\N{EN DASH}", "\N{HORIZONTAL ELLIPSIS}"):
        assert bytes(font.getmask(sign)) != missing
