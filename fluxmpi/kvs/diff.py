"""What changed between two directories, in time that grows with the changes, not with the directories.

Both trees are walked in order of name, side by side. What is next on either side, a *head*, is an entry, or a subtree
that was not opened yet. Equal subtrees have equal refs, and the shape depends on the names only, so where nothing changed
the two sides have the same heads, and both are passed by without a look inside::

    left:   [subtree ..f] [subtree ..m] [subtree ..z]          pass by the first, open the second on both sides,
    right:  [subtree ..f] [subtree ..m'] [subtree ..z]          pass by the third

Where the heads differ, the one of the higher level is opened, both if they are level; two entries are compared by name.
A directory that is on both sides under different refs becomes a pair of its own, walked before what comes after it.

Invariant: what was told lies before all heads, what is still to be told lies in them; so the walk can stop anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.nodes import LEVEL_MAX, MISSING_MAX, Found, Inner, Leaf, Missing, NodeCache, check_child
from fluxmpi.kvs.objects import SEPARATOR, Dir, Object

CHANGES_MAX = 1000
"""Changes in one slice unless told otherwise."""

Change = tuple[str, Object | None, Object | None]
"""A key, what it was, and what it is now; None where it is not."""

_Entry = tuple[str, Object]

UNKNOWN = LEVEL_MAX + 1
"""The level of a root that was not read yet: above all others, so it is read first."""


class _Subtree:
    """A head that was not opened. Its names are greater than ``after``, up to ``last``, which is None for a root."""

    __slots__ = ("after", "index", "last", "level", "parent", "ref")

    def __init__(self, ref: Ref, level: int, after: str, parent: Inner | None, index: int) -> None:
        self.ref = ref
        self.level = level
        self.after = after
        self.parent = parent
        self.index = index
        self.last = None if parent is None else parent.names[index]

    def ends_by(self, name: str | None) -> bool:
        """Whether it has no name after ``name``, as far as is known."""
        return self.last is not None and name is not None and self.last <= name


_Head = _Entry | _Subtree


class _Pair:
    """Two directories under one key. The heads of each side are a list, the next one last."""

    __slots__ = ("left", "prefix", "right")

    def __init__(self, prefix: str, a: Ref | None, b: Ref | None) -> None:
        self.prefix = prefix
        self.left: list[_Head] = [] if a is None else [_Subtree(a, UNKNOWN, "", None, 0)]
        self.right: list[_Head] = [] if b is None else [_Subtree(b, UNKNOWN, "", None, 0)]


class Diff:
    """The changes from directory ``a`` to directory ``b``, either of which may be None: it does not exist.

    A change is ``(key, old, new)``. Values and links are told, and a directory that is on one side only, with all below
    it; of a directory on both sides, only what changed below it. Keys begin with ``path_prefix``, the key of the two
    directories, and are ordered by their components, a directory right before what is below it: ``a``, ``a.b``, ``a-c``.

    ``advance`` raises ProtocolError for a blob that is no node.
    """

    def __init__(self, nodes: NodeCache, a: Ref | None, b: Ref | None, path_prefix: str = "") -> None:
        prefix = path_prefix.strip(SEPARATOR)
        self._nodes = nodes
        self._pairs = [] if a == b else [_Pair(prefix + SEPARATOR if prefix else "", a, b)]
        self._changes: list[Change] = []
        self._stalled: list[Ref] = []

    def advance(self, limit: int = CHANGES_MAX) -> Found | Missing:
        """``Found([(key, old, new), …], more)``, at most ``limit``; or what is missing for them."""
        if limit < 1:
            raise InvalidRequest(f"a diff's limit must be 1 or more, not {limit}")
        while self._pairs and len(self._changes) < limit:
            pair = self._pairs[-1]
            left, right = pair.left, pair.right
            a = left[-1] if left else None
            b = right[-1] if right else None
            if type(a) is _Subtree:
                if type(b) is _Subtree:
                    self._open_either(left, right, a, b)
                elif type(b) is tuple and b[0] <= a.after:
                    self._tell(pair, None, b)
                else:
                    self._open(left, a)
            elif type(b) is _Subtree:
                if type(a) is tuple and a[0] <= b.after:
                    self._tell(pair, a, None)
                else:
                    self._open(right, b)
            elif a is None and b is None:
                self._pairs.pop()
            else:
                self._tell(pair, a, b)  # type: ignore[arg-type]
            if self._stalled:
                return Missing(self._needed())
        changes, self._changes = self._changes, []
        return Found(changes, bool(self._pairs))

    def _open_either(self, left: list[_Head], right: list[_Head], a: _Subtree, b: _Subtree) -> None:
        if a.ref == b.ref and a.level == b.level:
            left.pop()
            right.pop()
            return
        # One that ends before the other begins is opened alone: the other may yet meet its equal.
        if (a.level >= b.level and not b.ends_by(a.after)) or a.ends_by(b.after):
            self._open(left, a)
        if (b.level >= a.level and not a.ends_by(b.after)) or b.ends_by(a.after):
            self._open(right, b)

    def _open(self, heads: list[_Head], subtree: _Subtree) -> None:
        """Replace the next head by what is in it, or note that it is missing; of a root, first learn the level."""
        node = self._nodes.node(subtree.ref)
        if node is None:
            self._stalled.append(subtree.ref)
            return
        if subtree.level == UNKNOWN:
            subtree.level = node.level
            return
        parent = subtree.parent
        if parent is not None:
            check_child(node, parent, subtree.index)
        heads.pop()
        names = node.names
        if type(node) is Leaf:
            heads += reversed(list(zip(names, node.objects, strict=True)))
            return
        assert type(node) is Inner
        for index in reversed(range(len(names))):
            after = names[index - 1] if index else subtree.after
            heads.append(_Subtree(node.refs[index], node.level - 1, after, node, index))

    def _tell(self, pair: _Pair, a: _Entry | None, b: _Entry | None) -> None:
        """Pass by the entry of the lesser name, or two of one name, and say what changed there."""
        old = new = None
        if a is not None and (b is None or a[0] <= b[0]):
            name, old = pair.left.pop()  # type: ignore[misc]
        if b is not None and (a is None or b[0] <= a[0]):
            name, new = pair.right.pop()  # type: ignore[misc]
        if old == new:
            return
        key = pair.prefix + name
        old_ref = old.ref if type(old) is Dir else None
        new_ref = new.ref if type(new) is Dir else None
        if old_ref is None or new_ref is None:
            self._changes.append((key, old, new))
        if old_ref is not None or new_ref is not None:
            self._pairs.append(_Pair(key + SEPARATOR, old_ref, new_ref))

    # ---------------------------------------------------------------------------------------------------- what to load

    def _needed(self) -> list[Ref]:
        """The nodes that the walk stopped at, and others that it is sure to read and that are not here."""
        refs = dict.fromkeys(self._stalled)
        self._stalled = []
        for pair in reversed(self._pairs):
            for ref in _will_read(pair):
                if len(refs) >= MISSING_MAX:
                    return list(refs)
                if ref not in refs and self._nodes.node(ref) is None:
                    refs[ref] = None
        return list(refs)


def _will_read(pair: _Pair) -> Iterator[Ref]:
    """Nodes that a walk will read between its heads, whatever it finds in them; not all such."""
    left, right = _run(pair.left), _run(pair.right)
    if not pair.left or not pair.right:
        for head in left or right:
            if type(head) is _Subtree:
                yield head.ref
            elif type(head) is tuple and type(head[1]) is Dir:
                yield head[1].ref
    elif type(left[0]) is tuple and type(right[0]) is tuple:
        there = dict(right)  # type: ignore[arg-type]
        for name, old in left:  # type: ignore[misc]
            new = there.get(name)
            if type(old) is Dir and type(new) is Dir and old.ref != new.ref:
                yield old.ref
                yield new.ref
    elif type(left[0]) is _Subtree and type(right[0]) is _Subtree and left[0].level == right[0].level:
        # As far as both sides are open to this level, a node that is on one side only has no equal.
        refs = {head.ref for head in left} & {head.ref for head in right}  # type: ignore[union-attr]
        for run, other in ((left, right), (right, left)):
            for head in run:
                if head.ref not in refs and head.ends_by(other[-1].last):  # type: ignore[union-attr]
                    yield head.ref  # type: ignore[union-attr]


def _run(heads: list[_Head]) -> list[_Head]:
    """The next heads that are of one sort: entries, or subtrees of one level."""
    run: list[_Head] = []
    for head in reversed(heads):
        if run and (type(head) is not type(run[0]) or getattr(head, "level", 0) != getattr(run[0], "level", 0)):
            break
        run.append(head)
    return run
