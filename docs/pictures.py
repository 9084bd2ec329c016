"""Copy the README's pictures from a run: ``python docs/pictures.py results/quickstart``.

Both are pictures of the report: the first true positive of the gallery, and the forest plot of the advantage over the
controls, of the model with the highest val_auroc.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from cxr_ray.results import open_run

IMAGES = Path(__file__).parent / "images"


def first_model(run: Path) -> str:
    """trial_id of the model that the report shows first: the one with the highest val_auroc."""
    trials = open_run(run).pandas("trials")
    return str(trials.sort_values("val_auroc", ascending=False, na_position="last")["trial_id"].iloc[0])


def first(folder: Path, pattern: str) -> Path:
    """The first file of the folder that fits.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"got no {folder}/{pattern}; draw the report first: python -m cxr_ray.report RUN")
    return found[0]


def save(source: Path, name: str) -> None:
    """Write the picture under docs/images, as small as PNG makes it."""
    IMAGES.mkdir(exist_ok=True)
    Image.open(source).convert("RGB").save(IMAGES / name, optimize=True)


def main() -> None:
    """Write gallery.png and forest.png."""
    parser = argparse.ArgumentParser(description="Copy the README's pictures from a run.")
    parser.add_argument("run", type=Path, help="a finished run, such as results/quickstart")
    run = parser.parse_args().run
    save(first(run / "galleries", "tp_*_01.png"), "gallery.png")
    save(first(run / "figures", f"advantages-{first_model(run)}-*.png"), "forest.png")


if __name__ == "__main__":
    main()
