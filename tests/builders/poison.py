"""Networks, workers and images that end or hang the process that computes them."""

import json
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cxr_ray.schemas import ERRORS
from tests.builders.networks import Small


class Poisoned(Small):
    """Aborts on an image that is all white, hangs on one that is all black."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        constant = (x.amax((2, 3)) == x.amin((2, 3))).all(1)
        if torch.any(constant & (flat[:, 0] > 2)):
            os.abort()
        if torch.any(constant & (flat[:, 0] < -2)):
            time.sleep(3600)
        return super().forward(x)


class Toy:
    """A worker of a pool without a network: a table of errors for each image; ends or hangs at those named so."""

    def begin(self, settings: Any) -> None:
        """Passes are alike."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """As ``pipeline`` expects of a worker."""
        plan = json.loads(row["shard"])
        for image in plan["rows"]:
            if image["image_id"] == "abort":
                os.abort()
            if image["image_id"] == "hang":
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
