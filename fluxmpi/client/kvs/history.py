"""Versions over time: history, log, diff, retention, leases, garbage collection.

A namespace's retention says which versions are kept; a lease keeps one version beyond that, for as long as it is held.
A version that is not kept raises SnapshotCollected wherever it is read; it never reads as another state. Only single keys
may have past values beyond that (``retention``, ``values``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from fluxmpi.client.channel import Channel
from fluxmpi.client.kvs.base import Base
from fluxmpi.client.kvs.stored_value import value_of
from fluxmpi.client.snapshot import UNKNOWN, AtLike, Snapshot, other_root
from fluxmpi.errors import InvalidRequest, LeaseExpired
from fluxmpi.kvs.objects import ROOT_KEY, Object
from fluxmpi.kvs.wire import (
    EVERY_KEY,
    Diffed,
    DiffRequest,
    GcStatus,
    HistoryRequest,
    KeyVersion,
    Lease,
    Leased,
    Log,
    LogEntry,
    Release,
    Retention,
    ValueRule,
)

PAGE = 1000


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of the log.

    Attributes:
        snapshot: the version as a snapshot.
        keys: the keys that it changed; None if they are not remembered.
        commits: how many commits it merged.
    """

    snapshot: Snapshot
    keys: list[str] | None
    commits: int

    @property
    def version(self) -> int:
        """The version's number."""
        return self.snapshot.version

    @property
    def time(self) -> float:
        """When it was committed, by rank 0's clock, in seconds since 1970."""
        return self.snapshot.time


@dataclass(frozen=True, slots=True)
class PastValue:
    """What a key became in one version.

    Attributes:
        snapshot: the version as a snapshot.
        object: the stored object; None if the key was removed.
        existed: whether the key existed in the version before.
    """

    snapshot: Snapshot
    object: Object | None
    existed: bool
    _channel: Channel

    @property
    def version(self) -> int:
        """The version's number."""
        return self.snapshot.version

    @property
    def time(self) -> float:
        """When it was committed, by rank 0's clock, in seconds since 1970."""
        return self.snapshot.time

    @property
    def deleted(self) -> bool:
        """True if the version removed the key."""
        return self.object is None

    @property
    def value(self) -> Any:
        """The value; a long one is loaded now. None for a directory, a link, or a removed key."""
        return value_of(self._channel, self.object)


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that differs between two versions.

    Attributes:
        key: the key.
        old: its object in the first version; None if it does not exist there.
        new: its object in the second version; None if it does not exist there.
    """

    key: str
    old: Object | None
    new: Object | None
    _channel: Channel

    @property
    def before(self) -> Any:
        """The value in the first version; a long one is loaded now. None for a directory, a link, or no key."""
        return value_of(self._channel, self.old)

    @property
    def after(self) -> Any:
        """The value in the second version; a long one is loaded now. None for a directory, a link, or no key."""
        return value_of(self._channel, self.new)


class HeldLease:
    """A lease: it keeps one version readable. Use it in a ``with`` block, or ``release`` it.

    It also ends when the handle's connection does.

    Attributes:
        id: the lease's number in the instance.
        snapshot: the version that it keeps.
        expires: when it ends, by rank 0's clock, in seconds since 1970; None if it has no limit.
    """

    def __init__(self, channel: Channel, leased: Leased) -> None:
        self._channel = channel
        self.id = leased.id
        self.snapshot = Snapshot.of(leased.root)
        self.expires = leased.expires

    def renew(self) -> None:
        """Start its time limit again.

        Raises:
            LeaseExpired: it has ended before.
        """
        self.expires = self._channel.rpc("roots.renew", Release(self.id), reply=Leased).expires

    def release(self) -> None:
        """End the lease.

        Raises:
            LeaseExpired: it has ended before. What was read under it is right, but later reads may fail.
        """
        self._channel.rpc("roots.release", Release(self.id))

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


class Versions(Base):
    """The methods of ``h.kvs`` for versions over time."""

    def history(self, key: str, *, at: AtLike = None, before: int | None = None) -> Iterator[PastValue]:
        """Iterate over the kept versions that changed a key, newest first; then over the past values that a rule kept.

        Args:
            key: the key; links are followed as they were in each kept version.
            at: only versions up to this state, see ``snapshot``; None is the newest.
            before: only versions below this number.

        Raises:
            InvalidRequest: ``at`` is a blobref, which names no version.
            SnapshotCollected: ``at`` is not kept any more.

        Example:
            >>> for loss in (0.9, 0.5, 0.1):
            ...     _ = h.kvs.put("doc.loss", loss)
            >>> [past.value for past in h.kvs.history("doc.loss")][:3]
            [0.1, 0.5, 0.9]
        """
        namespace = self._namespace
        if at is not None:
            last = self.snapshot(at)
            if last.version == UNKNOWN:
                raise InvalidRequest(
                    f"'{at}' names no version, as a history needs: give a version, a snapshot or a time"
                )
            namespace = last.namespace
            before = last.version + 1 if before is None else min(before, last.version + 1)
        while True:
            page = self._channel.rpc(
                "roots.history", HistoryRequest(namespace, key, before, PAGE), reply=list[KeyVersion]
            )
            for past in page:
                snapshot = Snapshot(namespace, past.version, past.ref, past.time)
                yield PastValue(snapshot, past.object, past.existed, self._channel)
            if len(page) < PAGE:
                return
            before = page[-1].version

    def log(self, *, before: int | None = None) -> Iterator[VersionInfo]:
        """Iterate over the kept versions, newest first.

        Args:
            before: only versions below this number.

        Example:
            >>> _ = h.kvs.commit({"doc.done": True})
            >>> next(h.kvs.log()).keys
            ['doc.done']
        """
        namespace = self._namespace
        while True:
            page = self._channel.rpc("roots.log", Log(namespace, before, PAGE), reply=list[LogEntry])
            for entry in page:
                yield VersionInfo(Snapshot(namespace, entry.version, entry.ref, entry.time), entry.keys, entry.commits)
            if not page:
                return
            before = page[-1].version

    def diff(self, a: AtLike, b: AtLike = None, key: str = ROOT_KEY) -> Iterator[Difference]:
        """Iterate over the keys that differ between two states, in order. The cost grows with the differences only.

        Args:
            a: the first state, see ``snapshot``; None is the newest.
            b: the second state; None is the newest.
            key: only this directory or key.

        Raises:
            SnapshotCollected: one of the two is not kept any more; also during the iteration, which is done page by
                page. VersionUnknown: one of the two has not been reached, or is of another instance.

        Example:
            >>> start = h.kvs.put("doc.loss", 1.0)
            >>> end = h.kvs.put("doc.loss", 0.1)
            >>> [(each.key, each.before, each.after) for each in h.kvs.diff(start, end)]
            [('doc.loss', 1.0, 0.1)]
        """
        namespace, old = self._at(a)
        _, new = self._at(b, namespace)
        request = DiffRequest(namespace, old, new, key, PAGE, self._at_least(namespace, new))
        while True:
            page = self._channel.rpc("kvs.diff", request, reply=Diffed)
            for change in page.changes:
                yield Difference(change.key, change.old, change.object, self._channel)
            if not page.more:
                return
            request.after, request.between = page.changes[-1].key, page.between

    def retention(
        self,
        *,
        count: int | None = None,
        age_s: float | None = None,
        bytes: int | None = None,
        values: int | None = None,
        key: str = EVERY_KEY,
        full: Literal["end", "wait"] | None = None,
    ) -> Retention:
        """Set how many versions of the namespace are kept, for how long, and in how much memory; and values of single keys.

        The oldest versions go first; the newest one is always kept.

        A value that a rule for its key keeps outlives the version that had it: ``history`` and ``get(at=…)`` of that
        key go on to return it, with its version and time. However often one key is written, it pushes out no value of
        another one. Beside the kept versions there are up to ``values`` more of each key, together in at most half of
        ``bytes``; beyond that, the key with the most bytes loses its oldest value first.

        Args:
            count: keep this many of the last versions; None changes nothing.
            age_s: keep versions that were replaced at most so many seconds ago; 0 removes that bound, None changes
                nothing.
            bytes: keep older versions while the blobs that only they hold have at most so many bytes; None changes
                nothing. Garbage collections enforce it; until the next one, history has what was stored meanwhile, too.
            values: keep this many of the last values of each key that ``key`` matches; 0 removes the rule for ``key``,
                None changes nothing.
            key: with ``values``: a key, ``dir.`` for every key below a directory, or a pattern (see ``watch``); by
                default every key. The rule applies to what is stored at the key itself, not behind a link.
            full: what happens when watches lag so far that rank 0 would hold over 256 MiB of versions for them: ``end``,
                the default, gives up the oldest versions, and the watches that need them end; ``wait`` lets commits to
                the namespace wait, for up to 30 s at a time, except removals. None changes nothing.

        Returns:
            The retention from now on: ``count``, ``age_s``, ``bytes``, and ``values``, the rules with ``key`` and
            ``values`` each.

        Raises:
            InvalidRequest: a number is out of range, or the pattern is not one.
            Overloaded: the namespace has too many rules.

        Example:
            >>> h.kvs.retention(count=10_000, bytes=64 << 20).count
            10000
            >>> h.kvs.retention(values=5, key="doc.job.*.state").values
            [ValueRule(key='doc.job.*.state', values=5)]
            >>> h.kvs.retention(values=0, key="doc.job.*.state").values
            []
        """
        rules = [] if values is None else [ValueRule(key, values)]
        request = Retention(self._namespace, count, age_s, bytes, rules, full)
        found: Retention = self._channel.rpc("roots.retention", request, reply=Retention)
        return found

    def lease(self, at: AtLike = None, *, ttl_s: float | None = None) -> HeldLease:
        """Keep a version readable, beyond its retention.

        Args:
            at: the version, see ``snapshot``; None is the newest.
            ttl_s: seconds after which the lease ends by itself; None: when it is released, or when this handle closes.

        Raises:
            SnapshotCollected: the version is not kept any more.
            VersionUnknown: the version has not been reached, or is of another instance.

        Example:
            >>> with h.kvs.lease() as lease:
            ...     _ = h.kvs.put("doc.x", 5)
            ...     h.kvs.version() > lease.snapshot.version
            True
        """
        if at is None:
            wanted = Snapshot(self._namespace, UNKNOWN, b"")
        else:
            wanted = self.snapshot(at)
        version = None if at is None else wanted.ref if wanted.version == UNKNOWN else wanted.version
        leased = self._channel.rpc("roots.lease", Lease(wanted.namespace, version, ttl_s), reply=Leased)
        lease = HeldLease(self._channel, leased)
        if at is not None and leased.root.ref != wanted.ref:
            lease.release()
            raise other_root(wanted.namespace, wanted.version, wanted.ref.hex(), leased.root.ref)
        return lease

    def gc(self, *, run: bool = True) -> GcStatus:
        """Collect the instance's garbage now, and wait for the end of the collection.

        The instance collects by itself; this is for measurements.

        Args:
            run: False only reports the last collection.

        Returns:
            How many blobs and bytes are live, are kept by history only, and were garbage.

        Example:
            >>> h.kvs.gc().live_bytes > 0
            True
        """
        found: GcStatus = self._channel.rpc("gc.run" if run else "gc.status", reply=GcStatus)
        return found
