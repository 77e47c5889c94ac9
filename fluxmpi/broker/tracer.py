"""The ``trace`` service: a bounded ring of the messages that this broker handled, off by default.

    enter(msg) ─▶ machines step, each delivery is recorded ─▶ leave(out): what goes out is recorded
    turn's end ─▶ mark: each batch to a neighbour begins with ``trace.mark``

Recording is on while a client follows (``trace.start``, until it stops or disconnects), or until it is switched off
(``keep``). The broker asks ``on`` once per step, and a stand-in before each machine records its deliveries while it is
on, so recording that is off costs one attribute look-up per step.

**Order.** Brokers on different hosts have different clocks. Each record is stamped with a hybrid logical clock
(Kulkarni et al., "Logical Physical Clocks", 2014): the pair (time, count), where time is the highest clock reading that
this broker has seen, its own or a neighbour's, and count orders events of one time. The clock travels in the mark at
the head of each batch. So a record of a receipt is later than the record of its sending, if both brokers record, and
all brokers between them do.

**Pairs.** A broker that records numbers its messages to each neighbour. The mark has the number of the first message of
its batch, and links keep their order, so the receiver counts on from there: both ends of a message have the same
number. Numbers begin at the time of the switch in microseconds, so that two recordings share none.

Messages of the trace service itself are not recorded: reading the ring would fill it. Nor is what drivers write to a
client without the broker: its greeting, a refusal, and a descriptor (the response to ``value.map``).

Invariant: the ring has at most ``entries_max`` records and ``bytes_max`` bytes; the oldest are dropped first.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import msgspec

from fluxmpi.broker.registry import Registry
from fluxmpi.broker.wire import TraceChunk, TraceMark, TraceRead, TraceStart, TraceState, TraceStop
from fluxmpi.errors import Overloaded
from fluxmpi.machine import Answers, Machine, Sender, Topic, client_of
from fluxmpi.message import CONTROL, EVENT, LOCAL, REQUEST, Body, Message, control, encode_body, reply

PREFIX = "trace."

_decode_start = Body(TraceStart)
_decode_stop = Body(TraceStop)
_decode_read = Body(TraceRead)
_decode_mark = Body(TraceMark)


class TraceLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of one broker's ring."""

    entries_max: int = 50_000
    """Records."""
    bytes_max: int = 8 << 20
    """Of the encoded records, about 70 bytes each."""
    read_bytes_max: int = 1 << 20
    """Of one response to ``trace.read``; the client asks again for the rest."""
    followers_max: int = 64
    """Clients for which the broker records at a time; past that, Overloaded."""


TRACE_LIMITS = TraceLimits()


class Tracer(Machine):
    """The ``trace`` service of one broker."""

    name = "trace"

    def __init__(self, limits: TraceLimits) -> None:
        super().__init__()
        self.on = False
        self._limits = limits
        self._registry: Registry | None = None
        self._kept = False
        self._followers: dict[tuple[int, ...], None] = {}
        """Routes of the clients that follow."""
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._next = 0
        """Index of the next record."""
        self._time = 0.0
        self._count = 0
        self._numbers: dict[int, int] = {}
        """Rank to the number of the next message to it."""
        self._first_number = 0
        self._expected: dict[int, int] = {}
        """Rank to the number of the next message from it, where it has sent a mark."""
        self._now = 0.0
        self._entering: Message | None = None
        self._source = LOCAL
        self._received = -1
        self._makers: dict[int, tuple[Message, str]] = {}
        """``id`` of a message that a machine made in this step to the message, so that it keeps that id, and the
        machine's name."""
        client, neighbour = Sender.CLIENT, Sender.CHILD | Sender.PARENT
        self.topics = {
            "trace.start": Topic(REQUEST, client, self._start_for, TraceStart),
            "trace.stop": Topic(REQUEST, client, self._stop_for, TraceStop),
            "trace.read": Topic(REQUEST, client, self._read_for, TraceRead, isolated=True),
            "trace.disconnect": Topic(REQUEST, Sender.MACHINE, self._client_left, int, Answers.NONE),
            "trace.mark": Topic(CONTROL, neighbour, self._merge, TraceMark),
        }

    def attach(self, registry: Registry) -> None:
        """Call once: ``registry`` holds the machines whose deliveries are recorded."""
        self._registry = registry

    # ---------------------------------------------------------------------------------------------------- recording

    def enter(self, msg: Message | None, now: float) -> None:
        """Record that a message enters the broker; None: a tick or a disconnected client. ``leave`` follows."""
        self._now = now
        self._entering = msg
        self._received = -1
        if msg is not None:
            hop = self._source = msg.hop
            number = self._expected.get(hop)
            if number is not None:
                self._received = number
                self._expected[hop] = number + 1

    def made(self, name: str, messages: list[Message]) -> None:
        """Record what the machine ``name`` returned."""
        makers = self._makers
        for msg in messages:
            makers[id(msg)] = msg, name

    def leave(self, out: list[Message]) -> None:
        """Record the messages that leave the broker."""
        if not self.on:
            return
        numbers, entering = self._numbers, self._entering
        for msg in out:
            hop = msg.hop
            sent = -1
            if hop >= 0:
                sent = numbers.get(hop, self._first_number)
                numbers[hop] = sent + 1
            if msg.topic.startswith(PREFIX) and msg.kind != EVENT:
                continue
            maker = self._maker(msg)
            if not maker and msg is entering:
                self._record(msg, self._source, "", hop, "", self._received, sent)
            else:
                self._record(msg, LOCAL, maker or "broker", hop, "", -1, sent)
        self._makers.clear()
        self._entering = None

    def delivered(self, msg: Message, name: str) -> None:
        """Record that the machine ``name`` steps a message."""
        if msg.topic.startswith(PREFIX) and msg.kind != EVENT:
            return
        maker = self._maker(msg)
        if not maker and msg is self._entering:
            self._record(msg, self._source, "", LOCAL, name, self._received, -1)
        else:
            self._record(msg, LOCAL, maker or "broker", LOCAL, name, -1, -1)

    def _maker(self, msg: Message) -> str:
        """Return the name of the machine that made a message in this step; empty if none did."""
        made = self._makers.get(id(msg))
        return "" if made is None else made[1]

    def _record(
        self, msg: Message, source: int, maker: str, target: int, handler: str, received: int, sent: int
    ) -> None:
        now = self._now
        if now > self._time:
            self._time, self._count = now, 0
        else:
            self._count += 1
        entry = encode_body(
            (
                *(self._time, self._count, now, source, maker, target, handler, received, sent),
                *(msg.kind, msg.topic, msg.tag, msg.status, msg.target, msg.route, len(msg.body)),
            )
        )
        ring, limits = self._ring, self._limits
        ring.append(entry)
        self._next += 1
        self._ring_bytes += len(entry)
        while self._ring_bytes > limits.bytes_max or len(ring) > limits.entries_max:
            self._ring_bytes -= len(ring.popleft())

    def mark(self, peers: dict[int, list[Message]]) -> None:
        """Put a mark at the head of each batch, at the end of a turn in which recording is on."""
        for rank, batch in peers.items():
            number = self._numbers.get(rank, self._first_number) - len(batch)
            batch.insert(0, control("trace.mark", TraceMark(self._time, self._count, number), rank))

    # ------------------------------------------------------------------------------------------------------ service

    def _start_for(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._start(tuple(msg.route), _decode_start(msg).keep, now))]

    def _stop_for(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._stop(tuple(msg.route), _decode_stop(msg).keep))]

    def _read_for(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._read(_decode_read(msg).start, now))]

    def _client_left(self, msg: Message, now: float) -> list[Message]:
        self._stop(tuple(client_of(msg)), False)
        return []

    def _merge(self, msg: Message, now: float) -> list[Message]:
        mark: TraceMark = _decode_mark(msg)
        if (mark.time, mark.count) > (self._time, self._count):
            self._time, self._count = mark.time, mark.count
        self._expected[msg.hop] = mark.number
        return []

    def _start(self, route: tuple[int, ...], keep: bool, now: float) -> TraceState:
        if keep:
            self._kept = True
        elif route not in self._followers:
            if len(self._followers) >= self._limits.followers_max:
                raise Overloaded(f"{self._limits.followers_max} clients trace this broker already: try again later")
            self._followers[route] = None
        if not self.on:
            self.on = True
            self._numbers.clear()
            self._expected.clear()
            self._first_number = int(now * 1e6)
            if self._registry is not None:
                self._registry.wrap(lambda machine: _Traced(machine, self))
        return TraceState(True, self._next)

    def _stop(self, route: tuple[int, ...], keep: bool) -> TraceState:
        self._followers.pop(route, None)
        if keep:
            self._kept = False
            self._followers.clear()
        if self.on and not self._kept and not self._followers:
            self.on = False
            self._ring.clear()
            self._ring_bytes = 0
            self._makers.clear()
            self._entering = None
            if self._registry is not None:
                self._registry.wrap(None)
        return TraceState(self.on, self._next)

    def _read(self, start: int, now: float) -> TraceChunk:
        self._time, self._count = max((self._time, self._count), (now, 0))
        oldest = self._next - len(self._ring)
        first = min(max(start, oldest), self._next)
        records: list[msgspec.Raw] = []
        size = 0
        for entry in islice(self._ring, first - oldest, None):
            size += len(entry)
            if records and size > self._limits.read_bytes_max:
                break
            records.append(msgspec.Raw(entry))
        after = first + len(records)
        return TraceChunk(self.on, first, after, after < self._next, self._time, self._count, records)

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._stop((hop,), False)
        return []

    def statistics(self) -> dict[str, float]:
        return {
            "on": int(self.on),
            "followers": len(self._followers),
            "records": len(self._ring),
            "bytes": self._ring_bytes,
            "recorded": self._next,
        }

    def check(self) -> None:
        assert len(self._ring) <= self._limits.entries_max
        assert self._ring_bytes == sum(map(len, self._ring)) <= self._limits.bytes_max
        assert self.on == (self._kept or bool(self._followers))
        assert self.on or not self._ring


class _Traced:
    """Stand-in of a machine that reports its deliveries and what it makes to the tracer."""

    def __init__(self, machine: Machine, tracer: Tracer) -> None:
        self._machine = machine
        self._tracer = tracer

    def step(self, msg: Message, now: float) -> list[Message]:
        self._tracer.delivered(msg, self._machine.name)
        out = self._machine.step(msg, now)
        self._tracer.made(self._machine.name, out)
        return out
