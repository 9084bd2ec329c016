"""Copy the README's pictures from a run: ``python docs/pictures.py results/quickstart``.

Both are pictures of the report: the first true positive of the gallery, and the figure of its first screen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"


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
    """Write gallery.png and summary.svg."""
    parser = argparse.ArgumentParser(description="Copy the README's pictures from a run.")
    parser.add_argument("run", type=Path, help="a finished run, such as results/quickstart")
    run = parser.parse_args().run
    save(first(run / "galleries", "tp_*_01.png"), "gallery.png")
    (IMAGES / "summary.svg").write_bytes((run / "figures" / "summary.svg").read_bytes())


if __name__ == "__main__":
    main()
