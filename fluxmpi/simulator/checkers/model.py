"""The KVS as plain dicts: what one commit does, and what a key means, told as simply as can be.

A tree is a dict from names to ``Value``, ``Link`` or another dict. Trees are never changed: an edit copies the dicts on its
way, so every version's tree stays, and what two versions have in common is the same object.

``Walker`` reads a real tree into this form.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fluxmpi.blobref import Ref
from fluxmpi.errors import (
    FluxmpiError,
    InvalidKey,
    InvalidRequest,
    InvalidValue,
    IsADirectory,
    LinkLoop,
    NoSuchBlob,
    NotADirectory,
    SnapshotCollected,
)
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, Object, Val, ValRef, join_key, split_key
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
    Put,
    Swap,
    Unlink,
)

Tree = dict[str, Any]


class Value(NamedTuple):
    type: str
    data: bytes


Change = tuple[str, "Value | Link | None", bool]
"""As in a notification: key, what is there now, whether there was a value or link before."""


@dataclass(slots=True)
class Walker:
    """From real objects to plain ones. ``blob`` is the store of rank 0."""

    blob: Callable[[Ref], bytes | None]
    _trees: dict[Ref, Tree]

    def __init__(self, blob: Callable[[Ref], bytes | None]) -> None:
        self.blob = blob
        self._trees = {}

    def bytes(self, ref: Ref) -> bytes:
        blob = self.blob(ref)
        if blob is None:
            raise NoSuchBlob(f"rank 0 lacks blob {ref.hex()[:12]}")
        return blob

    def plain(self, obj: Object) -> Any:
        if isinstance(obj, Val):
            return Value(obj.type, bytes(obj.data))
        if isinstance(obj, ValRef):
            data = b"".join(map(self.bytes, obj.refs))
            assert len(data) == obj.size, f"a value of {len(data)} bytes says that it has {obj.size}"
            return Value(obj.type, data)
        return self.tree(obj.ref) if isinstance(obj, Dir) else obj

    def tree(self, ref: Ref) -> Tree:
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


# ------------------------------------------------------------------------------------------------------------- reading


def lookup(tree: Tree, key: str, follow: bool) -> tuple[Any, bool]:
    """What stands at a key, or None; and whether the way went through a link. The last link is followed if ``follow``."""
    parts, index, links = split_key(key), 0, 0
    thing: Any = tree
    while index < len(parts):
        if not isinstance(thing, dict) or parts[index] not in thing:
            return None, links > 0
        thing = thing[parts[index]]
        index += 1
        if isinstance(thing, Link) and (index < len(parts) or follow):
            links += 1
            if links > LINKS_MAX:
                raise LinkLoop("over LINKS_MAX links")
            parts, index, thing = split_key(thing.target) + parts[index:], 0, tree
    return thing, links > 0


def changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    """What a recursive watch of ``key`` tells when it was ``old`` and is ``new``: values and links, in order of key."""
    if old is new:
        return
    if old != new and (is_leaf(old) or is_leaf(new)):
        yield key, new if is_leaf(new) else None, is_leaf(old)
    before: Tree = old if isinstance(old, dict) else {}
    after: Tree = new if isinstance(new, dict) else {}
    prefix = "" if key == "." else f"{key}."
    for name in sorted({**before, **after}):
        yield from changes(prefix + name, before.get(name), after.get(name))


def is_leaf(thing: Any) -> bool:
    return thing is not None and not isinstance(thing, dict)


# ------------------------------------------------------------------------------------------------------------- editing


Told = tuple[bool, "int | None", Any]
"""What an operation gave: done, number, and the plain thing that was there."""

NOTHING: Told = True, None, None

LastChange = Callable[[str], tuple[int, bool]]


class Outcome(NamedTuple):
    """``keys``: what was written, links resolved; ``read``: what guards looked at. ``made``: there is a version of it."""

    succeeded: bool
    made: bool
    keys: list[str]
    read: list[str]
    results: list[Told]


class Edit:
    """One commit after another on a tree; ``walker`` knows blobs and directories that a commit refers to."""

    def __init__(self, tree: Tree, namespace: str, walker: Walker) -> None:
        self.tree = tree
        self._dirty: dict[int, Tree] = {}
        """Directories that the transaction under way wrote to, or went through to write: they have no ref yet."""
        self._namespace = namespace
        self._walker = walker

    def commit(self, asked: Commit | Contribution | AddTo, last_change: LastChange) -> Outcome:
        """What becomes of it; or the error of the first guard or operation that fails, and then nothing."""
        if isinstance(asked, AddTo):
            asked = Contribution(asked.id, [Add(asked.key, asked.amount)])
        read, ops, succeeded = [], asked.ops, True
        if isinstance(asked, Commit) and asked.guards:
            found = [self._resolve(split_key(guard.key)) for guard in asked.guards]
            read = [join_key(parts) for parts, _ in found]
            answers = [
                self._holds(guard, key, thing, last_change)
                for guard, key, (_, thing) in zip(asked.guards, read, found, strict=True)
            ]
            succeeded = all(answers)
            if not succeeded:
                ops = asked.otherwise
        results: list[Told] = []
        before = self.tree
        self._dirty = {}
        try:
            keys = [self._apply(op, results) for op in ops]
        except Exception:
            self.tree = before
            raise
        return Outcome(
            succeeded, succeeded or bool(ops), keys, read, results if any(r != NOTHING for r in results) else []
        )

    def _holds(self, guard: Guard, key: str, thing: Any, last_change: LastChange) -> bool:
        compare, operand = _COMPARE[guard.compare], guard.operand
        if guard.what == GUARD_EXISTS:
            return compare(thing is not None, operand)
        if guard.what == GUARD_VERSION:
            last, exact = (0, True) if thing is None else last_change(key)
            possible = {compare(version, operand) for version in ((last,) if exact else range(last + 1))}
            if len(possible) > 1:
                raise SnapshotCollected("nobody knows any more")
            return possible.pop()
        right = self._walker.plain(operand)  # type: ignore[arg-type]
        if thing is None:
            return guard.compare == "!="
        if isinstance(right, Value) and not isinstance(thing, Value):
            raise InvalidValue("a value is compared with what is none")
        if guard.compare in ("==", "!="):
            return compare(thing, right)
        try:
            one, other = (_ordered(side) for side in (thing, right))
            return compare(one, other)
        except (TypeError, ValueError):
            raise InvalidValue("these have no order") from None

    def _apply(self, op: Op, results: list[Told]) -> str:
        parts = split_key(op.key)
        if isinstance(op, Add | Exchange | Swap):
            return self._atomic(op, parts, results)
        results.append(NOTHING)
        if isinstance(op, Put):
            return self._put(parts, self._settled(op.object))
        if isinstance(op, Append):
            return self._append(parts, op.data)
        if isinstance(op, Mkdir):
            return join_key(self._open(parts, len(parts))[1])
        if isinstance(op, Unlink):
            return self._unlink(parts)
        raise InvalidRequest("no such operation")

    def _atomic(self, op: Add | Exchange | Swap, parts: list[str], results: list[Told]) -> str:
        resolved, old = self._resolve(parts)
        if isinstance(op, Add):
            number = 0 if old is None else _integer(old)
            done = op.limit is None or number < op.limit
            number += op.amount if done else 0
            if not -(1 << 63) <= number < 1 << 63:
                raise InvalidValue("past 64 bits")
            results.append((done, number, None))
            return self._put(parts, Value("json", b"%d" % number)) if done else join_key(resolved)
        if isinstance(old, dict) and id(old) in self._dirty:
            raise InvalidRequest("it was changed before, and has no ref")
        if isinstance(op, Exchange):
            results.append((True, None, old))
            return self._put(parts, self._settled(op.object))
        expected = None if op.expected is None else self._walker.plain(op.expected)
        results.append((old == expected, None, old))
        if old != expected:
            return join_key(resolved)
        return self._unlink(parts) if op.object is None else self._put(parts, self._settled(op.object))

    def _settled(self, obj: Object) -> Any:
        if isinstance(obj, Link):
            split_key(obj.target)
        return self._walker.plain(obj)

    def _put(self, parts: list[str], thing: Any) -> str:
        if not parts:
            raise InvalidKey("the root cannot be replaced")
        directory, parts = self._open(parts, len(parts) - 1)
        self._dirty[id(directory)] = directory
        directory[parts[-1]] = thing
        return join_key(parts)

    def _append(self, parts: list[str], data: bytes) -> str:
        old = self._resolve(parts)[1]
        if isinstance(old, dict):
            raise IsADirectory("append to a directory")
        if isinstance(old, Link) or (old is not None and old.type.startswith("ndarray")):
            raise InvalidRequest("append to what cannot grow")
        return self._put(parts, Value("raw", (b"" if old is None else _text(old)) + data))

    def _unlink(self, parts: list[str]) -> str:
        if not parts:
            raise InvalidKey("the root cannot be removed")
        parts, thing = self._resolve(parts)
        if thing is not None:
            directory, parts = self._open(parts, len(parts) - 1)
            self._dirty[id(directory)] = directory
            del directory[parts[-1]]
        return join_key(parts)

    def _open(self, parts: list[str], count: int) -> tuple[Tree, list[str]]:
        """The directory of the first ``count`` parts, made if missing, and copied with all above it; the parts resolved."""
        tail = len(parts) - count
        index = links = 0
        directory = self.tree = dict(self.tree)
        while index < len(parts) - tail:
            self._dirty[id(directory)] = directory
            thing = directory.get(parts[index])
            if isinstance(thing, Link):
                links += 1
                parts = self._follow(thing, parts, index, links)
                directory, index = self.tree, 0
                continue
            if is_leaf(thing):
                raise NotADirectory("a value on the way")
            old = thing
            directory[parts[index]] = thing = dict(old or {})
            if old is None or id(old) in self._dirty:
                self._dirty[id(thing)] = thing
            directory = thing
            index += 1
        return directory, parts

    def _resolve(self, parts: list[str]) -> tuple[list[str], Any]:
        """The parts with the links on the way resolved, and what is there."""
        thing: Any = self.tree
        index = links = 0
        while index < len(parts):
            if isinstance(thing, dict):
                thing = thing.get(parts[index])
                index += 1
            elif isinstance(thing, Link):
                links += 1
                parts = self._follow(thing, parts, index - 1, links)
                thing, index = self.tree, 0
            else:
                return parts, None
        return parts, thing

    def _follow(self, link: Link, parts: list[str], index: int, links: int) -> list[str]:
        if link.namespace is not None and link.namespace != self._namespace:
            raise InvalidRequest("through a link into another namespace")
        if links > LINKS_MAX:
            raise LinkLoop("over LINKS_MAX links")
        return split_key(join_key(split_key(link.target) + parts[index + 1 :]))


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def _json(thing: Any) -> Any:
    if not isinstance(thing, Value) or thing.type != "json":
        raise ValueError
    return json.loads(thing.data)


def _ordered(thing: Any) -> Any:
    value = _json(thing)
    if type(value) not in (int, float, str):
        raise ValueError
    return value


def _integer(thing: Any) -> int:
    try:
        value = _json(thing)
    except ValueError:
        raise InvalidValue("no integer") from None
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise InvalidValue("no integer of 64 bits")
    return value


def last_change(facts: list[Any], key: str) -> tuple[int, bool]:
    """Of facts of versions in order, each with its ``tree``: the one that last changed the key, and True; or the first one of
    them, and False, if none after it did.
    """
    for before, after in zip(facts[-2::-1], facts[:0:-1], strict=True):
        if _seen(before.tree, key) != _seen(after.tree, key) or _seen(after.tree, key)[1]:
            return after.version, True
    return facts[0].version, False


def _seen(tree: Tree, key: str) -> tuple[Any, bool]:
    try:
        return lookup(tree, key, False)
    except FluxmpiError as error:
        return type(error), False


def _text(value: Value) -> bytes:
    """What is appended to: of a JSON string the text."""
    if value.type == "json" and value.data.startswith(b'"'):
        try:
            return str(json.loads(value.data)).encode()
        except ValueError:
            pass
    return value.data
