"""Every number on the page stands in a table of the run, in the sweep's settings, or counts rows of a table."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pytest

from cxr_ray.analysis.hypotheses.registry import TESTED
from cxr_ray.data.sources import SOURCES
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.localisation import LOCALISATION
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.regions import REGIONS
from cxr_ray.report import page
from cxr_ray.report.document import reading
from cxr_ray.report.galleries import GALLERY
from cxr_ray.report.glossary import GLOSSARY
from cxr_ray.report.load import load, optional
from cxr_ray.report.sections import (
    advantages,
    answer,
    hypotheses,
    localisation,
    lungs,
    observations,
    ranking,
    sanity,
    sequential,
    signs,
    stability,
)
from cxr_ray.results import open_run
from cxr_ray.schemas import TABLES
from tests.builders.pages import page_of, text_of
from tests.builders.runs import make_run

NUMBER = re.compile(r"(?<![\w.])[+−]?\d+(?:\.\d+)?(?:e[+−]\d+)?%?(?!\w)")
SHORT_NUMBER = re.compile(r"-?\d{1,6}(\.\d+)?")  # an image's id may be of digits alone
# Fixed prose around constants. A number is a constant only in its phrase.
PHRASES = (
    r"9[05]% (confidence )?interval",
    r"\[95%\]",
    r"(under|fewer than) 20 patients",
    r"Under 19 draws",
    r"(at|is|than|threshold) 0\.5\b",
    r"0\.5 is chance",
    r"p_holm < 0\.05",
    r"at least 1 log-odds",
    r"within 0\.25 log-odds",
    r"at least 0\.95 there",
    r"share of 0 or 1:",
    r"99th percentile",
    r"fewer than 95% of",
    r"deleted the 25% of pixels",
    r"ends 0 and 1\b",
    r"\(1: the same (ranking|map), 0: unrelated, −1: reversed\)",
    r"\(1: (the same map|nothing changed)",
    r"(above|below|of|holds) 0\b",
    r"rank confidence sets, 95%",
    r"ranks \(95%\)",
    r"\(1: every image orders them alike; 0: an image says nothing\)",
    r"H[123]\b",
    r"\(0 and 1 included\)",
    r"at least 95%",
    r"also holds 0 \(the untouched image\) and 1 \(",
)


def prose() -> list[str]:
    """Definitions and notes: they are the same on the page of every run."""
    registries: Iterable[dict[str, Any]] = (CONTROLS, EDITS, EXPLAINERS, FILLS, LOCALISATION, METRICS, REGIONS)
    captions = [entry.caption for registry in registries for entry in registry.values()]
    notes = [
        answer.QUESTION,
        answer.HOW,
        observations.NOTE,
        lungs.NOTE,
        localisation.NOTE,
        hypotheses.NOTE,
        *(h.limits for h in TESTED.values() if h.limits),
        hypotheses.margins(),
        advantages.NOTE,
        advantages.BASELINE,
        sequential.NOTE,
        signs.NOTE,
        ranking.NOTE,
        ranking.TAU_NOTE,
        sanity.NOTE,
        stability.NOTE,
    ]
    return [*captions, *notes, *(term.text for term in GLOSSARY), *(s.description for s in SOURCES.values())]


def unknown_numbers(text: str, run: Any) -> list[str]:
    """Numbers of the text that stand in no table, no setting and no count, each with the words before it."""
    tables = {name: optional(run, name) for name in TABLES}
    known = {form for table in tables.values() for value in values(table) for form in forms(value)}
    known |= {form for value in settings(run.sweep) for form in forms(value)}
    known |= {str(n) for n in counts(tables)}
    for known_text in by_length(prose()):
        text = text.replace(" ".join(known_text.split()), " ")
    for phrase in PHRASES:
        text = re.sub(phrase, " ", text)
    for name in by_length([*names(tables), *strings(run.sweep), *strings(run.json("provenance.json"))]):
        text = text.replace(" ".join(name.split()), " ")
    return [text[max(0, m.start() - 60) : m.end()] for m in NUMBER.finditer(text) if m.group() not in known]


def by_length(texts: Iterable[str]) -> list[str]:
    """The longest first, so that none is cut by one that it holds."""
    return sorted(texts, key=len, reverse=True)


def values(table: pd.DataFrame) -> Iterator[float]:
    for column in table:
        if pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column]):
            yield from table[column].dropna().unique().tolist()
        else:
            texts = {v for v in table[column] if isinstance(v, str)}
            yield from (float(v) for v in texts if SHORT_NUMBER.fullmatch(v))


def forms(value: float) -> set[str]:
    """A number as the page may write it."""
    written = {page.number(value, digits, sign) for digits, sign in itertools.product((2, 3), (False, True))}
    shares = {page.percent(value, digits).replace("-", "−") for digits in (0, 1)}
    whole = {str(int(value))} if value == int(value) else set()
    return written | shares | whole | {f"{value:g}", f"{value:.3g}", page.p_text(value)}


def names(tables: dict[str, pd.DataFrame]) -> set[str]:
    """Texts of tables that are no numbers, such as names of trials that hold digits."""
    columns = [table[c] for table in tables.values() for c in table]
    return {v for column in columns for v in column if isinstance(v, str) and not SHORT_NUMBER.fullmatch(v)} - {""}


def settings(node: Any) -> Iterator[float]:
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield value
        yield from settings(value)


def strings(node: Any) -> set[str]:
    found = set()
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        found |= {value} if isinstance(value, str) and re.search(r"[^\W\d]", value) else strings(value)
    return found


def counts(tables: dict[str, pd.DataFrame]) -> set[int]:
    """Rows of tables, of the test split, of outcomes and of errors by reason; models; a gallery's most images."""
    images, predictions = tables["images"], tables["predictions"]
    test = predictions[predictions["split"] == "test"]
    groups = [
        tables["errors"].groupby(["stage", "reason"], dropna=False).size(),
        test.groupby(["trial_id", "outcome"]).size(),
        test.groupby("trial_id").size(),
    ]
    members = {int(n) for group in groups for n in group}
    of_split = images[images["split"] == "test"]
    variants = tables["trials"]["variant"].nunique()
    return {
        *members,
        *(min(n, GALLERY) for n in members),
        *(len(table) for table in tables.values()),
        len(of_split),
        of_split["patient_id"].nunique(),
        test["trial_id"].nunique(),
        variants,
        GALLERY,
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    reasons = [{"path": f"a{i}.png", "image_id": None, "stage": "decode", "reason": "cut short"} for i in range(5)]
    rules = ("pneumonia", "predicted")
    return make_run(
        tmp_path_factory.mktemp("numbers") / "run", val_valid=19, more=True, errors=reasons, rules=rules, strong=True
    )


@pytest.fixture(scope="module")
def text(out):
    return text_of(page_of(out))


def test_every_number_on_the_page_stands_in_a_table(out, text):
    assert len(NUMBER.findall(text)) > 500
    assert unknown_numbers(text, open_run(out)) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("0.712", "0.713"),  # AUROC
        ("−7.020 [−7.520, −6.770]", "−7.020 [−7.520, −6.775]"),  # an advantage
        ("p_holm 0.042", "p_holm 0.043"),
        ("Deletion at level 0.25", "Deletion at level 0.35"),
        ("36.0%", "37.0%"),  # of the image, a region
        ("0.750", "0.755"),  # likeness
        ("4 2 (50%)", "4 2 (51%)"),  # pairs of cells whose sign turns
    ],
)
def test_a_changed_number_is_found(out, text, right, wrong):
    assert right in text
    assert len(unknown_numbers(text.replace(right, wrong), open_run(out))) > 0


def test_the_words_before_the_sections_hold_no_number_of_their_own(out):
    data = load(open_run(out))
    assert unknown_numbers(" ".join(reading(data)), data.run) == []
