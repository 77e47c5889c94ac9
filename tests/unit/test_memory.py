"""The memory that host, cgroups and resource limits give, from sample files of real systems."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fluxmpi.drivers.memory import (
    Hierarchy,
    MemoryBound,
    cgroup_bound,
    folders,
    hierarchies,
    limit_in,
    process_memory_bound,
    rlimit_bound,
    shared_memory_bound,
)

GIB = 1 << 30

V2_MOUNTS = """\
24 30 0:22 / /proc rw,nosuid shared:12 - proc proc rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
V2_GROUP = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"

V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V1_GROUP = "9:name=systemd:/\n4:memory:/slurm/uid_1/job_7/step_0\n1:cpu:/\n0::/\n"

CONTAINER_MOUNTS = (
    "700 690 0:32 /docker/4f2a /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
    r"701 690 0:33 / /mnt/a\040disk ro - ext4 /dev/sda1 rw" + "\n"
)


def reader(files: dict[str, str]):
    def read(path: str) -> str:
        try:
            return files[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    return read


def test_version_2_takes_the_smallest_limit_of_the_path():
    step = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0"
    files = {
        "/proc/self/mountinfo": V2_MOUNTS,
        "/proc/self/cgroup": V2_GROUP,
        f"{step}/user/task_0/memory.max": "max\n",
        f"{step}/user/memory.max": "max\n",
        f"{step}/memory.max": f"{3 * GIB}\n",
        f"{step}/memory.high": "max\n",
        "/sys/fs/cgroup/system.slice/memory.max": f"{8 * GIB}\n",
    }
    assert cgroup_bound(reader(files)) == MemoryBound(3 * GIB, f"{step}/memory.max")
    files[f"{step}/memory.high"] = f"{2 * GIB}\n"
    assert cgroup_bound(reader(files)) == MemoryBound(2 * GIB, f"{step}/memory.high")


def test_version_1_takes_the_smallest_limit_of_the_path():
    step = "/sys/fs/cgroup/memory/slurm/uid_1/job_7/step_0"
    files = {
        "/proc/self/mountinfo": V1_MOUNTS,
        "/proc/self/cgroup": V1_GROUP,
        f"{step}/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.limit_in_bytes": f"{GIB}\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    job = "/sys/fs/cgroup/memory/slurm/uid_1/job_7/memory.limit_in_bytes"
    assert cgroup_bound(reader(files)) == MemoryBound(GIB, job)


def test_a_container_that_sees_a_part_of_the_hierarchy():
    files = {
        "/proc/self/mountinfo": CONTAINER_MOUNTS,
        "/proc/self/cgroup": "4:memory:/docker/4f2a\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
    }
    assert cgroup_bound(reader(files)) == MemoryBound(GIB, "/sys/fs/cgroup/memory/memory.limit_in_bytes")
    files["/proc/self/cgroup"] = "4:memory:/elsewhere/../x\n"
    assert cgroup_bound(reader(files)).bytes == GIB


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/proc/self/mountinfo": V2_MOUNTS},
        {"/proc/self/mountinfo": V2_MOUNTS, "/proc/self/cgroup": V2_GROUP},
        {"/proc/self/mountinfo": V1_MOUNTS, "/proc/self/cgroup": "1:cpu:/\n"},
        {"/proc/self/mountinfo": "nonsense\n - \n", "/proc/self/cgroup": V2_GROUP},
    ],
)
def test_no_limit(files):
    assert cgroup_bound(reader(files)) is None


def test_folders_of_a_group():
    hierarchy = Hierarchy("/sys/fs/cgroup", "/", ())
    assert list(folders(hierarchy, "/a/b")) == ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]
    assert list(folders(hierarchy, "/")) == ["/sys/fs/cgroup"]
    assert list(folders(Hierarchy("/m", "/docker/x", ()), "/docker/x/y")) == ["/m/y", "/m"]
    assert list(folders(Hierarchy("/m", "/docker/x", ()), "/docker/xy")) == ["/m"]


def test_mounts_with_blanks():
    (found,) = hierarchies(r"35 31 0:32 / /a\040b rw - cgroup2 cgroup2 rw")
    assert found.mount == "/a b"


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("9223372036854771712\n", None), ("0\n", 0), ("77\n", 77), ("", None), ("-1", None)],
)
def test_limits_in_files(text, limit):
    assert limit_in(text) == limit


def test_resource_limits():
    assert rlimit_bound([("RLIMIT_AS", -1), ("RLIMIT_DATA", -1)], 100) is None
    assert rlimit_bound([("RLIMIT_AS", 5000), ("RLIMIT_DATA", 900)], 100) == MemoryBound(800, "RLIMIT_DATA")
    assert rlimit_bound([("RLIMIT_AS", 50)], 100) == MemoryBound(0, "RLIMIT_AS")


def test_this_process():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < process_memory_bound().bytes <= shared_memory_bound().bytes <= physical


def test_a_process_under_a_limit():
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30));"
        "from fluxmpi.drivers.memory import process_memory_bound as bound; print(bound().bytes, bound().source)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    size, source = out.split()
    assert source == "RLIMIT_AS"
    assert 0 < int(size) < GIB
