"""What all parts of ``h.kvs`` share: the handle, its session, and versions.

``Kvs`` (``kvs``) is put together from parts, one for each concern; each is a class over ``Base``.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.reader import Reader
from fluxmpi.client.snapshot import UNKNOWN, AtLike, Moment, Named, Snapshot, moment, version_in, where
from fluxmpi.errors import InvalidRequest, RequestTimeout
from fluxmpi.kvs.wire import PRIMARY, At, Cancel, GetRoot, RootInfo
from fluxmpi.message import ANY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future, Handle

__all__ = ["AtLike", "Base"]

VERSIONS_MAX = 1000
"""Roots of versions read by their number that a handle remembers."""

_decode_root = decoder(RootInfo)


class Base:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._session = handle.session
        self._reader = Reader(handle.session, digest_function(handle.hello.algorithm), handle.page())
        self._versions: dict[tuple[str, int], Ref] = {}

    def getroot(
        self, *, fresh: bool = False, at: int | None = None, namespace: str = PRIMARY, timeout: float | None = None
    ) -> Snapshot:
        """The newest version that this node's broker knows, or with ``fresh`` rank 0; or version ``at``."""
        if not fresh and at is None:
            shown = self._shown(namespace)
            if shown is not None:
                return Snapshot.of(shown)
        return self._root(GetRoot(namespace, self._session.at_least(namespace), fresh, at), timeout)

    def snapshot(
        self,
        namespace: str | None = None,
        *,
        at: AtLike = None,
        time: float | str | datetime | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """What is there now, to read again and again with ``at=``, here or in any process that is given its text.

        ``at``: what was there then. ``time``: what was the newest then, by rank 0's clock, as seconds since 1970, a datetime,
        or a text (``-5min``, ``2026-01-31T12:00``); VersionUnknown for a time to come, SnapshotCollected for one before the
        oldest version that is kept. Of a version that is given as a Snapshot or a blobref nobody asks here whether it is kept.
        """
        if time is not None:
            if at is not None:
                raise InvalidRequest("give either at or time: each says what version is meant")
            return self._at_moment(moment(time), namespace or PRIMARY, timeout)
        if at is None:
            return self.getroot(namespace=namespace or PRIMARY, timeout=timeout)
        return self._snapshot(at, namespace, timeout)

    def version(self, namespace: str = PRIMARY) -> int:
        return self.getroot(namespace=namespace).version

    def wait_version(self, version: int, *, namespace: str = PRIMARY, timeout: float | None = None) -> Snapshot:
        """Wait until this node's broker has ``version`` or a later one; this handle then sees what led to it."""
        shown = self._shown(namespace)
        if shown is not None and shown.version >= version:
            return Snapshot.of(shown)
        future = self._ask_root(GetRoot(namespace, max(version, self._session.at_least(namespace))))
        try:
            return self._saw(namespace, future.get(timeout))
        except RequestTimeout:
            self._handle.post("kvs.cancel", Cancel(future.tag))
            future.cancel()
            raise

    def _snapshot(self, at: AtLike, namespace: str | None, timeout: float | None = None) -> Snapshot:
        """What ``at`` means, not None, in ``namespace`` or its own. What root a version has, the broker is asked once."""
        namespace, found = where(at, namespace)
        if isinstance(found, Moment):
            return self._at_moment(found, namespace, timeout)
        if isinstance(found, Named):
            ref = self._ref_of(found.namespace, found.version, timeout)
            found.check(ref)
            return Snapshot(namespace, found.version if namespace == found.namespace else UNKNOWN, ref)
        if isinstance(found, int):
            return Snapshot(namespace, found, self._ref_of(namespace, found, timeout))
        assert found is not None
        if isinstance(at, Snapshot) and at.namespace == namespace:
            return at
        return Snapshot(namespace, version_in(at, namespace), found)

    def _at(self, at: AtLike, namespace: str | None, timeout: float | None = None) -> tuple[str, At]:
        """The namespace and the version or root to read, as brokers are told it."""
        namespace, found = where(at, namespace)
        if isinstance(found, Named | Moment):
            return namespace, self._snapshot(at, namespace, timeout).ref
        return namespace, found

    def _at_moment(self, when: Moment, namespace: str, timeout: float | None) -> Snapshot:
        ask = GetRoot(namespace, self._session.at_least(namespace), time=when.time, ago_s=when.ago_s)
        return self._root(ask, timeout)

    def _ref_of(self, namespace: str, version: int, timeout: float | None) -> Ref:
        ref = self._versions.get((namespace, version))
        if ref is None:
            ref = self.getroot(at=version, namespace=namespace, timeout=timeout).ref
            if len(self._versions) >= VERSIONS_MAX:
                del self._versions[next(iter(self._versions))]
            self._versions[namespace, version] = ref
        return ref

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
        return self._saw(get.namespace, self._ask_root(get).get(timeout))

    def _ask_root(self, get: GetRoot) -> Future:
        return self._handle.send("kvs.getroot", encode("kvs.getroot", get), ANY, _decode_root)

    def _saw(self, namespace: str, info: RootInfo) -> Snapshot:
        self._session.saw(namespace, info.version)
        return Snapshot.of(info)
