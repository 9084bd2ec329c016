"""Galleries: test images chosen by a hash, each with its maps and what was measured on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from cxr_ray.report import galleries, page
from cxr_ray.report.figures.marks import SCALES
from cxr_ray.report.galleries import Images, Panel
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section, of_models
from cxr_ray.schemas import CLASSES

_Key = tuple[str, int, str]  # image_id, target, explainer


@dataclass(frozen=True)
class _Model:
    """What the gallery of one model is made of.

    Attributes:
        maps: each _Key to the row of ``saliency``.
        measured: the same to the rows of ``faithfulness`` that a card may show.
        signed: explainers whose maps hold negative values.
    """

    trial_id: str
    inline: bool
    test: pd.DataFrame
    maps: Mapping[_Key, Mapping[Any, Any]]
    measured: Mapping[_Key, Sequence[Any]]
    signed: Mapping[str, bool]

    @property
    def folder(self) -> list[str]:
        """Where its files are written."""
        return ["galleries"] if self.inline else ["galleries", self.trial_id]


def section(data: RunData, folder: Folder, images: Images) -> Section:
    """TP, FP and random images; those of the first model stand on the page, the others' are files."""
    control = data.controls[0] if data.controls else "no control"
    notes = [
        "TP, FP and random test images of the first model, chosen by a hash of seed and image, at most "
        f"{galleries.GALLERY} a bucket. A bucket without images has no gallery. A file is named after its bucket, the "
        f"spatial concentration of the {data.primary.explainer} map and its place. Each map is scaled by itself, to "
        "the 99th percentile of its absolute values: colours compare places within one map, never maps with each "
        "other. A picture leads to the image's card in the browser of images. "
        f"drop: fall of the target's log-odds (of its probability) at level {data.primary.level:g}, "
        f"{data.first}. advantage: in {data.metric}, log-odds, over {control}."
    ]
    if not data.sweep["explain"]["keep_maps"]:
        none = page.note("There is no gallery: the run kept no maps (explain.keep_maps: false).")
        return Section("galleries", "Galleries", notes, [none], level=3)
    models = of_models(data, folder, lambda d, f, trial_id: of_model(d, f, images, trial_id))
    missing = images.missing
    blocks = [page.note(missing)] if missing else []
    return Section("galleries", "Galleries", notes, blocks, models, level=3)


def of_model(data: RunData, folder: Folder, images: Images, trial_id: str) -> Iterator[Block]:
    """The legend of colours, then cards bucket by bucket."""
    test = data.test_of(trial_id).set_index("image_id")
    found = []
    for bucket in galleries.BUCKETS:
        members = test.index[test["outcome"] == bucket] if bucket != "random" else test.index
        ids = galleries.chosen(data.sweep["seed"], bucket, members)
        found.append((bucket, len(members), [i for i in ids if images.read(i) is not None]))
    if not any(ids for _, _, ids in found):
        return
    model = _model(data, trial_id, test, sorted({i for _, _, ids in found for i in ids}))
    if model.inline:
        legend = galleries.encode(galleries.legend(model.signed), "PNG")
        folder.store.write(legend, "galleries", "legend.png")
        yield {"kind": "legend", "png": page.base64_of(legend)}
    for bucket, count, ids in found:
        if ids:
            cards = [
                card(data, folder, images, model, f"{bucket.lower()}_{{}}_{k:02d}.png", i) for k, i in enumerate(ids, 1)
            ]
            among = "test images" if bucket == "random" else f"images that are {bucket}"
            title = f"{bucket}: {len(ids)} of {count} {among}, model {data.name(trial_id)}"
            yield {"kind": "cards", "title": title, "cards": cards, "inline": model.inline}


def _model(data: RunData, trial_id: str, test: pd.DataFrame, ids: list[str]) -> _Model:
    chosen = (pc.field("trial_id") == trial_id) & pc.field("image_id").isin(ids)
    key = ["image_id", "target", "explainer"]
    maps = data.run.pandas("saliency", [*key, "map", "map_height", "map_width", "concentration"], chosen)
    setting = (pc.field("grid") == data.first.grid) & (pc.field("fill") == data.first.fill)
    shown = (pc.field("metric") == "drop") & (pc.field("level") == data.primary.level) | data.primary.expression
    columns = [*key, "metric", "level", "scale", "control", "value", "gap"]
    measured = data.run.pandas("faithfulness", columns, chosen & setting & shown)
    signed = {e: galleries.is_signed(maps, e) for e in data.explainers}
    rows: dict[_Key, list[Any]] = {}
    for of_map, r in zip(_keys(measured), page.rows_of(measured), strict=True):
        rows.setdefault(of_map, []).append(r)
    return _Model(
        trial_id,
        trial_id == data.models[0],
        test,
        dict(zip(_keys(maps), maps.to_dict("records"), strict=True)),
        rows,
        signed,
    )


def _keys(frame: pd.DataFrame) -> Iterator[_Key]:
    return zip(frame["image_id"], frame["target"], frame["explainer"], strict=True)


def card(data: RunData, folder: Folder, images: Images, model: _Model, name: str, image_id: str) -> Block:
    """One image: its picture, written as a file, and the caption; ``name``: with a place for the concentration."""
    xray, r = images.read(image_id), model.test.loc[image_id].to_dict()
    assert xray is not None
    target = 1 if data.first.rule == "pneumonia" else int(r["predicted"])
    score = f"P(PNEUMONIA) {page.number(r['prob_pneumonia'])}, log-odds {page.number(r['logit_pneumonia'], 2, True)}"
    outcome = f"{CLASSES[r['label']]} called {CLASSES[r['predicted']]}: {r['outcome']}"
    panels, lines, main = [Panel("X-ray", [score.replace("P(PNEUMONIA)", "P"), outcome])], [], "none"
    for explainer in data.explainers:
        key = image_id, target, explainer
        row = model.maps.get(key)
        concentration = (page.known(row["concentration"]) if row is not None else "") or "none"
        drop, advantage = _numbers(data, model.measured.get(key, ()))
        below = [concentration, *drop]
        panels.append(Panel(explainer, below, galleries.values_of(row), model.signed[explainer]))
        lines.append(f"{explainer}: " + ", ".join([*below, *advantage]))
        main = concentration if explainer == data.primary.explainer else main
    name = name.format(main)
    pictures = galleries.painted(xray, panels)
    jpeg = galleries.encode(galleries.strip(pictures, panels, 0), "JPEG") if model.inline else None
    folder.store.write(galleries.encode(galleries.strip(pictures, panels), "PNG"), *model.folder, name)
    return {
        "file": "/".join([*model.folder, name]),
        "name": name,
        "score": score,
        "what": outcome,
        "lines": lines,
        "image_id": image_id,
        "browse": urlencode({"model": model.trial_id, "explainer": ",".join(data.explainers), "text": image_id}),
        "path": images.paths[image_id],
        "patient": images.patients[image_id],
        # On the page the caption holds what the file holds as text.
        "jpeg": None if jpeg is None else page.base64_of(jpeg),
        "alt": f"X-ray and saliency maps of image {image_id}, {outcome}; {data.primary.explainer}: {main}",
    }


def _numbers(data: RunData, measured: Iterable[Any]) -> tuple[list[str], list[str]]:
    """The drop and the advantage over the first control in words, each where it was measured."""
    control, level = data.controls[0] if data.controls else "none", data.primary.metric_level
    drop, advantage = dict.fromkeys(SCALES, np.nan), np.nan
    for r in measured:
        if r.control == "none" and r.metric == "drop" and r.level == data.primary.level:
            drop[r.scale] = r.value
        is_primary = r.metric == data.primary.metric and (level is None or r.level == level)
        if is_primary and r.scale == data.primary.scale and r.control == control:
            advantage = r.gap
    fall = f"drop {page.number(drop['logodds'], 2, True)} (P {page.number(drop['prob'], 3, True)})"
    return (
        [] if pd.isna(drop["prob"]) else [fall],
        [] if pd.isna(advantage) else [f"advantage {page.number(advantage, 2, True)}"],
    )
