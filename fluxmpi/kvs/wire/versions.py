"""Records of versions, of retention and leases, and of namespaces."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, At, Name, Record, RootInfo
from fluxmpi.kvs.wire.commits import FenceDone

EVERY_KEY = "**"
"""The pattern that every key matches."""


class Since(Record):
    """``roots.since`` → list[RootInfo]: at most ``limit`` versions from ``version`` on, inclusive, oldest first.

    Raises VersionUnknown, SnapshotCollected.
    """

    namespace: Name
    version: int
    limit: int = 500


class Setroot(Record):
    """CONTROL ``kvs.setroot``: a namespace has a new version.

    ``keys``: the keys that it wrote, links resolved, or None if they are too many. ``nodes``: the new nodes, encoded,
    if they are small together. ``fences``: those that this version completes. ``oldest``: the oldest kept version.
    ``appends``: the keys that were only appended to, with the bytes of each append; None if there are none.
    ``by_reference``: it put values by reference, or perhaps did: brokers with watches tell when they have passed it.
    """

    namespace: str
    version: int
    ref: Ref
    time: float
    keys: list[str] | None
    nodes: list[bytes]
    fences: list[FenceDone] = []
    oldest: int = 0
    appends: dict[str, list[int]] | None = None
    by_reference: bool = False


class Swept(Record):
    """CONTROL ``kvs.swept``, down the tree: large blobs that a collection has removed from rank 0's store.

    Each broker passes the refs on to its ``value`` service, which closes the segments that have one of them.
    """

    refs: list[Ref]


class Log(Record):
    """``roots.log`` → list[LogEntry], newest first. ``before``: only versions below that one, for the next page."""

    namespace: Name = PRIMARY
    before: int | None = None
    limit: int = 100


class LogEntry(Record):
    """``keys``: the keys that the version wrote, None if they are not known. ``commits``: how many it applied."""

    version: int
    ref: Ref
    time: float
    keys: list[str] | None
    commits: int


class HistoryRequest(Record):
    """``roots.history`` → list[KeyVersion], newest first: one for each kept version that changed the key."""

    namespace: Name
    key: str
    before: int | None = None
    limit: int = 100


class KeyVersion(Record):
    """``object``: the key's object from this version on, None if there is none. ``existed``: there was one before."""

    version: int
    ref: Ref
    time: float
    object: Object | None
    existed: bool


class ValueRule(Record):
    """Keep the last ``values`` values of each key that ``key`` matches, beyond the versions that had them; 0: no rule.

    ``key``: a key; with a dot at its end everything below it; with wildcards a pattern (see ``store/pattern``).
    """

    key: str
    values: int


class Retention(Record):
    """``roots.retention`` → the Retention from then on. None leaves a field as it is.

    A version is kept while it is among the ``count`` newest and, if ``age_s`` is not 0, was the newest less than
    ``age_s`` seconds ago, and while the blobs that only it and newer versions hold, but not the newest one, have at most
    ``bytes``. Garbage collections measure that. The newest version is always kept. ``values``: of single keys; in a
    request the rules to change, in an answer all rules. ``full``: when watches that lag need more than is held for them,
    the oldest versions are given up (``end``, or None in an answer), or commits wait for some time (``wait``).
    """

    namespace: Name = PRIMARY
    count: int | None = None
    age_s: float | None = None
    bytes: int | None = None
    values: list[ValueRule] = []
    full: str | None = None


class PastRequest(Record):
    """``roots.past`` → KeyVersion: what a key was in a version, also if that has gone and a rule kept the value.

    The version is given by its number or as that of a time (see ``GetRoot``). ``root``: the first bytes of its root,
    where they are to be compared. ``follow``: also follow a link at the key itself.

    The KeyVersion has the version that the value is known from: as a rule the one that wrote it. Raises
    SnapshotCollected where the value is not known.
    """

    key: str
    namespace: str = PRIMARY
    version: int | None = None
    time: float | None = None
    ago_s: float | None = None
    root: bytes = b""
    follow: bool = True


class Lease(Record):
    """``roots.lease`` → Leased: keep a version, which must be kept now.

    The lease ends with ``roots.release``, after ``ttl_s``, or when the client disconnects.
    """

    namespace: Name
    at: At = None
    ttl_s: float | None = None


class Leased(Record):
    """``expires``: seconds since 1970 by rank 0's clock; None: when the client disconnects."""

    id: int
    root: RootInfo
    expires: float | None


class Release(Record):
    """``roots.release`` → null: end the lease. ``roots.renew`` → Leased: start its ``ttl_s`` again."""

    id: int


class NewNamespace(Record):
    """``roots.create`` → RootInfo of the first version. ``ref``: its root, all of which must be stored; None: empty.

    ``owner``: a uid, or -1 for the instance's owner.
    """

    name: str
    owner: int
    ref: Ref | None = None


class OldNamespace(Record):
    """``roots.remove`` → null; also CONTROL ``kvs.removed`` to every broker, with the namespace's last version."""

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
    """Answers ``gc.status`` (null), and ``gc.run`` (null) after a whole cycle that began after the request.

    Of the last cycle: ``live`` blobs are reachable from the newest roots; ``leased`` blobs only from leases, checkpoints
    and pending commits, and perhaps older versions; ``history`` blobs only from older versions; ``garbage`` blobs were
    not reachable, and were freed. ``bytes``, ``bytes_max``: of the store now, and at most (0: no bound). ``longest_slice_s``:
    from the beginning of a slice to that of the next turn.
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
    leased_blobs: int = 0
    leased_bytes: int = 0
    bytes_max: int = 0
