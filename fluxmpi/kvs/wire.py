"""Bodies of the KVS's messages. The topic is named in each record's text; ``→`` names the response's record.

Services: ``kvs`` is on every broker and answers clients; ``leader`` is on rank 0 only and answers the ``kvs`` services.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object

PRIMARY = "primary"
"""The namespace that always exists."""

At = int | Ref | None
"""Where to read: a version, a root ref, or None, which is the newest root that the broker knows."""


class Record(msgspec.Struct, array_like=True, gc=False): ...


# ------------------------------------------------------------------------------------------------------- operations


class Put(Record, tag=0):
    """Set ``key`` to ``object``, making the directories above it. A value, a link, or (put-treeobj) a ``Dir``."""

    key: str
    object: Object


class Append(Record, tag=1):
    """Add bytes to a raw or json value, which is raw from then on; a key that does not exist starts empty."""

    key: str
    data: bytes


class Unlink(Record, tag=2):
    """Remove the entry: a value, a link (not what it points to), or a whole directory. No such entry: no effect."""

    key: str


class Mkdir(Record, tag=3):
    """Make an empty directory; one that exists stays."""

    key: str


class PutShared(Record, tag=4):
    """``Put`` in a combined fence: the object is ``objects[index]``, so that equal values travel once."""

    key: str
    index: int


class Add(Record, tag=5):
    """Add to a json integer; a key that does not exist starts at 0. With ``limit``: only if it is less than that before.

    Its Result: ``number`` is the integer afterwards, ``done`` whether it was added. What is no integer of 64 bits, before or
    after, is an InvalidValue.
    """

    key: str
    amount: int
    limit: int | None = None


class Exchange(Record, tag=6):
    """``Put``, and its Result has the object that was there before, or None."""

    key: str
    object: Object


class Swap(Record, tag=7):
    """Compare and swap: if what is there is ``expected``, put ``object``. None is no such key, and removes it.

    Its Result: ``done``, and the object that was found, or None.
    """

    key: str
    expected: Object | None
    object: Object | None


Op = Put | Append | Unlink | Mkdir | PutShared | Add | Exchange | Swap

GUARD_VALUE, GUARD_VERSION, GUARD_EXISTS = 0, 1, 2


class Guard(Record):
    """A condition on the state just before a transaction. ``compare``: one of ``== != < <= > >=``.

    GUARD_VALUE compares the value with ``operand``, an Object. Equal is of one type and the same bytes. Only json numbers,
    or json texts, have an order. A key that does not exist is unequal to every value, and neither less nor greater.
    GUARD_VERSION compares the version of the key's last change, 0 if there is no such key, with an int.
    GUARD_EXISTS compares whether the key exists with a bool.
    A link at the end of the key is not followed, as in operations.
    """

    key: str
    what: int
    compare: str
    operand: Object | bool | int


class Result(Record):
    """What one operation gave: see Add, Exchange, Swap. Others are done, with nothing to tell."""

    done: bool = True
    number: int | None = None
    object: Object | None = None


class CommitId(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Names one commit of one client for ever; serials count from 1."""

    client: str
    serial: int


PIECE_OPS = 1000
WHOLE_OPS_MAX = 10_000
"""Operations that need not come in pieces. A list of more is refused before it is decoded, since that takes its time, too."""

_Ops = Annotated[list[Op], msgspec.Meta(max_length=WHOLE_OPS_MAX)]


class Commit(Record):
    """``kvs.commit``, ``leader.commit`` → Committed. Applied once however often it is sent.

    ``acked``: the answers to all serials up to this one have arrived, so they need not be remembered.
    All ``guards`` hold: ``ops`` are applied and ``events``, (topic, payload) of each, are published. Else ``otherwise`` is
    applied; where that is empty, no version is made.
    ``durable`` is refused: there is no journal.
    ``more``, ``otherwise_more``: operations that come after ``ops`` and ``otherwise``, encoded, in pieces of up to PIECE_OPS, so
    that rank 0 can take them bit by bit.
    """

    namespace: str
    id: CommitId
    acked: int
    ops: _Ops
    guards: list[Guard] = []
    otherwise: _Ops = []
    events: list[tuple[str, bytes]] = []
    durable: bool = False
    more: list[bytes] = []
    otherwise_more: list[bytes] = []


class AddTo(Record):
    """``kvs.add`` → Committed with one Result. As a Commit of one Add, but combined on its way with others to that key."""

    namespace: str
    id: CommitId
    acked: int
    key: str
    amount: int


class AddPart(Record):
    """One client's addition among the combined."""

    id: CommitId
    acked: int
    amount: int


class Adds(Record):
    """``kvs.adds`` to the parent, ``leader.adds`` at rank 0 → Added: additions to one key, in the order of their results."""

    namespace: str
    key: str
    parts: list[AddPart]


class Contribution(Record):
    """One contributor's part of a fence. ``acked`` as in a Commit: one client's commits and contributions count together.

    ``more`` as in a Commit: brokers on the way pass these pieces on as they are, and rank 0 takes them bit by bit. ``refs``:
    the directories and blobs that they name, so that they are kept until the fence is complete.
    """

    id: CommitId
    ops: _Ops
    acked: int = 0
    more: list[bytes] = []
    refs: list[Ref] = []


class Fence(Record):
    """``kvs.fence``, ``leader.fence`` → RootInfo. ``size`` contributions under one name become one commit.

    A client sends one contribution; brokers on the way up send many, with equal objects once: in ``objects``.
    A broker's message up has no answer of its own: the outcome of the fence comes to every broker as FenceDone. ``first``
    is the place of the first of ``objects`` in the link's table; 0 begins a new table.
    """

    namespace: str
    name: str
    size: int
    parts: list[Contribution]
    objects: list[Object] = []
    first: int = 0


class FenceDone(Record):
    """CONTROL ``kvs.fence-done``, and inside Setroot: the outcome for these contributors. ``status`` as in a response.

    ``ref`` and ``time`` are the version's, where it is not the newest.
    """

    namespace: str
    name: str
    ids: list[CommitId]
    version: int
    status: int = 0
    text: str = ""
    ref: Ref = b""
    time: float = 0.0


class FenceMember(Record):
    """CONTROL: who contributed, and is not waiting for the outcome any more. Up to rank 0: ``kvs.fence-left``; down to all:
    ``kvs.fence-missing``, a search with a number; up again ``kvs.fence-here`` from a broker at which it waits all the same, or
    ``kvs.fence-absent``. ``gone``: it gave up.
    """

    namespace: str
    name: str
    id: CommitId
    gone: bool = False
    search: int = 0


# ---------------------------------------------------------------------------------------------------------- reading


class RootInfo(Record):
    """A version of a namespace. ``ref`` names the root directory's node; ``time`` is the commit's, seconds since 1970."""

    namespace: str
    version: int
    ref: Ref
    time: float


class Committed(RootInfo):
    """What became of a commit, and the version in which; the newest one where no version was made.

    ``succeeded``: its guards held. ``results``: one for each operation applied, or none at all if none has anything to tell.
    """

    succeeded: bool = True
    results: list[Result] = []


class Added(RootInfo):
    """The version that combined additions became; ``numbers`` are what each made of the integer.

    ``others`` are those parts that this does not hold for: index, status and body of the answer that each gets.
    """

    numbers: list[int] = []
    others: list[tuple[int, int, bytes]] = []


class GetRoot(Record):
    """``kvs.getroot`` → RootInfo, as soon as the broker knows a version of at least ``at_least``.

    ``fresh``: ask rank 0 for the newest version first (linearizable). ``at``: the root of that version. ``time``: of the
    version that was the newest then, seconds since 1970; ``ago_s``: so many seconds before now; both by rank 0's clock.
    ``roots.get`` is the same question to rank 0.
    """

    namespace: str = PRIMARY
    at_least: int = 0
    fresh: bool = False
    at: int | None = None
    time: float | None = None
    ago_s: float | None = None


class Get(Record):
    """``kvs.get`` → Got. Links are followed, the last one only if ``follow``.

    ``load``: a value of one blob comes with its bytes, and a directory is an error (IsADirectory); else the object alone.
    """

    key: str
    namespace: str = PRIMARY
    at: At = None
    at_least: int = 0
    follow: bool = True
    load: bool = True


class Got(Record):
    """``data`` is the value when it is inline or one blob, else None: load the blobs of ``object`` one by one."""

    version: int
    root: Ref
    object: Object
    data: bytes | None = None


class Path(Record):
    """``kvs.path`` to the parent → list[bytes]: the blobs of the nodes on the way from the directory's node ``ref`` down the
    components ``names``, as far as they lead, the first one ``ref``'s. ``value``: and that of a value of one blob at the end.
    """

    ref: Ref
    names: list[str]
    value: bool = False


class List(Record):
    """``kvs.list`` → Listed: entries of a directory in order of name, after ``after``, that start with ``prefix``."""

    key: str
    namespace: str = PRIMARY
    at: At = None
    at_least: int = 0
    prefix: str = ""
    after: str = ""
    limit: int = 1000


class Listed(Record):
    """``more``: the limit was reached; ask again after the last name, at the same root."""

    version: int
    root: Ref
    entries: list[tuple[str, Object]]
    more: bool


WINDOW_MAX = 8 << 20
"""Of a watch, and of what all watches of one client may have unacknowledged together."""

NOTIFICATION_BYTES = 64
"""What a notification counts beside its body: so WINDOW_MAX holds fewer than a client's stream may have unread."""


class Watch(Record):
    """``kvs.watch`` → a stream of Notification, until ``kvs.cancel``, ``count``, or an error.

    ``key`` is a value's key, or with ``recursive`` a directory, of which every value below is watched, or with ``glob`` a
    pattern (see ``pattern``). Links on the way are followed, the last one only if ``follow``; below a directory, and from the
    first wildcard of a pattern on, a link is told and not followed.

    The first Notification comes at once: what is there if ``initial``, else nothing; with ``since``, nothing, at that
    version. Then comes one for each later version that changes what is watched; with ``latest``, fewer while the client
    lags: then one tells what changed since the last.

    ``count``: end after so many Notifications that hold a change (0: never). ``uniq`` False, for a key alone: tell also
    that it was written again with the value that it had, as far as that is known (not of what is replayed). ``wait``: a
    namespace that does not exist is waited for. ``window``: bytes that the client takes before it acknowledges some; a
    Notification counts its body and NOTIFICATION_BYTES, and while less is on its way another one goes, however long.
    """

    key: str
    namespace: str = PRIMARY
    at_least: int = 0
    recursive: bool = False
    follow: bool = True
    glob: bool = False
    since: int | None = None
    latest: bool = False
    count: int = 0
    uniq: bool = True
    initial: bool = True
    wait: bool = False
    window: int = 1 << 20


class Change(Record):
    """``object`` None: the key is gone. ``existed``: it was there in the version before, as ``old``."""

    key: str
    object: Object | None
    existed: bool
    old: Object | None = None


class Notification(Record):
    """All changes that one version made to what is watched, in order of the keys' components; ``root`` is the snapshot.

    ``more``: it was cut; the changes go on in the next one, of the same version. ``namespace``: the watch's own, or the one
    that a link led to, if a version of that made the change. Without changes it says how far the watch has come.
    """

    version: int
    root: Ref
    time: float
    changes: list[Change]
    namespace: str = PRIMARY
    more: bool = False


class WatchAck(Record):
    """``kvs.watch-ack``: so many more bytes of the watch ``tag`` were taken. No answer, nor an error if it has ended."""

    tag: int
    bytes: int


class WatchProgress(Record):
    """``kvs.watch-progress``: the stream of the watch ``tag`` is to say, in its turn, how far it has come, at least to the
    version that this broker has now: by a Notification without changes. No answer of its own.
    """

    tag: int


class Since(Record):
    """``roots.since`` → list[RootInfo]: the versions from ``version`` on, itself included, oldest first, at most ``limit``.

    Raises VersionUnknown, SnapshotCollected.
    """

    namespace: str
    version: int
    limit: int = 500


class Cancel(Record):
    """``kvs.cancel``: ends the stream that this client requested with ``tag``; no answer but the stream's end."""

    tag: int


# ------------------------------------------------------------------------------------------------- between brokers


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


# ---------------------------------------------------------------------------------------- versions and namespaces


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


class History(Record):
    """``roots.history`` → list[Past], newest first: one for each version kept that changed the key."""

    namespace: str
    key: str
    before: int | None = None
    limit: int = 100


class Past(Record):
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


class Diff(Record):
    """``kvs.diff`` → Diffed: what changed below ``key`` from ``a`` to ``b``, a page of it, in order of key.

    For the next page ask again with ``after``, the last key that was told, and ``between`` of the answer, which takes the place
    of ``a`` and ``b``. The broker keeps nothing from one page to the next: who does not ask costs it nothing.
    """

    namespace: str
    a: At
    b: At
    key: str = "."
    limit: int = 1000
    at_least: int = 0
    after: str | None = None
    between: tuple[Ref | None, Ref | None] | None = None


class Diffed(Record):
    """At most ``limit`` changes, and fewer where they are long. ``between``: the directories at the key that are compared, None
    where there is none. ``more``: there may be others after the last one.
    """

    changes: list[Change]
    between: tuple[Ref | None, Ref | None]
    more: bool


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


# ------------------------------------------------------------------------------------------------------ checkpoints


class Save(Record):
    """``checkpoint.save`` → Progress with MORE, then Saved. ``path`` None: the instance's own file."""

    path: str | None = None


class Progress(Record):
    done: int
    total: int


class Saved(Record):
    path: str
    blobs: int
    bytes: int
    roots: list[tuple[str, int, Ref, float]]
    """namespace, version, root ref, time (seconds since 1970)."""


class Restore(Record):
    """``checkpoint.restore`` → Progress with MORE, then Restored. Each namespace gets a new version with the saved root."""

    path: str


class Restored(Record):
    path: str
    blobs: int
    roots: list[tuple[str, int, Ref, float]]
