"""CPUs and memory that this process may use: its affinity, and the limits of its control groups (containers, jobs)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cpus(root: Path = ROOT) -> int:
    """CPUs of the affinity mask, or whole CPUs of the quota where those are fewer; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cpus, cpu_quota(root))))


def cpu_quota(root: Path = ROOT) -> float:
    """CPUs that control groups grant: the least along the path to this process's group; infinite without a quota.

    Version 2 keeps it in ``cpu.max``, version 1 in ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us``: see cgroups(7) and
    https://docs.kernel.org/admin-guide/cgroup-v2.html.

    Args:
        root: below which /proc and /sys are read.
    """
    return min((_quota(folder) for folder in _groups(root)), default=math.inf)


def usable_memory(root: Path = ROOT) -> int:
    """Bytes of the machine's memory, or of the control group's limit where that is less (version 2, ``memory.max``)."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = ("".join(_lines(folder / "memory.max")) for folder in _groups(root))
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups that hold a CPU controller, from the mount point down."""
    paths: dict[str, PurePosixPath] = {}  # of the group, by controller; "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, kind = line.partition(" - ")
        mounted, point = mount.split()[3:5]  # the group that is mounted, and where
        filesystem, *_, options = kind.split()
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(filesystem)
        if controller not in paths or (controller and controller not in options.split(",")):
            continue
        folder, group = root / point.lstrip("/"), paths[controller]
        yield folder
        # a group outside what is mounted cannot be seen: the mount point is all there is
        visible = group.is_relative_to(mounted) and ".." not in group.parts
        for name in group.relative_to(mounted).parts if visible else ():
            folder = folder / name
            yield folder


def _quota(folder: Path) -> float:
    """CPUs that one group grants."""
    quota, period = [*" ".join(_lines(folder / "cpu.max")).split(), "", ""][:2]
    if not quota:
        quota, period = ("".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf


def _lines(file: Path) -> list[str]:
    """Lines of a file; none where it is not there or may not be read."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
