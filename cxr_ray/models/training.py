"""Fine-tuning: ``fit`` trains one classifier on uint8 images that lie on the device.

Shapes: N images, B images in a batch, S side of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.config import Train
from cxr_ray.errors import TrainingError
from cxr_ray.models.networks import Classifier

EVAL_BATCH = 64
FOCAL_GAMMA = 2.0
AUGMENTATIONS = 6  # random numbers an image


@dataclass(frozen=True)
class Split:
    """Images of one split at model size: pixels uint8 [N, 3, S, S], labels int64 [N]."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass
class Epoch:
    """What ``report`` is told after an epoch, and what a later ``fit`` needs to go on from there.

    Attributes:
        epoch: from 1.
        train_loss, val_loss: means over images, in nats.
        val_auroc: AUROC on the validation split.
        best_epoch, best_auroc: the highest so far, the first of equals.
        improved: this epoch is the best.
        state: gives tensors (the live ones: save or copy them at once) and numbers for ``resume``.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float
    best_epoch: int
    best_auroc: float
    improved: bool
    state: Callable[[], dict[str, Any]]


def fit(
    model: Classifier,
    train: Split,
    val: Split,
    config: Train,
    report: Callable[[Epoch], None],
    *,
    device: str = "cpu",
    frozen: bool = False,
    resume: dict[str, Any] | None = None,
) -> None:
    """Trains ``model`` in place: AdamW, one-cycle learning rate, mixed precision (bfloat16) on GPUs.

    Order, sampling and augmentation are functions of (seed, epoch), so that a resumed run continues the same one.

    Args:
        model: a classifier with two outputs.
        train, val: the images.
        config: epochs, batch size, learning rate and the rest.
        report: called after each epoch; ``epoch.state()`` gives what ``resume`` takes.
        device: cpu, cuda or cuda:0.
        frozen: only the last block and the head are trained.
        resume: the state of an earlier epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    torch.manual_seed(config.seed)
    on_gpu = device.startswith("cuda")
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(("layer4", "fc")))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    steps = max(1, len(train.labels) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=steps * config.epochs + 1, pct_start=0.25
    )
    first, best_epoch, best_auroc = 1, 0, -math.inf
    if resume is not None:
        model.network.load_state_dict(resume["network"])
        optimizer.load_state_dict(resume["optimizer"])
        schedule.load_state_dict(resume["schedule"])
        first, best_epoch, best_auroc = resume["epoch"] + 1, resume["best_epoch"], resume["best_auroc"]
    pixels = torch.from_numpy(np.array(train.pixels)).to(device)
    labels = torch.from_numpy(np.array(train.labels))
    if config.labels == "shuffled":  # a function of the seed alone; validation keeps the given ones
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))]
    labels = labels.to(device)
    loss_of = _loss(config.loss, labels)
    for epoch in range(first, config.epochs + 1):
        generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
        order = _order(config.sampler, labels.cpu(), generator)[: steps * config.batch_size].to(device)
        model.train()
        if frozen:
            _freeze_statistics(model)
        total = torch.zeros((), device=device)
        batches = order.split(config.batch_size)
        numbers = [torch.rand(AUGMENTATIONS, len(chosen), generator=generator) for chosen in batches]
        numbers_AN = torch.cat(numbers, 1).to(device)  # at once, so that no step waits for the device
        for chosen, numbers_AB in zip(batches, numbers_AN.split(config.batch_size, 1), strict=True):
            images = pixels[chosen].float().div_(255)
            if config.augment == "light":
                images = augment(images, numbers_AB)
            images = model.normalize(images).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=on_gpu):
                logits = model(images)
            loss = loss_of(logits.float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(chosen)
        train_loss = float(total) / len(order)
        val_loss, val_auroc = evaluate(model, val, device)
        for split, loss_now in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss_now):
                raise TrainingError(f"the {split} loss is {loss_now} in epoch {epoch}; lower train.lr ({config.lr:g}).")
        improved = val_auroc > best_auroc
        if improved:
            best_epoch, best_auroc = epoch, val_auroc
        state = {"epoch": epoch, "best_epoch": best_epoch, "best_auroc": best_auroc}

        def snapshot(numbers: dict[str, Any] = state) -> dict[str, Any]:
            return {
                **numbers,
                "network": model.network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }

        report(Epoch(epoch, train_loss, val_loss, val_auroc, best_epoch, best_auroc, improved, snapshot))


def evaluate(model: Classifier, split: Split, device: str) -> tuple[float, float]:
    """Cross-entropy in nats and AUROC of a split, NaN where a score is not finite; leaves the model in eval mode."""
    model.eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split.labels), EVAL_BATCH):
            pixels = torch.from_numpy(np.array(split.pixels[start : start + EVAL_BATCH])).to(device)
            images = model.normalize(pixels.float() / 255).contiguous(memory_format=torch.channels_last)
            logits.append(model.log_odds(images))
    z = torch.cat(logits).double().cpu().numpy()
    if not np.isfinite(z).all():
        return math.nan, math.nan
    signed = np.where(split.labels == 1, z, -z)
    return float(np.logaddexp(0, -signed).mean()), float(roc_auc_score(split.labels, z))


def augment(images_BCSS: Tensor, numbers_AB: Tensor) -> Tensor:
    """Light augmentation of pixel-space images, one transform an image, the whole batch at once.

    Rotation up to 10 degrees, translation up to 5%, scale 0.9 to 1.1, contrast 0.8 to 1.2, brightness up to 0.1. No
    flip: a mirrored chest is another anatomy. ``numbers_AB``: AUGMENTATIONS of each image, uniform in [0, 1).
    """
    r = numbers_AB * 2 - 1
    angle, scale = r[0] * math.radians(10), 1 + 0.1 * r[1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([torch.stack([cos, -sin, 0.1 * r[2]], 1), torch.stack([sin, cos, 0.1 * r[3]], 1)], 1)
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    moved = F.grid_sample(images_BCSS, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast, brightness = (1 + 0.2 * r[4]).view(-1, 1, 1, 1), (0.1 * r[5]).view(-1, 1, 1, 1)
    return ((moved - 0.5) * contrast + 0.5 + brightness).clamp_(0, 1)


def _order(sampler: str, labels: Tensor, generator: torch.Generator) -> Tensor:
    if sampler == "shuffle":
        return torch.randperm(len(labels), generator=generator)
    weights = 1.0 / torch.bincount(labels, minlength=2)[labels].double()
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)


def _loss(name: str, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """ce; weighted: classes by inverse frequency; focal: Lin et al., ICCV 2017, gamma 2."""
    if name == "weighted":
        counts = torch.bincount(labels, minlength=2).float()
        weight = counts.sum() / (2 * counts)
        return lambda z, y: F.cross_entropy(z, y, weight=weight)
    if name == "focal":

        def focal(z: Tensor, y: Tensor) -> Tensor:
            log_p = F.log_softmax(z, 1).gather(1, y[:, None])[:, 0]
            return (-((1 - log_p.exp()) ** FOCAL_GAMMA) * log_p).mean()

        return focal
    return F.cross_entropy


def _freeze_statistics(model: Classifier) -> None:
    """Frozen batch norms keep their running statistics."""
    for name, module in model.network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not name.startswith("layer4"):
            module.eval()
