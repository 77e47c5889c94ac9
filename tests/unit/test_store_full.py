"""A store that is full: what waits for a collection, what is refused with StoreFull, and what goes on."""

from __future__ import annotations

from typing import Any

import pytest
from machines import NOW, body, error, put, to_broker

from fluxmpi import errors
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.content.service import ContentLimits
from fluxmpi.content.wire import Stored
from fluxmpi.errors import FluxmpiError, Overloaded, StoreFull
from fluxmpi.kvs.leader.growth import Growth, growth_of
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.wire import (
    PRIMARY,
    Add,
    AddTo,
    Append,
    Commit,
    CommitId,
    Committed,
    Exchange,
    GcStatus,
    GetRequest,
    Got,
    Guard,
    Lease,
    Leased,
    Mkdir,
    Op,
    Put,
    Release,
    Retention,
    Swap,
    Unlink,
)
from fluxmpi.machine import NEVER
from fluxmpi.message import CONTROL, LOOP, RESPONSE, Message, encode_body

SIZE = 10_000
STORE = 10 * SIZE


class Node:
    """One broker with a small store. ``now`` is the time; each turn takes a millisecond."""

    def __init__(self, store_bytes_max: int = STORE, **config: Any) -> None:
        limits = KvsLimits(gc=GcLimits(bytes_min=STORE), leader=LeaderLimits(group_s=0.0))
        self.broker = Broker(Config(kvs=limits, store_bytes_max=store_bytes_max, **config), NOW)
        self.now = NOW
        self.told: list[str] = []
        self.answers: dict[int, Message] = {}
        self.tag = 0
        self.take(self.broker.start(NOW))

    @property
    def store(self) -> Any:
        return self.broker.store

    def take(self, out: list[Message]) -> None:
        for msg in out:
            if msg.kind == RESPONSE:
                self.answers[msg.tag] = msg
            elif msg.kind == CONTROL and msg.hop == LOOP:
                self.told.append(body(msg, str))

    def send(self, topic: str, record: Any = None, raw: bytes | None = None) -> int:
        """Send a request, and return its tag."""
        self.tag += 1
        self.take(self.broker.step(to_broker(topic, record, tag=self.tag, raw=raw), self.now))
        return self.tag

    def turns(self, count: int = 200) -> None:
        """Take turns until nothing is due."""
        for _ in range(count):
            if self.broker.deadline > self.now:
                return
            self.take(self.broker.tick(self.now))
            self.broker.check()
            self.now += 0.001
        raise AssertionError("it does not come to rest")

    def ask(self, topic: str, record: Any = None, kind: Any = Any, raw: bytes | None = None) -> Any:
        """Send a request, and return the answer's body, or its error."""
        tag = self.send(topic, record, raw)
        self.turns()
        msg = self.answers[tag]
        return error(msg) if msg.status else body(msg, kind)

    def commit(self, *ops: Op, **fields: Any) -> Any:
        self.tag += 1
        self.serial = getattr(self, "serial", 0) + 1
        return self.ask("kvs.commit", Commit(PRIMARY, CommitId("c", self.serial), 0, list(ops), **fields), Committed)

    def status(self) -> GcStatus:
        return self.ask("gc.status", None, GcStatus)


def value(number: int, size: int = SIZE) -> Val:
    return Val("raw", str(number).encode().ljust(size, b"."))


def fill(node: Node, keep: int = 0) -> list[str]:
    """Put different keys until one is refused; return the keys."""
    keys = []
    for number in range(100):
        found = node.commit(Put(f"k{number}", value(number)))
        if isinstance(found, FluxmpiError):
            assert type(found) is StoreFull
            return keys
        keys.append(f"k{number}")
    raise AssertionError("it is never full")


@pytest.fixture
def node() -> Node:
    return Node()


def test_overwriting_goes_on_for_ever(node: Node) -> None:
    """History makes room: the producer waits for a collection, and gets no error."""
    for number in range(100):
        assert isinstance(node.commit(Put("a", value(number))), Committed)
        assert node.store.bytes <= STORE * 17 // 16
    assert node.status().cycles > 3
    assert not node.told, "it was full, but of garbage"


def test_a_commit_that_does_not_fit_is_refused_with_what_to_do(node: Node) -> None:
    keys = fill(node)
    assert len(keys) == 9
    found = node.commit(Put("more", value(1)))
    assert type(found) is StoreFull
    assert found.definite
    for part in ("the store is full", "of 100,000 bytes", "leases 0", "Unlink", "--store-bytes"):
        assert part in found.text
    found = node.ask("kvs.get", GetRequest("more"), Got)
    assert type(found) is errors.NoSuchKey
    assert node.ask("kvs.get", GetRequest(keys[0]), Got).object.size == SIZE, "reads go on"


def test_small_commits_and_additions_are_refused_too(node: Node) -> None:
    fill(node)
    for size in (200, 1):
        for number in range(200):
            if isinstance(node.commit(Put(f"small{size}_{number}", value(number, size))), StoreFull):
                break
    for ops in (
        [put("a", 1)],
        [Mkdir("d")],
        [Append("k0", b"x" * 300)],
        [Add("number", 1)],
        [Exchange("e", value(1, 200))],
    ):
        assert type(node.commit(*ops)) is StoreFull
    assert type(node.ask("kvs.add", AddTo(PRIMARY, CommitId("adder", 1), 0, "number", 1))) is StoreFull
    assert node.store.bytes <= STORE * 17 // 16


def test_keys_can_be_unlinked_and_then_there_is_room(node: Node) -> None:
    for key in fill(node):
        assert isinstance(node.commit(Unlink(key)), Committed)
    assert isinstance(node.commit(Put("new", value(5))), Committed), "the unlinked values were collected"
    node.ask("roots.retention", Retention(count=1))
    node.ask("gc.run")
    assert node.store.bytes < 2 * SIZE


def test_many_unlinks_in_pieces(node: Node) -> None:
    """A large transaction that only removes is admitted, although its pieces are encoded."""
    keys = fill(node)
    piece = encode_body([Unlink(key) for key in keys])
    assert isinstance(node.commit(Unlink("x"), more=[piece]), Committed)
    found = node.commit(Put("y", value(1)), more=[encode_body([Put("z", value(2))])])
    assert isinstance(found, Committed)


def test_a_large_transaction_waits_for_a_collection(node: Node) -> None:
    """Encoded operations block a collection, except those that wait for it."""
    for number in range(8):
        node.commit(Put("a", value(number)))
    pieces = [encode_body([Put(f"b{number}", value(number, 300))]) for number in range(100)]
    assert isinstance(node.commit(put("c", 1), more=pieces), Committed)


def test_a_value_larger_than_the_store(node: Node) -> None:
    found = node.commit(Put("a", value(1, STORE + 1)))
    assert type(found) is StoreFull
    assert "100,001" not in found.text
    assert "do not fit into a store of 100,000" in found.text
    assert node.status().cycles == 0, "no collection can help"


def test_after_a_vain_collection_refusals_are_immediate(node: Node) -> None:
    fill(node)
    cycles = node.status().cycles
    for _ in range(20):
        assert type(node.commit(Put("more", value(1)))) is StoreFull
    assert node.status().cycles <= cycles + 1
    node.now += 10.0
    assert type(node.commit(Put("more", value(1)))) is StoreFull
    assert node.status().cycles == cycles + 1, "after some time, it tries again"


def test_a_released_lease_makes_room_at_once(node: Node) -> None:
    for number in range(5):
        node.commit(Put("a", value(number, 2 * SIZE)))
        if number == 0:
            lease = node.ask("roots.lease", Lease(PRIMARY, 1), Leased)
    for number in range(5):
        node.commit(Put(f"k{number}", value(number)))
    status = node.status()
    found = node.commit(Put("more", value(1)))
    assert type(found) is StoreFull
    assert "leases 20," in found.text, found.text
    node.ask("roots.release", Release(lease.id))
    assert isinstance(node.commit(Put("more", value(1))), Committed)
    assert status.leased_bytes > 0


def test_a_resent_commit_gets_its_first_answer(node: Node) -> None:
    first = Commit(PRIMARY, CommitId("x", 1), 0, [Put("a", value(1))])
    assert isinstance(node.ask("kvs.commit", first, Committed), Committed)
    fill(node)
    assert isinstance(node.ask("kvs.commit", first, Committed), Committed)
    refused = Commit(PRIMARY, CommitId("x", 2), 0, [Put("b", value(2))])
    assert type(node.ask("kvs.commit", refused)) is StoreFull
    for number in range(9):
        node.commit(Unlink(f"k{number}"))
    assert type(node.ask("kvs.commit", refused)) is StoreFull, "a refused commit takes no effect later"


def test_several_commits_of_one_turn_wait_in_order(node: Node) -> None:
    for number in range(8):
        node.commit(Put("a", value(number)))
    tags = [
        node.send("kvs.commit", Commit(PRIMARY, CommitId("d", serial), 0, [Put("a", value(serial))]))
        for serial in range(1, 6)
    ]
    node.turns()
    versions = [body(node.answers[tag], Committed).version for tag in tags]
    assert versions == sorted(versions)
    assert node.ask("kvs.get", GetRequest("a"), Got).object.size == SIZE
    assert node.broker.statistics()["leader"]["stalled"] == 0


# ------------------------------------------------------------------------------------------------------------- blobs


def blob(number: int, size: int = SIZE) -> bytes:
    return str(number).encode().ljust(size, b".")


def test_blobs_are_refused_before_they_are_kept(node: Node) -> None:
    keys = fill(node)
    found = node.ask("content.store", raw=blob(77))
    assert type(found) is StoreFull
    assert len(keys) * SIZE < node.store.bytes < STORE
    assert isinstance(node.ask("content.store", raw=blob(0), kind=Stored), Stored), "it is there already, as k0's"


def test_blobs_wait_for_a_collection(node: Node) -> None:
    """A value of blobs is overwritten: its own old blobs make room."""
    for number in range(40):
        stored = node.ask("content.store", raw=blob(number, 2 * SIZE), kind=Stored)
        assert isinstance(stored, Stored), stored
        found = node.commit(Put("a", ValRef("raw", 2 * SIZE, (stored.ref,))))
        assert isinstance(found, Committed)
    assert node.store.bytes <= STORE * 17 // 16


def test_waiting_blobs_are_bounded() -> None:
    node = Node(content=ContentLimits(parked_bytes_max=2 * SIZE))
    for number in range(9):
        node.commit(Put("a", value(number)))
    tags = [node.send("content.store", raw=blob(100 + number)) for number in range(5)]
    refused = [tag for tag in tags if tag in node.answers and node.answers[tag].status]
    assert len(refused) == 3
    assert type(error(node.answers[refused[0]])) is Overloaded
    node.turns()
    assert all(not node.answers[tag].status for tag in tags if tag not in refused)


def test_waiting_commits_are_bounded() -> None:
    limits = KvsLimits(gc=GcLimits(bytes_min=STORE, nodes_per_turn=1), leader=LeaderLimits(parked_bytes_max=2 * SIZE))
    node = Node()
    node.broker = Broker(Config(kvs=limits, store_bytes_max=STORE), NOW)
    node.take(node.broker.start(NOW))
    for number in range(9):
        node.commit(Put("a", value(number)))
    tags = []
    for serial in range(1, 8):
        tags.append(node.send("kvs.commit", Commit(PRIMARY, CommitId("d", serial), 0, [Put("a", value(serial))])))
        node.take(node.broker.tick(node.now))
    node.turns()
    found = [error(node.answers[tag]) for tag in tags if node.answers[tag].status]
    assert found
    assert all(type(each) is Overloaded for each in found)
    assert "wait for a garbage collection" in found[0].text


def test_blobs_of_failed_clients_go_under_pressure(node: Node) -> None:
    """Nobody refers to them: after a minute they make room, although their grace is ten."""
    for number in range(9):
        node.ask("content.store", raw=blob(number))
    assert type(node.commit(Put("a", value(1, 2 * SIZE)))) is StoreFull
    node.now += 61.0
    assert isinstance(node.commit(Put("a", value(1, 2 * SIZE))), Committed)


# ------------------------------------------------------------------------------------------------- warnings, numbers


def test_a_warning_at_three_quarters_once(node: Node) -> None:
    for number in range(7):
        node.commit(Put(f"k{number}", value(number)))
    node.ask("gc.run")
    assert not node.told
    node.commit(Put("k7", value(7)))
    node.ask("gc.run")
    node.ask("gc.run")
    (text,) = node.told
    assert "the store is 8" in text
    assert "of 100,000 bytes" in text
    assert node.broker.statistics()["gc"]["warned"] == 1
    for number in range(3):
        node.commit(Unlink(f"k{number}"))
    node.ask("roots.retention", Retention(count=1))
    node.ask("gc.run")
    assert node.broker.statistics()["gc"]["warned"] == 0
    for number in range(4):
        node.commit(Put(f"m{number}", value(number)))
    node.ask("gc.run")
    assert len(node.told) == 2, "it may be repeated after the store was emptier"


def test_numbers(node: Node) -> None:
    for number in range(3):
        node.commit(Put("a", value(number)))
    status = node.ask("gc.run", None, GcStatus)
    assert SIZE < status.live_bytes < SIZE + 500
    assert 2 * SIZE < status.history_bytes < 2 * SIZE + 1000
    assert (status.bytes_max, status.bytes) == (STORE, node.store.bytes)
    assert Node(store_bytes_max=1 << 62).status().bytes_max == 0


def test_growth() -> None:
    assert growth_of([]) == Growth(0, True)
    assert growth_of([Unlink("a"), Swap("b", None, None)]) == Growth(0, True)
    assert growth_of([Unlink("a"), Put("b", Val("raw", b"12345"))]) == Growth(64 + 1 + 5, False)
    assert growth_of([Append("a", b"12"), Put("b", ValRef("raw", 1 << 30, ()))]).bytes == 2 * 65 + 2
    assert growth_of([], [Val("raw", b"123"), Dir(b"")]) == Growth(3, False)
    assert Growth(3, True) | Growth(5, False) == Growth(5, False)


def test_a_guard_decides_which_branch_counts(node: Node) -> None:
    keys = fill(node)
    guard = Guard(keys[0], 2, "==", False)
    found = node.commit(Unlink(keys[0]), guards=[guard], otherwise=[Unlink(keys[1])])
    assert isinstance(found, Committed)
    assert not found.succeeded


def test_without_a_bound_nothing_is_asked() -> None:
    node = Node(store_bytes_max=1 << 62)
    for number in range(30):
        node.commit(Put(f"k{number}", value(number)))
    assert node.broker.deadline > node.now or node.broker.deadline == NEVER
    assert node.store.bytes > 30 * SIZE
