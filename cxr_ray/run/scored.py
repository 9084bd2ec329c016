"""Whether each model scored any image at all, once the tables are merged."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from cxr_ray import results
from cxr_ray.data.manifest import Manifest
from cxr_ray.errors import DataError
from cxr_ray.run import terminal
from cxr_ray.storage import Store


def check(store: Store, manifest: Manifest, trial_ids: Iterable[str]) -> None:
    """Tell of models that scored no validation image.

    Raises:
        DataError: a model scored no test image, so that the run can say nothing of it.
    """
    run = results.open_run(store.out)
    predictions, errors = run.arrow("predictions"), run.arrow("errors")
    scored = {tuple(pair.values()) for pair in _pairs(predictions)}
    for trial_id in trial_ids:
        for split, name in (("test", "test"), ("val", "validation")):
            rows = manifest.rows(split)
            if rows.empty or (trial_id, split) in scored:
                continue
            ids = set(rows["image_id"])
            reasons = [f"{e['path']}: {e['reason'].rstrip('.')}" for e in errors.to_pylist() if e["image_id"] in ids]
            got = f"{len(rows)} of {len(rows)} {name} images that {trial_id} could not score"
            got += f" ({reasons[0]})" if reasons else ""
            if split == "test":
                raise DataError(
                    f"got {got}; expected images that can be read; correct them or data.bits; all reasons: see table "
                    f"errors in {store.out}/tables."
                )
            terminal.say(f"Got {got}: fill and thresholds are chosen without them; see table errors.")


def _pairs(predictions: pa.Table) -> list[dict[str, str]]:
    found: list[dict[str, str]] = predictions.group_by(["trial_id", "split"]).aggregate([]).to_pylist()
    return found
