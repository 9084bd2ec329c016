"""What can go wrong, and the exit code of each kind. A message says what was got, what was expected and what to do.

Every error that a user can cause is a ``UserError``: a command line prints its message and exits with 2. What is none
of these is a defect of the package and ends in a stack trace.
"""

from __future__ import annotations

from cxr_ray.credentials import redacted


class CxrRayError(Exception):
    """Anything that this package raises on purpose; its ``exit_code`` is 1, could not finish."""

    exit_code = 1

    def __init__(self, *arguments: object):
        super().__init__(*(redacted(a) if isinstance(a, str) else a for a in arguments))


class UserError(CxrRayError, ValueError):
    """The request cannot be met as it stands."""

    exit_code = 2


class SweepError(UserError):
    """The sweep file (or ``--set``) is wrong; the message lists every mistake, one a line."""


class UnknownNameError(UserError, KeyError):
    """No entry of a registry has this name; the message lists those that exist."""

    def __str__(self) -> str:
        return ValueError.__str__(self)  # KeyError's quotes the message


class DataError(UserError):
    """The images, their labels or their masks are not what the sweep needs."""


class NoFolderError(DataError):
    """There is no folder at the path of the images."""


class CheckpointError(UserError):
    """A file is no checkpoint of the network that was named."""


class WeightsError(UserError):
    """Pretrained weights cannot be had."""


class MissingPackageError(UserError):
    """A package is needed that is not installed."""


class ClusterError(UserError):
    """The cluster does not answer, or has less than the sweep asks for."""


class RunError(UserError):
    """The path holds no run, or not the table or file that was asked for."""


class DamagedRunError(CxrRayError):
    """A file of a run is not as it was written."""


class TrainingError(CxrRayError, RuntimeError):
    """Training came to a state from which it cannot go on."""


class WorkersError(CxrRayError, RuntimeError):
    """No process of a worker can be kept alive."""


class ImageError(CxrRayError, ValueError):
    """The bytes are no image that can be used; it becomes a row of the table ``errors``, never the end of a run."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in its first line; of a compiler, what made it fail.

    >>> first_line(RuntimeError("no memory\\nat 0x0")), first_line(KeyError())
    ('no memory', 'KeyError')
    """
    cause = getattr(error, "inner_exception", error)  # torch.compile's own first line names only the backend
    return redacted((str(cause).splitlines() or [type(cause).__name__])[0])


def shown(value: object) -> str:
    """A value that was got, short enough for a sentence.

    >>> shown("x" * 300)[-5:]
    'xx...'
    """
    try:
        text = repr(value)
    except ValueError:  # whole numbers of more than 4300 digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


class TrackerError(CxrRayError, RuntimeError):
    """A tracker did not take what was sent."""
