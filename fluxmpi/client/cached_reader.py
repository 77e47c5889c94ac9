"""Reading without asking: a client's memory of nodes and values, and the walks that go through it.

What a ref names never changes, so what was loaded once is true for ever: a read begins at a root that the page of roots
(``kvs/page``) shows, goes down the nodes that are here, and asks nobody. A walk that lacks something is a generator: it yields
an ``Ask``, is sent the body of the answer, and goes on::

    get ─▶ all here ──────────────────────────▶ the object, and the bytes of its value
        └▶ Ask kvs.path ─▶ verify, remember ─▶ on from where it stopped

One ``kvs.path`` brings all nodes on the way and the value's blob: the first read of a key is one round trip, as a request for
it would be.

``root`` keeps the session's promise: a page that is behind what this client has read or written gives no root, and its caller
asks the broker, which waits for that version.

Nothing here does I/O; ``reading`` sends what is asked, and so does the simulator's client.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import msgspec

from fluxmpi.blobref import Digest, Ref
from fluxmpi.client.session import Session
from fluxmpi.content.wire import LoadRequest
from fluxmpi.errors import DigestMismatch, IsADirectory, NoSuchKey, NotADirectory, ProtocolError
from fluxmpi.kvs.objects import Dir, Val, ValRef, split_key
from fluxmpi.kvs.replica.root_page import RootPage
from fluxmpi.kvs.store.listing import Listing
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Found, Leaf, Missing, Node, decode_node, ref_text
from fluxmpi.kvs.wire import PathRequest, RootInfo

MEMORY_BYTES_MAX = 16 << 20
"""What a client keeps of nodes and values, unless told otherwise. It counts what Python makes of them."""

ENTRY_BYTES = 200
"""What a node's name and object weigh beside their own bytes, and what a node weighs beside its entries."""

LISTED_LEVEL_MAX = 1
"""A directory whose root node is of a higher level, so of over some 256 entries, is listed by the broker, page by page:
reading it here would push out everything else, and take longer."""


class Memory:
    """Nodes and values by ref, bounded in bytes.

    Two generations stand in for a list in order of use, which every hit would have to mend: when the young ones are half of
    ``bytes_max``, the old go and the young become old.

    Invariant: each generation weighs at most half of ``bytes_max``, unless one thing alone weighs more.
    """

    __slots__ = ("_half", "_old", "_young", "_young_bytes", "evicted")

    def __init__(self, bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._half = bytes_max // 2
        self._young: dict[Ref, Node | bytes] = {}
        self._old: dict[Ref, Node | bytes] = {}
        self._young_bytes = 0
        self.evicted = 0

    def node(self, ref: Ref) -> Node | None:
        """The node of that ref, or None if it is not here. Raises ProtocolError for what is no node."""
        found = self._young.get(ref)
        if found is None:
            found = self._old.pop(ref, None)
            if found is None:
                return None
            self._keep(ref, found)
        if type(found) is bytes:  # as it came
            node = decode_node(found, ref)
            self._young_bytes -= _weight(found)
            del self._young[ref]
            self._keep(ref, node)
            return node
        return found  # type: ignore[return-value]

    def value(self, ref: Ref) -> bytes | None:
        """The bytes of that ref, or None if they are not here, as bytes."""
        found = self._young.get(ref)
        if found is None:
            found = self._old.pop(ref, None)
            if found is None:
                return None
            self._keep(ref, found)
        return found if type(found) is bytes else None

    def learn(self, ref: Ref, blob: bytes) -> None:
        """Keep what is verified to have this name: a node's blob or a value's."""
        known = self._young.pop(ref, None)
        if known is not None:
            self._young_bytes -= _weight(known)
        self._old.pop(ref, None)
        self._keep(ref, blob)

    def _keep(self, ref: Ref, thing: Node | bytes) -> None:
        weight = _weight(thing)
        if self._young_bytes + weight > self._half and self._young:
            self.evicted += len(self._old)
            self._old, self._young, self._young_bytes = self._young, {}, 0
        self._young[ref] = thing
        self._young_bytes += weight

    def clear(self) -> None:
        self._young, self._old, self._young_bytes = {}, {}, 0

    def statistics(self) -> dict[str, int]:
        return {
            "things": len(self._young) + len(self._old),
            "bytes": self._young_bytes + sum(map(_weight, self._old.values())),
            "bytes_max": 2 * self._half,
            "evicted": self.evicted,
        }

    def check(self) -> None:
        assert self._young_bytes == sum(map(_weight, self._young.values()))
        assert self._young_bytes <= self._half or len(self._young) == 1
        assert not self._young.keys() & self._old.keys(), "a thing is young and old"


def _weight(thing: Node | bytes) -> int:
    if type(thing) is bytes:
        return len(thing) + ENTRY_BYTES
    names = thing.names  # type: ignore[union-attr]
    size = (len(names) + 1) * ENTRY_BYTES + sum(map(len, names))
    if type(thing) is Leaf:
        for entry in thing.objects:
            if type(entry) is Val:
                size += len(entry.data)
            elif type(entry) is ValRef:
                size += 100 * len(entry.refs)
    return size


class Ask(NamedTuple):
    """What a walk lacks: the request to send. Send the walk the body of its answer, or throw its error in."""

    topic: str
    body: Any


Walk = Generator[Ask, bytes, Any]

_decode_blobs = msgspec.msgpack.Decoder(list[bytes]).decode


def no_such_key(key: str) -> NoSuchKey:
    return NoSuchKey(f"there is no key '{key}'")


class NotKnown(Exception):
    """A link leads into a namespace whose root is not known here: the broker must be asked for the whole read."""


class CachedReader:
    """``page`` None: the broker has none, so nothing newest is known here, but reading at a root works."""

    def __init__(
        self, session: Session, digest: Digest, page: RootPage | None, bytes_max: int = MEMORY_BYTES_MAX
    ) -> None:
        self.page = page
        self.memory = Memory(bytes_max)
        self._session = session
        self._digest = digest

    def root(self, namespace: str) -> RootInfo | None:
        """The newest root, if the page shows one that is not older than what this session knows; it is seen then."""
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
            raise NotKnown(namespace)
        return root.ref

    def hit(self, namespace: str, root: Ref, key: str) -> Found | Missing:
        """``Found`` with what stands at ``key``, links followed, or None, if all is here; the hot path before ``get``."""
        return Lookup(self.memory, self._ref, namespace, root, split_key(key)).advance()

    def look(self, namespace: str, root: Ref, key: str, follow: bool = True, value: bool = False) -> Walk:
        """The object at ``key``; NoSuchKey. ``value``: if it is a value of one blob, its bytes are remembered as well."""
        lookup = Lookup(self.memory, self._ref, namespace, root, split_key(key), follow)
        while True:
            step = lookup.advance()
            if type(step) is Found:
                if step.value is None:
                    raise no_such_key(key)
                return step.value
            assert type(step) is Missing
            yield from self._path(PathRequest(step.refs[0], lookup.remaining, value))

    def get(self, namespace: str, root: Ref, key: str) -> Walk:
        """The object at ``key`` and the bytes of its value, None if it has several blobs. NoSuchKey, IsADirectory."""
        found = yield from self.look(namespace, root, key, value=True)
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
    ) -> Walk:
        """(entries, whether there are more) of a directory; None for a large one, which the broker lists better."""
        found = yield from self.look(namespace, root, key)
        if type(found) is not Dir:
            raise NotADirectory(f"'{key}' is not a directory")
        node = self.memory.node(found.ref)
        if node is None:
            yield from self._path(PathRequest(found.ref, []))
            node = self.memory.node(found.ref)
        if node is None or node.level > LISTED_LEVEL_MAX:
            return None
        listing = Listing(self.memory, found.ref, prefix, after, limit)
        while True:
            step = listing.advance()
            if type(step) is Found:
                return step.value, step.more
            assert type(step) is Missing
            for ref in reversed(step.refs):
                self.memory.learn(ref, (yield from self._load(ref)))

    def _path(self, path: PathRequest) -> Generator[Ask, bytes, None]:
        """Load the nodes on a path. Those needed first are remembered last: then even a tiny memory still has them."""
        body = yield Ask("kvs.path", path)
        try:
            blobs = _decode_blobs(body)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"kvs.path: the broker's answer does not decode: {error}") from None
        digest, learn = self._digest, self.memory.learn
        first = b""
        for blob in reversed(blobs):
            first = digest(blob)
            learn(first, blob)
        if first != path.ref:
            raise DigestMismatch(f"node {ref_text(path.ref)} was asked for, and is not what came first")

    def _blob(self, ref: Ref) -> Generator[Ask, bytes, bytes]:
        blob = self.memory.value(ref)
        if blob is None:
            blob = yield from self._load(ref)
            self.memory.learn(ref, blob)
        return blob

    def _load(self, ref: Ref) -> Generator[Ask, bytes, bytes]:
        blob = yield Ask("content.load", LoadRequest(ref))
        if self._digest(blob) != ref:
            raise DigestMismatch(f"blob {ref_text(ref)} came damaged: its bytes do not have this digest")
        return blob

    def blobs(self, refs: Sequence[Ref]) -> list[Ref]:
        """Those of ``refs`` whose bytes are not here."""
        return [ref for ref in dict.fromkeys(refs) if self.memory.value(ref) is None]

    def statistics(self) -> dict[str, int]:
        return self.memory.statistics()
