"""Whether a watch told what it had to: exactly the changes of each version, in order, none twice, none missed.

A model says what each version changed of what is watched; the notifications, put together again where they came in parts, must
be those. A watch that keeps only the newest may leave versions out: each notification must tell the difference to the one
before it, and the last one the newest state. A notification without changes must not come before a change that it claims to
be behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fluxmpi.errors import (
    FluxmpiError,
    InstanceEnding,
    IsADirectory,
    Overloaded,
    RankLost,
    SnapshotCollected,
    VersionUnknown,
)
from fluxmpi.kvs.objects import join_key, split_key
from fluxmpi.kvs.store.pattern import DEEP, Pattern
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.wire import Notification, WatchRequest
from fluxmpi.message import MORE, OK
from fluxmpi.simulator.checkers.model import changes, is_leaf, lookup
from fluxmpi.simulator.inspection.leader_replay import VersionState, VersionStates
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, Transcript

UNSURE = (RankLost.code, InstanceEnding.code)
"""What a call may end with when a rank was killed."""

Told = tuple[str, Any, bool, Any]
"""Key, what is there now, whether something was there, and what."""


@dataclass(slots=True)
class Update:
    version: int
    ref: bytes
    told: list[Told]


def watches(history: Transcript, truth: VersionStates) -> Iterator[str]:
    for call in history.of("kvs.watch"):
        wrong = _wrong(call, truth)
        if wrong:
            yield f"watches: {call}: {wrong}"


def _wrong(call: ClientCall, truth: VersionStates) -> str:
    notifications = [answer.body for answer in call.answers if answer.status == MORE]
    end = next((answer for answer in call.answers if answer.status != MORE), None)
    updates, wrong = together(notifications, truth)
    if wrong:
        return wrong
    ask: WatchRequest = call.body
    if end is not None and end.status == Overloaded.code:
        wrong = _not_overloaded(call, updates, end)
        end, call = None, replace(call, cut=True)
    if wrong:
        return wrong
    seen = updates[-1].version if updates else ask.at_least  # what the next version is compared with
    late = end is not None and end.status == SnapshotCollected.code and bool(updates or ask.after is None)
    if late and _collected(seen, ask, truth):
        end, call = None, replace(call, cut=True)  # it lags, and says so
    if not updates:
        return _wrong_start(call, end, truth)
    if ask.after is not None and updates[0].version != ask.after:
        return f"it began with version {updates[0].version}, not with {ask.after}"
    if updates[0].version < ask.at_least and ask.after is None:
        return f"it began with version {updates[0].version}, below {ask.at_least}"
    if (ask.after is not None or not ask.initial) and updates[0].told:
        return f"it began with {_short(updates[0])}, and not with nothing"
    told = updates[:1] + [update for update in updates[1:] if update.told]
    wrong = _order(updates) or _progress(call, updates, end)
    if wrong:
        return wrong
    if ask.count and sum(bool(update.told) for update in updates) > ask.count:
        return f"it told more than {ask.count} updates"
    return (_wrong_latest if ask.latest else _wrong_every)(call, told, updates, end, truth)


def together(notifications: list[Notification], truth: VersionStates) -> tuple[list[Update], str]:
    """The updates that came in one or more parts; one that is not complete is left out."""
    plain = truth.walker.plain
    updates: list[Update] = []
    parts: list[Told] = []
    before: Notification | None = None
    for told in notifications:
        if before is not None and before.more and before.version != told.version:
            return [], f"version {before.version} was told in part, and then came version {told.version}"
        before = told
        parts += [
            (change.key, change.object and plain(change.object), change.existed, change.old and plain(change.old))
            for change in told.changes
        ]
        if not told.more:
            updates.append(Update(told.version, told.root, parts))
            parts = []
    return updates, ""


def _not_overloaded(call: ClientCall, updates: list[Update], end: Answer) -> str:
    newest = end.high.get(call.body.namespace, 0)
    seen = updates[-1].version if updates else end.low.get(call.body.namespace, 0)
    if newest - seen < WatchLimits().queue_max:
        return f"it ended as if it lagged, at version {seen} of {newest}"
    return "" if "after=" in str(end.body) or not updates else f"it does not say from where to go on: {end.body}"


def _collected(version: int, ask: WatchRequest, truth: VersionStates) -> bool:
    """It may be that rank 0 has not kept it."""
    return version <= truth.versions(ask.namespace)[-1].version - truth.retention


def _order(updates: list[Update]) -> str:
    """Versions go up; only that nothing happened may be said again of one."""
    for before, after in pairwise(updates):
        if after.version < before.version or (after.version == before.version and after.told):
            return f"version {after.version} came after version {before.version}"
    return ""


def _progress(call: ClientCall, updates: list[Update], end: Answer | None) -> str:
    if call.progress_after is None or call.cut or call.cancelled or end is not None:
        return ""
    later = [answer.body for answer in call.answers[call.progress_after :] if answer.status == MORE]
    return "" if any(not told.changes and not told.more for told in later) else "it does not say how far it has come"


def _wrong_start(call: ClientCall, end: Answer | None, truth: VersionStates) -> str:
    """It told nothing at all, or not all of what was there."""
    ask: WatchRequest = call.body
    if end is not None and end.status == SnapshotCollected.code and len(call.answers) > 1:
        first = call.answers[0].body.version
        return "" if _collected(first, ask, truth) else f"version {first} is kept: {end.body}"
    if end is None:
        waits = ask.wait and not truth.versions(ask.namespace)
        return "" if call.cut or call.cancelled or waits else "it has told nothing at all"
    if end.status in (*UNSURE, OK):
        return "" if end.status in UNSURE or call.cancelled else "it ended by itself"
    if ask.after is not None:
        if end.status == VersionUnknown.code:
            never = truth.at(ask.namespace, ask.after) is None
            return (
                ""
                if never or ask.after > end.low.get(ask.namespace, -1)
                else f"version {ask.after} is known: {end.body}"
            )
        if end.status == SnapshotCollected.code:
            kept = not _collected(ask.after, ask, truth) and truth.at(ask.namespace, ask.after) is not None
            return f"version {ask.after} is kept: {end.body}" if kept else ""
        possible = [ask.after]
    else:
        possible = list(range(max(end.low.get(ask.namespace, -1), ask.at_least), end.high.get(ask.namespace, -1) + 1))
    for version in possible:
        expected, error = _expected(ask, version, truth)
        if not expected and error == end.status:
            return ""
    return f"it ended at once with error {end.status} {end.body}"


def _wrong_every(
    call: ClientCall, told: list[Update], updates: list[Update], end: Answer | None, truth: VersionStates
) -> str:
    ask: WatchRequest = call.body
    expected, error = _expected(ask, told[0].version, truth)
    if not ask.uniq:
        told = [update for update in told if not _written_again(update, expected, truth, ask)]
    for index, (update, right) in enumerate(zip(told, expected, strict=False)):
        if update != right:
            return f"update {index} is {_short(update)}, and must be {_short(right)}"
    if len(told) > len(expected):
        return f"an update too many: {_short(told[len(expected)])}"
    missing = expected[len(told) :]
    if missing and updates[-1].version >= missing[0].version:
        return f"it came to version {updates[-1].version}, and has not told {_short(missing[0])}"
    failed = end is not None and end.status > OK and end.status not in UNSURE
    if end is not None and failed and (end.status != error or missing):
        missed = f", after {len(told)} of {len(expected)} updates" if missing else ""
        return f"it ended with error {end.status} {end.body}, and must with {error}{missed}"
    if _is_over(call, updates, end):
        return ""
    if end is not None and end.status == OK:
        return "it ended by itself"
    if missing:
        return f"{len(missing)} updates were missed, the first is {_short(missing[0])}"
    return f"it goes on, and must have ended with error {error}" if error and end is None else ""


def _is_over(call: ClientCall, updates: list[Update], end: Answer | None) -> bool:
    """It has a reason to tell no more."""
    if call.cut or call.cancelled or (end is not None and end.status in UNSURE):
        return True
    count = call.body.count
    return (
        bool(count) and end is not None and end.status == OK and sum(bool(update.told) for update in updates) == count
    )


def _written_again(update: Update, expected: list[Update], truth: VersionStates, ask: WatchRequest) -> bool:
    """A key that was written with the value that it had: told, if the version wrote it."""
    if any(right.version == update.version for right in expected) or len(update.told) != 1:
        return False
    key, new, existed, old = update.told[0]
    fact = truth.at(ask.namespace, update.version)
    return existed and new == old and fact is not None and state_of(ask, fact) == new and key in truth.written(fact)


def _written_since(before: int, update: Update, truth: VersionStates, ask: WatchRequest) -> bool:
    """As ``_written_again``, of any of the versions that ``latest`` took together."""
    versions = [fact.version for fact in truth.versions(ask.namespace) if before < fact.version <= update.version]
    return any(_written_again(Update(version, update.ref, update.told), [], truth, ask) for version in versions)


def _wrong_latest(
    call: ClientCall, told: list[Update], updates: list[Update], end: Answer | None, truth: VersionStates
) -> str:
    """Each tells the difference to the one before."""
    ask: WatchRequest = call.body
    before: Any = None
    for index, update in enumerate(told):
        fact = truth.at(ask.namespace, update.version)
        if fact is None or fact.ref != update.ref:
            return f"there is no version {update.version} with that root"
        try:
            state = state_of(ask, fact)
        except FluxmpiError as error:
            return f"it told version {update.version}, in which it must end with error {error.code}"
        silent = not index and (ask.after is not None or not ask.initial)
        right = [] if silent else difference(ask, before, state)
        again = index and not right and not ask.uniq and _written_since(told[index - 1].version, update, truth, ask)
        if not again and (update.told != right or (index and not right)):
            must = Update(update.version, update.ref, right)
            return f"update {index} is {_short(update)}, and must be {_short(must)}"
        before = state
    facts = [fact for fact in truth.versions(ask.namespace) if fact.version > told[-1].version]
    errors = [_error(ask, fact) for fact in facts]
    if end is not None and end.status > OK and end.status not in UNSURE:
        return "" if end.status in errors else f"it ended with error {end.status} {end.body}"
    if _is_over(call, updates, end):
        return ""
    if end is not None:
        return "it ended by itself"
    if errors and errors[-1]:
        return f"it goes on, and must have ended with error {errors[-1]}"
    missed = difference(ask, before, state_of(ask, facts[-1])) if facts else []
    return f"it has not told {_short(Update(facts[-1].version, b'', missed))}" if missed else ""


# ---------------------------------------------------------------------------------------------------------- the model


def pattern_of(ask: WatchRequest) -> Pattern:
    if ask.glob:
        return Pattern.glob(ask.key)
    return Pattern.below(ask.key) if ask.recursive else Pattern.key(ask.key)


def state_of(ask: WatchRequest, fact: VersionState) -> Any:
    """What stands where the watch looks. Raises what ends it."""
    pattern = pattern_of(ask)
    state, _ = lookup(fact.tree, join_key(pattern.prefix), ask.follow)
    if pattern.plain and isinstance(state, dict):
        raise IsADirectory(ask.key)
    return state


def _error(ask: WatchRequest, fact: VersionState) -> int:
    try:
        state_of(ask, fact)
    except FluxmpiError as error:
        return error.code
    return OK


def difference(ask: WatchRequest, old: Any, new: Any) -> list[Told]:
    pattern = pattern_of(ask)
    key = join_key(pattern.prefix)
    if pattern.plain:
        return [] if new == old else [(key, new, old is not None, old)]
    found = []
    for name, now, existed in changes(key, old, new):
        if matches(pattern, name):
            was = _at(old, name, key) if existed else None
            found.append((name, now, existed, was))
    return found


def matches(pattern: Pattern, key: str) -> bool:
    """Told in the plainest way, by trying all that a ``**`` can stand for."""

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
    """What stood at ``key``, where ``tree`` stood at ``above``."""
    names = split_key(key)[len(split_key(above)) :]
    for name in names:
        tree = tree[name]
    assert is_leaf(tree)
    return tree


def _expected(ask: WatchRequest, first: int, truth: VersionStates) -> tuple[list[Update], int]:
    """What a watch that begins at version ``first`` tells, up to the newest version; the error that ends it, or OK."""
    updates: list[Update] = []
    old: Any = None
    for fact in truth.versions(ask.namespace):
        if fact.version < first:
            continue
        try:
            new = state_of(ask, fact)
        except FluxmpiError as error:
            return updates, error.code
        silent = not updates and (ask.after is not None or not ask.initial)
        told = [] if silent else difference(ask, old, new)
        if told or not updates:
            updates.append(Update(fact.version, fact.ref, told))
        old = new
    return updates, OK


def _short(update: Update) -> str:
    lines = [
        f"{key} {'gone' if thing is None else str(thing)[:60]} {'was there' if existed else 'new'} ({str(old)[:30]})"
        for key, thing, existed, old in update.told[:8]
    ]
    more = f" and {len(update.told) - 8} more" if len(update.told) > 8 else ""
    return f"version {update.version}: {', '.join(lines)}{more}"
