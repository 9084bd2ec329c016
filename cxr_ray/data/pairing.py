"""Which of several names is an image's: those of masks, annotations and maps are paths that may lack a part."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

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


def shared_names(contents: Mapping[str, str]) -> frozenset[str]:
    """Names, and names with folders above them, that several images have whose content differs: these tell no image.

    Args:
        contents: path of each image to a digest of its content, or to anything else that no other has.

    >>> sorted(shared_names({"a/x/1.png": "p", "b/x/1.jpg": "q", "a/2.png": "p", "b/2.png": "p"}))
    ['1', 'x/1']
    """
    shared: set[str] = set()
    left = [(PurePosixPath(without_ending(path)).parts, content) for path, content in contents.items()]
    for length in range(1, max((len(parts) for parts, _ in left), default=0) + 1):
        found: dict[str, set[str]] = {}
        for parts, content in left:
            found.setdefault("/".join(parts[-length:]), set()).add(content)
        several = {name for name, of in found.items() if len(of) > 1}
        shared |= several
        left = [(parts, of) for parts, of in left if len(parts) > length and "/".join(parts[-length:]) in several]
    return frozenset(shared)


def paired(names: Sequence[str], path: str, shared: Collection[str] = (), last: str | None = None) -> int | None:
    """The place among ``names`` of the one that is an image's; None: there is none, or two are as near.

    Args:
        names: paths whose last part is the image's name, without endings.
        path: of the image, without its ending.
        shared: ``shared_names``: of such a name one of both paths has to be the end of the other, by as many folders as
            tell the image. Any other name may stand in folders of its own.
        last: what the last part of ``path`` is in the image's own path, where folders are joined in it.

    >>> paired(["PNEUMONIA/1"], "test/PNEUMONIA/1", {"1"}), paired(["PNEUMONIA/1"], "test/NORMAL/1", {"1"})
    (0, None)
    >>> paired(["left/1"], "test/NORMAL/1"), paired(["a/1", "b/1"], "test/NORMAL/1")
    (0, None)
    """
    best = claims(names, path, shared, last)
    return best[0] if len(best) == 1 else None


def claims(names: Sequence[str], path: str, shared: Collection[str] = (), last: str | None = None) -> list[int]:
    """As ``paired``: the places of all that are as near.

    >>> claims(["a/1", "b/1"], "test/NORMAL/1")
    [0, 1]
    """
    *own, name = PurePosixPath(path).parts
    last = last or name
    is_shared = PurePosixPath(last).name in shared
    best: list[int] = []
    most = 0
    for n, other in enumerate(names):
        folders = PurePosixPath(other).parts[:-1]
        agree = agreeing(folders, own)
        is_end = agree == min(len(folders), len(own))
        if is_shared and (not is_end or "/".join((*own[len(own) - agree :], last)) in shared):
            continue
        if not best or agree > most:
            best, most = [n], agree
        elif agree == most:
            best.append(n)
    return best
