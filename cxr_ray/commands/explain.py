"""The command line ``cxr-ray explain MODEL DATA``: maps of images as files and pictures, and their measurement."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_ray.arguments import ARCH, SIZE, Parser, add_network, guarded, outputs_of, said_of
from cxr_ray.counting import telling
from cxr_ray.errors import CxrRayError, DataError, UserError, first_line

if TYPE_CHECKING:  # these import torch, which --help does without
    import numpy as np
    from numpy.typing import NDArray

    from cxr_ray.library import Measurement
    from cxr_ray.models.networks import Classifier, ModelSpec

    Maps = Mapping[str, NDArray[np.float32]]

CONTROLS = {"cell_random": 2, "shifted": 2, "other_image": 2, "mean_map": 1}  # draws: minutes on a laptop, not hours
IMAGES, MEASURED = 16, 40  # of a folder, unless more are asked for; a claim needs 20 patients
EXIT_CODES = "Exit codes: 0 done, 1 a file cannot be read or written, 2 the request was wrong, 130 interrupted."


def parser(prog: str = "cxr-ray explain") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(
        prog=prog,
        description="Explains images of a folder with one model, without a sweep: each map as a file and a picture.",
        epilog=EXIT_CODES,
    )
    p.add_argument("model", help="the model: a .pt or .safetensors state dict of 1 or 2 outputs")
    p.add_argument("data", nargs="+", help="images, or folders of images; NORMAL and PNEUMONIA in a path are labels")
    p.add_argument("--explainer", nargs="+", default=["gradcam"], help="whose maps (default: gradcam)")
    p.add_argument("--target", choices=("pneumonia", "predicted"), default="pneumonia", help="the class explained")
    p.add_argument("--measure", action="store_true", help="also compare the maps with controls, into tables")
    limit = f"at most so many images, by --seed (default: {IMAGES}, or {MEASURED} with --measure)"
    p.add_argument("--limit", type=int, help=limit)
    add_network(p, "the outputs of the network that stand for NORMAL and PNEUMONIA (default: as the file says)")
    p.add_argument("--seed", type=int, default=0, help="of the choice of images and of draws (default: 0)")
    p.add_argument("--out", default="explained", help="a new folder (default: explained)")
    p.add_argument("--quiet", action="store_true", help="say nothing but what is wrong and where the maps are")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray explain") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from cxr_ray.run import progress

    return guarded(lambda: progress.concluded("Preparing", run(args), quiet=args.quiet))


@dataclass(frozen=True)
class Chosen:
    """The images that are explained.

    Attributes:
        paths: of the files; names: of each the path below what was named, without its ending, each once.
        labels: 0 or 1 of each, as its folder says; None: not all say it.
        patients: of each.
        all: how many there were.
    """

    paths: Sequence[str]
    names: Sequence[str]
    labels: list[int] | None
    patients: Sequence[str]
    all: int


def run(args: argparse.Namespace) -> Iterator[str]:
    """From the arguments to the lines that conclude; files are written on the way."""
    from cxr_ray.analysis.resampling import MIN_PATIENTS
    from cxr_ray.run import progress, resume, terminal

    check_out(args.out)
    resume.check_out(args.out, resume=False)
    if args.size is not None and not 32 <= args.size <= 1024:
        raise UserError(f"--size: got {args.size}; expected 32 to 1024 pixels; give the side of the model's input.")
    limit = args.limit if args.limit is not None else MEASURED if args.measure else IMAGES
    images = choose(args.data, limit, args.seed)
    terminal.say(f"Images: {len(images.paths)} of {images.all}, {known_of(images)}.")
    if args.measure and (n := len(set(images.patients))) < MIN_PATIENTS:
        terminal.complain(
            f"{n} patients: under {MIN_PATIENTS} the tables hold means without intervals, and nothing is claimed."
        )
    from cxr_ray.measure.explainers import EXPLAINERS
    from cxr_ray.measure.given import given, told_dark

    for explainer in args.explainer:
        EXPLAINERS[explainer]  # fails before the model is read
    model = load(args)
    if (dark := told_dark(images.paths)) is not None:
        terminal.complain(f"{dark}.")
    pixels = given(model, list(images.paths), model.spec).pixels
    maps = {}
    with progress.stage("Maps", len(args.explainer), "explainers") as stage:
        for name in args.explainer:
            maps[name] = maps_by(name, model, pixels, images, args)
            stage.advance()
    out = Path(args.out)
    write(out, model, pixels, images, maps)
    if args.measure:
        n, hint = len(images.paths), "the first images are masked and scored"
        with progress.stage("Measuring against control masks", n, "images", hint=hint) as stage, telling(stage.advance):
            measured = measure(model, pixels, images, args)
        tables(out, measured)
        yield from claims(measured, args)
        yield f"Tables: {out}/tables"
    yield f"Maps: {out}/maps; pictures: {out}/pictures"


def _of_pixels(model: Classifier) -> ModelSpec:
    """The spec for images that went through its preprocessing."""
    return replace(model.spec, preprocess="none")


def maps_by(name: str, model: Classifier, pixels: Any, images: Chosen, args: argparse.Namespace) -> NDArray[np.float32]:
    """The maps of an explainer, which may be another author's.

    Raises:
        UserError: it fails.
    """
    from cxr_ray import library

    try:
        return library.explain(
            model, pixels, name, target=args.target, spec=_of_pixels(model), ids=images.names, seed=args.seed
        )
    except (CxrRayError, OSError):
        raise
    except Exception as e:
        raise UserError(
            f"--explainer: got {name}, which fails on this network ({first_line(e)}); expected maps; give another "
            "(cxr-ray list), or mend it and what it says that it needs."
        ) from None


def known_of(images: Chosen) -> str:
    """Labels and patients, as they were found."""
    from cxr_ray.schemas import CLASSES

    n = len(set(images.patients))
    patients = f"{n} patient{'s' * (n != 1)} by file names"
    if images.labels is None:
        return f"{patients}; no labels: there are no outcomes"
    counts = [f"{images.labels.count(label)} {name}" for label, name in enumerate(CLASSES)]
    return f"{patients}; labels by their folders: {', '.join(counts)}"


def check_out(out: str) -> None:
    """See that the folder is a new one of this machine.

    Raises:
        UserError: it is not.
    """
    if "://" in out:
        raise UserError(f"--out: got {out}; expected a folder of this machine; give one.")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: got {out}, which is there already; expected a new folder; give another (--out PATH).")


def choose(data: Sequence[str], limit: int, seed: int) -> Chosen:
    """The images of files and folders, at most ``limit``, balanced by label, chosen by a hash of seed and name.

    Raises:
        DataError: there is none, or two have one name.
        UserError: the limit is no number from 1.
    """
    from cxr_ray.data.splits import choose as choose_some
    from cxr_ray.schemas import CLASSES

    if limit < 1:
        raise UserError(f"--limit: got {limit}; expected a whole number from 1; give how many images to explain.")
    found = dict(_files(data))
    parts = {name: [part for part in Path(path).parts if part in CLASSES] for name, path in found.items()}
    is_labelled = all(parts.values())
    labels = {name: CLASSES.index(of[-1]) if is_labelled else 0 for name, of in parts.items()}
    chosen = choose_some(labels, labels.values(), limit, seed)
    names = [name for name in found if name in chosen]
    return Chosen(
        [found[name] for name in names],
        names,
        [labels[name] for name in names] if is_labelled else None,
        _patients(found, names),
        len(found),
    )


def _patients(found: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Whose each image is, as its name tells; a name that stands in several folders tells nobody, which is said."""
    from cxr_ray.data.patients import BY_FOLDERS, patient_of
    from cxr_ray.run import terminal

    stems = Counter(Path(name).name for name in found)
    named = {name: patient_of(found[name]) for name in names}
    several = {n for n, of in named.items() if stems[Path(n).name] > 1 and of.convention not in BY_FOLDERS}
    if several:
        terminal.complain(
            f"{len(several)} images have a name that stands in several folders ({min(several)}): each counts as a "
            "patient of its own. Where some are of one patient, intervals are too narrow: name data.patient in a sweep."
        )
    return [name if name in several else of.patient_id for name, of in named.items()]


def _files(data: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name and path of each image."""
    from cxr_ray.data.folder import is_junk, is_mask
    from cxr_ray.data.pairing import without_ending
    from cxr_ray.run import terminal

    seen: dict[str, Path] = {}
    masks: list[str] = []
    for given in data:
        root = Path(given).expanduser()
        if not root.exists():
            raise DataError(f"got {given}, which is not there; expected an image or a folder of images; give one.")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if _is_image(p))
        base = root.parent if root.is_file() else root
        for file in files:
            relative = file.relative_to(base)
            if any(is_junk(part) for part in relative.parts):
                continue
            if file != root and is_mask(str(relative)):
                masks.append(str(relative))
                continue
            name = without_ending(relative.as_posix())
            if name in seen:
                raise DataError(f"got two images named {name} ({seen[name]}, {file}); expected one; leave one out.")
            seen[name] = file
            yield name, str(file)
    if masks:
        terminal.say(f"Left out as masks, by name: {len(masks)} ({masks[0]}{', ...' * (len(masks) > 1)}).")
    if not seen:
        raise DataError(
            f"got {', '.join(data)}, where no image is; expected files such as .jpeg, .png or .dcm; give such."
        )


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its ending, or by its content, as DICOM files often have no ending."""
    from cxr_ray.data.folder import ENDINGS
    from cxr_ray.data.images import is_image

    if path.suffix.lower() in ENDINGS:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_image(file.read(132))


def load(args: argparse.Namespace) -> Classifier:
    """The model.

    Raises:
        CheckpointError: the file is not that.
        UserError: the outputs are not those of two classes.
    """
    from cxr_ray.models import checkpoints
    from cxr_ray.models.networks import ModelSpec
    from cxr_ray.run import terminal
    from cxr_ray.schemas import CLASSES

    saved, said = checkpoints.saved_spec(args.model), said_of(args)
    if saved is not None and not checkpoints.chooses_code(saved):
        said |= {} if args.fit is None else {"fit": args.fit}
        for key, value in said.items():
            if (own := getattr(saved, key)) not in (None, value):
                raise UserError(f"--{key}: got {value}; expected {own}, as {args.model} says; leave it out.")
        spec = replace(saved, fit=saved.fit or args.fit)
    else:
        spec = ModelSpec(**{"arch": ARCH, "size": SIZE, **said}, fit=args.fit)
    outputs = outputs_of(args.outputs) or {}
    numbers = [n for columns in outputs.values() for n in columns]
    if not set(outputs) <= set(CLASSES) or len(set(numbers)) < len(numbers) or len(outputs) < len(args.outputs):
        given = " ".join(f"{name}={','.join(columns)}" for name, columns in args.outputs)
        raise UserError(
            f"--outputs: got {given}; expected numbers of outputs for {' and '.join(CLASSES)}, each once; give such as "
            f"{CLASSES[0]}=0 {CLASSES[1]}=1."
        )
    if outputs:
        spec = replace(spec, columns=(tuple(outputs.get(CLASSES[0], ())), tuple(outputs.get(CLASSES[1], ()))))
    model = checkpoints.load(args.model, spec)
    for note in model.notes:
        terminal.say(note)
    return model


def write(out: Path, model: Classifier, pixels: Any, images: Chosen, maps: Maps) -> None:
    """Write each map as .npy and as a picture over its image, below the explainer's name."""
    import numpy as np
    import torch
    from PIL import Image

    from cxr_ray.measure.batch import in_pixel_space
    from cxr_ray.report.galleries import SIDE, Panel, painted, strip

    with torch.no_grad():
        inputs = model.normalize(in_pixel_space(torch.from_numpy(np.array(pixels))))
        positive = torch.cat([model.log_odds(part) for part in inputs.split(32)]).sigmoid().numpy()
    for i, name in enumerate(images.names):
        grey = Image.fromarray(pixels[i].mean(0).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        panels = [Panel(Path(name).name, [f"P(PNEUMONIA) {positive[i]:.3f}"])]
        for explainer, of in maps.items():
            file = out / "maps" / explainer / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, of[i])
            panels.append(Panel(explainer, [""], of[i], bool((of < 0).any())))
        picture = out / "pictures" / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        strip(painted(np.asarray(grey), panels), panels).save(picture)


def measure(model: Classifier, pixels: Any, images: Chosen, args: argparse.Namespace) -> Measurement:
    """The maps against CONTROLS, as ``cxr_ray.measure`` does, on pixels filled with the image's mean."""
    from cxr_ray import library
    from cxr_ray.run import terminal

    more: dict[str, Any] = {} if images.labels is None else {"labels": images.labels}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        measured = library.measure(
            model,
            pixels,
            list(args.explainer),
            controls=CONTROLS,
            levels=library.LEVELS,
            grids=["pixel"],
            fills=["mean"],
            patients=images.patients,
            spec=_of_pixels(model),
            ids=images.names,
            target=args.target,
            seed=args.seed,
            **more,
        )
    for warning in warned:
        terminal.complain(str(warning.message))
    return measured


def tables(out: Path, measured: Measurement) -> None:
    """Write each table of a measurement that has rows as Parquet."""
    for name, frame in vars(measured).items():
        if len(frame):
            folder = out / "tables" / name
            folder.mkdir(parents=True)
            frame.to_parquet(folder / "part-0.parquet", index=False)


def claims(measured: Measurement, args: argparse.Namespace) -> Iterator[str]:
    """One sentence an explainer, by the rules of a run's last lines; of deletion, since no image checks the fill."""
    from cxr_ray.analysis import answers, primary
    from cxr_ray.analysis.sequential_verdicts import title
    from cxr_ray.sweepfile import resolve

    sweep = resolve(
        {"explain": {"explainers": args.explainer, "targets": [args.target]}, "perturb": {"fills": ["mean"]}}
    )
    settings = primary.with_baselines(primary.resolve(sweep), sweep, [])
    rows = answers.primary_rows(measured.summary, settings)
    yield f"In {settings.label}, log-odds, fill {settings.fill}, {len(measured.predictions)} images:"
    for explainer in args.explainer:
        mine = rows[(rows["explainer"] == explainer) & (rows["control"] != "none")]
        said = answers.claim(mine.sort_values("mean", ascending=False, kind="stable"))
        yield f"{title(explainer)} on {Path(args.model).stem}: {said}."
