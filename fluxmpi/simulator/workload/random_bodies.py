"""Random bodies for every topic: of the shape that its row declares, or of none.

A body of the right shape gets past the decoder, and its values are drawn from small pools: keys, names and refs that
exist, those that do not, and the ends of every range. So most bodies reach the code behind the decoder.

Tests walk the topic table with them, and ``benchmarks/fuzz.py`` sends them to real brokers.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from msgspec import inspect

from fluxmpi.broker.wire import Shutdown
from fluxmpi.machine import Topic
from fluxmpi.message import encode_body

INTEGERS = (*range(-2, 4), 10, 255, 256, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1)
FLOATS = (0.0, 1.0, -1.0, 1e-300, 1e300, 1e18, -1e18, float("inf"), float("-inf"), float("nan"), 1000.0, 1e9)
KEYS = (
    *("a", "a.b", "a.b.c", "b", "b.c", "count", "d.e.f.g", "l", "a", "a.b", "."),
    *(
        "a",
        "a.b",
        "a.b.c",
        "l",
        "l.x",
        ".",
        "",
        "a..b",
        ".a",
        "a.",
        "\0",
        "é.ü",
        "\x1b[31m",
        "*",
        "a.*",
        "**",
        "a.[",
        "?",
    ),
    *("a" * 5000, ".".join("d" * 200), "x" * 70_000),
)
NAMES = (*["primary"] * 8, "other", "f", "g", "", "\0", "n" * 300, "é")
TEXTS = ("", "a", "raw", "json", "ndarray;<f8;1", "ndarray;<f8;-1", "==", "!=", "<=", "missing", "\0", "é" * 100)
BLOBS = (b"", b"x", b"1", bytes(20), bytes(32), bytes(33), bytes(300), b"\x93\x00\x90\x90", b"\xc1", bytes(5000))
COMMANDS = ((), ("",), ("true",), ("echo", "a"), ("no-such-command",), ("\0",), ("true", "x" * 1000))
STATUSES_REFUSED = (-1, 256, 1 << 40)
"""For ``lifecycle.shutdown``: a valid one would end the instance."""
LONG = 200
"""Items of a long list."""

_BY_FIELD: dict[str, str] = {
    **dict.fromkeys(("key", "after", "prefix", "target"), "keys"),
    **dict.fromkeys(("names", "keys"), "keys"),
    **dict.fromkeys(("namespace", "name", "client"), "names"),
    **dict.fromkeys(("ref", "refs", "root", "at", "a", "b", "between"), "refs"),
    "path": "paths",
}
"""Name of a field to the pool that its texts or bytes come from."""


class RandomBodies:
    """``keys``, ``names``, ``refs``, ``paths``, …: the pools; add what exists to them."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.keys: list[Any] = list(KEYS)
        self.names: list[Any] = list(NAMES)
        self.refs: list[Any] = list(BLOBS)
        self.paths: list[Any] = ["fuzz.h5", "", "no/such/folder/fuzz.h5", "\0"]
        self.texts: list[Any] = list(TEXTS)
        self.blobs: list[Any] = list(BLOBS)
        self.integers: list[int] = list(INTEGERS)
        self.floats: list[float] = list(FLOATS)
        self._make: dict[type, Callable[[Any, str, int], Any]] = {
            inspect.IntType: lambda kind, name, depth: self._integer(name),
            inspect.FloatType: lambda kind, name, depth: self._rng.choice(self.floats),
            inspect.BoolType: lambda kind, name, depth: self._rng.random() < 0.5,
            inspect.NoneType: lambda kind, name, depth: None,
            inspect.StrType: lambda kind, name, depth: self._pick(name, self.texts),
            inspect.BytesType: lambda kind, name, depth: self._pick(name, self.blobs),
            inspect.UnionType: lambda kind, name, depth: self._value(self._rng.choice(kind.types), name, depth),
            inspect.ListType: lambda kind, name, depth: self._items(kind.item_type, name, depth),
            inspect.VarTupleType: lambda kind, name, depth: self._items(kind.item_type, name, depth),
            inspect.TupleType: lambda kind, name, depth: [self._value(one, name, depth + 1) for one in kind.item_types],
            inspect.DictType: lambda kind, name, depth: {},
            inspect.StructType: lambda kind, name, depth: self._struct(kind, depth),
            inspect.AnyType: lambda kind, name, depth: self._anything(),
        }

    # ------------------------------------------------------------------------------------------------- the right shape

    def shaped(self, row: Topic) -> bytes:
        """Return a body that decodes to the type that the row declares."""
        if row.body is bytes:
            return bytes(self._rng.choice(self.blobs))
        return encode_body(self.value(row.body))

    def value(self, kind: Any) -> Any:
        """Return a value of a type, as lists and scalars."""
        return self._value(inspect.type_info(kind), "", 0)

    def _value(self, kind: inspect.Type, name: str, depth: int) -> Any:
        if isinstance(kind, inspect.Metadata):
            return self._value(kind.type, name, depth)
        return self._make[type(kind)](kind, name, depth)

    def _struct(self, kind: inspect.StructType, depth: int) -> list[Any]:
        """Return the fields of a record as an array; the last ones, which have a default, may be left out."""
        tag = [] if kind.tag is None else [kind.tag]
        fields = list(kind.fields)
        required = sum(field.required for field in fields)
        count = len(fields) if self._rng.random() < 0.6 else self._rng.randint(required, len(fields))
        values = [self._value(field.type, field.encode_name, depth + 1) for field in fields[:count]]
        if kind.cls is Shutdown:
            values[:1] = [self._rng.choice(STATUSES_REFUSED)]
        return tag + values

    def _items(self, kind: inspect.Type, name: str, depth: int) -> list[Any]:
        if name == "argv":
            return list(self._rng.choice(COMMANDS))
        chance = self._rng.random()
        count = self._rng.randint(0, 3) if chance < 0.97 or depth > 1 else LONG
        return [self._value(kind, name, depth + 1) for _ in range(count)]

    def _pick(self, name: str, others: list[Any]) -> Any:
        pool = getattr(self, _BY_FIELD.get(name, ""), others)
        value = self._rng.choice(pool)
        if others is self.texts:
            return value if isinstance(value, str) else self._rng.choice(others)
        return value if isinstance(value, bytes) else self._rng.choice(others)

    def _integer(self, name: str) -> int:
        if name in ("serial", "size", "version", "at_least", "tag") and self._rng.random() < 0.5:
            return self._rng.randint(0, 8)
        return self._rng.choice(self.integers)

    # --------------------------------------------------------------------------------------------------- other shapes

    def broken(self, row: Topic, others: list[Topic]) -> bytes:
        """Return a body that probably does not decode: of another topic, cut, changed, deep, long, or noise."""
        raw = self._broken(row, others)
        return self.shaped(row) if row.body is Shutdown and _ends_the_instance(raw) else raw

    def _broken(self, row: Topic, others: list[Topic]) -> bytes:
        rng = self._rng
        raw = bytearray(self.shaped(row))
        match rng.randrange(9):
            case 0:
                return self.shaped(rng.choice(others))
            case 1:
                return bytes(raw[: rng.randrange(len(raw) + 1)])
            case 2:
                return bytes(raw) + rng.randbytes(rng.randint(1, 8))
            case 3:
                for _ in range(rng.randint(1, 4)):
                    if raw:
                        raw[rng.randrange(len(raw))] = rng.randrange(256)
                return bytes(raw)
            case 4:
                return rng.randbytes(rng.choice((0, 1, 2, 5, 50, 3000)))
            case 5:
                return b"\x91" * rng.choice((10, 200, 2000, 50_000)) + b"\xc0"
            case 6:
                return rng.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xdf\xff\xff\xff\xff")
                )
            case 7:
                surrogate = b"\xa3\xed\xa0\x80"
                return b"\x94" + surrogate * 4 if rng.random() < 0.5 else surrogate
            case _:
                return encode_body(self._anything())

    def _anything(self, depth: int = 0) -> Any:
        rng = self._rng
        match rng.randrange(8 if depth < 3 else 6):
            case 0:
                return None
            case 1:
                return rng.random() < 0.5
            case 2:
                return rng.choice(self.integers)
            case 3:
                return rng.choice(self.floats)
            case 4:
                return rng.choice(self.texts)
            case 5:
                return rng.choice(self.blobs)
            case 6:
                return [self._anything(depth + 1) for _ in range(rng.randint(0, 4))]
            case _:
                return {str(number): self._anything(depth + 1) for number in range(rng.randint(0, 3))}


def _ends_the_instance(raw: bytes) -> bool:
    try:
        return 0 <= msgspec.msgpack.decode(raw, type=Shutdown).status <= 255
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
