"""Promise 1: commits are atomic and totally ordered.

A namespace has one version number; each version is one root; a commit applies wholly or not at all, and two commits to
one key never share a version.
"""

from __future__ import annotations

import pytest

from fluxmpi.kvs.leader import batch
from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.wire import GetRoot
from fluxmpi.message import Body, Message, reply
from fluxmpi.simulator.checkers import linearizability
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.linearizability import fresh_reads
from fluxmpi.simulator.checkers.replay import replay
from promises.simulation import Break, Patch, kept, noticed

_decode_getroot = Body(GetRoot)


def judge(history: list[Operation]) -> list[str]:
    """Return violations of replay and linearizability: versions are made of transactions, which have one order."""
    return [*replay(history).problems, *linearizability.violations([*history, *fresh_reads(history)])]


def test_kept() -> None:
    commits = versions = large = 0
    for history in kept(judge):
        made = [one for one in history if one.kind == "commit" and one.answered]
        commits += len(made)
        versions += len({one.version for one in made})
        large += sum(len(one.steps) > 3 for one in made)
    assert commits > versions + 20, "some share a version"
    assert versions > 100
    assert large > 50, "some touch many keys"


def an_operation_of_a_transaction_is_lost(patch: Patch) -> None:
    apply = Batch._apply
    patch(Batch, "_apply", lambda self, op: op.key if op.key == "hot.b" else apply(self, op))


def a_failed_transaction_changes_something(patch: Patch) -> None:
    patch(Edit, "rollback", lambda self, mark: None)


def commits_to_one_key_share_a_version(patch: Patch) -> None:
    patch(Batch, "conflicts", lambda self, keys: False)


def the_newest_version_is_not_the_newest(patch: Patch) -> None:
    def older(self: MvccService, msg: Message, now: float) -> list[Message]:
        namespace = self._namespaces.find(_decode_getroot(msg).namespace)
        return [reply(msg, namespace.at(max(0, namespace.root.version - 1)))]

    patch(MvccService, "_get", older)


def an_addition_is_answered_and_not_made(patch: Patch) -> None:
    """Every second one, by the value before."""
    sum_of = batch.sum_of
    patch(batch, "sum_of", lambda key, value, amount: sum_of(key, value, amount if value % 2 else 0))


def a_swap_does_not_compare(patch: Patch) -> None:
    patch(batch, "equal", lambda *compared: True)


BREAKS: list[tuple[str, Break]] = [
    ("replay: version", an_operation_of_a_transaction_is_lost),
    ("replay: version", a_failed_transaction_changes_something),
    ("merge: version", commits_to_one_key_share_a_version),
    ("linearizability: key count.", an_addition_is_answered_and_not_made),
    ("linearizability: key cell.a", a_swap_does_not_compare),
    ("linearizability: versions", the_newest_version_is_not_the_newest),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning)
