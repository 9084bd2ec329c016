"""YAML as this package reads it."""

import pytest

from cxr_ray.errors import SweepError
from cxr_ray.yamlfile import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5e1", 5.0), ("1.e2", 100.0), ("3", 3)]
)
def test_numbers_with_an_exponent_are_numbers(text, value):
    parsed = parse_yaml(f"lr: {text}", "test")["lr"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_names_that_look_like_numbers_stay_names():
    assert parse_yaml("[e5, 1e, x1e4, '1e4']", "test") == ["e5", "1e", "x1e4", "1e4"]


def test_a_key_given_twice_is_told_with_its_line_and_merge_keys_work():
    with pytest.raises(SweepError, match=r"^here, line 3: got the key 'lr' twice; expected it once; keep one\.$"):
        parse_yaml("train:\n  lr: 1e-3\n  lr: 1e-4\n", "here")
    merged = parse_yaml("{a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}}", "here")
    assert merged["b"] == {"x": 1, "y": 3}
