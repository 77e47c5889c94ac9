"""What rank 0 remembers of commits, so that sending one again is harmless.

Every commit and contribution to a fence has an id: client and serial. The answer to it is kept, a refusal too, until the client
says that it has it: each message of a client carries ``acked``, the serial up to which all answers have arrived.

Invariants: a commit id has at most one answer; those up to ``acked`` were answered and are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import CommitId

CLIENTS_MAX = 65_536
"""Clients whose commits are remembered; past that, those that were silent longest are forgotten."""

RESULTS_MAX = 65_536
"""Commits of one client that may be under way at a time."""


@dataclass(slots=True)
class ClientResults:
    """What is remembered of one client's commits and contributions to fences, the refused too: who was told that a commit
    failed must not see it happen because it was sent twice. Those up to ``acked`` were answered and are forgotten.
    """

    acked: int = 0
    results: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Serial to the answer's status and body: an encoded RootInfo, or an error."""

    def forget(self, acked: int) -> None:
        results = self.results
        if acked - self.acked <= len(results):
            for serial in range(self.acked + 1, acked + 1):
                results.pop(serial, None)
        else:
            self.results = {serial: result for serial, result in results.items() if serial > acked}
        self.acked = acked

    def remember(self, serial: int, status: int, body: bytes) -> None:
        results = self.results
        results[serial] = status, body
        if len(results) > RESULTS_MAX:
            del results[next(iter(results))]


class DeduplicationTable:
    """The clients' answers, in order of their last word."""

    def __init__(self) -> None:
        self._clients: dict[str, ClientResults] = {}

    def client(self, name: str) -> ClientResults:
        """What is remembered of a client, which has spoken now."""
        clients = self._clients
        client = clients.pop(name, None) or ClientResults()
        clients[name] = client
        if len(clients) > CLIENTS_MAX:
            del clients[next(iter(clients))]
        return client

    def __len__(self) -> int:
        return len(self._clients)


def answered_already(commit_id: CommitId) -> InvalidRequest:
    return InvalidRequest(f"commit {commit_id.serial} of client {commit_id.client} was answered already")
