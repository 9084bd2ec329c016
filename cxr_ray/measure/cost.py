"""Forward passes that a sweep needs for an image and a target, read from the registries; a backward pass counts two."""

from __future__ import annotations

from cxr_ray.config import Sweep
from cxr_ray.data.sources import counterfactuals_of
from cxr_ray.measure.controls import CONTROLS, draws_at_most, of_family
from cxr_ray.measure.donor_swaps import swapped_regions
from cxr_ray.measure.explainers import explainer_of
from cxr_ray.measure.sanity import narrowed
from cxr_ray.measure.stability import changes
from cxr_ray.schemas import CLASSES

CHANNELS = 512  # of the feature maps of a ResNet-18


def passes_to_explain(sweep: Sweep, size: int, channels: int = CHANNELS) -> int:
    """Passes of all explainers together. ``channels``: of the network's feature maps, here and below."""
    return sum(f + 2 * b for f, b in (explainer_of(e).cost(size, channels) for e in sweep.explain.names))


def depends_on_channels(sweep: Sweep) -> bool:
    """Whether an explainer makes a pass for each channel of the feature maps."""
    return any(explainer_of(e).passes_of_channel for e in sweep.explain.names)


def passes_of_validation(sweep: Sweep) -> int:
    """Passes of a validation image: untouched, and wholly filled with each fill."""
    return 1 + len(sweep.perturb.fills)


def passes_of_map_pass(sweep: Sweep, size: int, channels: int = CHANNELS) -> int:
    """Passes of the map pass: the untouched image and all explainers."""
    return 1 + passes_to_explain(sweep, size, channels)


def passes_of_regions(sweep: Sweep) -> int:
    """Passes of regions and edits, for an image that has every region and a donor image to swap patches with."""
    if sweep.regions is None:
        return 0
    r = sweep.regions
    return len(r.names) * (1 + r.draws) * (len(sweep.perturb.fills) + 1) + len(r.edits) + len(counterfactuals_of(sweep))


def passes_of_donor_swaps(sweep: Sweep, draws: int) -> int:
    """Passes of one recipient of donor swaps with so many donor images of each class; every region is there."""
    donors = len(CLASSES) * draws
    return 1 + donors * (1 + len(swapped_regions(sweep)))


def rankings_of_controls(sweep: Sweep) -> tuple[int, int, int]:
    """Rankings that controls add: shared by explainers, made for their maps, and sequential draws of both at most."""
    explainers = len(sweep.explain.names)
    cams = sum(explainer_of(e).cam is not None for e in sweep.explain.names)
    shared, own, sequential = 0, 0, 0
    for control, draws in sweep.controls.items():
        family = CONTROLS[control].family
        grids = len(CONTROLS[control].grids(sweep.perturb.grids))
        more = grids * (draws_at_most(control, draws, sweep.sequential) - draws)
        if family == "nothing":
            shared += grids * draws
            sequential += more
        else:
            maps = cams if family == "class weights" else explainers
            own += grids * maps * draws
            sequential += maps * more
    return shared, own, sequential


def passes_per_image(sweep: Sweep, size: int, channels: int = CHANNELS) -> tuple[int, str]:
    """Passes for one test image and one target, and the formula as text.

    Exact but for draws that need not be scored, where it is the most: sequential ones, those of an image with fewer
    donors, those that rank as the map does.
    """
    p = sweep.perturb
    regions, explain = passes_of_regions(sweep), passes_to_explain(sweep, size, channels)
    if not sweep.has_fixed_design:
        total = 1 + regions + explain
        return (
            total,
            f"1 untouched + {regions} of regions and edits + {explain} to explain (a backward pass counts as two)",
        )
    curve = len(p.fills) * len(p.orders) * len(p.levels)
    maps = len(sweep.explain.names) * len(p.grids)
    shared, own, sequential = rankings_of_controls(sweep)
    total = 1 + len(p.fills) + curve * (shared + maps + own + sequential) + regions + explain
    text = (
        f"1 untouched + {len(p.fills)} filled + {curve} (fills x orders x levels) x ({shared} shared rankings + "
        f"{maps} maps on grids + {own} controls made for them"
        + (f" + at most {sequential} sequential draws" if sweep.sequential else "")
        + f") + {regions} of regions and edits + {explain} to explain (a backward pass counts as two)"
    )
    return total, text


def passes_of_sanity(sweep: Sweep, size: int, channels: int = CHANNELS) -> tuple[int, str]:
    """Passes for one image of ``sanity`` and one target, and the formula as text; 0 where it is off."""
    if sweep.sanity is None or not (test := narrowed(sweep)).explain.explainers:
        return 0, "0"
    layers, maps = len(sweep.sanity.layers), len(test.explain.explainers)
    curve = len(test.perturb.orders) * len(test.perturb.levels)
    explain = passes_to_explain(test, size, channels)
    if not test.controls:  # nothing to compare with, so nothing is scored
        return 1 + (1 + layers) * explain, f"1 untouched + {1 + layers} models x {explain} to explain"
    shared, own = (sum(test.controls[c] for c in of_family(family, test.controls)) for family in ("nothing", "ranking"))
    total = 2 + curve * (shared + layers * maps * (1 + own)) + (1 + layers) * explain
    return total, (
        f"1 untouched + 1 filled + {curve} (orders x levels) x ({shared} shared rankings + {layers} layers x {maps} "
        f"explainers x (1 map + {own} controls made from it)) + {1 + layers} models x {explain} to explain"
    )


def passes_of_stability(sweep: Sweep, size: int, channels: int = CHANNELS) -> tuple[int, str]:
    """Passes for one image of ``stability`` and one target, and the formula as text; 0 where it is off."""
    if sweep.stability is None:
        return 0, "0"
    copies, squares, explain = (
        len(changes(sweep.stability)),
        sweep.stability.squares,
        passes_to_explain(sweep, size, channels),
    )
    total = 1 + squares + copies + (1 + copies) * explain
    return total, (
        f"1 untouched + {squares} squares + {copies} altered copies + (1 + {copies}) x {explain} to explain (a "
        "backward pass counts as two)"
    )


def passes_of_verdicts(sweep: Sweep) -> tuple[int, str]:
    """Passes of sequential verdicts for one patient and target, at most, and the formula as text; 0 without them."""
    if sweep.verdicts is None:
        return 0, "0"
    curve = len(sweep.perturb.orders) * len(sweep.perturb.levels)
    explainers = sweep.verdicts.explainers or sweep.explain.names
    controls = sweep.verdicts.controls
    shared = len(of_family("nothing", controls))
    cams = sum(explainer_of(e).cam is not None for e in explainers)
    weights = len(of_family("class weights", controls))
    own = len(explainers) * (len(controls) - shared - weights) + cams * weights
    return 1 + curve * (shared + len(explainers) + own), (
        f"1 filled + {curve} (orders x levels) x ({shared} shared rankings + {len(explainers)} maps + {own} controls "
        "made for them)"
    )
