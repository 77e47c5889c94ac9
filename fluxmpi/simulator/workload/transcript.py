"""What the clients sent and were answered: one ``ClientCall`` per request, with all its answers.

Checkers read only this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fluxmpi.kvs.wire import Add, AddTo, Commit, CommitId, Contribution, Op
from fluxmpi.overlay.wire import Origin

VersionMap = dict[str, int]
"""Namespace to the version that a broker has."""


@dataclass(slots=True)
class Answer:
    """``body``: the decoded record, or the error's text if ``status`` is an error's code.

    ``low``, ``high``: the versions of the answering broker when it took the request and when it answered.
    """

    time: float
    rank: int
    status: int
    body: Any
    low: VersionMap
    high: VersionMap


@dataclass(slots=True)
class ClientCall:
    """One request of one client. A commit that was sent again has several answers, and so has a stream.

    ``cut``: the connection closed, so an answer may be lost. ``cancelled``: the client ended the stream.
    """

    client: str
    topic: str
    body: Any
    began: float
    saw: VersionMap
    """The versions of the client's session when it was sent."""
    id: CommitId | None = None
    ended: float | None = None
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    cut: bool = False
    cancelled: bool = False
    progress_after: int | None = None
    """Number of answers of a watch when the client last asked for its progress."""

    @property
    def done(self) -> bool:
        return self.ended is not None

    def __str__(self) -> str:
        return f"{self.client}: {self.topic} {self.body} at {self.began:.6f}"


@dataclass(slots=True)
class SubscribedCall:
    """A client's subscription: the answer of ``call`` is the sequence number after which it began."""

    call: ClientCall
    prefix: str
    events: list[tuple[str, int, bytes]] = field(default_factory=list)
    snapshots: dict[int, Origin | None] = field(default_factory=dict)
    """Sequence number to the version whose commit published the event."""
    ended: bool = False


@dataclass(slots=True)
class Transcript:
    """All requests of all clients of a run."""

    calls: list[ClientCall] = field(default_factory=list)
    subscriptions: list[SubscribedCall] = field(default_factory=list)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    """The blobs that clients stored, by ref."""

    def asked(self) -> dict[CommitId, Commit | Contribution | AddTo]:
        """Return what each commit, contribution and addition asked for, by its id."""
        found = {}
        for call in self.calls:
            if call.id is not None:
                found[call.id] = call.body.parts[0] if call.topic == "kvs.fence" else call.body
        return found

    def ops(self) -> dict[CommitId, list[Op]]:
        """Return their operations, of both branches."""
        found: dict[CommitId, list[Op]] = {}
        for commit_id, body in self.asked().items():
            if isinstance(body, AddTo):
                found[commit_id] = [Add(body.key, body.amount)]
            else:
                found[commit_id] = [*body.ops, *getattr(body, "otherwise", [])]
        return found

    def of(self, *topics: str) -> list[ClientCall]:
        return [call for call in self.calls if call.topic in topics]
