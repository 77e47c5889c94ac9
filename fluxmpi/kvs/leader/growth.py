"""How many bytes an entry of the queue adds to the store, asked when the store is nearly full (``mvcc/space``).

Only values are counted, and keys; the nodes that a commit makes are not known before, and may use the store's reserve. A
value of blobs has been stored, and admitted, before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fluxmpi.kvs.objects import Object, Val
from fluxmpi.kvs.wire import Append, Exchange, Op, Put, Swap, Unlink

OP_BYTES = 64
"""Bytes of an operation's entry in a node, beside its key and value."""


class Growth(NamedTuple):
    """``removes``: no operation puts anything, so the transaction may use the reserve."""

    bytes: int
    removes: bool

    def __or__(self, other: Growth) -> Growth:
        """Return the growth of a transaction of which one or the other branch is applied."""
        return Growth(max(self.bytes, other.bytes), self.removes and other.removes)

    def plus(self, other: Growth) -> Growth:
        return Growth(self.bytes + other.bytes, self.removes and other.removes)


def growth_of(ops: Iterable[Op], objects: Iterable[Object] = ()) -> Growth:
    """Return the growth by these operations, and by ``objects`` that they share."""
    size, removes = sum(map(_bytes_of, objects)), True
    for op in ops:
        kind = type(op)
        if kind is Unlink or (kind is Swap and op.object is None):  # type: ignore[union-attr]
            continue
        removes = False
        size += OP_BYTES + len(op.key)
        if isinstance(op, Put | Exchange | Swap):
            size += _bytes_of(op.object)
        elif isinstance(op, Append):
            size += len(op.data)
    return Growth(size, removes and not size)


def _bytes_of(obj: Object | None) -> int:
    return len(obj.data) if type(obj) is Val else 0
