"""The JSON schema that editors read, against what a sweep may hold."""

import json

import jsonschema  # type: ignore[import-untyped]
import pytest

from cxr_ray.editor import json_schema
from cxr_ray.yamlfile import parse_yaml
from tests.builders.sweeps import EVERYTHING, SWEEPS, swept


def test_the_schema_for_editors_is_current():
    """If it is not: python -m cxr_ray.editor > sweeps/schema.json."""
    assert json.loads((SWEEPS[0].parent / "schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_editors_find_the_schema_of_a_sweep_file_and_no_fault_in_it(path):
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.validate(parse_yaml(text, path.name), json_schema())


def test_the_schema_accepts_what_a_sweep_may_hold_and_finds_what_it_may_not():
    validator = jsonschema.Draft202012Validator(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert validator.is_valid(parse_yaml(EVERYTHING, "test"))
    assert validator.is_valid(json.loads(swept(EVERYTHING).model_dump_json()))
    for text in (
        "trian: {epochs: 3}",
        "train: {epoch: 3}",
        "train: {epochs: many}",
        "train: {lr: {grd: [1]}}",
        "train: {lr: 7}",
        "train: {epochs: {uniform: [1, 2]}}",
        "model: {arch: resnet50}",
        "model: {size: 8}",
        "perturb: {grids: [15]}",
        "variants: {a: {trian: {}}}",
        "variants: {a: {train: {los: ce}}}",
        "regions: {names: [edge]}",
    ):
        assert not validator.is_valid(parse_yaml(text, "test")), text
