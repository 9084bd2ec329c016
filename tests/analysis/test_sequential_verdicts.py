"""Sequential verdicts: planted wins, decisions at their step, and what is not scored any more."""

import numpy as np
import pyarrow as pa
import pytest

from cxr_ray.analysis.betting import decide
from cxr_ray.analysis.primary import resolve
from cxr_ray.analysis.sequential_verdicts import Step, Verdicts, steps_of
from cxr_ray.measure.steps import WINS, verdict_sweep
from cxr_ray.schemas import TABLES
from tests.builders.shards import sweep

RATES = {"other_image": 0.95, "shifted": 0.5}


def verdicts(steps, controls=tuple(RATES), **changes):
    config = sweep(
        explain={"explainers": ["gradcam"], "targets": ["pneumonia"]}, verdicts={"controls": list(controls), **changes}
    )
    return Verdicts("m", steps, verdict_sweep(config, "7", "mean", "abpc"))


def made_steps(n=300):
    outcomes = np.random.default_rng(0).choice(["TP", "FP", "TN"], n)  # no FN
    return [Step(f"{i:04d}", int(o in ("TP", "FP")), str(o)) for i, o in enumerate(outcomes)]


def made_win(image_id, control):
    """A planted win: a function of the image and the control."""
    return float(np.random.default_rng([int(image_id), len(control)]).random() < RATES[control])


def answer(blocks, lost=()):
    """Wins as a worker gives them, a table a block."""
    tables = []
    for block in blocks:
        rows = [(i, c.explainer, 1, c.control) for i in block.image_ids for c in block.comparisons]
        found = [None if i in lost else made_win(i, control) for i, _, _, control in rows]
        columns = [*zip(*rows, strict=True), found]
        arrays = [pa.array(list(column), f.type) for column, f in zip(columns, WINS, strict=True)]
        tables.append(pa.Table.from_arrays(arrays, schema=WINS))
    return tables


def run(model, patients=8, lost=()):
    """Every round until none is left; the images that were scored with their comparisons."""
    scored = []
    while blocks := model.next_round(patients, 4):
        scored += [(i, c) for block in blocks for i in block.image_ids for c in block.comparisons]
        model.add(answer(blocks, lost))
    return scored


def decisions(model):
    return {(c.comparison.control, c.bucket): c.found for c in model.cells}


def test_planted_win_rates_are_told_apart():
    model = verdicts(made_steps())
    run(model)
    found = decisions(model)
    assert found["other_image", "all"].decision == "better"
    assert found["other_image", "all"].n < 40
    assert found["shifted", "all"].decision in ("futile", "undecided")
    assert found["shifted", "FN"] is None


@pytest.mark.parametrize("patients", [1, 16, 999])
def test_rows_do_not_depend_on_the_round(patients):
    steps = made_steps()
    one, other = verdicts(steps), verdicts(steps)
    lost = [s.image_id for s in steps[::7]]
    run(one, 4, lost)
    run(other, patients, lost)
    settings = resolve(sweep())
    assert one.rows(settings) == other.rows(settings)


def test_a_cell_decides_as_betting_on_all_of_its_patients_does():
    steps = made_steps()
    model = verdicts(steps)
    run(model)
    for cell in model.cells:
        own = [s.image_id for s in steps if cell.bucket in ("all", s.outcome)]
        if own:
            wins = [made_win(i, cell.comparison.control) for i in own]
            assert cell.found == decide(wins, cell.alpha, 0.6)


def test_what_is_decided_is_not_scored_again():
    model = verdicts(made_steps())
    scored = run(model)
    assert len(scored) == len(set(scored))
    of_control = {c: [i for i, comparison in scored if comparison.control == c] for c in RATES}
    assert len(of_control["other_image"]) < 150  # its buckets are decided
    assert len(of_control["shifted"]) > len(of_control["other_image"])
    last = max(cell.found.n for cell in model.cells if cell.comparison.control == "other_image" and cell.decided)
    assert last < len(of_control["other_image"]) + 8


def test_a_lost_map_is_no_step_and_is_counted():
    steps = made_steps(40)
    lost = {steps[0].image_id, steps[5].image_id}
    model = verdicts(steps, controls=["shifted"])
    run(model, lost=lost)
    row = next(r for r in model.rows(resolve(sweep())) if r["bucket"] == "all")
    assert (row["n_patients"], row["n_available"], row["n_lost"]) == (38, 40, 2)


def test_the_family_is_every_cell_of_the_model():
    model = verdicts(made_steps(20), alpha=0.1)
    assert len(model.cells) == 1 * 1 * 2 * 5
    assert model.cells[0].alpha == pytest.approx(0.1 / 10)


def test_rows_are_those_of_the_table_and_sentences_say_what_was_shown():
    model = verdicts(made_steps())
    run(model)
    rows = TABLES["verdicts"].from_rows(model.rows(resolve(sweep()))).to_pandas()
    by_cell = rows.set_index(["control", "bucket"]).sentence
    n, rate = decisions(model)["other_image", "all"].n, decisions(model)["other_image", "all"].win_rate
    assert by_cell["other_image", "all"].startswith(
        f"Grad-CAM on m: more faithful than other patients' maps ({n} patients, win rate {rate:.3f} ["
    )
    assert "FN: not shown better than other patients' maps (no patient in this bucket)" in by_cell["other_image", "FN"]
    assert rows.e_value.dropna().gt(0).all()
    curve = 2 * len(sweep().perturb.levels)  # directions, levels
    assert list(rows.passes) == list(rows.n_patients * 2 * curve)  # of the map and of the draw


def test_one_image_of_each_patient_in_an_order_of_the_seed():
    images = {f"{i:04d}": {"patient": f"p{i // 3}", "predicted": i % 2} for i in range(60)}
    labels = {i: int(int(i) % 3 == 0) for i in images}
    steps = steps_of(images, labels, seed=0)
    assert len(steps) == 20
    assert {images[s.image_id]["patient"] for s in steps} == {f"p{i}" for i in range(20)}
    assert steps == steps_of(dict(reversed(images.items())), labels, seed=0)
    assert [s.image_id for s in steps] != [s.image_id for s in steps_of(images, labels, seed=1)]
    assert steps[0].outcome in ("TP", "FP", "TN", "FN")
