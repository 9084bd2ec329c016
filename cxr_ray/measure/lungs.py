"""Lung masks by torchxrayvision's segmenter, for images whose source has none.

Shapes: B images, S side of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.config import SEGMENTER, Sweep
from cxr_ray.data.sources import SOURCES
from cxr_ray.errors import WeightsError, first_line

SEGMENTER_SIDE = 512

Segmenter = Callable[[Tensor], Tensor]


def wants_segmenter(sweep: Sweep) -> bool:
    """Whether the sweep's lung masks come from a network; a source may bring its own."""
    known = SOURCES[sweep.data.source].masks
    return sweep.regions is not None and sweep.regions.lungs == SEGMENTER and "lungs" not in known


def segmenter(device: torch.device | str = "cpu") -> Segmenter:
    """Uint8 images [B, 3, S, S] to lungs, bool [B, S, S]: PSPNet of torchxrayvision (Lian et al., IEEE TMI 2021).

    Raises:
        WeightsError: the package is missing, or its weights cannot be had.
    """
    remedy = "give a folder of masks (regions.lungs), or none (regions.lungs=null, without outside_lungs)."
    try:
        from torchxrayvision.baseline_models.chestx_det import PSPNet
    except ImportError:
        raise WeightsError(
            f"regions.lungs: got {SEGMENTER}, which is not installed; expected the extra lungs; install it "
            f"(pip install 'cxr-ray[lungs]'), or {remedy}"
        ) from None
    try:
        network = PSPNet().eval().to(device)
    except Exception as e:  # its download raises whatever requests, the system and torch raise
        reason = first_line(e).rstrip(".")
        raise WeightsError(
            f"regions.lungs: got {SEGMENTER} without the weights of its PSPNet ({reason[:200]}); expected them; try "
            f"again with network access, or {remedy}"
        ) from None
    lungs = [i for i, name in enumerate(network.targets) if name in ("Left Lung", "Right Lung")]

    def segment(pixels_BCSS: Tensor) -> Tensor:
        size = pixels_BCSS.shape[-1]
        grey = pixels_BCSS.float().mean(1, keepdim=True) / 255
        large = F.interpolate(grey, (SEGMENTER_SIDE,) * 2, mode="bilinear", align_corners=False)
        logits = network(large * 2048 - 1024)[:, lungs].amax(1, keepdim=True)
        return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)[:, 0] > 0

    return segment
