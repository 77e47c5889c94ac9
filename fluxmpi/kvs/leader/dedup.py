"""Deduplication table: (client, serial) → response. It makes sending a commit again harmless.

Every commit and every contribution to a fence has an id: client and serial. The table keeps the response, also an
error's, until the client acknowledges it: every message of a client carries ``acked``, the serial up to which it has
all responses::

    serial     1 … acked      acknowledged: forgotten, and refused when it arrives again
               … floor        dropped: refused when it arrives again, since it may have been applied (indefinite)
               above both     in the table: the same response again; not in it: new, applied

A commit that failed must not take effect because it was sent again: that is why errors are kept too.

The table is bounded in clients, responses and bytes. What is dropped leaves its serial behind, as the client's *floor*:
a commit that arrives again is then an error, and is not applied a second time. Of clients, those that have sent one
commit are dropped first, as a command does; then those that were silent longest. A client that was dropped leaves
(name, floor), and these are bounded, too. So a commit is applied once while fewer than ``clients_max`` +
``dropped_max`` other clients have sent something since; and many short-lived clients drop no response of one that has
sent two commits.

Invariants: a commit id has at most one response; ``bytes`` is what all responses take.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluxmpi.errors import InvalidRequest, encode_error, indefinite
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.wire import CommitId

Response = tuple[int, bytes]
"""A response's status and body: an encoded Committed, or an error."""

RESPONSE_BYTES = 150
"""What a response takes beside its body."""


class ClientResults:
    """One client's responses: those of serials above ``acked``. ``table``: where their bytes are counted."""

    __slots__ = ("acked", "bytes", "floor", "highest", "results", "table")

    def __init__(self, table: DeduplicationTable, floor: int = 0) -> None:
        self.table = table
        self.acked = 0
        self.floor = floor
        self.highest = floor
        """The highest serial that has arrived or has a response."""
        self.results: dict[int, Response] = {}
        """Serial to response."""
        self.bytes = 0

    def acknowledge(self, acked: int) -> None:
        """Forget the responses up to ``acked``, if that is more than what was acknowledged before."""
        if acked <= self.acked:
            return
        results = self.results
        freed = 0
        if acked - self.acked <= len(results):
            for serial in range(self.acked + 1, acked + 1):
                result = results.pop(serial, None)
                if result is not None:
                    freed += RESPONSE_BYTES + len(result[1])
        else:
            for serial in [serial for serial in results if serial <= acked]:
                freed += RESPONSE_BYTES + len(results.pop(serial)[1])
        self.bytes -= freed
        self.table.bytes -= freed
        self.acked = acked

    def response(self, id_: CommitId) -> Response | None:
        """Return the response to this id, an error if it is not kept any more, None if the id is new."""
        serial = id_.serial
        if serial <= self.acked:
            return encode_error(answered_already(id_))
        result = self.results.get(serial)
        return encode_error(dropped(id_)) if result is None and serial <= self.floor else result

    def remember(self, serial: int, status: int, body: bytes) -> None:
        """Keep the response to ``serial``. Past a limit, drop the oldest responses."""
        results, table = self.results, self.table
        size = RESPONSE_BYTES + len(body)
        if serial in results:
            size -= RESPONSE_BYTES + len(results[serial][1])
        results[serial] = status, body
        if serial > self.highest:
            self.highest = serial
        self.bytes += size
        table.bytes += size
        limits = table.limits
        while len(results) > limits.results_max or (self.bytes > limits.result_bytes_client_max and len(results) > 1):
            self.drop_oldest()
        if table.bytes > limits.result_bytes_max:
            table.shrink(self)

    def drop_oldest(self) -> None:
        """Drop the oldest response; its commit is refused when it arrives again."""
        serial = next(iter(self.results))
        freed = RESPONSE_BYTES + len(self.results.pop(serial)[1])
        self.floor = max(self.floor, serial)
        self.bytes -= freed
        self.table.bytes -= freed


class DeduplicationTable:
    """The responses of all clients, in the order in which the clients last sent something."""

    def __init__(self, limits: LeaderLimits) -> None:
        self.limits = limits
        self.bytes = 0
        self._clients: dict[str, ClientResults] = {}
        """Those that have sent several commits."""
        self._new: dict[str, ClientResults] = {}
        """Those that have sent one. They are dropped first."""
        self._dropped: dict[str, int] = {}
        """Clients that were dropped, with their floors; the last one last."""
        self.under_way: dict[CommitId, None] = {}
        """Contributions to fences that are complete and have no response yet: sent again, they are not new."""

    def arrived(self, id_: CommitId, acked: int) -> ClientResults:
        """Note a client's message: take its acknowledgement, and make it the client that sent something last.

        The serial is noted at once: if the client is dropped before the commit has a response, the commit is not new.
        """
        name, clients = id_.client, self._clients
        client = clients.pop(name, None)
        if client is None:
            client = self._join(name)
            if client.highest and client.highest != id_.serial:
                del self._new[name]
                clients[name] = client
                if len(clients) > self.limits.clients_max * 3 // 4:  # leave room for those with one commit
                    silent = next(iter(clients))
                    self._new[silent] = clients.pop(silent)
        else:
            clients[name] = client
        if acked > client.acked:
            client.acknowledge(acked)
        if id_.serial > client.highest:
            client.highest = id_.serial
        return client

    def client(self, name: str) -> ClientResults:
        """Return a client's responses."""
        return self._clients.get(name) or self._new.get(name) or self._join(name)

    def _join(self, name: str) -> ClientResults:
        """Return a client that has sent at most one commit, as the newest of them; drop another one for it."""
        client = self._new.pop(name, None)
        if client is None:
            client = ClientResults(self, self._dropped.pop(name, 0))
            if len(self) >= self.limits.clients_max:
                self._drop()
        self._new[name] = client
        return client

    def _drop(self) -> None:
        """Drop the client that was silent longest, of those with one commit if there are any."""
        clients = self._new or self._clients
        name = next(iter(clients))
        client = clients.pop(name)
        self.bytes -= client.bytes
        floor = max(client.acked, client.highest, client.floor)
        client.table = DeduplicationTable(self.limits)  # an entry of a queue may still answer it
        self._dropped.pop(name, None)
        self._dropped[name] = floor
        if len(self._dropped) > self.limits.dropped_max:
            del self._dropped[next(iter(self._dropped))]

    def shrink(self, newest: ClientResults) -> None:
        """Drop responses, an eighth of the limit, of the clients that were silent longest; ``newest`` keeps its last."""
        limit = self.limits.result_bytes_max * 7 // 8
        for clients in (self._new, self._clients):
            for client in clients.values():
                while len(client.results) > (client is newest):
                    if self.bytes <= limit:
                        return
                    client.drop_oldest()

    def remember_all(self, ids: Iterable[CommitId], status: int, body: bytes) -> None:
        """Keep one response for all contributions to a fence, which is over."""
        for id_ in ids:
            self.client(id_.client).remember(id_.serial, status, body)
            self.under_way.pop(id_, None)

    def clients(self) -> dict[str, list[int]]:
        """Return the serials that have a response, by client; the client that is dropped first comes first."""
        return {name: list(client.results) for name, client in (*self._new.items(), *self._clients.items())}

    def __len__(self) -> int:
        return len(self._clients) + len(self._new)

    def statistics(self) -> dict[str, float]:
        """Return the numbers of clients, of those that were dropped, and the bytes of the responses."""
        return {"clients": len(self), "clients_dropped": len(self._dropped), "response_bytes": self.bytes}

    def check(self) -> None:
        """Assert the invariants."""
        clients = [*self._new.values(), *self._clients.values()]
        assert not self._new.keys() & self._clients.keys()
        assert all(client.table is self for client in clients)
        assert self.bytes == sum(client.bytes for client in clients) <= self.limits.result_bytes_max
        for client in clients:
            assert client.bytes == sum(RESPONSE_BYTES + len(body) for _, body in client.results.values())
        assert len(self) <= self.limits.clients_max
        assert len(self._dropped) <= self.limits.dropped_max


def answered_already(id_: CommitId) -> InvalidRequest:
    """Return the error for a commit whose response is not kept any more. It may have been applied: it is indefinite."""
    text = f"commit {id_.serial} of client {id_.client} was answered already: the client has acknowledged its response"
    return indefinite(InvalidRequest(text))


def dropped(id_: CommitId) -> InvalidRequest:
    """Return the error for a commit whose response was dropped. It may have been applied: it is indefinite."""
    return indefinite(
        InvalidRequest(
            f"commit {id_.serial} of client {id_.client} arrived before, and its outcome is not kept any more: read what it"
            " wrote to see whether it was applied"
        )
    )
