"""The memory that this host gives the instance: what it has, what the cgroups allow, what RLIMIT allows this process.

A batch system or a container gives a job less memory than the host has, and the kernel ends a process that exceeds a
cgroup's limit without a word. So defaults are fractions of the smallest of these bounds:

    host      physical memory
    cgroup    version 1: memory.limit_in_bytes; version 2: memory.max and memory.high; each of the process's own
              group and of all groups above it. All brokers of one group share it.
    RLIMIT    RLIMIT_AS and RLIMIT_DATA of this process alone, less what it has mapped already

The functions that parse take text, so that tests pass sample files.
"""

from __future__ import annotations

import mmap
import os
import posixpath
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

UNLIMITED = 1 << 60
"""Limits of this size and more are none: version 1 writes 0x7ffffffffffff000."""

V1_FILES = ("memory.limit_in_bytes",)
V2_FILES = ("memory.max", "memory.high")

TextReader = Callable[[str], str]
"""Return the text of a file. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted cgroup hierarchy that controls memory. ``root``: the group that is visible at ``mount``."""

    mount: str
    root: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """``source``: who bounds it, for messages."""

    bytes: int
    source: str


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Return the hierarchies in ``/proc/self/mountinfo`` that can control memory."""
    found = []
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if not dash or len(fields) < 5 or len(rest) < 3:
            continue
        root, mount = _unescaped(fields[3]), _unescaped(fields[4])
        if rest[0] == "cgroup2":
            found.append(Hierarchy(mount, root, V2_FILES))
        elif rest[0] == "cgroup" and "memory" in rest[2].split(","):
            found.append(Hierarchy(mount, root, V1_FILES))
    return found


def _unescaped(path: str) -> str:
    r"""Return a path of mountinfo, in which a blank is ``\040``."""
    for code in ("040", "011", "012", "134"):
        path = path.replace(f"\\{code}", chr(int(code, 8)))
    return path


def group_of(cgroup: str, hierarchy: Hierarchy) -> str | None:
    """Return the process's group in a hierarchy, from ``/proc/self/cgroup``; None if it has none."""
    for line in cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy.files is V2_FILES:
            if number == "0" and not controllers:
                return path
        elif "memory" in controllers.split(","):
            return path
    return None


def folders(hierarchy: Hierarchy, group: str) -> Iterator[str]:
    """Yield the folders of a group and of the groups above it, as far as they are mounted.

    In a container the mount shows a part of the hierarchy, whose root is ``hierarchy.root``. A group outside of that
    part is not visible: then only the mount itself is read.
    """
    root = hierarchy.root.rstrip("/")
    inside = group[len(root) :] if group == root or group.startswith(f"{root}/") else ""
    path = posixpath.normpath(f"/{inside}").lstrip("/")
    while path:
        yield f"{hierarchy.mount}/{path}"
        path = posixpath.dirname(path)
    yield hierarchy.mount


def limit_in(text: str) -> int | None:
    """Return the limit in a file of a cgroup, or None: ``max``, a very large number, or no number."""
    text = text.strip()
    if not text.isdecimal():
        return None
    return int(text) if int(text) < UNLIMITED else None


def cgroup_bound(read: TextReader) -> MemoryBound | None:
    """Return the smallest limit of this process's groups, or None."""
    try:
        mountinfo, cgroup = read("/proc/self/mountinfo"), read("/proc/self/cgroup")
    except OSError:
        return None
    found: list[tuple[int, str]] = []
    for hierarchy in hierarchies(mountinfo):
        group = group_of(cgroup, hierarchy)
        if group is None:
            continue
        for folder in folders(hierarchy, group):
            for name in hierarchy.files:
                try:
                    limit = limit_in(read(f"{folder}/{name}"))
                except OSError:  # a version 2 root, or a group without this controller, lacks the file
                    continue
                if limit is not None:
                    found.append((limit, f"{folder}/{name}"))
    return MemoryBound(*min(found)) if found else None


def rlimit_bound(limits: list[tuple[str, int]], mapped: int) -> MemoryBound | None:
    """Return what is left of the smallest of these resource limits, (name, bytes) of each, or None."""
    finite = [(max(limit - mapped, 0), name) for name, limit in limits if 0 <= limit < UNLIMITED]
    return MemoryBound(*min(finite)) if finite else None


class AddressSpace:
    """Address space that is kept for the saves of a process that has none left. It takes no memory: it is not touched."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: mmap.mmap | None = None
        self.refill()

    def release(self) -> None:
        """Let others allocate it."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def refill(self) -> None:
        """Keep it again, if it is free."""
        if self._kept is None:
            with suppress(OSError, MemoryError):
                self._kept = mmap.mmap(-1, self._size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


# ----------------------------------------------------------------------------------------------------- of this process


def shared_memory_bound() -> MemoryBound:
    """Return the memory that all brokers on this host share: the host's, or that of their cgroup if it is less."""
    host = MemoryBound(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this host")
    group = cgroup_bound(_read)
    return group if group is not None and group.bytes < host.bytes else host


def process_memory_bound() -> MemoryBound:
    """Return the memory that this process may use: as ``shared_memory_bound``, or what RLIMIT leaves if that is less."""
    shared = shared_memory_bound()
    limits = [
        (name, resource.getrlimit(number)[0])
        for name, number in (("RLIMIT_AS", resource.RLIMIT_AS), ("RLIMIT_DATA", resource.RLIMIT_DATA))
    ]
    own = rlimit_bound(limits, _mapped_bytes())
    return own if own is not None and own.bytes < shared.bytes else shared


def _mapped_bytes() -> int:
    """Return the size of this process's address space."""
    try:
        return int(_read("/proc/self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
