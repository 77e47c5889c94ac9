"""The clients of this broker that have watches."""

from __future__ import annotations

from collections.abc import Iterator

from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.watcher import WatchClient, Watcher


class WatchClients:
    """WatchClients by hop. Invariant: each has watchers."""

    def __init__(self, limits: WatchLimits) -> None:
        self._limits = limits
        self._clients: dict[int, WatchClient] = {}

    def get(self, hop: int) -> WatchClient:
        """Return a client; create it if it is new. The caller adds a watcher to it."""
        client = self._clients.get(hop)
        if client is None:
            client = self._clients[hop] = WatchClient(self._limits)
        return client

    def find(self, route: list[int], tag: int) -> Watcher | None:
        """Return the watcher with this tag of the client that a request came from; None if it is another broker's."""
        client = self._clients.get(route[0]) if len(route) == 1 else None
        return None if client is None else client.watchers.get(tag)

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher, and its client with the last one."""
        watcher.client.remove(watcher)
        if not watcher.client.watchers:
            del self._clients[watcher.hop]

    def disconnect(self, hop: int) -> list[Watcher]:
        """Forget a client; return its watchers."""
        client = self._clients.pop(hop, None)
        return [] if client is None else list(client.watchers.values())

    @property
    def unacknowledged(self) -> int:
        """Bytes of all clients."""
        return sum(client.unacknowledged for client in self._clients.values())

    def watchers(self) -> Iterator[Watcher]:
        for client in self._clients.values():
            yield from client.watchers.values()

    def __len__(self) -> int:
        return len(self._clients)

    def check(self) -> None:
        for client in self._clients.values():
            client.check()
