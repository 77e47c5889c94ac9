"""Reading from the KVS: the part of ``h.kvs`` that gets, lists and looks.

Every read carries the highest version of its namespace that this handle has read or written, and the broker waits for it.
Reading at a snapshot names the root's digest, so it needs nobody's agreement on versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxmpi.client.base import AtLike, Base
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import where
from fluxmpi.client.values import decode_value
from fluxmpi.errors import DigestMismatch, InvalidRequest, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Link, Object, Val, ValRef, split_key
from fluxmpi.kvs.wire import PRIMARY, Get, Got, List, Listed
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
        the newest version first. Raises IsADirectory, VersionUnknown.
        """
        if fresh:
            self.getroot(fresh=True, namespace=namespace or PRIMARY)
        try:
            return self.get_async(key, at=at, namespace=namespace).get(timeout)
        except NoSuchKey:
            if default is MISSING:
                raise
            return default

    def get_async(self, key: str, *, at: AtLike = None, namespace: str | None = None) -> Future:
        """As ``get``, without waiting."""
        namespace, root = where(at, namespace)
        newest = root is None

        def decode(message: Message) -> Any:
            got = _decode_got(message)
            if newest:
                self._session.saw(namespace, got.version)
            return self._value(got)

        return self._get(Get(key, namespace, root, self._at_least(namespace, root)), decode)

    def get_object(self, key: str, *, follow: bool = False, at: AtLike = None, namespace: str | None = None) -> Object:
        """What stands at ``key``: a Val, ValRef, Dir or Link, without loading a long value."""
        namespace, root = where(at, namespace)
        ask = Get(key, namespace, root, self._at_least(namespace, root), follow, load=False)
        got = self._get(ask, _decode_got).get()
        if root is None:
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
        if recursive and at is None:
            at = self.snapshot(namespace or PRIMARY)
        base = split_key(key)
        for name, found in self._pages(key, prefix, at, namespace):
            entry = Entry(SEPARATOR.join([*base, name]), name, found, self)
            yield entry
            if recursive and entry.is_directory:
                yield from self.entries(entry.key, recursive=True, at=at, namespace=namespace)

    def value_of(self, found: Val | ValRef) -> Any:
        """The Python value of a stored object; loads the blobs of a long one."""
        return decode_value(found.type, self.bytes_of(found))

    def bytes_of(self, found: Val | ValRef) -> bytes | bytearray:
        """The bytes of a stored object, verified against its digests."""
        if isinstance(found, Val):
            return found.data
        if len(found.refs) == 1:
            return next(self._handle.content.load_all(found.refs))
        data = bytearray()
        for blob in self._handle.content.load_all(found.refs):
            data += blob
        if len(data) != found.size:
            raise DigestMismatch(
                f"a value of {found.size:,} bytes has blobs of {len(data):,} bytes: it was stored damaged"
            )
        return data

    def _get(self, get: Get, decode: Callable[[Message], Any]) -> Future:
        return self._handle.send("kvs.get", encode("kvs.get", get), ANY, decode)

    def _value(self, got: Got) -> Any:
        found = got.object
        if isinstance(found, Val):
            return decode_value(found.type, found.data)
        assert isinstance(found, ValRef), "the broker answers a directory with IsADirectory and follows links"
        if got.data is None or len(found.refs) != 1:
            return self.value_of(found)
        return decode_value(found.type, self._handle.content.verified(found.refs[0], got.data))

    def _pages(self, key: str, prefix: str, at: AtLike, namespace: str | None) -> Iterator[tuple[str, Object]]:
        """Entries of a directory, page by page; the first page fixes the root that all are read from."""
        namespace, root = where(at, namespace)
        after = ""
        while True:
            ask = List(key, namespace, root, self._at_least(namespace, root), prefix, after, PAGE_ENTRIES)
            page = self._handle.send("kvs.list", encode("kvs.list", ask), ANY, _decode_listed).get()
            if root is None:
                self._session.saw(namespace, page.version)
            yield from page.entries
            if not page.more:
                return
            after, root = page.entries[-1][0], page.root
