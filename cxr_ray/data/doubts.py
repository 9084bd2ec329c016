"""What is doubtful about the data: told in one line each, and a suspicion stops the run unless it is accepted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from cxr_ray.data.entries import Entry
from cxr_ray.errors import DataError
from cxr_ray.registry import Registry

MOST_SHOWN = 3  # kinds or examples in one line


@dataclass(frozen=True)
class Suspicion:
    """One kind of doubt that stops the run unless ``data.accept`` names it.

    Attributes:
        got: what was found; ``{n}`` images (or rows, or patients), ``{about}`` which ones.
        expected: what was expected instead.
        do: what to do about it.
        caption: what happens to them where it is accepted, a sentence.
    """

    got: str
    expected: str
    do: str
    caption: str


SUSPICIONS: Registry[Suspicion] = Registry(
    "suspicion",
    {
        "other_labels": Suspicion(
            "{n} images whose label is in no class ({about})",
            "each label in data.classes",
            "name it there (negative, positive or ignore)",
            "Images whose label is in no class of data.classes are left out.",
        ),
        "both_labels": Suspicion(
            "{n} images with labels of both classes, or rows that contradict each other ({about})",
            "labels of one class for each image",
            "correct the labels",
            "Images with labels of both classes, or rows that contradict each other, count as positive where one label "
            "is positive, else as the class that one label names.",
        ),
        "masks": Suspicion(
            "{n} files that look like masks, not images ({about})",
            "images alone",
            "move them elsewhere",
            "Files that look like masks are left out.",
        ),
        "bit_depth": Suspicion(
            "{n} images of 16 bits, or DICOM files without a window, whose values {about}",
            "values up to the end of their range",
            "set data.bits",
            "Images that use fewer bits than they say are read as dark as they are stored.",
        ),
        "bits_too_small": Suspicion(
            "{n} images of those that were read with grey values beyond data.bits ({about})",
            "values within data.bits",
            "raise data.bits",
            "Images with grey values beyond data.bits stand in the table errors.",
        ),
        "stretched": Suspicion(
            "{n} images whose mask or annotations have other proportions ({about})",
            "the proportions of the image's file",
            "save masks over the image as it is in its file, and correct the sizes of annotations",
            "Masks and annotations of other proportions than their image are stretched over it, as over a squashed "
            "copy of it.",
        ),
        "missing_files": Suspicion(
            "{n} rows whose image is not there ({about})",
            "a file for each row, below data.images",
            "set data.images and data.columns.path",
            "Rows whose image is not there stand in the table errors.",
        ),
        "no_patient": Suspicion(
            "{n} images whose patient is not told ({about})",
            "a patient for each, by data.patient or data.columns.patient",
            "correct the pattern or the table",
            "The patient of images that data.patient or the table does not tell is inferred from the file name.",
        ),
        "equal_stems": Suspicion(
            "{n} names of files or patients that stand in several folders and tell no patient ({about})",
            "names that tell the patient",
            "set data.patient (a pattern, folder or file)",
            "Images of one file name, but for folder and ending, or of one number that viewers give (IM-0001), count "
            "as one patient.",
        ),
        "shared_patients": Suspicion(
            "{n} patients in more than one split ({about})",
            "each patient in one split",
            "split by patient",
            "Patients in more than one split stay in each, which makes results on test too good.",
        ),
    },
)

TOLD = {  # kinds that are told and stop nothing
    "ignored": "Images left out, as data.classes.ignore says",
    "by_star": "Images whose label no class names, in the class of *",
    "elsewhere": "Images left out, as data.columns.where says",
    "by_name": "Images found by the end of their path, not by the whole",
    "unread_columns": "Columns that are not read, though their name may be meant",
    "true_false": "Labels True and False, taken as 1 and 0",
    "unlisted": "Image files that stand in no row of the table, not used",
    "loose": "Image files beside the class folders, not used",
    "other_folders": "Folders beside those of the splits, not used",
}


@dataclass(frozen=True)
class Remark:
    """Something doubtful that was found.

    Attributes:
        name: key of SUSPICIONS or TOLD.
        n: of how many images, rows or patients.
        about: which ones, the most frequent or the first.
    """

    name: str
    n: int
    about: str

    @property
    def got(self) -> str:
        """What was found."""
        text = SUSPICIONS[self.name].got if self.name in SUSPICIONS else "{n} ({about})"
        return text.format(n=self.n, about=self.about)

    @property
    def sentence(self) -> str:
        """For the user who has to accept it."""
        kind = SUSPICIONS[self.name]
        return f"got {self.got}; expected {kind.expected}; {kind.do}, or confirm with data.accept: [{self.name}]."

    @property
    def note(self) -> str:
        """For the user who need not accept it, or who did."""
        caption = SUSPICIONS[self.name].caption if self.name in SUSPICIONS else TOLD[self.name]
        return f"{caption.rstrip('.')}: {self.got}."


def remarks(entries: Iterable[Entry]) -> list[Remark]:
    """What the doubts of all entries come to, one remark a kind."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        for doubt in entry.doubts:
            counts.setdefault(doubt.name, Counter())[doubt.about] += 1
    return [Remark(name, sum(found.values()), _most(found)) for name, found in counts.items()]


def _most(found: Counter[str]) -> str:
    """The most frequent with their counts, or the first of those that stand once."""
    common = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_SHOWN]
    if common[0][1] == 1:
        return examples(sorted(found))
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return ", ".join(f"{about}: {count}" for about, count in common) + more


def examples(names: Sequence[str]) -> str:
    """The first names of many.

    >>> examples(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c and 4 more'
    """
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


def settle(found: Iterable[Remark], accept: Collection[str]) -> list[str]:
    """Notes on what is doubtful.

    Raises:
        DataError: a suspicion that is not accepted; one line each.
    """
    found = list(found)
    stopping = [remark for remark in found if remark.name in SUSPICIONS and remark.name not in accept]
    if stopping:
        raise DataError("\n".join(remark.sentence for remark in stopping))
    return [remark.note for remark in found]
