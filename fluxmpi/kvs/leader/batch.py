"""A batch: the transactions that one version applies together.

Transactions share a batch only when they are *disjoint*: no key of one is, or lies above or below, a key of another. So
every value that a key ever had is its value in some version, and watchers and histories miss none.

The *footprint* of a batch is what its transactions wrote (write set) and what their guards read (read set). A
transaction conflicts when

    it writes a key that overlaps the write set or the read set, or
    a guard of it reads a key that overlaps the write set.

So a guard sees the state just before its transaction, which is the state of the version before. Keys are compared with
links resolved, since two names can mean one place.

    the transaction conflicts              → None or False: nothing has changed. Seal this batch, try the next one
    an operation or a guard fails          → raises: the tree is as before, the other transactions are unharmed
    guards do not hold, no ``otherwise``   → Placed, not made: there is nothing to apply
    else                                   → applied: footprint and changed keys grow

Which method: ``place_put`` for one put of a value, the most frequent transaction; ``place`` and ``place_guarded`` for
small ones; ``place_in_slices`` for all others; ``place_adds`` for combined additions. A *large* transaction has a batch
of its own and is applied in slices (``Steps``), as is the check of a large directory that a client puts: the broker
does other work in between.

(flux-core's kvstxn.c merges whatever has arrived, so its watchers miss values.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, InvalidValue, TooLarge
from fluxmpi.kvs.leader.guards import equal, integer, sum_of, value_holds, version_holds
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.validation import ObjectValidator
from fluxmpi.kvs.objects import SEPARATOR, VAL_BYTES_MAX, Dir, Object, Val, ValRef, split_key
from fluxmpi.kvs.store.edit import Edit, Steps
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
    RootInfo,
    Swap,
    Unlink,
)

if TYPE_CHECKING:
    from fluxmpi.kvs.leader.entries import QueueEntry

LastChange = Callable[[str], tuple[int, bool]]
"""``Namespace.last_change`` of the version before: the version that changed a key last, and whether that is exact."""

_ATOMIC = frozenset((Add, Exchange, Swap))
"""Operations that have a result."""

_NO_RESULT = OpResult()
_decode_ops = msgspec.msgpack.Decoder(list[Op]).decode


class _NotSealed(InvalidRequest):
    """A directory that the batch changed has no ref before the seal, so no result can name it."""


class Placed(msgspec.Struct, gc=False):
    """The outcome of a transaction.

    ``succeeded``: its guards held. ``made``: the batch has it. ``results``: one for each operation, or none at all if
    no operation has a result.
    """

    succeeded: bool
    made: bool
    results: list[OpResult]


class KeySet:
    """A set of keys. Whether another key is, or lies above or below, one of them costs the depth of that key."""

    __slots__ = ("_above", "_keys")

    def __init__(self) -> None:
        self._keys: dict[str, None] = {}
        self._above: dict[str, None] = {}
        """All keys above those in the set."""

    def add(self, keys: Iterable[str]) -> None:
        """Add keys, links resolved."""
        own, above = self._keys, self._above
        for key in keys:
            own[key] = None
            at = key.rfind(SEPARATOR)
            while at > 0:
                prefix = key[:at]
                if prefix in above:
                    break
                above[prefix] = None
                at = key.rfind(SEPARATOR, 0, at)

    def overlaps(self, keys: Iterable[str]) -> bool:
        """Return whether one of ``keys`` is, or lies above or below, a key of the set."""
        own, above = self._keys, self._above
        if not own:
            return False
        for key in keys:
            if key in own or key in above or key == SEPARATOR:
                return True
            at = key.rfind(SEPARATOR)
            while at > 0:
                if key[:at] in own:
                    return True
                at = key.rfind(SEPARATOR, 0, at)
        return SEPARATOR in own


class Batch:
    """The next version of a namespace, under construction. ``base`` is the version that it follows, ``number`` its own."""

    __slots__ = (
        "_appended", "_edit", "_last_change", "_names_keys", "_read_set", "_validator", "_write_set", "appends", "base",
        "entries", "events", "fences", "full", "has_footprint", "ids", "keys", "limits", "number",
        "referenced", "steps",
    )  # fmt: skip

    def __init__(
        self, base: RootInfo, edit: Edit, validator: ObjectValidator, limits: LeaderLimits, last_change: LastChange
    ) -> None:
        """``edit`` is a session on the tree of ``base``."""
        self.base = base
        self.number = base.version + 1
        self.limits = limits
        self.entries: list[QueueEntry] = []
        """What was placed, in order; the committer answers it when the version is sealed."""
        self.ids: dict[CommitId, None] = {}
        """Commits and additions in ``entries``."""
        self.fences: list[FenceDone] = []
        self.events: list[tuple[str, bytes]] = []
        self.keys: list[str] = []
        """Changed keys, links resolved, in order."""
        self.appends: dict[str, list[int]] = {}
        """Changed keys that were only appended to, with the bytes of each append."""
        self.referenced = 0
        """Bytes of the values that were put by reference, at least 1 if there is any; failed transactions count."""
        self._appended: list[tuple[str, int]] = []
        """Appends of the transaction that is being applied."""
        self.steps = 0
        self.full = False
        """It takes no further transaction."""
        self.has_footprint = False
        """Its transactions wrote or read some key."""
        self._edit = edit
        self._validator = validator
        self._last_change = last_change
        self._names_keys = True
        self._write_set = KeySet()
        self._read_set: KeySet | None = None

    @property
    def changed_keys(self) -> list[str] | None:
        """The keys that a setroot names; None when they are too many to name."""
        return self.keys if self._names_keys else None

    def seal_in_slices(self) -> Steps[tuple[Ref, list[tuple[Ref, bytes]]]]:
        """Encode and digest the changed nodes, in slices; return the root's ref and the new nodes."""
        return self._edit.seal_in_slices()

    # -------------------------------------------------------------------------------------------------------- placing

    def conflicts(self, keys: Iterable[str]) -> bool:
        """Return whether writing these keys overlaps the footprint."""
        if self._read_set is not None and self._read_set.overlaps(keys):
            return True
        return self._write_set.overlaps(keys)

    def place_put(self, put: Put) -> bool:
        """Apply a transaction that is one put of a ``Val``. False: it conflicts.

        It needs no mark to roll back to (see ``Edit.put_without_mark``), unless a link is on its path.
        """
        parts = split_key(put.key)
        key = SEPARATOR.join(parts)
        if self.has_footprint and self.conflicts((key,)):
            return False
        value: Any = put.object
        if len(value.data) > VAL_BYTES_MAX:
            self.referenced += len(value.data)
            value = self._validator.normalize(value)
        if not self._edit.put_without_mark(parts, value):
            return self.place([put]) is not None
        self._write_set.add((key,))
        self.has_footprint = True
        self.keys.append(key)
        self.steps += 2
        return True

    def needs_slices(self, ops: list[Op]) -> bool:
        """Return whether a transaction without guards must be applied by ``place_in_slices``."""
        return len(ops) > self.limits.large_ops or bool(self._validator.unchecked(ops))

    def place(self, ops: list[Op]) -> list[OpResult] | None:
        """Apply a small transaction without guards; return the operations' results as in ``Placed``.

        None: it conflicts.
        """
        if self.has_footprint and self.conflicts([op.key for op in ops]):
            return None
        results = self._apply_small(ops)
        if results is not None:
            self.steps += len(ops) + 1
        return results

    def place_guarded(self, guards: list[Guard], ops: list[Op], otherwise: list[Op]) -> Placed | None:
        """Apply a small transaction with guards. None: it conflicts."""
        read, succeeded = self._evaluate(guards)
        if read is None:
            return None
        if not succeeded:
            if not otherwise:
                return Placed(False, False, [])
            ops = otherwise
        results = self.place(ops)
        if results is None:
            return None
        self._add_read(read)
        return Placed(succeeded, True, results)

    def place_in_slices(
        self,
        ops: list[Op],
        more: Iterable[bytes | list[Op]] = (),
        guards: list[Guard] | None = None,
        otherwise: list[Op] | None = None,
        otherwise_more: Iterable[bytes] = (),
    ) -> Steps[Placed | None]:
        """Apply any transaction. None: it conflicts. ``more`` and ``otherwise_more`` are further operations, in pieces."""
        succeeded, read = True, None
        if guards:
            read, succeeded = self._evaluate(guards)
            if read is None:
                return None
            if not succeeded:
                if not otherwise and not otherwise_more:
                    return Placed(False, False, [])
                ops, more = otherwise or [], otherwise_more
        if more or len(ops) > self.limits.large_ops:
            if self.entries:
                return None
            results = yield from self._apply_large(chain([ops], more))
        else:
            if self.has_footprint and self.conflicts([op.key for op in ops]):
                return None
            yield from self._validator.check_objects(self._validator.unchecked(ops))
            small = self._apply_small(ops)
            if small is None:
                return None
            results = small
            self.steps += len(ops) + 1
        if read is not None:
            self._add_read(read)
        return Placed(succeeded, True, results)

    def place_adds(self, key: str, amounts: list[int]) -> list[int | FluxmpiError] | None:
        """Add the amounts to one integer, as one operation.

        Return for each the sum after it, or the error for which it was not added. None: it conflicts. Raises the error
        that all of them have.
        """
        edit, parts = self._edit, split_key(key)
        resolved, old = edit.resolve(parts)
        if self.has_footprint and self.conflicts((key, resolved)):
            return None
        value = integer(resolved, old)
        sums: list[int | FluxmpiError] = []
        added = False
        for amount in amounts:
            try:
                value = sum_of(resolved, value, amount)
                sums.append(value)
                added = True
            except InvalidValue as error:
                sums.append(error)
        if added:
            mark = edit.mark()
            try:
                resolved = edit.put(parts, Val("json", b"%d" % value))
            except BaseException:
                edit.rollback(mark)
                raise
            self._write_set.add((resolved,))
            self.has_footprint = True
            self.keys.append(resolved)
            self.steps += len(amounts)
        return sums

    def _apply_small(self, ops: list[Op]) -> list[OpResult] | None:
        """Apply the operations, or none of them. None: they conflict with links resolved."""
        edit = self._edit
        mark = edit.mark()
        keys: list[str] = []
        results: dict[int, OpResult] = {}
        if self._appended:
            self._appended = []
        try:
            self._apply_all(ops, keys, results)
        except _NotSealed:
            edit.rollback(mark)
            if self.entries:  # perhaps another transaction changed that directory: try again in a batch of its own
                return None
            raise
        except BaseException:
            edit.rollback(mark)
            raise
        if self.has_footprint and self.conflicts(keys):
            edit.rollback(mark)
            return None
        if keys:
            self._write_set.add(keys)
            self.has_footprint = True
            self.keys += keys
            if self._appended:
                self._note_appends(keys)
        return _in_order(results, len(keys)) if results else []

    def _apply_large(self, pieces: Iterable[bytes | list[Op]]) -> Steps[list[OpResult]]:
        """Apply the operations, or none of them, in slices; the batch is full then."""
        edit, slice_ops = self._edit, self.limits.slice_ops
        mark = edit.mark()
        keys: list[str] = []
        results: dict[int, OpResult] = {}
        if self._appended:
            self._appended = []
        try:
            for piece in pieces:
                ops = decode_piece(piece) if isinstance(piece, bytes) else piece
                yield from self._validator.check_objects(self._validator.unchecked(ops))
                for begin in range(0, len(ops), slice_ops):
                    part = ops[begin : begin + slice_ops]
                    self._apply_all(part, keys, results)
                    yield len(part)
        except BaseException:
            edit.rollback(mark)
            raise
        self.full = True
        self._names_keys = len(keys) <= self.limits.large_ops
        self.keys = keys if self._names_keys else []
        if self._names_keys and self._appended:
            self._note_appends(keys)
        self.steps += len(keys) + 1
        return _in_order(results, len(keys)) if results else []

    def _note_appends(self, keys: list[str]) -> None:
        """Note the keys that this transaction, which wrote ``keys``, only appended to. No other transaction wrote them."""
        sizes: dict[str, list[int]] = {}
        for key, size in self._appended:
            if key in sizes:
                sizes[key].append(size)
            else:
                sizes[key] = [size]
        if len(keys) == len(self._appended):
            self.appends.update(sizes)
            return
        writes = Counter(keys)
        others = KeySet()
        others.add(key for key in keys if key not in sizes)
        for key, appended in sizes.items():
            if len(appended) == writes[key] and not others.overlaps((key,)):
                self.appends[key] = appended

    # --------------------------------------------------------------------------------------------------------- guards

    def _evaluate(self, guards: list[Guard]) -> tuple[list[str] | None, bool]:
        """Return the keys that the guards read, links resolved, and whether all hold. None for the keys: they conflict."""
        found = [(guard, *self._edit.resolve(split_key(guard.key))) for guard in guards]
        read = [key for _, key, _ in found]
        if self.has_footprint and self._write_set.overlaps([guard.key for guard in guards] + read):
            return None, False
        answers = [self._holds(guard, key, obj) for guard, key, obj in found]  # each one: a guard that is wrong raises
        return read, all(answers)

    def _add_read(self, keys: list[str]) -> None:
        if self._read_set is None:
            self._read_set = KeySet()
        self._read_set.add(keys)
        self.has_footprint = True

    def _holds(self, guard: Guard, key: str, obj: Object | None) -> bool:
        operand: Any = guard.operand
        if guard.what == GUARD_VALUE:
            return value_holds(guard, obj, operand, self._validator.require_blob)
        if guard.what == GUARD_EXISTS:
            return ((obj is not None) == operand) is (guard.compare == "==")
        if key == SEPARATOR:
            return version_holds(guard, self.base.version, True)
        return version_holds(guard, *((0, True) if obj is None else self._last_change(key)))

    # ----------------------------------------------------------------------------------------------------- operations

    def _apply_all(self, ops: list[Op], keys: list[str], results: dict[int, OpResult]) -> None:
        """Apply operations in order; append to ``keys`` the key that each changed.

        The result of an operation, if it has one, goes into ``results`` under its index.
        """
        apply = self._apply
        for op in ops:
            kind = type(op)
            if kind is Put or kind not in _ATOMIC:
                keys.append(apply(op))
            else:
                key, results[len(keys)] = self._apply_atomic(op)  # type: ignore[arg-type]
                keys.append(key)

    def _apply(self, op: Op) -> str:
        """Apply an operation that has no result; return the key that it changed, links resolved."""
        edit = self._edit
        kind = type(op)
        parts = split_key(op.key)
        if kind is Put:
            return self._put(parts, op.object)  # type: ignore[union-attr, arg-type]
        if kind is Unlink:
            return edit.unlink(parts)
        if kind is Append:
            old = edit.get(parts)
            new = self._validator.append(op.key, old, op.data)  # type: ignore[union-attr]
            if type(new) is ValRef:
                self.referenced += len(op.data) or 1  # type: ignore[union-attr]
            key = edit.put(parts, new)
            self._appended.append((key, len(op.data)))  # type: ignore[union-attr]
            return key
        if kind is Mkdir:
            return edit.mkdir(parts, op.replace)  # type: ignore[union-attr]
        raise InvalidRequest(f"operation {kind.__name__} cannot be part of a commit")

    def _apply_atomic(self, op: Add | Exchange | Swap) -> tuple[str, OpResult]:
        """Apply an operation that has a result; return its key, links resolved, and the result."""
        parts = split_key(op.key)
        if isinstance(op, Add):
            return self._add(op, parts)
        old = self._sealed(op.key, parts)
        if isinstance(op, Exchange):
            return self._put(parts, op.object), OpResult(True, None, old)
        if not equal(old, op.expected, self._validator.require_blob):
            return self._edit.resolve(parts)[0], OpResult(False, None, old)
        key = self._edit.unlink(parts) if op.object is None else self._put(parts, op.object)
        return key, OpResult(True, None, old)

    def _put(self, parts: list[str], obj: Object) -> str:
        new = self._validator.normalize(obj)
        kind = type(new)
        if kind is ValRef:
            self.referenced += new.size  # type: ignore[union-attr]
        elif kind is Dir:
            self.referenced += 1  # its values were put before
        key = self._edit.put(parts, new)
        if kind is Dir:
            self._validator.check_depth(key, new)  # type: ignore[arg-type]
        return key

    def _add(self, op: Add, parts: list[str]) -> tuple[str, OpResult]:
        key, old = self._edit.resolve(parts)
        value = integer(key, old)
        if op.limit is not None and value >= op.limit:
            return key, OpResult(False, value)
        value = sum_of(key, value, op.amount)
        return self._edit.put(parts, Val("json", b"%d" % value)), OpResult(True, value)

    def _sealed(self, key: str, parts: list[str]) -> Object | None:
        """Return the object at a key, for a result: a directory must have a ref."""
        old = self._edit.get(parts)
        if type(old) is Dir and not old.ref:
            raise _NotSealed(f"'{key}' is a directory that this transaction changed before: exchange or swap it first")
        return old


def _in_order(results: dict[int, OpResult], count: int) -> list[OpResult]:
    """Return one result for each of ``count`` operations."""
    return [results.get(index, _NO_RESULT) for index in range(count)]


def decode_piece(piece: bytes) -> list[Op]:
    """Decode operations of a large transaction. Raises InvalidRequest, TooLarge."""
    try:
        ops = _decode_ops(piece)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"a piece of a large transaction does not decode: {error}") from None
    if len(ops) > PIECE_OPS:
        raise TooLarge(f"a piece of a large transaction has {len(ops)} operations: the most is {PIECE_OPS}")
    return ops
