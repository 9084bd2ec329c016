"""Control masks: rankings that a faithful map should beat. A new one is a function and an entry in CONTROLS.

Shapes: N images or maps, D draws, U units (pixels or cells), K channels, V side of a map, S side of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cxr_ray import randomness
from cxr_ray.config import Sequential, Sweep
from cxr_ray.measure import smoothness
from cxr_ray.measure.rankings import KNOTS, cell_of, places_of, rank, side, smooth_field
from cxr_ray.measure.transfer import to_device, to_host
from cxr_ray.randomness import key
from cxr_ray.registry import Registry

STEPS = 7  # a map is rolled by sevenths of the image
SHIFTS = STEPS * STEPS * 8 - 1  # rolls x the dihedral group, without the identity

Family = Literal["nothing", "ranking", "class weights", "other images"]


@dataclass(frozen=True)
class Draws:
    """The draws that are asked for.

    Attributes:
        ids: of the N images.
        seed: the sweep's.
        numbers: of the draws, of 0, 1, ...
        device: on which they are made.
    """

    ids: Sequence[str]
    seed: int
    numbers: Sequence[int]
    device: torch.device

    def keys(self, purpose: str) -> Tensor:
        """A key for each image and draw, int64 [N * D]."""
        keys = [key(self.seed, i, purpose, number) for i in self.ids for number in self.numbers]
        return to_device(np.array(keys, np.int64), self.device)

    def by_image(self, made: Tensor) -> Tensor:
        """[N, D, ...] from what was made for each key, [N * D, ...]."""
        return made.view(len(self.ids), len(self.numbers), *made.shape[1:])


MapName = tuple[str, str, tuple[str, int]]  # trial_id, image_id, (explainer, target)


class Donors(Protocol):
    """Maps of other patients' images with the same prediction (``donors.DonorMaps``)."""

    def donated(self, trial_id: str, image_id: str, wanted: tuple[str, int], draws: Sequence[int]) -> Tensor | None:
        """The maps of these draws."""
        ...

    def means(self, names: tuple[MapName, ...], size: int) -> list[Tensor | None]:
        """Their mean rank map, higher is more salient, of each of these maps."""
        ...


@dataclass(frozen=True)
class Control:
    """A control, and what others need to know of it.

    Attributes:
        family: what it is made from. It decides what ``draw`` takes and gives:
            nothing: (draws, grid, size) to rankings int32 [N, D, U], shared by every explainer and target;
            ranking: (draws, the maps' rankings int32 [N, U]) to rankings int32 [N, D, U];
            class weights: (draws, weights [N, K] or [N, K, V, V]) to weights [N, D, ...] that are combined with the
            same activations (explainers that are class activation maps only);
            other images: (donors, names of N maps, numbers of the draws, size) to maps [<= D, V, V] for each, ranked
            as the map is, fewer where they run out, None without any.
        draw: the function.
        caption: what it is, in a sentence or two.
        strong: beating it says more than that the map is smooth or central.
        grids: those of the sweep's grids on which it is drawn.
        most_draws: so many differ; None: any number.
        sequential: more than the fixed draws can be made.
        rank_sums: it needs the sums of the rank maps of all images (``donors``).
        phrase: what a map is more faithful than, in a sentence; without it, the control's name.
        colour: in every figure, of at least 3 to 1 against white and against the dark page.
    """

    family: Family
    draw: Callable[..., Any]
    caption: str
    strong: bool = False
    grids: Callable[[Sequence[str]], list[str]] = list
    most_draws: int | None = None
    sequential: bool = True
    rank_sums: bool = False
    phrase: str = ""
    colour: str = "#808080"


def pixel_random(draws: Draws, grid: str, size: int) -> Tensor:
    """Random pixels. Destroys texture everywhere: a floor, not a control of shape."""
    return draws.by_image(places_of(randomness.permutation(draws.keys("pixel_random"), size**2)))


def on_pixels(grids: Sequence[str]) -> list[str]:
    """Grid pixel alone."""
    return [g for g in grids if g == "pixel"]


def cell_random(draws: Draws, grid: str, size: int) -> Tensor:
    """Random cells of the grid; on grid pixel, of 7 x 7 cells."""
    keys = draws.keys(f"cell_random {grid}")
    if grid != "pixel":
        return draws.by_image(places_of(randomness.permutation(keys, side(grid, size) ** 2)))
    cell = cell_of(size, KNOTS, keys.device)
    places = places_of(randomness.permutation(keys, KNOTS * KNOTS)).view(-1, KNOTS, KNOTS)
    blocks = -places[:, cell][:, :, cell].flatten(1).float()
    return draws.by_image(rank(blocks, smooth_field(keys, size).flatten(1)))


def smooth_random(draws: Draws, places_NU: Tensor) -> Tensor:
    """A random field as smooth as the map: its highest quarter has the perimeter of the map's, in expectation.

    White noise under a Gaussian filter of the length scale that gives that perimeter (``smoothness``). It knows nothing
    else of the map.
    """
    n, g = len(draws.numbers), round(places_NU.shape[1] ** 0.5)
    scales = smoothness.scale_of(to_host(smoothness.perimeter(smoothness.quarter(places_NU))), g)
    keys_ND = draws.keys("smooth_random").view(-1, n)
    made = places_NU[:, None].repeat(1, n, 1)
    for scale in np.unique(scales):
        chosen = to_device(np.flatnonzero(scales == scale), draws.device)
        fields = smoothness.gaussian_fields(keys_ND[chosen].flatten(), float(scale), g).flatten(1)
        raster = -torch.arange(g * g, device=draws.device).expand_as(fields)  # equal values are rare: any order
        made[chosen] = rank(fields, raster).view(-1, n, g * g)
    return made


def shifted(draws: Draws, places_NU: Tensor) -> Tensor:
    """The map itself, rolled by sevenths and turned: the same area and shape elsewhere.

    Drawn without replacement from the non-identity elements of roll x dihedral (7 * 7 * 8 - 1). An image's draws are
    the same for every explainer and target.
    """
    device, units = places_NU.device, places_NU.shape[1]
    g = round(units**0.5)
    keys = to_device(np.array([key(draws.seed, i, "shifted") for i in draws.ids]), device)
    numbers = to_device(np.array(draws.numbers), device)
    elements = randomness.permutation(keys, SHIFTS)[:, numbers] + 1  # 0 is the identity
    turn, roll = elements // (STEPS * STEPS), elements % (STEPS * STEPS)
    down, right = (
        torch.div(r * g * 2 + STEPS, 2 * STEPS, rounding_mode="floor") for r in (roll // STEPS, roll % STEPS)
    )
    y = (torch.arange(g, device=device).view(1, 1, g, 1) - down[:, :, None, None]) % g
    x = (torch.arange(g, device=device).view(1, 1, 1, g) - right[:, :, None, None]) % g
    bit = [(turn[:, :, None, None] >> b) & 1 == 1 for b in range(3)]
    y, x = torch.where(bit[0], g - 1 - y, y), torch.where(bit[1], g - 1 - x, x)
    source = torch.where(bit[2], x * g + y, y * g + x).flatten(2)
    return places_NU[:, None].expand(-1, len(draws.numbers), -1).gather(2, source)


def random_cam(draws: Draws, weights_NK: Tensor) -> Tensor:
    """The class's weights permuted over channels; an image's draws are the same for every explainer and target."""
    order = draws.by_image(randomness.permutation(draws.keys("random_cam"), weights_NK.shape[1]))
    every = weights_NK[:, None].expand(-1, len(draws.numbers), *[-1] * (weights_NK.ndim - 1))
    return every.gather(2, order.view(*order.shape, *[1] * (weights_NK.ndim - 2)).expand_as(every))


def other_image(donors: Donors, names: tuple[MapName, ...], numbers: Sequence[int], size: int) -> list[Tensor | None]:
    """The maps of other patients' images with the same prediction, drawn without replacement."""
    return [donors.donated(*name, numbers) for name in names]


def mean_map(donors: Donors, names: tuple[MapName, ...], numbers: Sequence[int], size: int) -> list[Tensor | None]:
    """The mean rank map over all of those."""
    return [None if mean is None else mean[None] for mean in donors.means(names, size)]


CONTROLS = Registry(
    "control",
    {
        "pixel_random": Control(
            "nothing",
            pixel_random,
            caption="Random pixels. A weak control: scattered pixels destroy texture everywhere, which flatters or "
            "ruins any map.",
            grids=on_pixels,
            phrase="random pixels",
            colour="#808080",
        ),
        "cell_random": Control(
            "nothing",
            cell_random,
            caption="Random cells of the grid (on grid pixel, of 7 x 7).",
            phrase="random cells",
            colour="#3A96CC",
        ),
        "smooth_random": Control(
            "ranking",
            smooth_random,
            caption="A random field as smooth as the map: at 25% its mask has as long an outline, on average.",
            phrase="smooth random maps",
            colour="#B98300",
        ),
        "shifted": Control(
            "ranking",
            shifted,
            caption="The map itself, rolled and turned: the same area and shape elsewhere. A prior for the centre "
            "alone beats it, so beating it is not localisation.",
            most_draws=SHIFTS,
            phrase="shifted maps",
            colour="#009E73",
        ),
        "random_cam": Control(
            "class weights",
            random_cam,
            caption="The same activations with the class's weights permuted.",
            phrase="maps of permuted class weights",
            colour="#C0679A",
        ),
        "mean_map": Control(
            "other images",
            mean_map,
            caption="The mean rank map over other patients' images with the same prediction: smoother than any single "
            "map, so a competitor and not a draw that a map could be exchanged with. A strong control; one draw, so no "
            "p per image.",
            strong=True,
            most_draws=1,
            sequential=False,
            rank_sums=True,
            phrase="the average map",
            colour="#D55E00",
        ),
        "other_image": Control(
            "other images",
            other_image,
            caption="The map of another patient's image with the same prediction. A strong control.",
            strong=True,
            phrase="other patients' maps",
            colour="#1478B5",
        ),
    },
)


def of_family(family: Family, names: Iterable[str]) -> list[str]:
    """Those of the named controls that are made from it.

    >>> of_family("other images", ["shifted", "mean_map"])
    ['mean_map']
    """
    return [name for name in names if CONTROLS[name].family == family]


def strong_first(names: Iterable[str]) -> list[str]:
    """The strong controls, then the others, each from the last of the registry to the first.

    An order that no result enters: of columns, and of the choice where a single control must be named beforehand (the
    first of those measured). Which control is the hardest to beat is a result, column ``hardest`` of ``summary``.

    >>> strong_first(["pixel_random", "other_image", "shifted"])
    ['other_image', 'shifted', 'pixel_random']
    """
    place = {name: i for i, name in enumerate(CONTROLS)}
    return sorted(names, key=lambda name: (CONTROLS[name].strong, place[name]), reverse=True)


def draws_at_most(control: str, fixed: int, sequential: Sequential | None) -> int:
    """Draws of a control behind p_value at most, given its fixed ones.

    >>> draws_at_most("shifted", 5, Sequential(max_draws=999)), draws_at_most("mean_map", 1, Sequential())
    (391, 1)
    """
    entry = CONTROLS[control]
    if sequential is None or not entry.sequential:
        return fixed
    most = sequential.max_draws if entry.most_draws is None else min(sequential.max_draws, entry.most_draws)
    return max(fixed, most)


def needs_map_pass(sweep: Sweep) -> bool:
    """Whether maps of all images are made first: a control needs other images' maps, or verdicts choose among them."""
    return sweep.verdicts is not None or bool(of_family("other images", sweep.controls))
