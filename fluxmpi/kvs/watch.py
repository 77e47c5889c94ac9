"""Watchers, and the index that finds those whom a version concerns.

A ``Watcher`` is one watch of one client: what it watches, what it has seen, and the versions that it has still to look at. Its
states::

    WAITING ──the namespace is here──▶ REPLAYING ──no version is left──▶ LIVE ──count, cancel, error──▶ ended
                                           ▲                              │
                                           └── a link was found, late ────┘

    WAITING     for its namespace
    REPLAYING   takes the versions from the history, a page at a time; those that come meanwhile are found there, too
    LIVE        has looked at all that came before; versions that concern it are put into its queue

``Watches`` are those of one namespace: a trie of the components of their patterns. A changed key goes down in it, and so finds
the watchers at a cost that grows with its components, not with the watchers::

    changed key  job.7.state      concerns who watches that key, or a pattern that it matches
                                  who watches the key job, or job.7: a directory may stand in its place now
    … and was or is a directory   who watches anything below it

Invariants: per watcher and namespace, versions are looked at in order, none twice; a sleeping watcher has none to look at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.diff import Diff
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Object
from fluxmpi.kvs.pattern import DEEP, Component, Pattern, Wild
from fluxmpi.kvs.wire import WINDOW_MAX, RootInfo, Watch
from fluxmpi.message import Message

QUEUE_MAX = 5_000
"""Versions that a watcher may lag behind; past that its stream ends with Overloaded. Half of what is kept (``spaces``): else the
version to watch again from would be collected by the time that the watcher hears of it.
"""

BELOW_MAX = 8
"""So many watchers below a changed key are asked, rather than to find out whether it is a directory."""


class State(Enum):
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
    watch: Watch
    pattern: Pattern
    key: str
    """Of the watched key, directory, or the literal beginning of the pattern; without a trailing dot."""
    state: State = State.WAITING
    roots: dict[str, RootInfo] = field(default_factory=dict)
    """The last version looked at, of the own namespace and of those that links led to."""
    object: Object | None = None
    """What stood at ``key`` then."""
    resolved: tuple[str, str] = ("", "")
    """Where that was: namespace and key, links resolved."""
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

    def check(self) -> None:
        assert not self.ended
        own = self.watch.namespace
        live = self.state is State.LIVE
        assert live or all(step.root.namespace != own for step in self.queue), "queued, and to be taken from history as well"
        assert self.state is State.REPLAYING or not self.page
        namespaces = dict.fromkeys(step.root.namespace for step in self.queue)
        for namespace in namespaces:
            versions = [step.root.version for step in self.queue if step.root.namespace == namespace]
            assert versions == sorted(set(versions)), "a watcher's versions are out of order"
        assert not self.watch.latest or len(self.queue) == len(namespaces)
        assert self.diff is None or self.telling is not None


class _Node:
    """Where the components so far lead. ``count``: watchers here and below; ``deep``: the node behind ``**``, where ``loops``."""

    __slots__ = ("count", "deep", "here", "keys", "literals", "loops", "wilds")

    def __init__(self, loops: bool = False) -> None:
        self.literals: dict[str, _Node] = {}
        self.wilds: _Wilds | None = None
        self.deep: _Node | None = None
        self.loops = loops
        self.here: dict[Watcher, None] = {}
        self.keys: dict[Watcher, None] = {}
        """Those of ``here`` that watch a key alone."""
        self.count = 0

    def child(self, component: Component) -> _Node:
        """The one for that component, made if need be."""
        if isinstance(component, str):
            if component not in self.literals:
                self.literals[component] = _Node()
            return self.literals[component]
        if component is DEEP:
            self.deep = self.deep or _Node(loops=True)
            return self.deep
        self.wilds = self.wilds or _Wilds()
        return self.wilds.child(component)

    def drop(self, component: Component) -> None:
        if isinstance(component, str):
            del self.literals[component]
        elif component is DEEP:
            self.deep = None
        elif self.wilds is not None and self.wilds.drop(component):
            self.wilds = None

    def children(self) -> Iterator[_Node]:
        yield from self.literals.values()
        if self.deep is not None:
            yield self.deep
        if self.wilds is not None:
            yield from self.wilds.children()


class _Wilds:
    """Components with wildcards below one node, found by what they begin with, or else end with: ten thousand of the form
    ``k17*`` cost a name as many look-ups as there are lengths of such beginnings, not ten thousand matches.
    """

    __slots__ = ("_by_prefix", "_by_suffix", "_lengths")

    def __init__(self) -> None:
        self._by_prefix: dict[str, dict[str, tuple[Wild, _Node]]] = {}
        self._by_suffix: dict[str, dict[str, tuple[Wild, _Node]]] = {}
        self._lengths: dict[tuple[int, bool], int] = {}
        """How many prefixes have a length, and, with True, how many of the suffixes where there is no prefix. They are few,
        however many patterns there are.
        """

    def _group(self, wild: Wild) -> tuple[dict[str, dict[str, tuple[Wild, _Node]]], str]:
        return (self._by_prefix, wild.prefix) if wild.prefix else (self._by_suffix, wild.suffix)

    def child(self, wild: Wild) -> _Node:
        groups, fix = self._group(wild)
        if fix not in groups:
            groups[fix] = {}
            self._measure(fix, groups is self._by_suffix, 1)
        return groups[fix].setdefault(wild.text, (wild, _Node()))[1]

    def drop(self, wild: Wild) -> bool:
        """True when none is left."""
        groups, fix = self._group(wild)
        del groups[fix][wild.text]
        if not groups[fix]:
            del groups[fix]
            self._measure(fix, groups is self._by_suffix, -1)
        return not self._by_prefix and not self._by_suffix

    def _measure(self, fix: str, at_end: bool, more: int) -> None:
        length = len(fix), at_end
        self._lengths[length] = self._lengths.get(length, 0) + more
        if not self._lengths[length]:
            del self._lengths[length]

    def find(self, name: str) -> Iterator[_Node]:
        for length, at_end in self._lengths:
            if length > len(name):
                continue
            if at_end:
                group = self._by_suffix.get(name[len(name) - length :])
            else:
                group = self._by_prefix.get(name[:length])
            for wild, node in (group or {}).values():
                if wild.matches(name):
                    yield node

    def children(self) -> Iterator[_Node]:
        for groups in (self._by_prefix, self._by_suffix):
            for group in groups.values():
                for _, node in group.values():
                    yield node


Nodes = tuple[_Node, ...]


class Watches:
    """The watchers of one namespace, whether it exists or not, and those of others that links led here.

    As ``Wanted`` of a diff it is all their patterns at once.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._trie = _Node()
        self._all: dict[Watcher, None] = {}
        self.always: dict[Watcher, None] = {}
        """Those to be asked at every version: their way goes through a link, maybe from another namespace."""
        self.waiting: dict[Watcher, None] = {}
        """For this namespace to exist."""
        self.pending: deque[tuple[RootInfo | None, RootInfo, list[str] | None]] = deque()
        """Versions of which it is not known yet whom they concern: (before, version, changed keys)."""
        self.diff: Diff | None = None
        """What the first of them changed, being found out; ``found`` were concerned so far."""
        self.found: dict[Watcher, None] = {}
        self.busy = self.ready = False
        self.progressing: dict[Watcher, None] = {}
        """Those that want to know when they have come to a version that is pending."""

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._all))

    @property
    def idle(self) -> bool:
        """Nobody would notice if it were forgotten."""
        return not (self._all or self.always or self.busy or self.ready)

    def add(self, watcher: Watcher) -> None:
        self._all[watcher] = None
        node = self._trie
        node.count += 1
        for component in watcher.pattern.components:
            node = node.child(component)
            node.count += 1
        node.here[watcher] = None
        if watcher.pattern.plain:
            node.keys[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        for group in (self.always, self.waiting, self.progressing, self.found):
            group.pop(watcher, None)
        if watcher not in self._all:
            return
        del self._all[watcher]
        node = self._trie
        node.count -= 1
        for component in watcher.pattern.components:
            child = node.child(component)
            child.count -= 1
            if not child.count:
                node.drop(component)
                return
            node = child
        node.here.pop(watcher)
        node.keys.pop(watcher, None)

    # -------------------------------------------------------------------------------------------------------- finding

    @property
    def start(self) -> Nodes:
        return _closed([self._trie])

    def step(self, state: Nodes, name: str) -> Nodes:
        found = []
        for node in state:
            child = node.literals.get(name)
            if child is not None:
                found.append(child)
            if node.wilds is not None:
                found += node.wilds.find(name)
        if len(state) == 1 and not state[0].loops:
            return _closed(found)
        return (*_closed(found), *(node for node in state if node.loops))

    def tells(self, state: Nodes) -> bool:
        return bool(state)

    def goes_on(self, state: Nodes) -> bool:
        return bool(state)

    def concerned(self, keys: list[str], is_directory: Callable[[str], bool]) -> dict[Watcher, None]:
        """The watchers to ask about a version that changed ``keys``. ``is_directory``: a key is or was one, or a link."""
        found = dict(self.always)
        for key in keys:
            state = self._descend(key, found)
            if sum(node.count - len(node.here) for node in state) > BELOW_MAX and not is_directory(key):
                continue
            for node in state:
                _gather(node, found)
        return found

    def met(self, key: str, whole: bool, found: dict[Watcher, None]) -> None:
        """Add to ``found`` whom the change of one key concerns; ``whole``: and of all below it."""
        state = self._descend(key, found)
        if whole:
            for node in state:
                _gather(node, found)

    def _descend(self, key: str, found: dict[Watcher, None]) -> Nodes:
        """Add the watchers of the key itself, and of keys above it; where those below it are."""
        state = self.start
        for name in () if key == ROOT_KEY else key.split(SEPARATOR):
            for node in state:
                if node.keys:
                    found.update(node.keys)
            state = self.step(state, name)
            if not state:
                return state
        for node in state:
            if node.here:
                found.update(node.here)
        return state

    def check(self) -> None:
        for watcher in self._all:
            watcher.check()
        assert self._trie.count == len(self._all) == _check(self._trie)
        assert all(watcher in self._all for watcher in self.waiting)
        assert not any(watcher.ended for watcher in self.always)
        assert self.busy or self.ready or not self.pending, "versions are pending, and nobody looks at them"


def _closed(nodes: list[_Node]) -> Nodes:
    """With the nodes behind each ``**``, which may stand for nothing."""
    for node in nodes:  # grows while it is read: behind a ** there may be another
        if node.deep is not None:
            nodes.append(node.deep)
    return tuple(nodes)


def _gather(node: _Node, found: dict[Watcher, None]) -> None:
    """All watchers at a node and below."""
    todo = [node]
    while todo:
        at = todo.pop()
        found.update(at.here)
        todo += at.children()


def _check(node: _Node) -> int:
    """Assert that counts are right and no empty node is left; the watchers below."""
    count = len(node.here) + sum(map(_check, node.children()))
    assert count == node.count, "the index has lost count"
    assert node.keys.keys() <= node.here.keys()
    assert all(child.count for child in node.children()), "an empty node is left in the index"
    return count


def pattern_of(watch: Watch) -> Pattern:
    """What a watch watches. Raises InvalidRequest, InvalidKey."""
    if not 0 < watch.window <= WINDOW_MAX:
        raise InvalidRequest(f"a watch's window is 1 to {WINDOW_MAX:,} bytes, not {watch.window:,}")
    if watch.count < 0:
        raise InvalidRequest(f"a watch's count is 1 or more, or 0 for no end, not {watch.count}")
    if watch.since is not None and watch.since < 0:
        raise InvalidRequest(f"versions begin with 0, so since cannot be {watch.since}")
    if watch.glob and watch.recursive:
        raise InvalidRequest(f"'{watch.key}' cannot be a pattern and a directory: 'dir.**' is the pattern of all below dir")
    if watch.glob or watch.recursive:
        if not watch.uniq:
            raise InvalidRequest("uniq=False is for the watch of one key: only of that it is known that it was written")
        return Pattern.glob(watch.key) if watch.glob else Pattern.below(watch.key)
    return Pattern.key(watch.key)


def is_touched(watcher: Watcher, root: RootInfo, keys: list[str]) -> bool:
    """Whether a version with these changed keys wrote the watched key."""
    namespace, key = watcher.resolved
    return namespace == root.namespace and key in keys
