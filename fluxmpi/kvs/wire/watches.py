"""``kvs.watch``: a stream of notifications, and what its client says meanwhile."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire.base import PRIMARY, Record

WINDOW_MAX = 8 << 20
"""Of a watch, and of what all watches of one client may have unacknowledged together."""


NOTIFICATION_BYTES = 64
"""What a notification counts beside its body: so WINDOW_MAX holds fewer than a client's stream may have unread."""


class WatchRequest(Record):
    """``kvs.watch`` → a stream of Notification, until ``kvs.cancel``, ``count``, or an error.

    ``key`` is a value's key, or with ``recursive`` a directory, of which every value below is watched, or with ``glob`` a
    pattern (see ``pattern``). Links on the way are followed, the last one only if ``follow``; below a directory, and from the
    first wildcard of a pattern on, a link is told and not followed.

    The first Notification comes at once: what is there if ``initial``, else nothing; with ``since``, nothing, at that
    version. Then comes one for each later version that changes what is watched; with ``latest``, fewer while the client
    lags: then one tells what changed since the last.

    ``count``: end after so many Notifications that hold a change (0: never). ``uniq`` False, for a key alone: tell also
    that it was written again with the value that it had: by a live version whose setroot names its keys, and not out of the
    history. Links are taken as they were at the last look. ``wait``: a
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


class KeyChange(Record):
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
    changes: list[KeyChange]
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
