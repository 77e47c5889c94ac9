"""Invalid frames and messages at a live broker's socket.

The sender gets an error or is disconnected; the broker continues, and other clients are not affected.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import FLUXMPI, Instance, environment

from fluxmpi import errors
from fluxmpi.kvs.wire import GetRequest, WatchRequest
from fluxmpi.message import FRAME_BYTES_MAX, REQUEST, RESPONSE, Message, decode_batch, encode_batch, encode_body


@pytest.fixture(autouse=True)
def other_clients_are_unaffected(instance: Instance) -> Iterator[None]:
    """Check before and after the test that another client of the same broker works, and that the broker still runs."""
    with instance.connect(1) as h:
        pid = h.broker_pid
        h.kvs.commit({"well.behaved": 1})
        yield
        assert h.kvs.commit({"well.behaved": 2}).version > 0
        assert h.kvs.get("well.behaved") == 2
    with instance.connect(1) as h:
        assert h.broker_pid == pid


def dial(instance: Instance) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(instance.rank_uri(1).removeprefix("local://"))
    (hello,) = receive(sock)
    assert hello.topic == "hello"
    return sock


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def receive(sock: socket.socket) -> list[Message]:
    return decode_batch(receive_exactly(sock, struct.unpack("<I", receive_exactly(sock, 4))[0]))


def frame(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def request(topic: str, body: object, tag: int = 1) -> bytes:
    return frame(encode_batch([Message(REQUEST, topic, tag=tag, body=encode_body(body))]))


def refusal(sock: socket.socket) -> errors.FluxmpiError:
    """Return the error that a client gets for a protocol violation; then the broker closes the connection."""
    with sock:
        (msg,) = receive(sock)
        assert (msg.kind, msg.tag) == (RESPONSE, 0)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        return errors.decode_error(msg.status, msg.body)


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, (1 << 32) - 1])
def test_a_frame_length_over_the_limit(instance, size):
    sock = dial(instance)
    sock.sendall(struct.pack("<I", size) + b"x" * 1000)
    assert isinstance(refusal(sock), errors.TooLarge)


@pytest.mark.parametrize("depth", [1000, 100_000, 5_000_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01"])
def test_deep_nesting(instance, depth, opening):
    sock = dial(instance)
    sock.sendall(frame(opening * depth))
    assert isinstance(refusal(sock), errors.ProtocolError)


def test_deep_nesting_in_a_body(instance):
    with dial(instance) as sock:
        sock.sendall(frame(encode_batch([Message(REQUEST, "kvs.get", tag=5, body=b"\x91" * 1_000_000)])))
        (msg,) = receive(sock)
        assert (msg.tag, msg.status) == (5, errors.InvalidRequest.code)


def test_an_array_length_larger_than_memory(instance):
    sock = dial(instance)
    sock.sendall(frame(b"\xdd\xff\xff\xff\xff"))
    assert isinstance(refusal(sock), errors.ProtocolError)


def test_random_bytes(instance):
    rng = random.Random(5)
    for _ in range(100):
        sock = dial(instance)
        with sock, contextlib.suppress(OSError):
            payload = rng.randbytes(rng.randint(0, 2000))
            sock.sendall(frame(payload) if rng.random() < 0.7 else payload)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_valid_frames_with_one_changed_byte(instance):
    rng = random.Random(6)
    good = request("kvs.get", GetRequest("well.behaved"))
    for _ in range(200):
        data = bytearray(good)
        data[rng.randrange(4, len(data))] = rng.randrange(256)
        with dial(instance) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


def test_hundreds_of_incomplete_frames(instance):
    good = request("kvs.get", GetRequest("well.behaved"))
    half_open = []
    try:
        for number in range(600):
            sock = dial(instance)
            sock.sendall(good[: number % len(good)])
            half_open.append(sock)
        with instance.connect(1) as h:
            assert h.kvs.get("well.behaved") is not None
    finally:
        for sock in half_open:
            sock.close()


def test_a_client_that_never_reads_is_bounded(instance):
    """Unread responses fill its socket, then its buffer at the broker; then the broker stops reading from it."""
    with instance.connect(1) as h, dial(instance) as sock:
        h.kvs.commit({"big.value": os.urandom(500_000)})
        h.rpc("kvs.get", GetRequest("big.value"))  # this broker has cached it
        sock.setblocking(False)
        sent, ended, data = 0, False, b""
        while not ended:
            assert sent < 20_000, "the broker read requests without a limit"
            if not data:
                data = request("kvs.get", GetRequest("big.value"), sent)
                sent += 1
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                ended = h.rpc("stats.get", target=1)["clients"]["paused"] == 1
            except ConnectionError:
                ended = True
        assert len(h.kvs.get("big.value")) == 500_000
        assert h.rpc("stats.get", target=1)["clients"]["queued_bytes"] < 512 << 20
        sock.close()
        while h.rpc("stats.get", target=1)["clients"]["queued_bytes"]:
            pass


def test_thousands_of_watches_of_a_client_that_disconnects(instance):
    """The watches are removed when the client disconnects without unwatching."""
    with dial(instance) as sock:
        for number in range(3000):
            sock.sendall(request("kvs.watch", WatchRequest("well.behaved"), number))
    with instance.connect(1) as h:
        for _ in range(50):
            h.kvs.commit({"well.behaved": 3})
        assert h.rpc("stats.get", target=1)["kvs"]["watchers"] == 0


def test_messages_reserved_for_brokers_are_refused(instance):
    with dial(instance) as sock:
        for number, topic in enumerate(
            ["kvs.setroot", "kvs.gather", "kvs.fence-done", "lifecycle.end", "lifecycle.bye", "overlay.lost",
             "overlay.heartbeat", "launcher.spawn", "disk.roots", "loop.exit"]
        ):  # fmt: skip
            sock.sendall(request(topic, None, number))
            (msg,) = receive(sock)
            assert msg.tag == number
            assert isinstance(errors.decode_error(msg.status, msg.body), errors.InvalidRequest | errors.NoSuchService)


def test_an_unusable_checkpoint_path_is_reported_at_start(tmp_path: Path) -> None:
    for path, text in (
        (tmp_path / "none" / "run.h5", "does not exist: make it first"),
        (tmp_path, "is a folder: name a file"),
    ):
        done = subprocess.run(
            [*FLUXMPI, "start", "--checkpoint", str(path), "--", "touch", str(tmp_path / "ran")],
            env=environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert text in done.stderr
        assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------- fences


MEMBER = """
import sys, fluxmpi
with fluxmpi.connect() as h:
    txn = h.kvs.txn()
    txn.put("fence.dead", 1)
    future = txn.fence_async(sys.argv[1], 3)
    h.flush()
    print("in", flush=True)
    future.get()
"""


def test_a_killed_member_breaks_its_fence(instance: Instance, nothing_left: None) -> None:
    words = [sys.executable, "-c", MEMBER, "fence.killed"]
    with instance.connect(2) as h, instance.connect(0) as late:
        before = h.kvs.snapshot(fresh=True)
        waiting = h.kvs.txn().fence_async("fence.killed", 3)
        with subprocess.Popen(words, env=environment(instance.rank_uri(1)), stdout=subprocess.PIPE) as member:
            assert member.stdout is not None
            assert member.stdout.readline() == b"in\n"
            member.kill()
        with pytest.raises(
            errors.FenceBroken,
            match=r"'fence.killed' is broken: client \d+-\w+ left it when 2 of 3 contributions had arrived",
        ):
            waiting.get(60)
        with pytest.raises(errors.FenceBroken, match="nothing of it was committed"):
            late.kvs.fence("fence.killed", 3, {"fence.late": 1}, timeout=60)
        assert h.kvs.snapshot(fresh=True).version == before.version
        assert not h.kvs.exists("fence")


def test_a_member_that_times_out_breaks_its_fence(instance: Instance, nothing_left: None) -> None:
    with instance.connect(2) as h, instance.connect(1) as other, instance.connect(0) as third:
        waiting = h.kvs.txn().fence_async("fence.impatient", 3)
        with pytest.raises(errors.RequestTimeout, match=r"fence 'fence.impatient' of 3 was not complete within 0.1 s"):
            other.kvs.fence("fence.impatient", 3, {"fence.x": 1}, timeout=0.1)
        with pytest.raises(errors.FenceBroken):
            waiting.get(60)
        with pytest.raises(errors.FenceBroken):
            third.kvs.fence("fence.impatient", 3, timeout=60)
        futures = [each.kvs.txn().fence_async("fence.impatient", 3) for each in (h, other, third)]
        assert len({future.get(60).version for future in futures}) == 1, (
            "all members got the error, so the name can be reused"
        )


def test_a_fence_with_a_different_size_is_refused(instance: Instance, nothing_left: None) -> None:
    with instance.connect(2) as h, instance.connect(1) as other:
        waiting = h.kvs.txn().fence_async("fence.sizes", 2)
        h.rpc("ping.ping", [1, b""], target=2)  # so the contribution has arrived
        with (
            instance.connect(2) as wrong,
            pytest.raises(errors.FenceMismatch, match="has 2 contributions, but this one was sent with size 3"),
        ):
            wrong.kvs.fence("fence.sizes", 3, {"fence.x": 1}, timeout=60)
        assert other.kvs.fence("fence.sizes", 2, timeout=60).version == waiting.get(60).version
        assert not other.kvs.exists("fence.x")
