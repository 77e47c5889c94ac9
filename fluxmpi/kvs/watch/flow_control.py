"""How much each client of this broker may still be sent of its watches: it owes an acknowledgement for what is on its way.

    look ──▶ account ──▶ on the way ──kvs.watch-ack──▶ room again ──▶ the watcher goes on
    no room of its own: it sleeps until that   no room of its client's: ``blocked``, until one of the others has some

Invariants: a client is here while it has watches; what is on its way is the sum of what is of its watches; one that has room
again has none blocked, or is about to wake them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import NOTIFICATION_BYTES, WINDOW_MAX, WatchAck
from fluxmpi.message import Message

Chore = Iterator[list[Message]]
"""Work in small steps, and what is to be sent after each."""


class _Client:
    """``blocked``: watchers with room of their own, while the client has none for all of them together."""

    __slots__ = ("blocked", "unacknowledged", "unblocking", "watchers")

    def __init__(self) -> None:
        self.watchers: dict[int, Watcher] = {}
        self.blocked: dict[Watcher, None] = {}
        self.unacknowledged = 0
        self.unblocking = False


class FlowControl:
    """``wake`` is told of each watcher that has room again; ``do`` takes a chore."""

    def __init__(self, wake: Callable[[Watcher], None], do: Callable[[Chore], None]) -> None:
        self._wake = wake
        self._do = do
        self._clients: dict[int, _Client] = {}

    def add(self, watcher: Watcher) -> None:
        client = self._clients.get(watcher.hop)
        if client is None:
            client = self._clients[watcher.hop] = _Client()
        client.watchers[watcher.tag] = watcher

    def find(self, route: list[int], tag: int) -> Watcher | None:
        """The watcher that a client of this broker has under this tag."""
        client = self._clients.get(route[0]) if len(route) == 1 else None
        return None if client is None else client.watchers.get(tag)

    def __contains__(self, watcher: Watcher) -> bool:
        client = self._clients.get(watcher.hop)
        return client is not None and client.watchers.get(watcher.tag) is watcher

    def remove(self, watcher: Watcher) -> None:
        client = self._clients[watcher.hop]
        client.blocked.pop(watcher, None)
        client.unacknowledged -= watcher.unacknowledged
        del client.watchers[watcher.tag]
        if not client.watchers:
            del self._clients[watcher.hop]
        self._unblock(client)

    def leave(self, hop: int) -> list[Watcher]:
        """A client is gone: the watchers that it had."""
        client = self._clients.pop(hop, None)
        return [] if client is None else list(client.watchers.values())

    def account(self, watcher: Watcher, sent: list[Message]) -> None:
        size = sum(len(notification.body) + NOTIFICATION_BYTES for notification in sent)
        watcher.unacknowledged += size
        self._clients[watcher.hop].unacknowledged += size

    def acknowledge(self, watcher: Watcher, ack: WatchAck) -> None:
        if not 0 <= ack.bytes <= watcher.unacknowledged:
            on_the_way = f"{watcher.unacknowledged:,} are on their way"
            raise InvalidRequest(f"watch {ack.tag}: {ack.bytes:,} bytes are acknowledged, and {on_the_way}")
        client = self._clients[watcher.hop]
        watcher.unacknowledged -= ack.bytes
        client.unacknowledged -= ack.bytes
        self._wake(watcher)
        self._unblock(client)

    def has_room(self, watcher: Watcher) -> bool:
        """Whether it may be told more now; if only its client has no room, it is woken when that has."""
        client = self._clients[watcher.hop]
        if watcher.unacknowledged >= watcher.watch.window:
            return False
        if client.unacknowledged >= WINDOW_MAX:
            client.blocked[watcher] = None
            return False
        return True

    def _unblock(self, client: _Client) -> None:
        """Those that waited for others of their client to be acknowledged, go on."""
        if client.blocked and client.unacknowledged < WINDOW_MAX and not client.unblocking:
            client.unblocking = True
            self._do(self._unblocked(client))

    def _unblocked(self, client: _Client) -> Chore:
        while client.blocked and client.unacknowledged < WINDOW_MAX:
            watcher = next(iter(client.blocked))
            del client.blocked[watcher]
            self._wake(watcher)
            yield []
        client.unblocking = False

    def watchers(self) -> list[Watcher]:
        return [watcher for client in self._clients.values() for watcher in client.watchers.values()]

    @property
    def unacknowledged(self) -> int:
        return sum(client.unacknowledged for client in self._clients.values())

    def sees_room(self, watcher: Watcher) -> bool:
        """As ``has_room``, for who only looks."""
        return watcher.unacknowledged < watcher.watch.window and watcher not in self._clients[watcher.hop].blocked

    def check(self) -> None:
        for client in self._clients.values():
            assert client.watchers, "a client without watches is kept"
            assert client.unacknowledged == sum(watcher.unacknowledged for watcher in client.watchers.values())
            assert client.unblocking or not client.blocked or client.unacknowledged >= WINDOW_MAX, (
                "a client's watches are stuck"
            )
