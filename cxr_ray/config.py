"""The sections of a sweep: every key with its type, range, default and meaning.

Names of fills, regions, explainers and the like are plain names here; ``sweepfile`` checks that they exist.

Any value under ``model`` and ``train`` may be a search space: ``{grid: [...]}`` (every value is a group of its own),
``{choice: [...]}``, ``{uniform: [low, high]}`` or ``{loguniform: [low, high]}`` (sampled ``search.num_samples`` times).
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from cxr_ray.errors import shown
from cxr_ray.schemas import CLASSES, NAME_PATTERN, to_json

MOST = 2**31 - 1  # of whole numbers that count something
READ_AS_VALUES = ("inf", "infinity", "nan", "true", "false", "null", "none", "epoch")


def _a_name(name: str) -> str:
    """DuckDB and Polars read folders such as trial_id=epoch as dates, numbers or truth values."""
    if name in READ_AS_VALUES:
        raise ValueError(f"got {name!r}, which readers of Parquet take for a value; expected another name")
    return name


Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$", max_length=100)]
PartitionName = Annotated[Name, AfterValidator(_a_name)]  # stands in the paths of tables
Arch = Annotated[str, Field(pattern=rf"^({NAME_PATTERN}|(torchvision|timm|torchxrayvision|factory):\S+)$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Scale = Annotated[float, Field(gt=0)]
Fit = Literal["squash", "pad", "crop"]  # how images are made square
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NULLABLE = ("sequential", "verdicts", "regions", "truth", "sanity", "stability")  # sections that null turns off
CAM_LAYER = "module that class activation maps read; null: the last one with a spatial output before the head"
SEGMENTER = "torchxrayvision"  # as regions.lungs: masks by its network
PATIENT_RULES = ("folder", "file")  # as data.patient: no patterns
SPACES = ("grid", "choice", "uniform", "loguniform")


class Section(BaseModel):
    """Frozen; unknown keys, numbers in quotes and numbers that are not finite are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class Phantoms(Section):
    """What ``data.source: phantom`` renders."""

    train: int = Field(480, ge=8, le=1_000_000, description="images in the train split")
    test: int = Field(96, ge=4, le=1_000_000, description="images in the test split")
    prevalence: float = Field(0.5, gt=0, lt=1, description="share of PNEUMONIA")
    marker_correlation: float = Field(0.5, ge=0, le=1, description="P(the marker's glyph is that of the label)")


def _label(value: Any) -> Any:
    """A label as text; YAML reads 0 and true as a number and a truth value."""
    return str(value) if type(value) in (bool, int, float) else value


Label = Annotated[str, BeforeValidator(_label, json_schema_input_type=str | int | float | bool)]


class Classes(Section):
    """Which labels, or folders, are the two classes; case does not matter, and ``*`` is any label not named here.

    With ``several`` one of more classes, ``target``, is measured against the rest.
    """

    negative: list[Label] = Field(["NORMAL", "0"], min_length=1, description="labels of class 0, NORMAL in the tables")
    positive: list[Label] = Field(
        ["PNEUMONIA", "1"], min_length=1, description="labels of class 1, PNEUMONIA in the tables"
    )
    ignore: list[Label] = Field([], description="labels whose images are left out")
    several: dict[Label, list[Label]] = Field(
        {},
        description="instead of negative and positive: more than two classes and the labels of each, in the order of a "
        "network's outputs, such as {normal: [NORMAL], bacterial: [bacteria], viral: [virus]}",
    )
    target: Label | None = Field(
        None, description="the class of several that is class 1, PNEUMONIA in the tables; the rest are class 0"
    )

    @property
    def groups(self) -> dict[str, list[str]]:
        """The classes by name and their labels: two, or those of ``several``."""
        return self.several or dict(zip(CLASSES, (self.negative, self.positive), strict=True))

    @property
    def positive_group(self) -> str:
        """The name among ``groups`` of class 1."""
        return self.target or CLASSES[1]

    @model_validator(mode="after")
    def _against_the_rest(self) -> Classes:
        names = list(self.several)
        if not names and self.target is None:
            return self
        if len(names) < 3 or not all(self.several.values()) or len({name.casefold() for name in names}) < len(names):
            raise ValueError(
                f"got {shown(self.several)} as several; expected three or more classes that differ in more than case, "
                "each with its labels; use negative and positive for two"
            )
        if self.target not in names:
            raise ValueError(f"got {shown(self.target)} as target; expected one of {', '.join(names)}")
        for key in ("negative", "positive"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"got {key} beside several; expected one of them; leave one out")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Classes:
        labels = [label.strip().casefold() for group in (*self.groups.values(), self.ignore) for label in group]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"got {', '.join(map(shown, twice))} twice; expected each label in one class, once")
        return self


class Columns(Section):
    """The columns of ``data.source: table``."""

    path: str = Field("path", min_length=1, description="the image's path below data.images, or its name")
    label: str = Field("label", min_length=1, description="its label")
    labels: list[str] = Field([], description="instead of label: columns that hold 1 or 0, each named as its label")
    separator: str | None = Field(None, min_length=1, description="between several labels of one image, such as |")
    patient: str | None = Field(None, description="null: patient, where there is such a column, else the file name")
    split: str | None = Field(None, description="null: split, where there is such a column, else split by patient")
    where: dict[str, Label | list[Label]] = Field(
        {}, description="columns to the value, or values, of the rows that are used, such as {View Position: PA}"
    )


class Splits(Section):
    """Other names of the splits, in a table's column or as folders; they go before the usual names."""

    train: list[Label] = []
    val: list[Label] = []
    test: list[Label] = []

    @model_validator(mode="after")
    def _each_once(self) -> Splits:
        names = [name.strip().casefold() for name in (*self.train, *self.val, *self.test)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"got {', '.join(map(shown, twice))} twice; expected each name in one split, once")
        return self


class Data(Section):
    """Where the images come from and how they become squares."""

    source: Name = Field("folder", description="kind of source")
    path: str = Field(
        "data/chest_xray", min_length=1, description="folder, table or npz: its path; hub: kaggle or huggingface"
    )
    images: str | None = Field(None, min_length=1, description="the folder of a table's images; null: the table's own")
    columns: Columns = Columns()
    classes: Classes = Classes()
    splits: Splits = Splits()
    label: str | None = Field(
        None,
        min_length=1,
        description="a pattern with a group, found in an image's path below the folder of its class: its label, such "
        "as _(bacteria|virus)_; where it is not found, and for null, the folder's name is the label",
    )
    patient: str | None = Field(
        None,
        min_length=1,
        description="whose an image is: a pattern with a group, found in its path; folder: the first folder below its "
        "class, or below data.images; file: a patient each; null: what its name tells",
    )
    accept: list[Name] = Field([], description="suspicions that do not stop the run")
    size: int = Field(224, ge=32, le=1024, description="side of the model's input in pixels")
    fit: Fit = "squash"
    bits: int | None = Field(None, ge=9, le=16, description="bits that 16-bit images use; null: 16")
    val: Literal["own", "train"] | None = Field(
        None, description="own: the source's val split; train: taken from train; null: a folder's from train, else own"
    )
    val_share: float = Field(0.1, gt=0, le=0.5, description="share of train, by patient, that validates")
    limit: int | None = Field(
        None,
        ge=2,
        le=MOST,
        description="at most so many images of test, and of train and val together, balanced by label",
    )
    phantom: Phantoms = Phantoms()

    @field_validator("patient", "label")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        if text is None or text in PATIENT_RULES:
            return text
        try:
            groups = re.compile(text).groups
        except re.error as e:
            raise ValueError(f"got {shown(text)}, no regular expression ({e}); expected one with a group") from None
        if not groups:
            raise ValueError(f"got {shown(text)} without a group; expected one, such as 'patient(\\d+)'")
        return text


class Model(Section):
    """The network that is trained."""

    arch: Arch = Field("resnet18", description="network; also of another package, or of your own module")
    weights: str = Field("imagenet", min_length=1, description="imagenet, none, or a file with a state dict")
    freeze: Literal["none", "backbone"] = Field("none", description="backbone: only the last block and the head train")
    size: int | None = Field(None, ge=32, le=1024, description="side of its input in pixels; null: data.size")
    preprocess: Name = Field("none", description="what is done to every image before this model sees it")
    cam_layer: str | None = Field(None, min_length=1, description=CAM_LAYER)


class Train(Section):
    """How it is trained."""

    epochs: int = Field(8, ge=1, le=10_000)
    batch_size: int = Field(32, ge=2, le=65_536)
    lr: float = Field(1e-3, gt=0, lt=1, description="peak learning rate of a one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0, lt=1)
    loss: Name = "ce"
    sampler: Name = "shuffle"
    augment: Name = "light"
    labels: Literal["given", "shuffled"] = Field("given", description="shuffled: a model that has nothing to learn")
    seed: int = Field(0, ge=0, le=2**31 - 1)


class Search(Section):
    """How often each variant and grid point is sampled, by what, and whether ASHA stops the worst early."""

    searcher: Literal["random", "optuna"] = Field(
        "random",
        description="optuna: each sample follows from the trials of its variant and grid point before it (TPE)",
    )
    num_samples: int = Field(4, ge=1, le=10_000)
    scheduler: Literal["asha", "none"] = "asha"
    metric: Literal["val_auroc"] = "val_auroc"


class Checkpoint(Section):
    """A model that exists: a state dict with one or two outputs. A file that we saved says the rest itself."""

    path: str = Field(min_length=1)
    arch: Arch = Field("resnet18", description="network; also of another package, or of your own module")
    size: int | None = Field(None, ge=32, le=1024, description="side of its input; null: data.size")
    cam_layer: str | None = Field(None, min_length=1, description=CAM_LAYER)
    preprocess: Name = Field("none", description="what was done to the images that it was trained on")
    outputs: dict[str, list[Annotated[int, Field(ge=0)]]] | None = Field(
        None,
        description="which outputs of the network stand for NORMAL and for PNEUMONIA, such as {NORMAL: [0], PNEUMONIA: "
        "[1, 2]}, or for each of data.classes.several; null: as the file says, else NORMAL before PNEUMONIA, or in the "
        "order of several",
    )
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, strict=False, description="of its normalisation")
    std: tuple[Scale, Scale, Scale] = Field(IMAGENET_STD, strict=False, description="of its normalisation")

    @field_validator("outputs")
    @classmethod
    def _of_classes(cls, outputs: dict[str, list[int]] | None) -> dict[str, list[int]] | None:
        if outputs is None:
            return None
        taken = [n for columns in outputs.values() for n in columns]
        if not taken or len(set(taken)) < len(taken):
            raise ValueError(
                f"got {shown(outputs)}; expected lists of numbers from 0 for {' and '.join(CLASSES)}, or for one of "
                "them, where each output stands for itself; each number once"
            )
        return outputs

    def columns(self, classes: Classes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The outputs of the two classes, of names that are CLASSES or those of ``classes``; None: not said here."""
        if self.outputs is None:
            return None
        of_1 = (CLASSES[1], classes.positive_group)
        parts = [[n for name, found in self.outputs.items() if (name in of_1) == one for n in found] for one in (0, 1)]
        return tuple(parts[0]), tuple(parts[1])


class Explain(Section):
    """Which maps are made, and of which class's score."""

    explainers: list[Name] = Field(
        ["gradcam", "integrated_gradients", "occlusion"], description="may be empty where maps come from outside"
    )
    maps: dict[PartitionName, Annotated[str, Field(min_length=1)]] = Field(
        {},
        description="maps from outside by the name that stands beside the explainers: a folder of .npy or grey PNG "
        "files, a pattern of them (folder/*.npy), or an .npz file; each named by image_id, file name or path",
    )
    targets: list[Literal["pneumonia", "predicted"]] = Field(["pneumonia"], min_length=1)
    keep_maps: bool = True

    @model_validator(mode="after")
    def _some(self) -> Explain:
        if not self.explainers and not self.maps:
            raise ValueError("got no explainers and no maps; expected at least one of either")
        return self

    @property
    def names(self) -> list[str]:
        """What stands in the column ``explainer``: explainers, then maps from outside."""
        return [*self.explainers, *self.maps]


class Perturb(Section):
    """What is removed and restored."""

    grids: list[str] = Field(["pixel", "14"], min_length=1)
    fills: list[Name] = Field(["mean", "blur"], min_length=1)
    levels: list[Share] = Field([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], min_length=1)
    orders: list[Literal["morf", "lerf"]] = Field(["morf", "lerf"], min_length=1)
    precision: Literal["auto", "float32", "tf32", "half"] = Field(
        "float32",
        description="of scoring on GPUs; half (float16): within 1e-2 in probability, and explainers mixed with it "
        "whose maps rank as in float32; tf32: 5e-3; auto: half where it keeps its tolerance on the run's own model and "
        "images, else float32. CPUs score in float32",
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("grids"), list):
            data = {**data, "grids": [str(g) if type(g) is int else g for g in data["grids"]]}
        return data

    @field_validator("levels")
    @classmethod
    def _ascending(cls, levels: list[float]) -> list[float]:
        return sorted(levels)  # areas are integrals over them


class Sequential(Section):
    """Draws beyond the fixed ones of ``controls``, for p_value alone (Besag & Clifford, Biometrika 1991)."""

    max_draws: int = Field(199, ge=19, le=9999, description="draws of a control for a map at most, the fixed ones too")
    extreme: int = Field(10, ge=1, le=9999, description="stop once so many draws are at least as faithful as the map")


class Verdicts(Section):
    """Sequential verdicts: is a map more faithful than a control? Patients in random order, until that is decided."""

    explainers: list[Name] = Field([], description="of explain.explainers; empty: all of them")
    controls: list[Name] = Field(["other_image", "mean_map", "shifted"], min_length=1, description="one draw of each")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="chance of any wrong verdict on a model, shared by Bonferroni")
    futile: float = Field(0.6, gt=0.5, lt=1, description="a win rate shown to lie below it ends a comparison as well")
    round: int = Field(
        16, ge=1, le=4096, description="patients of a model that are scored at a time; no number changes"
    )
    fixed_design: bool = Field(True, description="false: measure no curves and no faithfulness; verdicts alone")


class Regions(Section):
    """Parts of an image that are changed on their own, against the same shapes elsewhere."""

    names: list[Name] = Field(["border", "corners", "centre"], min_length=1)
    draws: int = Field(5, ge=1, le=99, description="matched controls of each region")
    donors: int | None = Field(
        120, ge=1, le=MOST, description="validation images of each class whose pixels are swapped in; null: none"
    )
    lungs: str | None = Field(None, min_length=1, description="lung masks: a folder, or torchxrayvision; phantoms: own")
    marker: str | None = Field(None, min_length=1, description="marker masks: a folder; phantoms: own")
    edits: list[Name] = Field([], description="changes of the whole image, each scored once")


Side = Annotated[int, Field(ge=1, le=100_000)]


class Truth(Section):
    """Where experts see the finding. Maps are compared with it (table ``localisation``); no other number changes."""

    path: str | None = Field(
        None,
        min_length=1,
        description="a file of boxes, polygons or run lengths (.csv, .tsv, .parquet, .json), or a folder of masks; "
        "null: phantoms' own opacities, and none of other images",
    )
    format: Literal["auto", "boxes", "chexlocalize", "coco", "masks"] = Field(
        "auto", description="of the file; auto: as its name and content say"
    )
    labels: list[Label] = Field([], description="labels of the file that count; empty: all")
    size: tuple[Side, Side] | None = Field(
        None,
        strict=False,
        description="width and height in pixels of the images that shapes were drawn on; null: as the file says, else "
        "the images' own",
    )


class Sanity(Section):
    """Cascading randomisation of a model's weights, from the head down (Adebayo et al., NeurIPS 2018)."""

    images: int = Field(32, ge=2, le=MOST, description="test images, chosen by the seed")
    layers: list[Literal["fc", "layer4", "layer3", "layer2", "layer1"]] = Field(
        ["fc", "layer4", "layer3"],
        min_length=1,
        description="each is randomised together with those before it; fc is the head, and layer4 what has the "
        "coarsest resolution, of any network",
    )


class Stability(Section):
    """Maps of images that hardly change, and infidelity (Yeh et al., NeurIPS 2019); off unless it is asked for."""

    images: int = Field(32, ge=2, le=MOST, description="test images, chosen by the seed")
    noise: list[Annotated[float, Field(gt=0, le=0.5)]] = Field(
        [0.02], description="uniform noise: the most that a pixel changes, as a share of its range; empty: none"
    )
    draws: int = Field(10, ge=1, le=999, description="noisy copies of an image at each size")
    shifts: list[Annotated[float, Field(gt=0, le=0.2)]] = Field(
        [0.02], description="shifts down, up, right and left, as shares of the side; empty: none"
    )
    squares: int = Field(64, ge=0, le=9999, description="squares of an image that are filled, for infidelity; 0: none")

    @field_validator("noise", "shifts")
    @classmethod
    def _each_once(cls, sizes: list[float]) -> list[float]:
        return sorted(set(sizes))


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST):
        return value
    raise ValueError(f"got {shown(value)}; expected auto, or a whole number from 1")


def _auto_or_gpus(value: Any) -> Any:
    if value == "auto":
        return value
    if type(value) in (int, float) and (0 <= value <= 1 or (1 < value < 1e6 and value % 1 == 0)):
        return float(value)
    raise ValueError(f"got {shown(value)}; expected auto, 0 to 1, or a whole number")


Count = Annotated[int | Literal["auto"], PlainValidator(_auto_or_count, json_schema_input_type=int | Literal["auto"])]
Gpus = Annotated[float | Literal["auto"], PlainValidator(_auto_or_gpus, json_schema_input_type=float | Literal["auto"])]


class Resources(Section):
    """How the cluster is used; never part of what the numbers are."""

    workers: Count = Field("auto", description="actors that explain")
    gpu_per_worker: Gpus = "auto"
    gpu_per_trial: Gpus = "auto"
    cpu_per_trial: float = Field(
        1, gt=0, le=1e6, description="at least; one machine without GPUs shares its CPUs among its trials"
    )
    batch_size: Count = Field("auto", description="masked images in one forward pass")


class Track(Section):
    """Trackers that get the trials while they train, and the results; never part of what the numbers are."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="URI of an MLflow server or database, such as sqlite:///mlflow.db; its experiment has the sweep's "
        "name",
    )
    wandb: str | None = Field(
        None, min_length=1, description="project of Weights & Biases; WANDB_MODE=offline keeps it on this machine"
    )

    @property
    def targets(self) -> dict[str, str]:
        """The trackers that are asked for, and where."""
        return {key: target for key, target in self if target is not None}


class Sweep(Section):
    """One resolved sweep. ``model`` and ``train`` may hold search spaces, so they stay plain mappings here."""

    name: Name = "sweep"
    data: Data = Data()
    variants: dict[PartitionName, dict[Literal["model", "train"], dict[str, Any]]] = {}
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    search: Search = Search()
    evaluate: Literal["best_per_variant_seed", "all"] = "best_per_variant_seed"
    checkpoints: dict[PartitionName, Checkpoint] = {}
    explain: Explain = Explain()
    perturb: Perturb = Perturb()
    controls: dict[Name, Annotated[int, Field(ge=1, le=999)]] = {
        "cell_random": 5,
        "shifted": 5,
        "other_image": 5,
        "mean_map": 1,
    }
    sequential: Sequential | None = None
    verdicts: Verdicts | None = None
    regions: Regions | None = Regions()
    truth: Truth | None = Truth()
    sanity: Sanity | None = Sanity()
    stability: Stability | None = None
    resources: Resources = Resources()
    track: Track = Track()
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @property
    def hash(self) -> str:
        """16 hex digits of the sweep without resources, trackers and places of files: equal where numbers must be."""
        plain = self.model_dump(mode="json", exclude={"resources", "track"})
        for key in ("path", "images", "accept"):
            plain["data"].pop(key)
        if plain["search"]["searcher"] == "random":  # hashes are older than the key
            plain["search"].pop("searcher")
        plain["explain"]["maps"] = list(plain["explain"]["maps"])
        return hashlib.sha256(to_json(plain).encode()).hexdigest()[:16]

    @property
    def has_fixed_design(self) -> bool:
        """Whether every test image is scored against the draws of ``controls``."""
        return self.verdicts is None or self.verdicts.fixed_design

    def images_of(self, model: Model) -> tuple[int, str]:
        """Size and preprocessing of the images that a model section without spaces asks for."""
        return model.size or self.data.size, model.preprocess

    def to_yaml(self) -> str:
        """The resolved sweep as YAML that loads back to itself."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)

    def trial_points(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
        """(variant, model, train) for every variant and grid point; what is left of a space is to be sampled."""
        points = []
        for variant, changes in self.variants.items():
            sections = {
                "model": {**self.model, **changes.get("model", {})},
                "train": {**self.train, **changes.get("train", {})},
            }
            grids = [
                (section, key, value["grid"])
                for section, values in sections.items()
                for key, value in values.items()
                if isinstance(value, dict) and "grid" in value
            ]
            for chosen in itertools.product(*(values for _, _, values in grids)):
                point = copy.deepcopy(sections)
                for (section, key, _), value in zip(grids, chosen, strict=True):
                    point[section][key] = value
                points.append((variant, point["model"], point["train"]))
        return points


def explained(sweep: Mapping[str, Any]) -> list[str]:
    """``Explain.names`` of a sweep's plain data, as ``Run.sweep`` reads it; sweeps of older runs have no maps."""
    return [*sweep["explain"]["explainers"], *sweep["explain"].get("maps", {})]


WITH_SPACES: dict[str, type[Section]] = {"model": Model, "train": Train}  # sections whose values may be search spaces


def concrete(model: dict[str, Any], train: dict[str, Any]) -> tuple[Model, Train]:
    """Sampled sections, without any space left, as frozen objects."""
    return Model.model_validate(model), Train.model_validate(train)
