"""Blobs that roots reach, for a checkpoint: each once, in slices, with the number of keys below each root.

The walk is depth-first. A node is *entered*, which yields its blob, and *left* when everything below it was left; then
the number of keys below it is known. A node that two directories share is walked once, and its keys count twice.

Invariants: each blob is yielded once; the trees are acyclic, because a node's ref is a digest of what is below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fluxmpi.blobref import Ref
from fluxmpi.errors import NoSuchBlob
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import BlobSource, Inner, Leaf, NodeCache, ref_text

_OPEN = -1
"""Number of keys below a node that was entered and not left."""


class Reach:
    """The blobs that ``roots`` reach. All must be in the store."""

    def __init__(self, nodes: NodeCache, blobs: BlobSource, roots: Sequence[Ref]) -> None:
        self._nodes = nodes
        self._blobs = blobs
        self._keys: dict[Ref, int] = {}
        """Node → the number of keys below it, or _OPEN."""
        self._parts: dict[Ref, None] = {}
        """Blobs of values."""
        self._todo: list[tuple[Ref, Inner | Leaf | None]] = [(root, None) for root in reversed(roots)]
        """Nodes to enter, and (with the node) to leave."""
        self._taken = 0
        self._entering = len(roots)
        """Entries of ``_todo`` that are to be entered."""

    def take(self, count: int) -> Iterator[tuple[Ref, bytes]]:
        """Take the next ``count`` nodes: their blobs, and those of the values in them. Nothing, if all are taken.

        Raises NoSuchBlob.
        """
        todo, keys, parts = self._todo, self._keys, self._parts
        while todo and (count or todo[-1][1] is not None):
            ref, node = todo.pop()
            if node is not None:
                keys[ref] = self._count(node)
                continue
            self._entering -= 1
            if ref in keys:
                continue
            count -= 1
            keys[ref] = _OPEN
            if ref not in parts:
                self._taken += 1
                yield ref, self._blob(ref)
            node = self._nodes.peek(ref)
            assert node is not None
            todo.append((ref, node))
            if type(node) is not Leaf:
                self._enter_later(node.refs)  # type: ignore[union-attr]
                continue
            self._enter_later([obj.ref for obj in node.objects if type(obj) is Dir])
            for obj in node.objects:
                if type(obj) is ValRef:
                    for part in obj.refs:
                        if part not in parts and part not in keys:
                            parts[part] = None
                            self._taken += 1
                            yield part, self._blob(part)

    def _enter_later(self, refs: Sequence[Ref]) -> None:
        new = [(ref, None) for ref in refs if ref not in self._keys]
        self._todo += new
        self._entering += len(new)

    def _count(self, node: Inner | Leaf) -> int:
        keys = self._keys
        if isinstance(node, Inner):
            return sum(keys[ref] for ref in node.refs)
        return sum(keys[obj.ref] if type(obj) is Dir else 1 for obj in node.objects)

    def _blob(self, ref: Ref) -> bytes:
        blob = self._blobs.get(ref)
        if blob is None:
            raise NoSuchBlob(f"the store lacks blob {ref_text(ref)}, which a kept root reaches")
        return blob

    def keys(self, root: Ref) -> int:
        """Return the number of keys below a root, directories not counted. Call it when all is taken."""
        return self._keys[root]

    @property
    def done(self) -> bool:
        return not self._todo

    @property
    def progress(self) -> tuple[int, int]:
        """Blobs taken, and blobs found so far."""
        return self._taken, self._taken + self._entering
