"""Promise 6: watches are ordered, unique, atomic, reliable, resumable and filtered exactly.

They resume from any version. Each change says whether the key existed, and each notification carries its snapshot.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fluxmpi.kvs import wire
from fluxmpi.kvs.store.pattern_trie import MatchSet
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.watcher import Match, Watcher, WatcherState
from fluxmpi.simulator.checkers import watches
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from promises.simulation import Break, Patch, kept, noticed

MIX = {"mix": "watched"}


def judge(history: list[Operation]) -> list[str]:
    """Find updates that are not exactly the changes of their version, in order, and snapshots with a wrong root."""
    replayed = replay(history)
    return [*replayed.problems, *watches.violations(history, replayed)]


def test_kept() -> None:
    notified = [one for history in kept(judge, **MIX) for one in history if one.kind == "watch"]
    assert len(notified) > 200
    assert sum(len(one.steps) > 2 for one in notified) > 50
    assert sum(result[:2] == [None, True] for one in notified for result in one.results or ()) > 20, "keys are removed"
    resumed = [one for one in notified if one.after is not None and one.steps]
    assert len(resumed) > 50
    assert sum(one.version == (one.after or 0) + 1 for one in resumed) > 5, (
        "the first version after the one resumed from has changes"
    )


def a_version_is_skipped(patch: Patch) -> None:
    add = MatchSet.add

    def careless(self: MatchSet, key: str, *more: Any) -> None:
        if key != "hot.b":
            add(self, key, *more)

    patch(MatchSet, "add", careless)


def sends(wrong: Any) -> Break:
    """Send wrong notifications: ``wrong`` maps the right fields to wrong ones."""

    def break_it(patch: Patch) -> None:
        right = wire.Notification
        for name, module in list(sys.modules.items()):
            if (
                name.startswith("fluxmpi.kvs.")
                and module is not wire
                and getattr(module, "Notification", None) is right
            ):
                patch(module, "Notification", lambda *fields: right(*wrong(*fields)))

    return break_it


def half(version: int, root: bytes, time: float, changes: list[wire.KeyChange], *more: Any) -> tuple[Any, ...]:
    return version, root, time, changes[:1], *more


def another(version: int, root: bytes, time: float, changes: list[wire.KeyChange], *more: Any) -> tuple[Any, ...]:
    return version, root, time, [*changes, wire.KeyChange("another.key", None, True)], *more


def out_of_order(version: int, root: bytes, time: float, changes: list[wire.KeyChange], *more: Any) -> tuple[Any, ...]:
    return version - version % 2, root, time, changes, *more


def no_root(version: int, root: bytes, time: float, changes: list[wire.KeyChange], *more: Any) -> tuple[Any, ...]:
    return version, bytes(len(root)), time, changes, *more


def all_new(version: int, root: bytes, time: float, changes: list[wire.KeyChange], *more: Any) -> tuple[Any, ...]:
    return version, root, time, [wire.KeyChange(change.key, change.object, False) for change in changes], *more


def the_last_version_of_the_log_is_skipped(patch: Patch) -> None:
    """The next one is matched by the index."""
    evaluate = Evaluator.evaluate

    def careless(self: Evaluator, watcher: Watcher, match: Match) -> Any:
        last = watcher.begun and watcher.state is WatcherState.UNSYNCED and not watcher.pending
        out = yield from evaluate(self, watcher, match)
        return [] if last else out

    patch(Evaluator, "evaluate", careless)


def the_version_to_resume_from_is_notified_again(patch: Patch) -> None:
    evaluate = Evaluator.evaluate

    def twice(self: Evaluator, watcher: Watcher, match: Match) -> Any:
        first = not watcher.begun and watcher.watch.after is not None
        out = yield from evaluate(self, watcher, match)
        if not first:
            return out
        watcher.object = None
        return [*out, *(yield from evaluate(self, watcher, match))]

    patch(Evaluator, "evaluate", twice)


def a_watch_resumes_one_version_too_late(patch: Patch) -> None:
    evaluate = Evaluator.evaluate

    def late(self: Evaluator, watcher: Watcher, match: Match) -> Any:
        if not watcher.begun and watcher.watch.after is not None and watcher.pending:
            match = watcher.pending.popleft()
        return (yield from evaluate(self, watcher, match))

    patch(Evaluator, "evaluate", late)


BREAKS: dict[str, tuple[str, Break]] = {
    "reliable: a version is skipped": ("watches: ", a_version_is_skipped),
    "atomic: half of a version is sent": ("watches: ", sends(half)),
    "filtered: a key that is not watched is sent": ("watches: ", sends(another)),
    "ordered, unique: a version's number is sent twice": ("watches: ", sends(out_of_order)),
    "snapshot: it is not that version's": ("replay: one version, two roots", sends(no_root)),
    "existence: all keys are reported as new": ("watches: ", sends(all_new)),
    "resumable: the last version of the log is skipped": ("watches: ", the_last_version_of_the_log_is_skipped),
    "resumable: the version to resume from is sent again": ("watches: ", the_version_to_resume_from_is_notified_again),
    "resumable: the next version is taken for it": ("watches: ", a_watch_resumes_one_version_too_late),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beginning, break_it = BREAKS[name]
    break_it(monkeypatch.setattr)
    noticed(judge, beginning, **MIX)
