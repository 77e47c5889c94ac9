"""Nodes of the directory tree, the rule that cuts them, and the cache of decoded ones.

A directory is an ordered search tree whose shape depends on its names only (as in Merkle search trees, Auvolat & Taïani
2019, and in prolly trees). Every name has a *level*, drawn from the hash of the name: most have 0, one in 16 has at
least 1, one in 256 at least 2, and so on.

- Leaves hold the entries in order of name. A leaf ends after a name of level 1 or more, and at the directory's end.
- Inner nodes of level k hold nodes of level k-1 in order, each with the last name below it. One ends after a child
  whose last name has level k+1 or more, and at the directory's end.
- The root is the only node of the lowest level that has only one. An empty directory is the leaf without entries.

Invariants (``check`` asserts them):

- The same entries give the same nodes, hence the same ref, whatever the order of the writes.
- Only a root is an empty leaf; no inner node is empty; no root is an inner node with one child (others may be).
- A decoded node never changes: whoever wants to change one copies it (see ``tree``).

Names compare as str, by code point, which is also the order of their UTF-8. Levels use sha256 whatever the instance's
digest is, so that the shape is the same in all.

A blob that a ref names may be anything: users store blobs, and put directories that they made up. So what is read is
checked before it is believed: a ProtocolError when it is no node, or not one that its parent could have.
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
"""Decoded nodes that a cache keeps unless told otherwise; a node of small values takes about 4 KiB."""


RETIRED_MAX = 512
"""Of these, such as the newest version does not have any more: the last ones, for who compares it with the one before."""


def level(name: str, _bits: int = LEVEL_BITS, _mask: int = (1 << LEVEL_BITS) - 1) -> int:
    """How many groups of LEVEL_BITS zero bits the name's sha256 ends with, at most LEVEL_MAX."""
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
    """``objects[i]`` is what ``names[i]`` stands for."""

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
    """A walk's answer when it lacks blobs: load ``refs``, then call ``advance`` again; it goes on from where it is."""

    refs: list[Ref]


class Found(msgspec.Struct, frozen=True):
    """A walk's answer when it has one. ``more``: the limit was reached; call ``advance`` again for the next slice."""

    value: Any
    more: bool = False


MISSING_MAX = 64
"""Refs that a walk asks for at once, at most."""


class BlobSource(Protocol):
    """Where blobs are. ``get`` never waits: None means that the blob is not here (now)."""

    def get(self, ref: Ref) -> bytes | None: ...

    def put(self, ref: Ref, blob: bytes) -> object: ...


class NodeSource(Protocol):
    """Where nodes are. ``node`` never waits: None means that it is not here (now)."""

    def node(self, ref: Ref) -> Node | None: ...


encode_node = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Node).decode


def decode_node(blob: bytes, ref: Ref) -> Node:
    """The node that ``blob``, of the name ``ref``, encodes. Raises ProtocolError when it is none.

    What is promised of it: as many names as objects or refs, in strictly ascending order, an inner node's level in
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
            raise ProtocolError(f"blob {ref_text(ref)} is no node: {count} children at level {node.level}")
    else:
        count = len(node.objects)
    if count != len(names):
        raise ProtocolError(f"blob {ref_text(ref)} is no node: {len(names)} names for {count}")
    if any(map(ge, names, islice(names, 1, None))):
        raise ProtocolError(f"blob {ref_text(ref)} is no node: its names are not in order")
    return node


def ref_text(ref: Ref) -> str:
    """A ref for messages to people; unlike ``to_text`` it takes those that nothing has checked."""
    return to_text(ref) if len(ref) in SIZES.values() else f"'{ref[:32].hex()}'"


class NodeCache:
    """Decoded nodes by ref, over a source of blobs.

    Two generations stand in for a list in order of use, which every hit would have to mend: ``_young`` are the nodes
    used since the last turn, ``_old`` those of the turn before. When the young are half of ``nodes_max``, the old go
    and the young become old. So the last nodes_max / 2 that were used are here, and never more than nodes_max.

    Beside them are the last that were *retired*, RETIRED_MAX: replaced by a new version. Of these there are as many as of new
    ones, and hardly anybody reads them again, but they would fill the cache. One that is used again counts as the others.

    Only the decoded nodes live here. Who drops blobs from the source need not tell: a ref's node cannot change.
    """

    __slots__ = (
        "_digest", "_old", "_retired", "_retired_max", "_source", "_young", "_young_max",
        "evicted", "inserted", "loaded", "missing",
    )  # fmt: skip

    def __init__(
        self, source: BlobSource, digest: Digest, nodes_max: int = NODES_MAX, retired_max: int = RETIRED_MAX
    ) -> None:
        if nodes_max < 2:
            raise InvalidRequest(f"a cache of {nodes_max} nodes cannot work: nodes_max must be 2 or more")
        self._source = source
        self._digest = digest
        self._young: dict[Ref, Node] = {}
        self._old: dict[Ref, Node] = {}
        self._retired: dict[Ref, Node] = {}
        self._young_max = nodes_max // 2
        self._retired_max = min(retired_max, self._young_max)
        self.loaded = self.inserted = self.missing = self.evicted = 0

    def node(self, ref: Ref) -> Node | None:
        """The node of that ref, or None if its blob is not here. Raises ProtocolError for a blob that is no node."""
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
        """As ``node``, but a node that was not decoded yet is not kept: a walk over everything spoils no cache."""
        node = self._young.get(ref) or self._old.get(ref) or self._retired.get(ref)
        if node is None:
            blob = self._source.get(ref)
            node = None if blob is None else decode_node(blob, ref)
        return node

    def blob(self, ref: Ref, node: Node) -> bytes:
        """The blob of a node that was just read; its source may have given it up, but it is encoded as it was."""
        blob = self._source.get(ref)
        return encode_node(node) if blob is None else blob

    def add_blob(self, ref: Ref, blob: bytes) -> None:
        """Keep the node of a blob that was just loaded, whose source may be too small to hold it until it is needed."""
        if ref not in self._young and ref not in self._old:
            self._retired.pop(ref, None)
            self._keep(ref, decode_node(blob, ref))
            self.loaded += 1

    def insert(self, node: Node, new: list[tuple[Ref, bytes]] | None = None) -> Ref:
        """Encode a node, put its blob into the source, and keep it; ``new`` gets its ref and blob appended."""
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
        """A new version has others in their place."""
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
            self._old = self._young
            self._young = {}
        self._young[ref] = node

    def forget(self, refs: Iterable[Ref]) -> None:
        """These are not needed any more."""
        young, old, retired = self._young, self._old, self._retired
        for ref in refs:
            if young.pop(ref, None) is None and old.pop(ref, None) is None:
                retired.pop(ref, None)

    def clear(self) -> int:
        """Forget all decoded nodes; how many they were."""
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
    """Raise ProtocolError unless ``child`` is what ``parent`` says of its ``index``-th child.

    It makes every walk down a tree end, whatever someone stored: levels go down by one.
    """
    if child.level != parent.level - 1 or not child.names or child.names[-1] != parent.names[index]:
        raise ProtocolError(
            f"node {ref_text(parent.refs[index])} does not belong below '{parent.names[index]}' at level {parent.level}"
        )


def canonical_leaves(load: Callable[[Ref], Node], root_ref: Ref) -> Iterator[Leaf]:
    """The leaves of one directory in order, each after a look at all that leads to it.

    Raises ProtocolError at the first node that the directory's names do not make; what ``load`` raises goes through.
    """
    root = load(root_ref)
    if type(root) is Inner and len(root.refs) == 1:
        raise ProtocolError("its root has one child")
    todo: list[tuple[Node, bool]] = [(root, True)]
    """Nodes to look at, the next one last, and whether each is the last of its level."""
    before = ""
    while todo:
        node, is_last = todo.pop()
        names = node.names
        cuts = [level(name) > node.level for name in names]
        if any(cuts[:-1]):
            at = names[cuts.index(True)]
            raise ProtocolError(f"a node at level {node.level} goes on after '{at}': it is not cut where its names say")
        if not is_last and not cuts[-1]:
            raise ProtocolError(
                f"a node at level {node.level} ends after '{names[-1]}': it is not cut where its names say"
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
    """Assert that the directory, and all below it, are canonical and all here; how many entries they have together."""
    entries = 0
    directories = [root_ref]
    seen = {root_ref}
    try:
        while directories:
            for leaf in canonical_leaves(partial(_here, nodes), directories.pop()):
                entries += len(leaf.names)
                for thing in leaf.objects:
                    if type(thing) is Dir and thing.ref not in seen:
                        seen.add(thing.ref)
                        directories.append(thing.ref)
    except ProtocolError as error:
        raise AssertionError(error.text) from error
    return entries


def _here(nodes: NodeCache, ref: Ref) -> Node:
    node = nodes.node(ref)
    assert node is not None, f"node {ref_text(ref)} is missing"
    assert nodes.insert(node) == ref, f"node {ref_text(ref)} is not encoded as it is today"
    return node
