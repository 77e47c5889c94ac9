"""Which versions touched a key: where its history must be looked for.

A version notes the keys of its operations as one text, a sixth of what a list of them takes. The index by key is made when
somebody asks, and kept up from then on; so commits pay for it only where it is used::

    key  job.7.state   was touched by the versions that touched job.7.state       (``_at``)
                       job.7 or job, a directory that was put or removed          (``_at`` of what is above it)
                       anything below it, if it is a directory                    (``_below``)
                       or of which is not known what they touched                 (``_any``)

Touched is not changed: a put may have put what was there. Who asks compares the versions.

Invariants: the versions are those that their namespace keeps, none missing between them; at most ``indexed_keys_max`` keys are
noted, and those of the newest version.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator

from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR

BETWEEN = "\0"


class KeyIndex:
    def __init__(self, first: int, limits: MvccLimits = MVCC_LIMITS) -> None:
        """``first``: the namespace's first version that is kept."""
        self._keys: deque[str | None] = deque([None])
        """Of each version, joined with NULs, which no key has; None where they are not known."""
        self._first = first
        self._limits = limits
        self._next = first + 1
        self._indexed = first
        """Versions below this one are in the index."""
        self._noted: deque[int] = deque()
        """Versions of which the keys are remembered, and how many they are together."""
        self._total = 0
        self._at: dict[str, list[int]] = {}
        self._below: dict[str, list[int]] = {}
        self._any: list[int] = []

    def note(self, keys: list[str] | None) -> None:
        """The next version's. None: it may have touched any."""
        version = self._next
        self._next += 1
        if keys is None or len(keys) > self._limits.version_keys_max:
            self._keys.append(None)
            return
        self._keys.append(BETWEEN.join(keys))
        self._noted.append(version)
        self._total += len(keys)
        while self._total > self._limits.indexed_keys_max and len(self._noted) > 1:
            self._lose(self._noted[0])

    def keys(self, version: int) -> list[str] | None:
        """What a version that is kept touched; None if that is not known."""
        text = self._keys[version - self._first]
        return None if text is None else text.split(BETWEEN) if text else []

    def forget(self) -> None:
        """The oldest version is not kept any more."""
        version = self._first
        self._lose(version)
        self._keys.popleft()
        self._first += 1
        if version < self._indexed:
            assert self._any[0] == version
            del self._any[0]
        self._indexed = max(self._indexed, self._first)

    def _lose(self, version: int) -> None:
        """From now on it is not known what it touched; it is the oldest of which that is known."""
        keys = self.keys(version)
        if keys is None:
            return
        self._noted.popleft()
        self._total -= len(keys)
        self._keys[version - self._first] = None
        if version >= self._indexed:
            return
        for index, names in ((self._at, dict.fromkeys(keys)), (self._below, _above(keys))):
            for name in names:
                versions = index[name]
                del versions[0]
                if not versions:
                    del index[name]
        self._any.insert(bisect_left(self._any, version), version)

    def newest(self, key: str, below: int) -> int | None:
        """The newest version under ``below`` that may have changed ``key``, or None if none that is kept may have."""
        self._catch_up()
        if key == ROOT_KEY:
            return below - 1 if below > self._first else None
        best = -1
        for versions in self._lists(key):
            at = bisect_left(versions, below)
            if at and versions[at - 1] > best:
                best = versions[at - 1]
        return best if best >= 0 else None

    def _lists(self, key: str) -> Iterator[list[int]]:
        yield self._any
        yield self._below.get(key, [])
        yield self._at.get(key, [])
        yield self._at.get(ROOT_KEY, [])
        for prefix in _above([key]):
            yield self._at.get(prefix, [])

    def _catch_up(self) -> None:
        for version in range(self._indexed, self._next):
            keys = self.keys(version)
            if keys is None:
                self._any.append(version)
                continue
            for key in dict.fromkeys(keys):
                self._at.setdefault(key, []).append(version)
            for prefix in _above(keys):
                self._below.setdefault(prefix, []).append(version)
        self._indexed = self._next

    def check(self) -> None:
        assert len(self._keys) == self._next - self._first
        noted = [version for version in range(self._first, self._next) if self.keys(version) is not None]
        assert noted == list(self._noted)
        assert self._total == sum(len(self.keys(version) or ()) for version in noted)
        assert self._total <= self._limits.indexed_keys_max or len(noted) == 1
        for versions in (self._any, *self._at.values(), *self._below.values()):
            assert versions == sorted(set(versions))
            assert not versions or self._first <= versions[0] <= versions[-1] < self._indexed


def _above(keys: list[str]) -> dict[str, None]:
    """The directories above the keys, without the root."""
    found: dict[str, None] = {}
    for key in keys:
        at = key.rfind(SEPARATOR)
        while at > 0:
            found[key[:at]] = None
            at = key.rfind(SEPARATOR, 0, at)
    return found
