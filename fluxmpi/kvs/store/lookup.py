"""Walks that read: one key, or a page of a directory. They never wait.

    match walk.advance():
        case Found(value, more): …
        case Missing(refs): load them, and call walk.advance() again

A walk that lacks a blob keeps its place and goes on from there, so what it has read may be dropped meanwhile. It shows
the tree as it was when the walk began, however long it takes and whatever is committed: a ref's meaning never changes.

Invariant: a walk's place is the ref of the next node that it needs, with the names still to be found below it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest, LinkLoop, NoSuchNamespace
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, Object, join_key, split_key
from fluxmpi.kvs.store.node import MISSING_MAX, Found, Inner, Missing, Node, Nodes, check_child

RootOf = Callable[[str], Ref | None]
"""The root of a namespace now, or None if there is no such namespace."""


class MissingNamespace(NoSuchNamespace):
    """A link leads into a namespace that is not here."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"a link leads into namespace '{namespace}', which does not exist")
        self.namespace = namespace


class Lookup:
    """From a key to its object. ``Found(None)`` means that there is no such key; a value on the way means that, too.

    ``parts`` are the key's components, none for the root directory. Links on the way are followed, one at the end only
    if ``follow``. A link into another namespace goes on at its root, asked from ``root_of`` once for each walk.

    ``links`` counts the links followed so far, and ``ways`` are the keys that they led to; ``namespace`` and ``resolved``
    name what was found, links resolved.

    ``advance`` raises LinkLoop for over LINKS_MAX links, InvalidKey for a link to what is no key, NoSuchNamespace, and
    ProtocolError for a blob that is no node.
    """

    __slots__ = (
        "_above", "_follow", "_index", "_nodes", "_parts", "_ref", "_root_of", "_roots", "links", "namespace", "ways",
    )  # fmt: skip

    def __init__(
        self, nodes: Nodes, root_of: RootOf, namespace: str, root_ref: Ref, parts: list[str], follow: bool = True
    ) -> None:
        self._nodes = nodes
        self._root_of = root_of
        self._roots = {namespace: root_ref}
        self._parts = parts
        self._follow = follow
        self._ref = root_ref
        self._index = 0
        self._above: tuple[Inner, int] | None = None
        self.namespace = namespace
        self.links = 0
        self.ways: list[str] = []

    @property
    def resolved(self) -> str:
        return join_key(self._parts)

    @property
    def rest(self) -> list[str]:
        """The components still to be found, below the node that is missing."""
        return self._parts[self._index :]

    def advance(self) -> Found | Missing:
        """``Found(object or None)``, or what is missing for it."""
        load = self._nodes.node
        follow = self._follow
        parts, index, ref, above = self._parts, self._index, self._ref, self._above
        while index < len(parts):
            node = load(ref)
            if node is None:
                self._index, self._ref, self._above = index, ref, above
                return Missing([ref])
            if above is not None:
                check_child(node, *above)
            names = node.names
            at = bisect_left(names, parts[index])
            if at == len(names):
                return Found(None)
            if node.level:
                above = (node, at)  # type: ignore[assignment]
                ref = node.refs[at]  # type: ignore[union-attr]
                continue
            if names[at] != parts[index]:
                return Found(None)
            thing = node.objects[at]  # type: ignore[union-attr]
            above = None
            index += 1
            if type(thing) is Dir:
                ref = thing.ref
            elif type(thing) is Link and (index < len(parts) or follow):
                ref = self._go_through(thing, parts[index:])
                parts, index = self._parts, 0
            elif index < len(parts):
                return Found(None)
            else:
                return Found(thing)
        return Found(Dir(ref))

    def _go_through(self, link: Link, rest: list[str]) -> Ref:
        """Take the way that the link says, with ``rest`` below it; the root to start from."""
        self.links += 1
        if self.links > LINKS_MAX:
            raise LinkLoop(f"'{self.resolved}': over {LINKS_MAX} links on the way")
        self._parts = split_key(link.target) + rest
        self.ways.append(join_key(self._parts))
        if link.namespace is not None:
            self.namespace = link.namespace
        root = self._roots.get(self.namespace)
        if root is None:
            root = self._root_of(self.namespace)
            if root is None:
                raise MissingNamespace(self.namespace)
            self._roots[self.namespace] = root
        return root


class Listing:
    """Entries of one directory in order of name: those after ``after`` that start with ``prefix``, at most ``limit``.

    ``Found([(name, object), …], more)``; with ``more`` there may be others after the last name: advance again, or make
    another listing with ``after`` that name. It reads only nodes that have such names, and asks for up to MISSING_MAX
    of them at once, but for no more than the limit can need.
    """

    def __init__(self, nodes: Nodes, dir_ref: Ref, prefix: str = "", after: str = "", limit: int = 1000) -> None:
        if limit < 1:
            raise InvalidRequest(f"a listing's limit must be 1 or more, not {limit}")
        self._nodes = nodes
        self._prefix = prefix
        self._after = after
        self._limit = limit
        self._entries: list[tuple[str, Object]] = []
        self._pending: list[tuple[Ref, Inner | None, int]] = [(dir_ref, None, 0)]
        """Nodes to read, the next one last, each with the parent and the index there."""

    def advance(self) -> Found | Missing:
        """``Found(entries, more)``, the next page of them; or what is missing for it."""
        pending = self._pending
        while pending and len(self._entries) < self._limit:
            ref, parent, index = pending[-1]
            node = self._nodes.node(ref)
            if node is None:
                return Missing(self._needed())
            if parent is not None:
                check_child(node, parent, index)
            pending.pop()
            first, end = self._range(node)
            if type(node) is Inner:
                end = min(end + 1, len(node.refs))  # the child that ends after the range may begin in it
                pending += [(node.refs[at], node, at) for at in reversed(range(first, end))]
                continue
            room = self._limit - len(self._entries)
            if end - first > room:
                end = first + room
                pending.append((ref, parent, index))  # read on in it, after its last name that was taken
            self._entries += zip(node.names[first:end], node.objects[first:end], strict=True)  # type: ignore[union-attr]
            if end > first:
                self._after = node.names[end - 1]
        entries, self._entries = self._entries, []
        return Found(entries, bool(pending))

    def _range(self, node: Node) -> tuple[int, int]:
        """The slice of the node's names that are in the listing's range."""
        names, prefix = node.names, self._prefix
        first = bisect_left(names, prefix) if prefix > self._after else bisect_right(names, self._after)
        if not prefix:
            return first, len(names)
        return first, bisect_left(names, True, first, key=lambda name: not name.startswith(prefix))

    def _needed(self) -> list[Ref]:
        """Nodes that are not here and will be read, in order; a leaf has 16 entries on average."""
        count = min(MISSING_MAX, (self._limit - len(self._entries)) // 16 + 1)
        refs = [ref for ref, _, _ in self._pending[: -count - 1 : -1]]
        return [ref for ref in refs if self._nodes.node(ref) is None]
