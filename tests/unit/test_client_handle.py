"""The blocking handle on one end of a socket pair; a script of frames is the broker at the other."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import pytest

from fluxmpi.blobref import digest_function
from fluxmpi.broker.wire import Hello
from fluxmpi.client.channel import Channel
from fluxmpi.client.exec import RunningCommand
from fluxmpi.client.handle import Handle
from fluxmpi.client.kvs.transaction import CARRIED_BYTES_MAX
from fluxmpi.client.limits import HandleLimits
from fluxmpi.errors import (
    CommandNotFound,
    ConnectionLost,
    DigestMismatch,
    NoSuchKey,
    PermissionDenied,
    ProtocolError,
    RequestTimeout,
    encode_error,
)
from fluxmpi.jobs.wire import Exit, Output
from fluxmpi.kvs.objects import Val, ValRef
from fluxmpi.kvs.wire import Commit, GetRequest, GetRoot, Got, KeyChange, Notification, RootInfo
from fluxmpi.message import (
    ANY,
    EVENT,
    LOCAL,
    MORE,
    OK,
    PROTOCOL,
    RESPONSE,
    Body,
    Message,
    control,
    decode_batch,
    encode_batch,
    encode_body,
)
from fluxmpi.overlay.wire import EventRecord

ROOT = b"\1" * 32
SHA256 = digest_function("sha256")


class Peer:
    """The broker's end. What it is told to send is in the socket before the handle waits for it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = b""

    def send(self, *messages: Message) -> None:
        batch = encode_batch(list(messages))
        self.sock.sendall(len(batch).to_bytes(4, "little") + batch)

    def answer(self, tag: int, body: object = None, status: int = OK) -> None:
        self.send(Message(RESPONSE, "t", LOCAL, ANY, tag, status, [], encode_body(body)))

    def refuse(self, tag: int, error: Exception) -> None:
        status, body = encode_error(error)  # type: ignore[arg-type]
        self.send(Message(RESPONSE, "t", LOCAL, ANY, tag, status, [], body))

    def received(self) -> list[list[Message]]:
        """The frames that have been written since the last call."""
        self.sock.setblocking(False)
        try:
            while data := self.sock.recv(1 << 20):
                self._data += data
        except BlockingIOError:
            pass
        self.sock.setblocking(True)
        frames = []
        while self._data:
            end = 4 + int.from_bytes(self._data[:4], "little")
            frames.append(decode_batch(self._data[4:end]))
            self._data = self._data[end:]
        return frames


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Peer]]:
    ours, theirs = socket.socketpair()
    yield ours, Peer(theirs)
    ours.close()
    theirs.close()


@pytest.fixture
def peer(pair: tuple[socket.socket, Peer]) -> Peer:
    return pair[1]


@pytest.fixture
def h(pair: tuple[socket.socket, Peer]) -> Handle:
    ours, peer = pair
    peer.send(control("hello", Hello(PROTOCOL, "i1", 1, 3, "sha256", 42)))
    return Handle(Channel(ours))


def test_greeting(h: Handle) -> None:
    assert (h.rank, h.size, h.instance) == (1, 3, "i1")
    assert repr(h) == "<fluxmpi.Handle rank 1 of 3, instance i1>"


def test_peer_that_says_nothing_is_no_broker(pair: tuple[socket.socket, Peer]) -> None:
    with pytest.raises(RequestTimeout, match="greeting"):
        Channel(pair[0], limits=HandleLimits(greeting_s=0.01))


def test_refusal_instead_of_a_greeting(pair: tuple[socket.socket, Peer]) -> None:
    pair[1].refuse(0, PermissionDenied("you are uid 7, and the instance is uid 8's"))
    with pytest.raises(PermissionDenied, match="uid 7"):
        Channel(pair[0])


def test_peer_that_talks_nonsense(pair: tuple[socket.socket, Peer]) -> None:
    pair[1].sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ProtocolError):
        Channel(pair[0])


def test_timeout_says_what_and_the_answer_may_be_had_later(h: Handle, peer: Peer) -> None:
    future = h.rpc_async("slow.service")
    with pytest.raises(RequestTimeout, match=r"slow\.service: no answer within 0\.01 s") as caught:
        future.get(0.01)
    assert not caught.value.definite
    peer.answer(1, "late")
    assert [future.get(1), future.get()] == ["late", "late"]


def test_requests_leave_at_once_and_in_a_batch_together(h: Handle, peer: Peer) -> None:
    h.rpc_async("a")
    assert [[m.topic for m in frame] for frame in peer.received()] == [["a"]]
    with h.batch():
        h.rpc_async("b")
        with h.batch():
            h.rpc_async("c")
        assert peer.received() == []
    assert [[m.topic for m in frame] for frame in peer.received()] == [["b", "c"]]


def test_waiting_sends_what_a_batch_has_gathered(h: Handle, peer: Peer) -> None:
    with h.batch():
        h.rpc_async("a")
        future = h.rpc_async("b")
        peer.answer(future.tag, 5)
        assert future.get() == 5
        assert [[m.topic for m in frame] for frame in peer.received()] == [["a", "b"]]


def test_end_of_the_broker_fails_everything(h: Handle, peer: Peer) -> None:
    future = h.rpc_async("a")
    peer.sock.close()
    with pytest.raises(ConnectionLost):
        future.get()
    with pytest.raises(ConnectionLost):
        h.rpc("b")
    assert h.closed


def test_dropped_handle_closes(pair: tuple[socket.socket, Peer]) -> None:
    ours, peer = pair
    peer.send(control("hello", Hello(PROTOCOL, "i1", 1, 3, "sha256", 42)))
    dropped = Handle(Channel(ours.dup()))
    ours.close()
    assert dropped.kvs is dropped.kvs  # a service refers back to its handle
    del dropped
    gc.collect()
    assert peer.sock.recv(10) == b""


def test_close_is_final_and_may_be_repeated(h: Handle, peer: Peer) -> None:
    future = h.rpc_async("a")
    h.close()
    h.close()
    with pytest.raises(ConnectionLost, match="handle was closed"):
        future.get()
    assert repr(h).endswith("closed>")


def test_stream_gives_items_and_keeps_the_last(h: Handle, peer: Peer) -> None:
    stream = h.stream("t")
    for n in (1, 2):
        peer.answer(stream.tag, n, MORE)
    peer.answer(stream.tag, "end")
    assert list(stream) == [1, 2]
    assert (stream.last, stream.ended) == ("end", True)


def test_stream_ends_with_an_error_after_its_items(h: Handle, peer: Peer) -> None:
    stream = h.stream("t")
    peer.answer(stream.tag, 1, MORE)
    peer.refuse(stream.tag, NoSuchKey("gone"))
    assert stream.get() == 1
    with pytest.raises(NoSuchKey):
        stream.get()


def test_wait_any(h: Handle, peer: Peer) -> None:
    streams = [h.stream("t") for _ in range(3)]
    with pytest.raises(RequestTimeout):
        h.wait_any(streams, 0.01)
    peer.answer(streams[1].tag, 1, MORE)
    assert h.wait_any(streams, 1) is streams[1]


# ------------------------------------------------------------------------------------------------------- the services


def test_reads_carry_the_highest_version_seen(h: Handle, peer: Peer) -> None:
    peer.answer(1, RootInfo("primary", 7, ROOT, 1.0))
    assert h.kvs.version() == 7
    peer.answer(2, Got(9, ROOT, Val("json", b"1"), b"1"))
    assert h.kvs.get("a") == 1
    peer.answer(3, Got(8, ROOT, Val("json", b"1"), b"1"))
    h.kvs.get_async("a", at="sha256-" + ROOT.hex()).get()
    peer.answer(4, Got(9, ROOT, Val("json", b"1"), b"1"))
    h.kvs.get("a")
    root, *gets = (message for frame in peer.received() for message in frame)
    assert Body(GetRoot)(root).at_least == 0
    assert [(Body(GetRequest)(get).at_least, Body(GetRequest)(get).at) for get in gets] == [
        (7, None),
        (0, ROOT),
        (9, None),
    ]


def test_commits_have_ids_and_tell_which_answers_came(h: Handle, peer: Peer) -> None:
    futures = [h.kvs.commit_async({"a": n}) for n in range(3)]
    for future, version in ((futures[0], 1), (futures[2], 3)):
        peer.answer(future.tag, RootInfo("primary", version, ROOT, 1.0))
    assert futures[2].get().version == 3
    h.kvs.commit_async({"a": 3})
    commits = [Body(Commit)(message) for frame in peer.received() for message in frame]
    assert [commit.id.serial for commit in commits] == [1, 2, 3, 4]
    assert len({commit.id.client for commit in commits}) == 1
    assert [commit.acked for commit in commits] == [0, 0, 0, 1]


def test_commit_that_times_out_is_not_acknowledged_until_its_answer_comes(h: Handle, peer: Peer) -> None:
    with pytest.raises(RequestTimeout):
        h.kvs.commit({"a": 1}, timeout=0.01)
    assert h.session.acked == 0
    peer.answer(1, RootInfo("primary", 1, ROOT, 1.0))
    h.poll_input()
    assert h.session.acked == 1


def test_damaged_blob_is_noticed_here(h: Handle, peer: Peer) -> None:
    peer.send(Message(RESPONSE, "t", LOCAL, ANY, 1, OK, [], b"not the blob of that name"))
    with pytest.raises(DigestMismatch, match="is damaged"):
        h.content.load("sha256-" + "0" * 64)


def test_long_value_is_stored_before_the_commit_leaves(h: Handle, peer: Peer) -> None:
    big = b"x" * (CARRIED_BYTES_MAX + 1)
    txn = h.kvs.txn()
    txn.put("big", big)
    (stored,) = (message for frame in peer.received() for message in frame)
    assert (stored.topic, stored.body) == ("content.store", big)
    peer.answer(stored.tag, [SHA256(stored.body)])
    txn.commit_async()
    (commit,) = (message for frame in peer.received() for message in frame)
    (put,) = Body(Commit)(commit).ops
    assert put.object.refs == (SHA256(big),)


def test_a_transaction_carries_values_up_to_a_bound(pair: tuple[socket.socket, Peer]) -> None:
    ours, peer = pair
    peer.send(control("hello", Hello(PROTOCOL, "i1", 1, 3, "sha256", 42)))
    txn = Handle(Channel(ours, limits=HandleLimits(carried_bytes_max=2 * CARRIED_BYTES_MAX))).kvs.txn()
    for index in range(3):
        txn.put(f"k{index}", bytes([index]) * CARRIED_BYTES_MAX)
    (stored,) = (message for frame in peer.received() for message in frame)
    peer.answer(stored.tag, [SHA256(stored.body)])
    txn.commit_async()
    (commit,) = (message for frame in peer.received() for message in frame)
    assert [type(put.object) for put in Body(Commit)(commit).ops] == [Val, Val, ValRef]


def test_watch_gives_changes_with_their_snapshot_and_is_cancelled(h: Handle, peer: Peer) -> None:
    watch = h.kvs.watch("a.")
    tag = peer.received()[-1][-1].tag
    peer.answer(tag, Notification(3, ROOT, 1.0, []), MORE)
    changes = [KeyChange("a.b", Val("json", b"5"), True), KeyChange("a.c", None, True)]
    peer.answer(tag, Notification(4, ROOT, 2.0, changes), MORE)
    first, second = watch.get(1), watch.get(1)
    assert first is not None
    assert second is not None
    assert (first.key, first.value, first.existed, first.version, first.time) == ("a.b", 5, True, 4, 2.0)
    assert (second.key, second.value, second.deleted, second.snapshot) == ("a.c", None, True, first.snapshot)
    assert h.session.at_least("primary") == 4
    peer.received()
    watch.close()
    ((cancel,),) = peer.received()
    assert (cancel.topic, Body(list)(cancel)) == ("kvs.cancel", [tag])


def test_events_arrive_while_something_else_is_awaited(h: Handle, peer: Peer) -> None:
    peer.answer(1, 0)
    with h.event.subscribe("e.") as subscription:
        peer.send(*(Message(EVENT, "e.x", body=encode_body(EventRecord(n, 1.0, b"%d" % n))) for n in (1, 2)))
        peer.answer(2, "pong")
        assert h.rpc("ping.ping") == "pong"
        assert [subscription.get(0).value for _ in range(2)] == [1, 2]
        with pytest.raises(RequestTimeout):
            subscription.get(0)


def test_exec_gathers_the_pieces_of_all_ranks(h: Handle, peer: Peer) -> None:
    running: RunningCommand = h.exec.start(["cmd"], [0, 2])
    tags = {message.target: message.tag for frame in peer.received() for message in frame}
    peer.answer(tags[2], Output(1, b"out"), MORE)
    peer.refuse(tags[0], CommandNotFound("no cmd there"))
    peer.answer(tags[2], Exit(3))
    pieces = list(running)
    assert [(piece.rank, piece.data, piece.status) for piece in pieces if piece.rank == 2] == [
        (2, b"out", None),
        (2, b"", 3),
    ]
    assert [piece.status for piece in pieces if piece.rank == 0] == [127]
    assert running.ranks == []
