"""Watches: who must be told of which version, and what.

A ``Watcher`` compares what it watches in one version with the next that may have changed it, by ``diff``, so that a
notification holds all changes of one version and nothing else. Versions wait in its queue and are taken in order; one walk at
a time, since a walk may stall for blobs.

The ``Watches`` of a broker find the watchers that a set of changed keys concerns, at a cost that grows with the keys, not with
the watchers:

    changed key  job.7.state     concerns the watcher of that key,
                                 watchers of job.7, job and the root                 (prefixes of the key)
                                 watchers of keys below it, if it was a directory    (``_below``)

A watcher whose path goes through a link is asked at every version: a change elsewhere may lead it to another place.

Invariants: per watcher, versions are notified in order, none twice; between two notifications nothing changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Object
from fluxmpi.kvs.wire import RootInfo, Watch
from fluxmpi.message import Message

QUEUE_MAX = 10_000
"""Versions that a watcher may lag behind while its walk is stalled; past that its stream ends with Overloaded."""


def prefixes(key: str) -> Iterator[str]:
    """The directories above a key, the root (".") last: ``a.b.c`` gives ``a.b``, ``a``, ``.``."""
    at = key.rfind(SEPARATOR)
    while at > 0:
        yield key[:at]
        at = key.rfind(SEPARATOR, 0, at)
    if key != ROOT_KEY:
        yield ROOT_KEY


@dataclass(slots=True, eq=False)
class Watcher:
    """``key`` is without a trailing dot; ``seen`` is the version last notified, None before the first."""

    msg: Message
    watch: Watch
    key: str
    parts: list[str]
    seen: RootInfo | None = None
    object: Object | None = None
    """What stood at the key in the version last looked at."""
    queue: deque[RootInfo] = field(default_factory=deque)
    busy: bool = False
    """A walk is under way."""
    through_link: bool = False
    ended: bool = False


class Watches:
    """All watchers of one namespace at one broker."""

    def __init__(self) -> None:
        self._at: dict[str, dict[Watcher, None]] = {}
        self._below: dict[str, dict[Watcher, None]] = {}
        self._through_links: dict[Watcher, None] = {}
        self._all: dict[tuple[tuple[int, ...], int], Watcher] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._all.values()))

    def add(self, watcher: Watcher) -> None:
        self._all[tuple(watcher.msg.route), watcher.msg.tag] = watcher
        self._at.setdefault(watcher.key, {})[watcher] = None
        for prefix in prefixes(watcher.key):
            self._below.setdefault(prefix, {})[watcher] = None

    def find(self, route: list[int], tag: int) -> Watcher | None:
        return self._all.get((tuple(route), tag))

    def remove(self, watcher: Watcher) -> None:
        watcher.ended = True
        watcher.queue.clear()
        self._all.pop((tuple(watcher.msg.route), watcher.msg.tag), None)
        self._through_links.pop(watcher, None)
        _discard(self._at, watcher.key, watcher)
        for prefix in prefixes(watcher.key):
            _discard(self._below, prefix, watcher)

    def goes_through_link(self, watcher: Watcher) -> None:
        if not watcher.ended:
            watcher.through_link = True
            self._through_links[watcher] = None

    def concerned(self, keys: list[str] | None) -> list[Watcher]:
        """The watchers to ask about a version that changed ``keys``; None: all."""
        if not self._all:
            return []
        if keys is None:
            return list(self)
        found = dict(self._through_links)
        at, below = self._at, self._below
        for key in keys:
            if key in at:
                found.update(at[key])
            if key in below:
                found.update(below[key])
            for prefix in prefixes(key):
                if prefix in at:  # recursive ones, and those of a value in whose place a directory may now stand
                    found.update(at[prefix])
        return list(found)

    def check(self) -> None:
        for watcher in self._all.values():
            assert not watcher.ended
            assert watcher in self._at[watcher.key]
            versions = [root.version for root in watcher.queue]
            assert versions == sorted(set(versions)), "a watcher's versions are out of order"
            assert watcher.busy or not watcher.queue, "a watcher sleeps while versions wait"
        assert sum(map(len, self._at.values())) == len(self._all)


def _discard(index: dict[str, dict[Watcher, None]], key: str, watcher: Watcher) -> None:
    watchers = index.get(key, {})
    watchers.pop(watcher, None)
    if not watchers:
        index.pop(key, None)
