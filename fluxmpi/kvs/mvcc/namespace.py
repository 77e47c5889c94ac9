"""Namespaces at rank 0, each with its retained versions.

Retention keeps the newest versions, by count, by age, and by the bytes of blobs that only older versions reach, which
collections measure (``gc``). A lease keeps one version beyond that. A version that is not kept is *compacted*: it cannot
be read, and blobs that only it reached are garbage::

    version   1  2  3  4  5  6  7  8  9
                       ^     └─────────┘ retention
                       └ lease

Invariants: versions of a namespace count up by one, also when it is removed and created again, so that no client sees
them go back, and their times do not go back either; ``history`` has all versions from ``oldest`` to the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import (
    FluxmpiError,
    InvalidRequest,
    NamespaceExists,
    NoSuchNamespace,
    Overloaded,
    SnapshotCollected,
    VersionUnknown,
)
from fluxmpi.kvs.mvcc.key_index import KeyIndex
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX, MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.mvcc.value_history import ValueHistory
from fluxmpi.kvs.mvcc.watch_hold import WatchHold
from fluxmpi.kvs.objects import split_key
from fluxmpi.kvs.store.lookup import Lookup, no_other_namespace
from fluxmpi.kvs.store.node import Missing, NodeCache
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import PRIMARY, Retention, RootInfo, SavedNamespace, ValueRule, WatchNeed

RETENTION_COUNT = 10_000
"""Versions kept of a namespace by default: two seconds at 5,000 versions a second, so that a watcher or a broker may
lag by one second. A version takes 0.1 KiB, its keys, and about 2 KiB of nodes in a directory of 1,000 keys."""

RETENTION_COUNT_MAX = 100_000
NAME_BYTES_MAX = 128

RETENTION_FIELDS = {"count": "count", "age_s": "age_s", "bytes": "history_bytes_max", "full": "full"}
"""Fields of ``wire.Retention``, and the attributes of a namespace that have them."""

FULL_END, FULL_WAIT = "end", "wait"
"""What happens when watches need more than is held for them: see ``wire.Retention``."""

VERSION_BYTES = 100
"""Memory of a version's record beside its blobs and its keys: root, time, and an entry in two lists."""


class Namespace:
    """``root``: the newest version. ``oldest``: the oldest that retention keeps; ``first``: the first of this instance.

    ``held``: that one, or an older one that watches need: versions from there on can be read, but are in no history.

    ``count``, ``age_s``, ``history_bytes_max``: the retention, see ``wire.Retention``. ``owner``: a uid.
    """

    def __init__(
        self, root: RootInfo, owner: int = 0, count: int = RETENTION_COUNT, limits: MvccLimits = MVCC_LIMITS
    ) -> None:
        self.root = root
        self.owner = owner
        self.count = count
        self.age_s = 0.0
        self.history_bytes_max = HISTORY_BYTES_MAX
        self.full: str | None = None
        self.chosen: dict[str, None] = {}
        """Fields of its retention that a user has chosen: a checkpoint keeps them. Others are this instance's defaults."""
        self.history_bytes = 0
        """What only older versions held, as the last collection found."""
        self.first = self.oldest = self.held = root.version
        self.history = VersionLog(root.namespace, root.version)
        """It may have versions older than ``oldest``, until a turn has room to compact them."""
        self.history.append(root)
        self.key_index = KeyIndex(root.version, limits)
        self.values: ValueHistory | None = None
        """The past values of single keys, if there are rules for them."""
        self.hold: WatchHold | None = None
        """What watches need of versions, if any broker has watches in this namespace."""
        self._watched: dict[int, None] = {}
        """Versions that are leased for watches."""
        self._limits = limits
        self._leased: dict[int, tuple[RootInfo, int]] = {}
        """Version → its root and the number of leases on it."""
        self.on_advance: Callable[[], None] | None = None
        """Called after every new version: the oldest one's expiry may have changed."""

    def advance(self, root: RootInfo, keys: list[str] | None = None, commits: int = 1, referenced: int = 1) -> None:
        """Append the next version. ``keys``: what it wrote, links resolved, or None if that is not known.

        ``referenced``: bytes of the values that it put by reference, as in ``Batch``.
        After a MemoryError nothing has changed.
        """
        assert root.version == self.root.version + 1
        assert root.time >= self.root.time
        self.history.append(root, commits)
        try:
            self.key_index.append(keys)
        except MemoryError:
            self.history.pop()
            raise
        self.root = root
        if self.hold is not None and referenced:
            self.hold.advance(root.version, referenced)
        with suppress(MemoryError):  # the version exists; older ones can be compacted later
            self.compact(root.time)
            if self.on_advance is not None:
                self.on_advance()

    def clock(self, now: float) -> float:
        """Return the time of a version that is made now: never earlier than that of the newest one.

        It may be later than ``now`` in an instance that resumed from a checkpoint of a host whose clock was ahead. Then
        new versions have the time of the newest one, until the clock of this host has passed that.
        """
        return max(now, self.root.time)

    # ---------------------------------------------------------------------------------------------------- retention

    @property
    def retention(self) -> Retention:
        rules = [] if self.values is None else self.values.rules
        return Retention(self.root.namespace, self.count, self.age_s, self.history_bytes_max, rules, self.full)

    def drop_until(self, version: int) -> None:
        """Compact this version and all older ones: ``compact`` must be called until it returns False."""
        assert version < self.root.version, "the newest version is always kept"
        self.oldest = max(self.oldest, version + 1)
        if self.hold is not None:
            self.hold.give_up(version)

    def record_bytes(self, version: int) -> int:
        """Return the memory of a version's record: its root, time and changed keys."""
        return VERSION_BYTES + self.key_index.text_bytes(version)

    def retain(self, wanted: Retention) -> None:
        """Set the fields of the retention that are not None. ``compact`` and the next collection do the rest."""
        for name in RETENTION_FIELDS:
            value = getattr(wanted, name)
            if value is not None:
                self.chosen[name] = None
                setattr(self, RETENTION_FIELDS[name], value)
        if self.values is not None:
            self.values.bound(self._values_bytes_max)
        if self.hold is not None:
            self.hold.waits = self.full == FULL_WAIT

    def keep_values(self, rules: list[ValueRule], nodes: NodeCache) -> None:
        """Change rules for the past values of single keys. Raises InvalidRequest, InvalidKey, Overloaded."""
        values = self.values or ValueHistory(nodes, self._limits.values, self._values_bytes_max)
        for rule in rules:
            values.set_rule(rule, self.history[self.history.first])
        self.values = None if values.is_empty else values

    @property
    def _values_bytes_max(self) -> int:
        return self.history_bytes_max // 2

    @property
    def versions_bytes_max(self) -> int:
        """The bytes that older versions may have: what past values leave of the namespace's history."""
        return self.history_bytes_max - (0 if self.values is None else self.values.bytes)

    @property
    def needed_from(self) -> int:
        """The oldest version whose tree is needed: one that is kept, or whose past values are still to be recorded."""
        return self.held if self.values is None else self.history.first

    def saved(self) -> SavedNamespace:
        """Return what a checkpoint keeps of it."""
        root, chosen, retention = self.root, self.chosen, self.retention
        kept = Retention(
            root.namespace,
            **{name: getattr(retention, name) for name in RETENTION_FIELDS if name in chosen},
            values=retention.values,
        )
        return SavedNamespace(root.namespace, root.version, root.ref, root.time, self.owner, kept)

    def restore(self, saved: SavedNamespace, nodes: NodeCache) -> None:
        """Take over the retention of a checkpoint, but for what was chosen when this instance started."""
        if saved.retention is not None:
            fields = {name: getattr(saved.retention, name) for name in RETENTION_FIELDS if name not in self.chosen}
            self.retain(Retention(self.root.namespace, **fields))
            self.keep_values(saved.retention.values, nodes)

    def compact(self, now: float) -> bool:
        """Compact what retention does not keep. Return True if there is more to compact, in another turn."""
        oldest = max(self.oldest, self.root.version - self.count + 1)
        if self.age_s:
            # A version's age counts from the time of the next one: until then it was the newest.
            oldest = max(oldest, self.history.newest_at(now, oldest + 1, self.age_s))
        self.oldest = oldest
        self.held = oldest if self.hold is None else max(self.held, self.hold.oldest(oldest, now))
        count = min(self._limits.compactions_per_turn, self.held - self.history.first)
        if count and self.values is not None:
            count = self.values.record(self.history, self.key_index.keys, count)
        for _ in range(count):
            self.key_index.compact()
        self.history.compact(count)
        return self.compaction_due

    @property
    def compaction_due(self) -> bool:
        """There are versions to compact."""
        return self.history.first < self.held

    @property
    def oldest_expires(self) -> float | None:
        """The time at which the oldest version will be too old, if ever."""
        if not self.age_s or self.oldest == self.root.version:
            return None
        return self.history[self.oldest + 1].time + self.age_s

    def lease(self, version: int) -> RootInfo:
        """Keep a version until ``release`` was called as often as ``lease``. Raises as ``at``."""
        root = self.at(version)
        _, leases = self._leased.get(version, (root, 0))
        self._leased[version] = root, leases + 1
        return root

    def release(self, version: int) -> None:
        root, leases = self._leased.pop(version)
        if leases > 1:
            self._leased[version] = root, leases - 1

    def leases(self, version: int) -> int:
        """Return the number of leases on a version."""
        return self._leased[version][1] if version in self._leased else 0

    @property
    def leased_versions(self) -> int:
        """The number of versions that leases keep."""
        return len(self._leased)

    def leased_roots(self) -> list[RootInfo]:
        return [root for root, _ in self._leased.values()]

    def take_need(self, need: WatchNeed) -> None:
        """Keep what watches need from now on. ``compact`` drops what they do not need any more."""
        if need.passed is None:
            self.hold = None
        else:
            self.hold = self.hold or WatchHold(self._limits.hold)
            self.hold.waits = self.full == FULL_WAIT
            self.hold.need(need)
        wanted = dict.fromkeys(need.versions[: self._limits.hold.versions_max])
        for version in wanted:
            if version not in self._watched:
                with suppress(VersionUnknown):  # it has gone: its watch asks whether a version is kept, or moves on
                    self.lease(version)
                    self._watched[version] = None
        for version in [version for version in self._watched if version not in wanted]:
            del self._watched[version]
            self.release(version)

    # ---------------------------------------------------------------------------------------------------- reading

    def at(self, version: int) -> RootInfo:
        """Return the root of a version. Raises VersionUnknown for no version, SnapshotCollected if compacted."""
        if self.held <= version <= self.root.version:
            return self.history[version]
        leased = self._leased.get(version)
        if leased is not None:
            return leased[0]
        raise version_error(self.root.namespace, version, self.root.version, self.first, self.oldest)

    def with_root(self, ref: Ref) -> RootInfo:
        """Return the newest kept version that has this root. Raises SnapshotCollected if there is none."""
        version = self.history.newest_with(ref, self.oldest)
        if version is not None:
            return self.history[version]
        for root, _ in self._leased.values():
            if root.ref == ref:
                return root
        raise SnapshotCollected(f"no version of {self.root.namespace} that is kept has the root {ref.hex()[:12]}…")

    def at_time(self, time: float, now: float) -> RootInfo:
        """Return the version that was the newest at ``time``. ``now``: by this namespace's clock.

        Raises VersionUnknown for a future time, or one before the first version; SnapshotCollected for one before the
        oldest kept version.
        """
        if not time <= now:  # also if it is NaN
            raise VersionUnknown(f"invalid time {_shown(time)}: it is in the future, now is {_shown(now)}")
        version = self.history.newest_at(time, self.oldest)
        if version < self.oldest:
            raise time_error(self, time)
        return self.history[version]

    def roots(self) -> Iterator[RootInfo]:
        """Yield the roots of all kept versions, the leased ones too, and of those whose values are to be recorded."""
        for version in range(self.needed_from, self.root.version + 1):
            yield self.history[version]
        for root, _ in self._leased.values():
            yield root

    def last_change(self, key: str, nodes: NodeCache) -> tuple[int, bool]:
        """Return the version that last changed ``key``, or anything below it, and True. ``key`` has its links resolved.

        If no version after the oldest kept one changed it: that oldest version, and False.
        """
        parts = split_key(key)
        version = self.key_index.newest_write(key, self.root.version + 1)
        while version is not None and version > self.oldest:
            if self._read(parts, version, nodes) != self._read(parts, version - 1, nodes):
                return version, True
            version = self.key_index.newest_write(key, version)
        return self.oldest, False

    def _read(self, parts: list[str], version: int, nodes: NodeCache) -> Any:
        """Return the object in that version, or the type of the error. An object behind a link equals no other."""
        root = self.history[version]
        lookup = Lookup(nodes, no_other_namespace, root.namespace, root.ref, parts, follow=False)
        try:
            found = lookup.advance()
        except FluxmpiError as error:
            return type(error)
        if isinstance(found, Missing):
            raise SnapshotCollected(f"version {version} of {root.namespace} is not kept any more")
        return found.value if not lookup.links_followed else (version, lookup.links_followed)

    def check(self) -> None:
        self.history.check()
        assert self.history[self.root.version] == self.root
        assert list(self.history) == list(range(self.history.first, self.root.version + 1))
        assert self.history.first <= self.held <= self.oldest <= self.root.version
        assert self.root.version - self.oldest < self.count
        if self.hold is not None:
            self.hold.check()
        assert all(leases > 0 for _, leases in self._leased.values())
        self.key_index.check()
        if self.values is not None:
            self.values.check()


def version_error(namespace: str, version: int, newest: int, first: int = 0, oldest: int = 0) -> VersionUnknown:
    """Return the error for a version that cannot be read."""
    if version > newest:
        return VersionUnknown(f"version {version} of {namespace} was not reached yet: the newest is {newest}")
    if version < first:
        return VersionUnknown(
            f"version {version} of {namespace} is from before this instance, which began with {first}"
        )
    kept = f"the oldest kept is {oldest}, the newest {newest}"
    return SnapshotCollected(f"version {version} of {namespace} is not kept any more: {kept}")


def time_error(namespace: Namespace, time: float) -> VersionUnknown:
    """Return the error for a time before the oldest kept version."""
    oldest = namespace.history[namespace.oldest]
    if namespace.oldest == namespace.first:
        return VersionUnknown(
            f"{oldest.namespace} had no version at {_shown(time)}: its first is of {_shown(oldest.time)}"
        )
    kept = f"version {oldest.version}, the oldest kept, is of {_shown(oldest.time)}"
    return SnapshotCollected(f"the version of {oldest.namespace} at {_shown(time)} is not kept any more: {kept}")


def _shown(time: float) -> str:
    """Return the time in ISO 8601, as commands take it; outside the calendar's range, in seconds since 1970."""
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"@{time:g}"


def no_such_namespace(namespace: str) -> NoSuchNamespace:
    return NoSuchNamespace(f"namespace '{namespace}' does not exist")


class Namespaces:
    """All namespaces, by name. ``count``: the versions kept of each by default; ``defaults``: the rest of the retention."""

    def __init__(
        self,
        count: int = RETENTION_COUNT,
        owner: int = 0,
        limits: MvccLimits = MVCC_LIMITS,
        defaults: Retention | None = None,
        chosen: tuple[str, ...] = (),
    ) -> None:
        """``chosen``: fields of the retention that the user has chosen for this instance, whatever a checkpoint says."""
        self._namespaces: dict[str, Namespace] = {}
        self._count = count
        self._defaults = Retention() if defaults is None else defaults
        self._chosen = chosen
        self._limits = limits
        self._owner = owner
        """Owner of namespaces that no client created: the primary one, and those of a checkpoint without owners."""
        self._removed: dict[str, int] = {}
        """Removed namespace → its last version."""
        self._removed_time = 0.0
        """The latest time of a version of a removed namespace."""
        self._removed_max = -1
        """The highest last version of the removed namespaces that are not in ``_removed`` any more."""

    def find(self, name: str) -> Namespace:
        namespace = self._namespaces.get(name)
        if namespace is None:
            raise no_such_namespace(name)
        return namespace

    def get(self, name: str) -> Namespace | None:
        return self._namespaces.get(name)

    def advance(self, root: RootInfo, owner: int | None = None) -> Namespace:
        """Append a namespace's next version, which may have changed any key, or create the namespace with it."""
        namespace = self._namespaces.get(root.namespace)
        if namespace is None:
            owner = self._owner if owner is None else owner
            namespace = self._namespaces[root.namespace] = Namespace(root, owner, self._count, self._limits)
            namespace.retain(self._defaults)
            namespace.chosen = dict.fromkeys(self._chosen)
            self._removed.pop(root.namespace, None)
        else:
            namespace.advance(root, None, 0)
        return namespace

    def restore(self, saved: SavedNamespace, root: RootInfo, nodes: NodeCache) -> Namespace:
        """Append ``root``, of a checkpoint, as ``advance``. A new namespace gets its owner and retention from there."""
        known = saved.namespace in self._namespaces
        namespace = self.advance(root, saved.owner if saved.owner >= 0 else None)
        if not known:
            namespace.restore(saved, nodes)
        return namespace

    def require_free_name(self, name: str) -> None:
        """Raise NamespaceExists, InvalidRequest for an invalid name, or Overloaded, unless it can be created."""
        if name in self._namespaces:
            raise NamespaceExists(f"namespace '{name}' exists already")
        check_name(name)
        if len(self._namespaces) >= self._limits.namespaces_max:
            raise Overloaded(f"there are {self._limits.namespaces_max} namespaces already: remove one first")

    def remove(self, name: str) -> int:
        """Remove a namespace, and return its last version. Raises NoSuchNamespace, InvalidRequest for the primary."""
        if name == PRIMARY:
            raise InvalidRequest(f"the {PRIMARY} namespace cannot be removed")
        root = self.find(name).root
        last = root.version
        self._removed_time = max(self._removed_time, root.time)
        del self._namespaces[name]
        self._removed[name] = last
        if len(self._removed) > self._limits.removed_max:
            oldest = next(iter(self._removed))
            self._removed_max = max(self._removed_max, self._removed.pop(oldest))
        return last

    def next_version(self, name: str) -> int:
        namespace = self._namespaces.get(name)
        if namespace is not None:
            return namespace.root.version + 1
        return max(self._removed.get(name, -1), self._removed_max) + 1

    def next_root(self, name: str, ref: Ref, now: float) -> RootInfo:
        """Return a namespace's next version with the root ``ref``; the namespace need not exist."""
        namespace = self._namespaces.get(name)
        time = max(now, self._removed_time) if namespace is None else namespace.clock(now)
        return RootInfo(name, self.next_version(name), ref, time)

    def roots(self) -> list[RootInfo]:
        """Return the newest root of every namespace."""
        return [namespace.root for namespace in self._namespaces.values()]

    def saved(self) -> list[SavedNamespace]:
        """Return what a checkpoint keeps of every namespace."""
        return [namespace.saved() for namespace in self._namespaces.values()]

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._namespaces.values())

    def __len__(self) -> int:
        return len(self._namespaces)

    def check(self) -> None:
        assert not self._namespaces.keys() & self._removed.keys()
        for namespace in self._namespaces.values():
            namespace.check()


def check_name(name: str) -> None:
    """Raise InvalidRequest for an invalid name. Snapshots and links have '@' and '::' after a namespace's name."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
        raise InvalidRequest(f"a namespace's name has 1 to {NAME_BYTES_MAX} bytes, not {len(name)}: '{name[:32]}'")
    if not name.isprintable() or any(character in "@:/ " for character in name):
        raise InvalidRequest(f"invalid namespace {name!r}: it has '@', ':', '/', a blank or a control character")
