"""Versions over time, in ``h.kvs``: history, log, diff, retention, leases, namespaces, collection of garbage.

What is kept of a namespace, its retention says; a lease keeps one version beyond that, for as long as it is held. What is not
kept raises SnapshotCollected wherever it is read, and never reads as something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fluxmpi.client.base import AtLike, Base
from fluxmpi.client.mapping import of_a_version
from fluxmpi.client.snapshot import UNKNOWN, Snapshot, another
from fluxmpi.errors import InvalidRequest, LeaseExpired
from fluxmpi.kvs.objects import ROOT_KEY, Object, Val, ValRef
from fluxmpi.kvs.wire import (
    PRIMARY,
    Diffed,
    DiffRequest,
    GcStatus,
    HistoryRequest,
    KeyVersion,
    Lease,
    Leased,
    Log,
    LogEntry,
    NamespaceInfo,
    NewNamespace,
    OldNamespace,
    Release,
    Retention,
    RootInfo,
)

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs import Kvs

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Version:
    """One line of the log. ``keys``: what it changed, None if that is not remembered; ``commits``: how many it merged."""

    snapshot: Snapshot
    keys: list[str] | None
    commits: int

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def time(self) -> float:
        return self.snapshot.time


@dataclass(frozen=True, slots=True)
class Former:
    """What a key became in one version. ``object`` None: it was removed. ``existed``: there was something before."""

    snapshot: Snapshot
    object: Object | None
    existed: bool
    _kvs: Kvs

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def deleted(self) -> bool:
        return self.object is None

    @property
    def value(self) -> Any:
        """The value; loaded now if it is long. None for what has none: a directory, a link, or nothing."""
        return _value(self._kvs, self.object)


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that two versions hold differently: ``old`` and ``new``, None where it is not."""

    key: str
    old: Object | None
    new: Object | None
    _kvs: Kvs

    @property
    def before(self) -> Any:
        return _value(self._kvs, self.old)

    @property
    def after(self) -> Any:
        return _value(self._kvs, self.new)


def _value(kvs: Kvs, found: Object | None) -> Any:
    return kvs.value_of(found) if isinstance(found, Val | ValRef) else None


class HeldLease:
    """A lease: use it in a ``with`` block, or ``release`` it. It ends with the handle's connection in any case.

    ``snapshot`` is what it keeps; ``expires`` the end of its time, by rank 0's clock, or None.
    """

    def __init__(self, handle: Handle, leased: Leased) -> None:
        self._handle = handle
        self.id = leased.id
        self.snapshot = Snapshot.of(leased.root)
        self.expires = leased.expires

    def renew(self) -> None:
        """Its time begins again. Raises LeaseExpired when it has ended."""
        self.expires = self._handle.rpc("roots.renew", Release(self.id), reply=Leased).expires

    def release(self) -> None:
        """Raises LeaseExpired when it has ended before: what was read meanwhile was what it was, but more cannot be."""
        self._handle.rpc("roots.release", Release(self.id))

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseExpired:
            if kind is None:
                raise


class Namespaces:
    """``h.kvs.namespaces``."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def create(self, name: str, *, at: AtLike = None, owner: int | None = None) -> Snapshot:
        """A new namespace: empty, or with a root that is kept (``at``). Raises NamespaceExists.

        Its versions go on from where one of this name ended before.
        """
        ref = None
        if at is not None:
            ref = self._handle.kvs.snapshot(at=at).ref
        with of_a_version():
            root = self._handle.rpc(
                "roots.create", NewNamespace(name, -1 if owner is None else owner, ref), reply=RootInfo
            )
        self._handle.session.saw(name, root.version)
        return Snapshot.of(root)

    def remove(self, name: str) -> None:
        """Remove it with all that is in it; who watches it or waits for it gets NoSuchNamespace."""
        self._handle.rpc("roots.remove", OldNamespace(name))

    def list(self) -> list[NamespaceInfo]:
        """All of them, in order of name."""
        return self._handle.rpc("roots.list", reply=list[NamespaceInfo])


class Versions(Base):
    """The part of ``h.kvs`` that these are."""

    @property
    def namespaces(self) -> Namespaces:
        return Namespaces(self._handle)

    def history(
        self, key: str, *, at: AtLike = None, namespace: str | None = None, before: int | None = None
    ) -> Iterator[Former]:
        """Each version kept that changed ``key``, newest first; links are followed as they were in each.

        ``at``: as it was then, so of the versions up to that one; ``before``: below that number.
        """
        if at is None:
            namespace = namespace or PRIMARY
        else:
            last = self.snapshot(namespace, at=at)
            if last.version == UNKNOWN:
                raise InvalidRequest(
                    f"'{at}' names no version, as a history needs: give a version, a snapshot or a time"
                )
            namespace = last.namespace
            before = last.version + 1 if before is None else min(before, last.version + 1)
        while True:
            page = self._handle.rpc(
                "roots.history", HistoryRequest(namespace, key, before, PAGE), reply=list[KeyVersion]
            )
            for past in page:
                snapshot = Snapshot(namespace, past.version, past.ref, past.time)
                yield Former(snapshot, past.object, past.existed, self)  # type: ignore[arg-type]
            if len(page) < PAGE:
                return
            before = page[-1].version

    def log(self, *, namespace: str = PRIMARY, before: int | None = None) -> Iterator[Version]:
        """The versions that are kept, newest first."""
        while True:
            page = self._handle.rpc("roots.log", Log(namespace, before, PAGE), reply=list[LogEntry])
            for entry in page:
                yield Version(Snapshot(namespace, entry.version, entry.ref, entry.time), entry.keys, entry.commits)
            if not page:
                return
            before = page[-1].version

    def diff(
        self, a: AtLike, b: AtLike = None, key: str = ROOT_KEY, *, namespace: str | None = None
    ) -> Iterator[Difference]:
        """What changed below ``key`` from ``a`` to ``b`` (None: the newest), in order of key, at a cost that grows with that.

        It is asked for page by page: SnapshotCollected when one of the two is not kept any more in between.
        """
        namespace, old = self._at(a, namespace)
        _, new = self._at(b, namespace)
        ask = DiffRequest(namespace, old, new, key, PAGE, self._at_least(namespace, new))
        while True:
            page = self._handle.rpc("kvs.diff", ask, reply=Diffed)
            for change in page.changes:
                yield Difference(change.key, change.old, change.object, self)  # type: ignore[arg-type]
            if not page.more:
                return
            ask.after, ask.between = page.changes[-1].key, page.between

    def retention(self, *, count: int | None = None, age_s: float | None = None, namespace: str = PRIMARY) -> Retention:
        """What is kept of the versions, ``count`` and ``age_s``, after setting what is given; ``age_s`` 0 is no bound."""
        return self._handle.rpc("roots.retention", Retention(namespace, count, age_s), reply=Retention)

    def lease(self, at: AtLike = None, *, ttl: float | None = None, namespace: str | None = None) -> HeldLease:
        """Keep a version (None: the newest) until the lease is released, ``ttl`` seconds are over, or this handle closes.

        Raises SnapshotCollected when it is not kept any more.
        """
        if at is None:
            wanted = Snapshot(namespace or PRIMARY, UNKNOWN, b"")
        else:
            wanted = self.snapshot(namespace, at=at)
        version = None if at is None else wanted.ref if wanted.version == UNKNOWN else wanted.version
        leased = self._handle.rpc("roots.lease", Lease(wanted.namespace, version, ttl), reply=Leased)
        lease = HeldLease(self._handle, leased)
        if at is not None and leased.root.ref != wanted.ref:
            lease.release()
            raise another(wanted.namespace, wanted.version, wanted.ref.hex(), leased.root.ref)
        return lease

    def gc(self, *, run: bool = True) -> GcStatus:
        """Collect garbage now, wait for it, and tell how much is live, kept by history, and was garbage; or only tell."""
        return self._handle.rpc("gc.run" if run else "gc.status", reply=GcStatus)
