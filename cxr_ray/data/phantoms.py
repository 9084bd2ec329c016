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
from math import cos, pi, sin, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

MIN_SIZE = 64
PLATE = 0.35  # a marker's plate darkens what lies under it to this share
_STREAM = 0x0C42  # keeps these draws apart from any other use of the same seed
_AIR = 1.25  # attenuation that the air of a whole lung takes away
_FAINTEST = 0.03  # attenuation; less of an opacity than this (about 3 grey levels) is none

# Drawn uniformly, in this order; the order is part of what a seed means.
_RANGES: dict[str, tuple[float, float]] = {
    # pose
    "tilt": (-0.07, 0.07), "shift_x": (-0.05, 0.05), "shift_y": (-0.05, 0.05),
    "scale_x": (0.90, 1.06), "scale_y": (0.92, 1.06), "warp": (0.008, 0.022),
    # lungs, mediastinum, heart, diaphragm
    "apex": (-0.76, -0.66), "width": (0.66, 0.76), "apex_x": (0.27, 0.33), "shape": (1.7, 2.2),
    "dome_right": (0.42, 0.56), "dome_drop": (0.02, 0.10), "dome_curve": (0.08, 0.15), "angle": (0.20, 0.45),
    "mediastinum": (0.13, 0.17), "heart": (0.86, 1.22), "heart_tilt": (0.45, 0.85), "knob": (0.07, 0.10),
    "depth_power": (0.10, 0.30), "inflation": (0.85, 1.08), "breast": (-0.15, 0.22), "breast_y": (0.12, 0.36),
    # bones and airways
    "rib": (0.20, 0.36), "rib_gap": (0.130, 0.155), "rib_arch": (0.22, 0.40), "rib_slope": (0.02, 0.16),
    "rib_phase": (0.0, 1.0), "rib_width": (0.17, 0.23), "anterior": (0.35, 0.80), "anterior_drop": (0.22, 0.36),
    "clavicle": (0.18, 0.34), "clavicle_y": (-0.66, -0.54), "clavicle_rise": (0.02, 0.16), "scapula": (0.02, 0.10),
    "spine": (0.10, 0.30), "spine_gap": (0.12, 0.15), "trachea": (0.20, 0.40), "trachea_x": (-0.02, 0.02),
    # soft tissue
    "wall": (0.12, 0.26), "shoulder": (-1.02, -0.86), "shoulder_drop": (0.22, 0.40), "arm": (0.0, 0.9),
    "arm_gap": (0.02, 0.12), "abdomen": (0.15, 0.40), "gas": (-0.6, 0.5), "gas_x": (0.25, 0.45),
    # vessels: hilar prominence and peripheral markings
    "hilum": (0.04, 0.17), "vessels": (0.15, 0.42),
    # exposure and detector
    "window_low": (0.10, 0.40), "window_high": (2.45, 3.00), "gamma": (0.85, 1.25), "unevenness": (0.03, 0.12),
    "blur": (0.0020, 0.0048), "dose": (0.006, 0.020), "scatter": (0.0, 0.12),
    # opacity
    "diffuse": (0.0, 1.0), "side": (-1.0, 1.0), "contrast": (0.0, 1.0), "extent": (0.0, 1.0), "ragged": (0.15, 0.45),
    "mottle": (0.35, 0.75),
    # marker, second marker
    "agree": (0.0, 1.0), "corner": (0.0, 4.0), "marker_size": (0.095, 0.135), "marker_dx": (0.02, 0.05),
    "marker_dy": (0.02, 0.05), "marker_tone": (0.82, 1.0),
    "second": (0.0, 1.0), "second_corner": (1.0, 4.0), "second_size": (0.08, 0.125), "second_tone": (0.75, 1.0),
    # wire, blob, frame
    "wire": (0.0, 1.0), "wire_tone": (0.15, 0.45), "wire_width": (0.004, 0.009),
    "blob": (0.0, 1.0), "blob_side": (-1.0, 1.0), "blob_y": (-0.9, 0.9), "blob_size": (0.05, 0.14),
    "blob_tone": (0.2, 0.8),
    "frame": (0.0, 1.0), "frame_tone": (0.0, 0.08),
}  # fmt: skip

# Two glyphs in class order, E(rect) and P(ortable), then K, a technician's initial that means nothing.
_GLYPHS = tuple(
    np.array([[char == "#" for char in row] for row in glyph.split()], dtype=np.float32)
    for glyph in (
        "##### #.... #.... ####. #.... #.... #####",
        "####. #...# #...# ####. #.... #.... #....",
        "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    )
)


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
    _check(seed, label, size, marker_correlation, marker)
    rng = np.random.default_rng((_STREAM, seed))
    p = {name: float(rng.uniform(low, high)) for name, (low, high) in _RANGES.items()}
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
    x = (column * cos(p["tilt"]) + row * sin(p["tilt"])) / p["scale_x"] + p["warp"] * _field(warp_x, size)
    y = (row * cos(p["tilt"]) - column * sin(p["tilt"])) / p["scale_y"] + p["warp"] * _field(warp_y, size)

    lung, heart, below = _chest(x, y, p)
    air = _AIR * p["inflation"] * lung * _depth(x, y, p)
    tissue = _soft_tissue(x, y, heart, below, p)
    tissue += _bones(x, y, heart, below, p) * _step(tissue, 0.1, 0.8) - air
    tissue += _vessels(branches, size, p) * _step(lung, 0.0, 1.0)
    if p["wire"] < 0.3:
        tissue += p["wire_tone"] * _wire(wire, p["wire_width"], size)
    if p["blob"] < 0.3:
        tissue += _blob(x, y, p) * (1 - lung)
    tissue = gaussian_filter(tissue, p["blur"] * size, truncate=3)
    tissue = tissue * (1 - p["scatter"]) + p["scatter"] * 1.2 + p["unevenness"] * _field(uneven, size)

    filled = np.zeros_like(tissue)
    if label == 1 and opacity:  # after the blur, so that nothing changes beyond it
        share = _opacity(x, y, spots, spot_radii, _field(ragged, size), _field(mottle, size), p)
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
        box = _box(other_corner, p["second_size"], p["marker_dy"], p["marker_dx"], size)
        _stamp(grey, _GLYPHS[2], box, p["second_tone"])
    box = _box(corner, p["marker_size"], p["marker_dx"], p["marker_dy"], size)
    marked = np.zeros((size, size), dtype=np.bool_)
    if marker != "none":
        agrees = (p["agree"] < marker_correlation) == (marker == "own")
        _stamp(grey, _GLYPHS[label if agrees else 1 - label], box, p["marker_tone"])
        marked[box] = True
    return Phantom(np.rint(grey * 255).astype(np.uint8), lung > 0.5, filled > 0, marked)


def pasted_marker(size: int) -> tuple[Floats, tuple[slice, slice]]:
    """The marker P for the top left corner of any image: its ink, 0 to 1, and the rows and columns of its plate."""
    box = _box(0, 0.10, 0.03, 0.03, size)
    return 0.9 * _ink(_GLYPHS[1], box), box


def _check(seed: int, label: int, size: int, marker_correlation: float, marker: str) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be an integer of 0 or more")
    if label not in (0, 1):
        raise ValueError(f"label is {label!r}; it must be 0 (NORMAL) or 1 (PNEUMONIA)")
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; it must be {MIN_SIZE} pixels or more, below which the marker is unreadable")
    if not 0 <= marker_correlation <= 1:
        raise ValueError(f"marker_correlation is {marker_correlation}; it is a probability and must lie in [0, 1]")
    if marker not in ("own", "other", "none"):
        raise ValueError(f"marker is {marker!r}; it must be 'own', 'other' or 'none'")


def _step(value: Floats, low: float, high: float) -> Floats:
    """Smooth step: 0 up to low, 1 from high (or the reverse, where low > high)."""
    t: Floats = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def _hypot(x: Floats, y: Floats) -> Floats:
    return np.sqrt(x * x + y * y)  # seven times as fast as np.hypot, and nothing here overflows


def _field(coefficients: Floats, size: int) -> Floats:
    """Smooth random field [size, size] of unit variance from k x k normal coefficients: the same field at each size."""
    k = len(coefficients)
    centres = np.linspace(-0.05, 1.05, k, dtype=np.float32)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    weights = np.exp(-0.5 * ((axis[:, None] - centres) * (k - 1) / 1.1 / 0.75) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights @ coefficients @ weights.T


def _half_width(y: Floats, p: dict[str, float], apex: float) -> tuple[Floats, Floats]:
    """Lateral and medial border of a lung, before heart and diaphragm: distances from the midline at height y."""
    down = np.clip((y - apex) / (0.35 - apex), 0, 1)
    lateral = p["apex_x"] + (p["width"] - p["apex_x"]) * (1 - (1 - down) ** p["shape"]) ** 0.6
    medial = p["apex_x"] - (p["apex_x"] - p["mediastinum"] + 0.03) * (1 - (1 - np.clip(down * 2.5, 0, 1)) ** 2) ** 0.5
    return lateral, medial


def _chest(x: Floats, y: Floats, p: dict[str, float]) -> tuple[Floats, Floats, Floats]:
    """Coverage, 0 to 1, of lungs, heart with mediastinum, and what lies below the diaphragm, at body coordinates."""
    side = np.abs(x)
    lateral, medial = _half_width(y, p, p["apex"])
    dome = p["dome_right"] + np.where(x > 0, np.float32(p["dome_drop"]), np.float32(0))
    diaphragm = (
        dome + p["dome_curve"] * ((side - 0.36) / 0.4) ** 2 + p["angle"] * (np.maximum(side - 0.45, 0) / 0.35) ** 3
    )
    below = _step(y - diaphragm, -0.015, 0.015)

    h, base = p["heart"], p["dome_right"]
    turn_x, turn_y = cos(p["heart_tilt"]), sin(p["heart_tilt"])
    dx, dy = x - 0.13 * h, y - base + 0.12
    ventricle = 1 - _hypot((dx * turn_x + dy * turn_y) / (0.36 * h), (dy * turn_x - dx * turn_y) / (0.26 * h))
    atrium = 1 - _hypot((x + 0.05) / (0.17 * h), (y - base + 0.18) / 0.30)
    trunk = 1 - _hypot((x - 0.05) / 0.19, (y - base + 0.40) / 0.42)
    knob = 1 - _hypot((x - 0.085) / (1.15 * p["knob"]), (y - p["apex"] - 0.42) / (1.5 * p["knob"]))
    heart = _step(np.maximum(np.maximum(ventricle, atrium), np.maximum(trunk, knob * 0.6)), -0.10, 0.12)
    waist = p["mediastinum"] + 0.03 * _step(y, -0.3, -0.7)
    heart = np.maximum(heart, _step(waist - side, -0.04, 0.03))

    top = _step(y, p["apex"], p["apex"] + 0.06)
    lung = _step(lateral - side, -0.02, 0.03) * _step(side - medial, -0.025, 0.025) * top * (1 - below) * (1 - heart)
    return lung, heart, below


def _depth(x: Floats, y: Floats, p: dict[str, float]) -> Floats:
    """Relative thickness of a lung along the beam: thinner at the wall, in the apex and behind breast tissue."""
    lateral, _ = _half_width(y, p, p["apex"])
    wall = np.clip((lateral - np.abs(x)) / 0.30, 0.02, 1) ** p["depth_power"]
    apex = 0.72 + 0.28 * _step(y, p["apex"], p["apex"] + 0.45)
    breast = _hypot((np.abs(x) - 0.42) / 0.34, (y - p["breast_y"]) / 0.26)
    depth: Floats = wall * apex * (1 - max(p["breast"], 0) * _step(breast, 1.15, 0.75))
    return depth


def _soft_tissue(x: Floats, y: Floats, heart: Floats, below: Floats, p: dict[str, float]) -> Floats:
    side = np.abs(x)
    half = p["width"] + p["wall"] + 0.05 * _step(y, 0.2, 1.0) - 0.04 * _step(y, 0.1, -0.3)
    half = half + (1.05 - half) * _step(y, -0.28, -0.72)  # the shoulders reach out of the image
    trapezius = p["shoulder"] + p["shoulder_drop"] * _step(side, 0.22, 0.95)
    trunk = np.sqrt(np.clip(1 - (side / half) ** 2, 0, 1)) ** 0.55 * _step(y - trapezius, -0.10, 0.16)
    neck = np.sqrt(np.clip(1 - (side / 0.27) ** 2, 0, 1)) * _step(y, -0.55, -0.75)
    total: Floats = 1.85 * np.maximum(trunk, 0.85 * neck)
    total += 0.22 * heart * _step(y, -0.9, -0.5) * (1 - 0.75 * below) + p["abdomen"] * below * _step(y, 0.2, 0.9)
    if p["arm"] > 0.5:
        axis_x = p["width"] + p["wall"] + 0.16 + p["arm_gap"] * (y + 0.6)
        across = np.abs(side - axis_x)
        limb = np.sqrt(np.clip(1 - (across / 0.15) ** 2, 0, 1)) * _step(y, -0.75, -0.55)
        total = np.maximum(total, 1.1 * limb) + 0.35 * _step(across, 0.055, 0.035) * _step(y, -0.62, -0.52)
    gas = _hypot((x - p["gas_x"]) / 0.17, (y - p["dome_right"] - p["dome_drop"] - 0.14) / 0.09)
    total -= max(p["gas"], 0) * _step(gas, 1.1, 0.7) * below
    breath = _step(np.abs(x - p["trachea_x"]), 0.055, 0.030) * _step(y, -0.18, -0.28)
    bronchi = _step(np.abs(side - 0.55 * (y + 0.24)), 0.035, 0.015) * _step(y, -0.24, -0.20) * _step(y, -0.02, -0.12)
    return total - p["trachea"] * np.maximum(breath, 0.7 * bronchi)


def _bones(x: Floats, y: Floats, heart: Floats, below: Floats, p: dict[str, float]) -> Floats:
    side = np.abs(x)
    lateral, _ = _half_width(y, p, p["apex"] - 0.10)
    t = np.minimum(side / (lateral + 0.02), 1)
    arc = np.sqrt(1 - t * t)
    cage = _step(side - lateral, 0.03, 0.0)

    # A rib is one turn of a phase: the posterior part arches down to the wall, where the anterior part takes over.
    back = y - p["apex"] - p["rib_arch"] * (1 - arc) - p["rib_slope"] * t
    front = y - p["apex"] - p["rib_arch"] - p["rib_slope"] - p["anterior_drop"] * arc
    covered = (1 - 0.45 * heart) * (1 - 0.4 * below)
    posterior = _rib(back, p) * cage * _step(side, 0.07, 0.16) * (1 - 0.2 * t) * _step(back, 1.35, 1.0) * covered
    anterior = _rib(front, p) * cage * _step(t, 0.30, 0.75) * _step(front, 1.0, 0.6) * _step(front, -0.15, 0.05)
    bones: Floats = p["rib"] * (posterior + p["anterior"] * anterior)
    bones += 0.10 * _step(np.abs(side - lateral - 0.01), 0.03, 0.005) * _step(y, p["apex"], -0.3) * _step(y, 0.8, 0.5)

    line = p["clavicle_y"] - p["clavicle_rise"] * np.sin((side - 0.08) * 3.4) - 0.10 * side
    thick = 0.030 + 0.012 * np.cos(side * 7)
    shaft = _step(np.abs(y - line) / thick, 1.25, 0.70)
    bones += p["clavicle"] * shaft * _step(side, 0.07, 0.12) * _step(side, 0.95, 0.85)
    blade = np.abs(side - 0.60 - 0.13 * (y + 0.3)) - 0.02
    bones += p["scapula"] * _step(blade, 0.03, 0.0) * _step(y, -0.55, -0.45) * _step(y, 0.12, -0.02)
    joint = _hypot(side - 0.93, y + 0.66)
    bones += 0.25 * _step(joint, 0.13, 0.10)

    turn = (y - p["rib_phase"]) / p["spine_gap"]
    body = 0.72 + 0.28 * np.cos(2 * pi * turn)
    bones += p["spine"] * _step(side, 0.105, 0.070) * body
    return bones


def _rib(height: Floats, p: dict[str, float]) -> Floats:
    """Profile across ribs stacked along `height`: a soft band with denser edges, 0 to about 1."""
    turn = height / p["rib_gap"] + p["rib_phase"]
    off = np.abs(turn - np.floor(turn) - 0.5) / p["rib_width"]
    profile: Floats = _step(off, 1.20, 0.85) * (0.65 + 0.40 * np.minimum(off, 1) ** 2)
    return profile


def _blob(x: Floats, y: Floats, p: dict[str, float]) -> Floats:
    sideways = (1 if p["blob_side"] > 0 else -1) * (p["width"] + 0.14 + 0.16 * abs(p["blob_side"]))
    apart = _hypot((x - sideways) / p["blob_size"], (y - p["blob_y"]) / (1.3 * p["blob_size"]))
    return p["blob_tone"] * _step(apart, 1.2, 0.7)


def _trace(points: NDArray[np.float64], peaks: NDArray[np.float64], width: float, size: int) -> Floats:
    """Curves [size, size] through points [n, 2] (image coordinates, -1 to 1), as soft lines; `width` is their sigma.

    `peaks` [n] is a line's height times the step to its next point: independent of the size and of the sampling.
    """
    sigma = max(width * size / 2, 0.5)
    at = (points + 1) * size / 2 - 0.5
    low = np.floor(at)
    part = at - low
    canvas = np.zeros((size + 2, size + 2))  # what lies outside gathers in the rim
    for down in (0, 1):
        for right in (0, 1):
            column, row = np.clip(low + np.array([right + 1, down + 1]), 0, size + 1).astype(int).T
            share = (part[:, 0] if right else 1 - part[:, 0]) * (part[:, 1] if down else 1 - part[:, 1])
            canvas += np.bincount(row * (size + 2) + column, share * peaks, canvas.size).reshape(canvas.shape)
    line: Floats = gaussian_filter(canvas[1:-1, 1:-1].astype(np.float32), sigma, truncate=3)
    return line * (sqrt(2 * pi) * sigma * size / 2)


def _vessels(branches: NDArray[np.float64], size: int, p: dict[str, float]) -> Floats:
    """Vascular markings: streaks that leave each hilum, fork, thin out and fade; and the hilum's own shadow.

    `branches` [2, n, 4] holds what varies per side and streak: angle, length, bend, height of the origin.
    """
    t = np.linspace(0, 1, 48)
    sign = np.array([-1.0, 1.0])[:, None, None]
    vary_angle, vary_reach, vary_bend, vary_origin = np.moveaxis(branches, 2, 0)[..., None]
    stems = branches.shape[1] // 2
    stem = np.repeat(np.arange(stems), 2)  # two streaks share a stem up to the fork
    bend = 0.5 * vary_bend[:, stem] * t + 1.6 * vary_bend * np.maximum(t - 0.3, 0)
    angle = np.linspace(-1.3, 1.3, stems)[stem][:, None] + 0.2 * vary_angle[:, stem] + bend
    along = (0.42 + 0.14 * vary_reach) * t
    across = sign * (0.14 + 0.02 * vary_reach[:, stem] + along * np.cos(angle))
    down = p["dome_right"] - 0.47 - 0.03 * sign + 0.09 * vary_origin[:, stem] + 1.15 * along * np.sin(angle)
    across, down = across * p["scale_x"], down * p["scale_y"]
    column = across * cos(p["tilt"]) - down * sin(p["tilt"]) + p["shift_x"]
    row = across * sin(p["tilt"]) + down * cos(p["tilt"]) + p["shift_y"]
    points = np.stack([column, row], axis=-1)
    peaks = np.minimum(t / 0.25, 1) * (1 - t) ** 0.8 * along[..., 1:2]
    near = slice(0, len(t) // 2)
    streaks = _trace(points.reshape(-1, 2), p["vessels"] * peaks.ravel(), 0.009, size)
    hilum = _trace(points[:, :, near].reshape(-1, 2), p["hilum"] * peaks[:, :, near].ravel(), 0.035, size)
    return 0.45 * np.tanh((streaks + hilum) / 0.45)


def _wire(control: NDArray[np.float64], width: float, size: int) -> Floats:
    """A lead over the chest: one cubic Bezier curve through the image."""
    t = np.linspace(0, 1, 2 * size)[:, None]
    ends = control * [[1.0, 1.0], [0.8, 0.8], [0.8, 0.8], [1.0, 1.0]] + [[0, -0.6], [0, -0.3], [0, 0.3], [0, 0.8]]
    points = (1 - t) ** 3 * ends[0] + 3 * (1 - t) ** 2 * t * ends[1] + 3 * (1 - t) * t**2 * ends[2] + t**3 * ends[3]
    steps = np.linalg.norm(np.diff(points, axis=0, append=points[-1:]), axis=1)
    return _trace(points, steps, width, size)


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
    chosen = np.argmax(_chest(spots_x, spots_y, p)[0] > 0.9, axis=1)  # the first that lies in a lung
    wrinkled = 1 + p["ragged"] * ragged
    clear = np.ones_like(x)
    for side, at, xs, ys, (rx, ry) in list(zip(sides, chosen, spots_x, spots_y, radius * radii, strict=True))[:count]:
        apart = _hypot((x - float(xs[at])) / float(rx), (y - float(ys[at])) / float(ry))
        clear *= 1 - _step(apart * wrinkled, 1.25, 0.35) * (x * float(side) > 0)
    share: Floats = np.minimum(contrast * (1 - clear) * np.maximum(1 + p["mottle"] * mottle, 0.1), 0.9)
    return share


def _box(corner: int, height: float, dx: float, dy: float, size: int) -> tuple[slice, slice]:
    """Rows and columns of a marker's plate in a corner (0 to 3, clockwise from the top left)."""
    rows = max(7, round(height * size)) + 2
    cols = max(5, round(height * size * 5 / 7)) + 2
    top, left = round(dy * size), round(dx * size)
    top = size - top - rows if corner in (2, 3) else top
    left = size - left - cols if corner in (1, 2) else left
    return slice(top, top + rows), slice(left, left + cols)


def _stamp(grey: Floats, glyph: Floats, box: tuple[slice, slice], tone: float) -> None:
    """Write a glyph on a dark plate into `grey`, in place."""
    grey[box] = np.maximum(grey[box] * PLATE, tone * _ink(glyph, box))


def _ink(glyph: Floats, box: tuple[slice, slice]) -> Floats:
    """A glyph, 0 or 1, at the size of a box, with a margin of one pixel."""
    rows, cols = (part.stop - part.start - 2 for part in box)
    return np.pad(glyph[np.ix_(np.arange(rows) * 7 // rows, np.arange(cols) * 5 // cols)], 1)
