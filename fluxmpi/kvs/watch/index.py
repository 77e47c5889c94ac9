"""The watchers of one namespace, and the index that finds those whom a version concerns.

It is a trie of the components of their patterns. A changed key goes down in it, and so finds the watchers at a cost that grows
with its components, not with the watchers::

    changed key  job.7.state      concerns who watches that key, or a pattern that it matches
                                  who watches the key job, or job.7: a directory may stand in its place now
    … and was or is a directory   who watches anything below it

Steps are counted, so that a version of many keys, or one that concerns many watchers, can be gone through in slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.pattern import DEEP, Component, Wild
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import RootInfo

BELOW_MAX = 8
"""So many watchers below a changed key are asked, rather than to find out whether it is a directory."""

DIRECTORY_STEPS = 20
"""What it counts to find that out."""

MERGED_PER_STEP = 16
"""Watchers found together that are gathered in one step."""


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

    def find(self, name: str, found: list[_Node]) -> int:
        """Add to ``found`` where the name leads; the steps that it took."""
        steps = len(self._lengths)
        for length, at_end in self._lengths:
            if length > len(name):
                continue
            if at_end:
                group = self._by_suffix.get(name[len(name) - length :])
            else:
                group = self._by_prefix.get(name[:length])
            if group:
                steps += len(group)
                found += [node for wild, node in group.values() if wild.matches(name)]
        return steps

    def children(self) -> Iterator[_Node]:
        for groups in (self._by_prefix, self._by_suffix):
            for group in groups.values():
                for _, node in group.values():
                    yield node


TrieState = tuple[_Node, ...]


@dataclass(slots=True, eq=False)
class Arrival:
    """A version whose watchers have still to be found, or told. ``before``: the one before it; None if that is not known, as
    ``keys``, the changed ones. ``history``: it stands for those after it as well, which are in the history.
    """

    before: RootInfo | None
    root: RootInfo
    keys: list[str] | None
    history: bool = False
    place: int = 0
    """So many of the keys were looked up."""
    diff: Diff | None = None
    """Where the keys are not known: what changed, being found out."""
    concerned: Concerned | None = None
    todo: Iterator[Watcher] | None = None
    """All are found; these have still to be told."""


class WatchIndex:
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
        self.pending: deque[Arrival] = deque()
        """Versions of which not all have been told whom they concern, oldest first; and how many keys they name."""
        self.pending_keys = 0
        self.starting = False
        """Some of ``waiting`` are about to begin."""
        self.busy = self.ready = False
        self.steps = 0
        """Taken in the index so far, each about a microsecond."""
        self.progressing: dict[Watcher, None] = {}
        """Those that want to know when they have come to a version that is pending."""

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._all))

    @property
    def idle(self) -> bool:
        """Nobody would notice if it were forgotten."""
        return not (self._all or self.always or self.busy or self.ready or self.pending)

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
        for group in (self.always, self.waiting, self.progressing):
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
    def start(self) -> TrieState:
        return _closed([self._trie])

    def step(self, state: TrieState, name: str) -> TrieState:
        found: list[_Node] = []
        self.steps += len(state)
        for node in state:
            child = node.literals.get(name)
            if child is not None:
                found.append(child)
            if node.wilds is not None:
                self.steps += node.wilds.find(name, found)
        if len(state) == 1 and not state[0].loops:
            return _closed(found)
        return (*_closed(found), *(node for node in state if node.loops))

    def accepts(self, state: TrieState) -> bool:
        return bool(state)

    def may_match_below(self, state: TrieState) -> bool:
        return bool(state)

    def check(self) -> None:
        for watcher in self._all:
            watcher.check()
        assert self._trie.count == len(self._all) == _check(self._trie)
        assert all(watcher in self._all for watcher in self.waiting)
        assert self.pending_keys == sum(len(arrival.keys or ()) for arrival in self.pending)
        assert self.busy or self.ready or not self.pending, "versions are pending, and nobody looks at them"


class Concerned:
    """Those whom the change of some keys concerns, gathered key by key."""

    __slots__ = ("_met", "_watches", "watchers")

    def __init__(self, watches: WatchIndex) -> None:
        self._watches = watches
        self._met: dict[tuple[_Node, str], None] = {}
        """Nodes whose watchers are here already: those of it, those of its key alone, or all at it and below."""
        self.watchers: dict[Watcher, None] = {}

    def add(self, key: str, is_directory: Callable[[str], bool]) -> None:
        """The watchers to ask about a version that changed ``key``. ``is_directory``: it is or was one, or a link."""
        state = self._descend(key)
        if sum(node.count - len(node.here) for node in state) > BELOW_MAX:
            self._watches.steps += DIRECTORY_STEPS
            if not is_directory(key):
                return
        self._gather(state)

    def met(self, key: str, whole: bool) -> None:
        """Those whom the change of one key concerns; ``whole``: and of all below it."""
        state = self._descend(key)
        if whole:
            self._gather(state)

    def _descend(self, key: str) -> TrieState:
        """Add the watchers of the key itself, and of keys above it; where those below it are."""
        watches, found = self._watches, self.watchers
        watches.steps += 1
        state = watches.start
        for name in () if key == ROOT_KEY else key.split(SEPARATOR):
            for node in state:
                if node.keys:
                    self._merge(node, "key", node.keys) if len(node.keys) > MERGED_PER_STEP else found.update(node.keys)
            state = watches.step(state, name)
            if not state:
                return state
        for node in state:
            if node.here:
                self._merge(node, "here", node.here) if len(node.here) > MERGED_PER_STEP else found.update(node.here)
        return state

    def _gather(self, nodes: TrieState) -> None:
        """All watchers at some nodes and below."""
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if self._merge(node, "below", node.here):
                todo += node.children()

    def _merge(self, node: _Node, what: str, watchers: dict[Watcher, None]) -> bool:
        """False if that was done before."""
        if (node, what) in self._met:
            return False
        self._met[node, what] = None
        self.watchers.update(watchers)
        self._watches.steps += 1 + len(watchers) // MERGED_PER_STEP
        return True


def _closed(nodes: list[_Node]) -> TrieState:
    """With the nodes behind each ``**``, which may stand for nothing."""
    for node in nodes:  # grows while it is read: behind a ** there may be another
        if node.deep is not None:
            nodes.append(node.deep)
    return tuple(nodes)


def _check(node: _Node) -> int:
    """Assert that counts are right and no empty node is left; the watchers below."""
    count = len(node.here) + sum(map(_check, node.children()))
    assert count == node.count, "the index has lost count"
    assert node.keys.keys() <= node.here.keys()
    assert all(child.count for child in node.children()), "an empty node is left in the index"
    return count
