"""The browser of images at the size of a run and at many more: what it takes to write, its bytes, its first card.

The larger run repeats the test images of a finished one under other names. With Chromium, seconds from opening the page
to the first drawn card, and to all cards after a change of order.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import common
from cxr_ray.report.browser.files import FOLDER, PAGE, write_browser
from cxr_ray.report.galleries import Images
from cxr_ray.report.load import load
from cxr_ray.results import open_run
from cxr_ray.storage import Store
from tests.builders import chromium

REPEATED = ("images", "predictions", "saliency", "curves", "faithfulness")
DRAWN = "document.body && document.body.getAttribute('aria-busy') === 'false'"
FIRST = "document.querySelector('.card[data-drawn]')"
REORDER = (
    "(() => { const e = document.querySelector('#filters [name=sort]'); e.value = 'unsure'; "
    "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
)


def repeated(run: Path, folder: Path, times: int) -> Path:
    """A copy of a run whose test images stand so many times in its tables, each time as other patients."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(FOLDER, "galleries", "figures", "checkpoints", "tune"))
    for file in [f for name in REPEATED for f in (folder / "tables" / name).rglob("*.parquet")]:
        table = pq.ParquetFile(file).read()
        if "split" in table.column_names:
            table = table.filter(pc.equal(table["split"], "test"))
        copies = [table, *(_renamed(table, n) for n in range(1, times))]
        pq.write_table(pa.concat_tables(copies), file)
    return folder


def _renamed(table: pa.Table, n: int) -> pa.Table:
    for name in ("image_id", "patient_id"):
        if name in table.column_names:
            at = table.column_names.index(name)
            names = pc.binary_join_element_wise(table[name], f"x{n}", "-")
            table = table.set_column(at, table.schema.field(at), names)
    return table


def written(run: Path, data: str | None) -> dict[str, float]:
    """Images, processor milliseconds an image and megabytes of the browser."""
    opened = open_run(run)
    loaded, start = load(opened), time.process_time()
    n = write_browser(loaded, Store(str(run), {}), Images(opened, data))
    taken = time.process_time() - start
    size = sum(f.stat().st_size for f in (run / FOLDER).rglob("*") if f.is_file())
    return {"images": n, "ms an image": 1000 * taken / n, "MB": size / 1e6}


def watched(run: Path) -> dict[str, float]:
    """Seconds to the first card, and to all cards of another order, in a browser that was open before."""
    with tempfile.TemporaryDirectory() as profile, chromium.chromium(Path(profile)) as tab:
        found = {}
        for address in ("?warm", ""):
            start = time.perf_counter()
            tab.open(run / FOLDER / PAGE, address)
            tab.until(FIRST)
            found["seconds to the first card"] = time.perf_counter() - start
        tab.until(DRAWN)
        start = time.perf_counter()
        tab.run(REORDER)
        tab.until(DRAWN)
        return {**found, "seconds to another order": time.perf_counter() - start}


def main() -> None:
    """The command."""
    given = common.arguments(
        __doc__,
        run="a finished run that kept its maps",
        images=(int, 10_000, "images of the larger run, at least"),
        data=(str, None, "where the images lie, if elsewhere now"),
    )
    if given.run is None:
        raise SystemExit("got no run; expected the folder of a finished one.")
    with tempfile.TemporaryDirectory() as folder:
        own = repeated(Path(given.run), Path(folder, "own"), 1)
        sizes = {"its own size": written(own, given.data)}
        times = -(-given.images // int(sizes["its own size"]["images"]))
        large = repeated(Path(given.run), Path(folder, "large"), times)
        sizes["repeated"] = written(large, given.data)
        if chromium.installed():
            for name, run in zip(list(sizes), (own, large), strict=True):
                sizes[name] |= watched(run)
    ratios = {what: sizes["repeated"][what] / value for what, value in sizes["its own size"].items()}
    told = {name: {what: round(value, 3) for what, value in of.items()} for name, of in sizes.items()}
    common.show("browser", {}, ratios, {}, unit="", as_json=given.json, sizes=json.dumps(told))


if __name__ == "__main__":
    main()
