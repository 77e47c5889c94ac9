"""Watches: the changes of keys as an iterator, each with the snapshot of its version.

One version is one ``Update``; its changes are together, in order of key. A consumer that must act on a consistent state
reads other keys ``at=change.snapshot``, however far the store has moved on.

    h.kvs.watch("job.*.state")                   a pattern; "job." is all keys below job, "job.7.state" one key
    h.kvs.watch("job.", after=commit.version)    the changes after that version, out of the history, then new ones

Flow control is credit-based: the broker sends only as many bytes as the watch has granted, and the watch grants more as
the program reads. So a slow reader makes the broker wait, not grow. An update that refers to long values counts as read
when the program asks for the next one: until then its version stays readable, however short the history is. In mode
``latest`` the watch then skips to the newest version; in mode ``every`` it delivers all, until it lags too far and
raises Overloaded, or SnapshotCollected. After that, and after ConnectionLost, ``watch.resume_after`` is the version to
continue after.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from fluxmpi.client.channel import Channel
from fluxmpi.client.content import load_blobs
from fluxmpi.client.future import Stream
from fluxmpi.client.kvs.base import Base
from fluxmpi.client.kvs.stored_value import value_of
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import JSON, decode_value
from fluxmpi.errors import ConnectionLost, FluxmpiError, InvalidRequest, RequestTimeout
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import SEPARATOR, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.pattern import Pattern, has_wildcards
from fluxmpi.kvs.wire import NOTIFICATION_BYTES, WINDOW_MAX
from fluxmpi.message import ANY, Message

WatchMode = Literal["every", "latest"]
"""``every``: no version is skipped. ``latest``: versions are skipped while the reader lags."""

UNACKNOWLEDGED_MAX = WINDOW_MAX // 4
"""Bytes read from all watches of a handle and not acknowledged; the broker's credit for them together is WINDOW_MAX."""

KEPT_BYTES_MAX = 1 << 20
"""Bytes of long values that one watch has moved past and not acknowledged: so long, rank 0 keeps their versions."""

LATEST_CREDIT_BYTES = 1
"""Credit of a watch of mode ``latest``: one update, of any size."""

_decode_notification = decoder(wire.Notification)
_decode_last = decoder(Any)

WeighedNotification = tuple[wire.Notification, int]
"""A notification, and the bytes of credit that it used."""


def _decode(message: Message) -> WeighedNotification:
    return _decode_notification(message), len(message.body) + NOTIFICATION_BYTES


class Change:
    """One key that one version changed.

    Attributes:
        key: the key.
        object: the stored object; None if the key was removed.
        old: the object before; None if the key did not exist.
        existed: whether the key existed in the version before.
        snapshot: the version as a snapshot: read other keys of the same state with ``at=change.snapshot``.
    """

    __slots__ = ("_appends", "_channel", "_sizes", "existed", "key", "object", "old", "snapshot")

    def __init__(self, channel: Channel, snapshot: Snapshot, change: wire.KeyChange) -> None:
        self._channel = channel
        self._appends: list[bytes] | bool | None = False
        self._sizes = change.appends
        """Bytes of each append, as the broker told; empty if the value was written anew, None if that is not known."""
        self.key: str = change.key
        self.object: Object | None = change.object
        self.existed: bool = change.existed
        self.old: Object | None = change.old
        self.snapshot: Snapshot = snapshot

    @property
    def deleted(self) -> bool:
        """True if the version removed the key."""
        return self.object is None

    @property
    def created(self) -> bool:
        """True if the key did not exist before."""
        return self.object is not None and not self.existed

    @property
    def appended(self) -> bytes | None:
        """The bytes that were appended to the old value; None if the value was written anew.

        Only the blobs in which the two values differ are loaded.
        """
        appends = self.appends
        return None if appends is None else b"".join(appends)

    @property
    def appends(self) -> list[bytes] | None:
        """What each append of the version added to the old value, in order; None if the value was written anew.

        It is known of a watch of one key, as the version is made. Elsewhere (a pattern, the history, a reader that lags
        far), a value that begins with the old one counts as one append.
        """
        if self._appends is False:
            self._appends = self._find_appended() if self._sizes is None else self._split(self._sizes)
        return self._appends  # type: ignore[return-value]

    def _split(self, sizes: list[int]) -> list[bytes] | None:
        """Return the appends of these sizes, at the end of the new value."""
        new = self.object
        if not sizes or not isinstance(new, Val | ValRef):
            return None
        same = 0 if self.old is None else _equal_refs(self.old, new)
        end = self._bytes_from(new, same)
        begin = len(end) - sum(sizes)
        pieces = []
        for size in sizes:
            pieces.append(bytes(end[begin : begin + size]))
            begin += size
        return pieces

    def _find_appended(self) -> list[bytes] | None:
        old, new = self.old, self.object
        if not isinstance(old, Val | ValRef) or not isinstance(new, Val | ValRef) or new.type != "raw":
            return None
        same = _equal_refs(old, new)
        begin, end = self._bytes_from(old, same), self._bytes_from(new, same)
        if old.type == JSON and not same and begin.startswith(b'"'):  # an append follows the text, not its JSON
            begin = decode_value(JSON, begin).encode()
        return [bytes(end[len(begin) :])] if len(end) > len(begin) and end.startswith(begin) else None

    def _bytes_from(self, found: Val | ValRef, blob: int) -> bytes:
        """Return the bytes from that blob on."""
        if isinstance(found, Val):
            return found.data
        return b"".join(load_blobs(self._channel, found.refs[blob:]))

    @property
    def value(self) -> Any:
        """The new value; a long one is loaded now. None for a removed key, a directory or a link."""
        return value_of(self._channel, self.object)

    @property
    def previous(self) -> Any:
        """The value before; a long one is loaded now. None if there was no value."""
        return value_of(self._channel, self.old)

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.snapshot.version

    @property
    def time(self) -> float:
        """When the version was committed, by rank 0's clock, in seconds since 1970."""
        return self.snapshot.time

    def __repr__(self) -> str:
        what = "deleted" if self.deleted else f"{self.value!r}"
        return f"<Change {self.key} {what} in version {self.version}>"


def _equal_refs(old: Object, new: Object) -> int:
    """Return how many blobs at the beginning of two values are the same."""
    if not isinstance(old, ValRef) or not isinstance(new, ValRef):
        return 0
    count = 0
    while count < min(len(old.refs), len(new.refs)) and old.refs[count] == new.refs[count]:
        count += 1
    return count


class Update:
    """All changes that one version made to what is watched.

    The first update has the state at the beginning; it may be empty. A later update without changes answers
    ``Watch.progress``.

    Attributes:
        snapshot: the version as a snapshot.
        changes: the changes, in order of key.
    """

    __slots__ = ("changes", "snapshot")

    def __init__(self, snapshot: Snapshot, changes: list[Change]) -> None:
        self.snapshot = snapshot
        self.changes = changes

    @property
    def version(self) -> int:
        """The number of the version."""
        return self.snapshot.version

    @property
    def time(self) -> float:
        """When the version was committed, by rank 0's clock, in seconds since 1970."""
        return self.snapshot.time


class Watch:
    """An open watch, made by ``h.kvs.watch``: iterate over its changes.

    Close it, or use it in a ``with`` block: until then the broker keeps it. A watch that is no longer referenced is
    closed when its handle sends something after that.

    Attributes:
        version: the watch is complete up to this version, as far as it was read; -1 before the first update.
        error: what ended it; None while it is open.
    """

    def __init__(self, channel: Channel, request: wire.WatchRequest, open_watches: OpenWatches) -> None:
        self._channel = channel
        self._request = request
        self._open_watches = open_watches
        self._changes: deque[Change] = deque()
        self._part: list[wire.KeyChange] = []
        self._updates_left = request.count
        self._unacknowledged = 0
        self._handed = 0
        """Bytes of the last update, if it refers to values: acknowledged when the program asks for the next one."""
        self._referenced = 0
        """Bytes of the values that the parts of the update that is being read refer to."""
        self._kept = 0
        """Bytes of the values of updates that were read and are not acknowledged."""
        self.version = -1
        self.error: FluxmpiError | None = None
        self._stream = self._open()

    def _open(self) -> Stream[WeighedNotification]:
        request = self._request
        after = self.resume_after
        at_least = self._channel.session.at_least(request.namespace)
        request = msgspec.structs.replace(request, at_least=at_least, after=after, count=self._updates_left)
        self._open_watches.add(self)
        return self._channel.send_stream("kvs.watch", encode("kvs.watch", request), ANY, _decode, _decode_last)

    @property
    def resume_after(self) -> int | None:
        """The version to watch again after, ``after=…``, to miss no change and get none twice; None: from the beginning."""
        return self.version if self.version >= 0 else self._request.after

    def _reopen(self) -> None:
        """Continue after the last version, over the channel's new connection; not if the watch has ended."""
        if self._stream.ended and self.error is None and not self._stream.lost:
            return
        if not self._stream.over:  # else its tag may be another request's, of the new connection
            self._stream.close()
        self._part.clear()
        self._unacknowledged = self._handed = self._referenced = self._kept = 0
        self.error = None
        self._stream = self._open()

    @property
    def ready(self) -> bool:
        """True if ``get`` and ``update`` return or raise at once, or as soon as a long update has arrived.

        To ask is to wait for the next update: the values of the last one need not be readable any more.
        """
        if self._changes or self._stream.ready:
            return True
        self._move_past()
        return self._stream.ready

    def update(self, timeout: float | None = None) -> Update | None:
        """Wait for the next version that changed something, and return all its changes.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The update; None at the end of the watch, after its ``count`` updates.

        Raises:
            RequestTimeout: no change within ``timeout``; the watch continues.
            Overloaded: the watch of mode ``every`` lagged too far. Continue after ``resume_after``.
            ConnectionLost: the connection ended. ``Handle.reconnect`` continues the watch.
            SnapshotCollected: the versions after ``after`` are not kept any more.
            NoSuchNamespace: the namespace was removed.

        Example:
            >>> with h.kvs.watch("doc.step") as watch:
            ...     first = watch.update()                      # the state now
            ...     _ = h.kvs.put("doc.step", 1)
            ...     [change.value for change in watch.update(timeout=10).changes]
            [1]
        """
        self._move_past()
        while True:
            try:
                got = self._stream.get(timeout)
            except RequestTimeout:
                if timeout is None or self._stream.ended:  # the broker says so
                    raise
                raise RequestTimeout(f"no change of '{self._request.key}' within {timeout:g} s") from None
            except FluxmpiError as error:
                self._ended(error)
                raise
            if got is None:
                self._open_watches.remove(self)
                return None
            notification, size = got
            for change in notification.changes:
                if isinstance(change.object, ValRef):
                    self._referenced += change.object.size
            self._part += notification.changes
            if notification.more:
                self._open_watches.read(self, size)
                continue
            if self._referenced:
                self._handed = size
                self._kept += self._referenced
                self._referenced = 0
            else:
                self._open_watches.read(self, size)
            return self._complete(notification)

    def _move_past(self) -> None:
        """Acknowledge the last update: its version need not be kept any more for this watch."""
        size, self._handed = self._handed, 0
        if size:
            self._open_watches.read(self, size, at_once=self._kept >= KEPT_BYTES_MAX)

    def _ended(self, error: FluxmpiError) -> None:
        if self._stream.ended:
            self.error = error
            if not isinstance(error, ConnectionLost):  # after that it may continue at another broker
                self._open_watches.remove(self)

    def _complete(self, notification: wire.Notification) -> Update:
        changes, self._part = self._part, []
        namespace, version = notification.namespace, notification.version
        snapshot = Snapshot(namespace, version, notification.root, notification.time)
        self._channel.session.saw(namespace, version)
        if namespace == self._request.namespace:
            self.version = max(self.version, version)
        if self._updates_left and changes:
            self._updates_left -= 1
        return Update(snapshot, [Change(self._channel, snapshot, change) for change in changes])

    def get(self, timeout: float | None = None) -> Change | None:
        """Wait for the next change and return it; None at the end of the watch. Raises what ``update`` does.

        Args:
            timeout: seconds to wait; None waits without a limit.
        """
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
        """Iterate over the updates, one for each version that changed something."""
        while (update := self.update()) is not None:
            yield update

    def progress(self) -> None:
        """Ask how far the watch is. The answer is an update without changes, in its place among the others.

        Its version is at least the one that this node's broker has now. An iteration over changes shows it in
        ``version`` only.
        """
        self._channel.post("kvs.watch-progress", wire.WatchProgress(self._stream.tag))

    def close(self) -> None:
        """End the watch. Unread changes are dropped."""
        if not self._channel.closed and not self._stream.ended:
            self._channel.post("kvs.cancel", wire.Cancel(self._stream.tag))
        self._stream.close()
        self._open_watches.remove(self)
        self._changes.clear()
        self._part.clear()

    def __del__(self) -> None:
        # It may run in the middle of anything that the channel does, so the next flush sends the cancellation.
        stream = getattr(self, "_stream", None)
        if stream is not None and not stream.over:
            self._channel.forgotten.append(stream)

    def _acknowledge(self) -> None:
        """Grant the broker credit for what was read."""
        size, self._unacknowledged = self._unacknowledged, 0
        self._kept = 0
        if size and not self._channel.closed and not self._stream.ended:
            self._channel.post("kvs.watch-ack", wire.WatchAck(self._stream.tag, size))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class OpenWatches:
    """The open watches of one handle, and the bytes read from them that are not acknowledged.

    A watch acknowledges when it has read half its credit, and all do when UNACKNOWLEDGED_MAX is reached: seldom, and
    before the broker has to wait.
    """

    def __init__(self) -> None:
        self._watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()
        self._bytes = 0

    def add(self, watch: Watch) -> None:
        """Note an open watch."""
        self._watches[id(watch)] = watch

    def read(self, watch: Watch, size: int, at_once: bool = False) -> None:
        """Count ``size`` bytes that were read from a watch, and acknowledge them if it is time."""
        watch._unacknowledged += size
        self._bytes += size
        if at_once or 2 * watch._unacknowledged >= watch._request.window:
            self._bytes -= watch._unacknowledged
            watch._acknowledge()
        elif self._bytes >= UNACKNOWLEDGED_MAX:
            self._bytes = 0
            for other in list(self._watches.values()):
                other._acknowledge()

    def remove(self, watch: Watch) -> None:
        """Drop a watch that has ended."""
        self._bytes -= watch._unacknowledged
        watch._unacknowledged = 0
        self._watches.pop(id(watch), None)

    def reopen(self, channel: Channel) -> None:
        """Continue every open watch after a reconnection."""
        for watch in list(self._watches.values()):
            watch._reopen()


class Watching(Base):
    """The watches of ``h.kvs``."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._open_watches = OpenWatches()
        channel.on_reconnect.append(self._open_watches.reopen)

    def watch(
        self,
        pattern: str,
        *,
        after: int | None = None,
        mode: WatchMode = "every",
        initial: bool = True,
        count: int | None = None,
    ) -> Watch:
        """Watch the changes of a key, of all keys below a directory, or of all keys that match a pattern.

        First comes the state now, as one update, then every version that changes it: in order, none skipped, none
        twice.

        Args:
            pattern: what to watch; it need not exist yet. ``job.7.state`` is one key; ``job.`` is every key below
                ``job``, and ``.`` every key. With wildcards, it is every key that matches: ``*``, ``?`` and ``[…]``
                stand for a part of one component, a component ``**`` for any number of components: ``job.*.state``,
                ``**.log``.
            after: start with the changes after this version, out of the history, not with the state now.
            mode: ``every``, or ``latest`` to skip versions while the reader lags.
            initial: False leaves the state now out.
            count: end after so many updates that have changes.

        Returns:
            The open watch. Errors of the broker are raised when it is read.

        Raises:
            InvalidRequest: an argument is out of range, or the pattern is not one.
            InvalidKey: the pattern breaks the rules for keys.

        Example:
            >>> start = h.kvs.version()
            >>> _ = h.kvs.commit({"doc.job.1.state": "NEW", "doc.job.1.node": "n7"})
            >>> _ = h.kvs.put("doc.job.1.state", "RUN")
            >>> with h.kvs.watch("doc.job.*.state", after=start, count=2) as watch:
            ...     [(change.key, change.previous, change.value) for change in watch]
            [('doc.job.1.state', None, 'NEW'), ('doc.job.1.state', 'NEW', 'RUN')]
        """
        glob = has_wildcards(pattern)
        recursive = pattern.endswith(SEPARATOR)
        if glob:
            if recursive:
                pattern, recursive = f"{pattern}**", False
            Pattern.glob(pattern)
        else:
            split_key(pattern)
        return self._watch(pattern, after, mode, initial, count, recursive=recursive, glob=glob, wait=True)

    def watch_key(
        self,
        key: str,
        *,
        after: int | None = None,
        mode: WatchMode = "every",
        initial: bool = True,
        count: int | None = None,
        recursive: bool = False,
        rewrites: bool = False,
        wait: bool = True,
    ) -> Watch:
        """Watch one key, taken literally: a ``*`` in it is part of its name.

        Args:
            key: the key.
            after: as for ``watch``.
            mode: as for ``watch``.
            initial: as for ``watch``.
            count: as for ``watch``.
            recursive: watch every key below ``key``.
            rewrites: report versions that wrote the key with the value that it had, or appended nothing, too. Such
                writes are reported as they happen only: not out of the history (``after``, after a reconnection, or for
                a reader that lags), nor for a version that changed more than 1,024 keys. Not with ``recursive``.
            wait: wait for a namespace that does not exist yet; False raises NoSuchNamespace, also for one that a link
                leads to.

        Returns:
            The open watch. Errors of the broker are raised when it is read: IsADirectory, if the key is a directory.

        Example:
            >>> with h.kvs.watch_key("doc.log") as watch:
            ...     _ = watch.update()                          # the state now: nothing
            ...     with h.kvs.txn() as t:
            ...         t.append("doc.log", "one line\\n")
            ...     watch.get(timeout=10).value
            b'one line\\n'
        """
        split_key(key)
        return self._watch(key, after, mode, initial, count, recursive=recursive, uniq=not rewrites, wait=wait)

    def _watch(
        self, key: str, after: int | None, mode: WatchMode, initial: bool, count: int | None, **options: bool
    ) -> Watch:
        if mode not in ("every", "latest"):
            raise InvalidRequest(f"a watch's mode is 'every' or 'latest', not '{mode}'")
        if count is not None and count < 1:
            raise InvalidRequest(f"a watch ends after 1 or more updates, so count cannot be {count}")
        latest = mode == "latest"
        request = wire.WatchRequest(
            key,
            self._namespace,
            after=after,
            latest=latest,
            count=count or 0,
            initial=initial,
            window=LATEST_CREDIT_BYTES if latest else self._channel.limits.watch_credit_bytes,
            **options,
        )
        return Watch(self._channel, request, self._open_watches)
