"""The sections of a sweep: defaults, hash, trial points; what is resolved stays as it is."""

import itertools

import pytest
import yaml
from pydantic import ValidationError

from cxr_ray.config import Section, Sweep
from cxr_ray.sweepfile import load_sweep
from cxr_ray.yamlfile import parse_yaml
from tests.builders.sweeps import EVERYTHING, swept

# The sweep as the design writes it down, with one learning rate and one seed instead of a search over them.
DEFAULTS = """
name: sweep
data: {source: folder, path: data/chest_xray, size: 224, fit: squash, val_share: 0.1, limit: null}
variants: {plain: {}}
model: {arch: resnet18, weights: imagenet, freeze: none, cam_layer: null}
train: {epochs: 8, batch_size: 32, lr: 1e-3, loss: ce, sampler: shuffle, augment: light, seed: 0}
search: {num_samples: 4, scheduler: asha, metric: val_auroc}
evaluate: best_per_variant_seed
checkpoints: {}
explain: {explainers: [gradcam, integrated_gradients, occlusion], targets: [pneumonia], keep_maps: true}
perturb:
  {grids: [pixel, 14], fills: [mean, blur], levels: [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], orders: [morf, lerf]}
controls: {cell_random: 5, shifted: 5, other_image: 5, mean_map: 1}
regions: {names: [border, corners, centre]}
sanity: {images: 32, layers: [fc, layer4, layer3]}
resources: {workers: auto, gpu_per_worker: auto, gpu_per_trial: auto, cpu_per_trial: 1, batch_size: auto}
seed: 0
"""


def test_the_defaults_are_those_of_the_design():
    written, have = parse_yaml(DEFAULTS, "design"), swept("").model_dump(mode="json")
    assert have["data"].pop("phantom") == {"train": 480, "test": 96, "prevalence": 0.5, "marker_correlation": 0.5}
    for key in (
        "images",
        "columns",
        "classes",
        "splits",
        "label",
        "patient",
        "accept",
        "bits",
        "val",
    ):  # tests/data/test_table.py
        del have["data"][key]
    assert have["train"].pop("weight_decay") == 0.01
    assert have["train"].pop("labels") == "given"
    assert (have["model"].pop("size"), have["model"].pop("preprocess")) == (None, "none")
    assert have["perturb"].pop("precision") == "float32"
    assert have.pop("sequential") is None
    assert have.pop("verdicts") is None
    assert have["explain"].pop("maps") == {}
    assert have.pop("stability") is None
    assert have.pop("track") == {"mlflow": None, "wandb": None}
    assert have["search"].pop("searcher") == "random"
    assert have.pop("truth") == {"path": None, "format": "auto", "labels": [], "size": None}
    assert (have["regions"].pop("draws"), have["regions"].pop("lungs"), have["regions"].pop("edits")) == (5, None, [])
    assert (have["regions"].pop("donors"), have["regions"].pop("marker")) == (120, None)
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


@pytest.mark.parametrize("text", ["", EVERYTHING])
def test_the_resolved_sweep_is_yaml_that_loads_back_to_itself(text, tmp_path):
    sweep = swept(text)
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    again = load_sweep(tmp_path / "sweep.yaml")
    assert again == sweep
    assert again.hash == sweep.hash
    # and other programs read the same numbers
    assert yaml.safe_load(sweep.to_yaml()) == sweep.model_dump(mode="json")


def test_the_hash_ignores_resources_trackers_and_the_path_of_the_data_and_nothing_else():
    base = swept("")
    for same in (
        "resources: {workers: 3, cpu_per_trial: 2}",
        "track: {mlflow: 'sqlite:///x.db', wandb: maps}",
        "data: {path: /elsewhere}",
        "train: {weight_decay: 1e-2}",
    ):
        assert swept(same).hash == base.hash, same
    different = (
        "name: other",
        "data: {source: phantom}",
        "data: {size: 112}",
        "data: {fit: pad}",
        "data: {limit: 10}",
        "data: {val_share: 0.2}",
        "data: {phantom: {train: 10}}",
        "variants: {b: {}}",
        "model: {freeze: backbone}",
        "train: {lr: 2e-3}",
        "search: {num_samples: 5}",
        "train: {lr: {uniform: [0.1, 0.2]}}",
        "search: {searcher: optuna}\ntrain: {lr: {uniform: [0.1, 0.2]}}",
        "evaluate: all",
        "checkpoints: {a: {path: m.pt}}",
        "explain: {keep_maps: false}",
        "perturb: {fills: [mean]}",
        "controls: {shifted: 6}",
        "seed: 1",
        "sequential: {max_draws: 99}",
        "verdicts: {alpha: 0.01}",
        "regions: null",
        "truth: {path: boxes.csv}",
        "sanity: {images: 8}",
        "stability: {images: 8}",
    )
    assert set(Sweep.model_fields) == {yaml_key.split(":")[0] for yaml_key in different} | {"resources", "track"}
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
