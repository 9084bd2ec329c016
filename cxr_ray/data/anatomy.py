"""The anatomy of a phantom: lungs, heart, soft tissue, bones and vessels as maps of coverage and of attenuation.

Body coordinates: x to the image's right, y down, both about -1 to 1 over the image, x = 0 in the midline. Every
function takes the phantom's parameters ``p``, drawn from ``phantoms.RANGES``.
"""

from __future__ import annotations

from math import cos, pi, sin, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def step(value: Floats, low: float, high: float) -> Floats:
    """Smooth step: 0 up to low, 1 from high (or the reverse, where low > high)."""
    t: Floats = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def hypot(x: Floats, y: Floats) -> Floats:
    """Length of (x, y)."""
    return np.sqrt(x * x + y * y)  # seven times as fast as np.hypot, and nothing here overflows


def field(coefficients: Floats, size: int) -> Floats:
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


def chest(x: Floats, y: Floats, p: dict[str, float]) -> tuple[Floats, Floats, Floats]:
    """Coverage, 0 to 1, of lungs, heart with mediastinum, and what lies below the diaphragm, at body coordinates."""
    side = np.abs(x)
    lateral, medial = _half_width(y, p, p["apex"])
    dome = p["dome_right"] + np.where(x > 0, np.float32(p["dome_drop"]), np.float32(0))
    diaphragm = (
        dome + p["dome_curve"] * ((side - 0.36) / 0.4) ** 2 + p["angle"] * (np.maximum(side - 0.45, 0) / 0.35) ** 3
    )
    below = step(y - diaphragm, -0.015, 0.015)

    h, base = p["heart"], p["dome_right"]
    turn_x, turn_y = cos(p["heart_tilt"]), sin(p["heart_tilt"])
    dx, dy = x - 0.13 * h, y - base + 0.12
    ventricle = 1 - hypot((dx * turn_x + dy * turn_y) / (0.36 * h), (dy * turn_x - dx * turn_y) / (0.26 * h))
    atrium = 1 - hypot((x + 0.05) / (0.17 * h), (y - base + 0.18) / 0.30)
    trunk = 1 - hypot((x - 0.05) / 0.19, (y - base + 0.40) / 0.42)
    knob = 1 - hypot((x - 0.085) / (1.15 * p["knob"]), (y - p["apex"] - 0.42) / (1.5 * p["knob"]))
    heart = step(np.maximum(np.maximum(ventricle, atrium), np.maximum(trunk, knob * 0.6)), -0.10, 0.12)
    waist = p["mediastinum"] + 0.03 * step(y, -0.3, -0.7)
    heart = np.maximum(heart, step(waist - side, -0.04, 0.03))

    top = step(y, p["apex"], p["apex"] + 0.06)
    lung = step(lateral - side, -0.02, 0.03) * step(side - medial, -0.025, 0.025) * top * (1 - below) * (1 - heart)
    return lung, heart, below


def depth(x: Floats, y: Floats, p: dict[str, float]) -> Floats:
    """Relative thickness of a lung along the beam: thinner at the wall, in the apex and behind breast tissue."""
    lateral, _ = _half_width(y, p, p["apex"])
    wall = np.clip((lateral - np.abs(x)) / 0.30, 0.02, 1) ** p["depth_power"]
    apex = 0.72 + 0.28 * step(y, p["apex"], p["apex"] + 0.45)
    breast = hypot((np.abs(x) - 0.42) / 0.34, (y - p["breast_y"]) / 0.26)
    depth: Floats = wall * apex * (1 - max(p["breast"], 0) * step(breast, 1.15, 0.75))
    return depth


def soft_tissue(x: Floats, y: Floats, heart: Floats, below: Floats, p: dict[str, float]) -> Floats:
    """Attenuation of trunk, neck, shoulders, heart, abdomen and airways at body coordinates."""
    side = np.abs(x)
    half = p["width"] + p["wall"] + 0.05 * step(y, 0.2, 1.0) - 0.04 * step(y, 0.1, -0.3)
    half = half + (1.05 - half) * step(y, -0.28, -0.72)  # the shoulders reach out of the image
    trapezius = p["shoulder"] + p["shoulder_drop"] * step(side, 0.22, 0.95)
    trunk = np.sqrt(np.clip(1 - (side / half) ** 2, 0, 1)) ** 0.55 * step(y - trapezius, -0.10, 0.16)
    neck = np.sqrt(np.clip(1 - (side / 0.27) ** 2, 0, 1)) * step(y, -0.55, -0.75)
    total: Floats = 1.85 * np.maximum(trunk, 0.85 * neck)
    total += 0.22 * heart * step(y, -0.9, -0.5) * (1 - 0.75 * below) + p["abdomen"] * below * step(y, 0.2, 0.9)
    if p["arm"] > 0.5:
        axis_x = p["width"] + p["wall"] + 0.16 + p["arm_gap"] * (y + 0.6)
        across = np.abs(side - axis_x)
        limb = np.sqrt(np.clip(1 - (across / 0.15) ** 2, 0, 1)) * step(y, -0.75, -0.55)
        total = np.maximum(total, 1.1 * limb) + 0.35 * step(across, 0.055, 0.035) * step(y, -0.62, -0.52)
    gas = hypot((x - p["gas_x"]) / 0.17, (y - p["dome_right"] - p["dome_drop"] - 0.14) / 0.09)
    total -= max(p["gas"], 0) * step(gas, 1.1, 0.7) * below
    breath = step(np.abs(x - p["trachea_x"]), 0.055, 0.030) * step(y, -0.18, -0.28)
    bronchi = step(np.abs(side - 0.55 * (y + 0.24)), 0.035, 0.015) * step(y, -0.24, -0.20) * step(y, -0.02, -0.12)
    return total - p["trachea"] * np.maximum(breath, 0.7 * bronchi)


def bones(x: Floats, y: Floats, heart: Floats, below: Floats, p: dict[str, float]) -> Floats:
    """Attenuation of ribs, clavicles, scapulae and spine at body coordinates."""
    side = np.abs(x)
    lateral, _ = _half_width(y, p, p["apex"] - 0.10)
    t = np.minimum(side / (lateral + 0.02), 1)
    arc = np.sqrt(1 - t * t)
    cage = step(side - lateral, 0.03, 0.0)

    # A rib is one turn of a phase: the posterior part arches down to the wall, where the anterior part takes over.
    back = y - p["apex"] - p["rib_arch"] * (1 - arc) - p["rib_slope"] * t
    front = y - p["apex"] - p["rib_arch"] - p["rib_slope"] - p["anterior_drop"] * arc
    covered = (1 - 0.45 * heart) * (1 - 0.4 * below)
    posterior = _rib(back, p) * cage * step(side, 0.07, 0.16) * (1 - 0.2 * t) * step(back, 1.35, 1.0) * covered
    anterior = _rib(front, p) * cage * step(t, 0.30, 0.75) * step(front, 1.0, 0.6) * step(front, -0.15, 0.05)
    bones: Floats = p["rib"] * (posterior + p["anterior"] * anterior)
    bones += 0.10 * step(np.abs(side - lateral - 0.01), 0.03, 0.005) * step(y, p["apex"], -0.3) * step(y, 0.8, 0.5)

    line = p["clavicle_y"] - p["clavicle_rise"] * np.sin((side - 0.08) * 3.4) - 0.10 * side
    thick = 0.030 + 0.012 * np.cos(side * 7)
    shaft = step(np.abs(y - line) / thick, 1.25, 0.70)
    bones += p["clavicle"] * shaft * step(side, 0.07, 0.12) * step(side, 0.95, 0.85)
    blade = np.abs(side - 0.60 - 0.13 * (y + 0.3)) - 0.02
    bones += p["scapula"] * step(blade, 0.03, 0.0) * step(y, -0.55, -0.45) * step(y, 0.12, -0.02)
    joint = hypot(side - 0.93, y + 0.66)
    bones += 0.25 * step(joint, 0.13, 0.10)

    turn = (y - p["rib_phase"]) / p["spine_gap"]
    body = 0.72 + 0.28 * np.cos(2 * pi * turn)
    bones += p["spine"] * step(side, 0.105, 0.070) * body
    return bones


def _rib(height: Floats, p: dict[str, float]) -> Floats:
    """Profile across ribs stacked along `height`: a soft band with denser edges, 0 to about 1."""
    turn = height / p["rib_gap"] + p["rib_phase"]
    off = np.abs(turn - np.floor(turn) - 0.5) / p["rib_width"]
    profile: Floats = step(off, 1.20, 0.85) * (0.65 + 0.40 * np.minimum(off, 1) ** 2)
    return profile


def trace(points: NDArray[np.float64], peaks: NDArray[np.float64], width: float, size: int) -> Floats:
    """Curves [size, size] through points [n, 2] (image coordinates, -1 to 1), as soft lines; `width` is their sigma.

    `peaks` [n] is a line's height times the step to its next point: independent of the size and of the sampling.
    """
    from scipy.ndimage import gaussian_filter  # a quarter of a second

    sigma = max(width * size / 2, 0.5)
    place = (points + 1) * size / 2 - 0.5
    low = np.floor(place)
    part = place - low
    canvas = np.zeros((size + 2, size + 2))  # what lies outside gathers in the rim
    for down in (0, 1):
        for right in (0, 1):
            column, row = np.clip(low + np.array([right + 1, down + 1]), 0, size + 1).astype(int).T
            share = (part[:, 0] if right else 1 - part[:, 0]) * (part[:, 1] if down else 1 - part[:, 1])
            canvas += np.bincount(row * (size + 2) + column, share * peaks, canvas.size).reshape(canvas.shape)
    line: Floats = gaussian_filter(canvas[1:-1, 1:-1].astype(np.float32), sigma, truncate=3)
    return line * (sqrt(2 * pi) * sigma * size / 2)


def vessels(branches: NDArray[np.float64], size: int, p: dict[str, float]) -> Floats:
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
    streaks = trace(points.reshape(-1, 2), p["vessels"] * peaks.ravel(), 0.009, size)
    hilum = trace(points[:, :, near].reshape(-1, 2), p["hilum"] * peaks[:, :, near].ravel(), 0.035, size)
    return 0.45 * np.tanh((streaks + hilum) / 0.45)
