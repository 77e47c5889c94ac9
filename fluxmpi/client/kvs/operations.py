"""The operations of a transaction: checked and encoded here, their results read here."""

from __future__ import annotations

from typing import Any, Protocol

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.channel import Channel
from fluxmpi.client.kvs.stored_value import value_of
from fluxmpi.client.protocol import encode
from fluxmpi.client.values import encode_value
from fluxmpi.errors import InvalidKey, InvalidRequest, InvalidValue, TooLarge
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import Object, split_key
from fluxmpi.kvs.wire import PIECE_OPS, Add, Committed, Op
from fluxmpi.message import FRAME_BYTES_MAX, INTEGER_MAX, INTEGER_MIN

TRANSACTION_BYTES_MAX = FRAME_BYTES_MAX - (1 << 16)
"""Bytes of the encoded operations together. Long values do not count: they travel as blobs before the commit."""

APPEND_BYTES_MAX = BLOB_BYTES_MAX
"""Bytes of one append."""

COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""For ``compare_and_swap``: no such key. (None is a value, JSON's null.)"""


class CommittedTransaction(Protocol):
    """What a result reads."""

    _channel: Channel
    _future: Any

    def _operations(self, otherwise: bool) -> list[Op]: ...

    def _committed_record(self) -> Committed: ...


class Result:
    """The result of one operation of a transaction, once that is committed. It is true if the operation was done.

    Reading it waits for the commit.
    """

    __slots__ = ("_index", "_otherwise", "_txn")

    def __init__(self, txn: CommittedTransaction, index: int, otherwise: bool) -> None:
        self._txn = txn
        self._index = index
        self._otherwise = otherwise

    @property
    def kind(self) -> str:
        """The operation's name: put, append, unlink, mkdir, add, exchange, swap."""
        return type(self._txn._operations(self._otherwise)[self._index]).__name__.lower()

    def _record(self) -> wire.OpResult:
        committed = self._txn._committed_record()
        if committed.succeeded is self._otherwise:
            return wire.OpResult(False)
        return committed.results[self._index] if committed.results else wire.OpResult()

    @property
    def done(self) -> bool:
        """False if a compare-and-swap found another value, an add was at its limit, or the other branch was taken."""
        return self._record().done

    @property
    def number(self) -> int | None:
        """The sum, of an ``add``."""
        return self._record().number

    @property
    def object(self) -> Object | None:
        """The stored object before, of an ``exchange`` or ``compare_and_swap``; None if there was none."""
        return self._record().object

    @property
    def found(self) -> bool:
        """Whether the key existed before, of an ``exchange`` or ``compare_and_swap``."""
        return self.object is not None

    @property
    def value(self) -> Any:
        """The value before; a long one is loaded now. None for no key, a directory or a link."""
        return value_of(self._txn._channel, self.object)

    def __bool__(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        if self._txn._future is None:
            return "<Result of a transaction that is not committed>"
        return f"<Result done={self.done} number={self.number} object={self.object}>"


def in_pieces(ops: list[Op], piece_ops: int = PIECE_OPS) -> tuple[list[Op], list[bytes]]:
    """Return the first operations, and the others encoded in pieces, which rank 0 decodes one at a time."""
    if len(ops) <= piece_ops:
        return ops, []
    rest = range(piece_ops, len(ops), piece_ops)
    return ops[:piece_ops], [encode("kvs.commit", ops[at : at + piece_ops]) for at in rest]


def bounded(data: bytes) -> bytes:
    """Return ``data``. Raises TooLarge if it is too long for a transaction."""
    if len(data) > TRANSACTION_BYTES_MAX:
        raise TooLarge(f"a transaction has at most {TRANSACTION_BYTES_MAX:,} bytes, this one {len(data):,}: split it")
    return data


def checked_add(key: str, amount: int, limit: int | None) -> Add:
    """Return the operation. Raises InvalidValue, InvalidKey."""
    for what, number in (("amount", amount), ("limit", limit)):
        if number is not None and (type(number) is not int or not INTEGER_MIN <= number <= INTEGER_MAX):
            raise InvalidValue(f"key '{key}': the {what} of an add is an int of 64 bits, not {number!r}")
    return Add(valid_key(key), amount, limit)


def encoded(key: str, value: Any) -> tuple[str, bytes | memoryview]:
    """Return (type, bytes) of a value. Raises InvalidRequest, with the key, if it cannot be stored."""
    try:
        return encode_value(value)
    except InvalidRequest as error:
        raise InvalidRequest(f"key '{key}': {error.text}") from None


def valid_key(key: str) -> str:
    """Refuse early a key that the broker would refuse too."""
    if type(key) is not str:
        raise InvalidKey(f"a key is a str, and {key!r} is {type(key).__name__}")
    if not split_key(key):
        raise InvalidKey("the root directory '.' cannot be written as a whole: name a key in it")
    return key
