"""A handle that goes to another broker: what it sends again, what it gives up. Scripts of frames are the brokers."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from test_client_handle import ROOT, Peer

import fluxmpi
from fluxmpi.broker.wire import Hello
from fluxmpi.client import channel
from fluxmpi.client.handle import Handle
from fluxmpi.errors import ConnectionLost, InvalidRequest, NoInstance
from fluxmpi.kvs.wire import Commit, Fence, GetRoot, RootInfo
from fluxmpi.message import EVENT, PROTOCOL, Body, Message, control, encode_body
from fluxmpi.overlay.wire import EventRecord

URI = "local:///nowhere/broker.2.sock"


class Brokers:
    """Each ``next()`` is the broker that the next connection leads to; without one, nobody listens."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self._coming: list[socket.socket] = []

    def next(self, rank: int = 2, instance: str = "i1") -> Peer:
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        self._coming.append(ours)
        peer = Peer(theirs)
        peer.send(control("hello", Hello(PROTOCOL, instance, rank, 3, "sha256", 42)))
        return peer

    def open(self, path: str) -> socket.socket:
        if not self._coming:
            raise NoInstance(f"nobody listens at {path}")
        return self._coming.pop(0)


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brokers]:
    brokers = Brokers()
    monkeypatch.setattr(channel, "open_socket", brokers.open)
    yield brokers
    for sock in brokers.sockets:
        sock.close()


def received(peer: Peer) -> list[Message]:
    return [message for frame in peer.received() for message in frame]


def answer(peer: Peer, message: Message, version: int) -> None:
    peer.answer(message.tag, RootInfo("primary", version, ROOT, 1.0))


@contextmanager
def answering(broker: Callable[[], None]) -> Iterator[None]:
    """A broker that answers while we wait."""
    thread = threading.Thread(target=broker)
    thread.start()
    yield
    thread.join()


def test_what_is_unanswered_is_sent_again_in_order_and_its_futures_are_answered(brokers: Brokers) -> None:
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    futures = [h.kvs.commit_async({"a": n}) for n in range(3)]
    fence = h.kvs.txn().fence_async("f", 2)
    sent = received(first)
    answer(first, sent[1], 5)
    assert futures[1].get().version == 5
    first.sock.close()
    with pytest.raises(ConnectionLost):
        futures[0].get()

    second = brokers.next(2)
    h.reconnect(URI)
    assert (h.rank, h.closed) == (2, False)
    again = received(second)
    assert [message.topic for message in again] == ["kvs.commit", "kvs.commit", "kvs.fence"]
    assert [message.body for message in again] == [sent[0].body, sent[2].body, sent[3].body], "the same ids"
    for version, message in enumerate(again, 6):
        answer(second, message, version)
    assert [futures[0].get(1).version, futures[2].get().version, fence.get(1).version] == [6, 7, 8]
    assert [future.get().version for future in futures] == [6, 5, 7]
    assert h.session.acked == 4
    assert h.session.unanswered == {}


def test_a_handle_may_move_while_its_broker_lives(brokers: Brokers) -> None:
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    commit = h.kvs.commit_async({"a": 1})
    call = h.rpc_async("slow.service")
    second = brokers.next(2)
    h.reconnect(URI)
    assert [message.topic for message in received(first)] == ["kvs.commit", "slow.service"]
    assert first.sock.recv(1) == b"", "the old connection is closed"
    with pytest.raises(ConnectionLost, match="another broker") as caught:
        call.get()
    assert not caught.value.definite
    (again,) = received(second)
    answer(second, again, 3)
    assert commit.get().version == 3
    assert [message.topic for message in received(second)] == []


def test_what_was_given_up_is_not_sent_again_unless_it_must_be(brokers: Brokers) -> None:
    brokers.next(1)
    h = fluxmpi.connect(URI)
    h.kvs.commit_async({"a": 1}).cancel()
    h.rpc_async("slow.service").cancel()
    second = brokers.next(2)
    h.reconnect(URI)
    assert [message.topic for message in received(second)] == ["kvs.commit"], "its serial waits to be acknowledged"


def test_the_session_reads_nothing_older_at_the_next_broker(brokers: Brokers) -> None:
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    commit = h.kvs.commit_async({"a": 1})
    answer(first, received(first)[0], 9)
    commit.get()
    second = brokers.next(2)
    h.reconnect(URI)
    answer(second, Message(1, "", tag=1), 9)
    assert h.kvs.version() == 9
    assert [Body(GetRoot)(message).at_least for message in received(second)] == [9]


def test_subscriptions_go_on(brokers: Brokers) -> None:
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    first.answer(1, 0)
    subscription = h.event.subscribe("e.")
    first.send(Message(EVENT, "e.x", body=encode_body(EventRecord(1, 1.0, b"1"))))
    first.sock.close()
    assert subscription.get().seq == 1
    with pytest.raises(ConnectionLost):
        subscription.get()
    second = brokers.next(2)
    asked: list[Message] = []

    def answers() -> None:
        select.select([second.sock], [], [], 10)
        asked.extend(received(second))
        second.answer(asked[0].tag, 1)

    with answering(answers):
        h.reconnect(URI)
    second.send(*(Message(EVENT, "e.x", body=encode_body(EventRecord(n, 1.0, b"%d" % n))) for n in (1, 2)))
    assert subscription.get(1).seq == 2, "each once"
    subscription.close()
    assert [message.topic for message in [*asked, *received(second)]] == ["event.subscribe", "event.unsubscribe"]


def test_another_handle_takes_the_session_over(brokers: Brokers) -> None:
    first = brokers.next(1)
    old = fluxmpi.connect(URI)
    future = old.kvs.commit_async({"a": 1})
    received(first)
    old.close()
    second = brokers.next(2)
    new = fluxmpi.connect(URI, session=old.session)
    (again,) = received(second)
    assert Body(Commit)(again).id.client == old.session.client
    answer(second, again, 4)
    assert future.get().version == 4, "a Future of the old handle waits at the new one"
    assert new.session.at_least("primary") == 4
    new.kvs.commit_async({"a": 2})
    (commit,) = received(second)
    assert (Body(Commit)(commit).id.serial, Body(Commit)(commit).acked) == (2, 1)


def test_a_connection_lost_again_keeps_what_is_unanswered(brokers: Brokers) -> None:
    brokers.next(1).sock.close()
    with pytest.raises(ConnectionLost):
        fluxmpi.connect(URI).kvs.version()
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    future = h.kvs.txn().fence_async("f", 2)
    first.sock.close()
    with pytest.raises(NoInstance):
        h.reconnect(URI)
    with pytest.raises(ConnectionLost):
        future.get()
    brokers.next(2).sock.close()
    with pytest.raises(ConnectionLost):
        h.reconnect(URI)
    with pytest.raises(ConnectionLost):
        future.get()
    third = brokers.next(0)
    h.reconnect(URI)
    (again,) = received(third)
    assert Body(Fence)(again).name == "f"
    answer(third, again, 2)
    assert future.get(1).version == 2


def test_a_session_belongs_to_one_instance(brokers: Brokers) -> None:
    first = brokers.next(1)
    h = fluxmpi.connect(URI)
    brokers.next(1, "i2")
    with pytest.raises(InvalidRequest, match=r"instance i1.* i2"):
        h.reconnect(URI)
    assert h.instance == "i1"
    assert not h.closed
    first.answer(1, "pong")
    assert h.rpc("ping.ping") == "pong"


def test_statistics_and_close_after_a_move(brokers: Brokers) -> None:
    brokers.next(1)
    brokers.next(2)
    h: Handle = fluxmpi.connect(URI)
    h.reconnect(URI)
    h.close()
    assert h.closed
    with pytest.raises(ConnectionLost, match="closed"):
        h.kvs.get("a")
