"""The table of ``benchmarks/gpu.sh``: a row for each ratio, beside what is to be reached and how it was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row: what it says, the file of the command that measured it, the ratio's name there, and the aim."""

    label: str
    file: str
    ratio: str
    aim: str


ROWS = (
    Row("engine: masked over plain passes, fastest form", "engine", "masked / ", "0.95"),
    Row("saliency, batch norms folded over plain", "explainers", "saliency: folded", ""),
    Row("Grad-CAM, batch norms folded over plain", "explainers", "gradcam: folded", ""),
    Row("worker, 400 passes an image: over plain passes", "worker", "worker, few / plain", "0.9"),
    Row("worker, three explainers, grids, targets, fills: over plain", "worker", "worker, many / plain", "0.85"),
    Row("sweep of four models, scoring stage: over plain passes", "sweeps4", "scoring / plain", "0.75"),
    Row("sweep of a given model, scoring stage: over plain passes", "sweeps1", "scoring / plain", ""),
    Row("sweep of a given model, whole: over plain passes", "sweeps1", "whole / plain", "20 s"),
    Row("Quantus PixelFlipping: ours over it", "peers", "ours, one order / Quantus PixelFlipping", "20"),
    Row("torch-cam's metric, same curves: ours over it", "peers", "ours, deletion and insertion / torch-cam", "9"),
    Row("ROADCombined: ours over it", "peers", "ours, both orders / grad-cam ROADCombined", "20"),
    Row("training: fit over the same loop, eager", "training", "fit / eager fit", "3"),
    Row("training: fit over bare passes, eager", "training", "fit / bare", ""),
    Row("next pass: first shard over import torch", "startup", "next pass: first shard / import torch", ""),
)


NO_RATIO = "its command does not measure it on this machine"


def lines(folder: Path, file: str | None = None) -> list[str]:
    """The table in Markdown, from FILE.json (a benchmark's last line) or FILE.log (why there is none) in a folder.

    ``file``: the only one whose rows are wanted.
    """
    rows = [row for row in ROWS if file in (None, row.file)]
    found = {name: _read(folder / f"{name}.json") for name in dict.fromkeys(row.file for row in rows)}
    machine = next((str(r["machine"]) for r in found.values() if r and "machine" in r), "no benchmark ended")
    head = [machine, "", "| measured | ratio | to reach | seconds, form |", "| --- | --- | --- | --- |"]
    table = [] if file else head
    for row in rows:
        result = found[row.file]
        name = next((n for n in (result or {}).get("ratios", {}) if n.startswith(row.ratio)), None)
        if result is None or name is None:
            reason = _reason(folder, row.file) if result is None else _missing(result) or NO_RATIO
            table.append(f"| {row.label} | not measured: {reason} | {row.aim} | |")
            continue
        how = [f"{k} {v} s" for k, v in result.get("seconds", {}).items()] + [str(result.get("chosen", ""))]
        table.append(f"| {row.label} | {result['ratios'][name]:.3g} | {row.aim} | {'; '.join(h for h in how if h)} |")
    return table


def _read(file: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(file.read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    return result if isinstance(result, dict) else None


def _missing(result: dict[str, Any]) -> str:
    """The packages that a benchmark says it lacks."""
    notes = result.items()
    return "; ".join(f"{name} {note}" for name, note in notes if isinstance(note, str) and note.startswith("missing"))


def _reason(folder: Path, name: str) -> str:
    try:
        said = (folder / f"{name}.log").read_text().strip().splitlines()
    except OSError:
        said = []
    return said[-1] if said else "its command said nothing, or took too long"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]), *sys.argv[2:3])))
