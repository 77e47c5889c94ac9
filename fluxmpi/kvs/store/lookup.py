"""Walks from a root to one key. They never wait.

    match walk.advance():
        case Found(value): …
        case Missing(refs): load them, then call walk.advance() again

A walk that lacks a node keeps its position and continues there, so nodes that it has passed may be dropped. It sees the
tree as of the root it began with, however long it takes and whatever is committed: the node of a ref never changes.

``Descent`` goes down the nodes and ends at a link; ``Lookup`` is a descent that follows links.

Invariant: the position is the ref of the next node to read, with the components still to be found below it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from fluxmpi.blobref import Ref
from fluxmpi.errors import LinkLoop, NoSuchNamespace
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, join_key, split_key
from fluxmpi.kvs.store.node import Found, Inner, Missing, NodeSource, check_child

RootOf = Callable[[str], Ref | None]
"""The root of a namespace now, or None if there is no such namespace."""


def no_other_namespace(namespace: str) -> Ref | None:
    """Return None: the ``RootOf`` of a lookup that follows no link into another namespace."""
    return None


class MissingNamespace(NoSuchNamespace):
    """A link leads into a namespace that this broker does not know."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"a link leads into namespace '{namespace}', which does not exist")
        self.namespace = namespace


class Descent:
    """From the directory ``ref`` down the components ``parts``, to an object or to the first link.

    ``advance`` raises ProtocolError for a blob that is not a node, or not the child that its parent describes.
    """

    __slots__ = ("_above", "_index", "_nodes", "_parts", "_ref")

    def __init__(self, nodes: NodeSource, ref: Ref, parts: list[str]) -> None:
        self._nodes = nodes
        self._parts = parts
        self._ref = ref
        self._index = 0
        self._above: tuple[Inner, int] | None = None
        """The inner node that the next one is a child of, and the index there."""

    @property
    def remaining(self) -> list[str]:
        """The components still to be found, below the missing node."""
        return self._parts[self._index :]

    def advance(self) -> Found | Missing:
        """``Found(object)``; ``Found(None)`` if there is no such key, or a value is on the way; or the missing node."""
        load = self._nodes.node
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
            found = node.objects[at]  # type: ignore[union-attr]
            above = None
            index += 1
            if type(found) is Dir:
                ref = found.ref
            elif type(found) is Link:
                target = self._follow(found, index)
                if target is None:
                    return Found(found)
                parts, index, ref = self._parts, 0, target
            elif index < len(parts):
                return Found(None)
            else:
                return Found(found)
        return Found(Dir(ref))

    def _follow(self, link: Link, index: int) -> Ref | None:
        """Follow a link before component ``index``: replace ``_parts``, and return the root. None: end at the link."""
        return None


class Lookup(Descent):
    """From a key to its object. Links on the way are followed, one at the end only if ``follow``.

    ``parts`` are the key's components, none for the root directory. A link into another namespace continues at its
    root, which ``root_of`` is asked for once in each walk. ``namespace`` and ``resolved_key`` name what was found,
    links resolved; ``links_followed`` counts the links, and ``link_targets`` are the keys that they led to.

    ``advance`` also raises LinkLoop for over LINKS_MAX links, InvalidKey for a link whose target is not a key, and
    MissingNamespace.
    """

    __slots__ = ("_follow_last", "_root_of", "_roots", "link_targets", "links_followed", "namespace")

    def __init__(
        self, nodes: NodeSource, root_of: RootOf, namespace: str, root_ref: Ref, parts: list[str], follow: bool = True
    ) -> None:
        self._nodes = nodes  # the fields of Descent, set here: a call of its constructor costs 4 % of a read
        self._parts = parts
        self._ref = root_ref
        self._index = 0
        self._above = None
        self._root_of = root_of
        self._roots = {namespace: root_ref}
        self._follow_last = follow
        self.namespace = namespace
        self.links_followed = 0
        self.link_targets: list[str] = []

    @property
    def resolved_key(self) -> str:
        return join_key(self._parts)

    def _follow(self, link: Link, index: int) -> Ref | None:
        remaining = self._parts[index:]
        if not remaining and not self._follow_last:
            return None
        self.links_followed += 1
        if self.links_followed > LINKS_MAX:
            raise LinkLoop(f"'{self.resolved_key}': over {LINKS_MAX} links on the way")
        self._parts = split_key(link.target) + remaining
        self.link_targets.append(join_key(self._parts))
        if link.namespace is not None:
            self.namespace = link.namespace
        root = self._roots.get(self.namespace)
        if root is None:
            root = self._root_of(self.namespace)
            if root is None:
                raise MissingNamespace(self.namespace)
            self._roots[self.namespace] = root
        return root
