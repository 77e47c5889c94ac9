"""A line of versions: the roots of a namespace's versions, one after another, in as little memory as they need.

A version takes some 20 bytes beside its ref: a list of refs and arrays of numbers, where an object for each in a dict takes 200.
What is forgotten at the beginning stays in the lists until it is as much as what is kept; so to forget one costs nothing::

    _refs    · · · · r7 r8 –  r10        first = 7; 9 was never here; _gone = 4
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from fluxmpi.blobref import Ref
from fluxmpi.kvs.wire import RootInfo


class VersionLog:
    """Versions ``first`` up to ``last``, all of ``namespace``, perhaps with gaps. Empty: ``last`` is the one before ``first``."""

    __slots__ = ("_commits", "_gone", "_refs", "_times", "first", "namespace")

    def __init__(self, namespace: str, first: int = 0) -> None:
        self.namespace = namespace
        self.first = first
        self._refs: list[Ref | None] = []
        self._times = array("d")
        self._commits = array("L")
        self._gone = 0
        """How many at the beginning of the lists are forgotten already."""

    @property
    def last(self) -> int:
        return self.first + len(self) - 1

    def append(self, root: RootInfo, commits: int = 1) -> None:
        """The next version, or a later one: those between were never here."""
        gap = root.version - self.last - 1
        assert gap >= 0
        if gap:
            self._refs += [None] * gap
            self._times.extend([root.time] * gap)
            self._commits.extend([0] * gap)
        self._refs.append(root.ref)
        self._times.append(root.time)
        self._commits.append(commits)

    def forget(self, count: int) -> None:
        """The first ``count`` versions, of those that are here."""
        self.first += count
        self._gone += count
        if self._gone * 2 > len(self._refs):
            for each in (self._refs, self._times, self._commits):
                del each[: self._gone]
            self._gone = 0

    def get(self, version: int) -> RootInfo | None:
        """None: it is not here."""
        at = version - self.first + self._gone
        if at < self._gone or at >= len(self._refs):
            return None
        ref = self._refs[at]
        return None if ref is None else RootInfo(self.namespace, version, ref, self._times[at])

    def __getitem__(self, version: int) -> RootInfo:
        root = self.get(version)
        if root is None:
            raise KeyError(version)
        return root

    def commits(self, version: int) -> int:
        """How many were merged into a version that is here."""
        return self._commits[version - self.first + self._gone]

    def until(self, time: float, first: int, later_s: float = 0.0) -> int:
        """The newest version from ``first`` on whose time, and ``later_s`` more, is not after ``time``; ``first - 1`` if none."""
        skip = self._gone - self.first
        return bisect_right(self._times, time, first + skip, key=lambda at: at + later_s) - 1 - skip

    def newest(self, ref: Ref, first: int) -> int | None:
        """The newest version from ``first`` on that has this root."""
        refs, skip = self._refs, self._gone - self.first
        return next((at - skip for at in range(len(refs) - 1, first + skip - 1, -1) if refs[at] == ref), None)

    def __len__(self) -> int:
        return len(self._refs) - self._gone

    def __iter__(self) -> Iterator[int]:
        """The versions that are here, oldest first."""
        return (self.first + at for at in range(len(self)) if self._refs[self._gone + at] is not None)

    def check(self) -> None:
        assert len(self._refs) == len(self._times) == len(self._commits)
        assert 0 <= self._gone * 2 <= len(self._refs)
