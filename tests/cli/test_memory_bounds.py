"""What a client sends to a real instance fills no broker: unfinished frames, long names, parked keys, old long values."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import psutil
import pytest
from instance import Instance

from fluxmpi.kvs.wire import Commit, CommitId, Contribution, Fence, GetRequest, Retention
from fluxmpi.message import ANY, OK, REQUEST, Message, decode_batch, encode_batch, encode_body

MIB = 1 << 20
LONG = "x" * (8 * MIB)


class RawClient:
    """A client that sends what it likes."""

    def __init__(self, instance: Instance, rank: int) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(instance.rank_uri(rank).removeprefix("local://"))
        self.data = b""
        self.read()

    def read(self) -> list[Message]:
        """Return the messages of the next frame."""
        while len(self.data) < 4 or len(self.data) < 4 + struct.unpack_from("<I", self.data)[0]:
            received = self.sock.recv(MIB)
            assert received, "the broker has closed the connection"
            self.data += received
        size = struct.unpack_from("<I", self.data)[0]
        frame, self.data = self.data[4 : 4 + size], self.data[4 + size :]
        return decode_batch(frame)

    def call(self, topic: str, body: object) -> Message:
        payload = encode_batch([Message(REQUEST, topic, 0, ANY, 1, OK, [], encode_body(body))])
        self.sock.sendall(struct.pack("<I", len(payload)) + payload)
        (answer,) = self.read()
        return answer

    def push(self, size: int) -> None:
        """Send that many bytes, or what the broker and the kernel take without waiting."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while size > 0:
                size -= self.sock.send(bytes(min(size, MIB)))


@pytest.fixture(scope="module")
def two() -> Iterator[Instance]:
    with Instance(2) as instance:
        yield instance


def resident(instance: Instance) -> list[int]:
    return [psutil.Process(pid).memory_info().rss for pid in instance.pids]


@contextlib.contextmanager
def grows_less_than(instance: Instance, bytes_max: int) -> Iterator[None]:
    before = resident(instance)
    yield
    assert [now - was > bytes_max for now, was in zip(resident(instance), before, strict=True)] == [False, False]


def test_long_names_and_keys_are_not_kept(two: Instance) -> None:
    client = RawClient(two, 1)
    with grows_less_than(two, 64 * MIB):
        for number in range(12):
            name = CommitId(f"{number}{LONG}", 1)
            assert client.call("kvs.commit", Commit("primary", name, 0, [])).status > 0
            assert client.call("kvs.fence", Fence("primary", f"{number}{LONG}", 2, [Contribution(name, [])])).status > 0
            assert client.call("kvs.get", GetRequest(f"{number}{LONG}", at_least=1 << 40)).status > 0
    client.sock.close()


def test_unfinished_frames_of_many_clients_are_bounded(two: Instance) -> None:
    clients = [RawClient(two, 1) for _ in range(16)]
    with grows_less_than(two, 320 * MIB):
        for client in clients:
            client.sock.sendall(struct.pack("<I", 60 * MIB))
        for _ in range(60):
            for client in clients:
                client.push(MIB)
            with two.connect(1) as h:
                assert h.kvs.version() >= 0, "others are served"
    with two.connect(1) as h:
        statistics = h.rpc("stats.get")["clients"]
        assert statistics["unfinished_bytes"] <= 256 * MIB
    for client in clients:
        client.sock.close()


def test_segments_of_collected_values_are_closed_on_all_nodes(two: Instance) -> None:
    with two.connect(0) as h, two.connect(1) as there:
        h.rpc("roots.retention", Retention("primary", 1))
        for _ in range(5):
            h.kvs.put("long", os.urandom(4 * MIB))
            there.kvs.wait_version(h.kvs.version())
            there.kvs.view("long").release()
        assert there.rpc("stats.get")["value"]["bytes"] >= 16 * MIB
        h.kvs.unlink("long")
        assert two.run("kvs", "gc").status == 0
        there.kvs.wait_version(h.kvs.put("last", 1).version)
        assert there.rpc("stats.get")["value"]["bytes"] == 0
