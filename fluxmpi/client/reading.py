"""Reading from the KVS: the part of ``h.kvs`` that gets, lists and looks.

A read goes through ``reader``: at the newest root that the broker's page shows, or at the root asked for, down nodes that this
handle remembers. What it lacks it asks the broker for. Where the page shows no root that is new enough, or there is no page,
the broker is asked for the whole read: that request carries the highest version of its namespace that this handle has read or
written, and the broker waits for it.

Reading at a snapshot names the root's digest, so it needs nobody's agreement on versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxmpi.blobref import Ref
from fluxmpi.client.base import AtLike, Base
from fluxmpi.client.future import Settled
from fluxmpi.client.mapping import loaded, view
from fluxmpi.client.protocol import bare, decoder, encode
from fluxmpi.client.reader import NotKnown, Walk, no_such_key
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import decode_value
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    NoSuchKey,
    NotADirectory,
    SnapshotCollected,
)
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Link, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.node import Found
from fluxmpi.kvs.wire import PRIMARY, At, GetRequest, Got, Listed, ListRequest
from fluxmpi.message import ANY, Message

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future

MISSING: Any = object()
PAGE_ENTRIES = 1000

_decode_got = decoder(Got)
_decode_listed = decoder(Listed)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a directory. ``key`` is the whole key, ``name`` its last component."""

    key: str
    name: str
    object: Object
    _kvs: Reading

    @property
    def is_directory(self) -> bool:
        return isinstance(self.object, Dir)

    @property
    def is_link(self) -> bool:
        return isinstance(self.object, Link)

    @property
    def value(self) -> Any:
        """The value; loaded now if it is long. None for a directory or a link, which have none."""
        return self._kvs.value_of(self.object) if isinstance(self.object, Val | ValRef) else None


def kind_of(found: Object) -> str:
    """What people call it."""
    return {Val: "value", ValRef: "value", Dir: "directory", Link: "link"}[type(found)]


class Reading(Base):
    def get(
        self,
        key: str,
        default: Any = MISSING,
        *,
        at: AtLike = None,
        fresh: bool = False,
        namespace: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The value of ``key``; ``default``, if one is given, when there is none, else NoSuchKey.

        As new as this node's broker knows, and never older than what this handle has seen; ``fresh`` asks rank 0 for
        the newest version first. Raises IsADirectory, VersionUnknown, SnapshotCollected. ``timeout``: seconds for each
        request that it takes; one that was read before takes none.

        What is returned is the caller's own, except a numpy array of 1 MiB and more, which is read-only.
        """
        handle = self._handle
        handle.look()
        try:
            if at is None and not fresh:
                namespace = namespace or PRIMARY
                shown = self._reader.root(namespace)
                if shown is None:
                    return self._ask_get(key, namespace, None).get(timeout)
                ref = shown.ref
            else:
                namespace, ref = self._place(at, namespace, fresh, timeout)
            try:
                step = self._reader.hit(namespace, ref, key)
                if type(step) is Found:
                    found = step.value
                    if type(found) is Val:
                        return decode_value(found.type, found.data)
                    if found is None:
                        if default is MISSING:
                            raise no_such_key(key)
                        return default
                return self._loaded(*self._walk(self._reader.get(namespace, ref, key), timeout))
            except (NotKnown, NoSuchBlob, SnapshotCollected):
                return self._ask_get(key, namespace, None if at is None else ref).get(timeout)
        except NoSuchKey:
            if default is MISSING:
                raise
            return default

    def get_async(self, key: str, *, at: AtLike = None, namespace: str | None = None) -> Future:
        """As ``get``, without waiting. Where all is known already, the Future is done when this returns.

        (To learn what root a snapshot's text or a time means takes a round trip, the first time.)
        """
        self._handle.look()
        namespace, root = self._at(at, namespace)
        shown = root if isinstance(root, bytes) else self._shown_ref(namespace) if root is None else None
        if shown is not None:
            walk = self._reader.get(namespace, shown, key)
            try:
                next(walk)
                walk.close()
            except StopIteration as end:
                found, data = end.value
                if data is not None:
                    return Settled(decode_value(found.type, data))
            except NotKnown:
                pass
            except FluxmpiError as error:
                return Settled(None, error)
        return self._ask_get(key, namespace, root)

    def get_object(self, key: str, *, follow: bool = False, at: AtLike = None, namespace: str | None = None) -> Object:
        """What stands at ``key``: a Val, ValRef, Dir or Link, without loading a long value."""
        self._handle.look()
        namespace, ref = (
            self._place(at, namespace) if at is not None else (namespace or PRIMARY, self._shown_ref(namespace))
        )
        if ref is not None:
            try:
                return self._walk(self._reader.look(namespace, ref, key, follow))
            except (NotKnown, NoSuchBlob, SnapshotCollected):
                ref = None if at is None else ref
        got = self._get(
            GetRequest(key, namespace, ref, self._at_least(namespace, ref), follow, load=False), _decode_got
        ).get()
        if ref is None:
            self._session.saw(namespace, got.version)
        return got.object

    def exists(self, key: str, *, at: AtLike = None, namespace: str | None = None) -> bool:
        try:
            self.get_object(key, follow=True, at=at, namespace=namespace)
        except (NoSuchKey, NotADirectory):
            return False
        return True

    def readlink(self, key: str, *, at: AtLike = None, namespace: str | None = None) -> Link:
        """Where the link at ``key`` points to: ``.target`` and ``.namespace``. InvalidRequest if it is no link."""
        found = self.get_object(key, at=at, namespace=namespace)
        if not isinstance(found, Link):
            raise InvalidRequest(f"key '{key}' is a {kind_of(found)}, not a link")
        return found

    def ls(
        self, key: str = ROOT_KEY, *, prefix: str = "", at: AtLike = None, namespace: str | None = None
    ) -> Iterator[str]:
        """The names in a directory, in order, page by page of one version."""
        return (name for name, _ in self._pages(key, prefix, at, namespace))

    def entries(
        self,
        key: str = ROOT_KEY,
        *,
        recursive: bool = False,
        prefix: str = "",
        at: AtLike = None,
        namespace: str | None = None,
    ) -> Iterator[Entry]:
        """The entries of a directory, in order, all of one version; with ``recursive``, each one's after itself."""
        if recursive and not isinstance(at, Snapshot):
            at = self.snapshot(namespace, at=at)
        base = split_key(key)
        for name, found in self._pages(key, prefix, at, namespace):
            entry = Entry(SEPARATOR.join([*base, name]), name, found, self)
            yield entry
            if recursive and entry.is_directory:
                yield from self.entries(entry.key, recursive=True, at=at, namespace=namespace)

    def remembers(self, found: ValRef) -> bool:
        """Whether the bytes of a value of one blob are here."""
        return self._reader.memory.value(found.refs[0]) is not None

    def decoded(self, found: Val | ValRef, data: bytes) -> Any:
        """The Python value of a stored object whose bytes were loaded."""
        return decode_value(found.type, data)

    def value_of(self, found: Val | ValRef) -> Any:
        """The Python value of a stored object; loads the blobs of a long one. An array of a MiB and more is read-only."""
        return decode_value(found.type, found.data if isinstance(found, Val) else view(self._handle, found))

    def bytes_of(self, found: Val | ValRef) -> bytes | bytearray:
        """The bytes of a stored object, verified against its digests."""
        return found.data if isinstance(found, Val) else loaded(self._handle.content, found)

    def _place(
        self, at: AtLike, namespace: str | None, fresh: bool = False, timeout: float | None = None
    ) -> tuple[str, Ref]:
        """The namespace and the root to read at."""
        if type(at) is Snapshot:
            return namespace or at.namespace, at.ref
        if at is None:
            namespace = namespace or PRIMARY
            return namespace, self.getroot(fresh=fresh, namespace=namespace, timeout=timeout).ref
        found = self._snapshot(at, namespace, timeout)
        return found.namespace, found.ref

    def _shown_ref(self, namespace: str | None) -> Ref | None:
        shown = self._reader.root(namespace or PRIMARY)
        return None if shown is None else shown.ref

    def _walk(self, walk: Walk, timeout: float | None = None) -> Any:
        """Send what a walk asks for, until it ends."""
        send = self._handle.send
        try:
            ask = next(walk)
            while True:
                ask = walk.send(send(ask.topic, encode(ask.topic, ask.body), ANY, bare).get(timeout))
        except StopIteration as end:
            return end.value

    def _ask_get(self, key: str, namespace: str, at: At) -> Future:
        """The broker's own answer."""

        def decode(message: Message) -> Any:
            got = _decode_got(message)
            if at is None:
                self._session.saw(namespace, got.version)
            found, data = got.object, got.data
            if isinstance(found, ValRef) and data is not None and len(found.refs) == 1:
                self._handle.content.verified(found.refs[0], data)
            return self._loaded(found, data)

        return self._get(GetRequest(key, namespace, at, self._at_least(namespace, at)), decode)

    def _get(self, get: GetRequest, decode: Callable[[Message], Any]) -> Future:
        return self._handle.send("kvs.get", encode("kvs.get", get), ANY, decode)

    def _loaded(self, found: Object, data: bytes | None) -> Any:
        """The Python value of an object whose bytes, if they are one blob, have come with it."""
        assert isinstance(found, Val | ValRef), "a directory is an error, and links are followed"
        return self.value_of(found) if data is None else decode_value(found.type, data)

    def _pages(self, key: str, prefix: str, at: AtLike, namespace: str | None) -> Iterator[tuple[str, Object]]:
        """Entries of a directory, page by page; the first page fixes the root that all are read from."""
        self._handle.look()
        if at is None:
            namespace = namespace or PRIMARY
            root = self._shown_ref(namespace)
        else:
            namespace, root = self._place(at, namespace)
        after = ""
        while True:
            entries, more, root = self._page(key, prefix, after, PAGE_ENTRIES, namespace, root)
            yield from entries
            if not more:
                return
            after = entries[-1][0]

    def _page(
        self, key: str, prefix: str, after: str, limit: int, namespace: str, root: Ref | None
    ) -> tuple[list[tuple[str, Object]], bool, Ref]:
        """Entries of a directory, whether there are more, and the root that they are of. A large one the broker lists."""
        if root is not None:
            try:
                listed = self._walk(self._reader.listing(namespace, root, key, prefix, after, limit))
                if listed is not None:
                    return *listed, root
            except (NotKnown, NoSuchBlob, SnapshotCollected):
                pass
        ask = ListRequest(key, namespace, root, self._at_least(namespace, root), prefix, after, limit)
        page = self._handle.send("kvs.list", encode("kvs.list", ask), ANY, _decode_listed).get()
        if root is None:
            self._session.saw(namespace, page.version)
        return page.entries, page.more, page.root
