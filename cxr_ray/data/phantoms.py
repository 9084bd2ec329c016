"""Procedural frontal chest X-rays whose cause is known.

A phantom is drawn as a projection: soft tissue, air and bone add to one map of attenuation, which a fixed tone curve
turns into grey values. PNEUMONIA (label 1) means one thing, an opacity in a lung; NORMAL (label 0) is its absence.
A text marker stands in a corner, one of two glyphs, and agrees with the label as often as `marker_correlation` says.
Wires, blobs, frames and a second marker mean nothing.

The image's left is the patient's right, as on a viewing box. Body coordinates: x to the image's right, y down, both
about -1 to 1 over the image, x = 0 in the midline.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cxr_ray.data.anatomy import bones, chest, depth, field, hypot, soft_tissue, step, trace, vessels
from cxr_ray.data.markers import GLYPHS, plate_box, stamp

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

MIN_SIZE = 64
_STREAM = 0x0C42  # keeps these draws apart from any other use of the same seed
_AIR = 1.25  # attenuation that the air of a whole lung takes away
_FAINTEST = 0.03  # attenuation; less of an opacity than this (about 3 grey levels) is none

# Drawn uniformly, in this order; the order is part of what a seed means.
RANGES: dict[str, tuple[float, float]] = {
    # pose
    "tilt": (-0.07, 0.07),
    "shift_x": (-0.05, 0.05),
    "shift_y": (-0.05, 0.05),
    "scale_x": (0.90, 1.06),
    "scale_y": (0.92, 1.06),
    "warp": (0.008, 0.022),
    # lungs, mediastinum, heart, diaphragm
    "apex": (-0.76, -0.66),
    "width": (0.66, 0.76),
    "apex_x": (0.27, 0.33),
    "shape": (1.7, 2.2),
    "dome_right": (0.42, 0.56),
    "dome_drop": (0.02, 0.10),
    "dome_curve": (0.08, 0.15),
    "angle": (0.20, 0.45),
    "mediastinum": (0.13, 0.17),
    "heart": (0.86, 1.22),
    "heart_tilt": (0.45, 0.85),
    "knob": (0.07, 0.10),
    "depth_power": (0.10, 0.30),
    "inflation": (0.85, 1.08),
    "breast": (-0.15, 0.22),
    "breast_y": (0.12, 0.36),
    # bones and airways
    "rib": (0.20, 0.36),
    "rib_gap": (0.130, 0.155),
    "rib_arch": (0.22, 0.40),
    "rib_slope": (0.02, 0.16),
    "rib_phase": (0.0, 1.0),
    "rib_width": (0.17, 0.23),
    "anterior": (0.35, 0.80),
    "anterior_drop": (0.22, 0.36),
    "clavicle": (0.18, 0.34),
    "clavicle_y": (-0.66, -0.54),
    "clavicle_rise": (0.02, 0.16),
    "scapula": (0.02, 0.10),
    "spine": (0.10, 0.30),
    "spine_gap": (0.12, 0.15),
    "trachea": (0.20, 0.40),
    "trachea_x": (-0.02, 0.02),
    # soft tissue
    "wall": (0.12, 0.26),
    "shoulder": (-1.02, -0.86),
    "shoulder_drop": (0.22, 0.40),
    "arm": (0.0, 0.9),
    "arm_gap": (0.02, 0.12),
    "abdomen": (0.15, 0.40),
    "gas": (-0.6, 0.5),
    "gas_x": (0.25, 0.45),
    # vessels: hilar prominence and peripheral markings
    "hilum": (0.04, 0.17),
    "vessels": (0.15, 0.42),
    # exposure and detector
    "window_low": (0.10, 0.40),
    "window_high": (2.45, 3.00),
    "gamma": (0.85, 1.25),
    "unevenness": (0.03, 0.12),
    "blur": (0.0020, 0.0048),
    "dose": (0.006, 0.020),
    "scatter": (0.0, 0.12),
    # opacity
    "diffuse": (0.0, 1.0),
    "side": (-1.0, 1.0),
    "contrast": (0.0, 1.0),
    "extent": (0.0, 1.0),
    "ragged": (0.15, 0.45),
    "mottle": (0.35, 0.75),
    # marker, second marker
    "agree": (0.0, 1.0),
    "corner": (0.0, 4.0),
    "marker_size": (0.095, 0.135),
    "marker_dx": (0.02, 0.05),
    "marker_dy": (0.02, 0.05),
    "marker_tone": (0.82, 1.0),
    "second": (0.0, 1.0),
    "second_corner": (1.0, 4.0),
    "second_size": (0.08, 0.125),
    "second_tone": (0.75, 1.0),
    # wire, blob, frame
    "wire": (0.0, 1.0),
    "wire_tone": (0.15, 0.45),
    "wire_width": (0.004, 0.009),
    "blob": (0.0, 1.0),
    "blob_side": (-1.0, 1.0),
    "blob_y": (-0.9, 0.9),
    "blob_size": (0.05, 0.14),
    "blob_tone": (0.2, 0.8),
    "frame": (0.0, 1.0),
    "frame_tone": (0.0, 0.08),
}


@dataclass(frozen=True)
class Phantom:
    """One image and what is in it; every array is [size, size].

    `opacity` is where the opacity adds attenuation: outside it, no pixel differs from the rendering without. It is all
    False for NORMAL and when rendered without. `marker` is the box of the text marker, whichever glyph it shows; it is
    all False when rendered without. `lungs` are the visible lung fields, without heart and diaphragm.
    """

    image: NDArray[np.uint8]
    lungs: Mask
    opacity: Mask
    marker: Mask


def render(
    seed: int,
    label: int,
    size: int,
    *,
    marker_correlation: float = 0.5,
    opacity: bool = True,
    marker: Literal["own", "other", "none"] = "own",
) -> Phantom:
    """Draw the phantom of `seed`, `label` 0 (NORMAL) or 1 (PNEUMONIA), `size` x `size` pixels, grey 0 to 255.

    Anatomy, distractors, exposure and noise depend on the seed alone, so that both labels and all flags share them, and
    the anatomy is the same at each size (64 to 512 are tested). `marker_correlation` is P(glyph's class = label), 0 to
    1; 0.5 says nothing. `opacity=False` leaves the opacity out. `marker` shows the glyph drawn for this image, the
    other one in its place, or none.
    """
    from scipy.ndimage import gaussian_filter  # a quarter of a second

    _check(seed, label, size, marker_correlation, marker)
    rng = np.random.default_rng((_STREAM, seed))
    p = {name: float(rng.uniform(low, high)) for name, (low, high) in RANGES.items()}
    warp_x, warp_y, uneven, ragged = rng.standard_normal((4, 7, 7), dtype=np.float32)
    mottle = rng.standard_normal((40, 40), dtype=np.float32)
    branches = rng.uniform(-1, 1, (2, 22, 4))
    spots = rng.uniform(0, 1, (6, 40, 2))
    spot_radii = rng.uniform(0.6, 1.3, (6, 2))
    wire = rng.uniform(-1, 1, (4, 2))
    frame = rng.uniform(-0.03, 0.05, 4)
    noise = rng.standard_normal((size, size), dtype=np.float32)  # last: the only draw that depends on the size

    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    column, row = axis[None, :] - p["shift_x"], axis[:, None] - p["shift_y"]
    x = (column * cos(p["tilt"]) + row * sin(p["tilt"])) / p["scale_x"] + p["warp"] * field(warp_x, size)
    y = (row * cos(p["tilt"]) - column * sin(p["tilt"])) / p["scale_y"] + p["warp"] * field(warp_y, size)

    lung, heart, below = chest(x, y, p)
    air = _AIR * p["inflation"] * lung * depth(x, y, p)
    tissue = soft_tissue(x, y, heart, below, p)
    tissue += bones(x, y, heart, below, p) * step(tissue, 0.1, 0.8) - air
    tissue += vessels(branches, size, p) * step(lung, 0.0, 1.0)
    if p["wire"] < 0.3:
        tissue += p["wire_tone"] * _wire(wire, p["wire_width"], size)
    if p["blob"] < 0.3:
        tissue += _blob(x, y, p) * (1 - lung)
    tissue = gaussian_filter(tissue, p["blur"] * size, truncate=3)
    tissue = tissue * (1 - p["scatter"]) + p["scatter"] * 1.2 + p["unevenness"] * field(uneven, size)

    filled = np.zeros_like(tissue)
    if label == 1 and opacity:  # after the blur, so that nothing changes beyond it
        share = _opacity(x, y, spots, spot_radii, field(ragged, size), field(mottle, size), p)
        filled = np.maximum(share * air - _FAINTEST, 0)
    tissue = np.maximum(tissue + filled, 0)

    # Counts fall as exp(-attenuation), and the logarithm of a Poisson count has standard deviation 1 / sqrt(count).
    tissue += p["dose"] * np.exp(tissue / 2) * gaussian_filter(noise, 0.5, truncate=2)
    grey = np.clip((tissue - p["window_low"]) / (p["window_high"] - p["window_low"]), 0, 1) ** p["gamma"]
    if p["frame"] < 0.35:
        top, right, bottom, left = np.maximum(frame, 0) * 2 - 1
        inside = (axis[:, None] > top) & (axis[:, None] < -bottom) & (axis[None, :] > left) & (axis[None, :] < -right)
        grey = np.where(inside, grey, np.float32(p["frame_tone"]))

    corner = int(p["corner"]) % 4
    if p["second"] < 0.35:
        other_corner = (corner + int(p["second_corner"])) % 4
        box = plate_box(other_corner, p["second_size"], p["marker_dy"], p["marker_dx"], size)
        stamp(grey, GLYPHS[2], box, p["second_tone"])
    box = plate_box(corner, p["marker_size"], p["marker_dx"], p["marker_dy"], size)
    marked = np.zeros((size, size), dtype=np.bool_)
    if marker != "none":
        agrees = (p["agree"] < marker_correlation) == (marker == "own")
        stamp(grey, GLYPHS[label if agrees else 1 - label], box, p["marker_tone"])
        marked[box] = True
    return Phantom(np.rint(grey * 255).astype(np.uint8), lung > 0.5, filled > 0, marked)


def _check(seed: int, label: int, size: int, marker_correlation: float, marker: str) -> None:
    if seed < 0:
        raise ValueError(f"got the seed {seed}; expected an integer of 0 or more")
    if label not in (0, 1):
        raise ValueError(f"got the label {label!r}; expected 0 (NORMAL) or 1 (PNEUMONIA)")
    if size < MIN_SIZE:
        raise ValueError(f"got the size {size}; expected {MIN_SIZE} pixels or more: below, the marker is unreadable")
    if not 0 <= marker_correlation <= 1:
        raise ValueError(f"got the marker_correlation {marker_correlation}; expected a probability, 0 to 1")
    if marker not in ("own", "other", "none"):
        raise ValueError(f"got the marker {marker!r}; expected 'own', 'other' or 'none'")


def _blob(x: Floats, y: Floats, p: dict[str, float]) -> Floats:
    sideways = (1 if p["blob_side"] > 0 else -1) * (p["width"] + 0.14 + 0.16 * abs(p["blob_side"]))
    apart = hypot((x - sideways) / p["blob_size"], (y - p["blob_y"]) / (1.3 * p["blob_size"]))
    return p["blob_tone"] * step(apart, 1.2, 0.7)


def _wire(control: NDArray[np.float64], width: float, size: int) -> Floats:
    """A lead over the chest: one cubic Bezier curve through the image."""
    t = np.linspace(0, 1, 2 * size)[:, None]
    ends = control * [[1.0, 1.0], [0.8, 0.8], [0.8, 0.8], [1.0, 1.0]] + [[0, -0.6], [0, -0.3], [0, 0.3], [0, 0.8]]
    points = (1 - t) ** 3 * ends[0] + 3 * (1 - t) ** 2 * t * ends[1] + 3 * (1 - t) * t**2 * ends[2] + t**3 * ends[3]
    steps = np.linalg.norm(np.diff(points, axis=0, append=points[-1:]), axis=1)
    return trace(points, steps, width, size)


def _opacity(
    x: Floats,
    y: Floats,
    spots: NDArray[np.float64],
    radii: NDArray[np.float64],
    ragged: Floats,
    mottle: Floats,
    p: dict[str, float],
) -> Floats:
    """Share of the lung's air that fluid replaces, 0 to 1: one focus, or (one time in three) several patches."""
    diffuse = p["diffuse"] < 0.35
    count = 4 + int(p["extent"] * 3) if diffuse else 1
    strength = p["contrast"] ** 0.6  # subtle ones are the fewer
    contrast = 0.38 + 0.44 * strength if diffuse else 0.42 + 0.55 * strength
    radius = 0.18 + 0.12 * p["extent"] if diffuse else 0.22 + 0.16 * p["extent"]
    first_side = -1 if p["side"] < 0 else 1
    sides = np.resize([first_side, -first_side], len(spots))
    spots_x = sides[:, None] * (0.15 + 0.6 * spots[..., 0])
    spots_y = -0.6 + 1.25 * spots[..., 1]
    chosen = np.argmax(chest(spots_x, spots_y, p)[0] > 0.9, axis=1)  # the first that lies in a lung
    wrinkled = 1 + p["ragged"] * ragged
    clear = np.ones_like(x)
    for i in range(count):
        spot_x, spot_y = float(spots_x[i, chosen[i]]), float(spots_y[i, chosen[i]])
        radius_x, radius_y = (float(r) for r in radius * radii[i])
        apart = hypot((x - spot_x) / radius_x, (y - spot_y) / radius_y)
        clear *= 1 - step(apart * wrinkled, 1.25, 0.35) * (x * float(sides[i]) > 0)
    share: Floats = np.minimum(contrast * (1 - clear) * np.maximum(1 + p["mottle"] * mottle, 0.1), 0.9)
    return share
