"""Fine-tuning: ``fit`` trains one classifier on uint8 images that lie on the device.

Shapes: N images, B images in a batch, S side of an image, A random numbers an image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cxr_ray.config import Train
from cxr_ray.data.pixel_cache import gathered
from cxr_ray.errors import TrainingError
from cxr_ray.models.graphs import Gradients, graphed
from cxr_ray.models.networks import Classifier
from cxr_ray.registry import Registry

EVAL_BATCH = 64
FOCAL_GAMMA = 2.0
STAGED = 2**28  # bytes of images on the device at a time, where not all fit
NUMBERS_AN_IMAGE = 6  # that an augmentation draws
ALWAYS_ON_DEVICE = 1.5 * 2**30  # bytes: CUDA's context, weights, gradients and AdamW's moments
ACTIVATIONS = 40 * 2**20 / 224**2  # bytes of an image for each pixel of its side squared; resnet18d's saved ones are 28

Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, classes] and labels [B] to their mean, in nats


@dataclass(frozen=True)
class Split:
    """Images of one split at model size: pixels uint8 [N, 3, S, S], labels int64 [N].

    Labels are 0 NORMAL and 1 PNEUMONIA; to train a network of several classes, the number of its output.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass
class Epoch:
    """One epoch as ``report`` gets it, and what a later ``fit`` needs to go on from there.

    Attributes:
        epoch: from 1.
        train_loss, val_loss: means over images, in nats.
        val_auroc: AUROC on the validation split.
        best_epoch, best_auroc: the highest so far, the first of equals.
        state: gives tensors (the live ones: save or copy them at once) and numbers for ``resume``.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_auroc: float
    best_epoch: int
    best_auroc: float
    state: Callable[[], dict[str, Any]]

    @property
    def improved(self) -> bool:
        """Whether this epoch is the best so far."""
        return self.epoch == self.best_epoch


def device_memory(n_images: int, size: int, batch_size: int) -> float:
    """Bytes that ``fit`` takes of a GPU, from above: an estimate.

    Args:
        n_images: of the training split, which lie on the device.
        size: their side in pixels.
        batch_size: images in a step.
    """
    return ALWAYS_ON_DEVICE + size**2 * (3 * n_images + ACTIVATIONS * batch_size)


def fit(
    model: Classifier,
    train: Split,
    val: Split,
    config: Train,
    report: Callable[[Epoch], None],
    *,
    device: str = "cpu",
    resume: dict[str, Any] | None = None,
) -> None:
    """Train ``model`` in place: AdamW, one-cycle learning rate; on GPUs bfloat16 and a CUDA graph of each step.

    Order, sampling and augmentation are functions of (seed, epoch), so that a resumed run continues the same one.
    Parameters that require no gradient are left as they are (``freeze_backbone``).

    Args:
        model: a classifier with two outputs, or one for each of several classes (``spec.names``).
        train, val: the images; val has the labels of the two classes also where train has those of several.
        config: epochs, batch size, learning rate and the rest.
        report: called after each epoch; ``epoch.state()`` gives what ``resume`` takes.
        device: cpu, cuda or cuda:0.
        resume: the state of an earlier epoch.

    Raises:
        TrainingError: the loss is not finite.
    """
    training = _Training(model, train, config, device)
    last_epoch, best_epoch, best_auroc = 0, 0, -math.inf
    if resume is not None:
        training.restore(resume)
        last_epoch, best_epoch, best_auroc = resume["epoch"], resume["best_epoch"], resume["best_auroc"]
    for epoch in range(last_epoch + 1, config.epochs + 1):
        train_loss = training.epoch(epoch)
        val_loss, val_auroc = evaluate(model, val, device)
        for split, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"got a {split} loss of {loss} in epoch {epoch}; expected a finite one; lower train.lr "
                    f"({config.lr:g})."
                )
        if val_auroc > best_auroc:
            best_epoch, best_auroc = epoch, val_auroc
        progress = {"epoch": epoch, "best_epoch": best_epoch, "best_auroc": best_auroc}
        state = partial(training.state, progress)
        report(Epoch(epoch, train_loss, val_loss, val_auroc, best_epoch, best_auroc, state))


class _Training:
    """A model with its optimizer, its learning-rate schedule, and the images on the device."""

    def __init__(self, model: Classifier, train: Split, config: Train, device: str):
        torch.manual_seed(config.seed)
        self.model, self.config, self.device = model, config, device
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.on_gpu = device.startswith("cuda")
        self.optimizer = optimizer(trained, config, self.on_gpu)
        self.steps = max(1, len(train.labels) // config.batch_size)  # of an epoch
        total_steps = self.steps * config.epochs + 1
        rise = 0.25 if total_steps != 4 else 0.5  # of one step in four, where torch divides by zero
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=config.lr, total_steps=total_steps, pct_start=rise
        )
        labels = torch.from_numpy(np.array(train.labels))
        if config.labels == "shuffled":  # a function of the seed alone; validation keeps the given ones
            labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(config.seed))]
        self.images, self.all_labels = train.pixels, labels
        self.is_whole = train.pixels.nbytes <= room(device)
        if self.is_whole:
            self.pixels, self.labels = _read_only(train.pixels).to(device), labels.to(device)
        else:  # room for the images of some steps
            n = max(1, STAGED // (train.pixels[0].nbytes * config.batch_size)) * config.batch_size
            self.pixels = torch.empty((n, *train.pixels.shape[1:]), dtype=torch.uint8, device=device)
            self.labels = torch.empty(n, dtype=torch.int64, device=device)
        self.loss = LOSSES[config.loss](labels.to(device))
        self.augment = AUGMENTATIONS[config.augment]
        self.replayed: Gradients | None = None

    def state(self, progress: dict[str, Any]) -> dict[str, Any]:
        """The state that ``restore`` takes, with the numbers of ``progress``; tensors are the live ones."""
        return {
            **progress,
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from an earlier state."""
        self.model.network.load_state_dict(state["network"])
        kind, before = self.optimizer.param_groups[0]["fused"], state["optimizer"]  # a resumed run may be on another
        groups = [{**group, "fused": kind} for group in before["param_groups"]]
        self.optimizer.load_state_dict({**before, "param_groups": groups})
        self.schedule.load_state_dict(state["schedule"])

    def epoch(self, epoch: int) -> float:
        """Train for one epoch; the mean loss over its images, in nats."""
        generator = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
        batch_size = self.config.batch_size
        order = SAMPLERS[self.config.sampler](self.all_labels, generator)
        order = order[: self.steps * batch_size]
        batches = order.split(batch_size)
        numbers = [torch.rand(NUMBERS_AN_IMAGE, len(chosen), generator=generator) for chosen in batches]
        numbers_AN = torch.cat(numbers, 1).to(self.device)  # at once, so that no step waits for the device
        self.model.train()
        _freeze_statistics(self.model)
        total = torch.zeros((), device=self.device)
        for chosen, numbers_AB in zip(self._places(order), numbers_AN.split(batch_size, 1), strict=True):
            total += self.step(chosen, numbers_AB) * len(chosen)
        return float(total) / len(order)

    def _places(self, order: Tensor) -> Iterator[Tensor]:
        """Where the images of each batch lie in ``pixels``; those that do not fit are put there when they are due."""
        batch_size = self.config.batch_size
        if self.is_whole:
            yield from order.to(self.device).split(batch_size)
            return
        for part in order.split(len(self.pixels)):
            self.pixels[: len(part)] = torch.from_numpy(gathered(self.images, part.numpy())).to(self.device)
            self.labels[: len(part)] = self.all_labels[part].to(self.device)
            yield from torch.arange(len(part), device=self.device).split(batch_size)

    def step(self, chosen_B: Tensor, numbers_AB: Tensor) -> Tensor:
        """One step of the optimizer on the chosen images; their mean loss, before it."""
        if self.replayed is None:
            example = chosen_B, numbers_AB
            self.replayed = graphed(self.gradients, self.model, example) if self.on_gpu else self.gradients
        loss = self.replayed(chosen_B, numbers_AB)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def gradients(self, chosen_B: Tensor, numbers_AB: Tensor) -> Tensor:
        """Leave the gradients of the chosen images' mean loss on the parameters; that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        images = self.augment(self.pixels[chosen_B].float().div_(255), numbers_AB)
        images = images.sub_(self.model.mean).div_(self.model.std)  # in place, the values of ``normalize``
        images = images.contiguous(memory_format=torch.channels_last)
        # weights in bfloat16 are not kept from one step to the next: a graph's would be those of its recording
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.on_gpu, cache_enabled=False):
            logits = self.model.network(images) if self.model.spec.names else self.model(images)
        loss = self.loss(logits.float(), self.labels[chosen_B])
        loss.backward()
        return loss.detach()


def optimizer(parameters: list[torch.nn.Parameter], config: Train, on_gpu: bool) -> torch.optim.Optimizer:
    """AdamW; on a GPU as one kernel for all parameters, where launches take longer than the arithmetic."""
    fused = True if on_gpu else None  # None: what a CPU always had
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def room(device: str) -> float:
    """Bytes of images that may lie on a device at once: half of a GPU's free memory; CPUs read them where they are."""
    return torch.cuda.mem_get_info(torch.device(device))[0] / 2 if device.startswith("cuda") else math.inf


def _read_only(array: NDArray[np.uint8]) -> Tensor:
    """A tensor on the array's own memory, which may be shared between processes: never write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def freeze_backbone(model: Classifier) -> None:
    """Let ``fit`` train the last block and the head alone: layer4 and fc, or what stands for them by resolution."""
    trained: tuple[str, ...] = ("layer4", "fc")
    if not {"layer4", "fc"} <= {name for name, _ in model.network.named_children()}:
        found = model.structure
        trained = (*found.stages.get("layer4", ()), *([found.head] if found.head else ()))
    for name, parameter in model.network.named_parameters():
        parameter.requires_grad_(any(name.startswith(f"{part}.") for part in trained))


def _freeze_statistics(model: Classifier) -> None:
    """Batch norms whose weights do not train keep their running statistics."""
    for module in model.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def evaluate(model: Classifier, split: Split, device: str) -> tuple[float, float]:
    """Cross-entropy in nats and AUROC of a split, NaN where a score is not finite; leaves the model in eval mode."""
    model.eval()
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split.labels), EVAL_BATCH):
            pixels = _read_only(split.pixels[start : start + EVAL_BATCH]).to(device)
            images = model.normalize(pixels.float() / 255).contiguous(memory_format=torch.channels_last)
            logits.append(model.log_odds(images))
    z = torch.cat(logits).double().cpu().numpy()
    if not np.isfinite(z).all():
        return math.nan, math.nan
    signed = np.where(split.labels == 1, z, -z)
    from sklearn.metrics import roc_auc_score  # half a second, which a mistake need not wait for

    return float(np.logaddexp(0, -signed).mean()), float(roc_auc_score(split.labels, z))


def augment(images_BCSS: Tensor, numbers_AB: Tensor) -> Tensor:
    """Light augmentation of pixel-space images, one transform an image, the whole batch at once.

    Rotation up to 10 degrees, translation up to 5%, scale 0.9 to 1.1, contrast 0.8 to 1.2, brightness up to 0.1. No
    flip: a mirrored chest is another anatomy. ``numbers_AB``: NUMBERS_AN_IMAGE of each, uniform in [0, 1).
    """
    r = numbers_AB * 2 - 1
    angle, scale = r[0] * math.radians(10), 1 + 0.1 * r[1]
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([torch.stack([cos, -sin, 0.1 * r[2]], 1), torch.stack([sin, cos, 0.1 * r[3]], 1)], 1)
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    moved = F.grid_sample(images_BCSS, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast, brightness = (1 + 0.2 * r[4]).view(-1, 1, 1, 1), (0.1 * r[5]).view(-1, 1, 1, 1)
    return moved.sub_(0.5).mul_(contrast).add_(0.5).add_(brightness).clamp_(0, 1)


def _unchanged(images_BCSS: Tensor, numbers_AB: Tensor) -> Tensor:
    """No augmentation."""
    return images_BCSS


AUGMENTATIONS: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry(
    "augmentation", {"none": _unchanged, "light": augment}
)


def shuffled(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """Every image once, in a random order: indices int64 [N]."""
    return torch.randperm(len(labels_N), generator=generator)


def balanced(labels_N: Tensor, generator: torch.Generator) -> Tensor:
    """N draws with replacement, of each class as often: indices int64 [N]."""
    weights = 1.0 / torch.bincount(labels_N, minlength=2)[labels_N].double()
    return torch.multinomial(weights, len(labels_N), replacement=True, generator=generator)


SAMPLERS: Registry[Callable[[Tensor, torch.Generator], Tensor]] = Registry(
    "sampler", {"shuffle": shuffled, "balanced": balanced}
)


def cross_entropy(labels_N: Tensor) -> Loss:
    """Cross-entropy, whatever the classes' frequencies."""
    return F.cross_entropy


def weighted_cross_entropy(labels_N: Tensor) -> Loss:
    """Cross-entropy with classes weighted by their inverse frequency among the training labels."""
    counts = torch.bincount(labels_N, minlength=2).float()
    weight = counts.sum() / (len(counts) * counts)
    return lambda logits_BC, labels_B: F.cross_entropy(logits_BC, labels_B, weight=weight)


def focal_loss(labels_N: Tensor) -> Loss:
    """Focal loss with gamma 2: mean of (1 - p)^2 (-log p), p of the true class (Lin et al., ICCV 2017).

    >>> certain = torch.log(torch.tensor([[0.9, 0.1]]))
    >>> loss = focal_loss(torch.tensor([0, 1]))(certain, torch.tensor([0]))
    >>> round(loss.item(), 6) == round(0.1**2 * -math.log(0.9), 6)
    True
    """

    def loss(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        log_p = F.log_softmax(logits_BC, 1).gather(1, labels_B[:, None])[:, 0]
        return (-((1 - log_p.exp()) ** FOCAL_GAMMA) * log_p).mean()

    return loss


LOSSES: Registry[Callable[[Tensor], Loss]] = Registry(
    "loss", {"ce": cross_entropy, "weighted": weighted_cross_entropy, "focal": focal_loss}
)
