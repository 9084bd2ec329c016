"""The explainers by name. A new one is a function and an entry in EXPLAINERS.

Maps explain z_target. They are signed sums over channels, or absolute values where the method takes them, at the
explainer's own resolution, and are never rescaled.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cxr_ray.measure.attribution import attention, cam, gradients, model_independent, perturbation
from cxr_ray.measure.attribution.inputs import Cam, Explain, Explainer, Inputs, combine
from cxr_ray.models.networks import Classifier
from cxr_ray.registry import Registry


def _once(size: int) -> tuple[int, int]:
    return 1, 0


FEATURES, GRADIENTS = "feature maps", "gradients"  # keys of needs.NEEDS


def _cam(
    parts: Cam,
    passes: Callable[[int], tuple[int, int]],
    caption: str,
    needs: tuple[str, ...] = (FEATURES, GRADIENTS),
    passes_of_channel: int = 0,
) -> Explainer:
    def explain(model: Classifier, inputs: Inputs) -> Tensor:
        return combine(*parts(model, inputs))

    return Explainer(explain, passes, caption, cam=parts, needs=needs, passes_of_channel=passes_of_channel)


def _gradients(explain: Explain, passes: int, caption: str, *more: str) -> Explainer:
    return Explainer(explain, lambda size: (passes, passes), caption, needs=(GRADIENTS, *more))


def _model_free(explain: Explain, caption: str) -> Explainer:
    return Explainer(explain, lambda size: (0, 0), caption, model_free=True)


EXPLAINERS = Registry(
    "explainer",
    {
        "gradcam": _cam(
            cam.gradcam,
            _once,
            "Grad-CAM: the last block's activations, each channel weighted by its mean gradient (Selvaraju et al., "
            "ICCV 2017).",
        ),
        "gradcam_plus_plus": _cam(
            cam.gradcam_plus_plus,
            _once,
            "Grad-CAM++: Grad-CAM with weights that count each place once (Chattopadhay et al., WACV 2018).",
        ),
        "guided_gradcam": Explainer(
            gradients.guided_gradcam,
            lambda size: (2, 1),
            "Guided Grad-CAM: guided backpropagation times Grad-CAM (Selvaraju et al., ICCV 2017).",
            needs=(FEATURES, GRADIENTS, "relus"),
        ),
        "layercam": _cam(
            cam.layercam,
            _once,
            "LayerCAM: activations weighted place by place by their positive gradient (Jiang et al., TIP 2021).",
        ),
        "scorecam": _cam(
            cam.scorecam,
            _once,
            "Score-CAM: activations weighted by the score of the image masked with them (Wang et al., CVPR Workshops "
            "2020).",
            needs=(FEATURES,),
            passes_of_channel=1,
        ),
        "saliency": _gradients(
            gradients.saliency, 1, "Saliency: the gradient's magnitude (Simonyan et al., ICLR Workshop 2014)."
        ),
        "input_x_gradient": _gradients(
            gradients.input_x_gradient, 1, "Input times gradient (Shrikumar et al., arXiv 1605.01713, 2016)."
        ),
        "smoothgrad": _gradients(
            gradients.smoothgrad,
            gradients.SMOOTHGRAD_SAMPLES,
            f"SmoothGrad: the magnitude of the mean gradient over {gradients.SMOOTHGRAD_SAMPLES} noisy copies "
            "(Smilkov et al., 2017).",
        ),
        "integrated_gradients": _gradients(
            gradients.integrated_gradients,
            gradients.IG_STEPS,
            f"Integrated gradients from the black image, {gradients.IG_STEPS} steps (Sundararajan et al., ICML 2017).",
        ),
        "gradient_shap": _gradients(
            gradients.gradient_shap,
            gradients.GRADIENT_SHAP_SAMPLES,
            f"Gradient SHAP: expected gradients over {gradients.GRADIENT_SHAP_SAMPLES} random grey "
            "baselines (Lundberg & Lee, NeurIPS 2017; Erion et al., 2021).",
        ),
        "deeplift": _gradients(  # image and baseline, each forward and backward
            gradients.deeplift,
            2,
            "DeepLIFT, rescale rule, from the black image (Shrikumar et al., ICML 2017).",
            "rescale rule",
        ),
        "attention_rollout": Explainer(
            attention.attention_rollout,
            _once,
            "Attention rollout: what a vision transformer's tokens attend to through all blocks, the same for every "
            "target (Abnar & Zuidema, ACL 2020).",
            needs=("attention",),
        ),
        "occlusion": Explainer(
            perturbation.occlusion,
            lambda size: (perturbation.OCCLUSION_WINDOWS**2 + 1, 0),
            "Occlusion: the score lost under a blurred window of a seventh of the side (Zeiler & Fergus, ECCV 2014).",
        ),
        "rise": Explainer(
            perturbation.rise,
            lambda size: (perturbation.RISE_MASKS, 0),
            f"RISE: the mean score over {perturbation.RISE_MASKS} random masks, each weighted by what it shows "
            "(Petsiuk et al., BMVC 2018).",
        ),
        "kernel_shap": Explainer(  # all cells and none as well
            perturbation.kernel_shap,
            lambda size: (perturbation.KERNEL_SHAP_SAMPLES + 2, 0),
            f"Kernel SHAP on 7 x 7 cells, {perturbation.KERNEL_SHAP_SAMPLES} coalitions (Lundberg & Lee, NeurIPS "
            "2017).",
        ),
        "random": _model_free(
            model_independent.random, "Uniform noise on 7 x 7 places: model-independent, no reason to be faithful."
        ),
        "centre": _model_free(
            model_independent.centre, "Closeness to the image's centre: model-independent, a centre prior alone."
        ),
        "edges": _model_free(
            model_independent.edges,
            "Magnitude of the image's Sobel gradient: model-independent (Adebayo et al., NeurIPS 2018).",
        ),
        "intensity": _model_free(
            model_independent.intensity, "The image itself, bright is salient: model-independent."
        ),
    },
)

OUTSIDE = _model_free(
    model_independent.unavailable,
    "Maps from outside, as they were given: the same for every model and target, and not sanity-tested.",
)


def explainer_of(name: str) -> Explainer:
    """The explainer of a name; of a name that no entry has, that of maps from outside: every sweep's are checked."""
    return EXPLAINERS.get(name, OUTSIDE)
