"""Walks of one broker from a root.

They read a value, a page of a directory, the nodes of a path, or the changes between two roots.

Each is a generator as ``fault_in`` runs them: it yields the refs that it lacks, and continues when they are here. It
answers for one root, however long it takes and whatever is committed meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

from fluxmpi.blobref import SIZES, Ref
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchKey, NotADirectory, ProtocolError
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Object, Val, ValRef, join_key, split_key
from fluxmpi.kvs.replica.fault_in import Walk
from fluxmpi.kvs.replica.limits import REPLICA_LIMITS, ReplicaLimits
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.listing import Listing
from fluxmpi.kvs.store.lookup import Descent, Lookup
from fluxmpi.kvs.store.node import BlobSource, Found, Missing, Node, NodeCache
from fluxmpi.kvs.wire import (
    At,
    Diffed,
    DiffRequest,
    GetRequest,
    Got,
    KeyChange,
    Listed,
    ListRequest,
    PathRequest,
    RootInfo,
)
from fluxmpi.message import Message, reply


class VisitedNodes:
    """A node source that records the nodes that were read, in order."""

    __slots__ = ("_load", "nodes")

    def __init__(self, source: NodeCache) -> None:
        self._load = source.node
        self.nodes: dict[Ref, Node] = {}

    def node(self, ref: Ref) -> Node | None:
        node = self._load(ref)
        if node is not None:
            self.nodes[ref] = node
        return node


class Reads:
    """``replicas``: the namespaces that this broker knows, by name; its owner changes it."""

    def __init__(
        self,
        nodes: NodeCache,
        blobs: BlobSource,
        replicas: Mapping[str, Replica],
        limits: ReplicaLimits = REPLICA_LIMITS,
    ) -> None:
        self._nodes = nodes
        self._blobs = blobs
        self._replicas = replicas
        self._limits = limits

    # ------------------------------------------------------------------------------------------------------------ roots

    def knows(self, namespace: str) -> bool:
        return namespace in self._replicas

    def root_of(self, namespace: str) -> Ref | None:
        """Return the newest root ref of a namespace, or None if this broker does not know it."""
        replica = self._replicas.get(namespace)
        return replica.root.ref if replica is not None and replica.root is not None else None

    def root_at(self, namespace: str, at: At) -> RootInfo | None:
        """Return the root to read at, or None for a version that this broker does not know: rank 0 may know it."""
        replica = self._replicas[namespace]
        assert replica.root is not None
        if at is None:
            return replica.root
        if isinstance(at, int):
            return replica.at(at)
        if len(at) not in SIZES.values():
            raise InvalidRequest(f"invalid root ref of {len(at)} bytes: a digest has 20 (sha1) or 32 (sha256)")
        return RootInfo(namespace, replica.version, at, replica.root.time)

    # ------------------------------------------------------------------------------------------------------------ steps

    def _find(self, walk: Listing | Diff, **bounds: int) -> Generator[list[Ref], dict[Ref, bytes], Found]:
        """Advance a walk to its next result, faulting in what it lacks."""
        while True:
            step = walk.advance(**bounds)
            if type(step) is Found:
                return step
            assert type(step) is Missing
            loaded = yield step.refs
            for ref in reversed(step.refs):  # the first needed is added last: even a tiny cache still has it then
                self._nodes.add_blob(ref, loaded[ref])

    def lookup(
        self, namespace: str, root: Ref, key: str, follow: bool, value: bool = False
    ) -> Generator[PathRequest, dict[Ref, bytes], tuple[Object | None, dict[Ref, bytes]]]:
        """Return the object at ``key``, or None, and the blobs that were loaded last.

        ``value``: these are to include the value's blob, if it is one blob.
        """
        lookup = Lookup(self._nodes, self.root_of, namespace, root, split_key(key), follow)
        loaded: dict[Ref, bytes] = {}
        while True:
            step = lookup.advance()
            if type(step) is Found:
                return step.value, loaded
            assert type(step) is Missing
            loaded = yield PathRequest(step.refs[0], lookup.remaining, value)
            self.add_nodes(loaded)

    def add_nodes(self, loaded: dict[Ref, bytes]) -> None:
        """Cache the nodes among the blobs, those needed first last: then even a tiny cache still has them."""
        for ref in reversed(loaded):
            with contextlib.suppress(ProtocolError):  # a value, or a node that its parent will refuse
                self._nodes.add_blob(ref, loaded[ref])

    def _blob(self, ref: Ref, loaded: dict[Ref, bytes]) -> Generator[list[Ref], dict[Ref, bytes], bytes]:
        """Return a value's blob: from what was loaded just now, from the cache, or faulted in."""
        blob = loaded.get(ref) or self._blobs.get(ref)
        if blob is None:
            blob = (yield [ref])[ref]
        return blob

    # ---------------------------------------------------------------------------------------------------------- answers

    def path(self, msg: Message, path: PathRequest) -> Walk:
        """Answer a child's ``kvs.path`` with the nodes on the path, and the value's blob if it is wanted."""
        visited = VisitedNodes(self._nodes)
        descent = Descent(visited, path.ref, path.names)
        loaded: dict[Ref, bytes] = {}
        while True:
            step = descent.advance()
            if type(step) is Found and (path.names or visited.node(path.ref) is not None):
                break  # a path without names is its first node
            missing = step.refs[0] if type(step) is Missing else path.ref
            got = yield PathRequest(missing, descent.remaining, path.value)
            assert got is not None
            loaded = got
            self.add_nodes(loaded)
        blobs = [self._nodes.blob(ref, node) for ref, node in visited.nodes.items()]
        obj = step.value
        if path.value and type(obj) is ValRef and len(obj.refs) == 1:
            blobs.append((yield from self._blob(obj.refs[0], loaded)))
        return [reply(msg, blobs)]

    def get(self, msg: Message, get: GetRequest, root: RootInfo) -> Walk:
        """Answer ``kvs.get`` as of ``root``."""
        obj, loaded = yield from self.lookup(get.namespace, root.ref, get.key, get.follow, get.load)
        if obj is None:
            raise NoSuchKey(f"there is no key '{get.key}'")
        data: bytes | None = None
        if get.load:
            if type(obj) is Dir:
                raise IsADirectory(f"'{get.key}' is a directory: list it, or name a value below it")
            if type(obj) is Val:
                data = obj.data
            elif type(obj) is ValRef:
                if not obj.refs:
                    data = b""
                elif len(obj.refs) == 1:
                    data = yield from self._blob(obj.refs[0], loaded)
        return [reply(msg, Got(root.version, root.ref, obj, data))]

    def list(self, msg: Message, listing: ListRequest, root: RootInfo) -> Walk:
        """Answer ``kvs.list`` as of ``root``."""
        obj, _ = yield from self.lookup(listing.namespace, root.ref, listing.key, True)
        if obj is None:
            raise NoSuchKey(f"there is no key '{listing.key}'")
        if type(obj) is not Dir:
            raise NotADirectory(f"'{listing.key}' is not a directory")
        limit = min(listing.limit, self._limits.list_entries_max)
        found = yield from self._find(Listing(self._nodes, obj.ref, listing.prefix, listing.after, limit))
        return [reply(msg, Listed(root.version, root.ref, found.value, found.more))]

    def diff(self, msg: Message, diff: DiffRequest, a: RootInfo | None, b: RootInfo | None) -> Walk:
        """Answer ``kvs.diff`` with a page of changes, over several turns. ``a``, ``b``: needed for the first page."""
        limits = self._limits
        if not 1 <= diff.limit <= limits.diff_changes_max:
            raise InvalidRequest(f"invalid limit of {diff.limit} changes: give 1 to {limits.diff_changes_max}")
        key = join_key(split_key(diff.key))
        changes: list[KeyChange] = []
        between = diff.between
        if between is None:
            assert a is not None
            assert b is not None
            old, _ = yield from self.lookup(diff.namespace, a.ref, diff.key, True)
            new, _ = yield from self.lookup(diff.namespace, b.ref, diff.key, True)
            between = old.ref if type(old) is Dir else None, new.ref if type(new) is Dir else None
            if old != new and None in between:
                changes.append(KeyChange(key, new, old is not None, old))
        walk = Diff(self._nodes, *between, "" if key == ROOT_KEY else key, after=diff.after)
        room, more = limits.diff_page_bytes, True
        while more and len(changes) < diff.limit and room > 0:
            limit = min(diff.limit - len(changes), limits.diff_turn_changes)
            found = yield from self._find(walk, limit=limit, steps=limits.diff_turn_steps)
            more = found.more
            for name, before, after in found.value:
                changes.append(KeyChange(name, after, before is not None, before))
                room -= len(name) + _data_bytes(before) + _data_bytes(after)
            if more:
                yield None
        return [reply(msg, Diffed(changes, between, more))]


def _data_bytes(obj: Object | None) -> int:
    """About the size of an object in a message."""
    if type(obj) is Val:
        return len(obj.data)
    return sum(map(len, obj.refs)) if type(obj) is ValRef else 0
