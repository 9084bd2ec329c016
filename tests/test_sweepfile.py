"""Sweep files: what ships, overrides, and every mistake as one sentence, all of them at once."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cxr_ray import sweepfile
from cxr_ray.config import Sweep, concrete
from cxr_ray.errors import SweepError
from cxr_ray.measure.controls import CONTROLS
from cxr_ray.measure.explainers import EXPLAINERS
from cxr_ray.measure.fills import FILLS
from cxr_ray.measure.metrics import WIDEST_STEP, widest_step
from cxr_ray.sweep import parser as sweep_parser
from cxr_ray.sweepfile import NAMES, load_sweep, resolve
from cxr_ray.yamlfile import parse_yaml
from tests.builders.sweeps import SWEEPS, swept


def mistakes(text: str) -> list[str]:
    with pytest.raises(SweepError) as caught:
        resolve(parse_yaml(text, "test"))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_the_sweep_files_that_ship_load_and_name_no_file_that_the_user_lacks(path):
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert all(c.path == "path/to/model.pt" for c in sweep.checkpoints.values()), "a place to fill in at most"
    for _, model, train in sweep.trial_points():
        without_spaces = ({k: v for k, v in s.items() if not isinstance(v, dict)} for s in (model, train))
        assert concrete(*without_spaces)[0].weights in ("imagenet", "none")


def test_there_is_a_sweep_file_for_each_question():
    assert {p.stem for p in SWEEPS} >= {
        "quickstart",
        "findings",
        "imbalance",
        "shortcuts",
        "resolution",
        "seeds",
        "explainers",
        "pretraining",
        "architectures",
    }


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_sweeps_that_ship_have_strong_controls_and_levels_that_make_areas(path):
    sweep = load_sweep(path)
    assert {name for name, control in CONTROLS.items() if control.strong} <= set(sweep.controls)
    assert widest_step(sweep.perturb.levels) <= WIDEST_STEP
    assert max(sweep.perturb.levels) >= 0.95


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
    assert {"shifted", "other_image"} <= set(sweep.controls)
    assert sweep.regions is not None
    assert set(sweep.regions.names) >= {"border", "corners"}


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


def test_every_default_name_exists_and_every_name_that_exists_may_be_asked_for():
    resolve({})
    assert resolve({"perturb": {"fills": list(FILLS)}}).perturb.fills == list(FILLS)
    for dotted, known in NAMES.items():
        for name in known:
            assert f"got {name!r}" not in " ".join(outcome_of(dotted, name))


def outcome_of(dotted: str, name: str) -> list[str]:
    """The mistakes of a sweep in which a name stands at a dotted path."""
    section, _, key = dotted.partition(".")
    raw: dict[str, Any] = {section: {key: name}}
    if section == "checkpoints":
        raw = {section: {"m": {"path": "m.pt", key.removeprefix("*."): name}}}
    elif section == "controls":
        raw = {section: {name: 1}}
    elif section in ("explain", "perturb", "regions", "verdicts") or dotted == "data.accept":
        raw = {section: {key: [name]}}
    found = outcome(lambda: resolve(raw))
    return found if isinstance(found, list) else []


@pytest.mark.parametrize("dotted", NAMES)
def test_an_unknown_name_is_a_mistake_wherever_a_registry_has_the_names(dotted):
    (sentence,) = outcome_of(dotted, "toy")
    assert "got 'toy'." in sentence
    assert f" Expected one of: {', '.join(NAMES[dotted])}" in sentence


@pytest.mark.parametrize("dotted", NAMES)
def test_a_name_that_is_added_to_a_registry_may_be_asked_for(dotted, monkeypatch):
    monkeypatch.setitem(sweepfile.NAMES, dotted, [*NAMES[dotted], "toy"])
    assert outcome_of(dotted, "toy") == []


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
    ("train: {epochs: '5'}", "train.epochs: got '5'; expected a valid integer."),
    ("train: {epochs: true}", "train.epochs: got True; expected a valid integer."),
    ("train: {epochs: 2.0}", "train.epochs: got 2.0; expected a valid integer."),
    ("train: {lr: '1e-3'}", "train.lr: got '1e-3'; expected a valid number."),
    ("train: {lr: 3}", "train.lr: got 3; expected a value less than 1."),
    ("train: {lr: .nan}", "train.lr: got nan; expected a finite number."),
    ("train: {lr: null}", "train.lr: got None; expected a valid number."),
    ("train: 5", "train: got 5; expected a mapping of keys."),
    ("data: [1]", "data: got [1]; expected a mapping of keys."),
    ("variants: {plain: {train: 5}}", "variants.plain.train: got 5; expected a mapping of keys."),
    ("variants: {plain: 5}", "variants.plain: got 5; expected a mapping of keys."),
    (
        "variants: {interesting: {train: {epochs: 0}}}",
        "variants.interesting.train.epochs: got 0; expected a value greater than or equal to 1.",
    ),
    (
        "variants: {plain: {modle: {}}}",
        "variants.plain.modle: got an unknown key. Did you mean 'model'? Expected one of: model, train.",
    ),
    (
        "checkpoints: {int8: {path: m.pt, sise: 224}}",
        "checkpoints.int8.sise: got an unknown key. Did you mean 'size'? Expected one of: path, arch, size, "
        "cam_layer, preprocess, outputs, mean, std.",
    ),
    ("checkpoints: {study: {}}", "checkpoints.study.path: got nothing; expected a value."),
    (
        "checkpoints: {m: {path: m.pt, outputs: {NORMAL: [0], viral: [1]}}}",
        "checkpoints.m.outputs: got 'NORMAL', 'viral'; expected outputs of NORMAL and PNEUMONIA.",
    ),
    (
        "data: {classes: {several: {a: [x], b: [y], c: [z]}, target: c}}\n"
        "checkpoints: {m: {path: m.pt, outputs: {a: [0], c: [1]}}}",
        "checkpoints.m.outputs: got 'a', 'c'; expected outputs of NORMAL and PNEUMONIA, or of a, b, c.",
    ),
    (
        "data: {classes: {several: {a: [x], b: [y], c: [z]}, target: d}}",
        "data.classes: got 'd' as target; expected one of a, b, c.",
    ),
    (
        "data: {classes: {target: PNEUMONIA}}",
        "data.classes: got {} as several; expected three or more classes that differ in more than case, each with its "
        "labels; use negative and positive for two.",
    ),
    (
        "data: {classes: {several: {a: [x], b: [y], c: [z]}, target: c, positive: [z]}}",
        "data.classes: got positive beside several; expected one of them; leave one out.",
    ),
    (
        "data: {classes: {several: {a: [x], b: [y], c: [X]}, target: c}}",
        "data.classes: got 'x' twice; expected each label in one class, once.",
    ),
    (
        "data: {source: table, path: a.csv, label: '_(a|b)_'}",
        "data.label: got a value with data.source table; expected source folder, hub; leave it out.",
    ),
    ("data: {label: bacteria}", "data.label: got 'bacteria' without a group; expected one, such as 'patient(\\d+)'."),
    (
        "checkpoints: {study: {path: m.pt, std: [1, 1, 0]}}",
        "checkpoints.study.std.2: got 0; expected a value greater than 0.",
    ),
    (
        "checkpoints: {plain: {path: m.pt}}\nvariants: {plain: {}}",
        "checkpoints: got plain, also a variant; expected another name.",
    ),
    ("resources: {workers: lots}", "resources.workers: got 'lots'; expected auto, or a whole number from 1."),
    ("resources: {batch_size: 0}", "resources.batch_size: got 0; expected auto, or a whole number from 1."),
    ("resources: {workers: true}", "resources.workers: got True; expected auto, or a whole number from 1."),
    (
        "resources: {gpu_per_worker: .inf}",
        "resources.gpu_per_worker: got inf; expected auto, 0 to 1, or a whole number.",
    ),
    ("resources: {gpu_per_trial: 1.5}", "resources.gpu_per_trial: got 1.5; expected auto, 0 to 1, or a whole number."),
    ("resources: {gpu_per_trial: -1}", "resources.gpu_per_trial: got -1; expected auto, 0 to 1, or a whole number."),
    ("controls: {Shifted: 2}", "controls.Shifted: got 'Shifted'; expected a name that matches [a-z][a-z0-9_-]*."),
    ("controls: {1: 2}", "controls.1: got 1; expected a name that matches [a-z][a-z0-9_-]*."),
    (
        "controls: {shiftet: 2}",
        f"controls: got 'shiftet'. Did you mean 'shifted'? Expected one of: {', '.join(CONTROLS)}.",
    ),
    ("controls: {shifted: 392}", "controls.shifted: got 392; expected at most 391, since no more of its draws differ."),
    ("controls: {mean_map: 5}", "controls.mean_map: got 5; expected at most 1, since no more of its draws differ."),
    (
        "{explain: {explainers: [gradcam]}, verdicts: {explainers: [saliency]}}",
        "verdicts.explainers: got saliency; expected one of explain.explainers; add it there.",
    ),
    (
        "{perturb: {grids: ['14']}, verdicts: {controls: [pixel_random]}}",
        "verdicts.controls: got pixel_random, which is not drawn on grid 14; expected another; leave it out.",
    ),
    ("verdicts: {controls: [shifted, shifted]}", "verdicts.controls: got shifted twice; expected each once."),
    ("verdicts: {futile: 0.5}", "verdicts.futile: got 0.5; expected a value greater than 0.5."),
    ("controls: {shifted: 0}", "controls.shifted: got 0; expected a value greater than or equal to 1."),
    ("explain: {explainers: [saliency, saliency]}", "explain.explainers: got saliency twice; expected each once."),
    ("explain: {explainers: []}", "explain: got no explainers and no maps; expected at least one of either."),
    (
        "explain: {maps: {gradcam: a.npz}}",
        "explain.maps.gradcam: got a name of something else in the tables; expected another; rename it.",
    ),
    (
        "explain: {maps: {shared: a.npz}}",
        "explain.maps.shared: got a name of something else in the tables; expected another; rename it.",
    ),
    (
        "explain: {maps: {Theirs: a.npz}}",
        "explain.maps.Theirs: got 'Theirs'; expected a name that matches [a-z][a-z0-9_-]*.",
    ),
    ("explain: {maps: {theirs: [a.npz]}}", "explain.maps.theirs: got ['a.npz']; expected a valid string."),
    ("perturb: {grids: [15]}", "perturb.grids.0: got '15'. Did you mean '14'? Expected one of: pixel, 7, 14, 28."),
    (
        "perturb: {fills: [meen]}",
        f"perturb.fills.0: got 'meen'. Did you mean 'mean'? Expected one of: {', '.join(FILLS)}.",
    ),
    (
        "perturb: {levels: [0.5], orders: [lerf]}",
        "perturb.levels: got 0.5 with lerf alone, whose only metric is an area; expected no step wider than 0.3 (0 and "
        "1 included); give 0.25, 0.5, 0.75, or add morf to perturb.orders.",
    ),
    ("perturb: {levels: [0.5, 1]}", "perturb.levels.1: got 1; expected a value less than 1."),
    (
        "train: {lr: {grd: [1]}}",
        "train.lr: got {'grd': [1]}; expected one of {grid: [...]}, {choice: [...]}, {uniform: [low, high]}, "
        "{loguniform: [low, high]}.",
    ),
    ("train: {lr: {grid: 0.1}}", "train.lr: got 0.1; expected a list after grid."),
    (
        "train: {lr: {uniform: [0.5, 0.1]}}",
        "train.lr: got [0.5, 0.1]; expected [low, high] with low < high after uniform.",
    ),
    ("train: {lr: {loguniform: [0, 0.1]}}", "train.lr: got [0, 0.1]; expected low > 0 after loguniform."),
    ("train: {lr: {uniform: [0.1, 2]}}", "train.lr: got 2; expected a value less than 1."),
    (
        "train: {epochs: {uniform: [1, 5]}}",
        "train.epochs: got uniform, which is for real numbers; expected grid or choice.",
    ),
    ("train: {seed: {grid: [0, 1, 1]}}", "train.seed: got a grid with a value twice, [0, 1, 1]; expected each once."),
    (
        "variants: {b: {train: {loss: {choice: [ce, hinge]}}}}",
        "variants.b.train.loss: got 'hinge'. Expected one of: ce, weighted, focal.",
    ),
    ("1: 2", "1: got 1; expected strings."),
]


@pytest.mark.parametrize(("text", "sentence"), SENTENCES, ids=[t.splitlines()[0] for t, _ in SENTENCES])
def test_one_mistake_is_one_sentence(text, sentence):
    assert mistakes(text) == [sentence]


def test_the_names_of_unknown_explainers_are_checked_against_those_that_exist():
    (sentence,) = mistakes("explain: {explainers: [gradcan]}")
    assert (
        sentence
        == f"explain.explainers.0: got 'gradcan'. Did you mean 'gradcam'? Expected one of: {', '.join(EXPLAINERS)}."
    )


def test_what_came_is_shortened():
    (sentence,) = mistakes(f"train: {{lr: {'x' * 5000}}}")
    assert len(sentence) < 300
    assert mistakes(f"train: {{lr: 0x{'f' * 5000}}}") == ["train.lr: got a huge int; expected a valid number."]


# Anything that YAML can hold is a sweep or a mistake.

KEYS = sorted(
    {key for section in Sweep.model_fields.values() for key in getattr(section.annotation, "model_fields", {})}
    | {*Sweep.model_fields, "grid", "choice", "uniform", "loguniform", "plain", "epochs", "lr", "loss", "weights"}
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=3)
    | st.text(max_size=5)
    | st.sampled_from(["auto", "gradcam", "pixel", 14, 0.5, "none", "10" * 3000])
)
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
    made = outcome(lambda: resolve(raw))
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
        [
            "train:",
            "lr",
            ": ",
            "\n",
            "  ",
            "- ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a",
            "!!int ",
            "!!float ",
            "!!bool ",
            "!!timestamp ",
            "!!set ",
            "!!python/name:os.system ",
            "<<: ",
            "? ",
            "''",
            "1e-3",
            "0x",
            "|",
            ">",
            "#",
            "%YAML",
            "---",
            "2020-99-99",
            "=",
            "\t",
            "\x00",
            "name",
        ]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=12,
).map("".join)


@given(text=YAML_TEXT)
def test_any_text_is_a_sweep_or_a_mistake(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    made = outcome(lambda: load_sweep(path))
    assert made
    if not isinstance(made, Sweep):
        assert all(len(line) < 1000 for line in made)


@pytest.mark.parametrize(
    "text",
    [
        "!!int ''",
        "!!float ''",
        "!!bool x",
        "!!timestamp x",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "train: {lr: {grid: [&a [*a], &b [*b]]}}",
        "? [a]\n: b",
        "[" * 3000,
        "a: 0x_",
        "\x00",
        "<<: 5",
    ],
    ids=lambda text: text[:20],
)
def test_ill_formed_yaml_is_a_mistake(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(SweepError):
        load_sweep(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ("{names: [border, marker]}", ["regions.names: got marker", "data.source: phantom", "leave it out"]),
        ("{names: [opacity]}", ["regions.names: got opacity", "folder images"]),
        ("{names: [outside_lungs]}", ["outside_lungs without lung masks", "regions.lungs", "torchxrayvision"]),
        ("{names: [border, border]}", ["regions.names: got border twice"]),
        ("{edits: [equalize, equalize]}", ["regions.edits: got equalize twice"]),
        ("{names: [lung]}", ["regions.names", "Did you mean 'lungs'", "corners"]),
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model: {arch: ResNet18}", "model.arch: got 'ResNet18'. Did you mean 'resnet18'? Expected one of: "),
        ("perturb: {fills: [Mean]}", "perturb.fills.0: got 'Mean'. Did you mean 'mean'? Expected one of: "),
        ("data: {source: Phantom}", "data.source: got 'Phantom'. Did you mean 'phantom'? Expected one of: "),
    ],
)
def test_a_name_in_capitals_is_told_the_nearest_once(text, sentence):
    with pytest.raises(SweepError) as e:
        swept(text)
    (line,) = str(e.value).splitlines()
    assert line.startswith(sentence)
