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
from cxr_ray.report.rundata import RunData
from cxr_ray.report.section import Folder, Section

DESIGN = (
    ("cell, grid", "What is ranked and filled: single pixels (grid pixel) or cells of a g x g grid, by mean saliency."),
    (
        "direction",
        "Deletion (MoRF, most relevant first) fills the most salient cells first; insertion restores them first: it is "
        "LeRF (least relevant first) reversed. Sources: Samek et al., IEEE TNNLS 2017; Petsiuk et al., BMVC 2018.",
    ),
    (
        "target rule",
        "The class whose score is explained and measured. pneumonia: PNEUMONIA for every image; predicted: the class "
        "that the model predicts.",
    ),
    (
        "scale",
        "log-odds: z_target − z_other; probability: of the target. A saturated probability hides large changes in "
        "log-odds.",
    ),
    (
        "advantage over the control",
        "An image's metric minus the mean of the control's draws, with the sign that makes values above 0 more "
        "faithful. The column is called gap.",
    ),
    ("win rate", "Share of control draws that the map beats, ties half; 0.5 is chance."),
    (
        "hardest control",
        "The strong control with the smallest mean advantage of an explainer, bucket and setting.",
    ),
    (
        "beaten",
        "Mean advantage and win rate are both above chance, each by its p after Holm's correction and by its 95% "
        "interval. Not beaten: it is not shown. differs: one of the two is above chance.",
    ),
    (
        "rank set",
        "The ranks of an explainer that paired comparisons over the same images allow; with 95% confidence the sets of "
        "all explainers hold at once (Mogstad et al., Review of Economic Studies 2024).",
    ),
    (
        "patch swap",
        "A region is replaced by the same pixels of a NORMAL validation image of another patient (the donor image).",
    ),
    ("counterfactual rendering", "A phantom drawn again without one thing: the ground truth of that thing's effect."),
    (
        "Grad-CAM findings study",
        "Grad-CAM Findings (Chest X-ray Pneumonia Classifier): 12 images a bucket, one deletion level, no control. Its "
        "three hypotheses are H1 to H3.",
    ),
    (
        "RAD-XAI",
        "A study of the same test images: fill grey, level 0.5, predicted class, no control "
        "(github.com/Ravevx/RAD-XAI-Radiographic-Deep-Explainable-AI-Framework).",
    ),
    ("TP, FP, TN, FN", "PNEUMONIA is positive, threshold 0.5. all: every test image."),
)


def section(data: RunData, folder: Folder) -> Section:
    """A list of terms; those of things the run did not use are left out."""
    items = [{"term": term, "text": text} for term, text in (*_levels(data), *DESIGN, *_registered(data))]
    return Section("definitions", "Definitions", blocks=[{"kind": "terms", "items": items}])


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
