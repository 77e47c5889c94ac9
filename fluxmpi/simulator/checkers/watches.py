"""Watches: each reports exactly the changes of each version, in order, none twice, none missed.

A model computes what each version changed of what is watched; the notifications must be equal to that. A watch with
``latest`` may skip versions: each notification must report the difference to the one before it, and the last one the
newest state. A notification without changes claims that there was no change up to its version.

Where a version is unknown, judging ends; where a value is unknown, its changes are not judged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from fluxmpi.errors import FluxmpiError, IsADirectory, Overloaded, SnapshotCollected, VersionUnknown
from fluxmpi.kvs.objects import join_key, split_key
from fluxmpi.kvs.store.pattern import DEEP, Pattern
from fluxmpi.simulator.checkers.history import ANY, Operation, WatchOptions, says
from fluxmpi.simulator.checkers.model import changes, is_leaf, lookup
from fluxmpi.simulator.checkers.versions import VersionState, VersionStates

ENDED = "end"
"""How a watch ended that no error ended."""

KeyUpdate = tuple[str, Any, bool, Any]
"""Key, new value, whether there was a value, and that value (None if the history does not have it)."""


@dataclass(slots=True)
class WatchUpdate:
    """One notification. ``unsure``: keys whose values are unknown before or after."""

    version: int
    ref: str
    changes: list[KeyUpdate]
    unsure: list[str] = field(default_factory=list)


@dataclass(slots=True)
class WatchStream:
    """One watch: its options, its notifications, and how it ended (see ``WatchOptions``)."""

    client: str
    namespace: str
    ask: WatchOptions
    updates: list[WatchUpdate]
    window: tuple[int, int] | None
    queue_max: int = 0

    def __str__(self) -> str:
        return f"{self.client}, {self.ask.key} of {self.namespace}"


def violations(history: Iterable[Operation], states: VersionStates, queue_max: int = 0) -> list[str]:
    """Return what is wrong with the watches.

    ``queue_max``: versions that a watcher may lag behind before it is overloaded.
    """
    found = []
    for stream in streams(history):
        stream.queue_max = queue_max
        text = _wrong(stream, states)
        if text:
            found.append(f"watches: {stream}: {text}")
    return found


def streams(history: Iterable[Operation]) -> list[WatchStream]:
    """Return all watches with their notifications."""
    found: dict[tuple[str, str], list[Operation]] = {}
    opened: dict[tuple[str, str], Operation] = {}
    for operation in history:
        if operation.kind == "watch" and operation.answered:
            found.setdefault((operation.client, operation.stream), []).append(operation)
        elif operation.kind == "watching" and operation.options is not None:
            opened[operation.client, operation.stream] = operation
            found.setdefault((operation.client, operation.stream), [])
    made = []
    for place, operations in found.items():
        operations.sort(key=lambda operation: operation.end or 0.0)
        one = opened.get(place) or operations[0]
        ask = one.options or _options(one)
        updates = [_update(operation) for operation in operations]
        made.append(WatchStream(one.client, one.namespace, ask, updates, one.window))
    return made


def _options(operation: Operation) -> WatchOptions:
    """Return the options of a watch of which only the notifications are recorded."""
    pattern = operation.pattern
    key = "." if pattern == "." else pattern.removesuffix(".")
    return WatchOptions(key, recursive=pattern.endswith("."), after=operation.after)


def _update(operation: Operation) -> WatchUpdate:
    updates = [
        (step.key, result[0], result[1], result[2] if len(result) > 2 else ANY)
        for step, result in zip(operation.steps, operation.results or [], strict=True)
    ]
    return WatchUpdate(operation.version or 0, operation.ref, updates)


# ------------------------------------------------------------------------------------------------------------- judging


def _wrong(stream: WatchStream, states: VersionStates) -> str:
    ask, updates = stream.ask, stream.updates
    if ask.contradiction:
        return ask.contradiction
    if ask.ending == Overloaded.__name__:
        text = _not_overloaded(stream)
        if text:
            return text
        ask = stream.ask = msgspec.structs.replace(ask, ending="", drained=False)
    # It lags, and says so.
    seen = updates[-1].version if updates else ask.at_least
    late = ask.ending == SnapshotCollected.__name__ and bool(updates or ask.after is None)
    if late and _collected(seen, stream, states):
        ask = stream.ask = msgspec.structs.replace(ask, ending="", drained=False)
    if not updates:
        return _wrong_start(stream, states)
    first = updates[0]
    if ask.after is not None and first.version != ask.after:
        return f"it began with version {first.version}, not with {ask.after}"
    if first.version < ask.at_least and ask.after is None:
        return f"it began with version {first.version}, below {ask.at_least}"
    if (ask.after is not None or not ask.initial) and first.changes:
        return f"it began with {_short(first)}, and not without changes"
    text = _order(updates) or _progress(ask)
    if text:
        return text
    if ask.count and sum(bool(update.changes) for update in updates) > ask.count:
        return f"it reported more than {ask.count} updates"
    reported = updates[:1] + [update for update in updates[1:] if update.changes]
    return (_wrong_latest if ask.latest else _wrong_every)(stream, reported, states)


def _not_overloaded(stream: WatchStream) -> str:
    """Return what is wrong with an end by Overloaded: the watch must have lagged, and must say where to continue."""
    if stream.window is None:
        return ""
    newest, updates = stream.window[1], stream.updates
    seen = updates[-1].version if updates else stream.window[0]
    if newest - seen < stream.queue_max:
        return f"it ended as if it lagged, at version {seen} of {newest}"
    text = stream.ask.ending_text
    return "" if "after=" in text or not updates else f"it does not say from where to continue: {text}"


def _collected(version: int, stream: WatchStream, states: VersionStates) -> bool:
    """Return whether rank 0 may have dropped a version."""
    versions = states.versions(stream.namespace)
    return not states.complete or not versions or version <= versions[-1].version - states.retention


def _order(updates: list[WatchUpdate]) -> str:
    """Versions increase; only a notification without changes may repeat one."""
    for before, after in pairwise(updates):
        if after.version < before.version or (after.version == before.version and after.changes):
            return f"version {after.version} arrived after version {before.version}"
    return ""


def _progress(ask: WatchOptions) -> str:
    asked = ask.progress is not None and ask.drained and not ask.cancelled and not ask.ending
    return "it does not report its progress" if asked and not ask.progress else ""


def _wrong_start(stream: WatchStream, states: VersionStates) -> str:
    """Return what is wrong with a watch that reported nothing, or only a part of the initial state."""
    ask = stream.ask
    if not ask.ending:
        waits = ask.wait and not states.versions(stream.namespace)
        return "" if not ask.drained or ask.cancelled or waits else "it has reported nothing at all"
    if ask.ending == ENDED:
        return "" if ask.cancelled else "it ended by itself"
    window = stream.window or (-1, -1)
    possible = list(range(max(window[0], ask.at_least), window[1] + 1))
    if ask.after is not None:
        state = states.at(stream.namespace, ask.after)
        if ask.ending == VersionUnknown.__name__:
            unknown = state is None or ask.after > window[0]
            return "" if unknown else f"version {ask.after} is known: {ask.ending_text}"
        if ask.ending == SnapshotCollected.__name__:
            kept = state is not None and not _collected(ask.after, stream, states)
            return f"version {ask.after} is kept: {ask.ending_text}" if kept else ""
        possible = [ask.after]
    for version in possible:
        expected, error = _expected(stream, version, states)
        if not expected and error == ask.ending:
            return ""
    return f"it ended at once with error {ask.ending} {ask.ending_text}"


def _failed(ask: WatchOptions) -> bool:
    return ask.ending not in ("", ENDED)


def _is_over(stream: WatchStream) -> bool:
    """Return whether it has a reason to report no more."""
    ask = stream.ask
    if ask.cancelled or (not ask.drained and not ask.ending):
        return True
    reported = sum(bool(update.changes) for update in stream.updates)
    return bool(ask.count) and ask.ending == ENDED and reported == ask.count


def _wrong_every(stream: WatchStream, reported: list[WatchUpdate], states: VersionStates) -> str:
    ask, updates = stream.ask, stream.updates
    expected, error = _expected(stream, reported[0].version, states)
    known = [state.version for state in states.versions(stream.namespace)]
    if error is None:  # unknown from some version on
        known = [version for version in known if version <= expected[-1].version] if expected else []
        reported = [update for update in reported if known and update.version <= known[-1]]
    seen = {update.version for update in reported}
    expected = expected[:1] + [right for right in expected[1:] if right.changes or right.version in seen]
    if not ask.uniq:
        reported = [update for update in reported if not _written_again(update, expected, states, stream)]
    for index, (update, right) in enumerate(zip(reported, expected, strict=False)):
        if not _equal(update, right):
            return f"update {index} is {_short(update)}, and must be {_short(right)}"
    extra = [update for update in reported[len(expected) :] if known and update.version <= known[-1]]
    if extra:
        return f"an update too many: {_short(extra[0])}"
    missing = expected[len(reported) :]
    if missing and updates[-1].version >= missing[0].version:
        return f"it has reached version {updates[-1].version}, and has not reported {_short(missing[0])}"
    if error is None:
        return ""
    if _failed(ask) and (ask.ending != error or missing):
        missed = f", after {len(reported)} of {len(expected)} updates" if missing else ""
        return f"it ended with error {ask.ending} {ask.ending_text}, and must with {error or 'none'}{missed}"
    if _is_over(stream) or _failed(ask):
        return ""
    if ask.ending == ENDED:
        return "it ended by itself"
    if missing:
        return f"{len(missing)} updates were missed, the first is {_short(missing[0])}"
    return f"it continues, and must have ended with error {error}" if error else ""


def _equal(update: WatchUpdate, right: WatchUpdate) -> bool:
    if update.version != right.version or (update.ref and right.ref and update.ref != right.ref):
        return False
    sure = _sure(update.changes, right.unsure)
    return len(sure) == len(right.changes) and all(_same(*pair) for pair in zip(sure, right.changes, strict=True))


def _sure(found: list[KeyUpdate], unsure: list[str]) -> list[KeyUpdate]:
    """Leave out the changes of unknown keys, and of keys below them."""
    if not unsure:
        return found
    return [change for change in found if not f"{change[0]}.".startswith(tuple(f"{key}." for key in unsure))]


def _same(change: KeyUpdate, right: KeyUpdate) -> bool:
    return (change[0], change[2]) == (right[0], right[2]) and says(right[1], change[1]) and says(right[3], change[3])


def _written_again(
    update: WatchUpdate, expected: list[WatchUpdate], states: VersionStates, stream: WatchStream
) -> bool:
    """Return whether a key was written with the value that it had: that is reported if the version wrote it."""
    if any(right.version == update.version for right in expected) or len(update.changes) != 1:
        return False
    key, new, existed, old = update.changes[0]
    state = states.at(stream.namespace, update.version)
    if not existed or new != old or state is None or state.tree is None:
        return False
    if states.complete and key not in state.written:
        return False
    return says(watched_value(stream.ask, state), new)


def _written_since(before: int, update: WatchUpdate, states: VersionStates, stream: WatchStream) -> bool:
    """Return the same for any of the versions that ``latest`` combined."""
    versions = [one.version for one in states.versions(stream.namespace) if before < one.version <= update.version]
    return any(
        _written_again(WatchUpdate(version, update.ref, update.changes), [], states, stream) for version in versions
    )


def _wrong_latest(stream: WatchStream, reported: list[WatchUpdate], states: VersionStates) -> str:
    """Each notification must report the difference to the one before."""
    ask = stream.ask
    if states.guessed:  # it skips versions, so an unanswered commit may be in any of several
        return ""
    before: Any = None
    for index, update in enumerate(reported):
        state = states.at(stream.namespace, update.version)
        if state is None or (state.ref and update.ref and state.ref != update.ref):
            return f"there is no version {update.version} with that root"
        if state.tree is None:
            return ""
        try:
            after = watched_value(ask, state)
        except FluxmpiError as error:
            return f"it reported version {update.version}, in which it must end with {type(error).__name__}"
        silent = not index and (ask.after is not None or not ask.initial)
        unsure = [] if states.complete else _unsure(ask, before, after)
        found = [] if silent else _sure(difference(ask, before, after), unsure)
        right = WatchUpdate(update.version, update.ref, found, unsure)
        again = (
            index
            and not right.changes
            and not ask.uniq
            and _written_since(reported[index - 1].version, update, states, stream)
        )
        if not again and (not _equal(update, right) or (index and not right.changes and not unsure)):
            return f"update {index} is {_short(update)}, and must be {_short(right)}"
        before = after
    later = [state for state in states.versions(stream.namespace) if state.version > reported[-1].version]
    if not states.complete and any(state.tree is None for state in later):
        return ""
    errors = [_error(ask, state) for state in later]
    if _failed(ask):
        return "" if ask.ending in errors else f"it ended with error {ask.ending} {ask.ending_text}"
    if _is_over(stream):
        return ""
    if ask.ending == ENDED:
        return "it ended by itself"
    if errors and errors[-1]:
        return f"it continues, and must have ended with error {errors[-1]}"
    newest = watched_value(ask, later[-1]) if later else before
    missed = _sure(difference(ask, before, newest), [] if states.complete else _unsure(ask, before, newest))
    return f"it has not reported {_short(WatchUpdate(later[-1].version, '', missed))}" if missed else ""


# ---------------------------------------------------------------------------------------------------------- the model


def pattern_of(ask: WatchOptions) -> Pattern:
    if ask.glob:
        return Pattern.glob(ask.key)
    return Pattern.below(ask.key) if ask.recursive else Pattern.key(ask.key)


def watched_value(ask: WatchOptions, state: VersionState) -> Any:
    """Return what the watch sees of a version: a value or a tree. Raises the error that ends the watch."""
    pattern = pattern_of(ask)
    assert state.tree is not None
    value, _ = lookup(state.tree, join_key(pattern.prefix), ask.follow)
    if pattern.plain and isinstance(value, dict):
        raise IsADirectory(ask.key)
    return value


def _error(ask: WatchOptions, state: VersionState) -> str:
    try:
        watched_value(ask, state)
    except FluxmpiError as error:
        return type(error).__name__
    return ""


def difference(ask: WatchOptions, old: Any, new: Any) -> list[KeyUpdate]:
    """Return the changes between two values that ``watched_value`` returned."""
    pattern = pattern_of(ask)
    key = join_key(pattern.prefix)
    if pattern.plain:
        return [] if new == old else [(key, new, old is not None, old)]
    found = []
    for name, now, existed in changes(key, old, new):
        if matches(pattern, name):
            found.append((name, now, existed, _at(old, name, key) if existed else None))
    return found


def matches(pattern: Pattern, key: str) -> bool:
    """Return whether a pattern matches, in the simplest way: try everything that a ``**`` can stand for."""

    def fits(components: list[Any], names: list[str]) -> bool:
        if not components:
            return not names
        first, rest = components[0], components[1:]
        if first is DEEP:
            return any(fits(rest, names[skip:]) for skip in range(len(names) + 1))
        if not names:
            return False
        same = first == names[0] if isinstance(first, str) else bool(first.matches(names[0]))
        return same and fits(rest, names[1:])

    return fits(list(pattern.components), split_key(key))


def _at(tree: Any, key: str, above: str) -> Any:
    """Return the value that was at ``key``, where ``tree`` was at ``above``."""
    names = split_key(key)[len(split_key(above)) :]
    for name in names:
        tree = tree[name]
    assert is_leaf(tree)
    return tree


def _expected(stream: WatchStream, first: int, states: VersionStates) -> tuple[list[WatchUpdate], str | None]:
    """Return what a watch that begins at version ``first`` reports, and the error that ends it.

    It reports changes up to the newest version.

    The error is empty if it continues, and None if a version is unknown.
    """
    ask = stream.ask
    updates: list[WatchUpdate] = []
    old: Any = None
    for state in states.versions(stream.namespace):
        if state.version < first:
            continue
        if state.tree is None:
            return updates, None
        try:
            new = watched_value(ask, state)
        except FluxmpiError as error:
            return updates, type(error).__name__
        silent = not updates and (ask.after is not None or not ask.initial)
        found = [] if silent else difference(ask, old, new)
        unsure = _unsure(ask, old, new) if not states.complete else []
        sure = _sure(found, unsure)
        if sure or unsure or not updates:
            updates.append(WatchUpdate(state.version, state.ref, sure, unsure))
        old = new
    return updates, ""


def _unsure(ask: WatchOptions, old: Any, new: Any) -> list[str]:
    """Return the keys whose values are unknown: it is not known whether they were changed either."""
    key = join_key(pattern_of(ask).prefix)
    found: list[str] = []
    for thing in (old, new):
        found += [name for name, value, _ in changes(key, None, thing) if isinstance(value, str) and value == ANY]
    return found


def _short(update: WatchUpdate) -> str:
    lines = [
        f"{key} {'gone' if thing is None else str(thing)[:60]} {'existed' if existed else 'new'} ({str(old)[:30]})"
        for key, thing, existed, old in update.changes[:8]
    ]
    more = f" and {len(update.changes) - 8} more" if len(update.changes) > 8 else ""
    return f"version {update.version}: {', '.join(lines)}{more}"
