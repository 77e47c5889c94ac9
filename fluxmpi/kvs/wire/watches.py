"""Records of ``kvs.watch``: a stream of notifications, and what its client sends meanwhile."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, Name, Record

WINDOW_MAX = 8 << 20
"""Bytes: the largest window of a watch, and the unacknowledged bytes of all watches of one client together."""

NOTIFICATION_BYTES = 64
"""What a notification counts beside its body, so that WINDOW_MAX bytes are fewer notifications than a client's stream
may hold unread.
"""


class WatchRequest(Record):
    """``kvs.watch`` → a stream of Notification, until ``kvs.cancel``, ``count``, or an error.

    ``key`` is a value's key; with ``recursive`` a directory, of which every value below is watched; with ``glob`` a
    pattern (see ``store/pattern``). Links on the path are followed, the last one only if ``follow``. Below a directory,
    and from the first wildcard of a pattern on, a link is reported as a link and not followed.

    The first Notification is sent at once. It holds the present values if ``initial``, else no changes. With ``after``
    it holds no changes either, and is of that version: changes of later versions follow (``after`` is exclusive, where
    etcd's start revision is inclusive). Then follows one for each version that changes what is watched; with ``latest``
    fewer while the client lags, each with the changes since the one before.

    ``count``: end after so many Notifications that hold a change (0: never). ``uniq`` False, for a key alone: a write
    of the value that it has, or an append of nothing, counts as a change, if a new version makes it whose setroot names
    its keys; not if the version is read from the log. Links are taken as they were in the version evaluated before.
    ``wait``: wait for a namespace that does not exist. ``window``: bytes that the client takes before it acknowledges
    some. A Notification counts its body and NOTIFICATION_BYTES; another one is sent while fewer than ``window`` are
    unacknowledged, however long it is.
    """

    key: str
    namespace: Name = PRIMARY
    at_least: int = 0
    recursive: bool = False
    follow: bool = True
    glob: bool = False
    after: int | None = None
    latest: bool = False
    count: int = 0
    uniq: bool = True
    initial: bool = True
    wait: bool = False
    window: int = 1 << 20


class KeyChange(Record):
    """One changed key. ``object`` None: it was removed. ``existed``: it existed in the version before, as ``old``.

    ``appends``: the bytes of each append that made ``object`` of ``old``; empty if it was written anew. None if that is
    not known: not a watch of one key, or the version is read from the log, or changed too many keys to name them.
    """

    key: str
    object: Object | None
    existed: bool
    old: Object | None = None
    appends: list[int] | None = None


class Notification(Record):
    """All changes that one version made to what is watched, ordered by the keys' components; ``root`` is the snapshot.

    ``more``: this is a part; the changes continue in the next Notification, of the same version. ``namespace``: the
    watch's own, or one that a link leads into, if a version of that made the change. Without changes it reports
    progress: all changes up to its version were sent.
    """

    version: int
    root: Ref
    time: float
    changes: list[KeyChange]
    namespace: str = PRIMARY
    more: bool = False


class WatchAck(Record):
    """``kvs.watch-ack``: the client took so many bytes more of the watch ``tag``.

    It has no answer, and no error if the watch has ended.
    """

    tag: int
    bytes: int


class WatchNeed(Record):
    """CONTROL ``kvs.watch-need`` from a child, ``roots.need`` at rank 0: what the watches below need of the versions.

    ``passed``: every broker with watches of the namespace has matched all versions up to this one; None: there are no
    watches. ``floor``: that version and all later ones are needed. ``versions``: these are. It replaces the last one.
    """

    namespace: str
    passed: int | None = None
    floor: int | None = None
    versions: list[int] = []


class HeldRequest(Record):
    """``roots.held`` → Held: whether a version is kept, now that rank 0 has the need that was sent before. -1: none."""

    namespace: str
    version: int = -1


class Held(Record):
    """``newest``: the newest version; later ones are kept in transit."""

    newest: int
    kept: bool


class WatchProgress(Record):
    """``kvs.watch-progress``: request a Notification without changes in the stream of the watch ``tag``.

    It is sent once the watch has reached the version that this broker has now. The request has no answer of its own.
    """

    tag: int
