"""Arguments of the command lines, which may hold what must not be seen, printed where not every character can be."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cxr_ray import quiet
from cxr_ray.credentials import redacted, without_all
from cxr_ray.errors import CxrRayError, SweepError, UserError

UNFINISHED, INTERRUPTED = 1, 130  # exit codes
NORMALIZATION = ("mean", "std")
ARCH, SIZE = "resnet18", 224  # of a model that does not say


class Parser(argparse.ArgumentParser):
    """argparse's, whose values are without credentials, as are its own complaints.

    From then on stdout and stderr escape what their encoding lacks: a path may hold any character.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            setattr(found, name, without_all(value))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Usage and one line, exit code 2."""
        super().error(f"{redacted(message)}; see {self.prog} --help.")


def guarded(work: Callable[[], int], *, worded: Callable[[str], str] = str, interrupted: str = "interrupted.") -> int:
    """The exit code of a command, whose errors are told in lines on stderr.

    Args:
        work: the command.
        worded: an error's line to what is told.
        interrupted: what is told after Ctrl-C.
    """
    import pyarrow as pa  # which --help does without

    try:
        return work()
    except CxrRayError as e:
        told, code = list(dict.fromkeys(worded(line) for line in str(e).splitlines())), e.exit_code
    except BrokenPipeError:  # who reads, such as head, has enough; nor may the end of Python write there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNFINISHED
    except (OSError, pa.ArrowException) as e:
        told, code = str(e).splitlines()[:1], UNFINISHED
    except KeyboardInterrupt:
        told, code = [interrupted], INTERRUPTED
    for line in told:
        quiet.complain(f"cxr_ray: {line}")
    return code


def require_there(option: str, path: str | None) -> None:
    """See that a local path that an option names is there; URIs are asked when they are read.

    Raises:
        UserError: it is not.
    """
    if path is not None and "://" not in path and not Path(path).expanduser().exists():
        raise UserError(f"{option}: got {path}, which is not there; expected where the images lie; give another path.")


def named_values(text: str) -> tuple[str, list[str]]:
    """NAME=A,B to the name and its values. Raises ArgumentTypeError."""
    name, equals, values = text.partition("=")
    if not (name.strip() and equals and all(value.strip() for value in values.split(","))):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected NAME=VALUE or NAME=VALUE,VALUE")
    return name.strip(), [value.strip() for value in values.split(",")]


def add_network(parser: argparse.ArgumentParser, outputs: str) -> None:
    """What a file of weights does not say of its network: options that ``said_of`` and ``outputs_of`` read.

    Args:
        parser: gets them.
        outputs: help of --outputs.
    """
    parser.add_argument("--arch", help=f"network of the model (default: as the file says, else {ARCH})")
    parser.add_argument("--outputs", nargs="+", default=[], type=named_values, metavar="NAME=N,...", help=outputs)
    parser.add_argument(
        "--size", type=int, help=f"side of its input in pixels (default: as the file says, else {SIZE})"
    )
    fits = "how images are made square for it (default: as the file says, else squash)"
    parser.add_argument("--fit", choices=("squash", "pad", "crop"), help=fits)
    for name in NORMALIZATION:
        text = f"{name} of its normalisation, of grey values in [0, 1]: one number or three (default: ImageNet's)"
        parser.add_argument(f"--{name}", nargs="+", type=float, metavar="X", help=text)


def said_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of a checkpoint that are given: arch, size, mean, std. Raises SweepError."""
    found: dict[str, Any] = {name: getattr(args, name) for name in ("arch", "size") if getattr(args, name) is not None}
    for name in NORMALIZATION:
        values = getattr(args, name)
        if values is None:
            continue
        least = 0.0 if name == "mean" else sys.float_info.min
        if len(values) not in (1, 3) or not all(least <= value < math.inf for value in values):
            raise SweepError(
                f"--{name}: got {' '.join(f'{value:g}' for value in values)}; expected one number or three, "
                f"{'none below 0' if name == 'mean' else 'each above 0'}; give those that the model was trained with."
            )
        red, green, blue = values * (3 // len(values))
        found[name] = (red, green, blue)
    return found


def outputs_of(given: Sequence[tuple[str, list[str]]]) -> dict[str, list[int]] | None:
    """The key ``outputs`` of a checkpoint. Raises SweepError."""
    if beyond := [n for _, numbers in given for n in numbers if not n.isdecimal()]:
        raise SweepError(f"--outputs: got {beyond[0]!r}; expected numbers of outputs from 0, such as PNEUMONIA=1,2.")
    return {name: [int(n) for n in numbers] for name, numbers in given} or None
