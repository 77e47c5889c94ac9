"""Reads of the key-value store: get, exists, list.

A read goes through ``cached_reader``: from the newest root that the broker's root page shows, or the root asked for,
down the nodes that this client has cached. What is missing is requested from the broker. If the page shows no root that
is new enough, or there is no page, the broker does the whole read: that request carries the highest version of the
namespace that this client has read or written, and the broker waits for it.

A read at a snapshot names the root's digest, so it is independent of versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fluxmpi.blobref import Ref
from fluxmpi.client.cached_reader import ReadWalk, UnknownRoot, no_such_key
from fluxmpi.client.channel import Channel
from fluxmpi.client.content import verified
from fluxmpi.client.future import Future, Settled
from fluxmpi.client.kvs.base import Base
from fluxmpi.client.kvs.past import past_object
from fluxmpi.client.kvs.stored_value import bytes_of, value_of
from fluxmpi.client.protocol import bare, decoder, encode
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.client.values import decode_value
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    IsADirectory,
    NoSuchBlob,
    NoSuchKey,
    NotADirectory,
    SnapshotCollected,
)
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Link, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.node import Found
from fluxmpi.kvs.wire import At, GetRequest, Got, Listed, ListRequest
from fluxmpi.message import ANY, Message

MISSING: Any = object()
PAGE_ENTRIES = 1000

T = TypeVar("T")

_decode_got = decoder(Got)
_decode_listed = decoder(Listed)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory.

    Attributes:
        key: the whole key.
        name: its last component.
        object: the stored object: a Val, ValRef, Dir or Link.
    """

    key: str
    name: str
    object: Object
    _channel: Channel

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return isinstance(self.object, Dir)

    @property
    def is_link(self) -> bool:
        """True for a link."""
        return isinstance(self.object, Link)

    @property
    def value(self) -> Any:
        """The value; a long one is loaded now. None for a directory or a link."""
        return value_of(self._channel, self.object)


def kind_of(found: Object) -> str:
    """Return what users call an object: value, directory or link."""
    return {Val: "value", ValRef: "value", Dir: "directory", Link: "link"}[type(found)]


class Reading(Base):
    """The reads of ``h.kvs``."""

    def get(
        self,
        key: str,
        default: Any = MISSING,
        *,
        at: AtLike = None,
        fresh: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Return the value of a key; links are followed.

        The value is as new as this node's broker knows, and never older than what this client has read or written.

        Args:
            key: the key.
            default: what to return if there is no such key.
            at: the state to read, see ``snapshot``; None is the newest.
            fresh: ask rank 0 for the newest version first: what was committed anywhere before this call is then read.
            timeout: seconds for each request that the read needs; a repeated read needs none. None waits without a
                limit.

        Returns:
            The value as it was put (see ``fluxmpi.client.values`` for what is stored as what). It is the caller's own,
            but a numpy array of 1 MiB or more is read-only: it is shared by all programs of the node.

        Raises:
            NoSuchKey: there is no such key, and no ``default``. It is a KeyError too.
            IsADirectory: the key is a directory.
            SnapshotCollected: ``at`` is not kept any more, nor is this key's value in it (see ``retention``, ``values``).
            VersionUnknown: ``at`` has not been reached, or is of another instance.
            RequestTimeout: no answer within ``timeout``.

        Example:
            >>> _ = h.kvs.put("doc.steps", 100)
            >>> h.kvs.get("doc.steps"), h.kvs.get("doc.nothing", default=None)
            (100, None)
        """
        self._channel.check_alive()
        try:
            if at is None and not fresh:
                namespace = self._namespace
                shown = self._reader.root(namespace)
                if shown is None:
                    return self._ask_get(key, namespace, None).get(timeout)
                ref = shown.ref
            else:
                namespace, ref = self._place(at, fresh, timeout)
            try:
                step = self._reader.find_cached(namespace, ref, key)
                if type(step) is Found:
                    found = step.value
                    if type(found) is Val:
                        return decode_value(found.type, found.data)
                    if found is None:
                        if default is MISSING:
                            raise no_such_key(key)
                        return default
                return self._decoded(*self._walk(self._reader.get(namespace, ref, key), timeout))
            except (UnknownRoot, NoSuchBlob, SnapshotCollected):
                return self._ask_get(key, namespace, None if at is None else ref).get(timeout)
        except NoSuchKey:
            if default is MISSING:
                raise
            return default
        except SnapshotCollected as error:
            if at is None:
                raise
            return self._past_value(key, default, at, error, timeout)

    def _past_value(self, key: str, default: Any, at: AtLike, error: SnapshotCollected, timeout: float | None) -> Any:
        """Return what a rule kept of a key in a version that has gone."""
        try:
            found = past_object(self._channel, self._namespace, key, at, True, error, timeout)
        except NoSuchKey:
            if default is MISSING:
                raise
            return default
        if isinstance(found, Dir):
            raise IsADirectory(f"'{key}' is a directory: list it, or name a value below it")
        return self._decoded(found, None)

    def get_async(self, key: str, *, at: AtLike = None) -> Future[Any]:
        """Get a value like ``get``, without waiting.

        Args:
            key: the key.
            at: the state to read, which must be kept. The first use of a snapshot's text or a time waits for its root.

        Returns:
            The future value; it is ready at once if everything is cached.

        Example:
            >>> _ = h.kvs.commit({"doc.a": 1, "doc.b": 2})
            >>> futures = [h.kvs.get_async(key) for key in ("doc.a", "doc.b")]
            >>> [future.get() for future in futures]
            [1, 2]
        """
        self._channel.check_alive()
        namespace, root = self._at(at)
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
            except UnknownRoot:
                pass
            except FluxmpiError as error:
                return Settled(None, error)
        return self._ask_get(key, namespace, root)

    def get_object(self, key: str, *, follow: bool = False, at: AtLike = None) -> Object:
        """Return the stored object at a key, without loading a long value.

        Args:
            key: the key.
            follow: whether to follow a link at ``key`` itself; links above it are always followed.
            at: the state to read, see ``snapshot``; None is the newest.

        Returns:
            A Val (short value), ValRef (long value), Dir or Link.

        Raises:
            NoSuchKey: there is no such key.

        Example:
            >>> _ = h.kvs.put("doc.raw", b"abc")
            >>> h.kvs.get_object("doc.raw")
            Val(type='raw', data=b'abc')
        """
        self._channel.check_alive()
        if at is None:
            return self._object(key, follow, self._namespace, None)
        try:
            return self._object(key, follow, *self._place(at))
        except SnapshotCollected as error:
            return past_object(self._channel, self._namespace, key, at, follow, error)

    def exists(self, key: str, *, at: AtLike = None) -> bool:
        """Return whether there is a value or directory at a key; links are followed.

        Args:
            key: the key.
            at: the state to read, see ``snapshot``; None is the newest.

        Example:
            >>> _ = h.kvs.put("doc.x", 1)
            >>> h.kvs.exists("doc.x"), h.kvs.exists("doc"), h.kvs.exists("doc.nothing")
            (True, True, False)
        """
        try:
            self.get_object(key, follow=True, at=at)
        except (NoSuchKey, NotADirectory):
            return False
        return True

    def readlink(self, key: str, *, at: AtLike = None) -> Link:
        """Return the link at a key: its ``target``, and its ``namespace``, None for the link's own.

        Args:
            key: the key of the link.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            InvalidRequest: the key is not a link.

        Example:
            >>> _ = h.kvs.link("doc.x", "doc.latest")
            >>> h.kvs.readlink("doc.latest").target
            'doc.x'
        """
        found = self.get_object(key, at=at)
        if not isinstance(found, Link):
            raise InvalidRequest(f"key '{key}' is a {kind_of(found)}, not a link")
        return found

    def ls(self, key: str = ROOT_KEY, *, prefix: str = "", at: AtLike = None) -> Iterator[str]:
        """Iterate over the names in a directory, in order, all of one version.

        Args:
            key: the directory.
            prefix: only names that start with it.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            NotADirectory: the key is a value.

        Example:
            >>> _ = h.kvs.commit({"doc.list.a": 1, "doc.list.b.c": 2})
            >>> list(h.kvs.ls("doc.list"))
            ['a', 'b']
        """
        return (name for name, _ in self._pages(key, prefix, at))

    def entries(
        self, key: str = ROOT_KEY, *, recursive: bool = False, prefix: str = "", at: AtLike = None
    ) -> Iterator[Entry]:
        """Iterate over the entries of a directory, in order, all of one version.

        Args:
            key: the directory.
            recursive: include the entries of directories below, each after the directory itself.
            prefix: only entries of ``key`` whose name starts with it.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            NotADirectory: the key is a value.

        Example:
            >>> _ = h.kvs.commit({"doc.list.a": 1, "doc.list.b.c": 2})
            >>> [(entry.key, entry.value) for entry in h.kvs.entries("doc.list", recursive=True)]
            [('doc.list.a', 1), ('doc.list.b', None), ('doc.list.b.c', 2)]
        """
        if recursive and not isinstance(at, Snapshot):
            at = self.snapshot(at)
        base = split_key(key)
        for name, found in self._pages(key, prefix, at):
            entry = Entry(SEPARATOR.join([*base, name]), name, found, self._channel)
            yield entry
            if recursive and entry.is_directory:
                yield from self.entries(entry.key, recursive=True, at=at)

    def value_of(self, found: Object) -> Any:
        """Return the Python value of a stored object. A long value is loaded now; an array of 1 MiB or more is read-only.

        Args:
            found: an object as ``get_object``, entries and changes have it.

        Returns:
            The value; None for a directory or a link.

        Example:
            >>> _ = h.kvs.put("doc.x", [1, 2])
            >>> h.kvs.value_of(h.kvs.get_object("doc.x"))
            [1, 2]
        """
        return value_of(self._channel, found)

    def bytes_of(self, found: Val | ValRef) -> bytes | bytearray:
        """Return the bytes of a stored value, as they are stored, verified against their digests.

        Args:
            found: a value as ``get_object``, entries and changes have it.

        Example:
            >>> _ = h.kvs.put("doc.x", [1, 2])
            >>> h.kvs.bytes_of(h.kvs.get_object("doc.x"))
            b'[1,2]'
        """
        return bytes_of(self._channel, found)

    # ----------------------------------------------------------------------------------------------------------- parts

    def _object(self, key: str, follow: bool, namespace: str, root: Ref | None) -> Object:
        """Return the object at a key; ``root`` None is the newest."""
        ref = self._shown_ref(namespace) if root is None else root
        if ref is not None:
            with suppress(UnknownRoot, NoSuchBlob, SnapshotCollected):
                found: Object = self._walk(self._reader.find(namespace, ref, key, follow))
                return found
        request = GetRequest(key, namespace, root, self._at_least(namespace, root), follow, load=False)
        got = self._get(request, _decode_got).get()
        if root is None:
            self._session.saw(namespace, got.version)
        return got.object

    def _place(self, at: AtLike, fresh: bool = False, timeout: float | None = None) -> tuple[str, Ref]:
        """Return the namespace and the root to read."""
        if type(at) is Snapshot:
            return at.namespace, at.ref
        found = self.snapshot(fresh=fresh, timeout=timeout) if at is None else self._snapshot(at, timeout=timeout)
        return found.namespace, found.ref

    def _shown_ref(self, namespace: str) -> Ref | None:
        shown = self._reader.root(namespace)
        return None if shown is None else shown.ref

    def _walk(self, walk: ReadWalk, timeout: float | None = None) -> Any:
        """Send what a walk asks for, until it ends."""
        send = self._channel.send
        try:
            ask = next(walk)
            while True:
                ask = walk.send(send(ask.topic, encode(ask.topic, ask.body), ANY, bare).get(timeout))
        except StopIteration as end:
            return end.value

    def _ask_get(self, key: str, namespace: str, at: At) -> Future[Any]:
        """Let the broker do the whole read."""

        def decode(message: Message) -> Any:
            got = _decode_got(message)
            if at is None:
                self._session.saw(namespace, got.version)
            found, data = got.object, got.data
            if isinstance(found, ValRef) and data is not None and len(found.refs) == 1:
                verified(self._channel, found.refs[0], data)
            return self._decoded(found, data)

        return self._get(GetRequest(key, namespace, at, self._at_least(namespace, at)), decode)

    def _get(self, request: GetRequest, decode: Callable[[Message], T]) -> Future[T]:
        return self._channel.send("kvs.get", encode("kvs.get", request), ANY, decode)

    def _decoded(self, found: Object, data: bytes | None) -> Any:
        """Return the Python value of an object; ``data``: its bytes, None if they were not loaded with it."""
        assert isinstance(found, Val | ValRef), "a directory is an error, and links are followed"
        return value_of(self._channel, found) if data is None else decode_value(found.type, data)

    def _is_cached(self, found: ValRef) -> bool:
        """Whether the bytes of a value of one blob are cached."""
        return self._reader.cache.value(found.refs[0]) is not None

    def _pages(self, key: str, prefix: str, at: AtLike) -> Iterator[tuple[str, Object]]:
        """Entries of a directory, page by page; the first page fixes the root that all are read from."""
        self._channel.check_alive()
        root: Ref | None
        if at is None:
            namespace = self._namespace
            root = self._shown_ref(namespace)
        else:
            namespace, root = self._place(at)
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
        """Entries of a directory, whether there are more, and their root. A large directory is listed by the broker."""
        if root is not None:
            try:
                listed = self._walk(self._reader.listing(namespace, root, key, prefix, after, limit))
                if listed is not None:
                    return *listed, root
            except (UnknownRoot, NoSuchBlob, SnapshotCollected):
                pass
        request = ListRequest(key, namespace, root, self._at_least(namespace, root), prefix, after, limit)
        page = self._channel.send("kvs.list", encode("kvs.list", request), ANY, _decode_listed).get()
        if root is None:
            self._session.saw(namespace, page.version)
        return page.entries, page.more, page.root
