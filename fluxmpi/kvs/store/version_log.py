"""Log of the roots of a namespace's versions, in as little memory as they need.

A version takes about 20 bytes beside its ref: a list of refs and arrays of numbers. One object for each in a dict takes
200. Compacted versions stay at the beginning of the lists until they are as many as the others, so compacting one costs
nothing::

    _refs    · · · · r7 r8 –  r10        first = 7; version 9 was skipped; _compacted = 4
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from fluxmpi.blobref import Ref
from fluxmpi.kvs.wire import RootInfo


class VersionLog:
    """Versions ``first`` up to ``last`` of ``namespace``, perhaps with gaps. Empty: ``last`` is ``first - 1``."""

    __slots__ = ("_commits", "_compacted", "_refs", "_times", "first", "namespace")

    def __init__(self, namespace: str, first: int = 0) -> None:
        self.namespace = namespace
        self.first = first
        self._refs: list[Ref | None] = []
        self._times = array("d")
        self._commits = array("L")
        self._compacted = 0
        """Compacted versions at the beginning of the lists."""

    @property
    def last(self) -> int:
        return self.first + len(self) - 1

    def append(self, root: RootInfo, commits: int = 1) -> None:
        """Append the next version, or a later one: versions between leave a gap. After a MemoryError nothing has changed."""
        gap = root.version - self.last - 1
        assert gap >= 0
        length = len(self._refs)
        try:
            if gap:
                self._refs += [None] * gap
                self._times.extend([root.time] * gap)
                self._commits.extend([0] * gap)
            self._refs.append(root.ref)
            self._times.append(root.time)
            self._commits.append(commits)
        except MemoryError:
            self._cut(length)
            raise

    def pop(self) -> None:
        """Remove the newest version."""
        self._cut(len(self._refs) - 1)

    def _cut(self, length: int) -> None:
        for each in (self._refs, self._times, self._commits):
            del each[length:]

    def compact(self, count: int) -> None:
        """Drop the first ``count`` versions."""
        self.first += count
        self._compacted += count
        if self._compacted * 2 > len(self._refs):
            for each in (self._refs, self._times, self._commits):
                del each[: self._compacted]
            self._compacted = 0

    def get(self, version: int) -> RootInfo | None:
        at = version - self.first + self._compacted
        if at < self._compacted or at >= len(self._refs):
            return None
        ref = self._refs[at]
        return None if ref is None else RootInfo(self.namespace, version, ref, self._times[at])

    def __getitem__(self, version: int) -> RootInfo:
        root = self.get(version)
        if root is None:
            raise KeyError(version)
        return root

    def commits(self, version: int) -> int:
        """Return the number of commits that a logged version applied."""
        return self._commits[version - self.first + self._compacted]

    def newest_at(self, time: float, first: int, delay_s: float = 0.0) -> int:
        """Return the newest version from ``first`` on with a time up to ``time - delay_s``; ``first - 1`` if none."""
        skip = self._compacted - self.first
        return bisect_right(self._times, time, first + skip, key=lambda at: at + delay_s) - 1 - skip

    def newest_with(self, ref: Ref, first: int) -> int | None:
        """Return the newest version from ``first`` on that has this root."""
        refs, skip = self._refs, self._compacted - self.first
        return next((at - skip for at in range(len(refs) - 1, first + skip - 1, -1) if refs[at] == ref), None)

    def __len__(self) -> int:
        return len(self._refs) - self._compacted

    def __iter__(self) -> Iterator[int]:
        """Return the logged versions, oldest first."""
        return (self.first + at for at in range(len(self)) if self._refs[self._compacted + at] is not None)

    def check(self) -> None:
        assert len(self._refs) == len(self._times) == len(self._commits)
        assert 0 <= self._compacted * 2 <= len(self._refs)
