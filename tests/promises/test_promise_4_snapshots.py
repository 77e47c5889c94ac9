"""Promise 4: a snapshot reads the same for as long as it is kept, however many versions follow.

Beyond retention, a read ends with SnapshotCollected, never with a wrong value or a hang.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.errors import SnapshotCollected, VersionUnknown
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc import namespace as mvcc_namespace
from fluxmpi.kvs.mvcc.limits import GcLimits
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.simulator.checkers import snapshots
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.replay import replay
from fluxmpi.simulator.plan import Faults, plan_of
from fluxmpi.simulator.run import Run
from promises.simulation import KEPT, Break, Patch, kept, noticed

RETENTION = 12
MIX = {"mix": "snapshots", "retention": RETENTION}


def judge(history: list[Operation]) -> list[str]:
    """Return where a read of a version is not what its commits say, or not the same each time, or was refused without reason."""
    states = replay(one for one in history if not (one.at and (one.error or one.pending)))
    states.retention = RETENTION
    return [*states.problems, *snapshots.violations(history, states)]


def test_kept() -> None:
    old = over = gone = 0
    for history in kept(judge, **MIX):
        last = max(one.version or 0 for one in history if one.kind == "commit" and one.answered)
        old += sum(
            one.kind == "read" and one.at and one.answered and (one.version or 0) < last - RETENTION for one in history
        )
        over += sum(one.error == SnapshotCollected.__name__ for one in history)
        gone += sum(one.error == SnapshotCollected.__name__ and bool(one.ref) for one in history)
    assert old > 50, "versions were read that were old at the end"
    assert over > 20, "versions were asked for that are not kept"
    assert gone > 5, "roots were read at of which nothing is left"


def a_version_is_read_as_the_newest(patch: Patch) -> None:
    root_at = Reads.root_at
    patch(Reads, "root_at", lambda self, namespace, at: root_at(self, namespace, None if isinstance(at, int) else at))


def a_snapshot_is_read_as_the_newest(patch: Patch) -> None:
    root_at = Reads.root_at
    patch(Reads, "root_at", lambda self, namespace, at: root_at(self, namespace, None if isinstance(at, bytes) else at))


def a_version_that_is_not_kept_is_read_as_the_newest(patch: Patch) -> None:
    at = mvcc_namespace.Namespace.at
    patch(
        mvcc_namespace.Namespace, "at", lambda self, version: self.root if version < self.oldest else at(self, version)
    )


def a_version_is_dropped_too_early(patch: Patch) -> None:
    at = mvcc_namespace.Namespace.at

    def early(self: mvcc_namespace.Namespace, version: int) -> RootInfo:
        if self.oldest <= version <= self.oldest + 3:
            raise SnapshotCollected("too early")
        return at(self, version)

    patch(mvcc_namespace.Namespace, "at", early)


def what_only_kept_versions_reach_is_collected(patch: Patch) -> None:
    patch(mvcc_namespace.Namespace, "roots", lambda self: iter([self.root]))


def a_version_that_is_not_kept_is_reported_as_unknown(patch: Patch) -> None:
    patch(mvcc_namespace, "SnapshotCollected", VersionUnknown)


BREAKS: list[tuple[str, Break]] = [
    ("replay: ", a_version_is_read_as_the_newest),
    ("replay: ", a_snapshot_is_read_as_the_newest),
    ("replay: ", a_version_that_is_not_kept_is_read_as_the_newest),
    ("snapshots: it is among the 12 newest", a_version_is_dropped_too_early),
    ("snapshots: it is among the 12 newest", what_only_kept_versions_reach_is_collected),
    ("snapshots: version", a_version_that_is_not_kept_is_reported_as_unknown),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning, **MIX)


# --------------------------------------------------------------------------------------------------------------- leases


def leasing(seed: int) -> list[str]:
    """Read versions while retention and collections remove others; return the violations.

    A client that knows all versions of its namespaces leases some (see ``workload/reference_client``).
    """
    plan = plan_of(seed, steps=20)
    limits = KvsLimits(gc=GcLimits(bytes_min=300, grace_s=0.2, nodes_per_turn=10))
    shape = replace(plan.shape, ranks=7, topology="kary:2", command=(), checkpoint="", retention=6, kvs=limits)
    quiet = replace(
        plan,
        shape=shape,
        faults=Faults(pauses=2.0),
        clients=1,
        fences=0,
        abandoned_fences=0,
        rounds=0,
        reference_steps=300,
    )
    return [problem for problem in Run(quiet).report().violations if problem.startswith("reference: ")]


def test_a_leased_version_is_kept() -> None:
    assert [leasing(seed) for seed in range(KEPT)] == [[]] * KEPT


def a_leased_version_is_dropped(patch: Patch) -> None:
    at = mvcc_namespace.Namespace.at

    def forgotten(self: mvcc_namespace.Namespace, version: int) -> RootInfo:
        if version < self.oldest:
            raise SnapshotCollected("as if it were not leased")
        return at(self, version)

    patch(mvcc_namespace.Namespace, "at", forgotten)


def what_only_a_lease_reaches_is_collected(patch: Patch) -> None:
    patch(mvcc_namespace.Namespace, "leased_roots", lambda self: iter(()))


@pytest.mark.parametrize("break_it", [a_leased_version_is_dropped, what_only_a_lease_reaches_is_collected])
def test_broken_lease(break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    found = [problem for seed in range(KEPT) for problem in leasing(seed)]
    assert any("is kept, and cannot be leased" in problem or "asked at" in problem for problem in found), found
