"""Watches: the changes of keys as an iterator, each with the snapshot that it came with.

One version is one ``Update``; its changes come together and in order of key. A consumer that must act on a consistent
state reads more keys ``at=change.snapshot``, however far the store has moved on.

    for change in h.kvs.watch("job.*.state"): …                  a pattern; "job." is all below job, "job.7.state" one key
    for change in h.kvs.watch("job.", since=commit.version): …   what was changed after that version, then what is

The broker sends only as much as a watch has room for (``window``), and is told what was taken. So whoever reads slowly makes
the broker wait, not grow: ``mode="latest"`` then skips to the newest version; ``mode="every"`` is told all, until it lags too
far and raises Overloaded. ``watch.resume`` is the version to go on from, then and after ConnectionLost.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from fluxmpi.client.base import Base
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import JSON, decode_value
from fluxmpi.errors import ConnectionLost, FluxmpiError, InvalidRequest, RequestTimeout
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import SEPARATOR, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.pattern import Pattern, has_wildcards
from fluxmpi.kvs.wire import NOTIFICATION_BYTES, PRIMARY, WINDOW_MAX
from fluxmpi.message import ANY, Message

if TYPE_CHECKING:
    from fluxmpi.client.handle import Stream
    from fluxmpi.client.kvs import Kvs

WINDOW_BYTES = 1 << 20
"""Of a watch in mode ``every``: what the broker sends ahead of what was taken. In mode ``latest`` it is one update."""

TAKEN_MAX = WINDOW_MAX // 4
"""Taken by all watches of a handle together, and not yet said to the broker, whose room for them together is WINDOW_MAX."""

_decode_notification = decoder(wire.Notification)
_decode_last = decoder(Any)


def _decode(message: Message) -> tuple[wire.Notification, int]:
    """With what it weighs for the broker."""
    return _decode_notification(message), len(message.body) + NOTIFICATION_BYTES


class Change:
    """One key that one version changed. ``existed``: it was there before, as ``old``. ``object`` None: it is gone."""

    __slots__ = ("_added", "_append", "_kvs", "existed", "key", "object", "old", "snapshot")

    def __init__(self, kvs: Kvs, snapshot: Snapshot, change: wire.KeyChange, append: bool = False) -> None:
        self._kvs = kvs
        self._append = append
        self._added: bytes | bool | None = False
        self.key: str = change.key
        self.object: Object | None = change.object
        self.existed: bool = change.existed
        self.old: Object | None = change.old
        self.snapshot: Snapshot = snapshot

    @property
    def deleted(self) -> bool:
        return self.object is None

    @property
    def created(self) -> bool:
        """It was not there before."""
        return self.object is not None and not self.existed

    @property
    def appended(self) -> bool:
        """The new value begins with the old one, and is longer."""
        return self.added is not None

    @property
    def added(self) -> bytes | None:
        """What was appended; None if the value was written anew. Loads only the blobs in which the two differ."""
        if self._added is False:
            self._added = self._find_added()
        return self._added  # type: ignore[return-value]

    def _find_added(self) -> bytes | None:
        old, new = self.old, self.object
        if not isinstance(old, Val | ValRef) or not isinstance(new, Val | ValRef) or new.type != "raw":
            return None
        same = 0  # blobs at the beginning
        before, after = _refs(old), _refs(new)
        while same < min(len(before), len(after)) and before[same] == after[same]:
            same += 1
        begin, end = self._from(old, same), self._from(new, same)
        if old.type == JSON and not same and begin.startswith(b'"'):  # what is appended stands behind the text
            begin = decode_value(JSON, begin).encode()
        return bytes(end[len(begin) :]) if len(end) > len(begin) and end.startswith(begin) else None

    def _from(self, found: Val | ValRef, blob: int) -> bytes:
        """The bytes from that blob on."""
        if isinstance(found, Val):
            return found.data
        return b"".join(self._kvs._handle.content.load_all(found.refs[blob:]))

    @property
    def value(self) -> Any:
        """The new value, loaded now if it is long; None for what is gone, and for a link.

        Of a watch with ``append``, only what was appended, if ``appended``.
        """
        if self._append and self.added is not None:
            return self.added
        return self._kvs.value_of(self.object) if isinstance(self.object, Val | ValRef) else None

    @property
    def previous(self) -> Any:
        """The value before, loaded now if it is long; None if there was none."""
        return self._kvs.value_of(self.old) if isinstance(self.old, Val | ValRef) else None

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def time(self) -> float:
        """When it was committed, seconds since 1970."""
        return self.snapshot.time

    def __repr__(self) -> str:
        what = "deleted" if self.deleted else f"{self.value!r}"
        return f"<Change {self.key} {what} in version {self.version}>"


def _refs(found: Object) -> tuple[bytes, ...]:
    return found.refs if isinstance(found, ValRef) else ()


class Update:
    """All changes that one version made to what is watched.

    The first one holds what was there, maybe nothing. One without changes says that all up to its version was told.
    """

    __slots__ = ("changes", "snapshot")

    def __init__(self, snapshot: Snapshot, changes: list[Change]) -> None:
        self.snapshot = snapshot
        self.changes = changes

    @property
    def version(self) -> int:
        return self.snapshot.version

    @property
    def time(self) -> float:
        return self.snapshot.time


class Watch:
    """Iterate for Changes, or call ``get`` for a Change and ``update`` for an Update with a time limit. Close it when done, or
    use it in a ``with`` block; one that is forgotten is closed when its handle sends something after that.

    ``version``: all up to it was told, as far as it was read; -1 before the first update. ``error``: what ended it.
    """

    def __init__(self, kvs: Kvs, ask: wire.WatchRequest, append: bool, taken: Taken) -> None:
        self._kvs = kvs
        self._handle = kvs._handle
        self._ask = ask
        self._append = append
        self._together = taken
        self._changes: deque[Change] = deque()
        self._part: list[wire.KeyChange] = []
        self._left = ask.count
        self.taken = 0
        """Bytes taken and not yet said to the broker."""
        self.version = -1
        self.error: FluxmpiError | None = None
        self.stream = self._open()

    def _open(self) -> Stream:
        ask = self._ask
        after = self.resume
        least = self._handle.session.at_least(ask.namespace)
        ask = msgspec.structs.replace(ask, at_least=least, after=after, count=self._left)
        self._together.watches[id(self)] = self
        return self._handle.send_stream("kvs.watch", encode("kvs.watch", ask), ANY, _decode, _decode_last)

    @property
    def resume(self) -> int | None:
        """The version to watch again from, ``since=…``, to miss nothing and get nothing twice; None: from the beginning."""
        return self.version if self.version >= 0 else self._ask.after

    def reopen(self) -> None:
        """Watch on where this watch came to, over the connection that the handle has now; unless it is over."""
        if self.stream.ended and self.error is None and not self.stream.lost:
            return
        if not self.stream.over:  # else its tag may be another request's, of a new connection
            self.stream.close()
        self._part.clear()
        self.taken = 0
        self.error = None
        self.stream = self._open()

    @property
    def ready(self) -> bool:
        """True when ``get`` or ``update`` returns or raises at once, or will as soon as a long update is here."""
        return bool(self._changes) or self.stream.ready

    def update(self, timeout: float | None = None) -> Update | None:
        """The next version's changes; None when the watch is over. Raises RequestTimeout after ``timeout`` seconds."""
        while True:
            try:
                got = self.stream.get(timeout)
            except RequestTimeout:
                raise RequestTimeout(f"nothing of '{self._ask.key}' was changed within {timeout:g} s") from None
            except FluxmpiError as error:
                self._ended(error)
                raise
            if got is None:
                self._together.forget(self)
                return None
            notification, size = got
            self._together.took(self, size)
            self._part += notification.changes
            if not notification.more:
                return self._told(notification)

    def _ended(self, error: FluxmpiError) -> None:
        if self.stream.ended:
            self.error = error
            if not isinstance(error, ConnectionLost):  # after that it may go on at another broker
                self._together.forget(self)

    def _told(self, notification: wire.Notification) -> Update:
        changes, self._part = self._part, []
        namespace, version = notification.namespace, notification.version
        snapshot = Snapshot(namespace, version, notification.root, notification.time)
        self._handle.session.saw(namespace, version)
        if namespace == self._ask.namespace:
            self.version = max(self.version, version)
        if self._left and changes:
            self._left -= 1
        return Update(snapshot, [Change(self._kvs, snapshot, change, self._append) for change in changes])

    def get(self, timeout: float | None = None) -> Change | None:
        """The next change; None when the watch is over. Raises RequestTimeout."""
        while not self._changes:
            update = self.update(timeout)
            if update is None:
                return None
            self._changes.extend(update.changes)
        return self._changes.popleft()

    def __iter__(self) -> Iterator[Change]:
        while (change := self.get()) is not None:
            yield change

    def updates(self) -> Iterator[Update]:
        while (update := self.update()) is not None:
            yield update

    def progress(self) -> None:
        """Ask how far this watch has come. In its turn comes an Update without changes, whose version is at least the one
        that this node's broker has now; iterating for changes, only ``version`` shows it.
        """
        self._handle.post("kvs.watch-progress", wire.WatchProgress(self.stream.tag))

    def close(self) -> None:
        """Watch no more; what has not been read is dropped."""
        if not self._handle.closed and not self.stream.ended:
            self._handle.post("kvs.cancel", wire.Cancel(self.stream.tag))
        self.stream.close()
        self._together.forget(self)
        self._changes.clear()
        self._part.clear()

    def __del__(self) -> None:
        # Perhaps in the middle of anything that the handle does: it takes leave when it sends the next time.
        stream = getattr(self, "stream", None)
        if stream is not None and not stream.over:
            self._handle.left.append(stream)

    def acknowledge(self) -> None:
        """Say to the broker what was taken."""
        taken, self.taken = self.taken, 0
        if taken and not self._handle.closed and not self.stream.ended:
            self._handle.post("kvs.watch-ack", wire.WatchAck(self.stream.tag, taken))

    @property
    def window(self) -> int:
        return self._ask.window

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Taken:
    """The open watches of one handle, and the bytes that were taken from them: said to the broker when half a watch's window
    is taken, or TAKEN_MAX of all, so seldom, and before the broker has to wait for it.
    """

    def __init__(self) -> None:
        self.watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
        self._bytes = 0

    def took(self, watch: Watch, size: int) -> None:
        watch.taken += size
        self._bytes += size
        if 2 * watch.taken >= watch.window:
            self._bytes -= watch.taken
            watch.acknowledge()
        elif self._bytes >= TAKEN_MAX:
            self._bytes = 0
            for other in list(self.watches.values()):
                other.acknowledge()

    def forget(self, watch: Watch) -> None:
        self._bytes -= watch.taken
        watch.taken = 0
        self.watches.pop(id(watch), None)


class Watching(Base):
    """The part of ``h.kvs`` that watches."""

    _taken: Taken | None = None

    def watch(
        self,
        pattern: str,
        *,
        since: int | None = None,
        mode: str = "every",
        recursive: bool | None = None,
        glob: bool | None = None,
        initial: bool = True,
        count: int | None = None,
        uniq: bool = True,
        append: bool = False,
        wait: bool = True,
        namespace: str = PRIMARY,
        follow: bool = True,
        window: int | None = None,
    ) -> Watch:
        """Iterate over the changes of a key, of all keys below a directory (``job.``, or ``recursive=True``), or of those
        that match a pattern (``job.*.state``, ``**.log``; ``glob=False`` if it is a key all the same).

        First comes what is there, unless ``initial`` is false; then every version that changes it, none skipped, none twice.
        With ``since`` come the changes after that version instead. ``mode="latest"`` skips versions when the reader lags.
        Ends after ``count`` updates that hold changes. ``uniq=False``: a key written again with its value is a change.
        ``append``: a change's ``value`` is what was appended, or all if it was written anew. ``wait=False``: raise
        NoSuchNamespace rather than wait for the namespace, or one that a link leads to. A link in the place of a
        wildcard, or below a directory, is not followed.
        """
        if mode not in ("every", "latest"):
            raise InvalidRequest(f"a watch's mode is 'every' or 'latest', not '{mode}'")
        if count is not None and count < 1:
            raise InvalidRequest(f"a watch ends after 1 or more updates, so count cannot be {count}")
        if glob is None:
            glob = has_wildcards(pattern) and not recursive
        if glob and pattern.endswith(SEPARATOR):
            pattern += "**"
        if glob:
            Pattern.glob(pattern)
        else:
            split_key(pattern)
        if recursive is None:
            recursive = pattern.endswith(SEPARATOR) and not glob
        latest = mode == "latest"
        ask = wire.WatchRequest(
            pattern,
            namespace,
            0,
            recursive,
            follow,
            glob,
            since,
            latest,
            count or 0,
            uniq,
            initial,
            wait,
            window if window is not None else 1 if latest else WINDOW_BYTES,
        )
        if self._taken is None:
            self._taken = Taken()
        return Watch(self, ask, append, self._taken)  # type: ignore[arg-type]

    def rewatch(self) -> None:
        """After reconnecting: every open watch goes on where it came to."""
        if self._taken is not None:
            for watch in list(self._taken.watches.values()):
                watch.reopen()
