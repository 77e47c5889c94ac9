"""Helpers of the tests of machines: messages as a broker passes them, decoded answers, and brokers linked by queues."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.errors import FluxmpiError, decode_error
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Commit, CommitId, Op, Put
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import (
    ANY,
    CLIENT_FIRST,
    CONTROL,
    OK,
    PAGE,
    REQUEST,
    RESPONSE,
    Message,
    decode_batch,
    encode_batch,
    encode_body,
)
from fluxmpi.simulator.drivers.page import SimulatedPage

NOW = 1000.0
CLIENT = CLIENT_FIRST
OTHER = CLIENT_FIRST - 1


def ask(topic: str, body: Any = None, *, hop: int = CLIENT, tag: int = 1, raw: bytes | None = None) -> Message:
    """A request as a machine gets it: the hop that it came from is on its route."""
    return Message(REQUEST, topic, hop, ANY, tag, OK, [hop], encode_body(body) if raw is None else raw)


def to_broker(
    topic: str, body: Any = None, *, hop: int = CLIENT, tag: int = 1, target: int = ANY, raw: bytes | None = None
) -> Message:
    """A request as a broker gets it from a client."""
    return Message(REQUEST, topic, hop, target, tag, OK, [], encode_body(body) if raw is None else raw)


def control_from(topic: str, body: Any = None, hop: int = -1) -> Message:
    return Message(CONTROL, topic, hop, body=encode_body(body))


def answer_to(request: Message, body: Any = None, *, status: int = OK, raw: bytes | None = None) -> Message:
    """The response to a request that a machine made."""
    return Message(
        RESPONSE, request.topic, tag=request.tag, status=status, body=encode_body(body) if raw is None else raw
    )


def failed_with(request: Message, error: FluxmpiError) -> Message:
    return answer_to(request, error.text, status=error.code)


def body(msg: Message, record: Any = Any) -> Any:
    """The body of a message that is not an error."""
    assert msg.kind != RESPONSE or msg.status <= OK, decode_error(msg.status, msg.body)
    return msgspec.msgpack.decode(msg.body, type=record)


def error(msg: Message) -> FluxmpiError:
    assert msg.kind == RESPONSE
    assert msg.status > 0, f"{msg.topic} was answered without an error"
    return decode_error(msg.status, msg.body)


def topics(messages: list[Message]) -> list[tuple[str, int]]:
    """(topic, hop) of each."""
    return [(msg.topic, msg.hop) for msg in messages]


def responses(messages: list[Message]) -> list[Message]:
    return [msg for msg in messages if msg.kind == RESPONSE]


def put(key: str, text: object) -> Put:
    return Put(key, Val("raw", str(text).encode()))


def commit(serial: int, *ops: Op, client: str = "c", acked: int = 0, namespace: str = "primary") -> Commit:
    return Commit(namespace, CommitId(client, serial), acked, list(ops))


def work(machine: Machine) -> list[Message]:
    """Tick a machine until its deadline is in the future."""
    at, out = machine.deadline, []
    while machine.deadline <= at < NEVER:
        out += machine.tick(at)
    return out


class Cluster:
    """Brokers whose messages pass the codec and one queue per link, in MPI's order and without delays.

    ``sent``: messages to clients and local drivers, as (rank, message).
    """

    def __init__(self, size: int, topology: str = "kary:2", **config: Any) -> None:
        hosts = tuple(f"host{rank}" for rank in range(size))
        self.now = NOW
        self.brokers = [
            Broker(Config(rank=rank, size=size, hosts=hosts, topology=topology, **config), NOW) for rank in range(size)
        ]
        self.links: dict[tuple[int, int], deque[Message]] = {}
        self.pages = [SimulatedPage("", rank) for rank in range(size)]
        self.sent: list[tuple[int, Message]] = []
        self.dead: dict[int, None] = {}
        self.carried: list[tuple[int, int, Message]] = []
        for rank, broker in enumerate(self.brokers):
            self.take(rank, broker.start(NOW))
        self.run()

    def take(self, rank: int, messages: list[Message]) -> None:
        for msg in messages:
            if msg.hop >= 0:
                assert msg.hop not in self.brokers[rank].router.lost, f"rank {rank} sends to lost rank {msg.hop}"
                self.links.setdefault((rank, msg.hop), deque()).append(decode_batch(encode_batch([msg]))[0])
            elif msg.hop == PAGE:
                self.pages[rank].step(msg)
            else:
                self.sent.append((rank, msg))
        self.pages[rank].flush()

    def step(self, rank: int, msg: Message) -> None:
        self.take(rank, self.brokers[rank].step(msg, self.now))

    def tick(self) -> None:
        for rank, broker in enumerate(self.brokers):
            if rank not in self.dead and broker.deadline <= self.now:
                self.take(rank, broker.tick(self.now))

    def run(self, seconds: float = 0.0) -> list[tuple[int, Message]]:
        """Run until no message is under way and no tick is due within ``seconds``.

        Return the messages to clients and drivers.
        """
        end = self.now + seconds
        while True:
            self.tick()
            moved = False
            for (source, rank), link in list(self.links.items()):
                while link:
                    moved = True
                    msg = link.popleft()
                    if rank in self.dead:
                        continue
                    self.carried.append((source, rank, msg))
                    msg.hop = source
                    self.step(rank, msg)
            due = [broker.deadline for rank, broker in enumerate(self.brokers) if rank not in self.dead]
            if moved or any(deadline <= self.now for deadline in due):
                continue
            for rank, broker in enumerate(self.brokers):
                if rank not in self.dead:
                    broker.check()
            soonest = min(due, default=end + 1)
            if soonest > end:
                self.now = end
                sent, self.sent = self.sent, []
                return sent
            self.now = soonest

    def call(self, rank: int, msg: Message) -> list[Message]:
        """Send a client's request at ``rank``, and return the messages to clients and drivers of that rank."""
        self.step(rank, msg)
        return [sent for at, sent in self.run() if at == rank]

    def kill(self, rank: int) -> None:
        self.dead[rank] = None
