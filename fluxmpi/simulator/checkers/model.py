"""The model: the store as plain dicts. What one transaction does to it, and what a key means, as simply as possible.

A tree is a dict from names to a value (see ``history``), a ``Link`` or another dict. Trees are never changed: a
transaction copies the dicts on its way, so every version's tree stays valid, and two versions share what they have in
common.

``transition`` is what a step does to the value of one key; ``ModelStore`` finds the key, through directories and links.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from fluxmpi.kvs.objects import LINKS_MAX, Link, join_key, split_key
from fluxmpi.simulator.checkers.history import ANY, BLOB, DIRECTORY, KeyStep, Value, says

Tree = dict[str, Any]

MISSING = "<missing>"
"""The value of a reference to a blob that was never stored."""

INTEGERS = range(-(1 << 63), 1 << 63)


# ------------------------------------------------------------------------------------------------------------- reading


def lookup(tree: Tree, key: str, follow: bool = True) -> tuple[Any, bool]:
    """Return the value at a key, or None, and whether the path contains a link.

    ``follow``: also follow a link at the end.
    """
    parts, index, links = split_key(key), 0, 0
    thing: Any = tree
    while index < len(parts):
        if thing == ANY:
            return ANY, links > 0
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


def is_leaf(thing: Any) -> bool:
    """Return whether it is a value or link."""
    return thing is not None and not isinstance(thing, dict)


def is_value(thing: Any) -> bool:
    return isinstance(thing, int | str | Value)


def changes(key: str, old: Any, new: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield the changes that a recursive watch of ``key`` reports, in order of key.

    A change is (key, new value, whether there was one).
    """
    if old is new:
        return
    if old != new and (is_leaf(old) or is_leaf(new)):
        yield key, new if is_leaf(new) else None, is_leaf(old)
    before: Tree = old if isinstance(old, dict) else {}
    after: Tree = new if isinstance(new, dict) else {}
    prefix = "" if key == "." else f"{key}."
    for name in sorted({**before, **after}):
        yield from changes(prefix + name, before.get(name), after.get(name))


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Return all values and links of a tree by their keys. Empty directories leave no trace."""
    found: dict[str, Any] = {}
    for name, thing in tree.items():
        if isinstance(thing, dict):
            found.update(flatten(thing, f"{prefix}{name}."))
        else:
            found[prefix + name] = thing
    return found


def tree_of(values: dict[str, Any]) -> Tree:
    """Return the tree of these values by key."""
    tree: Tree = {}
    for key, value in values.items():
        tree = with_value(tree, split_key(key), value)
    return tree


def with_value(tree: Tree, parts: list[str], value: Any) -> Tree:
    """Return a copy of the tree with ``value`` at that place; whatever was in its way is replaced."""
    name, rest = parts[0], parts[1:]
    if rest:
        below = tree.get(name)
        value = with_value(below if isinstance(below, dict) else {}, rest, value)
    return {**tree, name: value}


# ---------------------------------------------------------------------------------------------------- one key, one step

NO_RESULT = object()
"""The result of a step that has none."""


def transition(old: Any, step: KeyStep) -> tuple[Any, Any]:
    """Return the value of a key after a step, and the step's result or NO_RESULT.

    ``old``: None if absent, DIRECTORY or a dict for a directory. Raises FluxmpiError if the step fails there.
    """
    return _TRANSITIONS[step.what](old, step)


def _put(old: Any, step: KeyStep) -> tuple[Any, Any]:
    return step.value, NO_RESULT


def _append(old: Any, step: KeyStep) -> tuple[Any, Any]:
    if isinstance(old, dict) or old == DIRECTORY:
        raise IsADirectory("append to a directory")
    if isinstance(old, Link) or (isinstance(old, Value) and old.type.startswith("ndarray")):
        raise InvalidRequest("append to a value that cannot grow")
    if isinstance(old, str) and old.startswith((ANY, BLOB)):
        return ANY, NO_RESULT
    return ("" if old is None else _text(old)) + step.value, NO_RESULT


def _add(old: Any, step: KeyStep) -> tuple[Any, Any]:
    number = 0 if old is None else _integer(old)
    if step.limit is not None and number >= step.limit:
        return old, [False, number]
    number += step.value
    if number not in INTEGERS:
        raise InvalidValue("past 64 bits")
    return number, [True, number]


def _exchange(old: Any, step: KeyStep) -> tuple[Any, Any]:
    return step.value, old


def _swap(old: Any, step: KeyStep) -> tuple[Any, Any]:
    return (step.value, [True, old]) if says(old, step.expected) else (old, [False, old])


_TRANSITIONS: dict[str, Callable[[Any, KeyStep], tuple[Any, Any]]] = {
    "put": _put, "append": _append, "add": _add, "exchange": _exchange, "swap": _swap,
}  # fmt: skip


def _json(thing: Any) -> Any:
    if isinstance(thing, int):
        return thing
    if not isinstance(thing, Value) or thing.type != "json":
        raise ValueError
    return json.loads(thing.data)


def _integer(thing: Any) -> int:
    try:
        value = _json(thing)
    except ValueError:
        raise InvalidValue("no integer") from None
    if type(value) is not int or value not in INTEGERS:
        raise InvalidValue("no integer of 64 bits")
    return value


def _text(value: Any) -> str:
    """Return the text that an append extends: of a JSON string its contents."""
    if not isinstance(value, Value):
        return str(value)
    if value.type == "json" and value.data.startswith(b'"'):
        try:
            return str(json.loads(value.data)).encode().decode("latin-1")
        except ValueError:
            pass
    return value.data.decode("latin-1")


# ----------------------------------------------------------------------------------------------------------- guards

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

LastChangeOf = Callable[[str], tuple[int, bool]]
"""From a key to the version that changed it last; False with it: in that version or an earlier one."""


def holds(guard: KeyStep, key: str, thing: Any, last_version: LastChangeOf) -> bool:
    """Return whether a guard holds for ``thing``, the value at ``key`` (its links resolved).

    Raises if it cannot be decided.
    """
    if guard.what == "changed":
        last, exact = (0, True) if thing is None else last_version(key)
        compare = COMPARISONS[guard.expected]
        possible = {compare(version, guard.value) for version in ((last,) if exact else range(last + 1))}
        if len(possible) > 1:
            raise SnapshotCollected("the versions that would decide it are not kept")
        return possible.pop()
    if guard.value is None:
        return (thing is None) is (guard.what == "equals")
    if guard.value == MISSING:
        raise NoSuchBlob("a guard refers to a blob that was never stored")
    if guard.what != "compare" and isinstance(guard.value, str) and guard.value.startswith((BLOB, DIRECTORY)):
        return says(thing, guard.value) is (guard.what == "equals")
    if thing is None:
        return guard.what == "differs"
    if is_value(guard.value) and not is_value(thing):
        raise InvalidValue("a value is compared with a directory or link")
    if guard.what in ("equals", "differs"):
        return bool(thing == guard.value) is (guard.what == "equals")
    try:
        return COMPARISONS[guard.expected](_ordered(thing), _ordered(guard.value))
    except (TypeError, ValueError):
        raise InvalidValue("these have no order") from None


def _ordered(thing: Any) -> Any:
    value = _json(thing)
    if type(value) not in (int, float, str):
        raise ValueError
    return value


# ------------------------------------------------------------------------------------------------------------ the store


@dataclass(slots=True)
class ModelTransaction:
    """``guards`` decide between ``steps`` and ``otherwise``."""

    steps: Sequence[KeyStep]
    guards: Sequence[KeyStep] = ()
    otherwise: Sequence[KeyStep] = ()


class Outcome(NamedTuple):
    """``keys``: those written, ``read``: those of the guards, links resolved. ``made``: there is a version of it.

    ``results``: one per step, None for a step without a result.
    """

    succeeded: bool
    made: bool
    keys: list[str]
    read: list[str]
    results: list[Any]


class ModelStore:
    """One namespace: apply transactions to its tree, one after another."""

    def __init__(self, tree: Tree, namespace: str) -> None:
        self.tree = tree
        self._dirty: dict[int, Tree] = {}
        """Directories that the current transaction wrote to, or passed to write below them: they have no ref yet."""
        self._namespace = namespace

    def commit(self, asked: ModelTransaction, last_change: LastChangeOf) -> Outcome:
        """Apply a transaction. Raises the error of the first guard or step that fails; then nothing is changed."""
        read: list[str] = []
        steps, succeeded = asked.steps, True
        if asked.guards:
            found = [self._resolve(split_key(guard.key)) for guard in asked.guards]
            read = [join_key(parts) for parts, _ in found]
            answers = [
                holds(guard, key, thing, last_change)
                for guard, key, (_, thing) in zip(asked.guards, read, found, strict=True)
            ]
            succeeded = all(answers)
            if not succeeded:
                steps = asked.otherwise
        results: list[Any] = []
        before = self.tree
        self._dirty = {}
        try:
            keys = [self.apply(step, results) for step in steps]
        except Exception:
            self.tree = before
            raise
        return Outcome(succeeded, succeeded or bool(steps), keys, read, results)

    def apply(self, step: KeyStep, results: list[Any]) -> str:
        """Apply one step, append its result, return its key with links resolved."""
        parts = split_key(step.key)
        what = step.what
        if what == "unlink":
            results.append(None)
            return self._unlink(parts)
        if what in ("mkdir", "within"):
            results.append(None)
            return join_key(self._open(parts, len(parts), replace=step.value is True)[1])
        if what in ("equals", "differs"):
            results.append(None)
            return self._guard(parts, step)
        if what == "put":
            results.append(None)
            return self._put(parts, _settled(step.value))
        resolved, old = self._resolve(parts)
        if old == ANY and what != "exchange":
            results.append(ANY)
            return self._put(resolved, ANY)  # also where it is the directory above that is unknown
        if isinstance(old, dict) and id(old) in self._dirty and what in ("exchange", "swap"):
            raise InvalidRequest("it was changed before in this transaction, and has no ref")
        if step.expected == MISSING:
            raise NoSuchBlob("a step refers to a blob that was never stored")
        new, result = transition(old, step)
        results.append(None if result is NO_RESULT else ANY if old == ANY else result)
        if what in ("add", "swap") and not result[0]:
            return join_key(resolved)
        return self._unlink(parts) if new is None else self._put(parts, _settled(new))

    def _guard(self, parts: list[str], step: KeyStep) -> str:
        """Check a guard's finding that was recorded as a step; return the resolved key."""
        resolved, thing = self._resolve(parts)
        if ANY not in (thing, step.value) and not holds(step, join_key(resolved), thing, lambda key: (0, True)):
            raise InvalidRequest(f"it was {str(thing)[:100]}")
        return join_key(resolved)

    def _put(self, parts: list[str], thing: Any) -> str:
        if not parts:
            raise InvalidKey("the root cannot be replaced")
        directory, parts = self._open(parts, len(parts) - 1)
        self._dirty[id(directory)] = directory
        directory[parts[-1]] = thing
        return join_key(parts)

    def _unlink(self, parts: list[str]) -> str:
        if not parts:
            raise InvalidKey("the root cannot be removed")
        parts, thing = self._resolve(parts)
        if thing == ANY and not isinstance(self._resolve(parts[:-1])[1], dict):
            return join_key(parts)
        if thing is not None:
            directory, parts = self._open(parts, len(parts) - 1)
            self._dirty[id(directory)] = directory
            directory.pop(parts[-1], None)
        return join_key(parts)

    def _open(self, parts: list[str], count: int, replace: bool = False) -> tuple[Tree, list[str]]:
        """Return the directory of the first ``count`` parts, and the parts with links resolved.

        It is made if missing, and copied with everything above it. ``replace``: also in place of a value.
        """
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
            if thing == ANY or (replace and is_leaf(thing)):
                thing = None
            if is_leaf(thing):
                raise NotADirectory("a value on the path")
            old = thing
            directory[parts[index]] = thing = dict(old or {})
            if old is None or id(old) in self._dirty:
                self._dirty[id(thing)] = thing
            directory = thing
            index += 1
        return directory, parts

    def _resolve(self, parts: list[str]) -> tuple[list[str], Any]:
        """Return the parts with the links on the path resolved, and the value there."""
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
                return parts, ANY if thing == ANY else None
        return parts, thing

    def _follow(self, link: Link, parts: list[str], index: int, links: int) -> list[str]:
        if link.namespace is not None and link.namespace != self._namespace:
            raise InvalidRequest("through a link into another namespace")
        if links > LINKS_MAX:
            raise LinkLoop("over LINKS_MAX links")
        return split_key(join_key(split_key(link.target) + parts[index + 1 :]))


def _settled(thing: Any) -> Any:
    """Return what a step puts, if it can be put."""
    if isinstance(thing, Link):
        split_key(thing.target)
    if isinstance(thing, str) and thing == MISSING:
        raise NoSuchBlob("a step refers to a blob that was never stored")
    return {} if isinstance(thing, str) and thing == DIRECTORY else thing


def last_change(states: Sequence[Any], key: str) -> tuple[int, bool]:
    """Return the version that changed the key last, and True; or the first version, and False, if none after it did.

    ``states``: consecutive versions, each with ``version`` and ``tree``.
    """
    for before, after in zip(states[-2::-1], states[:0:-1], strict=True):
        if _seen(before.tree, key) != _seen(after.tree, key) or _seen(after.tree, key)[1]:
            return after.version, True
    return states[0].version, False


def _seen(tree: Tree, key: str) -> tuple[Any, bool]:
    try:
        return lookup(tree, key, False)
    except FluxmpiError as error:
        return type(error), False
