"""Reads without a request: a client's cache of nodes and values, and the walks that use it.

A ref names immutable bytes, so what is cached never becomes stale. A read starts at a root that the broker's root page
(``kvs/replica/root_page``) shows, walks down the cached nodes, and sends no request. A walk that lacks something is a
generator: it yields a ``ReaderRequest``, is sent the body of the response, and continues::

    get -- all cached ------------------------> the object, and the bytes of its value
        -- request kvs.path -- verify, cache -> continue where it stopped

One ``kvs.path`` returns all nodes on the way and the value's blob, so the first read of a key takes one round trip, as
a request for the key would.

``root`` keeps the session's promise: it returns no root if the page is behind what this client has read or written. Its
caller then asks the broker, which waits for that version.

Nothing here does I/O; ``kvs/reading`` sends the requests, and so does the simulator's client.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec

from fluxmpi.blobref import Digest, Ref
from fluxmpi.client.protocol import UNDECODABLE, undecodable
from fluxmpi.client.session import Session
from fluxmpi.content.wire import LoadRequest
from fluxmpi.errors import DigestMismatch, IsADirectory, NoSuchKey, NotADirectory, indefinite
from fluxmpi.kvs.objects import Dir, Val, ValRef, split_key
from fluxmpi.kvs.replica.root_page import RootPage
from fluxmpi.kvs.store.listing import Listing
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Found, Leaf, Missing, Node, decode_node, ref_text
from fluxmpi.kvs.wire import PathRequest, RootInfo

CACHE_BYTES_MAX = 16 << 20
"""Default bound of a client's cache of nodes and values, in bytes of Python objects."""

ENTRY_BYTES = 200
"""Overhead of an entry beside the bytes of its name and object, and of a node beside its entries."""

LISTED_LEVEL_MAX = 1
"""A directory whose root node has a higher level, so one of more than about 256 entries, is listed by the broker, page
by page:
reading it here would evict everything else, and take longer."""


class RefCache:
    """Nodes and values by ref, bounded in bytes.

    It evicts by generation, since a list in order of use would have to be updated by every hit: when the young
    generation has half of ``bytes_max``, the old one is evicted, and the young one becomes old. A hit in the old one
    moves to the young one.

    Invariant: each generation has at most half of ``bytes_max``, unless one item alone has more.
    """

    __slots__ = ("_half", "_old", "_young", "_young_bytes", "evicted")

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._half = bytes_max // 2
        self._young: dict[Ref, Node | bytes] = {}
        self._old: dict[Ref, Node | bytes] = {}
        self._young_bytes = 0
        self.evicted = 0

    def node(self, ref: Ref) -> Node | None:
        """Return the node of that ref; None if it is not cached. Raises ProtocolError for bytes that are not a node."""
        found = self._young.get(ref)
        if found is None:
            found = self._old.pop(ref, None)
            if found is None:
                return None
            self._keep(ref, found)
        if type(found) is bytes:  # not decoded yet
            node = decode_node(found, ref)
            self._young_bytes -= _weight(found)
            self._young.pop(ref, None)  # another thread may have decoded it, too
            self._keep(ref, node)
            return node
        return found  # type: ignore[return-value]

    def value(self, ref: Ref) -> bytes | None:
        """Return the bytes of that ref; None if they are not cached, or were decoded as a node."""
        found = self._young.get(ref)
        if found is None:
            found = self._old.pop(ref, None)
            if found is None:
                return None
            self._keep(ref, found)
        return found if type(found) is bytes else None

    def add(self, ref: Ref, blob: bytes) -> None:
        """Cache a verified blob of a node or value."""
        known = self._young.pop(ref, None)
        if known is not None:
            self._young_bytes -= _weight(known)
        self._old.pop(ref, None)
        self._keep(ref, blob)

    def _keep(self, ref: Ref, item: Node | bytes) -> None:
        weight = _weight(item)
        if self._young_bytes + weight > self._half and self._young:
            self.evicted += len(self._old)
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[ref] = item
        self._young_bytes += weight

    def clear(self) -> None:
        """Drop everything."""
        self._young, self._old, self._young_bytes = {}, {}, 0

    def statistics(self) -> dict[str, int]:
        """Return the count of cached items, and their bytes."""
        return {
            "items": len(self._young) + len(self._old),
            "bytes": self._young_bytes + sum(map(_weight, self._old.values())),
            "bytes_max": 2 * self._half,
            "evicted": self.evicted,
        }

    def check(self) -> None:
        """Assert that sizes are right, and no item is in both generations."""
        assert self._young_bytes == sum(map(_weight, self._young.values()))
        assert self._young_bytes <= self._half or len(self._young) == 1
        assert not self._young.keys() & self._old.keys(), "an item is in both generations"


def _weight(item: Node | bytes) -> int:
    if type(item) is bytes:
        return len(item) + ENTRY_BYTES
    names = item.names  # type: ignore[union-attr]
    size = (len(names) + 1) * ENTRY_BYTES + sum(map(len, names))
    if type(item) is Leaf:
        for entry in item.objects:
            if type(entry) is Val:
                size += len(entry.data)
            elif type(entry) is ValRef:
                size += 100 * len(entry.refs)
    return size


class ReaderRequest(NamedTuple):
    """A request that a walk needs: send the walk the body of its response, or throw its error into it."""

    topic: str
    body: Any


ReadWalk = Generator[ReaderRequest, bytes, Any]

_decode_blobs = msgspec.msgpack.Decoder(list[bytes]).decode


def no_such_key(key: str) -> NoSuchKey:
    """Return the error for a key that does not exist."""
    return NoSuchKey(f"there is no key '{key}'")


class UnknownRoot(Exception):
    """A link leads into a namespace whose root the page does not show: the broker must do the whole read."""


class CachedReader:
    """Reads at a root, from a cache.

    Attributes:
        page: the broker's root page; None if it has none, so that the broker must be asked for the newest root.
        cache: nodes and values.
    """

    def __init__(
        self, session: Session, digest: Digest, page: RootPage | None, bytes_max: int = CACHE_BYTES_MAX
    ) -> None:
        self.page = page
        self.cache = RefCache(bytes_max)
        self._session = session
        self._digest = digest

    def root(self, namespace: str) -> RootInfo | None:
        """Return the newest root, if the page shows one that is not older than what the session has seen; it is seen then."""
        page = self.page
        if page is None:
            return None
        root = page.root(namespace)
        if root is None:
            return None
        versions = self._session.versions
        known = versions.get(namespace, 0)
        if root.version != known:
            if root.version < known:
                return None
            versions[namespace] = root.version
        return root

    def _ref(self, namespace: str) -> Ref:
        root = self.root(namespace)
        if root is None:
            raise UnknownRoot(namespace)
        return root.ref

    def find_cached(self, namespace: str, root: Ref, key: str) -> Found | Missing:
        """Return ``Found`` with the object at ``key``, None for no key, if every node is cached; the hot path before ``get``."""
        return Lookup(self.cache, self._ref, namespace, root, split_key(key)).advance()

    def find(self, namespace: str, root: Ref, key: str, follow: bool = True, value: bool = False) -> ReadWalk:
        """Return the object at ``key``; ``value``: cache the bytes of a value of one blob, too. Raises NoSuchKey."""
        lookup = Lookup(self.cache, self._ref, namespace, root, split_key(key), follow)
        while True:
            step = lookup.advance()
            if type(step) is Found:
                if step.value is None:
                    raise no_such_key(key)
                return step.value
            assert type(step) is Missing
            yield from self._path(PathRequest(step.refs[0], lookup.remaining, value))

    def get(self, namespace: str, root: Ref, key: str) -> ReadWalk:
        """Return the object at ``key``, and the bytes of its value, None if it has several blobs.

        Raises NoSuchKey, IsADirectory.
        """
        found = yield from self.find(namespace, root, key, value=True)
        if type(found) is Val:
            return found, found.data
        if type(found) is not ValRef:
            raise IsADirectory(f"'{key}' is a directory: list it, or name a value below it")
        if len(found.refs) > 1:
            return found, None
        if not found.refs:
            return found, b""
        return found, (yield from self._blob(found.refs[0]))

    def listing(
        self, namespace: str, root: Ref, key: str, prefix: str = "", after: str = "", limit: int = 1000
    ) -> ReadWalk:
        """Return entries of a directory, and whether there are more; None for a large one, which the broker lists."""
        found = yield from self.find(namespace, root, key)
        if type(found) is not Dir:
            raise NotADirectory(f"'{key}' is not a directory")
        node = self.cache.node(found.ref)
        if node is None:
            yield from self._path(PathRequest(found.ref, []))
            node = self.cache.node(found.ref)
        if node is None or node.level > LISTED_LEVEL_MAX:
            return None
        listing = Listing(self.cache, found.ref, prefix, after, limit)
        while True:
            step = listing.advance()
            if type(step) is Found:
                return step.value, step.more
            assert type(step) is Missing
            for ref in reversed(step.refs):
                self.cache.add(ref, (yield from self._load(ref)))

    def _path(self, path: PathRequest) -> Generator[ReaderRequest, bytes, None]:
        """Load the nodes on a path. The first ones are cached last, so that even a tiny cache still has them."""
        body = yield ReaderRequest("kvs.path", path)
        try:
            blobs = _decode_blobs(body)
        except UNDECODABLE as error:
            raise undecodable("kvs.path", error) from None
        digest, add = self._digest, self.cache.add
        first = b""
        for blob in reversed(blobs):
            first = digest(blob)
            add(first, blob)
        if first != path.ref:
            text = f"node {ref_text(path.ref)} was requested, and the response starts with another one"
            raise indefinite(DigestMismatch(text))

    def _blob(self, ref: Ref) -> Generator[ReaderRequest, bytes, bytes]:
        blob = self.cache.value(ref)
        if blob is None:
            blob = yield from self._load(ref)
            self.cache.add(ref, blob)
        return blob

    def _load(self, ref: Ref) -> Generator[ReaderRequest, bytes, bytes]:
        blob = yield ReaderRequest("content.load", LoadRequest(ref))
        if self._digest(blob) != ref:
            raise indefinite(DigestMismatch(f"blob {ref_text(ref)} is damaged: its bytes do not have this digest"))
        return blob

    def statistics(self) -> dict[str, int]:
        """Return the cache's counts."""
        return self.cache.statistics()
