"""Deduplication table: (client, serial) → response. It makes sending a commit again harmless.

Every commit and every contribution to a fence has an id: client and serial. The table keeps the response, also an
error's, until the client acknowledges it: every message of a client carries ``acked``, the serial up to which it has
all responses::

    serial     1 … acked      acknowledged: forgotten, and refused when it arrives again
               acked + 1 …    in the table: the same response again; not in it: new, applied

A commit that failed must not take effect because it was sent again: that is why errors are kept too.

Invariant: a commit id has at most one response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from fluxmpi.errors import InvalidRequest, encode_error, indefinite
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.wire import CommitId

Response = tuple[int, bytes]
"""A response's status and body: an encoded Committed, or an error."""


@dataclass(slots=True)
class ClientResults:
    """One client's responses: those of serials above ``acked``. Past ``results_max`` the oldest is dropped."""

    results_max: int
    acked: int = 0
    results: dict[int, Response] = field(default_factory=dict)
    """Serial to response."""

    def acknowledge(self, acked: int) -> None:
        """Forget the responses up to ``acked``, if that is more than what was acknowledged before."""
        if acked <= self.acked:
            return
        results = self.results
        if acked - self.acked <= len(results):
            for serial in range(self.acked + 1, acked + 1):
                results.pop(serial, None)
        else:
            self.results = {serial: result for serial, result in results.items() if serial > acked}
        self.acked = acked

    def response(self, id_: CommitId) -> Response | None:
        """Return the response to this id, an error if the client has acknowledged it, None if the id is new."""
        serial = id_.serial
        if serial <= self.acked:
            return encode_error(answered_already(id_))
        return self.results.get(serial)

    def remember(self, serial: int, status: int, body: bytes) -> None:
        """Keep the response to ``serial``."""
        results = self.results
        results[serial] = status, body
        if len(results) > self.results_max:
            del results[next(iter(results))]


class DeduplicationTable:
    """The responses of all clients, in the order in which the clients last sent something."""

    def __init__(self, limits: LeaderLimits) -> None:
        self._limits = limits
        self._clients: dict[str, ClientResults] = {}
        self.under_way: dict[CommitId, None] = {}
        """Contributions to fences that are complete and have no response yet: sent again, they are not new."""

    def client(self, name: str) -> ClientResults:
        """Return the client's responses, and make it the one that sent something last."""
        clients = self._clients
        client = clients.pop(name, None) or ClientResults(self._limits.results_max)
        clients[name] = client
        if len(clients) > self._limits.clients_max:
            del clients[next(iter(clients))]
        return client

    def remember_all(self, ids: Iterable[CommitId], status: int, body: bytes) -> None:
        """Keep one response for all contributions to a fence, which is over."""
        for id_ in ids:
            self.client(id_.client).remember(id_.serial, status, body)
            self.under_way.pop(id_, None)

    def clients(self) -> dict[str, list[int]]:
        """Return the serials that have a response, by client; the client that was silent longest first."""
        return {name: list(client.results) for name, client in self._clients.items()}

    def __len__(self) -> int:
        return len(self._clients)


def answered_already(id_: CommitId) -> InvalidRequest:
    """Return the error for a commit whose response is not kept any more. It may have been applied: it is indefinite."""
    text = f"commit {id_.serial} of client {id_.client} was answered already: the client has acknowledged its response"
    return indefinite(InvalidRequest(text))
