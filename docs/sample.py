"""Build the sample report of real X-rays: ``python docs/sample.py path/to/chest_xray --checkpoint path/to/model.pt``.

Explains 96 test images with one trained ResNet-18, measures the maps against controls, draws the report, and takes the
two pictures of docs/sample.md from it (with Chromium). About ten minutes on two CPU cores. ``--run`` draws a run that
is there again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
IMAGES = Path(__file__).parent / "images"
OUT = ROOT / "build" / "sample"
SWEEP = {
    "name": "sample",
    "data": {"source": "folder", "size": 224, "limit": 96},
    "explain": {"explainers": ["gradcam", "saliency"], "targets": ["pneumonia"]},
    "perturb": {
        "grids": ["14"],
        "fills": ["noise"],
        "levels": [0.1, 0.25, 0.5, 0.75, 0.95],
        "orders": ["morf", "lerf"],
    },
    "controls": {"cell_random": 2, "shifted": 1, "other_image": 1, "mean_map": 1},
    "sanity": None,
}
PICTURES = {  # name: page, and the part of it in pixels (left, top, right, bottom)
    "sample-page.png": ("report.html", (0, 0, 1280, 1250)),
    "sample-browser.jpg": ("browser/index.html", (0, 0, 1280, 1120)),
}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def sweep(data: str, checkpoint: str, out: Path) -> None:
    """Run the sweep into ``out``.

    Raises:
        SystemExit: it did not finish; it says why itself.
    """
    content = {**SWEEP, "checkpoints": {"resnet18": {"path": checkpoint, "arch": "resnet18", "size": 224}}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sample.yaml"
        file.write_text(yaml.safe_dump(content))
        command = [sys.executable, "-m", "cxr_ray.sweep", str(file), "--data", data, "--out", str(out), "--resume"]
        if code := subprocess.run(command, check=False).returncode:
            raise SystemExit(code)


def picture(run: Path, name: str) -> Path:
    """A part of a page as a picture under docs/images.

    Raises:
        SystemExit: there is no Chromium.
    """
    page, (left, top, right, bottom) = PICTURES[name]
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"got no Chromium; expected one of {', '.join(CHROMIUM)}; install one.")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--screenshot={shot}", f"--window-size={right},{bottom}", "--virtual-time-budget=10000"]
        subprocess.run([*command, (run / page).resolve().as_uri()], check=True, capture_output=True)
        found = Image.open(shot).convert("RGB").crop((left, top, right, bottom))
    file = IMAGES / name
    small = found.resize((960, round(960 * found.height / found.width)), Image.Resampling.LANCZOS)
    if file.suffix == ".png":  # of few colours: octrees keep apart those of controls
        small = small.quantize(256, Image.Quantize.FASTOCTREE)
    small.save(file, optimize=True, quality=85)
    return file


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="the unpacked data set")
    parser.add_argument("--checkpoint", help="a ResNet-18 state dict, 224 pixels, ImageNet's mean and deviation")
    parser.add_argument("--run", type=Path, help="take the pictures of this run instead")
    args = parser.parse_args()
    if args.run is None:
        if not (args.data and args.checkpoint):
            parser.error("got no data or no --checkpoint; expected both, or --run RUN; give them.")
        sweep(args.data, args.checkpoint, OUT)
    run = args.run or OUT
    for name in PICTURES:
        file = picture(run, name)
        print(f"{file} ({file.stat().st_size // 1024} KiB)")
    print(f"Report: {run}/report.html; images: {run}/browser/index.html")


if __name__ == "__main__":
    main()
