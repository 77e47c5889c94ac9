"""Watches: the changes of a key or a directory as an iterator, each with the snapshot that it came with.

One version is one ``Update``; its changes come together and in order of key. A consumer that must act on a consistent
state reads more keys ``at=change.snapshot``, however far the store has moved on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import Object, Val, ValRef
from fluxmpi.message import ANY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs import Kvs

_decode_notification = decoder(wire.Notification)
_decode_last = decoder(Any)


class Change:
    """One key that one version changed. ``existed``: it was there before. ``object`` None: it is gone."""

    __slots__ = ("_kvs", "existed", "key", "object", "snapshot")

    def __init__(self, kvs: Kvs, snapshot: Snapshot, change: wire.Change) -> None:
        self._kvs = kvs
        self.key: str = change.key
        self.object: Object | None = change.object
        self.existed: bool = change.existed
        self.snapshot: Snapshot = snapshot

    @property
    def deleted(self) -> bool:
        return self.object is None

    @property
    def value(self) -> Any:
        """The new value, loaded now if it is long; None for what is gone, and for a directory or link."""
        return self._kvs.value_of(self.object) if isinstance(self.object, Val | ValRef) else None

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


class Update:
    """All changes that one version made to what is watched; the first holds what was there, maybe nothing."""

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
    """Iterate for Changes, or call ``get`` for a Change and ``update`` for an Update with a time limit. Close it when
    done.
    """

    def __init__(self, handle: Handle, kvs: Kvs, key: str, namespace: str, recursive: bool, follow: bool) -> None:
        self._handle = handle
        self._kvs = kvs
        self._namespace = namespace
        self._changes: deque[Change] = deque()
        ask = wire.Watch(key, namespace, handle.session.at_least(namespace), recursive, follow)
        self.stream = handle.send_stream("kvs.watch", encode("kvs.watch", ask), ANY, _decode_notification, _decode_last)

    @property
    def ready(self) -> bool:
        """True when ``get`` or ``update`` returns or raises at once."""
        return bool(self._changes) or self.stream.ready

    def update(self, timeout: float | None = None) -> Update | None:
        """The next version's changes; None when the watch is over. Raises RequestTimeout after ``timeout`` seconds."""
        notification = self.stream.get(timeout)
        if notification is None:
            return None
        snapshot = Snapshot(self._namespace, notification.version, notification.root, notification.time)
        self._handle.session.saw(self._namespace, notification.version)
        return Update(snapshot, [Change(self._kvs, snapshot, change) for change in notification.changes])

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

    def close(self) -> None:
        """Watch no more; what has not been read is dropped."""
        if not self._handle.closed and not self.stream.ended:
            self._handle.post("kvs.cancel", wire.Cancel(self.stream.tag))
        self.stream.close()
        self._changes.clear()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
