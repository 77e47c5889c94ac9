"""Evaluate guards, and compare and add values for atomic operations.

- Two values are equal if they have the same type and the same bytes, however they are cut into blobs. So json ``1`` and ``1.0``
  differ. Two directories are equal if they have the same ref, two links if they have the same target.
- Only json numbers, and json texts by code point, have an order.
- An integer is a json value without fraction or exponent, of 64 bits with its sign.

A value that does not fit raises InvalidValue, which names the key.
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
"""Longer values are compared by their blobs alone: a comparison byte by byte would read them as a whole."""

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
    """Return what an error message calls the object."""
    if isinstance(obj, Dir):
        return "a directory"
    if isinstance(obj, Link):
        return "a link"
    return f"a value of type {obj.type.partition(';')[0]}"


def integer(key: str, obj: Object | None) -> int:
    """Return the integer that an addition starts from: 0 if there is no such key."""
    if obj is None:
        return 0
    if type(obj) is not Val or obj.type != "json":
        raise InvalidValue(f"'{key}' is {kind_of(obj)}: only a json integer can be added to")
    try:
        value = _decode_json(obj.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidValue(f"'{key}' is not valid JSON: only a json integer can be added to") from None
    if type(value) is not int:
        raise InvalidValue(f"'{key}' is {obj.data[:40].decode(errors='replace')}: only a json integer can be added to")
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise InvalidValue(f"'{key}' is {value}, which has over 64 bits: it cannot be added to")
    return value


def sum_of(key: str, value: int, amount: int) -> int:
    """Return the sum. Raises InvalidValue past 64 bits."""
    total = value + amount
    if not INTEGER_MIN <= total <= INTEGER_MAX:
        raise InvalidValue(f"'{key}' is {value}: with {amount:+} it would be past 64 bits, so nothing was added")
    return total


# ----------------------------------------------------------------------------------------------------------- comparing


def equal(one: Object | None, other: Object | None, read: ReadBlob) -> bool:
    """Return whether two objects are equal; None stands for "no such key"."""
    if one == other:
        return True
    if not isinstance(one, Val | ValRef) or not isinstance(other, Val | ValRef):
        return False
    if one.type != other.type or _size(one) != _size(other) or (type(one) is Val and type(other) is Val):
        return False
    return _equal_bytes(one, other, read)


def _size(value: Val | ValRef) -> int:
    return len(value.data) if type(value) is Val else value.size  # type: ignore[union-attr]


def _equal_bytes(one: Val | ValRef, other: Val | ValRef, read: ReadBlob) -> bool:
    """Compare two values of one size, piece by piece up to the first difference."""
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
    """Return the number or text of a value that is compared with < or >."""
    if isinstance(obj, Val | ValRef) and obj.type == "json" and _size(obj) <= COMPARE_BYTES_MAX:
        try:
            value = _decode_json(b"".join(_pieces(obj, read)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidValue(f"'{key}' is compared with < or >, and is not valid JSON") from None
        if type(value) in (int, float, str):
            return value
        raise InvalidValue(f"'{key}' is compared with < or >: that takes two json numbers or two json texts")
    raise InvalidValue(
        f"'{key}' is compared with < or >: that takes two json numbers or two json texts, not {kind_of(obj)}"
    )


# -------------------------------------------------------------------------------------------------------------- guards


def check_guard(guard: Guard) -> None:
    """Raise for a malformed guard."""
    if guard.compare not in COMPARE:
        raise InvalidRequest(f"invalid comparison '{guard.compare}' in a guard: use one of {' '.join(COMPARE)}")
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
    """Evaluate a guard on a value; ``operand`` is compared with the object as it is stored."""
    compare = guard.compare
    if obj is None:
        return compare == "!="
    plain = isinstance(operand, Val | ValRef)
    if plain and not isinstance(obj, Val | ValRef):
        raise InvalidValue(f"the guard on '{guard.key}' compares a value, but that is {kind_of(obj)}")
    if compare in ("==", "!="):
        return equal(obj, operand, read) is (compare == "==")
    if not plain:
        raise InvalidValue(f"the guard on '{guard.key}': {kind_of(operand)} is not less or greater than anything")
    one, other = _ordered(guard.key, obj, read), _ordered(guard.key, operand, read)
    if (type(one) is str) is not (type(other) is str):
        raise InvalidValue(f"the guard on '{guard.key}' compares a number with a text")
    return COMPARE[compare](one, other)


def version_holds(guard: Guard, last: int, exact: bool) -> bool:
    """Evaluate a guard on the version of the last change: ``last``, or, unless ``exact``, ``last`` or an older version."""
    operand: Any = guard.operand
    compare = COMPARE[guard.compare]
    if exact or not 0 <= operand <= last:  # then all versions from 0 to ``last`` compare alike
        return compare(last, operand)
    if operand == last and guard.compare in ("<=", ">"):
        return compare(last, operand)
    if operand == 0 and guard.compare in (">=", "<"):
        return compare(0, operand)
    raise SnapshotCollected(
        f"the guard on '{guard.key}' compares its last change with version {operand}, but the change is as old as version"
        f" {last}, the oldest that is kept: which version it was is not known any more"
    )
