"""Arguments of the command lines, which may hold what must not be seen, printed where not every character can be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from cxr_ray.credentials import redacted, without_all
from cxr_ray.errors import UserError


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
        super().error(redacted(message))


def require_there(option: str, path: str | None) -> None:
    """See that a local path that an option names is there; URIs are asked when they are read.

    Raises:
        UserError: it is not.
    """
    if path is not None and "://" not in path and not Path(path).expanduser().exists():
        raise UserError(f"{option}: got {path}, which is not there; expected where the images lie; give another path.")
