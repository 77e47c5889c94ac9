"""MemoryError anywhere in a commit, a collection or a read: the request is refused, and nothing else is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from machines import NOW, ask, body, commit, error, put, responses
from test_gc import World, long
from test_store_full import Node, value

from fluxmpi import errors
from fluxmpi.content.service import ContentService
from fluxmpi.content.wire import LoadRequest, Stored
from fluxmpi.errors import OutOfMemory, StoreFull
from fluxmpi.kvs.leader.committer import Ballast, Committer
from fluxmpi.kvs.mvcc.gc import Phase
from fluxmpi.kvs.mvcc.key_index import KeyIndex
from fluxmpi.kvs.store.node import NodeCache, check
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import (
    PRIMARY,
    Add,
    AddPart,
    Adds,
    Commit,
    CommitId,
    Committed,
    GetRequest,
    Got,
    Guard,
    Mkdir,
    Put,
    RootInfo,
    Unlink,
)
from fluxmpi.message import Message

PLACES = ("leader/batch.py", "leader/validation.py", "store/edit.py", "store/node.py", "leader/guards.py")
"""Files in which every line may lack memory."""

CALLS = ("content/store.py",)
"""Files in which every function may lack memory when it is called."""


class Shortage:
    """Raises MemoryError at the ``at``-th place that is passed, once, and counts the places."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name.endswith(CALLS):
            self._pass()
            return None
        return self._line if name.endswith(PLACES) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._pass()
        return self._line

    def _pass(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            raise MemoryError


@contextmanager
def short_of_memory(at: int) -> Iterator[Shortage]:
    shortage = Shortage(at)
    before = sys.gettrace()
    sys.settrace(shortage.trace)
    try:
        yield shortage
    finally:
        sys.settrace(before)


def requests() -> list[Commit]:
    """Commits of every way through the leader, most of which share a version."""
    return [
        commit(1, put("d.a", 1), client="d"),
        commit(2, Put("big", long("x" * 5000)), client="d"),
        commit(3, put("e.a", 1), put("e.b", 2), Unlink("gone.a"), Mkdir("e.dir"), client="d"),
        Commit(PRIMARY, CommitId("d", 4), 0, [put("f.a", 4)], guards=[Guard("gone.b", 2, "==", True)]),
        commit(5, Add("number", 5), client="d"),
        commit(6, Add("text", 1), client="d"),
        commit(7, put("d.a", 7), client="d"),
        commit(8, *(put(f"wide.k{number}", number) for number in range(40)), client="d"),
    ]


FAILS = (6,)
"""Serials that fail with memory as well: the value is no integer."""

KEYS = {1: "d.a", 2: "big", 3: "e.b", 4: "f.a", 5: "number", 7: "d.a", 8: "wide.k39"}


def run_short(at: int) -> tuple[World, dict[int, Message], int]:
    """Commit in one turn with a lack of memory; return the answers by serial, and how many places there are."""
    world = World()
    world.commit(put("gone.a", 1), put("gone.b", 2), put("text", "words"))
    for asked in requests():
        world.leader.step(ask("leader.commit", asked, tag=asked.id.serial), NOW)
    with short_of_memory(at) as shortage:
        out = []
        for _ in range(50):
            if world.leader.deadline > NOW:
                break
            out += world.leader.tick(NOW)
    return world, {msg.tag: msg for msg in responses(out)}, shortage.passed


_, _, PLACES_PASSED = run_short(0)


def test_without_a_lack_of_memory() -> None:
    _, answers, passed = run_short(0)
    assert [serial for serial, msg in answers.items() if msg.status] == list(FAILS)
    assert passed > 500


@pytest.mark.parametrize("start", range(8))
def test_a_commit_is_refused_and_the_others_are_applied(start: int) -> None:
    for at in range(1 + start, PLACES_PASSED + 1, 24):
        world, answers, _ = run_short(at)
        assert sorted(answers) == [1, 2, 3, 4, 5, 6, 7, 8], f"place {at}"
        refused = [serial for serial, msg in answers.items() if msg.status and type(error(msg)) is OutOfMemory]
        assert len(refused) <= 1, f"place {at}: {refused}"
        for serial, msg in answers.items():
            assert bool(msg.status) is (serial in FAILS or serial in refused), f"place {at}: {serial}"
        world.namespaces.check()
        world.leader.check()
        world.store.check()
        for serial, key in KEYS.items():
            if serial in refused:
                if serial != 1:  # 7 puts the same key
                    assert absent(world, key, serial), f"place {at}: {serial}"
            else:
                assert world.get(key) is not None
        check(world.nodes, world.namespaces.find(PRIMARY).root.ref)
        assert isinstance(world.commit(put("after", 1)), errors.FluxmpiError) is False


def absent(world: World, key: str, serial: int) -> bool:
    try:
        found = world.get(key)
    except errors.FluxmpiError:
        return True
    return found is None or (serial == 7 and found.data == b"1")


def test_a_resent_commit_that_lacked_memory_is_refused_again() -> None:
    world, answers, _ = run_short(100)
    (refused,) = [serial for serial, msg in answers.items() if msg.status and type(error(msg)) is OutOfMemory]
    world.leader.step(ask("leader.commit", requests()[refused - 1]), NOW)
    (again,) = responses(world.leader.tick(NOW))
    assert type(error(again)) is OutOfMemory
    assert error(again).definite


# ------------------------------------------------------------------------------------------- around the commit point


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """Let a method raise MemoryError in its first call; return the list that counts calls."""
    original, calls = getattr(owner, name), []

    def method(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    return calls


def test_two_commits_of_a_version_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them lacks the memory is not known: each gets a version of its own."""
    world = World()
    failing_once(monkeypatch, KeyIndex, "append")
    for serial, key in ((1, "a"), (2, "b")):
        world.leader.step(ask("leader.commit", commit(serial, put(key, 1)), tag=serial), NOW)
    out = []
    for _ in range(10):
        if world.leader.deadline <= NOW:
            out += world.leader.tick(NOW)
    assert [body(msg, Committed).version for msg in responses(out)] == [1, 2]
    world.namespaces.check()


@pytest.mark.parametrize("owner", [KeyIndex, VersionLog])
def test_one_commit_whose_version_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, owner: type) -> None:
    world = World()
    failing_once(monkeypatch, owner, "append")
    assert type(world.commit(put("a", 1))) is OutOfMemory
    world.namespaces.check()
    assert world.commit(put("a", 2)).version == 1


def test_a_version_that_exists_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the commit point, the memory that was kept for this is used."""
    world = World()
    calls = failing_once(monkeypatch, Committer, "_publish")
    released = []
    monkeypatch.setattr(Ballast, "release", lambda self: released.append(1))
    assert isinstance(world.commit(put("a", 1)), RootInfo)
    assert (len(calls), len(released)) == (2, 1)


def test_ballast() -> None:
    ballast = Ballast()
    ballast.release()
    ballast.refill()
    ballast.release()


def test_additions_that_lack_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    failing_once(monkeypatch, NodeCache, "insert")
    adds = Adds(PRIMARY, "n", [AddPart(CommitId("x", 1), 0, 5), AddPart(CommitId("y", 1), 0, 6)])
    world.leader.step(ask("leader.adds", adds), NOW)
    (msg,) = responses(world.leader.tick(NOW))
    others = body(msg)[5]
    assert [status for _, status, _ in others] == [OutOfMemory.code] * 2


# --------------------------------------------------------------------------------------------- collections and reads


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.HELD, Phase.HISTORY, Phase.SWEEP])
def test_a_collection_that_lacks_memory_is_abandoned(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(nodes_per_turn=1, nodes_per_stored_blob=0, sweep_blobs_per_node=1)
    for number in range(20):
        world.commit(put("a", number), Put("b", long(number)))
    world.retain(5)
    reached = world.reached()
    world.gc.step(ask("gc.run"), NOW)
    for _ in range(1000):
        if world.gc.phase is phase:
            break
        world.slice()
    monkeypatch.setattr(world.gc, "_slice", lambda now: (_ for _ in ()).throw(MemoryError))
    (msg,) = world.slice()
    assert type(error(msg)) is OutOfMemory
    assert world.gc.phase is Phase.IDLE
    assert world.gc.statistics()["abandoned"] == 1
    assert reached <= set(world.store.refs())
    monkeypatch.undo()
    world.collect()
    assert set(world.store.refs()) == world.reached()


def test_a_full_store_whose_collection_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and does not begin collections without end."""
    node = Node()
    for number in range(9):
        node.commit(Put("a", value(number)))
    monkeypatch.setattr(
        type(node.broker.registry.service("gc")), "_mark", lambda self, work: (_ for _ in ()).throw(MemoryError)
    )
    assert type(node.commit(Put("a", value(10)))) is StoreFull
    monkeypatch.undo()
    node.now += 10.0
    assert isinstance(node.commit(Put("a", value(10))), Committed)


def test_a_read_that_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.commit(put("a", 1))
    failing_once(monkeypatch, NodeCache, "node")
    assert type(node.ask("kvs.get", GetRequest("a"))) is OutOfMemory
    assert node.ask("kvs.get", GetRequest("a"), Got).object.data == b"1"


def test_a_blob_that_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    failing_once(monkeypatch, ContentService, "_keep")
    found = node.ask("content.store", raw=b"x" * 1000)
    assert type(found) is OutOfMemory
    assert found.definite
    stored = node.ask("content.store", raw=b"x" * 1000, kind=Stored)
    tag = node.send("content.load", LoadRequest(stored.ref))
    assert node.answers[tag].body == b"x" * 1000


def test_a_body_that_cannot_be_decoded_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxmpi.message import Body

    class Decoder:
        def __init__(self, record: Any) -> None: ...

        def decode(self, data: bytes) -> None:
            raise MemoryError

    monkeypatch.setattr("msgspec.msgpack.Decoder", Decoder)
    with pytest.raises(OutOfMemory, match=r"kvs\.commit: no memory to decode a body of 3 bytes"):
        Body(int)(ask("kvs.commit", raw=b"123"))
