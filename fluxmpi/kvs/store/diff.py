"""The changes between two directories, in time that grows with the changes, not with the directories.

Both trees are walked in order of name, side by side. The next position on either side, a *head*, is an entry, or a
subtree that was not opened yet. Equal subtrees have equal refs, and the shape depends on the names only. So where
nothing changed the two sides have equal heads, and both are skipped without reading them::

    left:   [subtree ..f] [subtree ..m ] [subtree ..z]     skip the first, open the second on both sides,
    right:  [subtree ..f] [subtree ..m'] [subtree ..z]     skip the third

Where the heads differ, the one of the higher level is opened, or both if they are of one level, until both are entries,
which are compared by name. A directory that has different refs on the two sides becomes a pair of its own, walked
before the entries after it.

Invariant: reported changes lie before all heads, others in them; so the walk can stop anywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import KEY_BYTES_MAX, SEPARATOR, Dir, Object, split_key
from fluxmpi.kvs.store.node import LEVEL_MAX, MISSING_MAX, Found, Inner, Leaf, Missing, NodeSource, check_child
from fluxmpi.kvs.store.pattern import KeyFilter

CHANGES_MAX = 1000
"""Changes in one slice by default."""

DiffEntry = tuple[str, Object | None, Object | None]
"""A key, its old object and its new one; None where there is none."""

ENTRY = -1
"""The level of an entry, and of a missing head: below all subtrees, which are opened first."""

UNKNOWN = LEVEL_MAX + 1
"""The level of a root that was not read yet: above all others, so it is read first."""


class _Head:
    """The next position on one side: an entry with its object, or a subtree with its last name, its ref and its parent.

    The last name of a root is not known before it is read, so its ``name`` is above all others.
    """

    __slots__ = ("index", "item", "level", "name", "parent")

    def __init__(self, level: int, name: str, item: Any, parent: Inner | None = None, index: int = 0) -> None:
        self.level = level
        self.name = name
        self.item = item
        self.parent = parent
        self.index = index


ABOVE_ALL = "\U0010ffff" * (KEY_BYTES_MAX // 4 + 1)
"""A name above all others: the greatest character, longer than a key may be."""


class _Pair:
    """Two directories of one key. The heads of each side are a list, the next one last. ``state``: of the key filter.

    ``after``: the names down to the key after which changes are reported, empty if all are.
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

    A change is ``(key, old, new)``. Changed values and links are reported; a directory that is on one side only is
    reported with all below it; a directory on both sides only with the changes below it. Keys begin with
    ``path_prefix``, the key of the two directories, and are ordered by their components, a directory right before what
    is below it: ``a``, ``a.b``, ``a-c``.

    ``key_filter``: report only keys that it accepts; directories in which it can accept nothing are not opened.
    ``after``: report only keys after that one, which need not exist; to get there, the walk reads the nodes that a
    lookup of it reads.

    ``advance`` raises ProtocolError for a blob that is not a node.
    """

    def __init__(
        self,
        nodes: NodeSource,
        a: Ref | None,
        b: Ref | None,
        path_prefix: str = "",
        key_filter: KeyFilter[Any] | None = None,
        after: str | None = None,
    ) -> None:
        prefix = path_prefix.strip(SEPARATOR)
        self._nodes = nodes
        self._key_filter = key_filter
        start = key_filter.start if key_filter is not None else None
        same = a == b or (key_filter is not None and not key_filter.may_match_below(start))
        passed = [] if after is None else _below(prefix, after)
        self._pairs = [] if same else [_Pair(prefix + SEPARATOR if prefix else "", a, b, start, passed)]
        self._changes: list[DiffEntry] = []

    def advance(self, limit: int = CHANGES_MAX, steps: float = float("inf")) -> Found | Missing:
        """``Found([(key, old, new), …], more)``, at most ``limit`` changes; or the missing nodes.

        ``steps`` bounds the work: after so many steps, ``more`` may be set although fewer changes were found, or none.
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
                    self._compare(pair, a, b)
                continue
            if level_a == level_b and a.item == b.item:  # type: ignore[union-attr]
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
        """Return the number of equal entries at the beginnings and at the ends of two nodes."""
        x, y = self._nodes.node(a.item), self._nodes.node(b.item)
        if x is None or y is None or a.level == UNKNOWN:
            return 0, 0
        x_names, x_items = x.names, x.objects if type(x) is Leaf else x.refs  # type: ignore[union-attr]
        y_names, y_items = y.names, y.objects if type(y) is Leaf else y.refs  # type: ignore[union-attr]
        count = min(len(x_names), len(y_names))
        first = tail = 0
        while first < count and x_names[first] == y_names[first] and x_items[first] == y_items[first]:
            first += 1
        while tail < count - first and x_names[~tail] == y_names[~tail] and x_items[~tail] == y_items[~tail]:
            tail += 1
        # One entry stays at the end: an entry before it that is on one side only is compared with it, so the other
        # side's next node need not be read.
        return first, max(tail - 1, 0)

    def _open(self, pair: _Pair, heads: list[_Head], first: int, tail: int) -> list[Ref]:
        """Replace the next head by its entries or children, without the equal ends and those before ``after``.

        A root is first read for its level only. Returns the ref of a missing node.
        """
        head = heads[-1]
        node = self._nodes.node(head.item)
        if node is None:
            return [head.item]
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

    def _compare(self, pair: _Pair, a: _Head | None, b: _Head | None) -> None:
        """Take the entry with the lesser name, or both of one name, and report the change."""
        old = new = None
        name = min(head.name for head in (a, b) if head is not None)
        if a is not None and a.name == name:
            old = pair.left.pop().item
        if b is not None and b.name == name:
            new = pair.right.pop().item
        if old == new:
            return
        key = pair.prefix + name
        passed = bool(pair.after) and name == pair.after[0]
        old_ref = old.ref if type(old) is Dir else None
        new_ref = new.ref if type(new) is Dir else None
        key_filter, state = self._key_filter, None
        if key_filter is not None:
            state = key_filter.step(pair.state, name)
        if (old_ref is None or new_ref is None) and not passed and (key_filter is None or key_filter.accepts(state)):
            self._changes.append((key, old, new))
        if (old_ref is not None or new_ref is not None) and (key_filter is None or key_filter.may_match_below(state)):
            self._pairs.append(_Pair(key + SEPARATOR, old_ref, new_ref, state, pair.after[1:] if passed else []))

    # ---------------------------------------------------------------------------------------------------- what to load

    def _needed(self, missing: list[Ref]) -> list[Ref]:
        """Return the missing nodes that the walk stopped at, and others that it is sure to read."""
        refs = dict.fromkeys(missing)
        for pair in reversed(self._pairs):
            for ref in _will_read(pair):
                if len(refs) >= MISSING_MAX:
                    return list(refs)
                if self._nodes.node(ref) is None:
                    refs[ref] = None
        return list(refs)


def _below(prefix: str, key: str) -> list[str]:
    """Return the names from the directory ``prefix`` to a key in it. Raises InvalidRequest for another key."""
    above, names = split_key(prefix) if prefix else [], split_key(key)
    if names[: len(above)] != above:
        raise InvalidRequest(f"invalid after: '{key}' is not in '{prefix}'")
    return names[len(above) :]


def _will_read(pair: _Pair) -> Iterator[Ref]:
    """Nodes that a walk is sure to read below its next heads; not all of these."""
    left, right = _run(pair.left), _run(pair.right)
    if not left or not right:
        for head in left or right:
            if head.level > ENTRY:
                yield head.item
            elif type(head.item) is Dir:
                yield head.item.ref
        return
    level_a, level_b = left[0].level, right[0].level
    if level_a == level_b == ENTRY:
        other_side = {head.name: head.item for head in right}
        for head in left:
            old, new = head.item, other_side.get(head.name)
            if type(old) is Dir and type(new) is Dir and old.ref != new.ref:
                yield old.ref
                yield new.ref
    elif level_a == ENTRY or level_b == ENTRY:
        # A subtree that ends before the other side's next entry is on one side only.
        entry, run = (left[0], right) if level_a == ENTRY else (right[0], left)
        for head in run:
            if head.name <= entry.name:
                yield head.item
    elif level_a == level_b:
        # As far as both sides are open at this level, a node that is on one side only has no equal.
        shared = {head.item for head in left} & {head.item for head in right}
        for run, other in ((left, right), (right, left)):
            for head in run:
                if head.item not in shared and head.name <= other[-1].name:
                    yield head.item


def _run(heads: list[_Head]) -> list[_Head]:
    """Return the next heads that are of one level."""
    return list(takewhile(lambda head: head.level == heads[-1].level, reversed(heads)))
