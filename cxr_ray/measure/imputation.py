"""Linear imputation (Rong et al., ROAD, ICML 2022): a missing pixel is the weighted mean of its neighbours.

Weights are 1/6 straight and 1/12 diagonal. At the image's edge they are those of the neighbours that exist, divided by
their sum, as in ROAD's published code, so that nothing from outside the image enters and a constant image stays as it
is. Known pixels are fixed. ROAD solves one sparse system an image; here whole batches are solved on the images' device
by conjugate gradients, preconditioned with one multigrid V-cycle.

Shapes: N planes (an image's channel each), S side of an image, C side of the next coarser level. Inside, planes are the
channels of one image [1, N, S, S] in channels_last, which makes each operator one grouped convolution.

The operator is A x = d x - W x with the weights times 12, whole numbers: in float32 a rounding of 1/6 would act as a
source in every pixel, and in a large hole such sources add up to 1e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 5e-4  # of the estimated error before the last step; the step itself divides it by 2 to 10
MAX_STEPS = 50
CPU_PLANES = 16  # solved at a time on a CPU, so that they fit its caches
_NEIGHBOURS = ((1.0, 2.0, 1.0), (2.0, 0.0, 2.0), (1.0, 2.0, 1.0))
_BILINEAR = ((0.25, 0.5, 0.25), (0.5, 1.0, 0.5), (0.25, 0.5, 0.25))


def linear(planes_NSS: Tensor, missing_NSS: Tensor) -> Tensor:
    """The planes [N, S, S] with their missing pixels imputed, within 1e-3 of the exact solution for values in [0, 1].

    A plane without any known pixel becomes its mean, the value that imputing tends to as nothing is left. Each plane's
    result depends on that plane alone, to rounding.
    """
    if not len(planes_NSS):
        return planes_NSS
    size = CPU_PLANES if planes_NSS.device.type == "cpu" else len(planes_NSS)
    by_difficulty = missing_NSS.sum((1, 2)).argsort(stable=True)
    out = torch.empty_like(planes_NSS)
    for part in by_difficulty.split(size):
        out[part] = _solve(planes_NSS[part], missing_NSS[part])
    return out


def _solve(planes_NSS: Tensor, missing_NSS: Tensor) -> Tensor:
    known = (~missing_NSS).float()
    count = known.sum((1, 2), keepdim=True)
    means = torch.where(
        count > 0,
        (planes_NSS * known).sum((1, 2), keepdim=True) / count.clamp(min=1),
        planes_NSS.mean((1, 2), keepdim=True),
    )
    grid = _Multigrid(_as_channels(missing_NSS.float()))
    x = _as_channels((planes_NSS - means) * known)  # about its mean, where float32 is finest
    r = grid.residual(0, x).mul_(grid.missing)
    p, rz_before = torch.zeros_like(x), torch.ones_like(means[None, :, 0, :, None])
    going = torch.ones_like(rz_before)
    for _ in range(MAX_STEPS):
        z = grid.cycle(0, r)
        rz = (r * z).sum((2, 3), keepdim=True)
        p = p.mul_(rz / rz_before).add_(z)
        q = grid.residual(0, p).mul_(grid.missing)
        step = going * rz / -(p * q).sum((2, 3), keepdim=True).clamp(max=-1e-30)
        x.addcmul_(p, step)
        r.addcmul_(q, step)
        rz_before = rz.clamp(min=1e-30)
        # The V-cycle of the residual is the error but for what one cycle leaves of it. The residual itself says little:
        # in a hole of radius R it may be 1/R^2 of the error.
        going = going * (_largest(z) > TOLERANCE)
        if not going.any():
            break
    return torch.where(missing_NSS, x[0].contiguous() + means, planes_NSS)


def _as_channels(planes_NSS: Tensor) -> Tensor:
    planes, size = planes_NSS.shape[0], planes_NSS.shape[1]
    return planes_NSS.flatten(1).t().contiguous().t().view(1, planes, size, size)  # twice as fast as by memory_format


def _largest(x: Tensor) -> Tensor:
    """Greatest magnitude of each plane, [1, N, 1, 1]: by whole rows, ten times as fast as over pixels."""
    planes, size = x.shape[1], x.shape[3]
    rows = x.permute(0, 2, 3, 1).reshape(-1, size * planes).abs().amax(0)
    return rows.view(size, planes).amax(0).view(1, planes, 1, 1)


class _Multigrid:
    """Levels of the masked system, and a V-cycle of one Jacobi sweep before and after.

    Level l + 1 holds every second pixel. Interpolation P is bilinear, zero at known pixels; restriction is its
    transpose. The coarse operator is the same stencil among pixels that some missing pixel interpolates from, plus on
    the diagonal a pull to the known pixels: half of P^T A P 1, the row sums that Galerkin's operator would have (half,
    since a correction cut off at the known pixels is stiffer than the smooth one that it stands for).
    """

    def __init__(self, missing: Tensor):
        self.planes, self.missing, size = missing.shape[1], missing, missing.shape[-1]
        self.neighbours, self.bilinear = (
            torch.tensor(kernel, device=missing.device)
            .expand(self.planes, 1, 3, 3)
            .contiguous(memory_format=torch.channels_last)  # or the results of convolutions are not
            for kernel in (_NEIGHBOURS, _BILINEAR)
        )
        d = self.around(torch.ones_like(missing))
        pull = (d - self.around(missing)).mul_(missing).mul_(0.5)
        self.diagonals, self.sweeps, self.weights = [d], [missing / d], []
        here = missing
        while size > 2:
            coarse = (size + 1) // 2
            ones = torch.ones_like(missing[:, :, :coarse, :coarse])
            self.weights.append(here / self.finer(ones, size))  # bilinear weights sum to 1, at the last row as well
            pull = self.coarser(pull.mul_(self.weights[-1]))
            here = (self.coarser(here) > 0).float()
            self.diagonals.append(self.around(here).add_(pull))
            self.sweeps.append(here / self.diagonals[-1].clamp(min=1e-6))
            size = coarse

    def around(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.neighbours, padding=1, groups=self.planes)

    def coarser(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.bilinear, stride=2, padding=1, groups=self.planes)

    def finer(self, x: Tensor, size: int) -> Tensor:
        return F.conv_transpose2d(
            x, self.bilinear, stride=2, padding=1, output_padding=1 - size % 2, groups=self.planes
        )

    def residual(self, level: int, x: Tensor, b: Tensor | None = None) -> Tensor:
        """b - A x on every pixel, also on known ones."""
        r = self.around(x).addcmul_(x, self.diagonals[level], value=-1)
        return r if b is None else r.add_(b)

    def cycle(self, level: int, b: Tensor) -> Tensor:
        """About A^-1 b: symmetric and positive, as conjugate gradients need."""
        sweep = self.sweeps[level]
        x = sweep * b
        if level == len(self.weights):
            for _ in range(3):
                x.addcmul_(sweep, self.residual(level, x, b))
            return x
        weight = self.weights[level]
        rest = self.coarser(self.residual(level, x, b).mul_(weight))
        x.addcmul_(weight, self.finer(self.cycle(level + 1, rest), x.shape[-1]))
        return x.addcmul_(sweep, self.residual(level, x, b))
