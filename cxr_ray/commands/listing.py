"""The command line ``cxr-ray list``: what a sweep may name, what it is and what it costs."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cxr_ray.arguments import Parser, guarded
from cxr_ray.errors import CxrRayError, UserError

SIZE = 224  # pixels, for which passes are counted unless another size is asked for
EXIT_CODES = "Exit codes: 0 done, 2 the request was wrong."


class Entry(NamedTuple):
    """A name, what it costs in words, and what it is."""

    name: str
    cost: str
    caption: str


def explainers(size: int) -> Iterator[Entry]:
    """The explainers; their cost is that of one map."""
    from cxr_ray.measure.cost import CHANNELS
    from cxr_ray.measure.explainers import EXPLAINERS

    for name, entry in EXPLAINERS.items():
        forward, backward = entry.cost(size, CHANNELS)
        cost = f"{forward:,} forward, {backward:,} backward" if forward or backward else "none"
        cost += f" (with {CHANNELS} channels, as a ResNet-18 has)" if entry.passes_of_channel else ""
        yield Entry(name, cost, entry.caption)


def controls(size: int) -> Iterator[Entry]:
    """The controls; their cost is that of a draw, in rankings that are scored at every level."""
    from cxr_ray.measure.controls import CONTROLS

    shared = {"nothing": "1 ranking, shared by explainers", "class weights": "1 ranking a class activation map"}
    for name, entry in CONTROLS.items():
        cost = shared.get(entry.family, "1 ranking a map") + (", and the map pass" if entry.family[0] == "o" else "")
        yield Entry(name, cost, entry.caption)


def fills(size: int) -> Iterator[Entry]:
    """The fills; each multiplies what is scored."""
    from cxr_ray.measure.fills import FILLS

    for name, entry in FILLS.items():
        yield Entry(name, "made for each mask" if entry.for_masks else "made once an image", entry.caption)


def sweeps(size: int) -> Iterator[Entry]:
    """The sweeps that ship; their cost is the networks that they train, and the passes of a test image and target."""
    from cxr_ray.measure.cost import passes_per_image
    from cxr_ray.run.trial_plans import plan_trials
    from cxr_ray.sweep import shipped
    from cxr_ray.sweepfile import load_sweep

    for path in sorted(shipped().glob("*.yaml")):
        sweep = load_sweep(path)
        passes = passes_per_image(sweep, sweep.data.size)[0]
        cost = f"networks to train: {len(plan_trials(sweep))}; then passes an image and target: {passes:,}"
        yield Entry(path.stem, cost, _asked(path))


def _asked(path: Path) -> str:
    """The first sentence of a sweep file's comment, to a colon that follows no hypothesis; not the line for editors."""
    comment = [line[2:] for line in path.read_text("utf-8").splitlines() if line.startswith("# ")][1:]
    return re.split(r"(?<=[.?]) |(?<!H\d): |; ", " ".join(" ".join(comment).split()))[0]


def architectures(size: int) -> Iterator[Entry]:
    """The networks, with their parameters; families of other packages are named only."""
    from cxr_ray.models import families, networks
    from cxr_ray.models.networks import NETWORKS, ModelSpec

    for name, entry in NETWORKS.items():
        try:
            parameters = sum(p.numel() for p in networks.build(name, ModelSpec(name, size)).parameters())
            cost = f"{parameters / 1e6:.1f} million parameters"
        except CxrRayError as e:
            cost = f"not here: {e}"
        yield Entry(name, cost, entry.caption)
    for family in families.FAMILIES:
        name = "factory:MODULE:FUNCTION" if family == "factory" else f"{family}:NAME"
        yield Entry(name, "as its network", "A network of your own." if family == "factory" else f"One of {family}'s.")


KINDS: dict[str, tuple[Callable[[int], Iterator[Entry]], str]] = {
    "explainers": (explainers, "passes of a map at {size} x {size}"),
    "controls": (controls, "a draw costs; a ranking is scored at every fill, order and level"),
    "fills": (fills, "each multiplies what is scored"),
    "sweeps": (sweeps, "a backward pass counts as two; --dry-run tells the whole"),
    "architectures": (architectures, "size at {size} x {size}"),
}


def parser(prog: str = "cxr-ray list") -> argparse.ArgumentParser:
    """The arguments."""
    p = Parser(prog=prog, description="Lists what a sweep may name, what it costs and what it is.", epilog=EXIT_CODES)
    p.add_argument("kinds", nargs="*", metavar="KIND", help=f"one or more of: {', '.join(KINDS)} (default: all)")
    p.add_argument("--size", type=int, default=SIZE, help=f"side of the images in pixels (default: {SIZE})")
    p.add_argument("--arch", help="also say which explainers this network cannot have, and why")
    return p


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray list") -> int:
    """Run the command line; returns the exit code."""
    args = parser(prog).parse_args(argv)
    return guarded(lambda: show(args))


def show(args: argparse.Namespace) -> int:
    """Print all."""
    from cxr_ray.run import terminal

    for line in lines(args):
        terminal.say(line)
    return 0


def lines(args: argparse.Namespace) -> Iterator[str]:
    """What is printed.

    Raises:
        UserError: an unknown kind or network.
    """
    from cxr_ray.registry import Registry

    if not 32 <= args.size <= 1024:
        raise UserError(f"--size: got {args.size}; expected 32 to 1024 pixels; give the side of the images.")
    known = Registry("kind", KINDS)
    chosen = {kind: known[kind] for kind in args.kinds or ([] if args.arch else KINDS)}
    for kind, (entries, about) in chosen.items():
        yield f"{kind} ({about.format(size=args.size)})"
        yield from _block(list(entries(args.size)))
        yield ""
    if args.arch:
        yield from refused(args.arch, args.size)


def _block(entries: Sequence[Entry]) -> Iterator[str]:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    wide = max(len(entry.name) for entry in entries) + 2
    for entry in entries:
        indent = " " * (2 + wide)
        yield f"  {entry.name:<{wide}}{entry.cost}"
        yield textwrap.fill(entry.caption, width, initial_indent=indent, subsequent_indent=indent)


def refused(arch: str, size: int) -> Iterator[str]:
    """Which explainers a network can have, and why not the others; its weights are random ones.

    Raises:
        UserError: there is no such network.
    """
    from cxr_ray.measure import needs
    from cxr_ray.measure.explainers import EXPLAINERS
    from cxr_ray.models import ends, networks
    from cxr_ray.models.networks import ModelSpec

    model = networks.build(arch, ModelSpec(arch, size)).eval()
    ends.require_trainable(model)
    why = dict(needs.missing(model, list(EXPLAINERS)))
    yield f"{arch} at {size} x {size} can have {len(EXPLAINERS) - len(why)} of {len(EXPLAINERS)} explainers:"
    yield f"  {', '.join(name for name in EXPLAINERS if name not in why)}"
    yield from (f"  not {name}: {reason}" for name, reason in why.items())
