"""Writes the browser: a page, what it knows of the run, and pictures in parts that it loads as it needs them.

A page opened from a disk may not fetch. It may load scripts, so each part is one that calls ``cxrRay(name, value)``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from typing import Any

from pyarrow import fs as pafs

from cxr_ray.analysis.model_names import model_names
from cxr_ray.counting import NOBODY, Counter
from cxr_ray.data.splits import choose
from cxr_ray.machine import usable_cpus
from cxr_ray.measure.concentration import CONCENTRATIONS
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.report.browser import pictures
from cxr_ray.report.browser.cards import CardsOfModel
from cxr_ray.report.browser.masks import can_be_drawn
from cxr_ray.report.browser.numbers import OUTCOMES, OfModel
from cxr_ray.report.browser.views import View, view_of
from cxr_ray.report.figures.marks import control_colour
from cxr_ray.report.galleries import Images
from cxr_ray.report.page import known
from cxr_ray.report.rundata import RunData
from cxr_ray.schemas import CLASSES
from cxr_ray.storage import Store

FOLDER, PAGE = "browser", "index.html"
PART = 16  # images
MOST = 10_000  # images; each takes 12 ms of a processor and 15 KB
ASSETS = (PAGE, "browser.css", "browser.js")
PRIVATE = (
    "This folder holds the X-rays themselves, made small, with their file names and patients. Pass it on only where "
    "the images may go."
)


def write_browser(data: RunData, store: Store, images: Images, stage: Counter = NOBODY) -> int:
    """Write the folder FOLDER anew into the run; returns how many images it shows, none where nothing was explained.

    Of more than MOST images a sample.

    Args:
        data: the run.
        store: its folder.
        images: where its pixels are read.
        stage: is told how many parts there are, and of each that is written.
    """
    if store.fs.get_file_info(store.path(FOLDER)).type == pafs.FileType.Directory:
        store.fs.delete_dir(store.path(FOLDER))
    models = [m for m in (OfModel(data, trial_id) for trial_id in data.whole) if m.ids]
    if not models:
        return 0
    shown = set().union(*(m.ids for m in models))
    table = data.tables["images"]
    order = [i for i in table["image_id"] if i in shown]
    if sampled := len(order) > MOST:
        chosen = choose(order, [0] * len(order), MOST, data.sweep["seed"])
        all_images, order = len(order), [i for i in order if i in chosen]
    views = list(dict.fromkeys(view_of(data, m.trial_id) for m in models))
    parts = [order[start : start + PART] for start in range(0, len(order), PART)]
    stage.expect(len(parts) * (len(views) + len(models)))
    unread = 0
    with ThreadPoolExecutor(usable_cpus()) as pool:
        for n, v in enumerate(views):
            for lost in pool.map(partial(_xrays, store, images, f"xrays-{n}", v), range(len(parts)), parts):
                unread += lost
                stage.advance()
        for model in models:
            cards = CardsOfModel(model, view_of(data, model.trial_id))
            _put(store, f"{model.trial_id}/index", cards.index(order))
            cards.prepare(pool)
            for _ in pool.map(partial(_cards, store, images, cards), range(len(parts)), parts):
                stage.advance()
    about = _about(data, models, order, [views.index(view_of(data, m.trial_id)) for m in models])
    told = [f"{MOST:,} of {all_images:,} images, chosen by hash and seed, are shown."] if sampled else []
    about["unread"] = " ".join([*told, *([_unread(data, images, unread)] if unread else [])])
    _put(store, "run", about)
    for name in ASSETS:
        store.write(files("cxr_ray.report.browser").joinpath(name).read_bytes(), FOLDER, name)
    return len(order)


def _xrays(store: Store, images: Images, folder: str, view: View, n: int, ids: Sequence[str]) -> int:
    """Write a part of the X-rays; how many could not be read."""
    pixels = view.read(images, ids)
    _put(store, f"{folder}/{n}", [view.card(i, pixels.get(i)) for i in ids])
    return len(ids) - len(pixels)


def _cards(store: Store, images: Images, cards: CardsOfModel, n: int, ids: Sequence[str]) -> None:
    """Write a part of a model's cards."""
    pixels = cards.view.read(images, ids) if pictures.depends_on_mask(cards.view.fill) else {}
    _put(store, f"{cards.model.trial_id}/{n}", [cards.card(i, pixels.get(i)) for i in ids])


def script(name: str, value: Any) -> bytes:
    """A part as a script in ASCII, whatever stands in the texts.

    >>> script("run", "</script>\\u202e")
    b'cxrRay("run","\\\\u003c/script>\\\\u202e");\\n'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f"cxrRay({json.dumps(name)},{text});\n".encode("ascii")


def _put(store: Store, name: str, value: Any) -> None:
    store.write(script(name, value), FOLDER, *f"{name}.js".split("/"))


def _about(data: RunData, models: Sequence[OfModel], order: Sequence[str], views: Sequence[int]) -> dict[str, Any]:
    """What the page knows of the run before a model is chosen."""
    rows = data.tables["images"].set_index("image_id").loc[list(order)]
    names = model_names(data.trials[data.trials["trial_id"].isin([m.trial_id for m in models])])
    return {
        "name": data.sweep["name"],
        "run": known(data.provenance.get("run_id")),
        "private": PRIVATE,
        "classes": CLASSES,
        "outcomes": OUTCOMES,
        "concentrations": CONCENTRATIONS,
        "part": PART,
        "image_id": list(order),
        "path": rows["path"].tolist(),
        "patient": [known(p) for p in rows["patient_id"]],
        "models": [
            {"trial_id": m.trial_id, "name": names[m.trial_id], "view": view}
            for m, view in zip(models, views, strict=True)
        ],
        "more": [t for t in data.models if t not in {m.trial_id for m in models}],
        "explainers": list(data.explainers),
        "explainer": data.primary.explainer,
        "controls": {
            c: {"caption": CONTROLS[c].caption, "colour": control_colour(c), "drawn": can_be_drawn(c)}
            for c in data.controls
        },
        "metric": data.metric,
        "setting": str(data.first),
        "fill": data.first.fill,
        "level": data.primary.level,
        "keep_maps": bool(data.sweep["explain"]["keep_maps"]),
    }


def _unread(data: RunData, images: Images, n: int) -> str:
    """In one sentence, how many X-rays could not be read, and what to do."""
    _, where, reason = images.source
    why = f" ({reason})" if reason else ""
    return (
        f"{n} X-rays could not be read from {where}{why}. If they lie elsewhere now: python -m cxr_ray.report "
        f"{data.run.path} --data PATH."
    )
