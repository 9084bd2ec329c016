"""Sweeps as text, and the files that ship."""

from pathlib import Path

from cxr_ray.config import Sweep
from cxr_ray.sweepfile import resolve
from cxr_ray.yamlfile import parse_yaml

SWEEPS = sorted((Path(__file__).parent.parent.parent / "sweeps").glob("*.yaml"))

EVERYTHING = """
name: every-thing_2
data: {source: phantom, size: 64, fit: pad, limit: 10, phantom: {train: 8, test: 4}}
variants: {plain: {}, "on": {model: {freeze: backbone}, train: {loss: {choice: [ce, focal]}, seed: {grid: [1, 2]}}}}
model: {weights: none}
train: {lr: {loguniform: [1e-5, 1e-3]}, weight_decay: 0}
evaluate: all
checkpoints: {study: {path: model.pt, size: 128, mean: [0, 0, 0], std: [1, 1, 1]}}
perturb: {grids: [28, pixel], levels: [0.00001, 0.5]}
controls: {shifted: 19}
resources: {workers: 2, gpu_per_worker: 0.5, gpu_per_trial: 2}
"""


def swept(text: str) -> Sweep:
    return resolve(parse_yaml(text, "test") or {})
