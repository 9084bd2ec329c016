"""Arguments of the command lines, which may hold what must not be seen, printed where not every character can be."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from cxr_ray.credentials import redacted, without_all


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
