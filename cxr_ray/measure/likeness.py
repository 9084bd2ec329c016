"""How alike two maps of an image are: rank correlation and structural similarity.

Shapes: N maps, V side of a map, K places of a map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
SSIM_WINDOWS = (7, 3)  # places; the larger where it fits twice


def similarity(a_NVV: Array, b_NVV: Array) -> dict[str, Array]:
    """How alike two maps of each pair are, at their own resolution.

    Returns:
        float64 [N] each: spearman and spearman_abs (rank correlation of the maps, and of their absolute values; ties
        share their mean rank) in [-1, 1], and ssim (structural similarity, Wang et al. 2004, of the maps scaled to
        [0, 1], uniform windows of 7 x 7 places, 3 x 3 on maps under 14 x 14); 1: the same. NaN where either map is
        constant or not finite, and for ssim on maps under 3 x 3.
    """
    a_NVV, b_NVV = np.asarray(a_NVV, np.float64), np.asarray(b_NVV, np.float64)
    a_NK, b_NK = a_NVV.reshape(len(a_NVV), -1), b_NVV.reshape(len(b_NVV), -1)
    usable = varies(a_NK) & varies(b_NK)
    out = {k: np.full(len(a_NK), np.nan) for k in ("spearman", "spearman_abs")}
    out["spearman"][usable] = correlation(ranks(a_NK[usable]), ranks(b_NK[usable]))
    out["spearman_abs"][usable] = correlation(ranks(np.abs(a_NK[usable])), ranks(np.abs(b_NK[usable])))
    return out | {"ssim": ssim(a_NVV, b_NVV)}


def ssim(a_NVV: Array, b_NVV: Array) -> Array:
    """Structural similarity of two maps of each pair, as in ``similarity``, float64 [N]."""
    from skimage.metrics import structural_similarity

    out = np.full(len(a_NVV), np.nan)
    side = min(a_NVV.shape[1:])
    window = next((w for w in SSIM_WINDOWS if w * 2 <= side), SSIM_WINDOWS[-1])
    if window <= side:
        usable = varies(a_NVV.reshape(len(a_NVV), -1)) & varies(b_NVV.reshape(len(b_NVV), -1))
        out[usable] = [
            structural_similarity(_unit(a), _unit(b), win_size=window, data_range=1.0)
            for a, b in zip(a_NVV[usable], b_NVV[usable], strict=True)
        ]
    return out


def varies(maps_NK: Array) -> NDArray[np.bool_]:
    """Whether a map is finite and not constant, [N]."""
    return np.isfinite(maps_NK).all(1) & (maps_NK.max(1) > maps_NK.min(1))


def ranks(maps_NK: Array) -> Array:
    """The rank of each place, the mean one where several tie, minus the map's mean rank: float64 [N, K]."""
    from scipy.stats import rankdata  # most of a second

    ranks_NK = rankdata(maps_NK, axis=1)
    return ranks_NK - ranks_NK.mean(1, keepdims=True)


def correlation(a_NK: Array, b_NK: Array) -> Array:
    """Correlation of values whose mean is 0, [N]; NaN where either is constant."""
    with np.errstate(invalid="ignore"):  # absolute values may be constant where the map is not
        return (a_NK * b_NK).sum(1) / np.sqrt((a_NK**2).sum(1) * (b_NK**2).sum(1))


def _unit(map_VV: Array) -> Array:
    return (map_VV - map_VV.min()) / (map_VV.max() - map_VV.min())
