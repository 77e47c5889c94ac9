"""Promise 3: a version or snapshot can be passed to any process by any channel: a wait for it, or a read at it, then sees it.

In these runs, clients use versions of each other's commits at once, at other brokers, without a message of the
instance.
"""

from __future__ import annotations

import pytest

from fluxmpi.kvs.replica.pending import PendingRequests
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.simulator.checkers import sessions
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from promises.simulation import Break, Patch, kept, noticed


def judge(history: list[Operation]) -> list[str]:
    """Return where a wait ended too early, or a read at a root is not what its version holds."""
    replayed = replay(history)
    return [*replayed.problems, *sessions.violations(history, replayed)]


def test_kept() -> None:
    waited = read = 0
    for history in kept(judge):
        versions = {one.version: one.client for one in history if one.kind == "commit" and one.answered}
        waited += sum(one.kind == "root" and versions.get(one.least, one.client) != one.client for one in history)
        read += sum(one.at and one.kind == "read" for one in history)
    assert waited > 20, "versions of other clients were waited for"
    assert read > 50, "snapshots were read"


def a_wait_does_not_wait(patch: Patch) -> None:
    when = PendingRequests.wait_for_version

    def hasty(self: PendingRequests, msg: object, namespace: str, at_least: int) -> object:
        return when(self, msg, namespace, 0 if msg.topic == "kvs.getroot" else at_least)  # type: ignore[attr-defined, arg-type]

    patch(PendingRequests, "wait_for_version", hasty)


def a_snapshot_is_read_as_what_the_broker_has(patch: Patch) -> None:
    root_at = Reads.root_at
    patch(Reads, "root_at", lambda self, namespace, at: root_at(self, namespace, None if isinstance(at, bytes) else at))


BREAKS: list[tuple[str, Break]] = [
    ("sessions: it was to wait for version", a_wait_does_not_wait),
    ("replay: ", a_snapshot_is_read_as_what_the_broker_has),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning)
