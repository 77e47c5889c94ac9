"""A broker for tests of the client's errors: it answers every topic as a real one does, until a planned fault.

It runs in a thread of the test, at one end of a socket pair. It never waits for longer than ``BOUND_S``, and notes it
if it had to, so a client that hangs fails the test.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fluxmpi.blobref import digest_function
from fluxmpi.broker.wire import Hello
from fluxmpi.client.channel import Channel
from fluxmpi.client.handle import Handle
from fluxmpi.content.wire import Dropped, Stored
from fluxmpi.jobs.wire import Exit, Output
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.wire import (
    Add,
    AddTo,
    Commit,
    Committed,
    Exchange,
    GcStatus,
    GetRequest,
    Got,
    Leased,
    Listed,
    OpResult,
    Retention,
    RootInfo,
)
from fluxmpi.message import ANY, LOCAL, MORE, OK, PROTOCOL, RESPONSE, Body, Message, control, decode_batch, encode_batch
from fluxmpi.message import encode_body as encode

BOUND_S = 10.0
SHA256 = digest_function("sha256")
HELLO = Hello(PROTOCOL, "i1", 1, 3, "sha256", 42)
ROOT = SHA256(b"root")
INFO = RootInfo("primary", 7, ROOT, 1.0)
LONG = ValRef("raw", 2 << 20, (SHA256(b"a"), SHA256(b"b")))
"""A value that the broker names, and whose blobs it does not have."""

Answer = Callable[[Message], list[Message]]


@dataclass
class Fault:
    """What goes wrong: with the request number ``at``, counted from 0, or when ``cut`` bytes have been received."""

    answer: Answer | None = None
    at: int = 0
    cut: int | None = None
    raw: bytes | None = None
    """Sent in place of a frame; the connection is closed afterwards."""
    silent: bool = False


class Client(Handle):
    """A handle, and the channel that its services are made of."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.channel = channel


@dataclass
class ScriptedBroker:
    """``received``: bytes of requests; ``requests``: those that arrived whole; ``failed``: the fault has happened."""

    fault: Fault | None = None
    received: int = 0
    requests: list[Message] = field(default_factory=list)
    failed: bool = False
    waited_too_long: bool = False
    on_request: Callable[[Message], None] = lambda msg: None
    greeting: list[Message] = field(default_factory=lambda: [control("hello", HELLO)])
    sent: int = 0

    def __post_init__(self) -> None:
        self.client, self._sock = socket.socketpair()
        self._sock.settimeout(BOUND_S)
        self._send(self.greeting)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def connect(self) -> Client:
        self.start()
        return self.client_of_a_stopped_broker()

    def client_of_a_stopped_broker(self) -> Client:
        return Client(Channel(self.client))

    def start(self) -> None:
        self._thread.start()

    def has_input(self) -> bool:
        """Wait until the client has sent something, and a moment longer; return True."""
        select.select([self._sock], [], [], BOUND_S)
        select.select([], [], [], 0.01)
        return True

    def close(self) -> None:
        self.client.close()
        self._thread.join(2 * BOUND_S)
        self._sock.close()
        assert not self._thread.is_alive()
        assert not self.waited_too_long, "the client did not end"

    def _send(self, messages: list[Message]) -> None:
        batch = encode_batch(messages)
        self._sock.sendall(len(batch).to_bytes(4, "little") + batch)

    def _run(self) -> None:
        try:
            while self._frame():
                pass
        except TimeoutError:
            self.waited_too_long = True
        except OSError:
            pass
        finally:
            self._sock.close()

    def _read(self, size: int) -> bytes | None:
        """Read so many bytes; None at the end, or where the fault cuts."""
        data = b""
        while len(data) < size:
            most = size - len(data)
            if self.fault is not None and self.fault.cut is not None:
                most = min(most, self.fault.cut - self.received)
                if most <= 0:
                    self.failed = True
                    return None
            piece = self._sock.recv(most)
            if not piece:
                return None
            self.received += len(piece)
            data += piece
        return data

    def _frame(self) -> bool:
        header = self._read(4)
        frame = None if header is None else self._read(int.from_bytes(header, "little"))
        if frame is None:
            return False
        for msg in decode_batch(frame):
            number = len(self.requests)
            self.requests.append(msg)
            self.on_request(msg)
            fault = self.fault
            if fault is not None and fault.cut is None and number == fault.at:
                self.failed = True
                if fault.raw is not None:
                    self._sock.sendall(fault.raw)
                    return False
                if not fault.silent:
                    assert fault.answer is not None
                    self._send(fault.answer(msg))
            else:
                self._send(answered(msg))
        return True


def answer(msg: Message, body: Any = None, status: int = OK) -> Message:
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, [], encode(body))


def answered(msg: Message) -> list[Message]:
    """Return what a broker answers."""
    topic = msg.topic
    if topic == "kvs.commit":
        commit = Body(Commit)(msg)
        results = [
            OpResult(True, 5 if isinstance(op, Add) else None, LONG if op.key == "long" else Val("json", b"1"))
            if isinstance(op, Add | Exchange)
            else OpResult()
            for op in commit.ops
        ]
        return [answer(msg, Committed("primary", 8, ROOT, 1.0, True, results))]
    if topic == "kvs.add":
        Body(AddTo)(msg)
        return [answer(msg, Committed("primary", 8, ROOT, 1.0, True, [OpResult(True, 5)]))]
    if topic == "kvs.get":
        key = Body(GetRequest)(msg).key
        return [answer(msg, Got(7, ROOT, Dir(ROOT) if key == "dir" else Val("json", b"1"), b"1"))]
    if topic == "exec.run":
        return [answer(msg, Output(1, b"out"), MORE), answer(msg, Exit(0))]
    if topic == "content.store":
        return [answer(msg, Stored(SHA256(msg.body)))]
    return [answer(msg, ANSWERS.get(topic))]


ANSWERS: dict[str, Any] = {
    "kvs.fence": INFO,
    "kvs.getroot": INFO,
    "kvs.list": Listed(7, ROOT, [("a", Val("json", b"1")), ("b", Val("json", b"2"))], False),
    "roots.create": INFO,
    "roots.retention": Retention("primary", 10, 0.0),
    "roots.lease": Leased(3, INFO, None),
    "roots.renew": Leased(3, INFO, None),
    "gc.run": GcStatus(),
    "event.publish": 9,
    "event.subscribe": 9,
    "content.dropcache": Dropped(1, 2),
}
