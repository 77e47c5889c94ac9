"""The results of a transaction's operations."""

from __future__ import annotations

from typing import Any, Protocol

from fluxmpi.client.channel import Channel
from fluxmpi.client.kvs.stored_value import value_of
from fluxmpi.client.protocol import undecodable
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire import Committed, Op


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
        results = committed.results
        if results and len(results) <= self._index:
            raise undecodable("kvs.commit", f"it has {len(results)} results")
        return results[self._index] if results else wire.OpResult()

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
