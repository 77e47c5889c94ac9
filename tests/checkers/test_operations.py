"""From the simulator's transcripts to histories."""

from __future__ import annotations

from typing import Any

from fluxmpi.errors import InvalidValue, NoSuchKey, RankLost, SnapshotCollected
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    Add,
    AddTo,
    Append,
    Commit,
    CommitId,
    Committed,
    Exchange,
    GetRequest,
    GetRoot,
    Got,
    Guard,
    OpResult,
    Put,
    RootInfo,
    Swap,
)
from fluxmpi.message import OK
from fluxmpi.simulator.checkers.history import KeyStep, Operation
from fluxmpi.simulator.checkers.linearizability import fresh_reads
from fluxmpi.simulator.workload.operations import operations
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, Transcript

NAME = CommitId("c", 1)
REF = bytes(32)


def raw(text: str) -> Val:
    return Val("raw", text.encode())


def asked(topic: str, body: Any, *answers: tuple[int, Any], name: CommitId | None = None) -> ClientCall:
    given = [Answer(2.0 + index, 3, status, answer, {}, {}) for index, (status, answer) in enumerate(answers)]
    return ClientCall("c", topic, body, 1.0, {}, name, 2.0 if answers else None, given)


def committed(*ops: Any, results: Any = (), **more: Any) -> Operation:
    answer = OK, Committed("primary", 7, REF, 0.0, more.pop("succeeded", True), list(results))
    (found,) = operations(
        Transcript([asked("kvs.commit", Commit("primary", NAME, 0, list(ops), **more), answer, name=NAME)])
    )
    return found


def test_a_commit() -> None:
    done = committed(Put("d.a", raw("x")), Append("log", b"y"))
    assert done.steps == [KeyStep("put", "d.a", "x"), KeyStep("append", "log", "y")]
    assert (done.kind, done.start, done.end, done.version, done.broker) == ("commit", 1.0, 2.0, 7, 3)


def test_atomic_operations_with_their_results() -> None:
    done = committed(
        Put("d.a", raw("x")),
        Add("n", 2, 9),
        Exchange("e", raw("new")),
        Swap("s", None, raw("t")),
        results=[
            OpResult(),
            OpResult(True, 5, None),
            OpResult(True, None, Val("json", b"41")),
            OpResult(False, None, raw("u")),
        ],
    )
    assert done.steps[1:] == [
        KeyStep("add", "n", 2, limit=9),
        KeyStep("exchange", "e", "new"),
        KeyStep("swap", "s", "t", None),
    ]
    assert done.results == [None, [True, 5], 41, [False, "u"]]


def test_guards_say_what_they_found() -> None:
    equal, absent = Guard("a", GUARD_VALUE, "==", raw("x")), Guard("b", GUARD_EXISTS, "==", False)
    done = committed(Put("k", raw("v")), guards=[equal, absent, Guard("c", GUARD_VALUE, "<", raw("y"))])
    assert done.steps == [KeyStep("equals", "a", "x"), KeyStep("equals", "b"), KeyStep("put", "k", "v")]
    assert len(done.results or ()) == 3


def test_a_guard_that_failed_is_a_fresh_read() -> None:
    done = committed(Put("k", raw("v")), guards=[Guard("a", GUARD_VALUE, "==", raw("x"))], succeeded=False)
    assert (done.kind, done.fresh, done.version) == ("read", True, None)
    assert done.steps == [KeyStep("differs", "a", "x")]


def test_of_several_guards_it_is_unknown_which_one_failed() -> None:
    absent = [Guard(key, GUARD_EXISTS, "==", False) for key in ("a", "b")]
    done = committed(Put("k", raw("v")), guards=absent, succeeded=False)
    assert (done.kind, done.steps, done.version) == ("read", [], None)


def test_the_other_branch() -> None:
    guards = [Guard("a", GUARD_EXISTS, "==", True)]
    done = committed(Put("k", raw("v")), guards=guards, otherwise=[Put("l", raw("w"))], succeeded=False)
    assert done.steps == [KeyStep("equals", "a"), KeyStep("put", "l", "w")]
    assert done.version == 7


def test_a_combined_addition() -> None:
    answer = OK, Committed("primary", 7, REF, 0.0, True, [OpResult(True, 12)])
    (done,) = operations(Transcript([asked("kvs.add", AddTo("primary", NAME, 0, "n", 3), answer)]))
    assert (done.kind, done.steps, done.results) == ("commit", [KeyStep("add", "n", 3)], [[True, 12]])


def test_answers_that_say_nothing() -> None:
    commit = Commit("primary", NAME, 0, [Put("a", raw("x"))])
    root = RootInfo("primary", 7, REF, 0.0)
    lost, refused_ = (RankLost.code, "lost"), (InvalidValue.code, "no")
    cases = (), (lost,), (lost, (OK, root)), (refused_,)
    history = Transcript([asked("kvs.commit", commit, *answers, name=NAME) for answers in cases])
    none, unsure, late, error = operations(history)
    assert none.pending
    assert unsure.pending
    assert (late.end, late.version) == (3.0, 7)
    assert error.error == "InvalidValue"


def test_a_commit_without_an_answer_may_have_applied_either_branch() -> None:
    guards = [Guard("a", GUARD_EXISTS, "==", True)]
    commit = Commit("primary", NAME, 0, [Put("k", raw("v"))], guards, [Add("n", 1)])
    then, other = operations(Transcript([asked("kvs.commit", commit, name=NAME)]))
    assert then.pending
    assert other.pending
    assert then.steps == [KeyStep("differs", "a"), KeyStep("put", "k", "v")]
    assert other.steps == [KeyStep("equals", "a"), KeyStep("add", "n", 1)]


def test_fresh_reads_are_of_the_moment_at_which_the_root_was_newest() -> None:
    root = asked("kvs.getroot", GetRoot(fresh=True), (OK, RootInfo("primary", 7, REF, 0.0)))
    read = asked("kvs.get", GetRequest("a", at=REF), (OK, Got(9, REF, raw("x"), b"x")))
    absent = asked("kvs.get", GetRequest("b", at=REF), (NoSuchKey.code, "no"))
    read.began = absent.began = 5.0
    found = fresh_reads(operations(Transcript([root, read, absent])))
    assert [(one.steps[0].key, one.results, one.start, one.end, one.version) for one in found] == [
        ("a", ["x"], 1.0, 2.0, 7),
        ("b", [None], 1.0, 2.0, 7),
    ]


def test_reads_that_were_refused() -> None:
    gone = asked("kvs.get", GetRequest("a", at=3), (SnapshotCollected.code, "gone"))
    open_ = asked("kvs.get", GetRequest("a", at=4))
    fine = asked("kvs.get", GetRequest("a", at=5), (OK, Got(5, REF, raw("x"), b"x")))
    assert [(one.version, one.error, one.pending) for one in operations(Transcript([gone, open_, fine]))] == [
        (3, "SnapshotCollected", False),
        (4, "", True),
        (5, "", False),
    ]
