"""Draws a run: its tables become one HTML page, report.html, with figures/ and galleries/ as files.

The page opens offline. Every number on it stands in a table of the run; only the galleries need the images. Nothing on
the page is chosen by how good it looks: images by a seeded hash, the models' order by val_auroc.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

from cxr_ray import results
from cxr_ray.counting import NOBODY, Counter
from cxr_ray.report import page
from cxr_ray.report.browser.files import write_browser
from cxr_ray.report.galleries import Images
from cxr_ray.report.glossary import Links
from cxr_ray.report.load import load
from cxr_ray.report.page import Block
from cxr_ray.report.rundata import WHOLE_MODELS, RunData
from cxr_ray.report.section import Folder, Section
from cxr_ray.report.sections import (
    accuracy,
    advantages,
    answer,
    curves,
    definitions,
    deletion,
    galleries,
    hypotheses,
    limits,
    localisation,
    observations,
    performance,
    ranking,
    regions,
    sanity,
    sequential,
    signs,
    stability,
)
from cxr_ray.storage import Store

CHANGES = Section("changes", "What controls, levels, log-odds and other explainers change")
SECTIONS = (
    *(performance.section, sequential.section, observations.section, hypotheses.section, deletion.section),
    *(advantages.section, curves.section, signs.section, ranking.section, localisation.section, regions.section),
    *(sanity.section, stability.section, accuracy.section, limits.section, definitions.section),
)


def write_report(out: str, images: str | None = None, stage: Counter = NOBODY) -> list[str]:
    """Write report.html, browser/, figures/ and galleries/ into the run folder ``out``, local or a URI.

    Args:
        out: the run's folder.
        images: where the images lie now, as --data names it; None: where the sweep says.
        stage: is told how many parts the page has, and of each that is made.

    Returns:
        The answer of the run, a sentence a model and explainer.

    Raises:
        RunError: there is no run in ``out``, or one without its tables.
    """
    run = results.open_run(out)
    data, store = load(run), Store(run.path, {})
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    links = Links()
    environment.filters["terms"] = links.mark
    environment.globals["begin"] = links.begin
    template = environment.from_string(files("cxr_ray.report").joinpath("report.html.j2").read_text("utf-8"))
    pixels = Images(run, images)
    stage.expect(len(SECTIONS) + 2)  # with the galleries and the first screen
    n_browsed = write_browser(data, store, pixels, stage)
    made = context(data, Folder(store), pixels, stage)
    store.write(
        template.render(made | {"n_browsed": n_browsed, "n_test": len(data.tables["images"])}).encode(), "report.html"
    )
    return [*made["answer"]["answers"], *made["answer"]["others"]]


def context(data: RunData, folder: Folder, images: Images, stage: Counter = NOBODY) -> dict[str, Any]:
    """The values that the template draws."""
    first = answer.first_screen(data, folder)
    stage.advance()
    return {
        "name": data.sweep["name"],
        "styles": page.styles(),
        "answer": first,
        "most": WHOLE_MODELS,
        "reading": reading(data),
        "sections": sections(data, folder, images, stage),
    }


def sections(data: RunData, folder: Folder, images: Images, stage: Counter = NOBODY) -> list[Section]:
    """In the order of the page, that of the Grad-CAM findings study; what was not measured is listed in one place."""
    every = []
    for make in SECTIONS:
        every.append(make(data, folder))
        stage.advance()
        if make is observations.section:
            every.append(galleries.section(data, folder, images))
            stage.advance()
        elif make is deletion.section:
            every.append(CHANGES)
    every.append(provenance(data))
    missing = [s for s in every if s.otherwise and not s.blocks and not s.models]
    shown = [s for s in every if s not in missing]
    place = next(i for i, s in enumerate(shown) if s.anchor == "limitations")
    lines = [f"{s.title}{'' if s.title.endswith('?') else '.'} {s.otherwise}" for s in missing]
    listed = [Section("missing", "Not in this run", blocks=[{"kind": "list", "items": lines}])] if lines else []
    return [*shown[:place], *listed, *shown[place:]]


def provenance(data: RunData) -> Section:
    """Which run the page is of, and what was noted of its data."""
    notes = data.provenance.get("data_notes") or []
    blocks: list[Block] = [page.text(run_line(data))]
    blocks += [{"kind": "list", "items": notes}] if notes else []
    return Section("provenance", "Versions and provenance", blocks=blocks)


def run_line(data: RunData) -> str:
    """Which run this is: its id, sweep, date and versions."""
    known = data.provenance
    commit = f" ({known['git_commit'][:12]})" if known.get("git_commit") else ""
    parts = [
        f"Run {known.get('run_id') or 'unknown'}",
        f"sweep {known.get('sweep_hash') or 'unknown'}",
        f"begun {known.get('started') or 'unknown'}",
        f"cxr_ray {known.get('cxr_ray') or 'unknown'}{commit}",
        *(f"{name} {version}" for name, version in (known.get("versions") or {}).items()),
    ]
    return " · ".join(parts)


FIRST = "The first model has the highest val_auroc. "


def reading(data: RunData) -> list[str]:
    """How to read the page, in paragraphs."""
    more = (
        f" The {WHOLE_MODELS} models with the highest val_auroc are shown whole." if data.models[WHOLE_MODELS:] else ""
    )
    return [
        answer.QUESTION,
        "Here the places that a map marks are filled (deletion) or restored (insertion), and the change of the model's "
        "score is compared with that under control masks. A map earns trust for a group of images where it beats the "
        "hardest strong control, in mean advantage and in how often it wins. Beating random pixels says little.",
        f"The primary number is the advantage in {data.metric}, in log-odds; {data.first}. Each table's caption says "
        "what its numbers are measured with; [ ] is a 95% interval. Bold: beaten, in mean advantage and in win "
        "rate: p_holm < 0.05 and an interval above chance. "
        f"{FIRST if data.trials['val_auroc'].notna().any() and len(data.models) > 1 else ''}"
        f"Test figures chose nothing.{more}",
    ]
