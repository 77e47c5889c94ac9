"""A page of a directory's entries, in order of name. Like the walks of ``lookup``, it never waits."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.store.node import MISSING_MAX, Found, Inner, Missing, Node, NodeSource, check_child

LEAF_ENTRIES = 16
"""Entries of a leaf, on average (see ``node``)."""


class Listing:
    """Entries of one directory after ``after`` that start with ``prefix``, at most ``limit`` for each ``advance``.

    It reads only nodes that have such names. It asks for up to MISSING_MAX of them at once, but not for more than the
    limit can need. ``advance`` raises ProtocolError for a blob that is not a node.
    """

    def __init__(self, nodes: NodeSource, dir_ref: Ref, prefix: str = "", after: str = "", limit: int = 1000) -> None:
        if limit < 1:
            raise InvalidRequest(f"a listing's limit must be 1 or more, not {limit}")
        self._nodes = nodes
        self._prefix = prefix
        self._after = after
        self._limit = limit
        self._entries: list[tuple[str, Object]] = []
        self._pending: list[tuple[Ref, Inner | None, int]] = [(dir_ref, None, 0)]
        """Nodes to read, the next one last, each with its parent and the index there."""

    def advance(self) -> Found | Missing:
        """``Found([(name, object), …], more)``, the next page; or the missing nodes.

        With ``more`` there may be others after the last name: advance again, or make another listing with ``after``
        that name.
        """
        pending = self._pending
        while pending and len(self._entries) < self._limit:
            ref, parent, index = pending[-1]
            node = self._nodes.node(ref)
            if node is None:
                return Missing(self._missing())
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
                pending.append((ref, parent, index))  # continue in this leaf, after its last name that was taken
            objects = node.objects[first:end]  # type: ignore[union-attr]
            self._entries += zip(node.names[first:end], objects, strict=True)
            if end > first:
                self._after = node.names[end - 1]
        entries, self._entries = self._entries, []
        return Found(entries, bool(pending))

    def _range(self, node: Node) -> tuple[int, int]:
        """Return the slice of the node's names that are in the listing's range."""
        names, prefix = node.names, self._prefix
        first = bisect_left(names, prefix) if prefix > self._after else bisect_right(names, self._after)
        if not prefix:
            return first, len(names)
        return first, bisect_left(names, True, first, key=lambda name: not name.startswith(prefix))

    def _missing(self) -> list[Ref]:
        """Return the missing nodes among those that will be read, in order."""
        count = min(MISSING_MAX, (self._limit - len(self._entries)) // LEAF_ENTRIES + 1)
        refs = [ref for ref, _, _ in self._pending[: -count - 1 : -1]]
        return [ref for ref in refs if self._nodes.node(ref) is None]
