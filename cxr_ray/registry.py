"""Registries: the entries of one kind by name. To extend the package is one function and one entry in one of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from cxr_ray.errors import UnknownNameError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Names of one kind to their entries, in the order in which they are shown.

    Raises:
        UnknownNameError: where a name is looked up that does not exist.

    >>> fills = Registry("fill", {"mean": 1, "blur": 2})
    >>> fills["mean"]
    1
    >>> fills["bluur"]
    Traceback (most recent call last):
        ...
    cxr_ray.errors.UnknownNameError: got the fill 'bluur'. Did you mean 'blur'? Expected one of: mean, blur.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]):
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UnknownNameError(f"got the {self.kind} {name!r}.{did_you_mean(name, self)}")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest known name, if one is near, and all of them.

    >>> did_you_mean("grdcam", ["gradcam", "saliency"])
    " Did you mean 'gradcam'? Expected one of: gradcam, saliency."
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" Expected one of: {', '.join(known)}."
