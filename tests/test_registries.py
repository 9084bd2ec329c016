"""A toy entry of a registry is found in all that reads the registry."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cxr_ray.analysis.hypotheses.margins import Margin
from cxr_ray.analysis.hypotheses.registry import TESTED, Hypothesis
from cxr_ray.analysis.hypotheses.rows import row
from cxr_ray.analysis.hypotheses.verdicts import hypothesis_rows
from cxr_ray.data.sources import SOURCES, changes_of
from cxr_ray.errors import UnknownNameError
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.cost import passes_per_image
from cxr_ray.measure.edits import EDITS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.metrics import METRICS
from cxr_ray.measure.patch_swap import donor_images
from cxr_ray.measure.regions import REGIONS
from cxr_ray.models import checkpoints, networks
from cxr_ray.models.networks import ModelSpec
from cxr_ray.report.document import write_report
from cxr_ray.results import open_run
from cxr_ray.run import dryrun, pipeline, resume
from cxr_ray.run.context import RunContext, prepare
from cxr_ray.run.plan import PassCounts, plan_shards
from cxr_ray.run.statistics import write_statistics
from cxr_ray.schemas import HYPOTHESES, TABLES
from cxr_ray.storage import SHARDS
from cxr_ray.sweepfile import resolve
from tests.builders.hypotheses import inputs
from tests.builders.pages import page_of, text_of


@pytest.fixture
def toy_hypothesis(monkeypatch):
    """H9: an effect of 2 for every variant, judged from above a line of 1."""

    def rows(given, test, subject, n_boot):
        known = {"n_trials": 1, "n": 30, "n_patients": 30, "effect": 2.0, "lower": 1.5, "upper": 2.5, "p": 0.001}
        known |= {"lower_90": 1.6, "upper_90": 2.4}
        yield row("H9", subject, "toy", "teeth", **known)
        yield row("H9", subject, "secondary toy", "teeth", **known)

    margin, says = Margin.line(1), {"above margin": "it bites"}
    entry = Hypothesis("Toy: is it there?", rows, per="variant", unit="teeth", margin=margin, says=says)
    monkeypatch.setitem(TESTED, "H9", entry)


def test_a_hypothesis_is_judged_and_corrected_for_in_the_table(toy_hypothesis):
    table = HYPOTHESES.from_rows(hypothesis_rows(inputs(), n_boot=20)).to_pandas()
    judged, secondary = table[table["hypothesis"] == "H9"].to_dict("records")
    assert (judged["role"], judged["verdict"], judged["family_size"]) == ("verdict", "above margin", 2)
    assert judged["family"].startswith("H1 and H9 | ")  # of the others only H1 is asked
    assert judged["p_holm"] == pytest.approx(0.002)
    assert judged["reason"].startswith("it bites: ")
    assert secondary["role"] == "secondary"
    assert (judged["margin_low"], judged["margin_high"]) == (1.0, 1.0)


def test_a_hypothesis_that_is_not_registered_is_an_error():
    with pytest.raises(UnknownNameError, match="got the hypothesis 'H0'"):
        TESTED["H0"]


@pytest.fixture
def toys(monkeypatch, toy_hypothesis):
    """A toy of every other kind: its name and what the page says of it, by kind."""
    originals: dict[str, tuple[Any, str]] = {
        "explainer": (EXPLAINERS, "random"),
        "fill": (FILLS, "mean"),
        "control": (CONTROLS, "shifted"),
        "region": (REGIONS, "border"),
        "edit": (EDITS, "equalize"),
        "metric": (METRICS, "abpc"),
        "source": (SOURCES, "phantom"),
    }
    said = {kind: f"Toy {kind} for the page." for kind in originals}
    for kind, (registry, original) in originals.items():
        changes: dict[str, Any] = {"caption": said[kind]}
        if kind == "metric":
            changes["label"] = "toy area"
        if kind == "source":
            named = {"usage": "'toys'", "named_by": lambda text: {} if text == "toys" else None}
            changes = {"description": said[kind].removesuffix("."), **named}
        monkeypatch.setitem(registry, f"toy_{kind}", replace(registry[original], **changes))
    return {kind: (f"toy_{kind}", said[kind].removesuffix(".")) for kind in originals}


@pytest.fixture
def toy_context(toys, tmp_path) -> RunContext:
    """A sweep that names every toy, of an untrained network on eight phantoms."""
    spec = ModelSpec("resnet18", 64)
    checkpoint = tmp_path / "untrained.safetensors"
    checkpoint.write_bytes(checkpoints.to_bytes(networks.build("resnet18", spec)))
    asked: dict[str, Any] = {
        "data": {"size": 64, "phantom": {"train": 8, "test": 8}},
        "checkpoints": {"untrained": {"path": str(checkpoint)}},
        "explain": {"explainers": ["toy_explainer"], "keep_maps": False},
        "perturb": {"grids": ["7"], "fills": ["toy_fill"], "levels": [0.25, 0.5, 0.75]},
        "controls": {"toy_control": 1},
        "regions": {"names": ["toy_region"], "draws": 1, "edits": ["toy_edit"]},
        "sanity": None,
    }
    for dotted, value in changes_of("toys").items():
        section, key = dotted.split(".")
        asked[section][key] = value
    return prepare(resolve(asked), str(tmp_path / "run"))


def computed(context: RunContext) -> str:
    """The run's folder, its shards computed without Ray."""
    store, size = context.store, context.sweep.data.size
    resume.begin(context)
    store.write_table("images", context.manifest.images.to_dict("records"))
    ref = context.given["untrained"]
    trial: dict[str, Any] = dict.fromkeys(TABLES["trials"].columns)
    trial |= {"trial_id": "untrained", "variant": "untrained", "status": "given", "config": "{}"}
    store.write_table("trials", [trial])
    images = donor_images(context.manifest.rows("test"), context.manifest.rows("val"), 0)
    passes = {"untrained": PassCounts(passes_per_image(context.sweep, size)[0])}
    chosen, donors = context.chosen_images(), context.donors()
    plan = plan_shards(context.manifest, context.given, passes, "cpu", chosen, images, donors)
    decode = pipeline._Decode(context.source, None, context.sweep)
    alone = SimpleNamespace(worker_gpus=0, threads=0, batch_size=32)
    explain = pipeline._Explain(context.sweep, store, {"untrained": ref}, cast(Any, alone), 0)
    write = pipeline._Write(store, SHARDS)
    for shard in plan.missing():
        write(explain(decode({"shard": json.dumps(shard.to_plain())})))
    store.merge({"untrained": list(plan.names("untrained"))}, [])
    write_statistics(context.sweep, store)
    return store.out


def test_toys_of_every_kind_go_from_the_sweep_file_to_the_page(toys, toy_context):
    lines = "\n".join(dryrun.lines(toy_context))
    assert all(name in lines for kind, (name, _) in toys.items() if kind != "metric")  # no key asks for metrics
    out = computed(toy_context)

    run = open_run(out)
    found = {
        kind: set(run.pandas(table)[column])
        for kind, (table, column) in {
            "explainer": ("saliency", "explainer"),
            "fill": ("curves", "fill"),
            "control": ("faithfulness", "control"),
            "region": ("regions", "region"),
            "edit": ("regions", "region"),
        }.items()
    }
    assert all(toys[kind][0] in names for kind, names in found.items())
    summary = run.pandas("summary")
    measured = {"explainer": "toy_explainer", "fill": "toy_fill", "control": "toy_control", "metric": "toy_metric"}
    assert len(summary[np.logical_and.reduce([summary[c] == name for c, name in measured.items()])]) > 0
    assert {"toy_region", "toy_edit"} <= set(run.pandas("region_summary")["region"])
    assert "H9" in set(run.pandas("hypotheses")["hypothesis"])

    write_report(out)
    text = text_of(page_of(out))
    for kind, (name, said) in toys.items():
        assert said in text, kind
        assert name in text or kind == "source"
    assert "advantage over toy_control (1 draw)" in text
    assert "toy area: higher is more faithful" in text
    assert "H9. Toy: is it there?" in text
    assert "H9: 1 teeth (above margin: it bites)" in text
