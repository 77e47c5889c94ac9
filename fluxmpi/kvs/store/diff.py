"""What changed between two directories, in time that grows with the changes, not with the directories.

Both trees are walked in order of name, side by side. What is next on either side, a *head*, is an entry, or a subtree
that was not opened yet. Equal subtrees have equal refs, and the shape depends on the names only, so where nothing changed
the two sides have the same heads, and both are passed by without a look inside::

    left:   [subtree ..f] [subtree ..m ] [subtree ..z]     pass by the first, open the second on both sides,
    right:  [subtree ..f] [subtree ..m'] [subtree ..z]     pass by the third

Where the heads differ, the one of the higher level is opened, both if they are level, until both are entries, which are
compared by name.
A directory that is on both sides under different refs becomes a pair of its own, walked before what comes after it.

Invariant: what was told lies before all heads, what is still to be told lies in them; so the walk can stop anywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import KEY_BYTES_MAX, SEPARATOR, Dir, Object, split_key
from fluxmpi.kvs.store.node import LEVEL_MAX, MISSING_MAX, Found, Inner, Leaf, Missing, NodeCache, check_child
from fluxmpi.kvs.store.pattern import KeyFilter

CHANGES_MAX = 1000
"""Changes in one slice unless told otherwise."""

DiffEntry = tuple[str, Object | None, Object | None]
"""A key, what it was, and what it is now; None where it is not."""

ENTRY = -1
"""The level of a head that is an entry, and of none: below all subtrees, which are opened first."""

UNKNOWN = LEVEL_MAX + 1
"""The level of a root that was not read yet: above all others, so it is read first."""


class _Head:
    """What is next on one side: an entry and its object, or a subtree with its last name, its ref, and where it hangs.

    A root may have any names, so its ``name`` is above them all.
    """

    __slots__ = ("index", "level", "name", "parent", "thing")

    def __init__(self, level: int, name: str, thing: Any, parent: Inner | None = None, index: int = 0) -> None:
        self.level = level
        self.name = name
        self.thing = thing
        self.parent = parent
        self.index = index


ABOVE_ALL = "\U0010ffff" * (KEY_BYTES_MAX // 4 + 1)
"""Longer than a key may be, of the greatest character: a name above all others."""


class _Pair:
    """Two directories under one key. The heads of each side are a list, the next one last. ``state``: of what is wanted.

    ``after``: the names down to the last key in it that was told before, none if none was.
    """

    __slots__ = ("after", "left", "prefix", "right", "state")

    def __init__(self, prefix: str, a: Ref | None, b: Ref | None, state: Any, after: list[str]) -> None:
        self.prefix = prefix
        self.state = state
        self.after = after
        self.left = [] if a is None else [_Head(UNKNOWN, ABOVE_ALL, a)]
        self.right = [] if b is None else [_Head(UNKNOWN, ABOVE_ALL, b)]


class Diff:
    """The changes from directory ``a`` to directory ``b``, either of which may be None: it does not exist.

    A change is ``(key, old, new)``. Values and links are told, and a directory that is on one side only, with all below
    it; of a directory on both sides, only what changed below it. Keys begin with ``path_prefix``, the key of the two
    directories, and are ordered by their components, a directory right before what is below it: ``a``, ``a.b``, ``a-c``.

    ``wanted``: only what it tells is told, and directories in which nothing is wanted are not opened. ``after``: only keys that
    come after that one, which need not be one; the way there reads what a look-up of it reads.

    ``advance`` raises ProtocolError for a blob that is no node.
    """

    def __init__(
        self,
        nodes: NodeCache,
        a: Ref | None,
        b: Ref | None,
        path_prefix: str = "",
        wanted: KeyFilter[Any] | None = None,
        after: str | None = None,
    ) -> None:
        prefix = path_prefix.strip(SEPARATOR)
        self._nodes = nodes
        self._wanted = wanted
        start = wanted.start if wanted is not None else None
        same = a == b or (wanted is not None and not wanted.may_match_below(start))
        passed = [] if after is None else _below(prefix, after)
        self._pairs = [] if same else [_Pair(prefix + SEPARATOR if prefix else "", a, b, start, passed)]
        self._changes: list[DiffEntry] = []

    def advance(self, limit: int = CHANGES_MAX, steps: float = float("inf")) -> Found | Missing:
        """``Found([(key, old, new), …], more)``, at most ``limit``; or what is missing for them.

        ``steps`` bounds the work: after so many there may be more, although fewer were found, or none.
        """
        if limit < 1:
            raise InvalidRequest(f"a diff's limit must be 1 or more, not {limit}")
        while self._pairs and len(self._changes) < limit and steps > 0:
            steps -= 1
            pair = self._pairs[-1]
            left, right = pair.left, pair.right
            a = left[-1] if left else None
            b = right[-1] if right else None
            level_a = ENTRY if a is None else a.level
            level_b = ENTRY if b is None else b.level
            if level_a == level_b == ENTRY:
                if a is None and b is None:
                    self._pairs.pop()
                else:
                    self._tell(pair, a, b)
                continue
            if level_a == level_b and a.thing == b.thing:  # type: ignore[union-attr]
                left.pop()
                right.pop()
                continue
            ends = self._equal_ends(a, b) if level_a == level_b else (0, 0)  # type: ignore[arg-type]
            missing = self._open(pair, left, *ends) if level_a >= level_b else []
            if level_b >= level_a:
                missing += self._open(pair, right, *ends)
            if missing:
                return Missing(self._needed(missing))
        changes, self._changes = self._changes, []
        return Found(changes, bool(self._pairs))

    def _equal_ends(self, a: _Head, b: _Head) -> tuple[int, int]:
        """How much two nodes have in common at their beginnings and at their ends: mostly all but the one change."""
        x, y = self._nodes.node(a.thing), self._nodes.node(b.thing)
        if x is None or y is None or a.level == UNKNOWN:
            return 0, 0
        x_names, x_things = x.names, x.objects if type(x) is Leaf else x.refs  # type: ignore[union-attr]
        y_names, y_things = y.names, y.objects if type(y) is Leaf else y.refs  # type: ignore[union-attr]
        count = min(len(x_names), len(y_names))
        first = tail = 0
        while first < count and x_names[first] == y_names[first] and x_things[first] == y_things[first]:
            first += 1
        while tail < count - first and x_names[~tail] == y_names[~tail] and x_things[~tail] == y_things[~tail]:
            tail += 1
        # One stays at the end: against it a lone entry before it is told, without a look into the other side's next node.
        return first, max(tail - 1, 0)

    def _open(self, pair: _Pair, heads: list[_Head], first: int, tail: int) -> list[Ref]:
        """Replace the next head by what is in it, but for the ends, and for what was told before; of a root, first learn the
        level.

        Returns what is missing for it.
        """
        head = heads[-1]
        node = self._nodes.node(head.thing)
        if node is None:
            return [head.thing]
        if head.level == UNKNOWN:
            head.level = node.level
            return []
        if head.parent is not None:
            check_child(node, head.parent, head.index)
        heads.pop()
        names = node.names
        if pair.after:
            first = max(first, bisect_left(names, pair.after[0]))
        span = range(len(names) - tail - 1, first - 1, -1)
        if type(node) is Leaf:
            objects = node.objects
            heads += [_Head(ENTRY, names[index], objects[index]) for index in span]
        elif type(node) is Inner:
            refs, below = node.refs, node.level - 1
            heads += [_Head(below, names[index], refs[index], node, index) for index in span]
        return []

    def _tell(self, pair: _Pair, a: _Head | None, b: _Head | None) -> None:
        """Pass by the entry of the lesser name, or two of one name, and say what changed there."""
        old = new = None
        name = min(head.name for head in (a, b) if head is not None)
        if a is not None and a.name == name:
            old = pair.left.pop().thing
        if b is not None and b.name == name:
            new = pair.right.pop().thing
        if old == new:
            return
        key = pair.prefix + name
        passed = bool(pair.after) and name == pair.after[0]
        old_ref = old.ref if type(old) is Dir else None
        new_ref = new.ref if type(new) is Dir else None
        wanted, state = self._wanted, None
        if wanted is not None:
            state = wanted.step(pair.state, name)
        if (old_ref is None or new_ref is None) and not passed and (wanted is None or wanted.accepts(state)):
            self._changes.append((key, old, new))
        if (old_ref is not None or new_ref is not None) and (wanted is None or wanted.may_match_below(state)):
            self._pairs.append(_Pair(key + SEPARATOR, old_ref, new_ref, state, pair.after[1:] if passed else []))

    # ---------------------------------------------------------------------------------------------------- what to load

    def _needed(self, missing: list[Ref]) -> list[Ref]:
        """The nodes that the walk stopped at, and others that it is sure to read and that are not here."""
        refs = dict.fromkeys(missing)
        for pair in reversed(self._pairs):
            for ref in _will_read(pair):
                if len(refs) >= MISSING_MAX:
                    return list(refs)
                if self._nodes.node(ref) is None:
                    refs[ref] = None
        return list(refs)


def _below(prefix: str, key: str) -> list[str]:
    """The names from the directory ``prefix`` down to a key in it."""
    above, names = split_key(prefix) if prefix else [], split_key(key)
    if names[: len(above)] != above:
        raise InvalidRequest(f"'{key}' is not in '{prefix}', so nothing comes after it there")
    return names[len(above) :]


def _will_read(pair: _Pair) -> Iterator[Ref]:
    """Nodes that a walk will read between its heads, whatever it finds in them; not all such."""
    left, right = _run(pair.left), _run(pair.right)
    if not left or not right:
        for head in left or right:
            if head.level > ENTRY:
                yield head.thing
            elif type(head.thing) is Dir:
                yield head.thing.ref
        return
    level_a, level_b = left[0].level, right[0].level
    if level_a == level_b == ENTRY:
        there = {head.name: head.thing for head in right}
        for head in left:
            old, new = head.thing, there.get(head.name)
            if type(old) is Dir and type(new) is Dir and old.ref != new.ref:
                yield old.ref
                yield new.ref
    elif level_a == ENTRY or level_b == ENTRY:
        # What ends before the other side's next entry is on one side only.
        entry, run = (left[0], right) if level_a == ENTRY else (right[0], left)
        for head in run:
            if head.name <= entry.name:
                yield head.thing
    elif level_a == level_b:
        # As far as both sides are open to this level, a node that is on one side only has no equal.
        shared = {head.thing for head in left} & {head.thing for head in right}
        for run, other in ((left, right), (right, left)):
            for head in run:
                if head.thing not in shared and head.name <= other[-1].name:
                    yield head.thing


def _run(heads: list[_Head]) -> list[_Head]:
    """The next heads that are of one level."""
    return list(takewhile(lambda head: head.level == heads[-1].level, reversed(heads)))
