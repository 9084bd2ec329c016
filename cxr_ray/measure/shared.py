"""Curves of the controls that are made from nothing: once for every explainer and target.

Shapes: B images, P (image, target) pairs, D draws, F fills, O directions, L levels asked for.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_ray.measure.batch import Batch
from cxr_ray.measure.controls import CONTROLS, Draws, draws_at_most, of_family
from cxr_ray.measure.curves import Array, Axes, Curves, score_rankings
from cxr_ray.measure.shards import Tables
from cxr_ray.measure.transfer import to_host
from cxr_ray.schemas import SHARED


class SharedControls:
    """Curves of the fixed draws, by control and grid, and of further ones as a test asks for them."""

    def __init__(self, batch: Batch):
        """Score the fixed draws of the sweep's controls."""
        self.batch = batch
        self.curves: dict[tuple[str, str], Curves] = {}
        self._further: dict[tuple[str, str, int], Array] = {}  # by control, grid and fill
        for control in of_family("nothing", batch.sweep.controls):
            for grid in CONTROLS[control].grids(batch.sweep.perturb.grids):
                self.curves[control, grid] = self._fixed_draws(control, Axes.of(batch, grid))

    def _fixed_draws(self, control: str, axes: Axes) -> Curves:
        batch, images = self.batch, np.arange(len(self.batch.ids))
        parts = [
            score_rankings(batch, axes, self._rankings(control, axes.grid, images, numbers), images)
            for numbers in axes.portions(batch.sweep.controls[control], len(images))
        ]
        logit = torch.cat(parts, 1)[batch.image_of_pair] * batch.sign.view(-1, 1, 1, 1, 1)
        return Curves(axes, batch.results.put(logit), np.ones(logit.shape[:2], dtype=bool))

    def _rankings(self, control: str, grid: str, images: NDArray[np.integer], numbers: range) -> Tensor:
        batch = self.batch
        ids = [batch.ids[i] for i in images]
        return CONTROLS[control].draw(Draws(ids, batch.sweep.seed, numbers, batch.device), grid, batch.size)

    def on_grid(self, grid: str) -> dict[str, Curves]:
        """Curves of the fixed draws on one grid, by control."""
        return {control: curves for (control, g), curves in self.curves.items() if g == grid}

    def rows(self) -> Tables:
        """Rows of ``curves``."""
        rows = [curves.rows(control, self.batch.pairs) for (control, _), curves in self.curves.items()]
        return {("curves", SHARED): pa.concat_tables(rows)} if rows else {}

    def further(self, control: str, axes: Axes, fill: int, pairs: NDArray[np.integer], numbers: range) -> Array:
        """Log-odds of PNEUMONIA of further draws for some of the pairs: [N, D, 1, O, L + 2]."""
        image_N = self.batch.pairs.image[pairs]
        images, draws, name = np.unique(image_N), np.array(numbers), (control, axes.grid, fill)
        if name not in self._further:
            sweep = self.batch.sweep
            most = draws_at_most(control, sweep.controls[control], sweep.sequential)
            shape = (len(self.batch.ids), most, len(axes.directions), len(axes.counts))
            self._further[name] = np.full(shape, np.nan)
        curves_BDOL = self._further[name]
        lacking = np.isnan(curves_BDOL[np.ix_(images, draws)][:, :, 0, 0])
        if lacking.any():
            places = self._rankings(control, axes.grid, images, numbers)
            n, d = np.nonzero(lacking)
            made = to_host(score_rankings(self.batch, axes, places, images, fill, lacking))
            curves_BDOL[images[n], draws[d]] = made[n, d, 0]
        return curves_BDOL[np.ix_(image_N, draws)][:, :, None]
