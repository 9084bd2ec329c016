"""Which of several names is an image's: those of masks, annotations and maps are paths that may lack a part."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

import pandas as pd

from cxr_ray.data.folder import ENDINGS


def without_ending(path: str) -> str:
    """Without an image's ending; other dots belong to the name, as in DICOM's identifiers.

    >>> without_ending("a/1.2.840.dcm"), without_ending("a/1.2.840")
    ('a/1.2.840', 'a/1.2.840')
    """
    pure = PurePosixPath(path)
    return str(pure.with_suffix("")) if pure.suffix.lower() in ENDINGS else str(pure)


def agreeing(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last folders agree.

    >>> agreeing(("masks", "PNEUMONIA"), ("test", "PNEUMONIA")), agreeing((), ("test",))
    (1, 0)
    """
    agree = 0
    while agree < min(len(a), len(b)) and a[-1 - agree] == b[-1 - agree]:
        agree += 1
    return agree


def shared_names(images: pd.DataFrame) -> frozenset[str]:
    """Names, without folder and ending, that several images have whose content differs: a name alone tells no image.

    Args:
        images: path and content_hash.
    """
    names = images["path"].map(lambda path: PurePosixPath(without_ending(path)).name)
    contents = images.groupby(names)["content_hash"].nunique()
    return frozenset(contents.index[contents > 1])


def paired(names: Sequence[str], path: str, shared: Collection[str] = ()) -> int | None:
    """The place among ``names`` of the one that is an image's; None: there is none, or two are as near.

    Args:
        names: paths whose last part is the image's name, without endings.
        path: of the image, without its ending.
        shared: names that several images have: then one of both paths has to be the end of the other, by a folder at
            least. Any other name may stand in folders of its own.

    >>> paired(["PNEUMONIA/1"], "test/PNEUMONIA/1", {"1"}), paired(["PNEUMONIA/1"], "test/NORMAL/1", {"1"})
    (0, None)
    >>> paired(["left/1"], "test/NORMAL/1"), paired(["a/1", "b/1"], "test/NORMAL/1")
    (0, None)
    """
    *own, last = PurePosixPath(path).parts
    best: list[int] = []
    most = 0
    for n, name in enumerate(names):
        folders = PurePosixPath(name).parts[:-1]
        agree = agreeing(folders, own)
        if last in shared and not 0 < agree == min(len(folders), len(own)):
            continue
        if not best or agree > most:
            best, most = [n], agree
        elif agree == most:
            best.append(n)
    return best[0] if len(best) == 1 else None
