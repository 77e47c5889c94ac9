"""``kvs.setroot`` and the service ``roots``: versions, how long they are kept, and namespaces."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, At, Record, RootInfo
from fluxmpi.kvs.wire.commits import FenceDone


class Since(Record):
    """``roots.since`` → list[RootInfo]: the versions from ``version`` on, itself included, oldest first, at most ``limit``.

    Raises VersionUnknown, SnapshotCollected.
    """

    namespace: str
    version: int
    limit: int = 500


class Setroot(Record):
    """CONTROL ``kvs.setroot``: a namespace has a new version.

    ``keys``: what changed, links resolved, or None when that would be too long. ``nodes``: encoded new tree nodes, if they
    are small together. ``fences``: those that this version completes. ``oldest``: the oldest version that is kept.
    """

    namespace: str
    version: int
    ref: Ref
    time: float
    keys: list[str] | None
    nodes: list[bytes]
    fences: list[FenceDone] = []
    oldest: int = 0


class Log(Record):
    """``roots.log`` → list[LogEntry], newest first; ``before``: only versions below that one, for the next page."""

    namespace: str = PRIMARY
    before: int | None = None
    limit: int = 100


class LogEntry(Record):
    """``keys``: what the version changed, None when that is not remembered. ``commits``: how many it merged."""

    version: int
    ref: Ref
    time: float
    keys: list[str] | None
    commits: int


class HistoryRequest(Record):
    """``roots.history`` → list[KeyVersion], newest first: one for each version kept that changed the key."""

    namespace: str
    key: str
    before: int | None = None
    limit: int = 100


class KeyVersion(Record):
    """``object``: what stood there from this version on, None if nothing. ``existed``: something did before."""

    version: int
    ref: Ref
    time: float
    object: Object | None
    existed: bool


class Retention(Record):
    """``roots.retention`` → Retention as it is then. What is given is set; None leaves it as it is.

    A version is kept while it is among the ``count`` newest and, if ``age_s`` is not 0, was the newest at a time that is
    less than ``age_s`` seconds ago. The newest always is.
    """

    namespace: str = PRIMARY
    count: int | None = None
    age_s: float | None = None


class Lease(Record):
    """``roots.lease`` → Leased: keep a version, that is kept now, until ``roots.release``, or ``ttl_s`` is over, or the client's
    connection ends.
    """

    namespace: str
    at: At = None
    ttl_s: float | None = None


class Leased(Record):
    """``expires``: seconds since 1970 by rank 0's clock; None: with the connection."""

    id: int
    root: RootInfo
    expires: float | None


class Release(Record):
    """``roots.release`` → null: the lease ends. ``roots.renew`` → Leased: its ``ttl_s`` begins again."""

    id: int


class NewNamespace(Record):
    """``roots.create`` → RootInfo of its first version. ``ref``: a root to begin with, which must be whole; None: empty.

    ``owner``: a uid, or -1 for that of the instance.
    """

    name: str
    owner: int
    ref: Ref | None = None


class OldNamespace(Record):
    """``roots.remove`` → null. And CONTROL ``kvs.removed`` to every broker, with the namespace's last version."""

    name: str
    version: int = 0


class NamespaceInfo(Record):
    """``roots.list`` (null) → list[NamespaceInfo], in order of name. ``owner``: a uid."""

    name: str
    owner: int
    version: int
    ref: Ref
    time: float


class GcStatus(Record):
    """``gc.status`` (null), and ``gc.run`` (null) after a whole cycle that began later than the request.

    The classes are those of the last cycle: live, what the newest roots reach; history, what only older versions, leases and
    whoever works with a blob hold; garbage, what nothing holds, which the cycle freed. ``longest_slice_s``: from the
    beginning of a slice to that of the next turn.
    """

    cycles: int = 0
    running: bool = False
    blobs: int = 0
    bytes: int = 0
    live_blobs: int = 0
    live_bytes: int = 0
    history_blobs: int = 0
    history_bytes: int = 0
    garbage_blobs: int = 0
    garbage_bytes: int = 0
    freed_blobs: int = 0
    freed_bytes: int = 0
    longest_slice_s: float = 0.0
