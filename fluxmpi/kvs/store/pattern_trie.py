"""Trie of patterns: find the items whose patterns a changed key may match.

Each item is stored under its pattern, component by component. A changed key descends from the root, so the cost grows
with the key's components and not with the number of items::

    changed key job.7.state    matches items whose pattern matches job.7.state,
                               and items of the plain keys job and job.7: a directory may have replaced their value
    it was or is a directory   matches items with any pattern below it as well

Edges are literals, wildcards and ``**``. Wildcard edges of one node are found by their literal beginning or end.

A set of keys is matched in slices: ``steps`` counts the work, about a microsecond a step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR
from fluxmpi.kvs.store.pattern import DEEP, Component, Pattern, Wild

BELOW_MAX = 8
"""Up to so many items below a changed key are matched without a test whether the key is a directory."""

DIRECTORY_STEPS = 20
"""Steps that this test counts as."""

MERGED_PER_STEP = 16
"""Items of one node that are merged in one step."""

T = TypeVar("T", bound=Hashable)


class TrieNode(Generic[T]):
    """``items`` end at this node, ``keys`` are those of plain keys. ``count``: items here and below.

    ``deep`` is the node after ``**``; its ``loops`` is True: it stays in the state whatever names follow.
    """

    __slots__ = ("count", "deep", "items", "keys", "literals", "loops", "wilds")

    def __init__(self, loops: bool = False) -> None:
        self.literals: dict[str, TrieNode[T]] = {}
        self.wilds: WildEdges[T] | None = None
        self.deep: TrieNode[T] | None = None
        self.loops = loops
        self.items: dict[T, None] = {}
        self.keys: dict[T, None] = {}
        self.count = 0

    def child(self, component: Component) -> TrieNode[T]:
        """Return the child for a component; create it if it is missing."""
        if isinstance(component, str):
            if component not in self.literals:
                self.literals[component] = TrieNode()
            return self.literals[component]
        if component is DEEP:
            self.deep = self.deep or TrieNode(loops=True)
            return self.deep
        self.wilds = self.wilds or WildEdges()
        return self.wilds.child(component)

    def drop(self, component: Component) -> None:
        """Remove the child for a component."""
        if isinstance(component, str):
            del self.literals[component]
        elif component is DEEP:
            self.deep = None
        elif self.wilds is not None and self.wilds.drop(component):
            self.wilds = None

    def children(self) -> Iterator[TrieNode[T]]:
        yield from self.literals.values()
        if self.deep is not None:
            yield self.deep
        if self.wilds is not None:
            yield from self.wilds.children()

    def check(self) -> int:
        """Assert that the counts are right and that no node is empty; return the count."""
        count = len(self.items) + sum(child.check() for child in self.children())
        assert count == self.count, "a trie node's count is wrong"
        assert self.keys.keys() <= self.items.keys()
        assert all(child.count for child in self.children()), "the trie keeps an empty node"
        return count


class WildEdges(Generic[T]):
    """The wildcard edges of one node, grouped by their literal prefix, or else by their literal suffix.

    A name costs one look-up per distinct length of these: with ten thousand patterns ``k17*`` a few, not ten thousand
    matches.
    """

    __slots__ = ("_by_prefix", "_by_suffix", "_lengths")

    def __init__(self) -> None:
        self._by_prefix: dict[str, dict[str, tuple[Wild, TrieNode[T]]]] = {}
        self._by_suffix: dict[str, dict[str, tuple[Wild, TrieNode[T]]]] = {}
        self._lengths: dict[tuple[int, bool], int] = {}
        """(Length, is a suffix) → number of groups. There are few lengths, however many patterns there are."""

    def _group(self, wild: Wild) -> tuple[dict[str, dict[str, tuple[Wild, TrieNode[T]]]], str]:
        return (self._by_prefix, wild.prefix) if wild.prefix else (self._by_suffix, wild.suffix)

    def child(self, wild: Wild) -> TrieNode[T]:
        groups, literal = self._group(wild)
        if literal not in groups:
            groups[literal] = {}
            self._count_length(literal, groups is self._by_suffix, 1)
        return groups[literal].setdefault(wild.text, (wild, TrieNode()))[1]

    def drop(self, wild: Wild) -> bool:
        """Remove an edge. True when none is left."""
        groups, literal = self._group(wild)
        del groups[literal][wild.text]
        if not groups[literal]:
            del groups[literal]
            self._count_length(literal, groups is self._by_suffix, -1)
        return not self._by_prefix and not self._by_suffix

    def _count_length(self, literal: str, is_suffix: bool, more: int) -> None:
        length = len(literal), is_suffix
        self._lengths[length] = self._lengths.get(length, 0) + more
        if not self._lengths[length]:
            del self._lengths[length]

    def find(self, name: str, found: list[TrieNode[T]]) -> int:
        """Append the nodes that ``name`` leads to; return the steps that it took."""
        steps = len(self._lengths)
        for length, is_suffix in self._lengths:
            if length > len(name):
                continue
            if is_suffix:
                group = self._by_suffix.get(name[len(name) - length :])
            else:
                group = self._by_prefix.get(name[:length])
            if group:
                steps += len(group)
                found += [node for wild, node in group.values() if wild.matches(name)]
        return steps

    def children(self) -> Iterator[TrieNode[T]]:
        for groups in (self._by_prefix, self._by_suffix):
            for group in groups.values():
                for _, node in group.values():
                    yield node


class PatternTrie(Generic[T]):
    """Items by pattern. As ``KeyFilter`` of a diff it is the union of all patterns; its states are tuples of nodes."""

    def __init__(self) -> None:
        self.root: TrieNode[T] = TrieNode()
        self.steps = 0
        """Work done so far."""

    def __len__(self) -> int:
        return self.root.count

    def add(self, pattern: Pattern, item: T) -> None:
        node = self.root
        node.count += 1
        for component in pattern.components:
            node = node.child(component)
            node.count += 1
        node.items[item] = None
        if pattern.plain:
            node.keys[item] = None

    def remove(self, pattern: Pattern, item: T) -> None:
        """Remove an item that was added under this pattern; nodes that become empty go."""
        node = self.root
        node.count -= 1
        for component in pattern.components:
            child = node.child(component)
            child.count -= 1
            if not child.count:
                node.drop(component)
                return
            node = child
        node.items.pop(item)
        node.keys.pop(item, None)

    @property
    def start(self) -> tuple[TrieNode[T], ...]:
        return _closed([self.root])

    def step(self, state: tuple[TrieNode[T], ...], name: str) -> tuple[TrieNode[T], ...]:
        found: list[TrieNode[T]] = []
        self.steps += len(state)
        for node in state:
            child = node.literals.get(name)
            if child is not None:
                found.append(child)
            if node.wilds is not None:
                self.steps += node.wilds.find(name, found)
        if len(state) == 1 and not state[0].loops:
            return _closed(found)
        # A node is kept once: the one after a '**' is reached again by each further name that leads there. Without this
        # a state grows exponentially in the number of '**'.
        return tuple(dict.fromkeys((*_closed(found), *(node for node in state if node.loops))))

    def accepts(self, state: tuple[TrieNode[T], ...]) -> bool:
        return bool(state)

    def may_match_below(self, state: tuple[TrieNode[T], ...]) -> bool:
        return bool(state)

    def check(self) -> None:
        self.root.check()


class MatchSet(Generic[T]):
    """The items that the change of some keys may match, collected key by key."""

    __slots__ = ("_merged", "_trie", "items")

    def __init__(self, trie: PatternTrie[T]) -> None:
        self._trie = trie
        self._merged: dict[tuple[TrieNode[T], str], None] = {}
        """Nodes that are collected already: their ``items``, their ``keys``, or everything at and below them."""
        self.items: dict[T, None] = {}

    def add(self, key: str, is_directory: Callable[[str], bool]) -> None:
        """Add the items that a change of ``key`` may match.

        ``is_directory``: whether a directory or a link is stored at a key, before or after the change.
        """
        state = self._descend(key)
        if sum(node.count - len(node.items) for node in state) > BELOW_MAX:
            self._trie.steps += DIRECTORY_STEPS
            if not is_directory(key):
                return
        self._add_below(state)

    def add_difference(self, key: str, below: bool) -> None:
        """Add the items that match one difference of two trees; ``below``: and all items below its key."""
        state = self._descend(key)
        if below:
            self._add_below(state)

    def _descend(self, key: str) -> tuple[TrieNode[T], ...]:
        """Add the items of the key and of plain keys above it; return the nodes that the key leads to."""
        trie, found = self._trie, self.items
        trie.steps += 1
        state = trie.start
        for name in () if key == ROOT_KEY else key.split(SEPARATOR):
            for node in state:
                if node.keys:
                    self._merge(node, "keys", node.keys) if len(node.keys) > MERGED_PER_STEP else found.update(
                        node.keys
                    )
            state = trie.step(state, name)
            if not state:
                return state
        for node in state:
            if node.items:
                self._merge(node, "items", node.items) if len(node.items) > MERGED_PER_STEP else found.update(
                    node.items
                )
        return state

    def _add_below(self, nodes: tuple[TrieNode[T], ...]) -> None:
        """Add all items at some nodes and below."""
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if self._merge(node, "below", node.items):
                todo += node.children()

    def _merge(self, node: TrieNode[T], what: str, items: dict[T, None]) -> bool:
        """Return False if that was done before."""
        if (node, what) in self._merged:
            return False
        self._merged[node, what] = None
        self.items.update(items)
        self._trie.steps += 1 + len(items) // MERGED_PER_STEP
        return True


def _closed(nodes: list[TrieNode[T]]) -> tuple[TrieNode[T], ...]:
    """Return the nodes, and those after each ``**``, which also stands for no component."""
    for node in nodes:  # the list grows while it is read: one ** may follow another
        if node.deep is not None:
            nodes.append(node.deep)
    return tuple(nodes)
