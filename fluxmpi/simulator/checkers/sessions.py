"""Sessions: a client never sees an older version than before, at whatever broker.

See "Session guarantees for weakly consistent replicated data", Terry et al., 1994.

    read-your-writes      a read shows at least the version of this client's commits
    monotonic reads       … and of its earlier reads
    monotonic writes      a commit is in a later version than this client's earlier commits
    writes-follow-reads   … and than its earlier reads

An operation is before another if its answer arrived before the other one was sent. Where an answer does not name its
version, its values must fit a known version that is not too old; of several the oldest counts, which is the weakest
assumption.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.reads import wrong
from fluxmpi.simulator.checkers.versions import VersionStates

Learned = tuple[int, Operation]
"""A version, and the operation whose answer named it."""


@dataclass(slots=True)
class _Known:
    """The newest versions that a client had read, and written, in each namespace."""

    reads: dict[str, Learned] = field(default_factory=dict)
    writes: dict[str, Learned] = field(default_factory=dict)
    fitted: dict[int, int] = field(default_factory=dict)
    """Reads without a version, by identity: the oldest version that they fit."""

    def learn(self, operation: Operation) -> None:
        version = self.fitted.get(id(operation)) if operation.version is None else operation.version
        if version is None or operation.at:
            return
        learned = self.writes if operation.kind == "commit" else self.reads
        if version > learned.get(operation.namespace, (-1, operation))[0]:
            learned[operation.namespace] = version, operation

    def best(self, namespace: str) -> Learned | None:
        learned = [known[namespace] for known in (self.reads, self.writes) if namespace in known]
        return max(learned, key=lambda pair: pair[0], default=None)


def violations(history: Iterable[Operation], states: VersionStates | None = None) -> list[str]:
    """Return the violations. Without ``states``, reads that name no version are not judged."""
    clients: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.answered:
            clients.setdefault(operation.client, []).append(operation)
    return [problem for operations in clients.values() for problem in _client(operations, states)]


def _client(operations: list[Operation], states: VersionStates | None) -> Iterator[str]:
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
        if operation.kind == "watch":  # its first notification; later ones may be delayed
            streams[operation.stream] = None
        if operation.version is not None:
            yield from _by_version(operation, operation.version, known)
        elif operation.kind == "read" and states is not None:
            yield from _by_values(operation, known, states)


def _by_version(operation: Operation, version: int, known: _Known) -> Iterator[str]:
    if version < operation.least:
        yield f"sessions: it was to wait for version {operation.least}:\n    {operation}"
    read, written = known.reads.get(operation.namespace), known.writes.get(operation.namespace)
    if operation.kind == "commit":
        rules = (("monotonic writes", written, 1), ("writes-follow-reads", read, 1))
    else:
        rules = (("read-your-writes", written, 0), ("monotonic reads", read, 0))
    for rule, learned, more in rules:
        if learned is not None and version < learned[0] + more:
            yield _text(rule, learned, operation)


def _by_values(operation: Operation, known: _Known, states: VersionStates) -> Iterator[str]:
    versions, learned = states.versions(operation.namespace), known.best(operation.namespace)
    least = learned[0] if learned is not None else 0
    fits = [
        state.version for state in versions if state.tree is None or not any(True for _ in wrong(operation, state.tree))
    ]
    late = [version for version in fits if version >= least]
    if late:
        known.fitted[id(operation)] = late[0]
    elif fits and learned is not None:
        rule = "read-your-writes" if learned[1].kind == "commit" else "monotonic reads"
        yield f"{_text(rule, learned, operation)}\n    which was right in version {fits[-1]}, and not since"
    else:
        yield f"sessions: no version has that:\n    {operation}"


def _text(rule: str, before: Learned, operation: Operation) -> str:
    earlier = before[1]
    moved = (
        f", having moved from broker {earlier.broker} to {operation.broker}"
        if earlier.broker != operation.broker
        else ""
    )
    return f"sessions: {rule}: {operation.client} went back{moved}:\n    {earlier}\n    {operation}"
