"""The browser of images: its parts hold the tables' numbers, and the page filters, sorts and stays offline."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_ray.report.browser import cards as cards_of_models
from cxr_ray.report.browser import pictures
from cxr_ray.report.browser.files import write_browser
from cxr_ray.report.galleries import Images
from cxr_ray.report.load import load
from cxr_ray.results import open_run
from cxr_ray.storage import Store
from tests.builders.chromium import chromium
from tests.builders.images import picture, write
from tests.builders.runs import IDS, OUTCOMES, TRIAL, make_run

HOSTILE = "test/NORMAL/</script><img src=x onerror=alert(1)>\"'\u202egpj.png"


def part(run, name):
    """The value that a part of the browser hands over."""
    text = Path(run, "browser", f"{name}.js").read_text("ascii")
    start = f'cxrRay("{name}",'
    assert text.startswith(start)
    assert text.endswith(");\n")
    return json.loads(text[len(start) : -3])


def browse(out):
    """Draws the run's browser alone."""
    opened = open_run(out)
    return write_browser(load(opened), Store(out, {}), Images(opened, None))


def rewrite(file, column, values):
    """Other values in a column of a table's file, of the same type."""
    table = pq.ParquetFile(file).read()
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), [pa.array(values, table.schema.field(at).type)]), file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one image whose file name would be markup, and which cannot be read; the others can."""
    folder = tmp_path_factory.mktemp("browsed")
    data = {"source": "folder", "path": str(folder / "data"), "size": 64, "fit": "squash"}
    out = make_run(folder / "run", strong=True, null_map=True, data=data)
    images = open_run(out).pandas("images")
    paths = [HOSTILE if i == IDS[2] else p for i, p in zip(images["image_id"], images["path"], strict=True)]
    rewrite(Path(out, "tables/images/part-0.parquet"), "path", paths)
    write(folder / "data", {p: picture(p, "PNG", 64) for p in paths if p != HOSTILE})
    assert browse(out) == 6
    return out


def test_numbers_are_those_of_the_tables(run):
    index, opened = part(run, f"{TRIAL}/index"), open_run(run)
    order = part(run, "run")["image_id"]
    faith = opened.pandas("faithfulness").query("metric == 'abpc' and scale == 'logodds' and explainer == 'occlusion'")
    for control, shown in index["explainers"]["occlusion"]["controls"].items():
        stored = faith[faith["control"] == control].set_index("image_id").loc[order]
        assert np.allclose(shown["gap"], stored["gap"], atol=5e-4)
        assert np.allclose(shown["win_rate"], stored["win_rate"], atol=5e-4)
    predictions = opened.pandas("predictions").set_index("image_id").loc[order]
    assert np.allclose(index["prob"], predictions["prob_pneumonia"], atol=5e-4)
    card = part(run, f"{TRIAL}/0")[order.index(IDS[1])]["occlusion"]
    level = index["levels"].index(0.25)
    for d, direction in enumerate(index["directions"]):
        curves = opened.pandas("curves").query(
            f"image_id == '{IDS[1]}' and explainer == 'occlusion' and control == 'none' and direction == '{direction}'"
        )
        stored = curves.set_index("level")["logit_target"]
        assert card["curves"]["none"][d][0][level] == pytest.approx(stored[0.25], abs=5e-4)
        assert card["curves"]["none"][d][0] == pytest.approx(stored.loc[index["levels"]].tolist(), abs=5e-4)


def test_the_band_spans_the_draws(tmp_path):
    out = make_run(tmp_path / "run")
    file = next(Path(out, "tables/curves").rglob("explainer=shared/*.parquet"))
    table = pq.ParquetFile(file).read()
    rewrite(file, "logit_target", np.array(table["logit_target"]) + np.array(table["draw"]))
    browse(out)
    first, low, high = part(out, f"{TRIAL}/0")[0]["gradcam"]["curves"]["pixel_random"][0]
    assert low == first
    assert np.allclose(np.subtract(high, low), 1.0, atol=1e-3)  # two draws, the second higher by 1


def test_every_image_has_a_card_in_every_bucket(run):
    about, index = part(run, "run"), part(run, f"{TRIAL}/index")
    assert sorted(about["image_id"]) == IDS
    shown = [about["outcomes"][int(o)] for o in index["outcome"]]
    assert shown == [OUTCOMES[IDS.index(i)] for i in about["image_id"]]


def test_texts_stay_texts(run):
    for file in Path(run, "browser").rglob("*.js"):
        if file.name != "browser.js":
            assert "<" not in file.read_text("ascii")
    assert HOSTILE in part(run, "run")["path"]
    page = Path(run, "browser/index.html").read_text()
    assert "script-src 'self' file:;" in page  # no script but those beside it


def test_a_map_that_is_not_finite_is_told(run):
    cards = part(run, f"{TRIAL}/0")
    lost = cards[part(run, "run")["image_id"].index(IDS[0])]["gradcam"]
    assert lost["why"] == "lost"
    assert "mask" not in lost


def test_of_many_images_a_sample_is_shown_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_ray.report.browser.files.MOST", 4)
    out = make_run(tmp_path / "run", data={"source": "folder", "path": str(tmp_path), "size": 64, "fit": "squash"})
    assert browse(out) == 4
    about = part(out, "run")
    assert len(about["image_id"]) == 4
    assert about["unread"].startswith("4 of 6 images, chosen by hash and seed, are shown. 4 X-rays could not be read")
    assert len(part(out, f"{TRIAL}/0")) == 4


def test_a_run_without_maps_or_images_has_a_browser_all_the_same(tmp_path):
    data = {"source": "folder", "path": str(tmp_path / "moved"), "size": 64, "fit": "squash"}
    out = make_run(tmp_path / "run", keep_maps=False, data=data)
    browse(out)
    about = part(out, "run")
    assert about["keep_maps"] is False
    assert about["unread"].startswith("6 X-rays could not be read from")
    assert "--data PATH" in about["unread"]
    assert part(out, "xrays-0/0") == [None] * 6
    assert "map" not in part(out, f"{TRIAL}/0")[0]["gradcam"]


def test_what_an_earlier_drawing_left_is_gone(run):
    stale = Path(run, "browser/plain-gone/0.js")
    stale.parent.mkdir()
    stale.write_text("")
    browse(run)
    assert not stale.parent.exists()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def opened(tab, run, address=""):
    tab.open(Path(run, "browser/index.html"), address)
    tab.until("document.body && document.body.getAttribute('aria-busy') === 'false'")


def cards(tab):
    """(image_id, outcome) of the cards, in their order, once they are drawn."""
    tab.until("document.body.getAttribute('aria-busy') === 'false'")
    return tab.run("[...document.querySelectorAll('.card')].map((c) => [c.dataset.image, c.dataset.outcome])")


def choose(tab, name, value):
    tab.run(
        f"(() => {{ const e = document.querySelector('#filters [name={name}]'); e.value = '{value}'; "
        "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def click(tab, selector):
    tab.run(f"document.querySelector({json.dumps(selector)}).click()")


def test_the_page_filters_sorts_and_asks_for_nothing_outside(tab, run):
    tab.requests.clear()
    tab.complaints.clear()
    opened(tab, run)
    # gap is -0.1 (i + 1): the first image is the most faithful one, but its map is not finite and stands last
    assert [i for i, _ in cards(tab)] == [*IDS[1:], IDS[0]]
    choose(tab, "sort", "least")
    assert [i for i, _ in cards(tab)] == [*IDS[:0:-1], IDS[0]]
    click(tab, "[name=outcomes][value='0']")
    assert {o for _, o in cards(tab)} == {"FP", "FN", "TN"}
    click(tab, "#reset")
    choose(tab, "verdict", "worse")
    assert len(cards(tab)) == 5  # win rates are 0 wherever a map is finite
    choose(tab, "verdict", "none")
    assert [i for i, _ in cards(tab)] == [IDS[0]]
    choose(tab, "verdict", "any")
    click(tab, "[name=explainers][value=occlusion]")
    assert len(cards(tab)) == 12
    opened(tab, run, "#outcome=FN&explainer=occlusion&x=1")
    assert cards(tab) == [[IDS[4], "FN"]]
    root = Path(run, "browser").resolve().as_uri()
    assert [r for r in tab.requests if not r.startswith(root)] == []
    assert tab.complaints == []


def test_the_deleted_picture_is_the_xray_with_a_quarter_filled(tab, run):
    """Read from the canvases: the fill where the mask is, the X-ray elsewhere."""
    opened(tab, run, "#explainer=occlusion&text=" + IDS[1])
    tab.until("document.querySelectorAll('.card').length === 1 && document.querySelectorAll('.card canvas').length > 2")
    about = part(run, "run")
    fill = part(run, "xrays-0/0")[about["image_id"].index(IDS[1])]["fill"]
    pixels = tab.run(
        "[...document.querySelectorAll('.card canvas')].map((c) => [...c.getContext('2d').getImageData(0, 0, 224, 224)"
        ".data].filter((_, k) => k % 4 === 0))"
    )
    xray, deleted = np.array(pixels[0]), np.array(pixels[2])
    filled = deleted == fill
    assert 0.24 < filled.mean() < 0.28  # a few pixels of the X-ray have the fill's grey
    assert (deleted[~filled] == xray[~filled]).all()
    assert (xray[filled] != fill).mean() > 0.9


def test_noise_is_made_in_the_page_as_it_was_scored(tab, run):
    opened(tab, run)
    key = pictures.noise_key(IDS[1], 5)
    made = np.array(tab.run(f"[...noise({key}, 32)].filter((_, k) => k % 4 === 0)"))
    scored = pictures.filled(np.zeros((32, 32), np.uint8), "noise", IDS[1], 5, 0.5)
    assert np.abs(made - scored.ravel()).max() <= 1  # float32 rounds the last digit


def test_every_control_that_can_be_drawn_is_pictured_when_it_is_chosen(tab, run):
    drawn = part(run, f"{TRIAL}/index")["explainers"]["occlusion"]["drawn"]
    assert len(drawn) > 1
    for control in drawn:
        opened(tab, run, f"#explainer=occlusion&control={control}&text={IDS[1]}")
        tab.until(f"document.querySelector('.card canvas[aria-label=\"Control {control} over the X-ray\"]')")
        assert tab.run("document.querySelectorAll('.card .of-control canvas').length") == 2


def test_where_pictures_take_too_much_room_one_control_an_explainer_is_pictured(tab, tmp_path, monkeypatch):
    monkeypatch.setattr(cards_of_models, "ROOM", 100.0)
    out = make_run(tmp_path / "run", strong=True)
    browse(out)
    drawn = part(out, f"{TRIAL}/index")["explainers"]["occlusion"]["drawn"]
    assert len(drawn) == 1
    other = next(c for c, about in part(out, "run")["controls"].items() if about["drawn"] and c not in drawn)
    opened(tab, out, f"#explainer=occlusion&control={other}&text={IDS[1]}")
    tab.until("document.querySelector('.card .of-control')")
    assert f"{other} is not pictured: pictures of every control would take too much room. {drawn[0]} is." in tab.run(
        "document.querySelector('.card').innerText"
    )


def test_sequential_verdicts_stand_above_the_cards(tab, tmp_path):
    out = make_run(tmp_path / "run", strong=True, more=True)
    browse(out)
    opened(tab, out)
    assert f"Grad-CAM on {TRIAL}, all: told of mean_map." in tab.run("document.querySelector('#summary').innerText")
    choose(tab, "control", "shifted")
    cards(tab)
    assert f"Grad-CAM on {TRIAL}, all: told of shifted." in tab.run("document.querySelector('#summary').innerText")
    assert "told of mean_map" not in tab.run("document.querySelector('#summary').innerText")


def test_a_file_name_is_shown_as_it_is(tab, run):
    opened(tab, run, "#text=onerror")
    assert [i for i, _ in cards(tab)] == [IDS[2]]
    shown = tab.run("document.querySelector('.card').innerText")
    assert "<img src=x onerror=alert(1)>\"'\\u202egpj.png" in shown
    assert "The X-ray could not be read." in shown
    assert tab.run("document.querySelectorAll('img').length") == 0


def test_a_page_can_be_worked_by_keys_alone(tab, run):
    opened(tab, run)
    tab.run("document.querySelector('[name=outcomes][value=\"1\"]').focus()")
    tab.press(" ", 32)
    assert "FP" not in {o for _, o in cards(tab)}
    reached = set()
    tab.run("document.body.focus()")
    for _ in range(40):
        tab.press("Tab", 9)
        reached.add(tab.run("document.activeElement.name || document.activeElement.tagName"))
    assert {"A", "explainers", "outcomes", "kinds", "control", "verdict", "sort", "size", "text", "SUMMARY"} <= reached


def test_a_part_that_is_lost_is_told(tab, tmp_path):
    out = make_run(tmp_path / "run")
    browse(out)
    Path(out, f"browser/{TRIAL}/0.js").unlink()
    opened(tab, out)
    assert f"A part of this page is missing: browser/{TRIAL}/0.js" in tab.run("document.body.innerText")


@pytest.mark.slow  # asks the registry of npm
def test_axe_finds_no_fault(tab, run, tmp_path):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm, from which axe-core comes")
    asked = subprocess.run([npm, "pack", "axe-core@4"], cwd=tmp_path, capture_output=True, timeout=120)
    if asked.returncode:
        pytest.skip("the registry of npm did not give axe-core")
    with tarfile.open(next(tmp_path.glob("axe-core-*.tgz"))) as archive:
        axe = archive.extractfile("package/axe.min.js").read().decode()
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        tab.call("Emulation.setEmulatedMedia", features=media)
        opened(tab, run, f"#{scheme}=1")
        tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        tab.run(f"{axe}; 1")
        assert tab.run("axe.run().then((r) => r.violations.map((v) => [v.impact, v.id]))") == []
