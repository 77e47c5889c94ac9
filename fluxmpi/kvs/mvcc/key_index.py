"""Index of the versions that wrote each key.

A version records the keys of its operations as one text, which takes a sixth of a list's memory. The index by key is
built on the first query, and kept up to date from then on; so commits pay for it only where it is used::

    key  job.7.state   was written by the versions that wrote job.7.state         (``_at``)
                       job.7 or job, a directory that was put or removed          (``_at`` of the directories above)
                       anything below it, if it is a directory                    (``_below``)
                       or an unknown set of keys                                  (``_unknown``)

A write need not be a change: it may put an equal value. Callers compare the versions.

Invariants: the versions are those that the namespace keeps, without gaps; at most ``indexed_keys_max`` keys are
recorded, and those of the newest version.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR

KEY_SEPARATOR = "\0"
"""Between recorded keys: no key has it."""


class KeyIndex:
    def __init__(self, first: int, limits: MvccLimits = MVCC_LIMITS) -> None:
        """``first``: the namespace's first version that is kept."""
        self._keys: deque[str | None] = deque([None])
        """The keys of each version, joined; None where they are not known."""
        self._first = first
        self._limits = limits
        self._next = first + 1
        self._indexed = first
        """Versions below this one are in the index."""
        self._recorded: deque[int] = deque()
        """Versions whose keys are known."""
        self._total = 0
        """Recorded keys of all versions together."""
        self._at: dict[str, list[int]] = {}
        self._below: dict[str, list[int]] = {}
        self._unknown: list[int] = []

    def append(self, keys: list[str] | None) -> None:
        """Record the keys of the next version. None: it may have written any key. After a MemoryError nothing has changed."""
        version = self._next
        if keys is None or len(keys) > self._limits.version_keys_max:
            self._keys.append(None)
            self._next += 1
            return
        text = KEY_SEPARATOR.join(keys)
        self._recorded.append(version)
        try:
            self._keys.append(text)
        except MemoryError:
            self._recorded.pop()
            raise
        self._next += 1
        self._total += len(keys)
        with suppress(MemoryError):  # the next version drops them
            while self._total > self._limits.indexed_keys_max and len(self._recorded) > 1:
                self._drop_keys(self._recorded[0])

    def keys(self, version: int) -> list[str] | None:
        """Return the keys that a kept version wrote, or None if they are not known."""
        text = self._keys[version - self._first]
        return None if text is None else text.split(KEY_SEPARATOR) if text else []

    def text_bytes(self, version: int) -> int:
        """Return the size of a version's recorded keys."""
        return len(self._keys[version - self._first] or "")

    def compact(self) -> None:
        """Drop the oldest version."""
        version = self._first
        self._drop_keys(version)
        self._keys.popleft()
        self._first += 1
        if version < self._indexed:
            assert self._unknown[0] == version
            del self._unknown[0]
        self._indexed = max(self._indexed, self._first)

    def _drop_keys(self, version: int) -> None:
        """Drop the keys of a version, the oldest whose keys are known: from now on it may have written any key."""
        keys = self.keys(version)
        if keys is None:
            return
        indexed = version < self._indexed
        names_at, names_below = (dict.fromkeys(keys), _directories(keys)) if indexed else ({}, {})
        if indexed:
            self._unknown.insert(bisect_left(self._unknown, version), version)
        self._recorded.popleft()
        self._total -= len(keys)
        self._keys[version - self._first] = None
        for index, names in ((self._at, names_at), (self._below, names_below)):
            for name in names:
                versions = index[name]
                del versions[0]
                if not versions:
                    del index[name]

    def newest_write(self, key: str, below: int) -> int | None:
        """Return the newest kept version under ``below`` that may have changed ``key``, or None if there is none."""
        self._catch_up()
        if key == ROOT_KEY:
            return below - 1 if below > self._first else None
        best = -1
        for versions in self._versions_of(key):
            at = bisect_left(versions, below)
            if at and versions[at - 1] > best:
                best = versions[at - 1]
        return best if best >= 0 else None

    def _versions_of(self, key: str) -> Iterator[list[int]]:
        yield self._unknown
        yield self._below.get(key, [])
        yield self._at.get(key, [])
        yield self._at.get(ROOT_KEY, [])
        for directory in _directories([key]):
            yield self._at.get(directory, [])

    def _catch_up(self) -> None:
        """Index the versions that are not indexed yet."""
        for version in range(self._indexed, self._next):
            keys = self.keys(version)
            if keys is None:
                self._unknown.append(version)
                continue
            for key in dict.fromkeys(keys):
                self._at.setdefault(key, []).append(version)
            for directory in _directories(keys):
                self._below.setdefault(directory, []).append(version)
        self._indexed = self._next

    def statistics(self) -> dict[str, int]:
        """``versions`` kept, ``recorded_keys`` of all of them, and ``indexed`` keys and directories."""
        return {
            "versions": len(self._keys),
            "recorded_keys": self._total,
            "indexed": len(self._at) + len(self._below),
        }

    def check(self) -> None:
        assert len(self._keys) == self._next - self._first
        recorded = [version for version in range(self._first, self._next) if self.keys(version) is not None]
        assert recorded == list(self._recorded)
        assert self._total == sum(len(self.keys(version) or ()) for version in recorded)
        assert self._total <= self._limits.indexed_keys_max or len(recorded) == 1
        for versions in (self._unknown, *self._at.values(), *self._below.values()):
            assert versions == sorted(set(versions))
            assert not versions or self._first <= versions[0] <= versions[-1] < self._indexed


def _directories(keys: list[str]) -> dict[str, None]:
    """Return the directories above the keys, without the root."""
    found: dict[str, None] = {}
    for key in keys:
        at = key.rfind(SEPARATOR)
        while at > 0:
            found[key[:at]] = None
            at = key.rfind(SEPARATOR, 0, at)
    return found
