import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cxr_ray.config import (
    MAX_SHIFTED,
    Fill,
    Section,
    Sweep,
    concrete,
    json_schema,
    load_sweep,
    parse_yaml,
    resolve,
)  # fmt: skip
from cxr_ray.errors import SweepError
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.sweep import parser as sweep_parser

SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))

# The sweep as the design writes it down, with one learning rate and one seed instead of a search over them.
DEFAULTS = """
name: sweep
data: {source: folder, path: data/chest_xray, size: 224, fit: squash, val_share: 0.1, limit: null}
variants: {plain: {}}
model: {arch: resnet18, weights: imagenet, freeze: none}
train: {epochs: 8, batch_size: 32, lr: 1e-3, loss: ce, sampler: shuffle, augment: light, seed: 0}
search: {num_samples: 4, scheduler: asha, metric: val_auroc}
evaluate: best_per_variant_seed
checkpoints: {}
explain: {explainers: [gradcam, integrated_gradients, occlusion], targets: [pneumonia], keep_maps: true}
perturb:
  {grids: [pixel, 14], fills: [mean, blur], levels: [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], orders: [morf, lerf]}
controls: {pixel_random: 5, cell_random: 5, shifted: 5}
regions: {names: [border, corners, centre]}
sanity: {images: 32, layers: [fc, layer4, layer3]}
resources: {workers: auto, gpu_per_worker: auto, gpu_per_trial: auto, cpu_per_trial: 1, batch_size: auto}
seed: 0
"""


def swept(text: str) -> Sweep:
    return resolve(parse_yaml(text, "test") or {})


def mistakes(text: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        resolve(parse_yaml(text, "test"), explainers=EXPLAINERS, controls=CONTROLS)
    return str(caught.value).splitlines()


def test_the_defaults_are_those_of_the_design():
    written, have = parse_yaml(DEFAULTS, "design"), swept("").model_dump(mode="json")
    assert have["data"].pop("phantom") == {"train": 480, "test": 96, "prevalence": 0.5, "marker_correlation": 0.5}
    assert have["train"].pop("weight_decay") == 0.01
    assert have["train"].pop("labels") == "given"
    assert (have["model"].pop("size"), have["model"].pop("preprocess")) == (None, "none")
    assert have["perturb"].pop("precision") == "float32"
    assert have.pop("sequential") is None
    assert (have["regions"].pop("draws"), have["regions"].pop("lungs"), have["regions"].pop("edits")) == (5, None, [])
    written["perturb"]["grids"] = ["pixel", "14"]
    assert have == written


def test_spelling_the_defaults_out_changes_nothing():
    assert swept(DEFAULTS) == swept("")
    assert swept(DEFAULTS).hash == swept("").hash


def test_sections_merge_key_by_key_and_lists_controls_and_variants_replace():
    sweep = swept("{train: {epochs: 2}, controls: {shifted: 3}, perturb: {fills: [black]}, variants: {small: {}}}")
    assert sweep.train == {**swept("").train, "epochs": 2}
    assert sweep.controls == {"shifted": 3}
    assert sweep.perturb == swept("").perturb.model_copy(update={"fills": ["black"]})
    assert list(sweep.variants) == ["small"]
    assert swept("controls:").controls == {}
    assert swept("train:").train == swept("").train


def test_checkpoints_alone_train_nothing():
    sweep = swept("checkpoints: {study: {path: model.pt}}")
    assert sweep.variants == {}
    assert sweep.trial_points() == []
    assert sweep.checkpoints["study"].mean == (0.485, 0.456, 0.406)
    assert list(swept("{checkpoints: {study: {path: m.pt}}, variants: {plain: {}}}").variants) == ["plain"]


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
    with pytest.raises(SweepError, match=r"^here, line 3: the key 'lr' is given twice; keep one\.$"):
        parse_yaml("train:\n  lr: 1e-3\n  lr: 1e-4\n", "here")
    merged = parse_yaml("{a: &a {x: 1, y: 2}, b: {<<: *a, y: 3}}", "here")
    assert merged["b"] == {"x": 1, "y": 3}


EVERYTHING = """
name: every-thing_2
data: {source: phantom, size: 64, fit: pad, limit: 10, phantom: {train: 8, test: 4}}
variants: {plain: {}, "on": {model: {freeze: backbone}, train: {loss: {choice: [ce, focal]}, seed: {grid: [1, 2]}}}}
model: {weights: none}
train: {lr: {loguniform: [1e-5, 1e-3]}, weight_decay: 0}
evaluate: all
checkpoints: {study: {path: model.pt, size: 128, mean: [0, 0, 0], std: [1, 1, 1]}}
perturb: {grids: [28, pixel], levels: [0.00001, 0.5]}
controls: {shifted: 19}
resources: {workers: 2, gpu_per_worker: 0.5, gpu_per_trial: 2}
"""


@pytest.mark.parametrize("text", ["", EVERYTHING])
def test_the_resolved_sweep_is_yaml_that_loads_back_to_itself(text, tmp_path):
    sweep = swept(text)
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    again = load_sweep(tmp_path / "sweep.yaml")
    assert again == sweep
    assert again.hash == sweep.hash
    # and other programs read the same numbers
    assert yaml.safe_load(sweep.to_yaml()) == sweep.model_dump(mode="json")


def test_the_hash_ignores_resources_and_the_path_of_the_data_and_nothing_else():
    base = swept("")
    for same in (
        "resources: {workers: 3, cpu_per_trial: 2}",
        "data: {path: /elsewhere}",
        "train: {weight_decay: 1e-2}",
    ):
        assert swept(same).hash == base.hash, same
    different = (
        "name: other", "data: {source: phantom}", "data: {size: 112}", "data: {fit: pad}", "data: {limit: 10}",
        "data: {val_share: 0.2}", "data: {phantom: {train: 10}}", "variants: {b: {}}", "model: {freeze: backbone}",
        "train: {lr: 2e-3}", "search: {num_samples: 5}", "evaluate: all", "checkpoints: {a: {path: m.pt}}",
        "explain: {keep_maps: false}", "perturb: {fills: [mean]}", "controls: {shifted: 6}", "seed: 1",
            "sequential: {max_draws: 99}", "regions: null", "sanity: {images: 8}",
    )  # fmt: skip
    assert set(Sweep.model_fields) == {yaml_key.split(":")[0] for yaml_key in different} | {"resources"}
    hashes = [base.hash, *(swept(text).hash for text in different)]
    assert len(set(hashes)) == len(hashes)


def test_equal_numbers_written_otherwise_are_one_sweep():
    assert swept("train: {weight_decay: 0}").hash == swept("train: {weight_decay: 0.0}").hash
    assert swept("perturb: {levels: [0.9, 0.1]}").hash == swept("perturb: {levels: [0.1, 0.9]}").hash


def test_levels_are_put_in_order_since_areas_are_integrals_over_them():
    assert swept("perturb: {levels: [0.9, 0.1, 0.5]}").perturb.levels == [0.1, 0.5, 0.9]


def test_every_variant_and_grid_point_is_a_trial_point():
    sweep = swept(
        "{variants: {a: {}, b: {model: {freeze: {grid: [none, backbone]}}, train: {lr: 1e-4}}},"
        " train: {seed: {grid: [0, 1, 2]}, lr: {loguniform: [1e-5, 1e-3]}}}"
    )
    points = sweep.trial_points()
    a = [("a", "none", seed, {"loguniform": [1e-5, 1e-3]}) for seed in (0, 1, 2)]
    b = [("b", freeze, seed, 1e-4) for freeze, seed in itertools.product(("none", "backbone"), (0, 1, 2))]
    assert [(v, m["freeze"], t["seed"], t["lr"]) for v, m, t in points] == a + b
    points[0][2]["lr"]["loguniform"].append("changed")
    assert points[1][2]["lr"] == {"loguniform": [1e-5, 1e-3]}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_sweep_files_that_ship_load_and_name_no_file_that_the_user_lacks(path):
    sweep = load_sweep(path, explainers=EXPLAINERS, controls=CONTROLS)
    assert sweep.name == path.stem
    assert all(c.path == "path/to/model.pt" for c in sweep.checkpoints.values()), "a place to fill in at most"
    for _, model, train in sweep.trial_points():
        without_spaces = ({k: v for k, v in s.items() if not isinstance(v, dict)} for s in (model, train))
        assert concrete(*without_spaces)[0].weights in ("imagenet", "none")


def test_there_is_a_sweep_file_for_each_question():
    assert {p.stem for p in SWEEPS} >= {
        "quickstart", "findings", "imbalance", "shortcuts", "resolution", "seeds", "explainers", "pretraining",
        "architectures",
    }  # fmt: skip


def test_sweeps_that_settle_the_imbalance_are_paired_by_seed_and_stop_nothing_early():
    for name in ("findings", "imbalance"):
        sweep = load_sweep(SWEEPS[0].parent / f"{name}.yaml")
        seeds: dict[str, list[int]] = {}
        for variant, _, train in sweep.trial_points():
            assert not any(isinstance(v, dict) for v in train.values()), "a sampled value would differ between pairs"
            seeds.setdefault(variant, []).append(train["seed"])
        assert seeds["plain"] == seeds["balanced"]
        assert len(seeds["plain"]) >= 5
        assert sweep.search.scheduler == "none"


def test_the_findings_have_what_the_hypotheses_and_the_study_need():
    sweep = load_sweep(SWEEPS[0].parent / "findings.yaml")
    assert sweep.explain.explainers[0] == "gradcam"
    assert sweep.explain.targets == ["pneumonia", "predicted"]
    assert 0.25 in sweep.perturb.levels
    assert 0.5 in sweep.perturb.levels
    assert set(sweep.perturb.fills) >= {"mean", "grey", "blur"}
    assert sweep.controls["shifted"] >= 39
    assert sweep.regions is not None
    assert set(sweep.regions.names) >= {"border", "corners"}


def test_the_schema_for_editors_is_current():
    """If it is not: python -m cxr_ray.config > sweeps/schema.json."""
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
        "trian: {epochs: 3}", "train: {epoch: 3}", "train: {epochs: many}", "train: {lr: {grd: [1]}}", "train: {lr: 7}",
        "train: {epochs: {uniform: [1, 2]}}", "model: {arch: resnet50}", "model: {size: 8}", "perturb: {grids: [15]}",
        "variants: {a: {trian: {}}}", "variants: {a: {train: {los: ce}}}", "regions: {names: [edge]}",
    ):  # fmt: skip
        assert not validator.is_valid(parse_yaml(text, "test")), text


def test_the_cluster_runs_the_tested_ray_on_a_sweep_that_ships():
    folder = SWEEPS[0].parent / "cluster"
    job = yaml.safe_load((folder / "rayjob.yaml").read_text())["spec"]
    pinned = re.search(r"^ray==(.*)$", (folder.parent.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"FROM rayproject/ray:{pinned[1]}-" in (folder / "Dockerfile").read_text()
    assert job["shutdownAfterJobFinishes"] is True
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    asked = sweep_parser().parse_args(job["entrypoint"].split()[3:])
    assert (folder.parent.parent / asked.sweep).is_file()
    assert "://" in asked.data
    assert "://" in asked.out, "machines need not share a folder"


def test_every_default_name_exists_and_every_fill_has_a_function():
    resolve({}, explainers=EXPLAINERS, controls=CONTROLS)
    assert set(get_args(Fill)) == set(FILLS)
    assert resolve({"perturb": {"fills": list(FILLS)}}).perturb.fills == list(FILLS)


def test_a_sweep_is_frozen():
    sweep = swept("")
    for section in (sweep, sweep.data, sweep.data.phantom, sweep.explain, sweep.perturb, sweep.resources, sweep.search):
        assert isinstance(section, Section)
        field = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, getattr(section, field))


def test_defaults_are_not_shared_between_sweeps():
    first = swept("")
    first.explain.explainers.append("changed")
    first.controls["changed"] = 1
    assert "changed" not in swept("").explain.explainers
    assert "changed" not in swept("").controls


def test_overrides_are_yaml_and_do_not_reach_what_an_alias_shares(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("variants: {a: &a {train: {epochs: 2}}, b: *a}\n")
    sweep = load_sweep(file, ["variants.a.train.epochs=5", "train.lr={uniform: [1e-4, 1e-3]}", "perturb.grids=[7]"])
    assert sweep.variants == {"a": {"train": {"epochs": 5}}, "b": {"train": {"epochs": 2}}}
    assert sweep.train["lr"] == {"uniform": [1e-4, 1e-3]}
    assert sweep.perturb.grids == ["7"]


@pytest.mark.parametrize(("stem", "name"), [("Fine Tune", "fine_tune"), ("2024", "sweep"), ("2-runs", "runs")])
def test_a_sweep_without_a_name_is_called_after_its_file(tmp_path, stem, name):
    (tmp_path / f"{stem}.yaml").write_text("")
    assert load_sweep(tmp_path / f"{stem}.yaml").name == name


# One mistake, one sentence: what came, what is allowed.
SENTENCES = [
    ("train: {epochs: '5'}", "train.epochs: '5' came; it should be a valid integer."),
    ("train: {epochs: true}", "train.epochs: True came; it should be a valid integer."),
    ("train: {epochs: 2.0}", "train.epochs: 2.0 came; it should be a valid integer."),
    ("train: {lr: '1e-3'}", "train.lr: '1e-3' came; it should be a valid number."),
    ("train: {lr: 3}", "train.lr: 3 came; it should be less than 1."),
    ("train: {lr: .nan}", "train.lr: nan came; it should be a finite number."),
    ("train: {lr: null}", "train.lr: None came; it should be a valid number."),
    ("train: 5", "train: 5 came; a mapping of keys is allowed."),
    ("data: [1]", "data: [1] came; a mapping of keys is allowed."),
    ("variants: {plain: {train: 5}}", "variants.plain.train: 5 came; a mapping of keys is allowed."),
    ("variants: {plain: 5}", "variants.plain: 5 came; a mapping of keys is allowed."),
    ("variants: {interesting: {train: {epochs: 0}}}",
     "variants.interesting.train.epochs: 0 came; it should be greater than or equal to 1."),
    ("variants: {plain: {modle: {}}}",
     "variants.plain.modle: unknown key. Did you mean 'model'? Allowed: model, train."),
    ("checkpoints: {int8: {path: m.pt, sise: 224}}",
     "checkpoints.int8.sise: unknown key. Did you mean 'size'? Allowed: path, arch, size, preprocess, mean, std."),
    ("checkpoints: {study: {}}", "checkpoints.study.path: {} came; field required."),
    ("checkpoints: {study: {path: m.pt, std: [1, 1, 0]}}",
     "checkpoints.study.std.2: 0 came; it should be greater than 0."),
    ("checkpoints: {plain: {path: m.pt}}\nvariants: {plain: {}}",
     "checkpoints: plain is also a variant; give it another name."),
    ("resources: {workers: lots}", "resources.workers: 'lots' came; allowed is auto, or a whole number from 1."),
    ("resources: {batch_size: 0}", "resources.batch_size: 0 came; allowed is auto, or a whole number from 1."),
    ("resources: {workers: true}", "resources.workers: True came; allowed is auto, or a whole number from 1."),
    ("resources: {gpu_per_worker: .inf}",
     "resources.gpu_per_worker: inf came; allowed is auto, 0 to 1, or a whole number."),
    ("resources: {gpu_per_trial: 1.5}",
     "resources.gpu_per_trial: 1.5 came; allowed is auto, 0 to 1, or a whole number."),
    ("resources: {gpu_per_trial: -1}", "resources.gpu_per_trial: -1 came; allowed is auto, 0 to 1, or a whole number."),
    ("controls: {Shifted: 2}", "controls.Shifted: 'Shifted' is no name; names match [a-z][a-z0-9_-]*."),
    ("controls: {1: 2}", "controls.1: 1 is no name; names match [a-z][a-z0-9_-]*."),
    ("controls: {shiftet: 2}",
     f"controls: 'shiftet' is unknown. Did you mean 'shifted'? Allowed: {', '.join(CONTROLS)}."),
    (f"controls: {{shifted: {MAX_SHIFTED + 1}}}", "controls.shifted: 392 came; at most 391 shifts differ."),
    ("controls: {mean_map: 5}", "controls.mean_map: 5 came; there is one mean, so give 1."),
    ("controls: {shifted: 0}", "controls.shifted: 0 came; it should be greater than or equal to 1."),
    ("explain: {explainers: [saliency, saliency]}", "explain.explainers: saliency given twice; keep one."),
    ("explain: {explainers: []}",
     "explain.explainers: [] came; list should have at least 1 item after validation, not 0."),
    ("perturb: {grids: [15]}", "perturb.grids.0: '15' came. Did you mean '14'? Allowed: pixel, 7, 14, 28."),
    ("perturb: {fills: [meen]}", f"perturb.fills.0: 'meen' came. Did you mean 'mean'? Allowed: {', '.join(FILLS)}."),
    ("perturb: {levels: [0.5, 1]}", "perturb.levels.1: 1 came; it should be less than 1."),
    ("train: {lr: {grd: [1]}}",
     "train.lr: {'grd': [1]} came; a search space is one of {grid: [...]}, {choice: [...]}, {uniform: [low, high]}, "
     "{loguniform: [low, high]}."),
    ("train: {lr: {grid: 0.1}}", "train.lr: grid takes a list, got 0.1."),
    ("train: {lr: {uniform: [0.5, 0.1]}}", "train.lr: uniform takes [low, high] with low < high, got [0.5, 0.1]."),
    ("train: {lr: {loguniform: [0, 0.1]}}", "train.lr: loguniform needs low > 0, got 0."),
    ("train: {lr: {uniform: [0.1, 2]}}", "train.lr: 2 came; it should be less than 1."),
    ("train: {epochs: {uniform: [1, 5]}}", "train.epochs: uniform is for real numbers; use grid or choice here."),
    ("train: {seed: {grid: [0, 1, 1]}}", "train.seed: grid holds a value twice: [0, 1, 1]."),
    ("variants: {b: {train: {loss: {choice: [ce, hinge]}}}}",
     "variants.b.train.loss: 'hinge' came. Allowed: ce, weighted, focal."),
    ("1: 2", "1: 1 came; keys should be strings."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), SENTENCES, ids=[t.splitlines()[0] for t, _ in SENTENCES])
def test_one_mistake_is_one_sentence(text, sentence):
    assert mistakes(text) == [sentence]


def test_the_names_of_unknown_explainers_are_checked_against_those_that_exist():
    (sentence,) = mistakes("explain: {explainers: [gradcan]}")
    assert (
        sentence
        == f"explain.explainers: 'gradcan' is unknown. Did you mean 'gradcam'? Allowed: {', '.join(EXPLAINERS)}."
    )


def test_what_came_is_shortened():
    (sentence,) = mistakes(f"train: {{lr: {'x' * 5000}}}")
    assert len(sentence) < 300
    assert mistakes(f"train: {{lr: 0x{'f' * 5000}}}") == ["train.lr: a huge int came; it should be a valid number."]


# Anything that YAML can hold is a sweep or a mistake.

KEYS = sorted(
    {key for section in Sweep.model_fields.values() for key in getattr(section.annotation, "model_fields", {})}
    | {*Sweep.model_fields, "grid", "choice", "uniform", "loguniform", "plain", "epochs", "lr", "loss", "weights"}
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=3) | st.text(max_size=5)
    | st.sampled_from(["auto", "gradcam", "pixel", 14, 0.5, "none", "10" * 3000])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=8,
)


def outcome(made: Callable[[], Sweep]) -> Sweep | list[str]:
    """The sweep, or the lines of the mistake; no other exception."""
    try:
        return made()
    except SweepError as e:
        return str(e).splitlines()


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3) | st.integers() | st.none(), VALUES, max_size=4))
def test_any_mapping_is_a_sweep_or_a_mistake(raw):
    made = outcome(lambda: resolve(raw, explainers=EXPLAINERS, controls=CONTROLS))
    if isinstance(made, Sweep):
        assert resolve(yaml.safe_load(made.to_yaml())) == made
    else:
        assert made
        assert all(line.endswith(".") for line in made), made


@given(st.sampled_from(sorted(Sweep.model_fields)), VALUES)
def test_any_value_of_a_section_is_a_sweep_or_a_mistake(section, value):
    made = outcome(lambda: resolve({section: value}))
    assert isinstance(made, Sweep) or (made and all(line.startswith(section) for line in made)), made


YAML_TEXT = st.lists(
    st.sampled_from(
        ["train:", "lr", ": ", "\n", "  ", "- ", "{", "}", "[", "]", ",", "&a ", "*a", "!!int ", "!!float ", "!!bool ",
         "!!timestamp ", "!!set ", "!!python/name:os.system ", "<<: ", "? ", "''", "1e-3", "0x", "|", ">", "#", "%YAML",
         "---", "2020-99-99", "=", "\t", "\x00", "name"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=12,
).map("".join)  # fmt: skip


@given(text=YAML_TEXT)
def test_any_text_is_a_sweep_or_a_mistake(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    made = outcome(lambda: load_sweep(path, explainers=EXPLAINERS, controls=CONTROLS))
    assert made
    if not isinstance(made, Sweep):
        assert all(len(line) < 1000 for line in made)


@pytest.mark.parametrize(
    "text",
    ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "a: &a [*a]", "a: &a {b: *a}",
     "train: {lr: {grid: [&a [*a], &b [*b]]}}",
     "? [a]\n: b", "[" * 3000, "a: 0x_", "\x00", "<<: 5"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_ill_formed_yaml_is_a_mistake(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SweepError):
        load_sweep(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ("{names: [border, marker]}", ["regions.names: marker came", "data.source: phantom", "Leave it out"]),
        ("{names: [opacity]}", ["regions.names: opacity came", "folder images"]),
        ("{names: [outside_lungs]}", ["outside_lungs needs lung masks", "regions.lungs", "torchxrayvision"]),
        ("{names: [border, border]}", ["regions.names: border given twice"]),
        ("{edits: [equalize, equalize]}", ["regions.edits: equalize given twice"]),
        ("{names: [lungs]}", ["regions.names", "Did you mean 'outside_lungs'", "corners"]),
    ],
)
def test_regions_that_the_data_cannot_have_are_mistakes(regions, words):
    with pytest.raises(SweepError) as e:
        swept(f"regions: {regions}")
    assert len(str(e.value).splitlines()) == 1
    assert all(word in str(e.value) for word in words), e.value


def test_regions_that_need_masks_are_fine_where_there_are_some():
    assert swept("{regions: {names: [outside_lungs], lungs: masks}}").regions.names == ["outside_lungs"]
    assert swept("{data: {source: phantom}, regions: {names: [marker, outside_lungs, opacity]}}").regions.lungs is None
