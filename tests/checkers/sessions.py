"""Sessions: whatever broker a client asks, it never goes back ("Session guarantees for weakly consistent replicated data",
Terry et al., 1994).

    read-your-writes      a read shows at least the version of what this client has committed
    monotonic reads       … and of what it has read
    monotonic writes      a commit is in a later version than this client's commits before it
    writes-follow-reads   … and than what it had read

An operation is before another when its answer came before the other was asked. Where an answer does not name its version, the
values tell: the read must fit a version, of those that ``replay`` knows, that is not too old. Of several the oldest is taken,
which leaves most to those after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from checkers.record import Operation
from checkers.replay import Replayed, wrong

Told = tuple[int, Operation]
"""A version, and the operation that told it."""


@dataclass(slots=True)
class _Known:
    """The newest that a client had read, and written, in each namespace."""

    reads: dict[str, Told] = field(default_factory=dict)
    writes: dict[str, Told] = field(default_factory=dict)
    fitted: dict[int, int] = field(default_factory=dict)
    """By identity, of reads that name no version: the oldest one that they fit."""

    def learn(self, operation: Operation) -> None:
        version = self.fitted.get(id(operation)) if operation.version is None else operation.version
        if version is None or operation.at:
            return
        told = self.writes if operation.kind == "commit" else self.reads
        if version > told.get(operation.namespace, (-1, operation))[0]:
            told[operation.namespace] = version, operation

    def best(self, namespace: str) -> Told | None:
        told = [told[namespace] for told in (self.reads, self.writes) if namespace in told]
        return max(told, key=lambda pair: pair[0], default=None)


def violations(history: Iterable[Operation], replayed: Replayed | None = None) -> list[str]:
    """What is wrong, as texts. Without ``replayed``, reads that name no version are not judged."""
    clients: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.answered:
            clients.setdefault(operation.client, []).append(operation)
    return [problem for operations in clients.values() for problem in _client(operations, replayed)]


def _client(operations: list[Operation], replayed: Replayed | None) -> Iterator[str]:
    known = _Known()
    streams: dict[str, None] = {}
    answered = sorted(operations, key=lambda operation: operation.end or 0.0)
    at = 0
    for operation in sorted(operations, key=lambda operation: (operation.start, operation.end or 0.0)):
        while (answered[at].end or 0.0) < operation.start:
            known.learn(answered[at])
            at += 1
        if operation.at or operation.stream in streams:
            continue
        if operation.kind == "watch":  # its first notification; the others may come late
            streams[operation.stream] = None
        if operation.version is not None:
            yield from _by_version(operation, operation.version, known)
        elif operation.kind == "read" and replayed is not None:
            yield from _by_values(operation, known, replayed)


def _by_version(operation: Operation, version: int, known: _Known) -> Iterator[str]:
    if version < operation.least:
        yield f"sessions: it was to wait for version {operation.least}:\n    {operation}"
    read, written = known.reads.get(operation.namespace), known.writes.get(operation.namespace)
    if operation.kind == "commit":
        rules = (("monotonic writes", written, 1), ("writes-follow-reads", read, 1))
    else:
        rules = (("read-your-writes", written, 0), ("monotonic reads", read, 0))
    for rule, told, more in rules:
        if told is not None and version < told[0] + more:
            yield _text(rule, told, operation)


def _by_values(operation: Operation, known: _Known, replayed: Replayed) -> Iterator[str]:
    states, told = replayed.at.get(operation.namespace, {}), known.best(operation.namespace)
    least = told[0] if told is not None else 0
    fits = [
        version
        for version, values in states.items()
        if values is None or not any(True for _ in wrong(operation, values))
    ]
    late = [version for version in fits if version >= least]
    if late:
        known.fitted[id(operation)] = late[0]
    elif fits and told is not None:
        rule = "read-your-writes" if told[1].kind == "commit" else "monotonic reads"
        yield f"{_text(rule, told, operation)}\n    which was so in version {fits[-1]}, and not since"
    else:
        yield f"sessions: no version has that:\n    {operation}"


def _text(rule: str, told: Told, operation: Operation) -> str:
    before = told[1]
    moved = (
        f", having moved from broker {before.broker} to {operation.broker}" if before.broker != operation.broker else ""
    )
    return f"sessions: {rule}: {operation.client} went back{moved}:\n    {before}\n    {operation}"
