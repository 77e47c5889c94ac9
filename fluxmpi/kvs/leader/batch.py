"""A version under construction: transactions that are applied together, and how they are applied.

Transactions merge into one version only when they are *disjoint*: no key of one is a key of another, or lies above or below
one. So every value that a key ever had is the value in some version, and watchers and histories miss nothing.

    placing(commit)  conflicts with what is in already?  -> None: seal this version, start the next
                     an operation fails?                 -> raises; the edit is as before, the others are unharmed
                     its guards fail, and nothing else is to be done? -> Placed, not made
                     else                                -> in

Keys are compared as resolved (after links), since two names can mean one place. The keys of guards count: what one transaction
looks at, no other in its version writes. So guards see the state just before their transaction, which is that of the version
before.

A large transaction has a version of its own. It is placed in slices (see ``tree.Steps``), as is a look through a large directory
that a client puts, so that the broker does other work in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, InvalidValue, TooLarge
from fluxmpi.kvs.leader.guards import integer, same, sum_of, value_holds, version_holds
from fluxmpi.kvs.leader.validation import SLICE_OPS, ObjectValidator
from fluxmpi.kvs.objects import SEPARATOR, Dir, Object, Val, split_key
from fluxmpi.kvs.store.edit import Edit, Steps, run_to_end
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    PIECE_OPS,
    Add,
    Append,
    CommitId,
    Exchange,
    FenceDone,
    Guard,
    Mkdir,
    Op,
    OpResult,
    Put,
    Swap,
    Unlink,
)

LARGE_OPS = 1024
"""A transaction of more has a version of its own, and is made in slices. It shares no version, and names no changed keys."""

_decode_ops = msgspec.msgpack.Decoder(list[Op]).decode


class _Unsealed(InvalidRequest):
    """A directory that was changed has no ref before the seal."""


class Placed(NamedTuple):
    """What became of a transaction. ``made``: it is in the version. ``results``: one for each operation, or none at all."""

    succeeded: bool
    made: bool
    results: list[OpResult]


PLAIN = Placed(True, True, [])
SLICED = Placed(False, False, [])
"""Not placed yet: it needs ``placing``."""

LastChange = Callable[[str], tuple[int, bool]]
"""As ``Space.last_change``, of the version before."""

_NOTHING = OpResult()
_Keys = dict[str, None]


class Batch:
    """``number`` will be the version's; ``sealing`` ends it. ``keys``: what was touched, or None if that is too much to name."""

    __slots__ = (
        "_above", "_above_read", "_crowded", "_edit", "_last_change", "_read", "_result", "_touched", "_values", "entries",
        "events", "fences", "full", "ids", "keys", "number", "steps",
    )  # fmt: skip

    def __init__(self, number: int, edit: Edit, values: ObjectValidator, last_change: LastChange | None = None) -> None:
        self.number = number
        self.keys: list[str] | None = []
        self.entries: list[tuple[Any, Any]] = []
        """What was placed, and how: the maker's."""
        self.fences: list[FenceDone] = []
        self.events: list[tuple[str, bytes]] = []
        self.ids: dict[CommitId, None] = {}
        self.steps = 0
        self.full = False
        self._edit = edit
        self._values = values
        self._last_change = last_change
        self._result: OpResult | None = None
        self._crowded = False
        """Some key was touched, or looked at."""
        self._touched: _Keys = {}
        self._above: _Keys = {}
        self._read: _Keys = {}
        self._above_read: _Keys = {}

    @property
    def empty(self) -> bool:
        return not self.entries

    # -------------------------------------------------------------------------------------------------------- placing

    def place_plain(self, ops: list[Op]) -> Placed | None:
        """Apply a small transaction without guards, in one go. None when it touches what another one in this version touches;
        then nothing changed. SLICED when it takes ``placing``.
        """
        if len(ops) == 1 and type(ops[0]) is Put and type(ops[0].object) is Val:
            done = self._place_value(ops[0].key, ops[0].object)
            if done is not SLICED:
                return done
        if len(ops) > LARGE_OPS or self._values.large(ops):
            return SLICED
        if self._crowded and self._conflicts([op.key for op in ops]):
            return None
        results: dict[int, OpResult] = {}
        if not self._apply_small(ops, results):
            return None
        self.steps += len(ops) + 1
        return _placed(True, results, len(ops)) if results else PLAIN

    def _place_value(self, key: str, value: Val) -> Placed | None:
        """The transaction that comes most often: one put of a value. SLICED when a link leads to its place."""
        parts = split_key(key)
        key = SEPARATOR.join(parts)
        if self._crowded and self._conflicts([key]):
            return None
        if not self._edit.put_without_mark(parts, self._values.settle(value)):
            return SLICED
        _note([key], self._touched, self._above)
        self._crowded = True
        self.keys.append(key)  # type: ignore[union-attr]
        self.steps += 2
        return PLAIN

    def placing(
        self,
        ops: list[Op],
        more: Iterable[bytes | list[Op]] = (),
        guards: Iterable[Guard] = (),
        otherwise: list[Op] | None = None,
        otherwise_more: Iterable[bytes] = (),
    ) -> Steps[Placed | None]:
        """Apply one transaction. None as in ``place_plain``.

        ``more``, ``otherwise_more`` are further operations, in pieces. A version that is ``full`` afterwards takes no other.
        """
        succeeded, read = True, None
        if guards:
            read, succeeded = self._look(guards)
            if read is None:
                return None
            if not succeeded:
                if not otherwise and not otherwise_more:
                    return Placed(False, False, [])
                ops, more = otherwise or [], otherwise_more
        results: dict[int, OpResult] = {}
        if more or len(ops) > LARGE_OPS:
            if self.entries:
                return None
            count = yield from self._apply_large(chain([ops], more), results)
        else:
            if self._crowded and self._conflicts([op.key for op in ops]):
                return None
            yield from self._values.checking(self._values.large(ops))
            if not self._apply_small(ops, results):
                return None
            count = len(ops)
        self.steps += count + 1
        if read is not None:
            _note(read, self._read, self._above_read)
            self._crowded = True
        return _placed(succeeded, results, count) if results or not succeeded else PLAIN

    def place(self, ops: list[Op]) -> bool:
        """A transaction without guards, as the maker places it, but at one go: False when it is to be in another version."""
        placed = self.place_plain(ops)
        if placed is SLICED:
            placed = run_to_end(self.placing(ops))
        if placed is not None:
            self.entries.append((ops, placed))
        return placed is not None

    def _apply_small(self, ops: list[Op], results: dict[int, OpResult]) -> bool:
        edit = self._edit
        mark = edit.mark()
        keys: list[str] = []
        try:
            self._apply_all(ops, keys, results)
        except _Unsealed:
            edit.rollback(mark)
            if self.entries:  # perhaps it was another transaction that changed it
                return False
            raise
        except BaseException:
            edit.rollback(mark)
            raise
        if self._crowded and self._conflicts(keys):
            edit.rollback(mark)
            return False
        if keys:
            _note(keys, self._touched, self._above)
            self._crowded = True
        assert self.keys is not None
        self.keys += keys
        return True

    def _apply_large(self, pieces: Iterable[bytes | list[Op]], results: dict[int, OpResult]) -> Steps[int]:
        """How many operations there were."""
        edit = self._edit
        mark = edit.mark()
        keys: list[str] = []
        try:
            for piece in pieces:
                ops = _decode_piece(piece) if type(piece) is bytes else piece
                yield from self._values.checking(self._values.large(ops))  # type: ignore[arg-type]
                for begin in range(0, len(ops), SLICE_OPS):
                    some = ops[begin : begin + SLICE_OPS]
                    self._apply_all(some, keys, results)  # type: ignore[arg-type]
                    yield len(some)
        except BaseException:
            edit.rollback(mark)
            raise
        self.full = True
        self.keys = keys if len(keys) <= LARGE_OPS else None
        return len(keys)

    def place_adds(self, key: str, amounts: list[int]) -> list[int | FluxmpiError] | None:
        """Add the amounts to one key, in one operation: what each of them made of it, or why it was not added. None as in
        ``placing``. Raises what is wrong with all of them.
        """
        edit, parts = self._edit, split_key(key)
        resolved, old = edit.resolve(parts)
        if self._crowded and self._conflicts([key, resolved]):
            return None
        value = integer(resolved, old)
        made: list[int | FluxmpiError] = []
        for amount in amounts:
            try:
                value = sum_of(resolved, value, amount)
                made.append(value)
            except InvalidValue as error:
                made.append(error)
        if any(type(one) is int for one in made):
            mark = edit.mark()
            try:
                resolved = edit.put(parts, Val("json", b"%d" % value))
            except BaseException:
                edit.rollback(mark)
                raise
            _note([resolved], self._touched, self._above)
            self._crowded = True
            assert self.keys is not None
            self.keys.append(resolved)
            self.steps += len(amounts)
        return made

    def _conflicts(self, keys: list[str]) -> bool:
        """Whether writing these keys touches what was written or looked at."""
        if self._read and _overlap(keys, self._read, self._above_read):
            return True
        return bool(self._touched) and _overlap(keys, self._touched, self._above)

    # --------------------------------------------------------------------------------------------------------- guards

    def _look(self, guards: Iterable[Guard]) -> tuple[list[str] | None, bool]:
        """The keys that the guards look at, links resolved, and whether all hold; None for the keys when others in this
        version touch them.
        """
        found = [(guard, *self._edit.resolve(split_key(guard.key))) for guard in guards]
        read = [key for _, key, _ in found]
        if self._touched and _overlap([guard.key for guard in guards] + read, self._touched, self._above):
            return None, False
        answers = [self._holds(guard, key, obj) for guard, key, obj in found]  # each is asked: a wrong one is an error
        return read, all(answers)

    def _holds(self, guard: Guard, key: str, obj: Object | None) -> bool:
        operand: Any = guard.operand
        if guard.what == GUARD_VALUE:
            return value_holds(guard, obj, operand, self._values.require)
        if guard.what == GUARD_EXISTS:
            return ((obj is not None) == operand) is (guard.compare == "==")
        if key == SEPARATOR:
            return version_holds(guard, self.number - 1, True)
        assert self._last_change is not None
        return version_holds(guard, *((0, True) if obj is None else self._last_change(key)))

    # ----------------------------------------------------------------------------------------------------- operations

    def _apply_all(self, ops: list[Op], keys: list[str], results: dict[int, OpResult]) -> None:
        apply = self._apply
        for op in ops:
            keys.append(apply(op))
            if self._result is not None:
                results[len(keys) - 1] = self._result
                self._result = None

    def _apply(self, op: Op) -> str:
        """Apply one operation; the key that it changed, links resolved. ``_result`` is what it gave, if anything."""
        edit = self._edit
        kind = type(op)
        parts = split_key(op.key)
        if kind is Put:
            return edit.put(parts, self._values.settle(op.object))  # type: ignore[union-attr, arg-type]
        if kind is Unlink:
            return edit.unlink(parts)
        if kind is Append:
            old = edit.get(parts)
            return edit.put(parts, self._values.append(op.key, old, op.data))  # type: ignore[union-attr]
        if kind is Mkdir:
            return edit.mkdir(parts)
        if kind is Add:
            return self._add(op, parts)  # type: ignore[arg-type]
        if kind is Exchange:
            old = self._settled(op.key, parts)
            key = edit.put(parts, self._values.settle(op.object))  # type: ignore[union-attr, arg-type]
            self._result = OpResult(True, None, old)
            return key
        if kind is Swap:
            return self._swap(op, parts)  # type: ignore[arg-type]
        raise InvalidRequest(f"operation {kind.__name__} cannot stand in a commit")

    def _add(self, op: Add, parts: list[str]) -> str:
        key, old = self._edit.resolve(parts)
        value = integer(key, old)
        if op.limit is not None and value >= op.limit:
            self._result = OpResult(False, value)
            return key
        value = sum_of(key, value, op.amount)
        key = self._edit.put(parts, Val("json", b"%d" % value))
        self._result = OpResult(True, value)
        return key

    def _swap(self, op: Swap, parts: list[str]) -> str:
        old = self._settled(op.key, parts)
        if not same(old, op.expected, self._values.require):
            self._result = OpResult(False, None, old)
            return self._edit.resolve(parts)[0]
        if op.object is None:
            key = self._edit.unlink(parts)
        else:
            key = self._edit.put(parts, self._values.settle(op.object))
        self._result = OpResult(True, None, old)
        return key

    def _settled(self, key: str, parts: list[str]) -> Object | None:
        """What is there, to be told to a client: so it must have a ref."""
        old = self._edit.get(parts)
        if type(old) is Dir and not old.ref:
            raise _Unsealed(f"'{key}' is a directory that this transaction changed before: exchange or swap it first")
        return old

    # ---------------------------------------------------------------------------------------------------------- sealing

    def sealing(self) -> Steps[tuple[Ref, list[tuple[Ref, bytes]]]]:
        """The root ref, and the tree nodes that are new."""
        return self._edit.seal_in_slices()

    def seal(self) -> tuple[Ref, list[tuple[Ref, bytes]]]:
        """``sealing`` without slices."""
        return self._edit.seal()


def _placed(succeeded: bool, results: dict[int, OpResult], count: int) -> Placed:
    return Placed(succeeded, True, [results.get(index, _NOTHING) for index in range(count)] if results else [])


def _decode_piece(piece: bytes) -> list[Op]:
    try:
        ops = _decode_ops(piece)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"a piece of a large transaction does not decode: {error}") from None
    if len(ops) > PIECE_OPS:
        raise TooLarge(f"a piece of a large transaction has {len(ops)} operations: the most is {PIECE_OPS}")
    return ops


def _note(keys: list[str], touched: _Keys, above: _Keys) -> None:
    for key in keys:
        touched[key] = None
        at = key.rfind(SEPARATOR)
        while at > 0:
            prefix = key[:at]
            if prefix in above:
                break
            above[prefix] = None
            at = key.rfind(SEPARATOR, 0, at)


def _overlap(keys: list[str], touched: _Keys, above: _Keys) -> bool:
    """Whether one of the keys is, or lies above or below, one of those touched; there are some."""
    for key in keys:
        if key in touched or key in above or key == SEPARATOR:
            return True
        at = key.rfind(SEPARATOR)
        while at > 0:
            if key[:at] in touched:
                return True
            at = key.rfind(SEPARATOR, 0, at)
    return SEPARATOR in touched
