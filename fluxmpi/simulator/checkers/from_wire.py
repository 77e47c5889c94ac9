"""From the records of messages to the plain form of ``history`` and ``model``: values, steps, transactions, results.

Objects that name blobs are resolved by ``plain``: ``BlobReader.plain`` with a store that has the blobs, or ``named``,
which says no more than the object does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.errors import NoSuchBlob
from fluxmpi.kvs.objects import UNKNOWN_SIZE, Dir, Object, Val, ValRef
from fluxmpi.kvs.store.node import Inner, decode_node
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VERSION,
    Add,
    AddTo,
    Append,
    Commit,
    Contribution,
    Exchange,
    Guard,
    Mkdir,
    Op,
    OpResult,
    Put,
    Swap,
    Unlink,
)
from fluxmpi.simulator.checkers.history import ANY, BLOB, DIRECTORY, KeyStep, Value
from fluxmpi.simulator.checkers.model import INTEGERS, MISSING, ModelTransaction, Tree

Plain = Callable[[Object], Any]


def value(type_: str, data: bytes) -> Any:
    """Return a plain value: an int for a JSON integer, text for raw bytes, else a ``Value``."""
    if type_ == "raw":
        return data.decode("latin-1")
    if type_ == "json" and data.removeprefix(b"-").isdigit():
        number = int(data)
        if number in INTEGERS and str(number).encode() == data:
            return number
    return Value(type_, data)


def named(obj: Object | None) -> Any:
    """Return what an object says of itself: its value, or its only blob's digest, or just that it is a directory."""
    if isinstance(obj, Dir):
        return DIRECTORY
    if isinstance(obj, ValRef):
        return BLOB + obj.refs[0].hex() if len(obj.refs) == 1 else ANY
    return value(obj.type, bytes(obj.data)) if isinstance(obj, Val) else obj


class BlobReader:
    """Reads whole values and trees out of ``blob``, a store that has every blob there ever was."""

    def __init__(self, blob: Callable[[Ref], bytes | None]) -> None:
        self._blob = blob
        self._trees: dict[Ref, Tree] = {}

    def bytes(self, ref: Ref) -> bytes:
        """Return a blob. Raises NoSuchBlob."""
        blob = self._blob(ref)
        if blob is None:
            raise NoSuchBlob(f"rank 0 lacks blob {ref.hex()[:12]}")
        return blob

    def plain(self, obj: Object) -> Any:
        """Return an object's value, or tree. Raises NoSuchBlob."""
        if isinstance(obj, Val):
            return value(obj.type, bytes(obj.data))
        if isinstance(obj, ValRef):
            data = b"".join(map(self.bytes, obj.refs))
            assert obj.size in (len(data), UNKNOWN_SIZE), f"a value of {len(data)} bytes says that it has {obj.size}"
            return value(obj.type, data)
        return self.tree(obj.ref) if isinstance(obj, Dir) else obj

    def plain_or_missing(self, obj: Object) -> Any:
        """Return the same, or MISSING."""
        try:
            return self.plain(obj)
        except NoSuchBlob:
            return MISSING

    def tree(self, ref: Ref) -> Tree:
        """Return a directory with everything below it. Raises NoSuchBlob."""
        tree = self._trees.get(ref)
        if tree is None:
            tree = self._trees[ref] = dict(self._entries(ref))
        return tree

    def _entries(self, ref: Ref) -> Iterator[tuple[str, Any]]:
        node = decode_node(self.bytes(ref), ref)
        if isinstance(node, Inner):
            for child in node.refs:
                yield from self._entries(child)
        else:
            for name, obj in zip(node.names, node.objects, strict=True):
                yield name, self.plain(obj)


def step(op: Op, plain: Plain) -> KeyStep:
    """Return an operation of a transaction as a step."""
    match op:
        case Put():
            return KeyStep("put", op.key, plain(op.object))
        case Append():
            return KeyStep("append", op.key, op.data.decode("latin-1"))
        case Unlink():
            return KeyStep("unlink", op.key)
        case Mkdir():
            return KeyStep("mkdir", op.key, op.replace)
        case Add():
            return KeyStep("add", op.key, op.amount, limit=op.limit)
        case Exchange():
            return KeyStep("exchange", op.key, plain(op.object))
        case Swap():
            new, expected = (None if obj is None else plain(obj) for obj in (op.object, op.expected))
            return KeyStep("swap", op.key, new, expected)
    raise ValueError(f"no step for {op}")


def guard(guard: Guard, plain: Plain) -> KeyStep:
    """Return a guard as it was asked."""
    if guard.what == GUARD_EXISTS:
        return KeyStep("differs" if guard.operand is (guard.compare == "==") else "equals", guard.key)
    if guard.what == GUARD_VERSION:
        return KeyStep("changed", guard.key, guard.operand, guard.compare)
    operand = plain(guard.operand)  # type: ignore[arg-type]
    if guard.compare in ("==", "!="):
        return KeyStep("equals" if guard.compare == "==" else "differs", guard.key, operand)
    return KeyStep("compare", guard.key, operand, guard.compare)


def transaction(asked: Commit | Contribution | AddTo, plain: Plain) -> ModelTransaction:
    """Return what a commit, a contribution to a fence or an addition asked for."""
    if isinstance(asked, AddTo):
        return ModelTransaction([KeyStep("add", asked.key, asked.amount)])
    steps = [step(op, plain) for op in asked.ops]
    if isinstance(asked, Contribution):
        return ModelTransaction(steps)
    guards = [guard(one, plain) for one in asked.guards]
    return ModelTransaction(steps, guards, [step(op, plain) for op in asked.otherwise])


def result(asked: KeyStep, answer: OpResult, plain: Plain) -> Any:
    """Return an operation's result in the form of its step, and unchanged where it does not have that form."""
    thing = None if answer.object is None else plain(answer.object)
    if asked.what == "add" and thing is None:
        return [answer.done, answer.number]
    if asked.what == "swap" and answer.number is None:
        return [answer.done, thing]
    if answer.done and answer.number is None and (thing is None or asked.what == "exchange"):
        return thing
    return [answer.done, answer.number, thing]
