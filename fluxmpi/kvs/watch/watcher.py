"""Watchers: each is one watch of one client: what it watches, what it has seen, and the versions that it has still to look at.

Its states::

    WAITING ──the namespace is here──▶ REPLAYING ──no version is left──▶ LIVE ──count, cancel, error──▶ ended
                                           ▲                              │
                                           └── a link was found, late, ───┘
                                               or too many versions wait

    WAITING     for its namespace
    REPLAYING   takes the versions from the history, a page at a time; those that come meanwhile are found there, too
    LIVE        has looked at all that came before; versions that concern it are put into its queue

Invariants: per watcher and namespace, versions are looked at in order, none twice; a sleeping watcher has none to look at.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from fluxmpi.errors import InvalidRequest, Overloaded
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.wire import WINDOW_MAX, RootInfo, WatchRequest
from fluxmpi.message import Message

QUEUE_MAX = 5_000
"""Versions that a watcher may lag behind; past that its stream ends with Overloaded. Half of RETENTION_COUNT: else the
version to watch again from would be collected by the time that the watcher hears of it.
"""


class WatcherState(Enum):
    WAITING, REPLAYING, LIVE = range(3)


@dataclass(slots=True)
class Step:
    """A version to look at. ``before``: one before it, since which nothing changed that is watched, or None.

    ``touched``: it wrote the watched key, perhaps with what was there.
    """

    before: RootInfo | None
    root: RootInfo
    touched: bool = False


@dataclass(slots=True, eq=False)
class Watcher:
    msg: Message
    watch: WatchRequest
    pattern: Pattern
    key: str
    """Of the watched key, directory, or the literal beginning of the pattern; without a trailing dot."""
    state: WatcherState = WatcherState.WAITING
    roots: dict[str, RootInfo] = field(default_factory=dict)
    """The last version looked at, of the own namespace and of those that links led to."""
    object: Object | None = None
    """What stood at ``key`` then."""
    resolved: tuple[str, str] | None = None
    """Where that was: namespace and key, links resolved; None before the first look."""
    through_link: bool = False
    queue: deque[Step] = field(default_factory=deque)
    pushed: dict[str, int] = field(default_factory=dict)
    """The last version of each namespace that was put there, or looked at."""
    page: deque[RootInfo] = field(default_factory=deque)
    """While replaying: the next versions."""
    next: int = 0
    """… and the first one after those."""
    begun: bool = False
    """The first notification was sent."""
    come: int = -1
    """The version of its namespace up to which all has been told."""
    diff: Diff | None = None
    """What is being told, of the version ``telling``, part by part; ``parts`` were told."""
    telling: RootInfo | None = None
    parts: int = 0
    unacknowledged: int = 0
    counted: int = 0
    """Notifications that held changes."""
    progress: RootInfo | None = None
    """The client wants to know when it has come to this version."""
    busy: bool = False
    """A walk is under way, or rank 0 was asked."""
    ready: bool = False
    """It is in the queue of those that have something to do."""
    ended: bool = False
    """It is told nothing more; what is kept of it goes when there is time."""

    @property
    def tag(self) -> int:
        return self.msg.tag

    @property
    def hop(self) -> int:
        return self.msg.route[0]

    @property
    def queued(self) -> int:
        return len(self.queue) + len(self.page)

    def push(self, step: Step) -> bool:
        """Put a version into the queue; with ``latest`` it takes the place of one that waits. False: the queue is full."""
        if self.watch.latest:
            for waiting in self.queue:
                if waiting.root.namespace == step.root.namespace:
                    waiting.root = step.root
                    waiting.touched |= step.touched
                    return True
        if len(self.queue) >= QUEUE_MAX:
            return False
        self.queue.append(step)
        return True

    def take(self) -> Step | None:
        """The next version to look at."""
        if self.page:
            return Step(None, self.page.popleft())
        return self.queue.popleft() if self.queue else None

    def from_history(self, version: int) -> None:
        """Take all versions from this one on from the history; and those of its namespace that wait in the queue."""
        own = self.watch.namespace
        queued = [step.root.version for step in self.queue if step.root.namespace == own]
        self.queue = deque(step for step in self.queue if step.root.namespace != own)
        self.state = WatcherState.REPLAYING
        self.next = min([version, *queued])

    def lags(self) -> Overloaded:
        """The error for one that does, with the version to go on from."""
        again = f"all up to version {self.come} was told: watch again with since={self.come}"
        if self.come < 0:
            again = "nothing was told yet: watch again, and read faster"
        return Overloaded(f"the watch lags {QUEUE_MAX:,} versions behind; {again}")

    def check(self) -> None:
        if self.ended:
            return
        own = self.watch.namespace
        live = self.state is WatcherState.LIVE
        assert live or all(step.root.namespace != own for step in self.queue), (
            "queued, and to be taken from history as well"
        )
        assert self.state is WatcherState.REPLAYING or not self.page
        namespaces = dict.fromkeys(step.root.namespace for step in self.queue)
        for namespace in namespaces:
            versions = [step.root.version for step in self.queue if step.root.namespace == namespace]
            assert versions == sorted(set(versions)), "a watcher's versions are out of order"
        assert not self.watch.latest or len(self.queue) == len(namespaces)
        assert self.diff is None or self.telling is not None


def pattern_of(watch: WatchRequest) -> Pattern:
    """What a watch watches. Raises InvalidRequest, InvalidKey."""
    if not 0 < watch.window <= WINDOW_MAX:
        raise InvalidRequest(f"a watch's window is 1 to {WINDOW_MAX:,} bytes, not {watch.window:,}")
    if watch.count < 0:
        raise InvalidRequest(f"a watch's count is 1 or more, or 0 for no end, not {watch.count}")
    if watch.since is not None and watch.since < 0:
        raise InvalidRequest(f"versions begin with 0, so since cannot be {watch.since}")
    if watch.glob and watch.recursive:
        raise InvalidRequest(
            f"'{watch.key}' cannot be a pattern and a directory: 'dir.**' is the pattern of all below dir"
        )
    if watch.glob or watch.recursive:
        if not watch.uniq:
            raise InvalidRequest("uniq=False is for the watch of one key: only of that it is known that it was written")
        return Pattern.glob(watch.key) if watch.glob else Pattern.below(watch.key)
    return Pattern.key(watch.key)


def is_touched(watcher: Watcher, root: RootInfo, keys: list[str]) -> bool:
    """Whether a version with these changed keys wrote the watched key, or what its links led to when it was last looked at."""
    namespace, key = watcher.resolved or (watcher.watch.namespace, watcher.key)
    return namespace == root.namespace and key in keys
