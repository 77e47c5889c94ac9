"""Promise 2: a client never reads an older version than it has read or written, also after it moved to another broker."""

from __future__ import annotations

import pytest

from fluxmpi.client.session import Session
from fluxmpi.kvs.replica.pending import PendingRequests
from fluxmpi.simulator.checkers import sessions
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from promises.simulation import Break, Patch, kept, noticed


def judge(history: list[Operation]) -> list[str]:
    return sessions.violations(history, replay(history))


def test_kept() -> None:
    brokers: dict[tuple[int, str], set[int]] = {}
    for seed, history in enumerate(kept(judge)):
        for one in history:
            brokers.setdefault((seed, one.client), set()).add(one.broker)
    assert sum(len(of_one) > 1 for of_one in brokers.values()) > 15, "clients moved"


def a_client_does_not_send_its_version(patch: Patch) -> None:
    patch(Session, "at_least", lambda self, namespace: 0)


def a_client_forgets_its_commits(patch: Patch) -> None:
    patch(Session, "saw", lambda self, namespace, version: None)


def a_broker_does_not_wait_for_the_client_s_version(patch: Patch) -> None:
    when = PendingRequests.wait_for_version
    patch(PendingRequests, "wait_for_version", lambda self, msg, namespace, at_least: when(self, msg, namespace, 0))


BREAKS: list[tuple[str, Break]] = [
    ("sessions: read-your-writes", a_client_does_not_send_its_version),
    ("sessions: monotonic reads", a_client_forgets_its_commits),
    ("sessions: ", a_broker_does_not_wait_for_the_client_s_version),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning)


def test_broken_is_noticed_after_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same client at another broker, which is behind."""

    def moved(history: list[Operation]) -> list[str]:
        return [problem.partition(", ")[2] for problem in judge(history) if "having moved" in problem]

    a_client_does_not_send_its_version(monkeypatch.setattr)
    noticed(moved, "having moved from broker")
