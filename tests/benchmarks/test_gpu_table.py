"""The table of gpu.sh: every row is a number, or why there is none."""

import json

from benchmarks import gpu_table


def test_a_row_holds_what_its_command_printed_last(tmp_path):
    ratios = {"masked / compiled_half, the fastest form": 0.9342}
    result = {"ratios": ratios, "machine": "A card, torch", "chosen": "compiled_half (79800/s)"}
    (tmp_path / "engine.json").write_text("engine: A card\n" + json.dumps(result) + "\n")
    result = {
        "ratios": {"scoring / plain": 0.75, "whole / plain": 0.25},
        "seconds": {"whole": 12.5},
        "machine": "A card",
    }
    (tmp_path / "sweeps1.json").write_text(json.dumps(result))
    lines = gpu_table.lines(tmp_path)
    assert lines[0] == "A card, torch"
    (engine,) = [line for line in lines if line.startswith("| engine:")]
    assert engine.split(" | ")[1:] == ["0.934", "0.95", "compiled_half (79800/s) |"]
    (whole,) = [line for line in lines if "a given model, whole" in line]
    assert "| 0.25 | 20 s | whole 12.5 s |" in whole


def test_a_row_without_a_number_says_why(tmp_path):
    (tmp_path / "worker.log").write_text("Traceback\nRuntimeError: no memory\n")
    (tmp_path / "worker.json").write_text("worker: A card\n")
    (tmp_path / "training.json").write_text(json.dumps({"ratios": {"another": 1.0}, "machine": "A card"}))
    (tmp_path / "peers.json").write_text(json.dumps({"ratios": {}, "Quantus": "missing; pip install it"}))
    lines = gpu_table.lines(tmp_path)
    assert sum("not measured: Quantus missing; pip install it" in line for line in lines) == 3
    assert len(lines) == 4 + len(gpu_table.ROWS)
    assert sum("not measured: RuntimeError: no memory" in line for line in lines) == 2
    training = [line for line in lines if line.startswith("| training")]
    assert sum("its command does not measure it on this machine" in line for line in training) == 2
    assert sum("its command said nothing, or took too long" in line for line in lines) == len(gpu_table.ROWS) - 7


def test_the_rows_of_one_command_are_those_of_the_table(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"ratios": {"fit / eager fit": 1.9, "fit / bare": 1.4}}))
    rows = gpu_table.lines(tmp_path, "training")
    assert len(rows) == 2
    assert set(rows) < set(gpu_table.lines(tmp_path))
    assert [float(row.split("|")[2]) for row in rows] == [1.9, 1.4]
