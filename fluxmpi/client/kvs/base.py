"""What every part of ``h.kvs`` shares: the channel, the namespace, the cached reader; and versions and snapshots.

``Kvs`` (``kvs.py``) is put together from parts; each part is a class over ``Base``.
"""

from __future__ import annotations

from datetime import datetime

from fluxmpi.blobref import Ref
from fluxmpi.client.cached_reader import CachedReader
from fluxmpi.client.channel import Channel
from fluxmpi.client.future import Future
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import AtLike, Moment, Named, Snapshot, moment, parse_at
from fluxmpi.errors import InvalidRequest, RequestTimeout
from fluxmpi.kvs.wire import PRIMARY, At, Cancel, GetRoot, RootInfo
from fluxmpi.message import ANY

VERSIONS_MAX = 1000
"""Roots of versions read by number that a client caches."""

_decode_root = decoder(RootInfo)


class Base:
    """The shared state of one namespace, and its versions."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._session = channel.session
        self._namespace = PRIMARY
        reader = CachedReader(channel.session, channel.digest, channel.root_page(), channel.limits.cached_bytes_max)
        self._reader = reader
        self._refs: dict[tuple[str, int], Ref] = {}

        def map_root_page(channel: Channel) -> None:
            reader.page = channel.root_page()

        channel.on_reconnect.append(map_root_page)

    def drop_cache(self) -> None:
        """Drop the nodes and values that this client has cached; later reads request them again.

        Example:
            >>> h.kvs.drop_cache()
            >>> h.kvs.cache_statistics()["items"]
            0
        """
        self._reader.cache.clear()

    def cache_statistics(self) -> dict[str, int]:
        """Return the numbers of the client's cache: items and their bytes, the bound of these, evicted items."""
        return self._reader.statistics()

    @property
    def name(self) -> str:
        """The namespace's name."""
        return self._namespace

    def version(self, *, fresh: bool = False, timeout: float | None = None) -> int:
        """Return the number of the newest version; it counts the namespace's versions up from 0.

        Args:
            fresh: ask rank 0; otherwise the newest version that this node's broker has, which costs no request.
            timeout: seconds to wait; None waits without a limit.

        Raises:
            NoSuchNamespace: the namespace does not exist.
            RequestTimeout: no answer within ``timeout``.

        Example:
            >>> before = h.kvs.version()
            >>> h.kvs.put("doc.x", 1).version > before
            True
        """
        return self.snapshot(fresh=fresh, timeout=timeout).version

    def snapshot(
        self,
        at: AtLike = None,
        *,
        time: float | str | datetime | None = None,
        fresh: bool = False,
        timeout: float | None = None,
    ) -> Snapshot:
        """Return a snapshot of the namespace, to read with ``at=``, here or in any process that is given its text.

        Args:
            at: the state to name: a Snapshot or its text, a version, a root's blobref, or a time as a datetime or a
                text (``-5min``, ``2026-01-31T12:00``); None is the newest. A Snapshot, or its text, names its own
                namespace. No request is sent for a Snapshot or a blobref, so it is not checked whether that state is
                kept.
            time: the newest state at a time by rank 0's clock: seconds since 1970, a datetime, or a text as for ``at``.
            fresh: ask rank 0 for the newest state; otherwise the newest that this node's broker has.
            timeout: seconds to wait; None waits without a limit.

        Raises:
            VersionUnknown: a version or time that has not been reached, or a snapshot of another instance.
                SnapshotCollected: the version is not kept any more, or the time is before the oldest version that is
                kept. NoSuchNamespace: the namespace does not exist. InvalidRequest: ``at`` or ``time`` cannot be read,
                or more than one of ``at``, ``time`` and ``fresh`` is given. RequestTimeout: no answer within
                ``timeout``.

        Example:
            >>> now = h.kvs.snapshot()
            >>> text = str(now)                         # primary@12:9f86d081884c7d65
            >>> h.kvs.snapshot(text) == h.kvs.snapshot(now.version)
            True
        """
        if (at is not None) + (time is not None) + fresh > 1:
            raise InvalidRequest("give one of at, time and fresh: each says which version is meant")
        if time is not None:
            return self._at_moment(moment(time), self._namespace, timeout)
        if at is not None:
            return self._snapshot(at, timeout=timeout)
        if not fresh:
            shown = self._shown()
            if shown is not None:
                return Snapshot.of(shown)
        namespace = self._namespace
        return self._root(GetRoot(namespace, self._session.at_least(namespace), fresh), timeout)

    def wait_version(self, version: int, *, timeout: float | None = None) -> Snapshot:
        """Wait until this node's broker has ``version`` or a later one. This handle reads nothing older from then on.

        Args:
            version: the number of a version, from any process of the instance.
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The newest version that the broker has.

        Raises:
            RequestTimeout: the version was not reached within ``timeout``.

        Example:
            >>> commit = h.kvs.put("doc.x", 2)
            >>> there.kvs.wait_version(commit.version).version >= commit.version
            True
            >>> there.kvs.get("doc.x")
            2
        """
        shown = self._shown()
        if shown is not None and shown.version >= version:
            return Snapshot.of(shown)
        namespace = self._namespace
        future = self._ask_root(GetRoot(namespace, max(version, self._session.at_least(namespace))))
        try:
            return self._saw(namespace, future.get(timeout))
        except RequestTimeout:
            self._channel.post("kvs.cancel", Cancel(future.tag))
            future.cancel()
            raise

    # -------------------------------------------------------------------------------------------------- where to read

    def _snapshot(self, at: AtLike, default: str | None = None, timeout: float | None = None) -> Snapshot:
        """Return the snapshot that ``at``, not None, names; ``default`` is the namespace of a version or time.

        The root of a version is asked for once, and cached.
        """
        if type(at) is Snapshot:
            return at
        namespace, found = parse_at(at, default or self._namespace)
        if isinstance(found, Moment):
            return self._at_moment(found, namespace, timeout)
        if isinstance(found, Named):
            ref = self._ref_of(namespace, found.version, timeout)
            found.check(ref)
            return Snapshot(namespace, found.version, ref)
        if isinstance(found, int):
            return Snapshot(namespace, found, self._ref_of(namespace, found, timeout))
        assert isinstance(found, Snapshot)
        return found

    def _at(self, at: AtLike, default: str | None = None, timeout: float | None = None) -> tuple[str, At]:
        """Return the namespace, and the version or root to read, in the form that requests carry."""
        if at is None:
            return default or self._namespace, None
        namespace, found = parse_at(at, default or self._namespace)
        if isinstance(found, int):
            return namespace, found
        return namespace, found.ref if isinstance(found, Snapshot) else self._snapshot(at, default, timeout).ref

    def _at_moment(self, when: Moment, namespace: str, timeout: float | None) -> Snapshot:
        request = GetRoot(namespace, self._session.at_least(namespace), time=when.time, ago_s=when.ago_s)
        return self._root(request, timeout)

    def _ref_of(self, namespace: str, version: int, timeout: float | None) -> Ref:
        ref = self._refs.get((namespace, version))
        if ref is None:
            ref = self._root(GetRoot(namespace, self._session.at_least(namespace), at=version), timeout).ref
            if len(self._refs) >= VERSIONS_MAX:
                del self._refs[next(iter(self._refs))]
            self._refs[namespace, version] = ref
        return ref

    def _shown(self) -> RootInfo | None:
        """Return the newest root, if the broker's root page shows it; otherwise the broker must be asked."""
        self._channel.check_alive()
        return self._reader.root(self._namespace)

    def _at_least(self, namespace: str, at: object) -> int:
        """Return the version that the broker must have: the session's, unless the request names what to read."""
        return self._session.at_least(namespace) if at is None else 0

    def _root(self, request: GetRoot, timeout: float | None) -> Snapshot:
        return self._saw(request.namespace, self._ask_root(request).get(timeout))

    def _ask_root(self, request: GetRoot) -> Future[RootInfo]:
        return self._channel.send("kvs.getroot", encode("kvs.getroot", request), ANY, _decode_root)

    def _saw(self, namespace: str, info: RootInfo) -> Snapshot:
        self._session.saw(namespace, info.version)
        return Snapshot.of(info)
