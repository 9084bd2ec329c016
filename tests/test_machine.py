"""CPU quotas of control groups, read from made-up file trees."""

import math
import os
from pathlib import Path

import pytest

from cxr_ray.machine import cpu_quota, usable_cpus, usable_memory

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"""


def tree(folder: Path, mount: str, groups: str, files: dict[str, str]) -> Path:
    """A root whose /proc names mounts and groups, and whose control groups hold these files."""
    contents = {"proc/self/mountinfo": f"{OTHERS}\n{mount}\n", "proc/self/cgroup": groups}
    for name, text in {**contents, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V1_GROUPS = "5:cpuset:/\n4:cpu,cpuacct:{path}\n1:name=systemd:/x\n0::/unused\n"


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    files = {"quota": quota, "period": period}
    return {f"cpu,cpuacct{folder}/cpu.cfs_{name}_us": f"{value}\n" for name, value in files.items()}


CASES = {
    "version 2 in a container of its own": (V2, "/", "0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "version 2 without a quota": (V2, "/", "0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
    "the root group of a version 2 machine has no file": (V2, "/", "0::/\n", {}, math.inf),
    "version 2, the least along the path: an outer group": (
        V2,
        "/",
        "0::/pod/job/step\n",
        {"pod/cpu.max": "300000 100000", "pod/job/cpu.max": "800000 100000", "pod/job/step/cpu.max": "max 100000"},
        3,
    ),
    "version 2, the least along the path: the inner group": (
        V2,
        "/",
        "0::/pod/job\n",
        {"pod/cpu.max": "300000 100000", "pod/job/cpu.max": "50000 50000", "sibling/cpu.max": "10000 100000"},
        1,
    ),
    "version 2 mounted from a group below": (V2, "/pod", "0::/pod/job\n", {"job/cpu.max": "400000 100000"}, 4),
    "version 2, a group outside what is mounted": (
        V2,
        "/",
        "0::/../other\n",
        {"cpu.max": "200000 100000", "../other/cpu.max": "1000 1000"},
        2,
    ),
    "version 1": (V1, "/", V1_GROUPS.format(path="/"), v1("", 150_000), 1.5),
    "version 1 without a quota": (V1, "/", V1_GROUPS.format(path="/"), v1("", -1), math.inf),
    "version 1 on the machine, nested": (
        V1,
        "/",
        V1_GROUPS.format(path="/docker/ab"),
        {**v1("", -1), **v1("/docker", 400_000), **v1("/docker/ab", 120_000, 20_000)},
        4,
    ),
    "version 1 in a container that sees the machine's path": (
        V1,
        "/docker/ab",
        V1_GROUPS.format(path="/docker/ab"),
        v1("", 200_000),
        2,
    ),
    "files that hold something else": (V2, "/", "0::/\n", {"cpu.max": "what\n"}, math.inf),
    "a period of zero": (V2, "/", "0::/\n", {"cpu.max": "1000 0\n"}, math.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_is_the_least_along_the_path(case, tmp_path):
    mount, mounted, groups, files, expected = CASES[case]
    assert cpu_quota(tree(tmp_path, mount.format(root=mounted), groups, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(20_000, 1), (200_000, 2), (390_000, 3), (99_900_000, 4)])
def test_usable_cpus_are_whole_and_no_more_than_the_affinity_grants(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert usable_cpus(tree(tmp_path, V2.format(root="/"), "0::/\n", {"cpu.max": f"{quota} 100000"})) == expected


def test_on_this_machine_there_is_at_least_one_cpu():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


def test_memory_is_the_machine_s_or_the_least_limit_of_its_groups(tmp_path):
    free = usable_memory(tree(tmp_path / "free", V2.format(root="/"), "0::/job\n", {"job/memory.max": "max\n"}))
    limits = {"job/memory.max": "max\n", "job/step/memory.max": "1048576\n"}
    bound = usable_memory(tree(tmp_path / "bound", V2.format(root="/"), "0::/job/step\n", limits))
    assert free == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > bound == 2**20
