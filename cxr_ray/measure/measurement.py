"""One explainer on a batch: its maps, and how they compare with every control.

Shapes: P (image, target) pairs, V side of a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pyarrow as pa
import torch

from cxr_ray.config import Sweep
from cxr_ray.errors import UserError
from cxr_ray.measure.attribution.inputs import Inputs, combine, images_in_a_pass
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.concentration import saliency_rows
from cxr_ray.measure.controls import CONTROLS, Draws, draws_at_most, of_family
from cxr_ray.measure.curves import Axes
from cxr_ray.measure.donors import DonorMaps, Maps
from cxr_ray.measure.explainers import explainer_of
from cxr_ray.measure.faithfulness import faithfulness_rows
from cxr_ray.measure.localisation import localisation_rows
from cxr_ray.measure.lung_enrichment import lung_rows
from cxr_ray.measure.map_rankings import MapRankings
from cxr_ray.measure.sequential import sequential_test, tested_sequentially
from cxr_ray.measure.shards import Tables
from cxr_ray.measure.shared import SharedControls
from cxr_ray.measure.transfer import to_device
from cxr_ray.models.networks import Classifier


def make_maps(batch: Batch, explainer: str, model: Classifier) -> Maps:
    """One explainer's maps, of the batch's model or another, and those of the controls made from class weights.

    Those of the batch's own model are made in mixed precision where that was decided. Maps from outside stand for an
    explainer, whatever the target.
    """
    network = batch.network
    mixed = explainer in network.mixed and model is network.model
    if model is network.model and network.hooked is not None:
        model = network.hooked()
    with mixed_precision(batch.device) if mixed else contextlib.nullcontext():
        return _made(batch, explainer, model)


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which explainers multiply in float16."""
    return torch.autocast(device.type, torch.float16)


def _made(batch: Batch, explainer: str, model: Classifier) -> Maps:
    pairs, sweep = batch.pairs, batch.sweep
    if explainer in batch.shard.maps:
        return Maps(to_device(batch.shard.maps[explainer], batch.device)[batch.image_of_pair], {})
    inputs = Inputs(
        images=batch.images[batch.image_of_pair],
        blurred=batch.blurred[batch.image_of_pair],
        black=batch.network.model.normalize(torch.zeros(3, 1, 1, device=batch.device)),
        targets=to_device(pairs.target, batch.device),
        ids=pairs.ids,
        seed=sweep.seed,
        in_a_pass=images_in_a_pass(batch.device, batch.size),
    )
    entry, from_weights = explainer_of(explainer), of_family("class weights", sweep.controls)
    with torch.enable_grad():
        if entry.cam is None or not from_weights:
            return Maps(entry.explain(model, inputs).detach().float(), {})
        weights, activations = (part.detach() for part in entry.cam(model, inputs))
    drawn = {}
    for control in from_weights:
        most = draws_at_most(control, sweep.controls[control], sweep.sequential)
        maps = []
        for number in range(most):  # one by one: weights may be as large as activations
            other = CONTROLS[control].draw(Draws(pairs.ids, sweep.seed, [number], batch.device), weights)
            maps.append(combine(other[:, 0], activations))
        drawn[control] = torch.stack(maps, 1).float()
    return Maps(combine(weights, activations).float(), drawn)


def undrawable(sweep: Sweep) -> list[tuple[str, str, str]]:
    """Explainers and controls that can have no draw, (explainer, control, why), whatever the images."""
    found = []
    for control in sweep.controls:
        entry = CONTROLS[control]
        if not entry.grids(sweep.perturb.grids):
            why = f"it has no draws on grid {', '.join(sweep.perturb.grids)}"
            found += [(explainer, control, why) for explainer in sweep.explain.names]
        elif entry.family == "class weights":
            why = "it is made from the class weights of class activation maps"
            found += [(e, control, why) for e in sweep.explain.names if explainer_of(e).cam is None]
    return found


def require_drawable(sweep: Sweep) -> None:
    """Refuse controls that can be drawn for none of the maps: their comparisons would never be decided.

    Raises:
        UserError: there are such; a line for each.
    """
    lost = undrawable(sweep)
    refused = {control: why for _, control, why in lost if all((e, control, why) in lost for e in sweep.explain.names)}
    if refused:
        raise UserError(
            "\n".join(
                f"controls: got {control}, which cannot be drawn for {', '.join(sweep.explain.names)} ({why}); "
                "expected controls that can; leave it out."
                for control, why in refused.items()
            )
        )


def maps_alone(batch: Batch, explainer: str, maps: Maps, donor_maps: DonorMaps | None = None) -> Tables:
    """Rows of saliency, lungs and localisation (where masks are known) of one explainer's maps; nothing is scored."""
    return _map_rows(batch, maps, MapRankings(batch, explainer, maps, donor_maps))


def _map_rows(batch: Batch, maps: Maps, map_rankings: MapRankings) -> Tables:
    rows = {"saliency": saliency_rows(batch, maps.own.to(batch.device), map_rankings.full)}
    if (lungs := lung_rows(batch, map_rankings)) is not None:
        rows["lungs"] = lungs
    if (localisation := localisation_rows(batch, map_rankings)) is not None:
        rows["localisation"] = localisation
    return {(name, map_rankings.explainer): table for name, table in rows.items()}


def measure(
    batch: Batch, shared: SharedControls, explainer: str, maps: Maps, donor_maps: DonorMaps | None = None
) -> Tables:
    """Rows of saliency, lungs and localisation (where masks are known), curves and faithfulness of an explainer's maps.

    Args:
        batch: the images.
        shared: the controls made from nothing.
        explainer: its name.
        maps: of the batch's pairs.
        donor_maps: maps of other images, where a control needs them.
    """
    return begin(batch, shared, explainer, maps, donor_maps)()


def begin(
    batch: Batch, shared: SharedControls, explainer: str, maps: Maps, donor_maps: DonorMaps | None = None
) -> Callable[[], Tables]:
    """Ask the device for all that is scored, as ``measure``; the rows are made when they are called for.

    So a shard's explainers are all under way before the host waits for the first.
    """
    map_rankings = MapRankings(batch, explainer, maps, donor_maps)
    scored = {grid: map_rankings.scored(Axes.of(batch, grid)) for grid in batch.sweep.perturb.grids}

    def rows() -> Tables:
        outcome = batch.outcome[batch.pairs.image].tolist()
        curve_rows, faith_rows = [], []
        for grid, curves in scored.items():
            curve_rows += [of_control.rows(control, batch.pairs) for control, of_control in curves.items()]
            every = curves | shared.on_grid(grid)
            tests = {
                control: sequential_test(map_rankings, shared, control, every)
                for control in every
                if tested_sequentially(batch.sweep, control)
            }
            faith_rows.append(faithfulness_rows(batch.pairs, outcome, every, tests))
        return _map_rows(batch, maps, map_rankings) | {
            ("curves", explainer): pa.concat_tables(curve_rows),
            ("faithfulness", explainer): pa.concat_tables(faith_rows),
        }

    return rows
