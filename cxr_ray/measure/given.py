"""A model and images that are in memory already, as a worker takes them: what the library does without files.

Shapes: N images, S side of an image, K outputs of a model, V side of a map.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from cxr_ray.data import images as files
from cxr_ray.data.loading import in_threads
from cxr_ray.data.truth import BOXES, TRUTH, boxes_of
from cxr_ray.errors import CheckpointError, DataError, ImageError, first_line, shown
from cxr_ray.measure.batch import in_pixel_space
from cxr_ray.measure.shards import Shard
from cxr_ray.models import ends, networks, xrayvision
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.models.outputs import alone
from cxr_ray.models.scoring_only import scripted

TRIAL = "model"  # the model's name in the tables
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
SHARD = 16  # images that a worker gets at a time, as in a sweep

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Model = nn.Module | Callable[[Tensor], Tensor]
Images = ArrayLike | Tensor | Sequence[str | Path]


class _Function(nn.Module):
    """A function of images as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@dataclass(frozen=True)
class Given:
    """A model and its images.

    Attributes:
        model: with its spec, on its own device.
        pixels: uint8, or float32 in [0, 1]: [N, 3, S, S].
        ids: one for each image, each once; every random number of an image follows from it and the seed.
        labels: 0 or 1 for each image; None: not known.
        maps: maps from outside by name, float32 [N, V, V].
        masks: of the expert truth, as ``data.truth`` makes them.
    """

    model: Classifier
    pixels: Pixels
    ids: Sequence[str]
    labels: Sequence[int] | None = None
    maps: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.mean.device

    @property
    def whole(self) -> Shard:
        """All images; without labels, they have label 0."""
        labels = self.labels if self.labels is not None else [0] * len(self)
        return Shard(TRIAL, "test", self.ids, self.ids, labels, self.pixels, masks=self.masks, maps=self.maps)

    def shard(self, ids: Sequence[str]) -> Shard:
        """Some of the images, in the order of all."""
        return self.whole.only(np.isin(self.ids, list(ids)))

    def shards(self) -> Iterator[Shard]:
        """All images, so many at a time."""
        for number, part in enumerate(self.whole.pieces(SHARD)):
            yield replace(part, name=f"{TRIAL}.test.{number:05d}")


def given(model: Model, images: Images, spec: ModelSpec | None = None, ids: Sequence[str] | None = None) -> Given:
    """A model and images as people have them.

    Args:
        model: a module in eval mode, or a function: model-space images [B, 3, S, S] to logits [B, 2] (of the negative
            and the positive class) or [B, 1] (log-odds of the positive class). It is not changed.
        images: in pixel space, uint8 or floating point in [0, 1]: [N, 3, S, S], [N, 1, S, S] or [N, S, S]; or paths of
            image files in a list, array or column, which are resized to the spec's size.
        spec: size, normalisation and classes; None: the images' size and ImageNet's normalisation.
        ids: one for each image; None: the paths, or the numbers of the images.

    Raises:
        DataError: the images are not that.
        CheckpointError: the model is not that.
    """
    if spec is not None and not isinstance(spec, ModelSpec):
        raise DataError(
            f"got a {type(spec).__name__} as spec; expected a cxr_ray.ModelSpec; give such as ModelSpec('mine', 224)."
        )
    network: Model = model
    columns, told = None, getattr(model, "notes", ())
    if isinstance(model, Classifier):
        network, spec = model.network, spec or model.spec
    elif xrayvision.is_of_package(model):
        network, columns = xrayvision.adapted(model)
    images = listed(images)
    paths = _paths(images)
    pixels = _as_pixels(images) if paths is None else _read(paths, spec)
    _check_preprocess(paths, spec)
    size = pixels.shape[-1] if spec is None else spec.size
    if pixels.shape[-1] != size:
        raise DataError(
            f"got images of {pixels.shape[-1]} x {pixels.shape[-1]} pixels; expected {size} x {size}, the spec's size; "
            "resize them, or give their paths."
        )
    names = _names(ids, paths, len(pixels))
    spec = spec or ModelSpec("given", size)
    if columns is not None:
        spec = networks.normalized(replace(spec, columns=spec.columns or columns), xrayvision.NORMALIZATION)
    classifier = _classifier(network, spec, pixels, told)
    classifier.notes = tuple(told)
    for note in alone(classifier.spec) if columns is None else ():
        if note not in told:
            classifier.notes += (note,)
            warnings.warn(f"of the model: {note}", stacklevel=4)
    return Given(classifier, pixels, names)


def listed(images: Any) -> Any:
    """Paths as a list, whichever form they come in: an array or column of texts, or what yields them, as Path.glob.

    Raises:
        DataError: one text alone, as of a folder; or texts beside other things.
    """
    if isinstance(images, str | Path):
        raise DataError(
            f"got {shown(str(images))} as images; expected a list of the paths of files; list them, as in "
            "sorted(glob.glob('folder/*.png'))."
        )
    if isinstance(images, Iterator):
        images = list(images)
    kind = getattr(getattr(images, "dtype", None), "kind", None)
    if kind in ("O", "U", "T") and np.ndim(images) == 1:  # arrays and columns of pandas
        images = list(images)
    texts = [isinstance(i, str | Path) for i in images] if isinstance(images, list | tuple) else []
    if any(texts) and not all(texts):
        raise DataError(
            f"got {len(texts)} images, of which {texts.count(False)} are no paths (such as "
            f"{shown(images[texts.index(False)])}); expected a path for each; leave out what has none."
        )
    return images


def _paths(images: Any) -> list[str] | None:
    """Texts of paths; None for anything else."""
    if isinstance(images, (list, tuple)) and images and all(isinstance(i, (str, Path)) for i in images):
        return [str(path) for path in images]
    return None


def _check_preprocess(paths: Sequence[str] | None, spec: ModelSpec | None) -> None:
    """Refuse a preprocessing that only files go through."""
    if paths is None and spec is not None and spec.preprocess != "none":
        raise DataError(
            f"got a spec with preprocess {spec.preprocess!r} for images in memory, which are taken as they are; "
            "expected paths, whose files go through it, or images that did; give paths, or preprocess='none' in the "
            "spec of such images."
        )


def _names(ids: Any, paths: list[str] | None, n: int) -> list[str]:
    """An id for each of N images, each once."""
    if ids is not None and (isinstance(ids, str) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) != 1):
        raise DataError(f"got ids {shown(ids)}; expected one for each image, each once; give a list.")
    ids = ids.tolist() if isinstance(ids, Tensor) else ids
    names = [str(i) for i in ids] if ids is not None else paths or [f"{i:06d}" for i in range(n)]
    if len(names) != n or len(set(names)) != n:
        raise DataError(
            f"got {len(names)} ids, {len(set(names))} of them different, for {n} images; expected one for each image, "
            "each once."
        )
    return names


def _read(paths: Sequence[str], spec: ModelSpec | None) -> NDArray[np.uint8]:
    if spec is None:
        raise DataError(
            "got paths of images without a spec; expected spec=cxr_ray.ModelSpec(...), whose size they are resized to; "
            "give it."
        )

    def load(path: str) -> NDArray[np.uint8]:
        try:
            pixels = files.decode(Path(path).expanduser().read_bytes(), spec.size, spec.fit or "squash")
            return files.preprocess(pixels, spec.preprocess)
        except (OSError, ImageError) as e:
            raise DataError(f"got {path}, which cannot be read ({e}); expected an image; leave it out.") from None

    return np.stack(in_threads(load, paths))


def told_dark(images: Any) -> str | None:
    """What to say of files that use fewer bits than they say, and are read dark (``data.images.depth``), if any do."""
    paths = _paths(images) or ()  # as listed
    dark = {}
    for path in paths:
        with contextlib.suppress(OSError, ImageError):  # told by whoever reads them
            found = files.depth(Path(path).expanduser().read_bytes())
            if found is not None and 0 < found[0] < 2 ** (found[1] - 1):
                dark[path] = found
    if not dark:
        return None
    path, (top, stored) = next(iter(dark.items()))
    return (
        f"{len(dark)} of {len(paths)} images end far below their {stored} bits ({path} at {top}, as "
        f"{top.bit_length()} bits would) and are read too dark; scale them, or name data.bits in a sweep"
    )


def tell_dark(images: Any) -> None:
    """Warn of what ``told_dark`` says."""
    if (dark := told_dark(images)) is not None:
        warnings.warn(dark, stacklevel=4)


def array_of(value: Any, what: str) -> NDArray[Any]:
    """What can be an array. Raises DataError where it cannot, as lists of different lengths."""
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (ValueError, TypeError) as e:
        raise DataError(
            f"got {what} that make no array ({first_line(e)}); expected numbers, as many in each row; give these."
        ) from None


def _as_pixels(images: Any) -> Pixels:
    """[N, 3, S, S], uint8 or float32."""
    array = array_of(images, "images")
    if array.ndim == 3 and len(array) == 3:
        warnings.warn(
            f"images of shape {list(array.shape)} are taken for three grey images; give one of three channels as "
            "images[None], and three grey ones as images[:, None]",
            stacklevel=5,
        )
    array = array[:, None] if array.ndim == 3 else array
    square = array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[2] == array.shape[3]
    if not square or not len(array):
        raise DataError(
            f"got images of shape {list(np.shape(images))}; expected [N, 3, S, S], [N, 1, S, S] or [N, S, S], N at "
            "least 1; put channels first, and make them square; or give a list of paths."
        )
    array = np.broadcast_to(array, (len(array), 3, *array.shape[2:]))
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"got images of type {array.dtype}; expected uint8, or floating point in [0, 1]; convert them.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"got images with values from {low:g} to {high:g}; expected uint8, or [0, 1]: images before they are "
            "normalised, which the spec's mean and std do; give those."
        )
    return array.astype(np.float32)


def _classifier(model: Model, spec: ModelSpec, pixels: Pixels, told: Sequence[str]) -> Classifier:
    """The model with its spec, whose number of outputs is seen on one image; ``told``: notes that its reader told."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given, whose layers can be read
    model = model.module if isinstance(model, PARALLEL) else model
    model = getattr(model, "_orig_mod", model)
    network = model if isinstance(model, nn.Module) else _Function(model)
    if isinstance(model, torch.jit.ScriptModule):
        network = scripted(model)
    elif any(t.is_inference() for t in (*network.parameters(), *network.buffers())):
        network = copy.deepcopy(network)  # made in inference mode, where no gradient can be had
    if isinstance(model, nn.Module) and any(getattr(module, "training", False) for module in model.modules()):
        raise CheckpointError(
            "got a model in training mode, or a layer of it, whose logits change from pass to pass; expected eval "
            "mode; call model.eval(), or before torch.export, whose modules keep theirs."
        )
    device = next(model.parameters(), torch.empty(0)).device if isinstance(model, nn.Module) else torch.device("cpu")
    classifier = Classifier(network, spec).eval()
    classifier.mean, classifier.std = classifier.mean.to(device), classifier.std.to(device)
    image = in_pixel_space(torch.from_numpy(np.array(pixels[:1]))).to(device)
    try:
        logits = ends.scored(network, classifier.normalize(image))
    except Exception as e:  # networks fail in as many ways as there are networks
        raise CheckpointError(
            f"got a model that cannot score an image of {list(image.shape)} ({first_line(e)}); expected a module or "
            f"function of [B, 3, S, S] in model space; {_way_out(model)}."
        ) from e
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    columns = [n for part in spec.columns or () for n in part]
    if shape not in ([1, 1], [1, 2]) and not (columns and isinstance(logits, Tensor) and logits.ndim == 2):
        raise CheckpointError(
            f"got {shape} as the logits of one image; expected a tensor [1, 2] (negative and positive class) or [1, 1] "
            "(log-odds of the positive class); wrap the model in a function that gives these, or say with the spec's "
            "columns which outputs are which."
        )
    if columns and max(columns) >= logits.shape[1]:
        raise CheckpointError(
            f"got columns {spec.columns} for a model of {logits.shape[1]} outputs; expected numbers from 0 to "
            f"{logits.shape[1] - 1}; give those."
        )
    classifier.spec = replace(spec, outputs=logits.shape[1])
    images = classifier.normalize(image)
    notes = ends.require_logits("a model", classifier, images, logits)
    ends.require_steady("a model", classifier, images, logits)
    _require_finite(classifier, logits)
    for note in notes:
        if note not in told:
            warnings.warn(f"of the model: {note}", stacklevel=5)
    return classifier


def _way_out(model: Model) -> str:
    """What to do with a model that cannot score images."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} if isinstance(model, nn.Module) else set()
    if kinds and torch.float32 not in kinds:
        kind = str(kinds.pop()).removeprefix("torch.")
        return (
            f"its weights are {kind} and the images float32: call model.float(), or wrap it in a function that converts"
        )
    return "give the size that it was made for, or wrap it in such a function"


def _require_finite(classifier: Classifier, logits: Tensor) -> None:
    """Refuse a model that gives no finite logits for an image, nor for noise. Raises CheckpointError."""
    if torch.isfinite(logits).all():
        return
    size = classifier.spec.size
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(logits.device)
    with torch.no_grad():
        of_noise = classifier.network(classifier.normalize(noise))
    if not torch.isfinite(of_noise).all():
        raise CheckpointError(
            f"got a model that gives {of_noise.flatten()[0]:g} for noise as for an image; expected finite logits; give "
            "weights, mean and std that are finite and not 0."
        )


def maps_of(name: str, maps: Any, n: int, size: int) -> NDArray[np.float32]:
    """Maps of N images, one each, float32 [N, V, V]; NaN where there is none. V is at most ``size``, the images' side.

    Larger ones are made smaller as a sweep does it, which is told.

    Raises:
        DataError: another number or shape.
    """
    array = array_of(maps, "maps")
    is_map = array.dtype.kind in "fiub" and array.ndim == 3
    if not is_map or len(array) != n or array.shape[1] != array.shape[2] or not array.shape[1]:
        raise DataError(
            f"got maps of shape {list(array.shape)} and type {array.dtype}; expected [{n}, V, V]: a square map of each "
            "image, of one number a place; give those."
        )
    array = array.astype(np.float32)
    if array.shape[1] <= size:
        return array
    warnings.warn(
        f"the maps {name!r} of {array.shape[1]} x {array.shape[1]} are larger than the images: they are resized to "
        f"{size} x {size}, bilinearly and antialiased, as a sweep resizes maps from files",
        stacklevel=6,
    )
    nowhere = np.full((size, size), np.nan, np.float32)
    return np.stack([files.fit_map(of, size) if np.isfinite(of).all() else nowhere for of in array])


def truth_of(truth: Any, size: int, n: int) -> dict[str, NDArray[np.bool_]]:
    """An expert truth of N images, bool [N, size, size] each, and its bounding boxes.

    Raises:
        DataError: another shape or type.
    """
    array = array_of(truth, "a truth")
    if array.shape != (n, size, size) or array.dtype != bool:
        raise DataError(
            f"got a truth of shape {list(array.shape)} and type {array.dtype}; expected bool [{n}, {size}, {size}]: "
            "where the finding is in each image; give that."
        )
    return {TRUTH: array, BOXES: np.stack([boxes_of(mask) for mask in array])}
