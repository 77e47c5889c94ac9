"""The guarantees of watches, one at a time, in simulated runs with slow links, pauses and readers that lag.

They follow etcd's: https://etcd.io/docs/v3.5/learning/api_guarantees/.

Each guarantee has a judge, which compares the clients' notifications with the true versions. It must find nothing in
correct runs that have enough to judge, and something as soon as the implementation breaks the guarantee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs import wire
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.watch import evaluator
from fluxmpi.kvs.watch.service import WatchService
from fluxmpi.kvs.watch.watcher import Match, Watcher, WatcherState
from fluxmpi.message import Message
from fluxmpi.simulator.checkers.history import WatchOptions
from fluxmpi.simulator.checkers.versions import VersionStates
from fluxmpi.simulator.checkers.watches import WatchUpdate, difference, matches, streams, watched_value
from fluxmpi.simulator.inspection.leader_replay import LeaderReplay
from fluxmpi.simulator.network import LinkDelays
from fluxmpi.simulator.plan import Faults, Plan, plan_of
from fluxmpi.simulator.run import Run
from fluxmpi.simulator.workload.operations import operations

SEEDS = 12
BROKEN_SEEDS = 30
"""Seeds tried until a broken guarantee is noticed."""

Patch = Callable[[Any, str, object], None]


@dataclass(slots=True)
class Seen:
    """One watch: its options, its notifications, and the versions as the leader's log gives them."""

    ask: WatchOptions
    updates: list[WatchUpdate]
    states: VersionStates

    def state(self, version: int) -> Any:
        state = self.states.at("primary", version)
        assert state is not None
        return watched_value(self.ask, state)

    @property
    def told(self) -> list[WatchUpdate]:
        return [update for update in self.updates if update.changes]

    def changes_of(self, version: int) -> list[Any]:
        """The changes that a version made to what is watched."""
        return difference(self.ask, self.state(version - 1), self.state(version))

    def later(self) -> Iterator[tuple[WatchUpdate, WatchUpdate]]:
        """Each update with changes, and the update before it, which may have none."""
        for before, update in zip(self.updates, self.updates[1:], strict=False):
            if update.changes:
                yield before, update


def plan_for(seed: int) -> Plan:
    plan = plan_of(seed, steps=150)
    shape = replace(
        plan.shape,
        ranks=5,
        topology="kary:2",
        command=(),
        checkpoint="",
        retention=10_000,
        cache_bytes_max=64 << 20,
        nodes_max=16384,
        delays=LinkDelays(spikes=0.2),
    )
    faults = Faults(pauses=3.0, pause_s=0.05, slows=2.0)
    return replace(
        plan, shape=shape, faults=faults, mix="watchers", clients=4, fences=0, rounds=0, namespaces=("primary",)
    )


def play(seed: int) -> list[Seen]:
    run = Run(plan_for(seed))
    run.report()
    replay = LeaderReplay(run.leader_log, run.transcript.asked(), run.cluster.store)
    history = operations(run.transcript, replay.blobs.plain_or_missing)
    seen = []
    for stream in streams(history):
        if stream.updates and stream.namespace == "primary":
            seen.append(Seen(stream.ask, stream.updates, replay.states))
    return seen


Judge = Callable[[Seen], Iterator[bool]]
"""Yields True for each observation that is right, False for one that is wrong."""


def ordered(seen: Seen) -> Iterator[bool]:
    """Versions are notified in order."""
    for before, update in seen.later():
        yield before.version <= update.version


def unique(seen: Seen) -> Iterator[bool]:
    """No version is notified twice."""
    versions = [update.version for update in seen.told]
    for index, version in enumerate(versions):
        yield version not in versions[:index]


def atomic(seen: Seen) -> Iterator[bool]:
    """All changes of a version are in one update."""
    if seen.ask.latest:
        return
    for _, update in seen.later():
        if len(update.changes) > 1 or len(seen.changes_of(update.version)) > 1:
            yield [change[0] for change in update.changes] == [change[0] for change in seen.changes_of(update.version)]


def reliable(seen: Seen) -> Iterator[bool]:
    """No version with changes is left out, up to the last one notified."""
    if seen.ask.latest or not seen.ask.uniq:
        return
    versions = {update.version: None for update in seen.told}
    for version in range(seen.updates[0].version + 1, seen.updates[-1].version + 1):
        try:
            changed = bool(seen.changes_of(version))
        except FluxmpiError:
            return
        if changed:
            yield version in versions


def resumable(seen: Seen) -> Iterator[bool]:
    """A watch after a version gets exactly the later changes."""
    since = seen.ask.after
    if since is None or seen.ask.latest:
        return
    yield seen.updates[0].version == since and not seen.updates[0].changes
    for update in seen.told[:1]:
        yield not any(seen.changes_of(version) for version in range(since + 1, update.version))


def bookmarkable(seen: Seen) -> Iterator[bool]:
    """A progress notification follows all changes up to its version."""
    if seen.ask.latest or not seen.ask.uniq:
        return
    for index, update in enumerate(seen.updates):
        if index and not update.changes:
            told = [before.version for before in seen.updates[:index] if before.changes]
            last = max(told, default=seen.updates[0].version)
            yield not any(seen.changes_of(version) for version in range(last + 1, update.version + 1))


def previous_value(seen: Seen) -> Iterator[bool]:
    """Each change has the value that it replaced."""
    for before, update in seen.later():
        was = {
            key: old
            for key, _, existed, old in difference(seen.ask, seen.state(before.version), seen.state(update.version))
        }
        for key, new, existed, old in update.changes:
            if existed and (seen.ask.uniq or new != old):
                yield old is not None and was.get(key) == old


def is_create(seen: Seen) -> Iterator[bool]:
    """A change says whether the key existed."""
    for _, update in seen.later():
        if seen.ask.latest:
            continue
        state = seen.state(update.version - 1)
        there = {key for key, _, _, _ in difference(seen.ask, None, state)}
        for key, _, existed, _ in update.changes:
            yield existed == (key in there)


def filtered(seen: Seen) -> Iterator[bool]:
    """Only changes that match are notified."""
    for update in seen.told:
        for key, _, _, _ in update.changes:
            if seen.ask.glob:
                yield matches(Pattern.glob(seen.ask.key), key)
            elif seen.ask.recursive:
                yield seen.ask.key == "." or key == seen.ask.key or key.startswith(f"{seen.ask.key}.")
            else:
                yield key == seen.ask.key


# ---------------------------------------------------------------------------------------------------- the rules, broken


def versions_are_evaluated_in_reverse(patch: Patch) -> None:
    def add(self: Watcher, match: Match) -> bool:
        self.pending.appendleft(match)
        return True

    patch(Watcher, "_add", add)
    patch(Watcher, "check", lambda self: None)


def a_notification_is_sent_twice(patch: Patch) -> None:
    notify = Watcher.notify

    def twice(self: Watcher, root: Any, changes: list, more: bool = False) -> list[Message]:
        out = notify(self, root, changes, more)
        return out + [self._send(root, changes, more) for _ in out]

    patch(Watcher, "notify", twice)


def half_of_a_version_is_sent(patch: Patch) -> None:
    notify = Watcher.notify

    def half(self: Watcher, root: Any, changes: list, more: bool = False) -> list:
        return notify(self, root, changes[: (len(changes) + 1) // 2], more)

    patch(Watcher, "notify", half)


def a_version_is_skipped(patch: Patch) -> None:
    accept = Watcher.accept
    patch(Watcher, "accept", lambda self, root, *more: root.version % 5 == 3 or accept(self, root, *more))


def a_version_of_the_log_is_skipped(patch: Patch) -> None:
    take = Watcher.take

    def careless(self: Watcher) -> Match | None:
        match = take(self)
        if self.state is WatcherState.UNSYNCED and self.begun and self.pending:
            match = take(self)
        return match

    patch(Watcher, "take", careless)


def progress_is_notified_too_early(patch: Patch) -> None:
    patch(WatchService, "_has_reached_progress", lambda self, watcher: watcher.begun)


def the_old_value_is_the_new_one(patch: Patch) -> None:
    patch(evaluator, "KeyChange", lambda key, thing, existed, old=None: wire.KeyChange(key, thing, existed, thing))


def all_keys_are_reported_as_new(patch: Patch) -> None:
    patch(evaluator, "KeyChange", lambda key, thing, existed, old=None: wire.KeyChange(key, thing, False, None))


def a_pattern_matches_its_prefixes(patch: Patch) -> None:
    patch(Pattern, "accepts", lambda self, state: bool(state))


GUARANTEES: dict[str, tuple[Judge, Callable[[Patch], None]]] = {
    "ordered": (ordered, versions_are_evaluated_in_reverse),
    "unique": (unique, a_notification_is_sent_twice),
    "atomic": (atomic, half_of_a_version_is_sent),
    "reliable": (reliable, a_version_is_skipped),
    "resumable": (resumable, a_version_of_the_log_is_skipped),
    "bookmarkable": (bookmarkable, progress_is_notified_too_early),
    "previous value": (previous_value, the_old_value_is_the_new_one),
    "is create": (is_create, all_keys_are_reported_as_new),
    "filtered": (filtered, a_pattern_matches_its_prefixes),
}


def verdicts(judge: Judge, seen: Seen) -> list[bool]:
    """The judge's verdicts up to the version at which the watch must end with an error."""
    found: list[bool] = []
    try:
        for right in judge(seen):
            found.append(right)
    except FluxmpiError:
        pass
    return found


@pytest.fixture(scope="module")
def runs() -> list[Seen]:
    return [seen for seed in range(SEEDS) for seen in play(seed)]


@pytest.mark.parametrize("name", GUARANTEES)
def test_kept(name: str, runs: list[Seen]) -> None:
    judge, _ = GUARANTEES[name]
    judged = 0
    for seen in runs:
        found = verdicts(judge, seen)
        assert all(found), f"{name}: {seen.ask}: {seen.updates}"
        judged += len(found)
    assert judged > 20, f"{name}: the runs have only {judged} things to judge"


@pytest.mark.parametrize("name", GUARANTEES)
def test_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, break_it = GUARANTEES[name]
    break_it(monkeypatch.setattr)
    for seed in range(BROKEN_SEEDS):
        if not all(right for seen in play(seed) for right in verdicts(judge, seen)):
            return
    pytest.fail(f"{BROKEN_SEEDS} seeds did not notice that {break_it.__name__.replace('_', ' ')}")
