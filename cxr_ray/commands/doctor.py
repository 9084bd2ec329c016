"""The command line ``cxr-ray doctor``: what this machine has, and what a run would use of it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cxr_ray
from cxr_ray.arguments import Parser, guarded
from cxr_ray.errors import CxrRayError

GIB = 2**30
SIZE = 224  # side of the images that a default run takes
SPACE = 1.0  # GiB free below which a run may not find room
PACKAGE = "cxr-ray"
FOR_DEVELOPERS = ("docs", "peers", "test")  # extras that no run needs
Lines = Iterator[tuple[str, str]]


def parser(prog: str = "cxr-ray doctor") -> argparse.ArgumentParser:
    """The arguments."""
    return Parser(
        prog=prog,
        description="Says what this machine has (CPUs, memory, disk, GPUs, Ray, extras) and what a run would use of "
        "it. Nothing is started or written.",
        epilog="Exit codes: 0 a run can start, 1 it cannot.",
    )


def main(argv: Sequence[str] | None = None, prog: str = "cxr-ray doctor") -> int:
    """Run the command line; returns the exit code."""
    parser(prog).parse_args(argv)
    return guarded(show)


def show() -> int:
    """Print all; the exit code."""
    from cxr_ray.run import terminal

    for title, part in (("", versions()), ("Machine", machine()), ("Extras", extras())):
        if title:
            terminal.say(f"\n{title}")
        for name, text in part:
            terminal.say(f"  {name:<12}{text}")
    terminal.say("\nWhat a run would use")
    try:
        for line in usage():
            terminal.say(f"  {line}")
    except CxrRayError as e:
        terminal.complain(str(e))
        return 1
    return 0


def versions() -> Lines:
    """Versions of what every run needs."""
    yield "cxr_ray", f"{cxr_ray.__version__} ({Path(cxr_ray.__file__).parent})"
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in ("torch", "torchvision", "ray", "pyarrow"):
        yield name, version_of(name) or "not installed"


def version_of(name: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> Lines:
    """CPUs, memory, disks and GPUs."""
    import torch

    from cxr_ray import usercache
    from cxr_ray.machine import usable_cpus, usable_memory

    yield "CPUs", f"{usable_cpus()} usable of {os.cpu_count()}"
    yield "Memory", f"{usable_memory() / GIB:.1f} GiB usable"
    for name, folder in (("Disk here", Path.cwd()), ("Temporary", Path(_temporary())), ("Cache", usercache.folder(""))):
        yield name, disk(folder)
    if not torch.cuda.is_available():
        built = f"; torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "; torch is built for CPUs"
        yield "GPUs", f"none that torch can use{built}"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(i)
        yield f"GPU {i}", f"{about.name}, {about.total_memory / GIB:.0f} GiB"
    address = os.environ.get("RAY_ADDRESS")
    yield "Ray", f"RAY_ADDRESS={address}: a run joins it" if address else "a run starts Ray on this machine alone"


def _temporary() -> str:
    import tempfile

    return tempfile.gettempdir()


def disk(folder: Path) -> str:
    """Free space of the disk of a folder, which need not be there yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free / GIB
    warning = "; a run may not find room: free some, or name another folder" if free < SPACE else ""
    return f"{free:.1f} GiB free ({folder}){warning}"


def extras() -> Lines:
    """Each extra of the package, and what is missing of it."""
    for extra, packages in packages_of_extras().items():
        found = {name: version_of(name) for name in packages}
        told = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        missing = [name for name, version in found.items() if version is None]
        if extra in FOR_DEVELOPERS:
            continue
        install = f"without {', '.join(missing)}: pip install '{PACKAGE}[{extra}]'" if missing else ""
        yield extra, "; ".join(part for part in (told, install) if part)


def packages_of_extras() -> dict[str, list[str]]:
    """The packages of each extra, as the installed package declares them; none where it is not installed."""
    try:
        declared = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for text in declared:
        requirement, _, marker = text.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and name[0] not in (PACKAGE, "ray"):
            found.setdefault(extra[1], []).append(name[0])
    return found


def usage() -> Iterator[str]:
    """How a run with the default resources would divide this machine, or why it cannot.

    Raises:
        ClusterError: the machine is too small.
    """
    import torch

    from cxr_ray import config
    from cxr_ray.machine import usable_cpus, usable_memory
    from cxr_ray.models.backends import BACKENDS
    from cxr_ray.run import cluster
    from cxr_ray.run.sharing import smallest_gpu

    if os.environ.get("RAY_ADDRESS"):
        yield "What the cluster at RAY_ADDRESS has: the first lines of a run say it."
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = smallest_gpu() if gpus else 0.0
    # Ray keeps three tenths of the memory for its objects
    node = cluster.Node(usable_cpus() + cluster.SPARE_CPUS, gpus, 0.7 * usable_memory(), memory)
    request = cluster.Request(config.Resources(), 1, SIZE, True, GIB)
    yield from cluster.allocate([node], request).line.splitlines()
    device = torch.device("cuda" if gpus else "cpu")
    forms = [name for name, backend in BACKENDS.items() if backend.runs_on(device)]
    yield f"Forward passes: the fastest of {', '.join(forms)}, measured once and then kept."
