"""Whether maps depend on what the model has learned: random weights, and models of shuffled labels (Adebayo et al.,
Sanity checks for saliency maps, NeurIPS 2018).
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn

from cxr_ray.config import Sweep
from cxr_ray.measure.batch import Batch
from cxr_ray.measure.controls import CONTROLS, Family, of_family, strong_first
from cxr_ray.measure.explainers import explainer_of
from cxr_ray.measure.likeness import similarity
from cxr_ray.measure.measurement import make_maps, measure
from cxr_ray.measure.shared import SharedControls
from cxr_ray.models import networks
from cxr_ray.models.networks import Classifier
from cxr_ray.randomness import key
from cxr_ray.schemas import SANITY

MADE_ALONE: tuple[Family, ...] = ("ranking", "nothing")  # controls that need no other image, the stricter first


def cascade(model: Classifier, layers: Sequence[str], seed: int, name: str) -> Iterator[tuple[str, Classifier]]:
    """For each layer in turn, a model in which it and those before it are initialised anew; ``model`` is untouched.

    A layer gets the weights of a fresh network of the same kind, so its own initialisation, batch norms included.
    They depend on (seed, name, layer) alone: the same on every worker.
    """
    for layer in layers:
        model = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, name, f"sanity {layer}"))
            fresh = networks.build(model.spec.arch, model.spec).network
            for part in _parts(model, layer):
                _renew(model.network.get_submodule(part), fresh, part)
        yield layer, model


def _parts(model: Classifier, layer: str) -> Sequence[str]:
    """The modules that a layer stands for: that of its name, as in ResNets, else the head or a stage by resolution."""
    if layer in dict(model.network.named_children()):
        return (layer,)
    found = model.structure
    if layer == "fc":
        return () if found.head is None else (found.head,)
    return found.stages.get(layer, ())


def _renew(module: nn.Module, fresh: nn.Module, name: str) -> None:
    """Give a module the weights of its fresh namesake; a head of another form initialises itself."""
    source = dict(fresh.named_modules()).get(name)
    state = {} if source is None else source.state_dict()
    if source is None or {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in module.state_dict().items()}:
        for part in module.modules():
            reset: Callable[[], None] | None = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
        return
    for part in source.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts some at 0: such a block would pass its input on
            nn.init.ones_(part.weight)
    module.load_state_dict(source.state_dict())


def narrowed(sweep: Sweep, fill: str | None = None) -> Sweep:
    """The sweep with the one test that randomised maps go through, and the explainers that read the model.

    The test is the first grid, a fill (None: the first) and one control: the first that is made from the map's
    ranking, else the first that is made from nothing, by ``controls.strong_first``; none where there is none.
    """
    perturbation, grid = sweep.perturb, sweep.perturb.grids[0]
    drawn = [c for c in sweep.controls if CONTROLS[c].grids([grid])]
    chosen = [c for family in MADE_ALONE for c in strong_first(of_family(family, drawn))][:1]
    explainers = [e for e in sweep.explain.names if not explainer_of(e).model_free]
    return sweep.model_copy(
        update={
            "explain": sweep.explain.model_copy(update={"explainers": explainers, "maps": {}}),
            "perturb": perturbation.model_copy(update={"grids": [grid], "fills": [fill or perturbation.fills[0]]}),
            "controls": {c: sweep.controls[c] for c in chosen},
            "sequential": None,
            "regions": None,
        }
    )


def sanity_rows(
    batch: Batch, shared: SharedControls, explainer: str, randomised: Sequence[tuple[str, Classifier]]
) -> list[pa.Table]:
    """Rows of ``sanity`` of one explainer: maps of each randomised model against the model's own, and their advantage.

    Args:
        batch: images under the narrowed sweep.
        shared: its controls made from nothing.
        explainer: its name.
        randomised: what ``cascade`` gives.
    """
    sweep, pairs = batch.sweep, batch.pairs
    own = make_maps(batch, explainer, batch.network.model).own.cpu().numpy()
    key, control = batch.tested.key, next(iter(sweep.controls), None)
    tables = []
    for layer, model in randomised:
        maps = make_maps(batch, explainer, model)
        gap = np.full(len(pairs), np.nan)
        if control is not None:
            faith = measure(batch, shared, explainer, maps)["faithfulness", explainer].to_pandas()
            faith = faith[(faith.metric == key[0]) & (faith.scale == "logodds") & (faith.control == control)]
            faith = faith[faith.level.isna() | (faith.level == key[1])]
            gap = faith.set_index(["image_id", "target"]).gap[pairs.keys()].to_numpy()
        same = {
            "explainer": explainer,
            "mode": "cascade",
            "layer": layer,
            "seed": sweep.seed,
            "grid": sweep.perturb.grids[0],
            "fill": sweep.perturb.fills[0],
            "metric": key[0],
            "level": key[1],
            "scale": "logodds",
            "control": control,
            "n_draws": next(iter(sweep.controls.values()), None),
        }
        columns = {"image_id": pairs.ids, "target": pairs.target, "gap": gap}
        columns |= similarity(own, maps.own.cpu().numpy())
        columns |= {name: [value] * len(pairs) for name, value in same.items()}
        tables.append(SANITY.build(columns))
    return tables


def shuffled_models(trials: pd.DataFrame) -> list[tuple[str, str, int]]:
    """(trial_id, trial_id of a shuffled-label model, its seed): of the model's own seed if there is one, else each."""

    def labels(config: str) -> str:
        return json.loads(config).get("train", {}).get("labels", "given")

    shuffled = trials[trials["config"].map(labels) == "shuffled"]
    pairs = []
    for trial_id, seed in trials.loc[~trials.index.isin(shuffled.index), ["trial_id", "seed"]].itertuples(index=False):
        same = shuffled[shuffled["seed"] == seed]
        chosen = same if len(same) else shuffled
        pairs += [(trial_id, o, int(s)) for o, s in chosen[["trial_id", "seed"]].itertuples(index=False)]
    return pairs


def compare_stored(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Rows of two models in ``saliency`` with their kept maps to image_id, target and their ``similarity``.

    Only pairs of an image and a target that both models explained, with maps of one size.
    """
    size = ["map_height", "map_width"]
    both = own.dropna(subset="map").merge(other.dropna(subset="map"), on=["image_id", "target", *size])
    parts = []
    for _, same in both.groupby(size):
        shape = (len(same), *same[size].iloc[0])
        a, b = (np.stack(same[f"map_{which}"].to_list()).reshape(shape) for which in ("x", "y"))
        parts.append(same[["image_id", "target"]].assign(**similarity(a, b)))
    columns = ["image_id", "target", "spearman", "spearman_abs", "ssim"]
    return pd.concat(parts) if parts else pd.DataFrame(columns=columns)


def label_rows(
    pairs: Sequence[tuple[str, str, int]], explainers: Sequence[str], read: Callable[[str, str], pd.DataFrame]
) -> Iterator[tuple[str, pa.Table]]:
    """Each model's trial_id and its rows of ``sanity`` in mode labels, where it has any.

    Args:
        pairs: what ``shuffled_models`` gives.
        explainers: those that read the model.
        read: trial_id and explainer to rows of ``saliency``; the maps of two models and one explainer are held at once.
    """
    for trial_id, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        others, tables = list(group), []
        for explainer in explainers:
            own = read(trial_id, explainer)
            for _, other, seed in others:
                rows = compare_stored(own, read(other, explainer))
                same = {"explainer": explainer, "mode": "labels", "layer": other, "seed": seed}
                same |= dict.fromkeys(("grid", "fill", "metric", "level", "scale", "control", "n_draws", "gap"))
                tables.append(
                    SANITY.build(
                        {
                            **{name: rows[name].to_numpy() for name in rows.columns},
                            **{name: [value] * len(rows) for name, value in same.items()},
                        }
                    )
                )
        if sum(t.num_rows for t in tables):
            yield trial_id, pa.concat_tables(tables)
