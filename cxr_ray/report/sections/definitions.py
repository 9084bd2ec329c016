"""The definitions that end the page: each from the registry entry of the thing that it defines."""

from __future__ import annotations

from collections.abc import Iterator

from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import explainer_of
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.metrics import METRICS, measured
from cxr_ray.measure.regions import REGIONS
from cxr_ray.report import page
from cxr_ray.report.glossary import GLOSSARY
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section


def section(data: RunData, folder: Folder) -> Section:
    """A list of terms; those of things the run did not use are left out."""
    listed = [{"term": term, "text": text} for term, text in (*_levels(data), *_registered(data))]
    items = [{"term": t.name, "text": t.text, "anchor": t.anchor} for t in GLOSSARY] + listed
    return Section("definitions", "Glossary and definitions", blocks=[{"kind": "terms", "items": items}])


def _levels(data: RunData) -> Iterator[tuple[str, str]]:
    levels = ", ".join(f"{x:g}" for x in data.levels)
    yield (
        "level",
        f"Share of cells filled: {levels} in this run; exactly round(level x cells). Every curve also holds 0 (the "
        "untouched image) and 1 (the filled one).",
    )


def _registered(data: RunData) -> Iterator[tuple[str, str]]:
    """Explainers, fills, metrics, controls, regions and edits of the run."""
    for name in data.explainers:
        yield f"{name} (explainer)", explainer_of(name).caption
    for name in data.fills:
        yield f"{name} (fill)", FILLS[name].caption
    for name in measured(data.primary.directions, data.levels):
        yield f"{METRICS[name].label} ({name}, metric)", METRICS[name].caption
    for name in data.controls:
        draws = data.sweep["controls"].get(name)
        yield f"{name} (control{f', {page.draws_text(draws)}' if draws else ''})", CONTROLS[name].caption
    regions = data.sweep.get("regions") or {}
    for name in regions.get("names") or ():
        yield f"{name} (region)", REGIONS[name].caption
    for name in regions.get("edits") or ():
        yield f"{name} (edit)", EDITS[name].caption
