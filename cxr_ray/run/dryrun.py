"""The lines of ``--dry-run``: the resolved sweep, its trials, and the forward passes that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cxr_ray.measure import needs
from cxr_ray.measure.cost import (
    depends_on_channels,
    passes_of_donor_swaps,
    passes_of_sanity,
    passes_of_stability,
    passes_of_validation,
    passes_of_verdicts,
    passes_per_image,
)
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import Classifier, ModelSpec
from cxr_ray.run.context import RunContext
from cxr_ray.run.passes import forward_rate
from cxr_ray.run.terminal import duration
from cxr_ray.run.trial_plans import Point, TrialPlan, points


@dataclass(frozen=True)
class Cost:
    """Forward passes at one size of images, a backward pass counted as two.

    Attributes:
        size: side of the images in pixels.
        channels: of the networks' feature maps, where an explainer makes a pass for each; else 0.
        models: how many are explained; trained_images: images x epochs x trials.
        whole: models that are files that only score, which sanity leaves out.
        images: of the test split; validation, checked, altered: images of val, of sanity and of stability.
        recipients: of donor swaps; donors: of each class a recipient; swaps: passes of a recipient.
        patients: of the test split.
        of_validation: passes of a validation image.
        each: passes of a test image and target; sanity, stability: of an image that these look at; verdicts: of a
            patient of sequential verdicts, at most; with their formulas.
    """

    size: int
    channels: int
    models: int
    whole: int
    images: int
    validation: int
    of_validation: int
    checked: int
    trained_images: int
    each: tuple[int, str]
    sanity: tuple[int, str]
    recipients: int
    donors: int
    swaps: int
    patients: int
    verdicts: tuple[int, str]
    altered: int
    stability: tuple[int, str]

    @property
    def swapping(self) -> int:
        """Passes of donor swaps."""
        return self.models * self.recipients * self.swaps

    @property
    def explaining(self) -> int:
        """Passes to explain, one target an image."""
        return self.models * (self.images * self.each[0] + self.validation * self.of_validation)

    @property
    def checking(self) -> int:
        """Passes of sanity, one target an image."""
        return (self.models - self.whole) * self.checked * self.sanity[0]

    @property
    def altering(self) -> int:
        """Passes of stability, one target an image."""
        return self.models * self.altered * self.stability[0]

    @property
    def deciding(self) -> int:
        """Passes of sequential verdicts, one target a patient, at most."""
        return self.models * self.patients * self.verdicts[0]

    @property
    def training(self) -> int:
        """Passes to train, at most."""
        return 3 * self.trained_images

    @property
    def total(self) -> int:
        """All of them."""
        return self.explaining + self.checking + self.altering + self.swapping + self.deciding + self.training

    def lines(self, size: str, most: str) -> Iterator[str]:
        """What the user reads.

        Args:
            size: " at 224 x 224" where sizes differ, and the channels where these do.
            most: "at most " or nothing.
        """
        each, formula = self.each
        yield f"Forward passes a test image and target{size}: {most}{each:,} = {formula}"
        yield (
            f"Forward passes to explain{size}, one target an image: {most}{self.explaining:,} = {self.models} x "
            f"({self.images} x {each:,} + {self.validation} x {self.of_validation})"
        )
        if self.checked and self.models > self.whole:
            each, formula = self.sanity
            yield f"Forward passes an image and target of sanity{size}: {each:,} = {formula}"
            yield (
                f"Forward passes of sanity{size}, one target an image: {self.checking:,} = "
                f"{self.models - self.whole} x {self.checked} x {each:,}"
            )
        if self.altered:
            each, formula = self.stability
            yield f"Forward passes an image and target of stability{size}: {each:,} = {formula}"
            yield (
                f"Forward passes of stability{size}, one target an image: {self.altering:,} = {self.models} x "
                f"{self.altered} x {each:,}"
            )
        if self.recipients:
            yield (
                f"Forward passes of donor swaps{size}: {self.swapping:,} = {self.models} x {self.recipients} "
                f"recipients x {self.swaps:,} (donor images of each class a recipient: {self.donors})"
            )
        if self.deciding:
            each, formula = self.verdicts
            yield f"Forward passes a patient and target of verdicts{size}: at most {each:,} = {formula}"
            yield (
                f"Forward passes of verdicts{size}, one target a patient: at most {self.deciding:,} = {self.models} x "
                f"{self.patients} x {each:,}"
            )
        yield (f"To train{size}: at most {self.training:,} (images x epochs x trials, a backward pass counted as two)")


def lines(context: RunContext) -> Iterator[str]:
    """What would be done, line by line; measures this machine for about a second a size of images."""
    sweep, manifest = context.sweep, context.manifest
    yield sweep.to_yaml()
    yield from manifest.notes
    yield f"\nTrials to train: {len(context.trials)}"
    searched = {p.group: p for p in points(sweep) if p.spaces} if sweep.search.searcher == "optuna" else {}
    yield from (f"  {trial.trial_id}: {_sampled(trial)}" for trial in context.trials if trial.group not in searched)
    yield from (f"  {sweep.search.num_samples} of {_searched(point)}" for point in searched.values())
    costs = planned_costs(context)
    n_test, n_val = (len(manifest.rows(split)) for split in ("test", "val"))
    yield (f"\nModels to explain: {sum(c.models for c in costs)}; test images: {n_test}; validation images: {n_val}")
    for name, model in _networks(context):
        yield from needs.possible(name, model)
    most = "at most " if sweep.sequential else ""
    seconds, rates = 0.0, []
    for cost in costs:
        yield from cost.lines(_kind(cost, costs), most)
        rate = forward_rate(cost.size)
        seconds += cost.total / rate
        rates.append(f"{rate:,.0f} forward passes a second at {cost.size} x {cost.size}")
    rates = list(dict.fromkeys(rates))
    if len(costs) > 1:
        bound = "at most " if sweep.sequential or sweep.verdicts else ""
        yield f"All together: {bound}{sum(c.total for c in costs):,}"
    device = "GPU" if torch.cuda.is_available() else "CPU"
    yield (
        f"This machine does about {', '.join(rates)} ({device}): about {duration(seconds)} for these alone. The start "
        "of Ray, statistics and the page come on top: a minute or two in a small run. Nothing was started."
    )


def planned_costs(context: RunContext) -> list[Cost]:
    """The forward passes of a run, by size of its models' images."""
    sweep, manifest = context.sweep, context.manifest
    # of each group of rivals one is explained, of the size of the last
    explained = {(t.trial_id if sweep.evaluate == "all" else t.rivals): t for t in context.trials}
    kinds = [_size_and_channels(context, t) for t in explained.values()]
    kinds += [(ref.size, ref.channels) for ref in context.given.values()]
    trained = [_size_and_channels(context, t) for t in context.trials]
    epochs: Counter[tuple[int, int]] = Counter()
    for trial, kind in zip(context.trials, trained, strict=True):
        epochs[kind] += trial.train.epochs
    n_train, n_checked = len(manifest.training_rows()), len(context.sanity_images())
    swaps = context.donors()
    return [
        Cost(
            size=size,
            channels=channels,
            models=kinds.count((size, channels)),
            whole=sum(r.only_scores and (r.size, r.channels) == (size, channels) for r in context.given.values()),
            images=len(manifest.rows("test")),
            validation=len(manifest.rows("val")),
            of_validation=passes_of_validation(sweep),
            checked=n_checked,
            trained_images=epochs[size, channels] * n_train,
            each=passes_per_image(sweep, size, channels),
            sanity=passes_of_sanity(sweep, size, channels),
            recipients=swaps["image_id"].nunique(),
            donors=swaps["draw"].nunique(),
            swaps=passes_of_donor_swaps(sweep, swaps["draw"].nunique()),
            patients=manifest.rows("test")["patient_id"].nunique(),
            verdicts=passes_of_verdicts(sweep),
            altered=len(context.stability_images()),
            stability=passes_of_stability(sweep, size, channels),
        )
        for size, channels in sorted({*kinds, *trained})
    ]


def _size_and_channels(context: RunContext, trial: TrialPlan) -> tuple[int, int]:
    size = context.sweep.images_of(trial.model)[0]
    return size, needs.of_trained(trial.spec(size)) if depends_on_channels(context.sweep) else 0


def _kind(cost: Cost, costs: list[Cost]) -> str:
    """What tells a cost from the others."""
    text = f" at {cost.size} x {cost.size}" if len(costs) > 1 else ""
    return f"{text} with {cost.channels:,} channels" if len({c.channels for c in costs}) > 1 else text


def _networks(context: RunContext) -> Iterator[tuple[str, Classifier]]:
    """Each kind of network that is to be trained, with random weights, and each given model."""
    specs: dict[ModelSpec, str] = {}
    for trial in context.trials:
        spec = replace(trial.spec(context.sweep.images_of(trial.model)[0]), variant="", preprocess="none")
        specs.setdefault(spec, trial.variant)
    yield from ((variant, networks.build(spec.arch, spec)) for spec, variant in specs.items())
    for name, ref in context.given.items():
        yield name, checkpoints.load(ref.checkpoint, ref.spec, context.sweep.data.classes)


def _sampled(trial: TrialPlan) -> str:
    return _told(trial.train.model_dump(), trial.model.model_dump())


def _searched(point: Point) -> str:
    """What Optuna chooses of a variant and grid point, among what is given."""
    sections = {name: dict(keys) for name, keys in point.sections.items()}
    for name, keys in point.spaces.items():
        sections[name] |= {key: " ".join(map(str, next(iter(space.items())))) for key, space in keys.items()}
    return (
        f"{point.variant}, by Optuna, each after the results before it: {_told(sections['train'], sections['model'])}"
    )


def _told(train: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    values = {**train, **{k: v for k, v in model.items() if v is not None}}
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
