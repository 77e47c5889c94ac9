"""What all parts of ``h.kvs`` share: the handle, its session, and versions.

``Kvs`` (``kvs``) is put together from parts, one for each concern; each is a class over ``Base``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxmpi.blobref import digest_function
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.reader import Reader
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.kvs.wire import PRIMARY, GetRoot, RootInfo
from fluxmpi.message import ANY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle

AtLike = Snapshot | str | int | None
"""Where to read: None is the newest that the broker knows; a Snapshot, its text, a version, or a root's blobref."""

_decode_root = decoder(RootInfo)


class Base:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._session = handle.session
        self._reader = Reader(handle.session, digest_function(handle.hello.algorithm), handle.page())

    def getroot(
        self, *, fresh: bool = False, at: int | None = None, namespace: str = PRIMARY, timeout: float | None = None
    ) -> Snapshot:
        """The newest version that this node's broker knows, or with ``fresh`` rank 0; or version ``at``."""
        if not fresh and at is None:
            shown = self._shown(namespace)
            if shown is not None:
                return Snapshot.of(shown)
        return self._root(GetRoot(namespace, self._session.at_least(namespace), fresh, at), timeout)

    def snapshot(self, namespace: str = PRIMARY) -> Snapshot:
        """What is there now, to read again and again with ``at=``, here or in any process that is given its text."""
        return self.getroot(namespace=namespace)

    def version(self, namespace: str = PRIMARY) -> int:
        return self.getroot(namespace=namespace).version

    def wait_version(self, version: int, *, namespace: str = PRIMARY, timeout: float | None = None) -> Snapshot:
        """Wait until this node's broker has ``version`` or a later one; this handle then sees what led to it."""
        shown = self._shown(namespace)
        if shown is not None and shown.version >= version:
            return Snapshot.of(shown)
        return self._root(GetRoot(namespace, max(version, self._session.at_least(namespace))), timeout)

    def moved(self) -> None:
        """The handle talks to another broker now."""
        self._reader.page = self._handle.page()
        self.rewatch()

    def rewatch(self) -> None:
        """Let the open watches go on, over the connection that the handle has now."""

    def _shown(self, namespace: str) -> RootInfo | None:
        """The newest root, if the broker's page shows it; else the broker must be asked."""
        self._handle.look()
        return self._reader.root(namespace)

    def _at_least(self, namespace: str, at: object) -> int:
        return self._session.at_least(namespace) if at is None else 0

    def _root(self, get: GetRoot, timeout: float | None) -> Snapshot:
        info = self._handle.send("kvs.getroot", encode("kvs.getroot", get), ANY, _decode_root).get(timeout)
        self._session.saw(get.namespace, info.version)
        return Snapshot.of(info)
