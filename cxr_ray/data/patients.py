"""Whose an image is: what its path tells, and images of identical content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd


class Named(NamedTuple):
    """What a file name tells.

    patient_id: of the convention; the name without its ending where no convention is known.
    kind: bacteria, virus, normal or unknown.
    convention: the data set whose names are such; None: not known, and the patient is a guess.
    """

    patient_id: str
    kind: str
    convention: str | None


KAGGLE = "Chest X-Ray Images (Pneumonia)"
_CONVENTIONS: tuple[tuple[str, str], ...] = (  # anywhere in the path; groups patient, kind
    (KAGGLE, r"(?<![a-z])person(?P<patient>\d+)_(?P<kind>bacteria|virus)(?![a-z])"),
    (KAGGLE, r"(?<![a-z])(?P<patient>(?:NORMAL\d*-)?IM-\d+)-\d"),
    (f"{KAGGLE}, first published", r"(?<![a-z])(?P<kind>bacteria|virus|normal)-(?P<patient>\d{4,})-\d+"),
    ("NIH ChestX-ray14", r"(?<!\d)(?P<patient>000\d{5})_\d{3}(?!\d)"),
    ("CheXpert", r"(?<![a-z])patient(?P<patient>\d{5})/study\d+/"),
    ("MIMIC-CXR", r"(?<![a-z0-9])p\d{2}/p(?P<patient>\d{8})/s\d{8}/"),
    ("RSNA pneumonia challenge", r"(?P<patient>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"),
    ("Montgomery and Shenzhen", r"(?<![a-z])(?P<patient>(?:MCU|CHN)CXR_\d{4})_[01]"),
)

BY_FOLDERS = frozenset(convention for convention, pattern in _CONVENTIONS if "/" in pattern)  # their names may repeat


def patient_of(path: str) -> Named:
    """Patient and kind that a file name tells, in the naming of a known data set, wherever in the name it stands.

    person123_bacteria_456.jpeg is bacteria-123, IM-0115-0001.jpeg is IM-0115, NORMAL2-IM-1430-0001.jpeg is
    NORMAL2-IM-1430; numbers of bacteria and virus are not the same patients. BACTERIA-1008087-0001.jpeg is 1008087,
    00000013_005.png is 00000013. Any other name is a patient of its own, its stem.

    >>> patient_of("train/PNEUMONIA/person123_bacteria_456.jpeg")[:2]
    ('bacteria-123', 'bacteria')
    >>> patient_of("aug_1_NORMAL2-IM-1430-0001 (2).jpeg")[:2]
    ('NORMAL2-IM-1430', 'normal')
    >>> patient_of("scan.png")
    Named(patient_id='scan', kind='unknown', convention=None)
    """
    name = path.rsplit("/", 1)[-1]
    for convention, pattern in _CONVENTIONS:
        found = re.search(pattern, path if "/" in pattern else name, re.IGNORECASE)
        if found is None:
            continue
        patient, kind = found["patient"], found.groupdict().get("kind")
        if convention != KAGGLE:
            return Named(patient, kind.lower() if kind else "unknown", convention)
        return Named(f"{kind.lower()}-{patient}" if kind else patient.upper(), (kind or "normal").lower(), convention)
    return Named(PurePosixPath(name).stem, "unknown", None)


_WORDS = "nan none null na n/a <na> nat unknown unk undefined missing anonymous anonymized anonymised anon"
NO_PATIENT = frozenset({"", "-", "--", "?", ".", *_WORDS.split()})
FILLED_IN = ("0", "-1")  # where they stand far more often than any patient


def known_patients(names: Sequence[str], filled_in: Sequence[str] = FILLED_IN) -> list[str]:
    """Patients as a table or a list names them, one for each image; empty where a name stands for none.

    Whole numbers that went through floating point are the same patients. Those of ``filled_in`` stand for none where
    they are far more frequent than any other.

    >>> known_patients(["7", "7.0", "Anonymous", " n/a", "p1"])
    ['7', '7', '', '', 'p1']
    >>> known_patients(["0", "1", "2"]), known_patients(["0", "0", "0", "1", "2"])
    (['0', '1', '2'], ['', '', '', '1', '2'])
    """
    plain = [re.sub(r"^(-?\d+)\.0+$", r"\1", name.strip()) for name in names]
    counts = Counter(plain)
    unknown = {name for name in counts if name.casefold() in NO_PATIENT}
    most = max((n for name, n in counts.items() if name not in unknown and name not in filled_in), default=1)
    unknown |= {name for name in filled_in if counts[name] > 2 * most}
    return ["" if name in unknown else name for name in plain]


def patient_by(rule: str | None, path: str, inside: str) -> str | None:
    """The patient that ``data.patient`` tells, or None where it tells none.

    Args:
        rule: a pattern whose groups are found in ``path``; ``folder``: the first folder of ``inside``; ``file``.
        path: of the image, relative to data.path.
        inside: its path inside the folder of its class, or of a table's images.

    >>> patient_by(r"patient(\\d+)", "train/patient00042/study1/view1.jpg", "view1.jpg")
    '00042'
    >>> patient_by("folder", "train/NORMAL/p7/1/a.png", "p7/1/a.png")
    'p7'
    """
    if rule is None or rule == "file":
        return path if rule else None
    if rule == "folder":
        return inside.split("/", 1)[0] if "/" in inside else None
    found = re.search(rule, path)
    return "-".join(group for group in found.groups() if group) or None if found else None


def merged_patients(patients: pd.Series, contents: pd.Series) -> pd.Series:
    """Patients that share an image become one, under the smallest of their ids."""
    from scipy.sparse import coo_array  # a quarter of a second
    from scipy.sparse.csgraph import connected_components

    patient, _ = pd.factorize(patients)
    content, _ = pd.factorize(contents)
    n = len(patients)
    edges = coo_array((np.ones(n, np.int8), (patient, content + n)), shape=(2 * n, 2 * n))
    component = connected_components(edges, directed=False)[1][patient] if n else patient
    return patients.groupby(component).transform("min")
