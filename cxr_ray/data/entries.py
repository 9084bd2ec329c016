"""Sources of images: the files that they list and the bytes that they read."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Doubt(NamedTuple):
    """Why the user should know of a file: its kind in ``doubts``, and what of it, such as a label."""

    name: str
    about: str = ""


class Entry(NamedTuple):
    """One file of a source.

    split: train, test, val or all (a source without splits).
    class_name: NORMAL or PNEUMONIA; empty: the file is left out, and its doubts say why.
    name: the file's path inside its class folder; image_id is made of split, class_name, name and the bytes.
    path: what ``read`` takes; relative to data.path.
    problem: why the file cannot be an image; None: nothing known yet.
    patient: whose it is, where the source knows better than the file's name.
    doubts: what the user should know of it.
    group: its class under data.classes.several; None where there are two classes.
    """

    split: str
    class_name: str
    name: str
    path: str
    problem: str | None = None
    patient: str | None = None
    doubts: tuple[Doubt, ...] = ()
    group: str | None = None


Entries = list[Entry]


class Stamp(NamedTuple):
    """What tells that a file changed: its bytes, and when it was written, in nanoseconds."""

    size: int
    mtime_ns: int


class Source(Protocol):
    """A place that images come from. Cheap to construct and picklable: it travels to the workers."""

    @property
    def where(self) -> str:
        """For messages: what the user named."""
        ...

    def list(self) -> Entries:
        """Every file, in any order. Raises DataError where there is no data."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of the file at ``Entry.path``. Raises OSError."""
        ...


@runtime_checkable
class StampedSource(Source, Protocol):
    """A source whose files may stay as they are for years."""

    def stamp(self, path: str) -> Stamp | None:
        """The stamp of the file at ``Entry.path``; None where there is none. Raises OSError."""
        ...


@runtime_checkable
class AnnotatedSource(Source, Protocol):
    """A source that knows what is where in its images, and can show them without it."""

    def masks(self, path: str) -> dict[str, NDArray[np.bool_]]:
        """The name of a part to where it is, bool [H, W]; nowhere in images that lack it."""
        ...

    def version(self, path: str, change: str) -> bytes:
        """The bytes of the image's counterfactual rendering with one thing changed."""
        ...
