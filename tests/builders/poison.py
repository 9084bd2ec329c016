"""Workers and images that end or hang the process that computes them. Without torch: their processes start at once."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_ray.schemas import ERRORS


@dataclass
class Toy:
    """A worker of a pool without a network: a table of errors for each image; ends or hangs at those named so.

    Attributes:
        hangs: a file that is made when it hangs.
    """

    hangs: str

    def begin(self, settings: Any) -> None:
        """Passes are alike."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """As ``pipeline`` expects of a worker."""
        plan = json.loads(row["shard"])
        for image in plan["rows"]:
            if image["image_id"] == "abort":
                os.abort()
            if image["image_id"] == "hang":
                Path(self.hangs).touch()
                time.sleep(3600)
        rows = [{"path": r["path"], "image_id": r["image_id"], "stage": "toy", "reason": ""} for r in plan["rows"]]
        tables = {("errors", ""): ERRORS.from_rows(rows)}
        return {"name": plan["name"], "images": len(rows), "backend": "toy", "notes": [], "tables": tables}


class Stillborn:
    """A worker whose process ends before it is made."""

    def __init__(self) -> None:
        os.abort()


@dataclass(frozen=True)
class Source:
    """Every file is the same image, but for one whose decoding ends the process."""

    where: str = "poison"

    def read(self, path: str) -> bytes:
        """A PGM file."""
        if path == "decode.pgm":
            os.abort()
        return b"P5\n8 8\n255\n" + bytes(64)
