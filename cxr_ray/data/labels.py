"""Labels as the data name them, to the two classes."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cxr_ray.config import Classes, Splits
from cxr_ray.data.doubts import examples
from cxr_ray.data.entries import Doubt
from cxr_ray.errors import DataError, shown
from cxr_ray.schemas import CLASSES

NEGATIVE, POSITIVE = CLASSES
LEFT_OUT = ""  # as class_name of an entry
OTHERS = "*"  # any label that is not named
UNCERTAIN = "-1"
TRUE_FALSE = {"true": "1", "false": "0"}  # of which labels may consist
SPLITS = {
    **{"train": "train", "training": "train"},
    **{"test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
}


def plain(label: str) -> str:
    """A label as labels are compared.

    >>> [plain(text) for text in (" Normal", "1.0", "-1.00", "10")]
    ['normal', '1', '-1', '10']
    """
    return re.sub(r"^(-?\d+)\.0+$", r"\1", label.strip()).casefold()


@dataclass(frozen=True)
class ClassMap:
    """The class of an image with some labels, as ``data.classes`` says."""

    classes: Classes

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        groups = {**self.classes.groups, LEFT_OUT: self.classes.ignore}
        return {plain(label): name for name, labels in groups.items() for label in labels}

    def _class(self, group: str) -> str:
        """The class of a group, of two or of several."""
        return group and (POSITIVE if group == self.classes.positive_group else NEGATIVE)

    def named(self, label: str) -> bool:
        """Whether a label is that of a class by its own name, not by ``*``."""
        return self._groups.get(plain(label), LEFT_OUT) != LEFT_OUT

    def of(
        self, labels: Iterable[str], values: Mapping[str, Collection[str]] | None = None
    ) -> tuple[str, tuple[Doubt, ...]]:
        """The class, or LEFT_OUT, and what is doubtful. No label counts as an empty one.

        ``values``, of labels with a column each, are what an image's rows say in it: 1, 0 or another, which is doubtful
        where they are of several classes.

        A label that is named goes before ``*``, which takes no value of another class's label, such as Pneumonia=-1.
        Labels of several classes, each named, count as class 1 where one of them is its, else as the first of them, and
        are doubtful; so is -1 beside a label that is named.

        >>> ClassMap(Classes(negative=["*"], positive=["Pneumonia"])).of(["Edema", "pneumonia"])
        ('PNEUMONIA', ())
        """
        group, doubts = self._found(list(labels) or [""])
        differ = [label for label, found in (values or {}).items() if self._differ(label, found)]
        if differ and all(doubt.name != "both_labels" for doubt in doubts):
            about = [f"{label}={value}" for label in differ for value in sorted((values or {})[label])]
            doubts = (*doubts, Doubt("both_labels", " and ".join(about)))
        return self._class(group), doubts

    def _differ(self, label: str, values: Collection[str]) -> bool:
        """Whether the values of a label are of several classes, at least one of them by name."""
        names = {"1": label, "0": OTHERS}
        named = [plain(names.get(value, f"{label}={value}")) for value in values]
        groups = {self._groups.get(name, LEFT_OUT) for name in named}
        return len(groups) > 1 and any(name != OTHERS and self._groups.get(name, LEFT_OUT) for name in named)

    def group(self, labels: Iterable[str]) -> str | None:
        """The name under ``data.classes.several`` of an image with some labels; None where there are two classes.

        >>> three = {"normal": ["NORMAL"], "bacterial": ["bacteria"], "viral": ["virus"]}
        >>> ClassMap(Classes(several=three, target="viral")).group(["Bacteria"])
        'bacterial'
        """
        return (self._found(list(labels) or [""])[0] or None) if self.classes.several else None

    def _found(self, labels: list[str]) -> tuple[str, tuple[Doubt, ...]]:
        """The group of some labels, or LEFT_OUT, and what is doubtful."""
        named = {self._groups[plain(label)] for label in labels if self._groups.get(plain(label), LEFT_OUT)}
        uncertain = {self._groups.get(UNCERTAIN, LEFT_OUT)} if UNCERTAIN in map(plain, labels) else set()
        if len(named) > 1 or (named and uncertain - named):
            first = next(name for name in (self.classes.positive_group, *self.classes.groups) if name in named)
            return first, (Doubt("both_labels", " and ".join(sorted(labels))),)
        if named:
            return named.pop(), ()
        unnamed = [label for label in labels if plain(label) not in self._groups]
        if unnamed and OTHERS in self._groups and self._groups[OTHERS] != LEFT_OUT:
            about = {self._groups.get(plain(label.rpartition("=")[0]), self._groups[OTHERS]) for label in unnamed}
            if about != {self._groups[OTHERS]}:  # such as Pneumonia=-1: what may be a class's own label is no other one
                return LEFT_OUT, (Doubt("other_labels", " and ".join(sorted(labels))),)
            return self._groups[OTHERS], (Doubt("by_star", " and ".join(filter(None, sorted(labels))) or "no label"),)
        kind = "ignored" if OTHERS in self._groups or not unnamed else "other_labels"
        return LEFT_OUT, (Doubt(kind, " and ".join(sorted(labels)) or "no label"),)


def meaning(classes: Classes) -> list[str]:
    """A note on what the two classes stand for, where that is not the usual.

    >>> meaning(Classes(negative=["*"], positive=["Edema"]))
    ['NORMAL stands for every other label, PNEUMONIA for Edema.']
    """
    if classes == Classes():
        return []
    if classes.several:
        rest = " or ".join(name for name in classes.several if name != classes.target)
        return [f"{NEGATIVE} stands for {rest}, {POSITIVE} for {classes.target}: one class against the rest."]
    negative, positive = (
        " or ".join("every other label" if label == OTHERS else label for label in labels)
        for labels in (classes.negative, classes.positive)
    )
    return [f"{NEGATIVE} stands for {negative}, {POSITIVE} for {positive}."]


def split_names(others: Splits) -> dict[str, str]:
    """Names of splits, case-folded, to train, val and test; ``others`` are those of ``data.splits``.

    >>> split_names(Splits(test=["Holdout", "val"]))["val"]
    'test'
    """
    given = {"train": others.train, "val": others.val, "test": others.test}
    return SPLITS | {plain(name): split for split, names in given.items() for name in names}


def require_splits(others: Splits, have: Iterable[str], where: str) -> None:
    """Raises DataError where none of the names of a split in ``data.splits`` is among those of the data."""
    known = sorted(set(have))
    has = f"it has {examples(known)}" if known else "it has no splits"
    for split in ("train", "val", "test"):
        names = getattr(others, split)
        if names and not {plain(name) for name in names} & {plain(name) for name in known}:
            raise DataError(
                f"got data.splits.{split}: {shown(names)}, of which {where} has none ({has}); "
                "expected names of its splits; correct them."
            )


def split_of(text: str, names: Mapping[str, str], where: str) -> str:
    """The split that a table names.

    Raises:
        DataError: it is no split's name.
    """
    if (split := names.get(plain(text))) is None:
        raise DataError(
            f"got {where} with the split {shown(text)}; expected one of {', '.join(names)}; name it in data.splits, "
            f"such as {{test: [{text or 'holdout'}]}}."
        )
    return split
