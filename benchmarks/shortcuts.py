"""Does H1 find a planted shortcut, and only that? Networks trained with an opaque corner marker of known effect.

A marker is planted at rates P(marker | PNEUMONIA) = 1 - P(marker | NORMAL) of 0.5, 0.6, 0.75, 0.9, and in no image. The
truth is its effect: the score of NORMAL test images with it minus without. Each network scores every recipient with
every donor's region. From these matrices recipients and donors are drawn again and again, each donor for one recipient,
and judged as a sweep judges them; the mean of the matrix is the contrast that the intervals should hold.

Shapes: N images, R recipients, D donors of a class, K draws of a study, S side of an image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import common
from cxr_ray import randomness
from cxr_ray.analysis.hypotheses import h1_shortcuts
from cxr_ray.analysis.hypotheses.margins import ABOVE, WITHIN, Margin, verdict
from cxr_ray.analysis.resampling import patient_bootstrap, sign_flip
from cxr_ray.config import Data, Phantoms, Train
from cxr_ray.data.loading import load_pixels
from cxr_ray.data.manifest import load_manifest
from cxr_ray.data.sources import source_of
from cxr_ray.measure import regions
from cxr_ray.models import networks, training
from cxr_ray.models.networks import Classifier, ModelSpec

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

RATES = "none,0.5,0.6,0.75,0.9"
TRAIN, DONORS, RECIPIENTS, TESTED = 500, 96, 24, 150  # images of a class, at most
EPOCHS, RATE = 8, 4e-3
INK = 242  # of 255
DESIGNS = {"40 x 1": (40, 1), "40 x 3": (40, 3), "120 x 1": (120, 1)}  # recipients x donors of each class
LIKE_A_RUN = "120 x 1"
JUDGED = {"corners": h1_shortcuts.MARGIN, "marker": h1_shortcuts.MARKER_MARGIN}
VERDICTS = ["above", "within", "coverage", "at_margin", "null"]
BATCH, N_BOOT, N_PERM = 256, 400, 999


@dataclass(frozen=True)
class Images:
    """uint8 [N, 3, S, S] by class: to train on, donors, and test images, one a patient but for training."""

    train: tuple[Pixels, Pixels]
    donors: tuple[Pixels, Pixels]
    test: tuple[Pixels, Pixels]


def images(data: str | None, size: int) -> Images:
    """The images of a folder in Kaggle's layout, or phantoms."""
    phantoms = Phantoms(train=2 * (TRAIN + 2 * DONORS), test=2 * TESTED, marker_correlation=0.5)
    settings = Data(source="folder" if data else "phantom", path=data or "phantom", size=size, phantom=phantoms)
    source = source_of(settings, 0)
    manifest = load_manifest(source, val_share=0.1 if data else 0.15)

    def of(split: str, label: int, most: int, one_a_patient: bool) -> Pixels:
        rows = manifest.rows(split)
        rows = rows[rows["label"] == label]
        order = np.argsort([randomness.key(0, i, "benchmark") for i in rows["image_id"]])
        rows = rows.iloc[order]
        rows = (rows.drop_duplicates("patient_id") if one_a_patient else rows).iloc[:most]
        return load_pixels(source, rows, size).images_NCHW

    splits = (("train", TRAIN, False), ("val", DONORS, True), ("test", TESTED, True))
    return Images(*((of(split, 0, n, once), of(split, 1, n, once)) for split, n, once in splits))


def marker_box(size: int) -> tuple[slice, slice]:
    """Rows and columns of the planted marker, top left: 5 x 6 of 64 pixels."""
    at = max(1, size // 64)
    return slice(at, at + max(2, 5 * size // 64)), slice(at, at + max(2, 6 * size // 64))


def planted(pixels: Pixels, on_N: NDArray[np.bool_]) -> Pixels:
    """The images, with the marker where asked."""
    rows, columns = marker_box(pixels.shape[-1])
    made = pixels.copy()
    made[on_N, :, rows, columns] = INK
    return made


def share(n: int, rate: float | None, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Exactly round(n * rate) of n, chosen at random; none without a rate."""
    return rng.permutation(np.arange(n) < round(n * (rate or 0.0)))


def small_network() -> nn.Sequential:
    """Four convolutions, each with batch norm, and a mean over places."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def trained(name: str, normal: Pixels, pneumonia: Pixels, seed: int) -> Classifier:
    """A network from scratch, in eval mode."""
    size = normal.shape[-1]
    torch.manual_seed(seed)
    spec = ModelSpec("resnet18", size)
    model = Classifier(small_network(), spec) if name == "small" else networks.build(name, spec)
    split = training.Split(np.concatenate([normal, pneumonia]), np.repeat([0, 1], [len(normal), len(pneumonia)]))
    few = training.Split(split.pixels[::16], split.labels[::16])
    lr = RATE if name == "small" else RATE / 4
    config = Train(epochs=EPOCHS, batch_size=32, lr=lr, seed=seed, augment="none")
    training.fit(model, split, few, config, lambda epoch: None)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def scores(model: Classifier, pixels: Pixels) -> Floats:
    """Log-odds of PNEUMONIA, [N]."""
    parts = torch.from_numpy(pixels).split(BATCH)
    return torch.cat([model.log_odds(model.normalize(p.float() / 255)) for p in parts]).double().numpy()


@torch.inference_mode()
def crossed(model: Classifier, recipients: Pixels, donors: Pixels, mask_SS: torch.Tensor) -> Floats:
    """Log-odds of every recipient with every donor's region, [R, D]."""
    given = model.normalize(torch.from_numpy(donors).float() / 255)
    rows = []
    for recipient in model.normalize(torch.from_numpy(recipients).float() / 255):
        parts = given.split(BATCH)
        rows.append(torch.cat([model.log_odds(torch.where(mask_SS, p, recipient)) for p in parts]))
    return torch.stack(rows).double().numpy()


def network_of(data: Images, name: str, rate: float | None, seed: int) -> dict[str, Any]:
    """One network: the marker's true effect, and by region the scores under donors of each class, [2, R, D]."""
    rng = np.random.default_rng([seed, round(100 * (rate or 0.0))])
    shares = (None, None) if rate is None else (1 - rate, rate)  # of NORMAL, of PNEUMONIA
    train, donors, test = (
        [planted(pixels, share(len(pixels), r, rng)) for pixels, r in zip(of_class, shares, strict=True)]
        for of_class in (data.train, data.donors, data.test)
    )
    model = trained(name, train[0], train[1], seed)
    clean = data.test[0]
    with_marker = scores(model, planted(clean, np.ones(len(clean), bool)))
    without = scores(model, clean)
    n = min(len(d) for d in donors)
    recipients = test[0][rng.permutation(len(test[0]))[:RECIPIENTS]]
    size = clean.shape[-1]
    masks = {k: m for k, m in regions.masks(size).items() if k in ("corners", "border", "centre")}
    masks["marker"] = torch.zeros(size, size, dtype=torch.bool)
    masks["marker"][marker_box(size)] = True
    found: dict[str, Any] = {
        region: np.stack([crossed(model, recipients, d[:n], mask) for d in donors]) for region, mask in masks.items()
    }
    found["whole"] = np.stack([np.broadcast_to(scores(model, d[:n]), (len(recipients), n)) for d in donors])
    natural, positive = scores(model, test[0]), scores(model, test[1])
    found["effect"] = float((with_marker - without).mean())
    found["auroc"] = float((positive[:, None] > natural).mean())
    return found


def contrast(matrix_2RD: Floats) -> float:
    """Mean over recipients and donors, PNEUMONIA minus NORMAL."""
    return float(matrix_2RD[1].mean() - matrix_2RD[0].mean())


def redrawn(matrix_2RD: Floats, design: tuple[int, int], draws: int, rng: np.random.Generator) -> Floats:
    """Contrasts of the recipients of so many studies, [recipients, K]; no two recipients of one share a draw."""
    (n, k), (_, n_recipients, n_donors) = design, matrix_2RD.shape
    recipients = rng.integers(0, n_recipients, (n, 1, draws))
    normal, pneumonia = (m[recipients, rng.integers(0, n_donors, (n, k, draws))].mean(1) for m in matrix_2RD)
    return pneumonia - normal


def judged(values_NK: Floats, margin: Margin, truth: float) -> dict[str, float]:
    """Shares of studies above and within the margin, and of intervals that hold the truth."""
    patients = np.arange(len(values_NK))
    lower, upper = patient_bootstrap(values_NK, patients, N_BOOT, seed=0)
    narrow = patient_bootstrap(values_NK, patients, N_BOOT, seed=0, level=0.90)
    p = sign_flip(values_NK - margin.high, patients, N_PERM, seed=0)
    verdicts = [verdict(margin, i, j, q) for i, j, q in zip(zip(lower, upper), zip(*narrow), p, strict=True)]  # noqa: B905
    return {
        "above": verdicts.count(ABOVE) / len(verdicts),
        "within": verdicts.count(WITHIN) / len(verdicts),
        "coverage": float(((lower <= truth) & (truth <= upper)).mean()),
    }


def studies(found: dict[str, Any], draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """What a sweep would say of one network, by region and design; and at exactly the margin."""
    rng = np.random.default_rng(seed)
    for region, margin in JUDGED.items():
        truth = contrast(found[region])
        for name, design in DESIGNS.items():
            values = redrawn(found[region], design, draws, rng)
            normal = np.stack([found[region][0]] * 2)  # two sets of NORMAL donors: no class information
            null = redrawn(normal, design, draws, rng)
            yield {
                "region": region,
                "design": name,
                **judged(values, margin, truth),
                "at_margin": judged(values - truth + margin.high, margin, margin.high)["above"],
                "null": float((sign_flip(null, np.arange(len(null)), N_PERM, seed=0) <= 0.05).mean()),
            }


def kept(folder: str, name: str, data: Images, arch: str, rate: float | None, seed: int) -> dict[str, Any]:
    """A network's results, read where an earlier call left them in the folder."""
    file = Path(folder, f"{name}.npz") if folder else None
    if file is not None and file.exists():
        with np.load(file) as stored:
            return {k: v if v.ndim else float(v) for k, v in stored.items()}
    found = network_of(data, arch, rate, seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **found)
    return found


def main() -> None:
    """The command."""
    args = common.arguments(
        __doc__,
        flags={"phantoms": "phantoms instead of a folder"},
        data=(str, "", "folder in Kaggle's layout"),
        seeds=(int, 10, "networks of each rate"),
        network=(str, "small", "small or resnet18"),
        size=(int, 64, "side of the images in pixels"),
        rates=(str, RATES, "rates of the marker, with commas"),
        draws=(int, 200, "studies drawn from each network"),
        keep=(str, "", "folder that keeps each network's scores, so that a later call goes on"),
    )
    if bool(args.data) == args.phantoms:
        raise SystemExit(f"got --data {args.data!r} and --phantoms {args.phantoms}; expected one of them; give one.")
    data = images(args.data or None, args.size)
    print({k: [len(part) for part in getattr(data, k)] for k in ("train", "donors", "test")}, flush=True)
    told, rows = [], []
    for seed in range(args.seeds):
        for name in args.rates.split(","):
            started, rate = time.monotonic(), None if name == "none" else float(name)
            found = kept(args.keep, f"{args.network}-{args.size}-{name}-{seed}", data, args.network, rate, seed)
            of_regions = {r: contrast(found[r]) for r in ("corners", "marker", "border", "centre", "whole")}
            told.append({"rate": name, "seed": seed, "effect": found["effect"], "auroc": found["auroc"], **of_regions})
            rows += [{"rate": name, **study} for study in studies(found, args.draws, seed)]
            line = ", ".join(f"{k} {v:.2f}" for k, v in told[-1].items() if k not in ("rate", "seed"))
            print(f"  rate {name}, seed {seed}: {line} ({time.monotonic() - started:.0f} s)", flush=True)
    nets, judgements = pd.DataFrame(told), pd.DataFrame(rows)
    print(*summary(nets, judgements), sep="\n")
    means = judgements.groupby(["region", "design", "rate"], as_index=False)[VERDICTS].mean()
    ratios = {
        f"{region}: {what}": float(part[column].mean())
        for region, part in judgements[judgements["design"] == LIKE_A_RUN].groupby("region")
        for what, column in (
            ("intervals that hold the truth", "coverage"),
            ("above at exactly the margin", "at_margin"),
        )
    }
    records = {"networks": nets.round(3).to_dict("records"), "verdicts": means.round(3).to_dict("records")}
    if args.json:
        common.show("shortcuts", {}, ratios, {}, unit="", as_json=True, **records)


def summary(nets: pd.DataFrame, judgements: pd.DataFrame) -> Iterator[str]:
    """What is read off: contrasts by rate, and verdicts by rate, region and design."""
    columns = ["effect", "auroc", "corners", "marker", "border", "centre", "whole"]
    grouped = nets.groupby("rate", sort=False)[columns]
    yield "\nContrasts, mean over networks (least to most)"
    for rate in grouped.groups:
        part = grouped.get_group(rate)
        yield f"  rate {rate}: " + ", ".join(
            f"{c} {part[c].mean():.2f} ({part[c].min():.2f} to {part[c].max():.2f})" for c in columns
        )
    yield "\nShares of studies. at_margin: above, where the truth is moved to exactly the margin. null: p <= 0.05 for 0"
    yield "between two sets of NORMAL donors."
    yield judgements.groupby(["region", "design", "rate"], sort=False)[VERDICTS].mean().round(3).to_string()


if __name__ == "__main__":
    main()
