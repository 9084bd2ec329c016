"""The explainers: one function each. A new one is a function and an entry in EXPLAINERS.

Shapes: B (image, target) pairs, S side of an image, V side of a map, K channels of the last block, J altered copies of
images in a pass, N altered copies of an image.
Maps explain z_target. They are signed sums over channels, or absolute values where the method takes them, at the
explainer's own resolution, and are never rescaled.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from captum import attr
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from cxr_ray import randomness
from cxr_ray.measure import rankings
from cxr_ray.models.networks import Classifier
from cxr_ray.registry import Registry

PASS = 32  # images in a pass, so that memory is bounded
CHANNELS = 512  # of the last block, in every network of ``models.networks.NETWORKS``
IG_STEPS = 32
SMOOTHGRAD_SAMPLES, SMOOTHGRAD_NOISE = 16, 0.15
GRADIENT_SHAP_SAMPLES = 16
RISE_MASKS, RISE_CELLS, RISE_KEPT = 1000, 7, 0.5
KERNEL_SHAP_SAMPLES, KERNEL_SHAP_CELLS = 256, 7


@dataclass(frozen=True)
class Inputs:
    """What an explainer may read.

    Attributes:
        images: model space, [B, 3, S, S].
        blurred: the same images blurred (fill blur), model space.
        black: a black pixel in model space, [3, 1, 1].
        targets: int64 [B], class whose score is explained.
        ids: image ids.
        seed: the sweep's seed, for explainers that draw random numbers.
    """

    images: Tensor
    blurred: Tensor
    black: Tensor
    targets: Tensor
    ids: Sequence[str]
    seed: int


class Explain(Protocol):
    """Inputs to maps, float32 [B, V, V]. Leaves no hook and no gradient on the model."""

    def __call__(self, model: Classifier, inputs: Inputs) -> Tensor:
        """Explains z_target of every pair."""
        ...


Cam = Callable[[Classifier, Inputs], tuple[Tensor, Tensor]]
"""A class activation map in parts: weights [B, K] or [B, K, V, V] and activations [B, K, V, V], to be combined."""


@dataclass(frozen=True)
class Explainer:
    """An explainer, and what others need to know of it.

    Attributes:
        explain: the function.
        passes: forward and backward passes through the network for an (image, target) pair, at a given image size.
        caption: what it is, in a sentence with its source.
        model_free: model-independent, so that randomising the model says nothing about it.
        cam: for class activation maps, the parts that ``explain`` combines.
    """

    explain: Explain
    passes: Callable[[int], tuple[int, int]]
    caption: str
    model_free: bool = False
    cam: Cam | None = None


def combine(weights: Tensor, activations: Tensor) -> Tensor:
    """The class activation map relu(sum over K of weights * activations), [B, V, V]; weights [B, K] or [B, K, V, V]."""
    if weights.ndim == 2:
        return torch.einsum("bk,bkhw->bhw", weights, activations).relu()
    return (weights * activations).sum(1).relu()


def _leaf(images: Tensor) -> Tensor:
    """The images as a leaf of their own, so that gradients reach them and stay off the caller's tensor."""
    return images.detach().clone().requires_grad_()


def _keys(inputs: Inputs, purpose: str) -> Tensor:
    """A key for each pair's random numbers: the same for both targets of an image. int64 [B]."""
    keys = [randomness.key(inputs.seed, i, purpose) for i in inputs.ids]
    return torch.tensor(keys, device=inputs.images.device)


def _copies(inputs: Inputs, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """N copies of every image, PASS at a time: the copies' images and their numbers under N, both int64 [J]."""
    for job in torch.arange(len(inputs.images) * n, device=inputs.images.device).split(PASS):
        yield job // n, job % n


def _z(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """z_target, [J]."""
    with torch.no_grad():
        return model(images).gather(1, targets[:, None])[:, 0].float()


def _gradient(model: Classifier, images: Tensor, targets: Tensor) -> Tensor:
    """d z_target / d input, [J, 3, S, S]."""
    return attr.Saliency(model).attribute(_leaf(images), target=targets, abs=False).detach()


class _Block(BasicBlock):
    """torchvision's block with a second ReLU in place of a second call of the first."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


def _with_separate_relus(model: Classifier) -> Classifier:
    """A copy that shares the weights, whose ReLUs neither work in place nor serve twice: captum hooks each of them."""
    copied = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    for module in list(copied.modules()):
        if type(module) is BasicBlock:
            module.__class__ = _Block
            module.relu2 = nn.ReLU()
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return copied


class _MaxPool(nn.Module):
    """Max pooling out of ReLUs, max(a, b) = a + relu(b - a), first along rows, then along columns."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.width, self.stride, self.padding = (
            n if isinstance(n, int) else n[0] for n in (pool.kernel_size, pool.stride, pool.padding)
        )
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(2 * (self.width - 1)))

    def forward(self, x: Tensor) -> Tensor:
        relus = iter(self.relus)
        x = F.pad(x, [self.padding] * 4, mode="replicate")  # what is repeated lies in the window anyway
        for axis in (3, 2):
            x, *others = x.unfold(axis, self.width, self.stride).unbind(-1)
            for other in others:
                x = x + next(relus)(other - x)
        return x


def _last_activations(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output of the last block, [B, K, V, V], and the logits."""
    kept: list[Tensor] = []
    handle = model.cam_layer.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        logits = model(images)
    finally:
        handle.remove()
    return kept[0], logits


def _last_block(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Activations of the last block and the gradient of z_target with respect to them, both [B, K, V, V].

    Where average pooling and one linear layer follow, as in every entry of ``networks.NETWORKS``, the gradient is that
    layer's weight over the number of places, so no backward pass is run; else it is autograd's.
    """
    weights = _head_weights(model, inputs.targets)
    if weights is None:
        with torch.enable_grad():
            activations, logits = _last_activations(model, _leaf(inputs.images))
            z = logits.gather(1, inputs.targets[:, None]).sum()
            return activations.detach(), torch.autograd.grad(z, activations)[0]
    with torch.no_grad():
        activations, _ = _last_activations(model, inputs.images)
    places = activations.shape[2] * activations.shape[3]
    return activations, (weights / places)[:, :, None, None].expand_as(activations)


def _head_weights(model: Classifier, targets: Tensor) -> Tensor | None:
    """d z_target / d (pooled features), [B, K]; None where a network does not end in pooling and one linear layer."""
    network = model.network
    pool, head = getattr(network, "avgpool", getattr(network, "global_pool", None)), getattr(network, "fc", None)
    pooled = isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))
    timms = getattr(pool, "pool_type", None) == "avg"
    if not (pooled or timms) or not isinstance(head, nn.Linear):
        return None
    weight = head.weight.detach()
    return weight[targets] if model.spec.outputs == 2 else weight[0] * (2 * targets[:, None] - 1)


def gradcam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al., ICCV 2017) at the last block: a channel's weight is its mean gradient.

    With pooling and one linear layer behind that block it is CAM (Zhou et al., CVPR 2016), up to a factor.
    """
    activations, gradients = _last_block(model, inputs)
    return gradients.mean((2, 3)), activations


def gradcam_plus_plus(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): a channel's weight is the sum of alpha relu(g) over its places.

    alpha = g^2 / (2 g^2 + sum(A) g^3), so alpha relu(g) = relu(g) / (2 + sum(A) relu(g)): no small number is needed in
    the denominator, which in other code outweighs g^2. The paper scores exp(z); its factor exp(z) of the whole map is
    left out.
    """
    activations, gradients = _last_block(model, inputs)
    g = gradients.relu()
    return (g / (2 + activations.sum((2, 3), keepdim=True) * g)).sum((2, 3)), activations


def layercam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """LayerCAM (Jiang et al., TIP 2021) at the last block: each place has its own weight, relu of its gradient."""
    activations, gradients = _last_block(model, inputs)
    return gradients.relu(), activations


def scorecam(model: Classifier, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Score-CAM (Wang et al., CVPR Workshops 2020) at the last block, with a mask for every one of its channels.

    A mask is the channel, bilinear at the image's size, scaled to [0, 1] (zero where the channel is constant) and
    multiplied in model space, so that what it hides becomes the normalisation's mean. A channel's weight is the softmax
    over channels of z_target; the paper's baseline score is the same for every channel and falls out.
    """
    with torch.no_grad():
        activations, _ = _last_activations(model, inputs.images)
    scores = []
    for image, channel in _copies(inputs, activations.shape[1]):
        mask = rankings.upsample(activations[image, channel], inputs.images.shape[-1])
        low, high = mask.amin((1, 2), keepdim=True), mask.amax((1, 2), keepdim=True)
        mask = torch.where(high > low, (mask - low) / (high - low), 0.0)
        scores.append(_z(model, inputs.images[image] * mask[:, None], inputs.targets[image]))
    return torch.cat(scores).view(activations.shape[:2]).softmax(1), activations


def guided_gradcam(model: Classifier, inputs: Inputs) -> Tensor:
    """Guided Grad-CAM (Selvaraju et al., ICCV 2017): guided backpropagation times Grad-CAM, bilinear at image size."""
    maps = rankings.upsample(combine(*gradcam(model, inputs)), inputs.images.shape[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum's, on the hooks that it sets on our copy
        guided = attr.GuidedBackprop(_with_separate_relus(model)).attribute(_leaf(inputs.images), inputs.targets)
    return guided.sum(1).detach() * maps


def saliency(model: Classifier, inputs: Inputs) -> Tensor:
    """|d z_target / d input|, summed over channels (Simonyan et al., 2014)."""
    return attr.Saliency(model).attribute(_leaf(inputs.images), target=inputs.targets).sum(1).detach()


def input_x_gradient(model: Classifier, inputs: Inputs) -> Tensor:
    """Input times gradient, in model space (Shrikumar et al., 2016)."""
    return attr.InputXGradient(model).attribute(_leaf(inputs.images), target=inputs.targets).sum(1).detach()


def smoothgrad(model: Classifier, inputs: Inputs) -> Tensor:
    """SmoothGrad (Smilkov et al., 2017): |mean gradient over 16 noisy copies|, summed over channels.

    Noise is Gaussian with 0.15 of the image's range as standard deviation, in pixel space and equal in all channels.
    As in the authors' code, gradients are averaged with their sign; captum's NoiseTunnel over Saliency averages their
    absolute values, and draws its noise from the global generator, so that a map would depend on its batch.
    """
    size = inputs.images.shape[-1]
    keys = randomness.bits(_keys(inputs, "smoothgrad"), SMOOTHGRAD_SAMPLES)  # a key for each copy
    total = torch.zeros_like(inputs.images)
    pixels = (inputs.images * model.std + model.mean).flatten(1)
    sigma = SMOOTHGRAD_NOISE * (pixels.amax(1) - pixels.amin(1))[:, None, None, None]
    for image, copy_ in _copies(inputs, SMOOTHGRAD_SAMPLES):
        noise = randomness.normal(keys[image, copy_], size * size).view(-1, 1, size, size)
        gradient = _gradient(model, inputs.images[image] + sigma[image] * noise / model.std, inputs.targets[image])
        total.index_add_(0, image, gradient)
    return (total / SMOOTHGRAD_SAMPLES).abs().sum(1)


def integrated_gradients(model: Classifier, inputs: Inputs) -> Tensor:
    """Integrated gradients (Sundararajan et al., ICML 2017) from the black image, 32 Gauss-Legendre steps."""
    maps = attr.IntegratedGradients(model).attribute(
        inputs.images,
        baselines=inputs.black.expand_as(inputs.images),
        target=inputs.targets,
        n_steps=IG_STEPS,
        internal_batch_size=max(IG_STEPS, len(inputs.images)),
    )
    return maps.sum(1).float().detach()


def _grey_levels(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Gradient SHAP's baselines, grey levels in (0, 1), and the places on the way from there to the image, [B, N]."""
    numbers = randomness.uniform(_keys(inputs, "gradient_shap"), 2 * GRADIENT_SHAP_SAMPLES)
    return numbers[:, ::2], numbers[:, 1::2]


def gradient_shap(model: Classifier, inputs: Inputs) -> Tensor:
    """Gradient SHAP (Lundberg & Lee, NeurIPS 2017; Erion et al., 2021): expected gradients over 16 random baselines.

    The mean of (image - baseline) times the gradient at a uniformly drawn point between them. A baseline is an image of
    one grey level, uniform between black and white, so that no brightness counts as absent, as black does in integrated
    gradients. captum's GradientShap draws from the global generator, so that a map would depend on its batch.
    """
    levels, ways = _grey_levels(inputs)
    total = torch.zeros_like(inputs.images)
    for image, copy_ in _copies(inputs, GRADIENT_SHAP_SAMPLES):
        baseline = model.normalize(levels[image, copy_][:, None, None, None])
        difference = inputs.images[image] - baseline
        way = ways[image, copy_][:, None, None, None]
        total.index_add_(0, image, difference * _gradient(model, baseline + way * difference, inputs.targets[image]))
    return (total / GRADIENT_SHAP_SAMPLES).sum(1)


def deeplift(model: Classifier, inputs: Inputs) -> Tensor:
    """DeepLIFT (Shrikumar et al., ICML 2017) by its rescale rule, from the black image: complete up to rounding.

    Max pooling is taken apart into ReLUs, since captum's rule for it drops all but one of the overlapping windows that
    share a maximum. Products of activations (squeeze and excite) have no rule and follow the gradient: not complete.
    """
    split = _with_separate_relus(model)
    for parent in list(split.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, _MaxPool(child))
    lift, maps = attr.DeepLift(split), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # captum's, on the hooks that it sets on our copy
        for images, targets in zip(inputs.images.split(PASS // 2), inputs.targets.split(PASS // 2), strict=True):
            black = inputs.black.expand_as(images)
            maps.append(lift.attribute(_leaf(images), baselines=black, target=targets).sum(1).detach())
    return torch.cat(maps)


def _window(size: int) -> tuple[int, int]:
    return max(1, size // 7), max(1, size // 14)


def occlusion(model: Classifier, inputs: Inputs) -> Tensor:
    """Occlusion (Zeiler & Fergus, ECCV 2014): window size / 7, stride size / 14, the blurred image as baseline."""
    window, stride = _window(inputs.images.shape[-1])
    with torch.no_grad():
        maps = attr.Occlusion(model).attribute(
            inputs.images,
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            baselines=inputs.blurred,
            target=inputs.targets,
            perturbations_per_eval=max(1, PASS // len(inputs.images)),
        )
    return maps.sum(1).float()


def _occlusion_passes(size: int) -> tuple[int, int]:
    window, stride = _window(size)
    windows = -(-(size - window) // stride) + 1
    return windows**2 + 1, 0


def rise(model: Classifier, inputs: Inputs) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018): the mean z_target over 1000 random masks, each weighted by what it shows.

    Masks are the paper's: 7 x 7 cells, each kept with probability 1/2, stretched (bilinear) over 8 cells a side and cut
    out at a random offset. They are an image's own and multiply it in model space, as in the authors' code. The paper
    takes 4000 to 8000 masks, scores probabilities and divides a pixel's sum by its expected weight. z_target has no
    zero, so we divide by the pixel's own sum of weights: a constant added to z_target adds itself to the map alone.
    """
    size = inputs.images.shape[-1]
    weighted = torch.zeros_like(inputs.images[:, 0])
    shown, first = torch.zeros_like(weighted), torch.zeros(len(weighted), device=weighted.device)
    cells, offsets = _rise_masks(inputs)
    for image, copy_ in _copies(inputs, RISE_MASKS):
        masks = _cut_out(cells[image, copy_].float(), offsets[image, copy_], size)
        z = _z(model, inputs.images[image] * masks[:, None], inputs.targets[image])
        first[image[copy_ == 0]] = z[copy_ == 0]
        weighted.index_add_(
            0, image, (z - first[image])[:, None, None] * masks
        )  # so that equal scores give equal pixels
        shown.index_add_(0, image, masks)
    return first[:, None, None] + weighted / shown


def _rise_masks(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The cells that are kept, bool [B, N, 7, 7], and the offsets in pixels, int64 [B, N, 2]."""
    cell = math.ceil(inputs.images.shape[-1] / RISE_CELLS)
    kept = randomness.uniform(_keys(inputs, "rise cells"), RISE_MASKS * RISE_CELLS**2) < RISE_KEPT
    offsets = (randomness.uniform(_keys(inputs, "rise offsets"), RISE_MASKS * 2) * cell).long()
    return kept.view(-1, RISE_MASKS, RISE_CELLS, RISE_CELLS), offsets.view(-1, RISE_MASKS, 2)


def _cut_out(cells_JVV: Tensor, offsets_J2: Tensor, size: int) -> Tensor:
    """Masks [J, S, S] in [0, 1]."""
    cells = cells_JVV.shape[-1]
    large = rankings.upsample(cells_JVV, math.ceil(size / cells) * (cells + 1))
    y, x = (offsets_J2[:, axis, None] + torch.arange(size, device=large.device) for axis in (0, 1))
    return large[torch.arange(len(large), device=large.device)[:, None, None], y[:, :, None], x[:, None, :]]


def kernel_shap(model: Classifier, inputs: Inputs) -> Tensor:
    """Kernel SHAP (Lundberg & Lee, NeurIPS 2017) on 7 x 7 cells; a cell that is absent is black.

    256 coalitions an image, in pairs with their complements (Covert & Lee, AISTATS 2021), of sizes drawn by the Shapley
    kernel, so that each weighs the same in the regression; the values add up to z(image) - z(black) exactly. captum's
    KernelShap takes one image at a time and draws from the global generator.
    """
    size, device = inputs.images.shape[-1], inputs.images.device
    cell = rankings.cell_of(size, KERNEL_SHAP_CELLS, device)
    unit_of_pixel = cell[:, None] * KERNEL_SHAP_CELLS + cell
    present = _coalitions(inputs)
    scores = []
    for image, copy_ in _copies(inputs, present.shape[1]):
        shown = present[image, copy_][:, unit_of_pixel][:, None]
        scores.append(_z(model, torch.where(shown, inputs.images[image], inputs.black), inputs.targets[image]))
    z = torch.cat(scores).view(present.shape[:2]).double()
    z, none, whole = z[:, :-2], z[:, -2:-1], z[:, -1:]
    player = present[:, :-2].double()
    # the last cell's value is what the others leave of whole - none
    left, right = player[:, :, :-1] - player[:, :, -1:], z - none - player[:, :, -1] * (whole - none)
    values = (torch.linalg.pinv(left) @ right[:, :, None])[:, :, 0]
    values = torch.cat([values, whole - none - values.sum(1, keepdim=True)], dim=1)
    return values.float().view(-1, KERNEL_SHAP_CELLS, KERNEL_SHAP_CELLS)


def _coalitions(inputs: Inputs) -> Tensor:
    """Cells that are present, bool [B, N + 2, 49]: the sampled coalitions, then none and all."""
    cells, half = KERNEL_SHAP_CELLS**2, KERNEL_SHAP_SAMPLES // 2
    size = torch.arange(1, cells, device=inputs.images.device)
    share = (1 / (size * (cells - size))).cumsum(0)
    sizes = torch.searchsorted(share / share[-1], randomness.uniform(_keys(inputs, "kernel_shap sizes"), half)) + 1
    order = randomness.bits(_keys(inputs, "kernel_shap cells"), half * cells).view(-1, half, cells).argsort(2)
    chosen = order < sizes[:, :, None]
    edge = torch.zeros_like(chosen[:, :1])
    return torch.cat([chosen, ~chosen, edge, ~edge], dim=1)


def random(model: Classifier, inputs: Inputs) -> Tensor:
    """Uniform noise on 7 x 7 places: knows nothing of model or image, and has no reason to be faithful."""
    return randomness.uniform(_keys(inputs, "random explainer"), 49).view(-1, 7, 7)


def _grey(model: Classifier, inputs: Inputs) -> Tensor:
    """The images in pixel space, mean of their channels, [B, S, S]."""
    return (inputs.images * model.std + model.mean).mean(1)


def centre(model: Classifier, inputs: Inputs) -> Tensor:
    """Minus the distance from the image's centre in pixels: what a centre prior alone achieves."""
    size = inputs.images.shape[-1]
    y = torch.arange(size, device=inputs.images.device) - (size - 1) / 2
    return -torch.hypot(y[:, None], y).expand(len(inputs.images), size, size)


def edges(model: Classifier, inputs: Inputs) -> Tensor:
    """Magnitude of the Sobel gradient of the grey image, mirrored at its edge (Adebayo et al., NeurIPS 2018)."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=inputs.images.device)
    grey = F.pad(_grey(model, inputs)[:, None], (1, 1, 1, 1), mode="replicate")
    across, down = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
    return torch.hypot(across, down)


def intensity(model: Classifier, inputs: Inputs) -> Tensor:
    """The grey image itself: bright is salient."""
    return _grey(model, inputs)


def _once(size: int) -> tuple[int, int]:
    return 1, 0


def _cam(cam: Cam, passes: Callable[[int], tuple[int, int]], caption: str) -> Explainer:
    return Explainer(lambda model, inputs: combine(*cam(model, inputs)), passes, caption, cam=cam)


def _gradients(explain: Explain, passes: int, caption: str) -> Explainer:
    return Explainer(explain, lambda size: (passes, passes), caption)


def _model_free(explain: Explain, caption: str) -> Explainer:
    return Explainer(explain, lambda size: (0, 0), caption, model_free=True)


EXPLAINERS = Registry(
    "explainer",
    {
        "gradcam": _cam(
            gradcam,
            _once,
            "Grad-CAM: the last block's activations, each channel weighted by its mean gradient (Selvaraju et al., "
            "ICCV 2017).",
        ),
        "gradcam_plus_plus": _cam(
            gradcam_plus_plus,
            _once,
            "Grad-CAM++: Grad-CAM with weights that count each place once (Chattopadhay et al., WACV 2018).",
        ),
        "guided_gradcam": Explainer(
            guided_gradcam,
            lambda size: (2, 1),
            "Guided Grad-CAM: guided backpropagation times Grad-CAM (Selvaraju et al., ICCV 2017).",
        ),
        "layercam": _cam(
            layercam,
            _once,
            "LayerCAM: activations weighted place by place by their positive gradient (Jiang et al., TIP 2021).",
        ),
        "scorecam": _cam(
            scorecam,
            lambda size: (1 + CHANNELS, 0),
            "Score-CAM: activations weighted by the score of the image masked with them (Wang et al., CVPR Workshops "
            "2020).",
        ),
        "saliency": _gradients(
            saliency, 1, "Saliency: the gradient's magnitude (Simonyan et al., ICLR Workshop 2014)."
        ),
        "input_x_gradient": _gradients(
            input_x_gradient, 1, "Input times gradient (Shrikumar et al., arXiv 1605.01713, 2016)."
        ),
        "smoothgrad": _gradients(
            smoothgrad,
            SMOOTHGRAD_SAMPLES,
            f"SmoothGrad: the magnitude of the mean gradient over {SMOOTHGRAD_SAMPLES} noisy copies (Smilkov et al., "
            "2017).",
        ),
        "integrated_gradients": _gradients(
            integrated_gradients,
            IG_STEPS,
            f"Integrated gradients from the black image, {IG_STEPS} steps (Sundararajan et al., ICML 2017).",
        ),
        "gradient_shap": _gradients(
            gradient_shap,
            GRADIENT_SHAP_SAMPLES,
            f"Gradient SHAP: expected gradients over {GRADIENT_SHAP_SAMPLES} random grey baselines (Lundberg & Lee, "
            "NeurIPS 2017; Erion et al., 2021).",
        ),
        "deeplift": _gradients(  # image and baseline, each forward and backward
            deeplift, 2, "DeepLIFT, rescale rule, from the black image (Shrikumar et al., ICML 2017)."
        ),
        "occlusion": Explainer(
            occlusion,
            _occlusion_passes,
            "Occlusion: the score lost under a blurred window of a seventh of the side (Zeiler & Fergus, ECCV 2014).",
        ),
        "rise": Explainer(
            rise,
            lambda size: (RISE_MASKS, 0),
            f"RISE: the mean score over {RISE_MASKS} random masks, each weighted by what it shows (Petsiuk et al., "
            "BMVC 2018).",
        ),
        "kernel_shap": Explainer(  # all cells and none as well
            kernel_shap,
            lambda size: (KERNEL_SHAP_SAMPLES + 2, 0),
            f"Kernel SHAP on 7 x 7 cells, {KERNEL_SHAP_SAMPLES} coalitions (Lundberg & Lee, NeurIPS 2017).",
        ),
        "random": _model_free(random, "Uniform noise on 7 x 7 places: model-independent, no reason to be faithful."),
        "centre": _model_free(centre, "Closeness to the image's centre: model-independent, a centre prior alone."),
        "edges": _model_free(
            edges, "Magnitude of the image's Sobel gradient: model-independent (Adebayo et al., NeurIPS 2018)."
        ),
        "intensity": _model_free(intensity, "The image itself, bright is salient: model-independent."),
    },
)
