"""What guards and atomic operations make of objects: integers, what is equal, what is less.

- Equal are values of one type with the same bytes, however they are cut into blobs; directories of one ref; links to one place.
  So json ``1`` and ``1.0`` are different.
- Only json numbers have an order among them, and json texts, by code point.
- An integer is a json value without fraction or exponent, of 64 bits with its sign.

What does not fit is an InvalidValue, which names the key.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidRequest, InvalidValue, SnapshotCollected
from fluxmpi.kvs.objects import Dir, Link, Object, Val, ValRef
from fluxmpi.kvs.wire import GUARD_EXISTS, GUARD_VALUE, GUARD_VERSION, Guard
from fluxmpi.message import INTEGER_MAX, INTEGER_MIN

COMPARE_BYTES_MAX = 16 << 20
"""Longer values are equal when their blobs are the same; for a comparison byte by byte they would have to be read whole."""

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

ReadBlob = Callable[[Ref], bytes]

_decode_json = msgspec.json.Decoder().decode


def kind_of(obj: Object) -> str:
    """What people call it."""
    if isinstance(obj, Dir):
        return "a directory"
    if isinstance(obj, Link):
        return "a link"
    return f"a value of type {obj.type.partition(';')[0]}"


def integer(key: str, obj: Object | None) -> int:
    """The integer that an addition starts from; 0 where there is nothing."""
    if obj is None:
        return 0
    if type(obj) is not Val or obj.type != "json":
        raise InvalidValue(f"'{key}' is {kind_of(obj)}: only a json integer can be added to")
    try:
        value = _decode_json(obj.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidValue(f"'{key}' is no good JSON: only a json integer can be added to") from None
    if type(value) is not int:
        raise InvalidValue(f"'{key}' is {obj.data[:40].decode(errors='replace')}: only a json integer can be added to")
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise InvalidValue(f"'{key}' is {value}, which has over 64 bits: it cannot be added to")
    return value


def sum_of(key: str, value: int, amount: int) -> int:
    total = value + amount
    if not INTEGER_MIN <= total <= INTEGER_MAX:
        raise InvalidValue(f"'{key}' is {value}: with {amount:+} it would be past 64 bits, so nothing was added")
    return total


# ----------------------------------------------------------------------------------------------------------- comparing


def same(one: Object | None, other: Object | None, read: ReadBlob) -> bool:
    """Whether two things are equal; None is no such key."""
    if one == other:
        return True
    if not isinstance(one, Val | ValRef) or not isinstance(other, Val | ValRef):
        return False
    if one.type != other.type or _size(one) != _size(other) or (type(one) is Val and type(other) is Val):
        return False
    return _same_bytes(one, other, read)


def _size(value: Val | ValRef) -> int:
    return len(value.data) if type(value) is Val else value.size  # type: ignore[union-attr]


def _same_bytes(one: Val | ValRef, other: Val | ValRef, read: ReadBlob) -> bool:
    """Of one size. Piece by piece, so that the first difference ends it."""
    if _size(one) > COMPARE_BYTES_MAX:
        raise InvalidValue(
            f"values of {_size(one):,} bytes, cut into blobs in two ways, are not compared: the most is {COMPARE_BYTES_MAX:,}"
        )
    left, right = _pieces(one, read), _pieces(other, read)
    a = b = b""
    while True:
        a, b = a or next(left, b""), b or next(right, b"")
        if not a or not b:
            return a == b
        length = min(len(a), len(b))
        if a[:length] != b[:length]:
            return False
        a, b = a[length:], b[length:]


def _pieces(value: Val | ValRef, read: ReadBlob) -> Iterator[bytes]:
    if type(value) is Val:
        yield value.data
    else:
        for ref in value.refs:  # type: ignore[union-attr]
            yield read(ref)


def _ordered(key: str, obj: Object, read: ReadBlob) -> Any:
    """The number or text that has a place in an order."""
    if isinstance(obj, Val | ValRef) and obj.type == "json" and _size(obj) <= COMPARE_BYTES_MAX:
        try:
            value = _decode_json(b"".join(_pieces(obj, read)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidValue(f"'{key}' is compared with < or >, and is no good JSON") from None
        if type(value) in (int, float, str):
            return value
        raise InvalidValue(f"'{key}' is compared with < or >: that takes two json numbers or two json texts")
    raise InvalidValue(
        f"'{key}' is compared with < or >: that takes two json numbers or two json texts, not {kind_of(obj)}"
    )


# -------------------------------------------------------------------------------------------------------------- guards


def check_guard(guard: Guard) -> None:
    """Raise for a guard that could never be asked, whatever is there."""
    if guard.compare not in COMPARE:
        raise InvalidRequest(f"'{guard.compare}' compares nothing: a guard takes one of {' '.join(COMPARE)}")
    operand, text = guard.operand, f"the guard on '{guard.key}'"
    if guard.what == GUARD_EXISTS:
        if type(operand) is not bool or guard.compare not in ("==", "!="):
            raise InvalidValue(f"{text}: existence is == or != a bool, not {guard.compare} {operand!r}")
    elif guard.what == GUARD_VERSION:
        if type(operand) is not int:
            raise InvalidValue(f"{text}: a version is compared with an int, not with {operand!r}")
    elif guard.what != GUARD_VALUE:
        raise InvalidRequest(f"{text} asks for {guard.what}: it must be 0 (value), 1 (version) or 2 (existence)")
    elif type(operand) in (bool, int):
        raise InvalidValue(f"{text}: a value is compared with an object, not with {operand!r}")


def value_holds(guard: Guard, obj: Object | None, operand: Object, read: ReadBlob) -> bool:
    """A guard on a value; ``operand`` as it would be stored."""
    compare = guard.compare
    if obj is None:
        return compare == "!="
    plain = isinstance(operand, Val | ValRef)
    if plain and not isinstance(obj, Val | ValRef):
        raise InvalidValue(f"the guard on '{guard.key}' compares a value, but that is {kind_of(obj)}")
    if compare in ("==", "!="):
        return same(obj, operand, read) is (compare == "==")
    if not plain:
        raise InvalidValue(f"the guard on '{guard.key}': {kind_of(operand)} is not less or greater than anything")
    one, other = _ordered(guard.key, obj, read), _ordered(guard.key, operand, read)
    if (type(one) is str) is not (type(other) is str):
        raise InvalidValue(f"the guard on '{guard.key}' compares a number with a text")
    return COMPARE[compare](one, other)


def version_holds(guard: Guard, last: int, exact: bool) -> bool:
    """A guard on the version of the last change, which is ``last``, or not ``exact``: ``last`` or an older one."""
    operand: Any = guard.operand
    compare = COMPARE[guard.compare]
    if exact or not 0 <= operand <= last:  # then all from 0 to ``last`` compare alike
        return compare(last, operand)
    if operand == last and guard.compare in ("<=", ">"):
        return compare(last, operand)
    if operand == 0 and guard.compare in (">=", "<"):
        return compare(0, operand)
    raise SnapshotCollected(
        f"the guard on '{guard.key}' compares its last change with version {operand}: it was by version {last}, the oldest that"
        " is kept, and when is not known any more"
    )
