"""Nodes of the directory tree, the rule that cuts them, and the cache of decoded nodes.

A directory is an ordered search tree whose shape depends on its names only (as in Merkle search trees, Auvolat & Taïani
2019, and in prolly trees). Every name has a *level*, drawn from the hash of the name: most have 0, one in 16 has at
least 1, one in 256 at least 2, and so on.

- Leaves have the entries in order of name. A leaf ends after a name of level 1 or more, and at the directory's end.
- Inner nodes of level k have nodes of level k-1 in order, each with the last name below it. An inner node ends after a
  child whose last name has level k+1 or more, and at the directory's end.
- The root is the only node of the lowest level that has only one. An empty directory is a leaf without entries.

Invariants (``check`` asserts them):

- The same entries make the same nodes, hence the same ref, whatever the order of the writes.
- Only a root is an empty leaf; no inner node is empty; no root is an inner node with one child (others may be).
- A decoded node never changes: ``edit`` changes copies.

Names compare as str, by code point, which is also the order of their UTF-8. Levels use sha256 whatever the instance's
digest is, so that all instances make the same shape.

The blob of a ref may be anything: users store blobs, and put directories that they made themselves. So a node is
verified when it is read: ProtocolError if it is not a node, or not one that its parent describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from itertools import islice
from operator import ge
from typing import Any, ClassVar, Protocol

import msgspec

from fluxmpi.blobref import SIZES, Digest, Ref, to_text
from fluxmpi.errors import InvalidRequest, ProtocolError
from fluxmpi.kvs.objects import Dir, Object

LEVEL_BITS = 4
"""A node has 2**LEVEL_BITS entries on average. It is part of every ref: do not change it.

One put into 100,000 entries, sealed, with 4 and 5 bits: 35 and 37 µs, 4.6 and 6.1 KB of new nodes."""

LEVEL_MAX = 8
"""Cap of a name's level, so no tree has more than LEVEL_MAX inner levels: 16**8 names fit before roots grow wide."""

NODES_MAX = 16384
"""Decoded nodes that a cache keeps by default. A node of small values takes about 4 KiB."""

RETIRED_MAX = 512
"""Nodes beside them that a new version has replaced: watchers and guards compare it with the version before."""


def level(name: str, _bits: int = LEVEL_BITS, _mask: int = (1 << LEVEL_BITS) - 1) -> int:
    """Return the number of groups of LEVEL_BITS zero bits at the end of the name's sha256, at most LEVEL_MAX."""
    digest = sha256(name.encode()).digest()
    if digest[31] & _mask:
        return 0
    bits = int.from_bytes(digest[-8:], "big")
    groups = 0
    while groups < LEVEL_MAX and not bits & _mask:
        bits >>= _bits
        groups += 1
    return groups


class Leaf(msgspec.Struct, array_like=True, tag_field="_", tag=0, gc=False):
    """``objects[i]`` is the object of ``names[i]``."""

    level: ClassVar[int] = 0
    names: list[str]
    objects: list[Object]


class Inner(msgspec.Struct, array_like=True, tag_field="_", tag=1, gc=False):
    """``refs[i]`` is a node of level ``level - 1`` whose last name is ``names[i]``."""

    level: int
    names: list[str]
    refs: list[Ref]


Node = Leaf | Inner


class Missing(msgspec.Struct, frozen=True):
    """A walk lacks blobs: load ``refs``, then call ``advance`` again, which continues at the same position."""

    refs: list[Ref]


class Found(msgspec.Struct, frozen=True):
    """A walk's result. ``more``: a limit was reached; call ``advance`` again for the next slice."""

    value: Any
    more: bool = False


MISSING_MAX = 64
"""Refs that a walk asks for at once."""


class BlobSource(Protocol):
    """Blobs by ref. ``get`` never waits: None means that the blob is not here now."""

    def get(self, ref: Ref) -> bytes | None: ...

    def put(self, ref: Ref, blob: bytes) -> object: ...


class NodeSource(Protocol):
    """Nodes by ref. ``node`` never waits: None means that the node is not here now."""

    def node(self, ref: Ref) -> Node | None: ...


encode_node = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Node] = msgspec.msgpack.Decoder(Node).decode


def decode_node(blob: bytes, ref: Ref) -> Node:
    """Decode the node with this ref. Raises ProtocolError if the blob is not a node.

    A decoded node has as many names as objects or refs, in strictly ascending order. An inner node has a level in
    1..LEVEL_MAX and at least one child.
    """
    try:
        node = _decode(blob)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"blob {ref_text(ref)} is not a node of a directory: {error}") from None
    names = node.names
    if type(node) is Inner:
        count = len(node.refs)
        if not count or not 0 < node.level <= LEVEL_MAX:
            raise ProtocolError(f"blob {ref_text(ref)} is not a node: {count} children at level {node.level}")
    else:
        count = len(node.objects)  # type: ignore[union-attr]
    if count != len(names):
        raise ProtocolError(f"blob {ref_text(ref)} is not a node: {len(names)} names for {count}")
    if any(map(ge, names, islice(names, 1, None))):
        raise ProtocolError(f"blob {ref_text(ref)} is not a node: its names are not in order")
    return node


def ref_text(ref: Ref) -> str:
    """Return a ref as text, for messages to people. Unlike ``to_text`` it takes refs of any length."""
    return to_text(ref) if len(ref) in SIZES.values() else f"'{ref[:32].hex()}'"


class NodeCache:
    """Decoded nodes by ref, over a source of blobs.

    Two generations approximate a list in order of use, which every hit would have to update. ``_young`` has the nodes
    used since the last change of generation, ``_old`` those of the generation before. When the young nodes are half of
    ``nodes_max``, the old ones are evicted and the young ones become old. So the nodes_max / 2 nodes that were used
    last are cached, and never more than nodes_max.

    The last ``retired_max`` *retired* nodes, which a new version has replaced, are cached beside them. There are as
    many as new ones, and they are rarely read again, but they would fill the cache. A retired node that is used again
    becomes young.

    Blobs may be dropped from the source at any time: the node of a ref cannot change.
    """

    __slots__ = (
        "_digest", "_old", "_retired", "_retired_max", "_source", "_young", "_young_max",
        "evicted", "inserted", "loaded", "missing",
    )  # fmt: skip

    def __init__(
        self, source: BlobSource, digest: Digest, nodes_max: int = NODES_MAX, retired_max: int = RETIRED_MAX
    ) -> None:
        if nodes_max < 2:
            raise InvalidRequest(f"invalid nodes_max of {nodes_max}: give 2 or more")
        self._source = source
        self._digest = digest
        self._young: dict[Ref, Node] = {}
        self._old: dict[Ref, Node] = {}
        self._retired: dict[Ref, Node] = {}
        self._young_max = nodes_max // 2
        self._retired_max = min(retired_max, self._young_max)
        self.loaded = self.inserted = self.missing = self.evicted = 0

    def node(self, ref: Ref) -> Node | None:
        """Return the node of a ref, or None if its blob is missing. Raises ProtocolError for another blob."""
        node = self._young.get(ref)
        if node is not None:
            return node
        node = self._old.pop(ref, None) or self._retired.pop(ref, None)
        if node is None:
            blob = self._source.get(ref)
            if blob is None:
                self.missing += 1
                return None
            node = decode_node(blob, ref)
            self.loaded += 1
        self._keep(ref, node)
        return node

    def peek(self, ref: Ref) -> Node | None:
        """As ``node``, but do not cache a node that was not cached: a walk over the whole tree evicts nothing."""
        node = self._young.get(ref) or self._old.get(ref) or self._retired.get(ref)
        if node is None:
            blob = self._source.get(ref)
            node = None if blob is None else decode_node(blob, ref)
        return node

    def blob(self, ref: Ref, node: Node) -> bytes:
        """Return the blob of a node: from the source, or encoded again if the source has dropped it."""
        blob = self._source.get(ref)
        return encode_node(node) if blob is None else blob

    def add_blob(self, ref: Ref, blob: bytes) -> None:
        """Cache the node of a blob that was just loaded: the source may be too small to keep it until it is needed."""
        if ref not in self._young and ref not in self._old:
            self._retired.pop(ref, None)
            self._keep(ref, decode_node(blob, ref))
            self.loaded += 1

    def insert(self, node: Node, new: list[tuple[Ref, bytes]] | None = None) -> Ref:
        """Encode a node, put its blob into the source, and cache it. Its ref and blob are appended to ``new``."""
        blob = bytes(memoryview(encode_node(node)))  # a copy: the encoder's own bytes take up to half as much again
        ref = self._digest(blob)
        self._source.put(ref, blob)
        self.inserted += 1
        if new is not None:
            new.append((ref, blob))
        if ref not in self._young:
            self._old.pop(ref, None)
            self._retired.pop(ref, None)
            self._keep(ref, node)
        return ref

    def retire(self, refs: Iterable[Ref]) -> None:
        """Retire nodes that a new version has replaced."""
        young, old, retired = self._young, self._old, self._retired
        for ref in refs:
            node = young.pop(ref, None) or old.pop(ref, None)
            if node is not None:
                if len(retired) >= self._retired_max:
                    del retired[next(iter(retired))]
                    self.evicted += 1
                retired[ref] = node

    def _keep(self, ref: Ref, node: Node) -> None:
        if len(self._young) >= self._young_max:
            self.evicted += len(self._old)
            self._old, self._young = self._young, {}
        self._young[ref] = node

    def forget(self, refs: Iterable[Ref]) -> None:
        """Drop these nodes."""
        young, old, retired = self._young, self._old, self._retired
        for ref in refs:
            if young.pop(ref, None) is None and old.pop(ref, None) is None:
                retired.pop(ref, None)

    def clear(self) -> int:
        """Drop all nodes, and return their number."""
        count = len(self._young) + len(self._old) + len(self._retired)
        self._young = {}
        self._old = {}
        self._retired = {}
        return count

    def statistics(self) -> dict[str, int]:
        return {
            "nodes": len(self._young) + len(self._old),
            "nodes_max": 2 * self._young_max,
            "retired": len(self._retired),
            "loaded": self.loaded,
            "inserted": self.inserted,
            "missing": self.missing,
            "evicted": self.evicted,
        }

    def check(self) -> None:
        assert len(self._young) <= self._young_max, "too many young nodes"
        assert len(self._old) <= self._young_max, "too many old nodes"
        assert not self._young.keys() & self._old.keys(), "a node is young and old"
        assert len(self._retired) <= self._retired_max, "too many retired nodes"
        assert not self._retired.keys() & (self._young.keys() | self._old.keys()), "a node is retired and in use"


def check_child(child: Node, parent: Any, index: int) -> None:
    """Raise ProtocolError unless ``child`` is what ``parent`` describes as its ``index``-th child.

    So every walk down a tree ends, whatever users have stored: each step goes down one level.
    """
    if child.level != parent.level - 1 or not child.names or child.names[-1] != parent.names[index]:
        raise ProtocolError(
            f"node {ref_text(parent.refs[index])} does not belong below '{parent.names[index]}' at level {parent.level}"
        )


def canonical_leaves(load: Callable[[Ref], Node], root_ref: Ref) -> Iterator[Leaf]:
    """Yield the leaves of one directory in order, each after the nodes above it were verified.

    Raises ProtocolError at the first node whose shape does not follow from the directory's names, and what ``load``
    raises.
    """
    root = load(root_ref)
    if type(root) is Inner and len(root.refs) == 1:
        raise ProtocolError("its root is an inner node with one child")
    todo: list[tuple[Node, bool]] = [(root, True)]
    """Nodes to verify, the next one last, and whether each is the last of its level."""
    before = ""
    while todo:
        node, is_last = todo.pop()
        names = node.names
        cuts = [level(name) > node.level for name in names]
        if any(cuts[:-1]):
            at = names[cuts.index(True)]
            raise ProtocolError(f"a node at level {node.level} does not end after '{at}', where its names demand it")
        if not is_last and not cuts[-1]:
            raise ProtocolError(
                f"a node at level {node.level} ends after '{names[-1]}', where its names do not demand it"
            )
        if type(node) is Inner:
            for index in reversed(range(len(node.refs))):
                child = load(node.refs[index])
                check_child(child, node, index)
                todo.append((child, is_last and index == len(node.refs) - 1))
            continue
        assert type(node) is Leaf
        if names:
            if names[0] <= before:
                raise ProtocolError(f"'{names[0]}' is out of order")
            before = names[-1]
        yield node


def check(nodes: NodeCache, root_ref: Ref) -> int:
    """Assert that the directory, and all below it, are canonical and complete. Return the number of entries."""
    entries = 0
    directories = [root_ref]
    seen = {root_ref}
    try:
        while directories:
            for leaf in canonical_leaves(partial(_here, nodes), directories.pop()):
                entries += len(leaf.names)
                for obj in leaf.objects:
                    if type(obj) is Dir and obj.ref not in seen:
                        seen.add(obj.ref)
                        directories.append(obj.ref)
    except ProtocolError as error:
        raise AssertionError(error.text) from error
    return entries


def _here(nodes: NodeCache, ref: Ref) -> Node:
    node = nodes.node(ref)
    assert node is not None, f"node {ref_text(ref)} is missing"
    assert nodes.insert(node) == ref, f"node {ref_text(ref)} is not encoded as it is today"
    return node
