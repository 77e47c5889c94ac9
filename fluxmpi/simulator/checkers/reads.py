"""Reads: every answer is what its version holds.

A read that names its version is compared with that version. One that does not, because it ended with an error or its
answer does not carry a version, must be right in one of the versions that its broker had meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fluxmpi.errors import FluxmpiError, NotADirectory
from fluxmpi.simulator.checkers.history import ANY, ERROR, KeyStep, Operation, says
from fluxmpi.simulator.checkers.model import Tree, flatten, lookup
from fluxmpi.simulator.checkers.versions import VersionState, VersionStates


def violations(history: Iterable[Operation], states: VersionStates) -> Iterator[str]:
    """Compare all reads and roots with the versions."""
    for operation in history:
        if operation.kind in ("read", "root") and operation.answered:
            text = _read(operation, states)
            if text:
                yield f"reads: {text}:\n    {operation} (the broker had {operation.window})"


def _read(operation: Operation, states: VersionStates) -> str:
    namespace, version, window = operation.namespace, operation.version, operation.window
    if operation.asked and operation.ref and operation.ref != operation.asked:
        return f"root {operation.asked} was asked for"
    if operation.asked and states.complete:
        found = states.by_ref.get(operation.asked)
        return f"no version has root {operation.asked}" if found is None else _differs(operation, found)
    if version is None:
        if window is None or not operation.steps:
            return ""
        low, high = max(window[0], operation.least), window[1]
        possible = [states.at(namespace, number) for number in range(low, high + 1)]
        fits = any(state is not None and not _differs(operation, state) for state in possible)
        return "" if fits else "no version that the broker had has this"
    state = states.at(namespace, version)
    if state is None:
        return f"there is no version {version}" if states.complete else ""
    if operation.ref and state.ref and state.ref != operation.ref:
        return f"version {version} has another root"
    if window is not None and operation.kind == "read" and not operation.at:
        low, high = max(window[0], operation.least), window[1]
        if not low <= version <= high:
            return f"version {version} is not one that the broker had meanwhile"
    return _differs(operation, state)


def _differs(operation: Operation, state: VersionState) -> str:
    if state.tree is None:
        return ""
    text = "; ".join(wrong(operation, state.tree))
    return f"in version {state.version}, {text}" if text else ""


def wrong(operation: Operation, tree: Tree) -> Iterator[str]:
    """Yield where the values of a read or notification are not those of this tree."""
    for index, step in enumerate(operation.steps):
        result = operation.result(index)
        if operation.kind == "watch":
            result = result[0]
        if step.what == "tree":
            yield from _tree_differs(step.key, result, tree)
        elif step.what in ("equals", "differs"):
            thing, _ = _find(tree, step.key, False)  # guards do not follow a link at the end
            if ANY not in (_name(thing), step.value) and says(thing, step.value) is not (step.what == "equals"):
                found = "" if step.what == "equals" else "not "
                yield f"{step.key} was found {found}to be {step.value}, and must be {str(thing)[:100]}"
        elif step.what == "list":
            right = listing(tree, step)
            if not _lists(right, result):
                yield f"the list of {step.key} is {str(result)[:300]}, and must be {str(right)[:300]}"
        elif operation.kind == "watch":
            # A directory or nothing is reported as nothing; a link as itself, or as the value behind it.
            right = [_find(tree, step.key, follow)[0] for follow in (True, False)]
            if not any(says(None if isinstance(thing, dict) else thing, result) for thing in right):
                yield f"{step.key} is {str(result)[:100]}, and must be {str(right[0])[:100]}"
        elif step.what in ("get", "look"):
            thing, error = _find(tree, step.key, step.what == "get")
            if not says(error or thing, result):
                yield f"{step.key} is {str(result)[:100]}, and must be {str(error or thing)[:100]}"


def _find(tree: Tree, key: str, follow: bool = True) -> tuple[Any, str]:
    """Return the value, and the name of the error that a read ends with."""
    try:
        return lookup(tree, key, follow)[0], ""
    except FluxmpiError as error:
        return None, ERROR + type(error).__name__


def _name(thing: Any) -> Any:
    return thing if isinstance(thing, str) else None


def listing(tree: Tree, step: KeyStep) -> Any:
    """Return what a list step must answer: [entries, more], None if the key is absent, or an error."""
    prefix, after, limit = step.value
    thing, error = _find(tree, step.key)
    if error or thing is None or _name(thing) == ANY:
        return error or thing
    if not isinstance(thing, dict):
        return ERROR + NotADirectory.__name__
    names = [name for name in sorted(thing) if name > after and name.startswith(prefix)]
    return [{name: thing[name] for name in names[:limit]}, len(names) > limit]


def _lists(right: Any, answer: Any) -> bool:
    """Return True if a listing is right. It may say that there is more where there is none; not the other way round."""
    if not isinstance(right, list) or not isinstance(answer, list):
        return says(right, answer)
    entries, more = answer
    same = list(right[0]) == list(entries) and all(says(right[0][name], entries[name]) for name in entries)
    return same and (more or not right[1])


def _tree_differs(key: str, answer: dict[str, Any], tree: Tree) -> Iterator[str]:
    """``answer`` must be all values below ``key``."""
    prefix = "" if key == "." else f"{key}."
    right = {name: value for name, value in flatten(tree).items() if name.startswith(prefix)}
    for name in sorted({**answer, **right}):
        if not says(right.get(name), answer.get(name)):
            yield f"{name} is {answer.get(name)}, and must be {right.get(name)}"


def gets(step: KeyStep, result: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys whose values an answer carries, with the values."""
    if step.what == "list" and isinstance(result, list):
        prefix = "" if step.key == "." else f"{step.key}."
        yield from ((f"{prefix}{name}", value) for name, value in result[0].items())
    elif step.what in ("get", "look"):
        yield step.key, result
