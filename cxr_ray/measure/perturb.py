"""Rankings, fills, masks and controls, and the scores of masked images. All of it stays on the images' device.

Shapes: B images, P (image, target) pairs, D draws, F fills, U units (pixels or cells), S side of an image in pixels, G
side of the grid in units, J jobs (one masked image each), V side of a map, K channels.

A ranking holds for each unit its place, 0 for the most salient. Perturbing a share f in order morf fills the units
whose place is under n = round(f U), in order lerf those whose place is at least U - n: one is the exact reverse of the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from cxr_ray import randomness
from cxr_ray.config import MAX_SHIFTED, Sequential
from cxr_ray.measure import impute
from cxr_ray.randomness import key

STEPS = 7  # rolls by sevenths; the tie-breaking and smooth fields have 7 x 7 knots
BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # RISE's
LINEAR_NOISE = 0.01  # ROAD's, in pixel space


def side(grid: str, size: int) -> int:
    """Units along one side: the image's size for grid pixel, else the number in the grid's name."""
    return size if grid == "pixel" else int(grid)


def counts(levels: Sequence[float], units: int) -> list[int]:
    """Units perturbed at each level: exactly round(level * units)."""
    return [round(level * units) for level in levels]


def cell_of(size: int, g: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [size]: pixel y lies in cell floor(y g / size)."""
    return torch.arange(size, device=device) * g // size


def cell_means(maps_NSS: Tensor, g: int) -> Tensor:
    """Means over the cells of a g x g grid, [N, g, g]; the maps themselves where g is their size."""
    size = maps_NSS.shape[-1]
    if g == size:
        return maps_NSS
    member = F.one_hot(cell_of(size, g, maps_NSS.device), g).to(maps_NSS.dtype)
    member = member / member.sum(0)
    return torch.einsum("nyx,yg,xh->ngh", maps_NSS, member, member)


def upsample(maps_NVV: Tensor, size: int) -> Tensor:
    """Bilinear (align_corners false) to [N, size, size]."""
    if maps_NVV.shape[-2:] == (size, size):
        return maps_NVV
    return F.interpolate(maps_NVV[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def smooth_field(keys_N: Tensor, size: int, *, gaussian: bool = False) -> Tensor:
    """A random 7 x 7 field (uniform, or Gaussian), bilinear to [N, size, size]."""
    numbers = randomness.normal if gaussian else randomness.uniform
    return upsample(numbers(keys_N, STEPS * STEPS).view(-1, STEPS, STEPS), size)


def rank(maps_NU: Tensor, ties_NU: Tensor) -> Tensor:
    """Places, int32 [N, U], highest value first; equal values in the order of ``ties_NU``, highest first."""
    keys = _ordinal(maps_NU).long().mul_(2**32).add_(_ordinal(ties_NU))  # one sort by both
    keys.neg_()
    if keys.device.type == "cpu":  # torch sorts whole numbers by radix where they are one row, and twice as fast
        return _places(torch.stack([row.sort(stable=True).indices for row in keys]))
    return _places(keys.argsort(dim=1, stable=True))


def _ordinal(values: Tensor) -> Tensor:
    """int32, in the order of finite float32 values, whose bits are a sign and a magnitude."""
    bits = (values.float() + 0.0).view(torch.int32)  # adding 0 makes -0 one with 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def rank_on(maps_NSS: Tensor, ties_NSS: Tensor, g: int) -> Tensor:
    """Places of the cells of a g x g grid by the maps' means over them, int32 [N, g * g]."""
    means = cell_means(maps_NSS, g)
    means = means if g == maps_NSS.shape[-1] else _rounded(means)
    return rank(means.flatten(1), cell_means(ties_NSS, g).flatten(1))


def _rounded(maps_NVV: Tensor) -> Tensor:
    """To 2^-16 of each map's largest magnitude: cells equal but for the order of a sum tie, on every batch alike.

    Not for pixels: so many values would tie that are apart, and a pair of pixels in the other order changes little.
    """
    step = maps_NVV.abs().amax((1, 2), keepdim=True) * 2.0**-16
    return torch.where(step > 0, torch.round(maps_NVV / step) * step, 0.0)


def tie_fields(ids: Sequence[str], seed: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """The smooth field that breaks each image's ties, [N, size, size]."""
    return smooth_field(torch.tensor([key(seed, i, "ties") for i in ids], device=device), size)


def at_size(maps_NVV: Tensor, size: int) -> Tensor:
    """Maps at image size, [N, size, size]; a constant one is zero, since upsampling may round it apart."""
    flat = maps_NVV.flatten(1)
    constant = flat.amax(1) == flat.amin(1)
    return torch.where(constant[:, None, None], 0.0, upsample(maps_NVV, size))


def _places(order_NU: Tensor) -> Tensor:
    places = torch.arange(order_NU.shape[1], dtype=torch.int32, device=order_NU.device).expand_as(order_NU)
    return torch.empty_like(order_NU, dtype=torch.int32).scatter_(1, order_NU, places)


# Fills: pixel-space images [B, 3, S, S] in [0, 1], the grey value [3, 1, 1] and one key an image, to what replaces
# perturbed pixels [B, 3, S, S]. Linear depends on the mask as well: here stands what it is where everything is
# perturbed, and ``Linear`` makes the rest.


def _black(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    return torch.zeros_like(images)


def _grey(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    return grey.expand_as(images)


def _mean(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    return images.mean((2, 3), keepdim=True).expand_as(images)


def _blur(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    return gaussian_blur(images, [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])


def _noise(images: Tensor, grey: Tensor, keys_B: Tensor) -> Tensor:
    size = images.shape[-1]
    return randomness.uniform(keys_B, size * size).view(-1, 1, size, size).expand_as(images)


FILLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "black": _black,
    "grey": _grey,
    "mean": _mean,
    "blur": _blur,
    "noise": _noise,
    "linear": _mean,
}


# Controls that know nothing of the map: image ids to rankings int32 [B, D, U], shared by every explainer and target.
# ``draws`` are the numbers of the draws, 0, 1, ...

Draws = Sequence[int]


def pixel_random(ids: Sequence[str], seed: int, draws: Draws, grid: str, size: int, device: torch.device) -> Tensor:
    """Random pixels. Destroys texture everywhere: a floor, not a control of shape."""
    return _draws(ids, seed, "pixel_random", draws, device, lambda keys: _places(randomness.permutation(keys, size**2)))


def cell_random(ids: Sequence[str], seed: int, draws: Draws, grid: str, size: int, device: torch.device) -> Tensor:
    """Random cells of the grid; on grid pixel, of 7 x 7 cells."""
    if grid != "pixel":
        units = side(grid, size) ** 2
        return _draws(ids, seed, f"cell_random {grid}", draws, device,
                      lambda keys: _places(randomness.permutation(keys, units)))  # fmt: skip

    def blocks(keys: Tensor) -> Tensor:
        cell = cell_of(size, STEPS, keys.device)
        places = _places(randomness.permutation(keys, STEPS * STEPS)).view(-1, STEPS, STEPS)
        return rank(-places[:, cell][:, :, cell].flatten(1).float(), smooth_field(keys, size).flatten(1))

    return _draws(ids, seed, "cell_random pixel", draws, device, blocks)


def smooth_random(ids: Sequence[str], seed: int, draws: Draws, grid: str, size: int, device: torch.device) -> Tensor:
    """A Gaussian 7 x 7 field, bilinear: as smooth as a class activation map."""

    def field(keys: Tensor) -> Tensor:
        values = cell_means(smooth_field(keys, size, gaussian=True), side(grid, size)).flatten(1)
        return rank(values, -torch.arange(values.shape[1], device=values.device).expand_as(values))

    return _draws(ids, seed, "smooth_random", draws, device, field)


def _draws(ids: Sequence[str], seed: int, purpose: str, draws: Draws, device: torch.device,
           places: Callable[[Tensor], Tensor]) -> Tensor:  # fmt: skip
    keys = torch.tensor([key(seed, i, purpose, d) for i in ids for d in draws], device=device)
    return places(keys).view(len(ids), len(draws), -1)


SharedControl = Callable[[Sequence[str], int, Draws, str, int, torch.device], Tensor]
SHARED_CONTROLS: dict[str, SharedControl] = {
    "pixel_random": pixel_random,
    "cell_random": cell_random,
    "smooth_random": smooth_random,
}


# Controls made from the map's ranking, int32 [P, U], and its images' ids: rankings int32 [P, D, U].


def shifted(places_PU: Tensor, ids: Sequence[str], seed: int, draws: Draws) -> Tensor:
    """The map itself, rolled by sevenths and turned: the same area and shape elsewhere.

    Drawn without replacement from the non-identity elements of roll x dihedral (7 * 7 * 8 - 1). An image's draws are
    the same for every explainer and target.
    """
    device, units = places_PU.device, places_PU.shape[1]
    g = round(units**0.5)
    keys = torch.tensor([key(seed, i, "shifted") for i in ids], device=device)
    elements = randomness.permutation(keys, MAX_SHIFTED)[:, list(draws)] + 1  # 0 is the identity
    turn, roll = elements // (STEPS * STEPS), elements % (STEPS * STEPS)
    down, right = (
        torch.div(r * g * 2 + STEPS, 2 * STEPS, rounding_mode="floor") for r in (roll // STEPS, roll % STEPS)
    )
    y = (torch.arange(g, device=device).view(1, 1, g, 1) - down[:, :, None, None]) % g
    x = (torch.arange(g, device=device).view(1, 1, 1, g) - right[:, :, None, None]) % g
    bit = [(turn[:, :, None, None] >> b) & 1 == 1 for b in range(3)]
    y, x = torch.where(bit[0], g - 1 - y, y), torch.where(bit[1], g - 1 - x, x)
    source = torch.where(bit[2], x * g + y, y * g + x)
    return places_PU[:, None].expand(-1, len(draws), -1).gather(2, source.view(len(ids), len(draws), units))


MapControl = Callable[[Tensor, Sequence[str], int, Draws], Tensor]
MAP_CONTROLS: dict[str, MapControl] = {"shifted": shifted}


# Controls that are maps themselves, ranked as the map is, ties by the same field. random_cam: the same activations, the
# class's weights permuted over channels (class activation maps only). other_image: the map of another patient's image
# with the same prediction. mean_map: the mean rank map over all of those; one draw.


def permuted_weights(weights_PK: Tensor, ids: Sequence[str], seed: int, draw: int) -> Tensor:
    """random_cam's weights: each pair's, [P, K] or [P, K, V, V], permuted over channels.

    An image's draws are the same for every explainer and target.
    """
    keys = torch.tensor([key(seed, i, "random_cam", draw) for i in ids], device=weights_PK.device)
    order = randomness.permutation(keys, weights_PK.shape[1])
    return weights_PK.gather(1, order.view(*order.shape, *[1] * (weights_PK.ndim - 2)).expand_as(weights_PK))


OTHER_IMAGES = ("other_image", "mean_map")
CONTROLS = (*SHARED_CONTROLS, *MAP_CONTROLS, "random_cam", *OTHER_IMAGES)


def most_draws(control: str, draws: int, sequential: Sequential | None) -> int:
    """Draws of a control behind p_value at most, given its fixed ones."""
    if sequential is None or control == "mean_map":
        return draws
    return max(draws, min(sequential.max_draws, MAX_SHIFTED) if control == "shifted" else sequential.max_draws)


def control_grids(control: str, grids: Sequence[str]) -> list[str]:
    """The grids on which a control is drawn: pixel_random on pixel alone."""
    return [g for g in grids if control != "pixel_random" or g == "pixel"]


def overlap(places_PU: Tensor, control_PDU: Tensor, n: int, order: str) -> Tensor:
    """Share of the map's own perturbed units that the control perturbs too, float32 [P, D]; NaN where n is 0."""
    units = places_PU.shape[1]
    if order == "morf":
        both = (torch.maximum(places_PU[:, None], control_PDU) < n).sum(2)
    else:
        both = (torch.minimum(places_PU[:, None], control_PDU) >= units - n).sum(2)
    return both.float() / n


@dataclass(frozen=True)
class Linear:
    """Noisy linear imputation (Rong et al., ROAD, ICML 2022), made anew for each mask.

    A perturbed pixel is the weighted mean of its neighbours (``impute``) plus noise, not clipped to [0, 1], as in
    ROAD's published code. Unlike there, an image's noise is one field, the same for all channels, masks and levels:
    draws are paired with it, and the channels of an X-ray stay equal. Where nothing is left, it is the image's mean
    without noise.

    Attributes:
        fill: its place among the fills.
        planes: pixel space, [B, 1, S, S] if the channels of every image are equal, else [B, 3, S, S].
        noise: [B, 1, S, S], standard deviation 0.01 in pixel space.
        normalize: pixel space [b, 3, S, S] to model space.
    """

    fill: int
    planes: Tensor
    noise: Tensor
    normalize: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, fill: int, images_BCSS: Tensor, keys_B: Tensor, normalize: Callable[[Tensor], Tensor]) -> Linear:
        """From pixel-space images [B, 3, S, S] and one key an image for its noise."""
        size = images_BCSS.shape[-1]
        grey = bool((images_BCSS == images_BCSS[:, :1]).all())
        noise = randomness.normal(keys_B, size * size).view(-1, 1, size, size) * LINEAR_NOISE
        return cls(fill, images_BCSS[:, :1] if grey else images_BCSS, noise, normalize)

    def __call__(self, image_J: Tensor, filled_JU: Tensor) -> Tensor:
        """Model space [J, 3, S * S], what replaces the filled pixels (bool [J, S * S]) of each job's image."""
        planes = self.planes.index_select(0, image_J)
        missing = filled_JU.view(-1, 1, *planes.shape[-2:])
        made = impute.linear(planes.flatten(0, 1), missing.expand_as(planes).flatten(0, 1)).view_as(planes)
        made = made + self.noise.index_select(0, image_J) * ~missing.all(3).all(2)[:, :, None, None]
        return self.normalize(made.expand(-1, 3, -1, -1)).flatten(2)


@dataclass(frozen=True)
class Canvas:
    """Images and fills in model space, from which a batch of masked images takes two gathers and one blend.

    Attributes:
        images: [B, 3, S * S].
        fills: [B * F, 3, S * S].
        size: S.
        n_fills: F.
        linear: the fill that depends on the mask, if it is among them.
    """

    images: Tensor
    fills: Tensor
    size: int
    n_fills: int
    linear: Linear | None = None
    _memory: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, images_BCSS: Tensor, fills_BFCSS: Tensor, linear: Linear | None = None) -> Canvas:
        """From model-space images [B, 3, S, S] and fills [B, F, 3, S, S]."""
        images, fills = images_BCSS.flatten(2).contiguous(), fills_BFCSS.flatten(0, 1).flatten(2).contiguous()
        return cls(images, fills, images_BCSS.shape[-1], fills_BFCSS.shape[1], linear)

    def with_fill(self, fill_BCSS: Tensor) -> Canvas:
        """The same images with one more fill, the last, in model space."""
        fills = self.fills.unflatten(0, (-1, self.n_fills))
        fills = torch.cat([fills, fill_BCSS.flatten(2)[:, None]], 1)
        return replace(self, fills=fills.flatten(0, 1), n_fills=self.n_fills + 1)

    def only(self, fill: int) -> Canvas:
        """The same images with one of the fills."""
        fills = self.fills[fill :: self.n_fills]
        linear = replace(self.linear, fill=0) if self.linear and self.linear.fill == fill else None
        return replace(self, fills=fills, n_fills=1, linear=linear)

    def filled(self, image_J: Tensor, fill_J: Tensor, filled_JU: Tensor) -> Tensor:
        """Model-space images [J, 3, S, S], pixels in bool [J, S * S] replaced by each job's fill.

        They lie in memory that the next call uses again: fresh memory would cost more than what is done in it.
        """
        if not self._memory or self._memory[0].shape[1] < len(image_J):
            self._memory[:] = [self.images.new_empty(2, len(image_J), *self.images.shape[1:])]
        made, fills = self._memory[0][:, : len(image_J)]
        torch.index_select(self.images, 0, image_J, out=made)
        torch.index_select(self.fills, 0, image_J * self.n_fills + fill_J, out=fills)
        if self.linear:
            own = (fill_J == self.linear.fill).nonzero()[:, 0]
            fills.index_copy_(0, own, self.linear(image_J[own], filled_JU[own]))
        made.lerp_(fills, filled_JU[:, None].to(fills.dtype))  # exact at 0 and 1, and twice as fast as torch.where
        return made.unflatten(2, (self.size, self.size))


def masked_scores(
    forward: Callable[[Tensor], Tensor],
    canvas: Canvas,
    places_NU: Tensor,
    image_of_N: Tensor,
    ns: Sequence[int],
    orders: Sequence[str],
    batch_size: int,
) -> Tensor:
    """Scores of every ranking x fill x order x level, float32 [N, F, O, L].

    Args:
        forward: model-space images [b, 3, S, S] to scores [b]; the images are gone at its next call.
        canvas: images and fills.
        places_NU: rankings, int32; U is a square number.
        image_of_N: the image of each ranking.
        ns: units to perturb at each of the L levels.
        orders: of morf and lerf.
        batch_size: masked images in one pass; batches are filled across rankings, fills, orders and levels.
    """
    device, (n_rankings, units), size = places_NU.device, places_NU.shape, canvas.size
    n_levels, n_orders = len(ns), len(orders)
    count = torch.tensor(ns, device=device, dtype=torch.int32)
    low = torch.stack([torch.zeros_like(count) if o == "morf" else units - count for o in orders]).flatten()
    high = torch.stack([count if o == "morf" else torch.full_like(count, units) for o in orders]).flatten()
    shape = (n_rankings, canvas.n_fills, n_orders, n_levels)
    if not n_rankings:  # not every form takes an empty batch
        return torch.empty(shape, device=device)
    jobs = torch.arange(n_rankings * canvas.n_fills * n_orders * n_levels, device=device)
    masks = n_orders * n_levels
    g = round(units**0.5)
    if g != size:
        cell = cell_of(size, g, device)
        unit_of_pixel = (cell[:, None] * g + cell).flatten()
    scores = []
    for batch in jobs.split(batch_size):
        ranking = batch // (canvas.n_fills * masks)
        fill, mask = batch // masks % canvas.n_fills, batch % masks
        places = places_NU.index_select(0, ranking)
        filled = (places >= low[mask, None]) & (places < high[mask, None])
        if g != size:
            filled = filled.index_select(1, unit_of_pixel)
        scores.append(forward(canvas.filled(image_of_N[ranking], fill, filled)))
    return torch.cat(scores).view(shape)


def region_scores(
    forward: Callable[[Tensor], Tensor], canvas: Canvas, masks_NU: Tensor, image_of_N: Tensor, batch_size: int
) -> Tensor:
    """Scores of every mask x fill, float32 [N, F]: ``masked_scores`` for given masks, bool [N, S * S]."""
    jobs = torch.arange(len(masks_NU) * canvas.n_fills, device=masks_NU.device)
    scores = []
    for batch in jobs.split(batch_size):
        mask, fill = batch // canvas.n_fills, batch % canvas.n_fills
        scores.append(forward(canvas.filled(image_of_N[mask], fill, masks_NU.index_select(0, mask))))
    return torch.cat(scores).view(len(masks_NU), canvas.n_fills)
