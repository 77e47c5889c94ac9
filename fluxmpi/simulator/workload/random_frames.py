"""Random frames of a client's socket: broken ones of every kind, and valid ones that arrive in an unusual way.

A frame is 4 bytes of length, little endian, and a msgpack array of messages (see ``drivers/clients``). ``Frame.outcome``
says what the broker must do: answer, or refuse with a ProtocolError or TooLarge and close the connection.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import msgspec

from fluxmpi.message import ANY, CONTROL, EVENT, FRAME_BYTES_MAX, REQUEST, RESPONSE

PING = msgspec.msgpack.encode([1, b"x"])
MANY = 3000
"""Messages of a frame with many."""
NOISE_BYTES = (0, 1, 3, 100, 5_000, 300_000)


class Expected(enum.Enum):
    ANSWERED = enum.auto()
    """Every message gets a response."""
    REFUSED = enum.auto()
    """A response with tag 0 and an error; then the connection is closed."""
    UNFINISHED = enum.auto()
    """The frame is incomplete: the broker waits until the client closes."""


class Frame(NamedTuple):
    """``pieces`` are sent one by one. ``answers``: responses to expect, if it is ANSWERED."""

    name: str
    pieces: list[bytes]
    outcome: Expected
    answers: int = 0


def frame(payload: bytes, size: int | None = None) -> bytes:
    """Return a frame; ``size``: the length that it claims to have."""
    return (len(payload) if size is None else size).to_bytes(4, "little") + payload


def batch(*messages: Any) -> bytes:
    return frame(msgspec.msgpack.encode(list(messages)))


def ping(tag: Any = 1, **fields: Any) -> list[Any]:
    """Return a ``ping.ping`` as a list; ``fields`` replace what the message has."""
    names = ("kind", "topic", "hop", "target", "tag", "status", "route", "body")
    values = dict(zip(names, (REQUEST, "ping.ping", -1, ANY, tag, 0, [], PING), strict=True))
    return list((values | fields).values())


class RandomFrames:
    """Frames of all kinds in turn, each with random details."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._makers: list[Callable[[], Frame]] = [
            self._too_long,
            self._truncated,
            self._noise,
            self._wrong_type,
            self._nested,
            self._claims_more,
            self._wrong_kind,
            self._wrong_field,
            self._wrong_target,
            self._many,
            self._many_then_one_bad,
            self._forged,
            self._dribbled,
            self._extreme_tag,
            self._changed,
        ]
        self._next = 0

    def next(self) -> Frame:
        self._next += 1
        return self._makers[self._next % len(self._makers)]()

    def _refused(self, name: str, *pieces: bytes) -> Frame:
        return Frame(name, list(pieces), Expected.REFUSED)

    def _too_long(self) -> Frame:
        size = self._rng.choice((FRAME_BYTES_MAX + 1, 1 << 31, (1 << 32) - 1))
        return self._refused("too long", frame(b"\x90", size))

    def _truncated(self) -> Frame:
        whole = batch(*[ping() for _ in range(self._rng.randint(1, 50))])
        return Frame("truncated", [whole[: self._rng.randrange(1, len(whole))]], Expected.UNFINISHED)

    def _noise(self) -> Frame:
        noise = b"\xc1" + self._rng.randbytes(self._rng.choice(NOISE_BYTES))
        return self._refused("noise", frame(noise))

    def _wrong_type(self) -> Frame:
        value: Any = self._rng.choice((None, 1, "text", b"bytes", {"a": 1}, [None], [1], [[]], [[1]], [{}], True, 0.5))
        return self._refused("wrong type", frame(msgspec.msgpack.encode(value)))

    def _nested(self) -> Frame:
        depth = self._rng.choice((100, 2_000, 100_000, 1_000_000))
        return self._refused("nested", frame(b"\x91" * depth + b"\xc0"))

    def _claims_more(self) -> Frame:
        head = self._rng.choice((b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\x91\x98\x01\xdb\xff\xff\xff\xff"))
        return self._refused("claims more", frame(head + self._rng.randbytes(20)))

    def _wrong_kind(self) -> Frame:
        kind = self._rng.choice((0, RESPONSE, EVENT, CONTROL, 5, -1, (1 << 63) - 1, (1 << 64) - 1))
        topic = self._rng.choice(("ping.ping", "kvs.setroot", "value.spoilt", "lifecycle.end", "content.read", ""))
        return self._refused("wrong kind", batch(ping(kind=kind, topic=topic)))

    def _wrong_field(self) -> Frame:
        name = self._rng.choice(("kind", "topic", "hop", "target", "tag", "status", "route", "body"))
        wrong = {"topic": 1, "route": ["a"], "body": "text", "kind": "1"}.get(name, "text")
        wrong = self._rng.choice((wrong, None, {}, 1e300))
        return self._refused("wrong field", batch(ping(**{name: wrong})))

    def _wrong_target(self) -> Frame:
        target = self._rng.choice((1 << 31, -(1 << 31) - 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1))
        return self._refused("wrong target", batch(ping(target=target)))

    def _many(self) -> Frame:
        count = self._rng.choice((0, 1, 10, MANY))
        return Frame("many", [batch(*[ping(tag) for tag in range(count)])], Expected.ANSWERED, count)

    def _many_then_one_bad(self) -> Frame:
        return self._refused("many, the last one wrong", batch(*[ping(tag) for tag in range(50)], ping(kind=RESPONSE)))

    def _forged(self) -> Frame:
        """Fields that the broker overwrites: hop, status, and a route of any length."""
        route = self._rng.choice(([-1], [0, 1, 2], [-16] * 1000, list(range(20_000)), [(1 << 64) - 1]))
        forged = ping(hop=self._rng.choice((-1, 0, -16, -6, 1 << 40)), status=self._rng.choice((-1, 7)), route=route)
        return Frame("forged", [batch(forged)], Expected.ANSWERED, 1)

    def _dribbled(self) -> Frame:
        whole = batch(ping(1)) + batch(ping(2), ping(3))
        cuts = sorted(self._rng.sample(range(1, len(whole)), min(self._rng.choice((1, 3, 20)), len(whole) - 1)))
        pieces = [whole[first:last] for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        return Frame("dribbled", pieces, Expected.ANSWERED, 3)

    def _extreme_tag(self) -> Frame:
        tag = self._rng.choice((0, -1, -(1 << 63), (1 << 63) - 1, (1 << 64) - 1))
        return Frame("extreme tag", [batch(ping(tag))], Expected.ANSWERED, 1)

    def _changed(self) -> Frame:
        """Change bytes of a valid payload; the length is right. It may be valid still, so nothing is expected."""
        payload = bytearray(msgspec.msgpack.encode([ping(tag) for tag in range(3)]))
        for _ in range(self._rng.randint(1, 5)):
            payload[self._rng.randrange(len(payload))] = self._rng.randrange(256)
        return Frame("changed", [frame(bytes(payload))], Expected.UNFINISHED)
