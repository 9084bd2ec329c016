"""A toy entry of a registry is found in all that reads the registry."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cxr_ray.analysis.hypotheses.registry import TESTED, Hypothesis
from cxr_ray.analysis.hypotheses.rows import row
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.errors import UnknownNameError
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.regions import REGIONS
from cxr_ray.schemas import HYPOTHESES
from tests.builders.hypotheses import inputs
from tests.builders.pages import page_of, text_of
from tests.builders.runs import make_run


@pytest.fixture
def toy_hypothesis(monkeypatch):
    """H9: an effect of 2 for every variant, judged from above a line of 1."""

    def rows(given, test, subject, n_boot):
        known = {"n_trials": 1, "n": 30, "n_patients": 30, "effect": 2.0, "lower": 1.5, "upper": 2.5, "p": 0.001}
        yield row("H9", subject, "toy", "teeth", **known)
        yield row("H9", subject, "secondary toy", "teeth", **known)

    entry = Hypothesis("Toy: is it there?", rows, per="variant", unit="teeth", margin=1.0, line=1.0)
    monkeypatch.setitem(TESTED, "H9", entry)


def test_a_hypothesis_is_judged_and_corrected_for_in_the_table(toy_hypothesis):
    table = HYPOTHESES.from_rows(hypothesis_rows(inputs(), n_boot=20)).to_pandas()
    judged, secondary = table[table["hypothesis"] == "H9"].to_dict("records")
    assert (judged["role"], judged["verdict"], judged["family_size"]) == ("verdict", "supported", 4)
    assert judged["family"].startswith("H1, H2, H3 and H9 | ")
    assert judged["p_holm"] == pytest.approx(0.004)
    assert "1 teeth (the margin)" in judged["reason"]
    assert secondary["role"] == "secondary"
    assert judged["margin"] == 1.0


def test_a_hypothesis_that_is_not_registered_is_an_error():
    with pytest.raises(UnknownNameError, match="got the hypothesis 'H0'"):
        TESTED["H0"]


@pytest.fixture
def toys(monkeypatch):
    """A toy of each kind of measure: its name and its caption, by kind."""
    originals: dict[str, tuple[Any, str]] = {
        "explainer": (EXPLAINERS, "random"),
        "fill": (FILLS, "mean"),
        "control": (CONTROLS, "shifted"),
        "region": (REGIONS, "border"),
        "edit": (EDITS, "equalize"),
        "metric": (METRICS, "abpc"),
    }
    for kind, (registry, original) in originals.items():
        changes = {"caption": f"Toy {kind} for the page."} | ({"label": "toy area"} if kind == "metric" else {})
        monkeypatch.setitem(registry, f"toy_{kind}", replace(registry[original], **changes))
    return {kind: (f"toy_{kind}", f"Toy {kind} for the page.") for kind in originals}


def with_toys(out: str) -> str:
    """The run, as if it had measured the toys: in its sweep, and control and metric in its summary."""
    file = Path(out, "sweep.yaml")
    sweep = yaml.safe_load(file.read_text())
    sweep["explain"]["explainers"].append("toy_explainer")
    sweep["perturb"]["fills"].append("toy_fill")
    sweep["controls"]["toy_control"] = 1
    sweep["regions"] = {"names": ["toy_region"], "edits": ["toy_edit"]}
    file.write_text(yaml.safe_dump(sweep))
    part = Path(out, "tables", "summary", "part-0.parquet")
    table = pq.ParquetFile(part).read()
    rows = table.to_pylist()
    of_control = [{**r, "control": "toy_control"} for r in rows if r["control"] == "shifted"]
    of_metric = [{**r, "metric": "toy_metric"} for r in rows if r["metric"] == "abpc"]
    pq.write_table(pa.Table.from_pylist([*rows, *of_control, *of_metric], table.schema), part)
    return out


def test_a_toy_of_each_kind_stands_on_the_page(toys, toy_hypothesis, tmp_path):
    text = text_of(page_of(with_toys(make_run(tmp_path / "run", more=True))))
    for kind, (name, caption) in toys.items():
        assert name in text
        assert caption in text, kind
    assert "advantage over toy_control (1 draw)" in text
    assert "toy area: higher is more faithful" in text
    assert "H9. Toy: is it there?" in text
    assert "H9: the effect must lie above 1 teeth (the margin)" in text
