"""The namespaces as rank 0 has them: each a line of versions, of which the last ones are kept.

Retention says how many, and for how long; a lease keeps one version beyond that. What is not kept cannot be read, and what only
it reached is garbage::

    version   1  2  3  4  5  6  7  8  9
                       ^     └─────────┘ retention
                       └ lease

Invariants: versions of a namespace count up by one, also over its removal and its making again, so that no client sees them
go back; ``history`` holds the newest root, and those before it from ``oldest`` on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.objects import split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Missing, NodeCache
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import PRIMARY, Retention, RootInfo

RETENTION_COUNT = 10_000
"""Versions kept of a namespace unless it is told otherwise: two seconds of 5,000 versions, so that a watcher or a broker may lag
by one. They take 0.1 KiB each and the texts of 6.5 keys, and their nodes about 2 KiB of a directory of 1,000 keys."""

RETENTION_COUNT_MAX = 100_000
NAME_BYTES_MAX = 128


class Namespace:
    """One namespace. ``root`` is its newest version; ``oldest`` the oldest that retention keeps. ``owner``: a uid."""

    def __init__(
        self, root: RootInfo, owner: int = 0, count: int = RETENTION_COUNT, limits: MvccLimits = MVCC_LIMITS
    ) -> None:
        self.root = root
        self.owner = owner
        self.count = count
        self.age_s = 0.0
        self.first = self.oldest = root.version
        self.history = VersionLog(root.namespace, root.version)
        """It may hold some that are older than ``oldest``, until there is time to forget them."""
        self.history.append(root)
        self.key_index = KeyIndex(root.version, limits)
        self._limits = limits
        self._leased: dict[int, tuple[RootInfo, int]] = {}
        """Version to its root and the number of leases on it."""
        self.on_advance: Callable[[], None] | None = None
        """Called after every new version, by whoever must know when the oldest will be too old."""

    def advance(self, root: RootInfo, keys: list[str] | None = None, commits: int = 1) -> None:
        """The next version; ``keys`` are what it touched, links resolved, or None when that is not known."""
        assert root.version == self.root.version + 1
        self.root = root
        self.history.append(root, commits)
        self.key_index.note(keys)
        self.compact(root.time)
        if self.on_advance is not None:
            self.on_advance()

    # ---------------------------------------------------------------------------------------------------- retention

    @property
    def retention(self) -> Retention:
        return Retention(self.root.namespace, self.count, self.age_s)

    def compact(self, now: float) -> bool:
        """Keep no more than retention says; True when there is more to forget, in another turn."""
        oldest = max(self.oldest, self.root.version - self.count + 1)
        if self.age_s:
            # A version was the newest until the next one came.
            oldest = max(oldest, self.history.newest_at(now, oldest + 1, self.age_s))
        self.oldest = oldest
        count = min(self._limits.compactions_per_turn, oldest - self.history.first)
        for _ in range(count):
            self.key_index.forget()
        self.history.compact(count)
        return self.behind

    @property
    def behind(self) -> bool:
        """There are versions to forget."""
        return self.history.first < self.oldest

    @property
    def expires(self) -> float | None:
        """When the oldest version will be too old, if ever."""
        if not self.age_s or self.oldest == self.root.version:
            return None
        return self.history[self.oldest + 1].time + self.age_s

    def lease(self, version: int) -> RootInfo:
        """Keep a version, which is kept now, until ``release`` was called as often."""
        root = self.at(version)
        _, leases = self._leased.get(version, (root, 0))
        self._leased[version] = root, leases + 1
        return root

    def release(self, version: int) -> None:
        root, leases = self._leased.pop(version)
        if leases > 1:
            self._leased[version] = root, leases - 1

    def leases(self, version: int) -> int:
        """How many there are on a version."""
        return self._leased[version][1] if version in self._leased else 0

    # ---------------------------------------------------------------------------------------------------- reading

    def at(self, version: int) -> RootInfo:
        """The root of a version. Raises VersionUnknown for one that never was, SnapshotCollected for one not kept."""
        if self.oldest <= version <= self.root.version:
            return self.history[version]
        leased = self._leased.get(version)
        if leased is not None:
            return leased[0]
        raise version_error(self.root.namespace, version, self.root.version, self.first, self.oldest)

    def of(self, ref: Ref) -> RootInfo:
        """The newest version that is kept and has this root. Raises SnapshotCollected."""
        version = self.history.newest_with(ref, self.oldest)
        if version is not None:
            return self.history[version]
        for root, _ in self._leased.values():
            if root.ref == ref:
                return root
        raise SnapshotCollected(f"no version of {self.root.namespace} that is kept has the root {ref.hex()[:12]}…")

    def at_time(self, time: float, now: float) -> RootInfo:
        """The version that was the newest then. Raises VersionUnknown for a time to come, or one before there was any version;
        SnapshotCollected for one before the oldest that is kept.
        """
        if not time <= now:  # nor is NaN a time
            raise VersionUnknown(
                f"what {self.root.namespace} is at {_shown(time)} nobody knows yet: it is {_shown(now)}"
            )
        version = self.history.newest_at(time, self.oldest)
        if version < self.oldest:
            raise time_error(self, time)
        return self.history[version]

    def roots(self) -> Iterator[RootInfo]:
        """All that are kept, the leased ones too."""
        for version in range(self.oldest, self.root.version + 1):
            yield self.history[version]
        for root, _ in self._leased.values():
            yield root

    def last_change(self, key: str, nodes: NodeCache) -> tuple[int, bool]:
        """The version that last changed ``key``, whose links are resolved, and True. Of a directory: or anything below it.

        False, and the oldest version that is kept, when it was not changed after that one: it was by then.
        """
        parts = split_key(key)
        version = self.key_index.newest(key, self.root.version + 1)
        while version is not None and version > self.oldest:
            if self._found(parts, version, nodes) != self._found(parts, version - 1, nodes):
                return version, True
            version = self.key_index.newest(key, version)
        return self.oldest, False

    def _found(self, parts: list[str], version: int, nodes: NodeCache) -> Any:
        """What was there in that version; by another way, through links, it counts as another thing."""
        root = self.history[version]
        lookup = Lookup(nodes, self._no_other, root.namespace, root.ref, parts, follow=False)
        try:
            found = lookup.advance()
        except FluxmpiError as error:
            return type(error)
        if isinstance(found, Missing):
            raise SnapshotCollected(f"version {version} of {root.namespace} is not kept any more")
        return found.value if not lookup.links_followed else (version, lookup.links_followed)

    @staticmethod
    def _no_other(namespace: str) -> Ref | None:
        return None

    def check(self) -> None:
        self.history.check()
        assert self.history[self.root.version] == self.root
        assert list(self.history) == list(range(self.history.first, self.root.version + 1))
        assert self.history.first <= self.oldest <= self.root.version
        assert self.root.version - self.oldest < self.count
        assert all(leases > 0 for _, leases in self._leased.values())
        self.key_index.check()


def version_error(namespace: str, version: int, newest: int, first: int = 0, oldest: int = 0) -> VersionUnknown:
    """Why there is no such version, where ``newest`` is the last one."""
    if version > newest:
        return VersionUnknown(f"version {version} of {namespace} was not reached yet: the newest is {newest}")
    if version < first:
        return VersionUnknown(
            f"version {version} of {namespace} is from before this instance, which began with {first}"
        )
    kept = f"the oldest kept is {oldest}, the newest {newest}"
    return SnapshotCollected(f"version {version} of {namespace} is not kept any more: {kept}")


def time_error(namespace: Namespace, time: float) -> VersionUnknown:
    oldest = namespace.history[namespace.oldest]
    if namespace.oldest == namespace.first:
        return VersionUnknown(
            f"{oldest.namespace} had no version at {_shown(time)}: its first is of {_shown(oldest.time)}"
        )
    return SnapshotCollected(
        f"what {oldest.namespace} was at {_shown(time)} is not kept any more: version {oldest.version}, the oldest kept,"
        f" is of {_shown(oldest.time)}"
    )


def _shown(time: float) -> str:
    """As people write it, and as commands take it; a time that no calendar has, in seconds since 1970."""
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"@{time:g}"


def no_such_namespace(namespace: str) -> NoSuchNamespace:
    return NoSuchNamespace(f"namespace '{namespace}' does not exist")


class Namespaces:
    """All namespaces, by name. ``count``: the versions kept of each, unless it is told otherwise."""

    def __init__(self, count: int = RETENTION_COUNT, owner: int = 0, limits: MvccLimits = MVCC_LIMITS) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._count = count
        self._limits = limits
        self._owner = owner
        """Of those that nobody made: the primary one, and what a checkpoint brought."""
        self._ended: dict[str, int] = {}
        """Removed namespaces and their last version, and what that was of those that are not remembered."""
        self._ended_below = -1

    def find(self, name: str) -> Namespace:
        namespace = self._namespaces.get(name)
        if namespace is None:
            raise no_such_namespace(name)
        return namespace

    def get(self, name: str) -> Namespace | None:
        return self._namespaces.get(name)

    def advance(self, root: RootInfo, owner: int | None = None) -> Namespace:
        """A namespace's next version, which may have changed anything; a namespace that is new begins with it."""
        namespace = self._namespaces.get(root.namespace)
        if namespace is None:
            owner = self._owner if owner is None else owner
            namespace = self._namespaces[root.namespace] = Namespace(root, owner, self._count, self._limits)
            self._ended.pop(root.namespace, None)
        else:
            namespace.advance(root, None, 0)
        return namespace

    def require_free_name(self, name: str) -> None:
        """Raises NamespaceExists, InvalidRequest for what is no name, Overloaded."""
        if name in self._namespaces:
            raise NamespaceExists(f"namespace '{name}' exists already")
        check_name(name)
        if len(self._namespaces) >= self._limits.namespaces_max:
            raise Overloaded(f"there are {self._limits.namespaces_max} namespaces already: remove one first")

    def remove(self, name: str) -> int:
        """Its last version. Raises NoSuchNamespace, and InvalidRequest for the primary one."""
        if name == PRIMARY:
            raise InvalidRequest(f"the {PRIMARY} namespace cannot be removed")
        last = self.find(name).root.version
        del self._namespaces[name]
        self._ended[name] = last
        if len(self._ended) > self._limits.removed_max:
            oldest = next(iter(self._ended))
            self._ended_below = max(self._ended_below, self._ended.pop(oldest))
        return last

    def next_version(self, name: str) -> int:
        namespace = self._namespaces.get(name)
        if namespace is not None:
            return namespace.root.version + 1
        return max(self._ended.get(name, -1), self._ended_below) + 1

    def roots(self) -> list[RootInfo]:
        """The newest root of every namespace."""
        return [namespace.root for namespace in self._namespaces.values()]

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._namespaces.values())

    def __len__(self) -> int:
        return len(self._namespaces)

    def check(self) -> None:
        assert not self._namespaces.keys() & self._ended.keys()
        for namespace in self._namespaces.values():
            namespace.check()


def check_name(name: str) -> None:
    """Raises InvalidRequest unless it may be a namespace's: it stands in snapshots and links, before '@' and '::'."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > NAME_BYTES_MAX:
        raise InvalidRequest(f"a namespace's name has 1 to {NAME_BYTES_MAX} bytes, not {len(name)}: '{name[:32]}'")
    if not name.isprintable() or any(character in "@:/ " for character in name):
        raise InvalidRequest(f"{name!r} cannot be a namespace's name: no '@', ':', '/', blanks or control characters")
