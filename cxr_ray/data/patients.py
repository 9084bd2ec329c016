"""Whose an image is: an inference from its file's name, and from images of identical content."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np
import pandas as pd


def patient_of(filename: str) -> tuple[str, str]:
    """(patient_id, kind) that a file name tells, in Kaggle's naming; kind is bacteria, virus, normal or unknown.

    person123_bacteria_456.jpeg is bacteria-123, IM-0115-0001.jpeg is IM-0115, NORMAL2-IM-1430-0001.jpeg is
    NORMAL2-IM-1430; any other name is a patient of its own, its stem.

    >>> patient_of("train/PNEUMONIA/person123_bacteria_456.jpeg")
    ('bacteria-123', 'bacteria')
    >>> patient_of("NORMAL2-IM-1430-0001.jpeg")
    ('NORMAL2-IM-1430', 'normal')
    >>> patient_of("scan.png")
    ('scan', 'unknown')
    """
    name = filename.rsplit("/", 1)[-1]
    if match := re.match(r"person(\d+)_(bacteria|virus)(?![a-z])", name, re.IGNORECASE):
        kind = match[2].lower()
        return f"{kind}-{match[1]}", kind
    if match := re.match(r"((?:NORMAL\d*-)?IM-\d+)-\d", name, re.IGNORECASE):
        return match[1].upper(), "normal"
    return PurePosixPath(name).stem, "unknown"


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
