"""Whole instances beyond their limits: these are so small that every run exceeds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.mvcc.limits import MvccLimits
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.simulator.plan import Faults, plan_of
from fluxmpi.simulator.run import run

SEEDS = range(20)


def violations(faults: Faults | None = None, kvs: Mapping[str, Any] | None = None, **shape: Any) -> list[str]:
    """``kvs``: the limits, by field of ``KvsLimits``."""
    found = []
    for seed in SEEDS:
        plan = plan_of(seed, steps=100)
        plan = replace(plan, faults=faults) if faults is not None else plan
        shape["kvs"] = msgspec.structs.replace(plan.shape.kvs, **(kvs or {}))
        found += run(replace(plan, shape=replace(plan.shape, **shape))).violations
    return found


def test_setroots_that_name_no_keys() -> None:
    """Then every watcher is evaluated."""
    assert violations(kvs={"leader": LeaderLimits(setroot_keys_max=1)}) == []


def test_setroots_without_nodes() -> None:
    """Then every broker faults them in."""
    assert violations(kvs={"leader": LeaderLimits(setroot_nodes_bytes_max=0)}) == []


def test_short_histories() -> None:
    """Then old versions are unknown at brokers, and reads at them end with an error or ask rank 0."""
    limits = ReplicaLimits(history_max=10)
    assert violations(Faults(pauses=1.0), {"replica": limits}, retention=20) == []


def test_values_of_many_blobs() -> None:
    """Long values are cut, and appends begin new blobs."""
    assert violations(kvs={"leader": LeaderLimits(blob_bytes_max=100, append_blob_bytes=60)}) == []


def test_versions_that_are_made_over_many_turns() -> None:
    """Commits, restores and reads are handled between any two slices of a large transaction.

    The same holds for the check of a directory, also of one that a namespace starts with.
    """
    limits = {
        "leader": LeaderLimits(turn_steps=1, large_ops=2, slice_ops=1, slice_nodes=1, batch_steps_max=4),
        "fence": FenceLimits(message_ops=1),
        "mvcc": MvccLimits(creation_steps_per_turn=1),
    }
    assert violations(kvs=limits, piece_ops=1) == []


SMALL_TURNS = WatchLimits(
    at_once_max=0,
    hand_max=1,
    match_steps=1,
    chore_steps=1,
    chore_evaluations=1,
    turn_evaluations=3,
    first_evaluations=2,
)
"""Watchers are matched, handed versions and removed one by one."""


def test_watchers_that_are_notified_over_many_turns() -> None:
    """Versions, ends and new watches arrive between any two watchers that are notified of one version."""
    assert violations(kvs={"watch": SMALL_TURNS}) == []


@pytest.mark.parametrize("keys", [1, 1000])
def test_more_versions_than_may_wait_for_their_watchers(keys: int) -> None:
    """Then the watchers take them from the log, and still miss none."""
    limits = {
        "watch": msgspec.structs.replace(SMALL_TURNS, versions_max=2),
        "leader": LeaderLimits(setroot_keys_max=keys),
    }
    assert violations(kvs=limits) == []


def test_pages_of_one_version_and_parts_of_one_change() -> None:
    """Watchers catch up version by version, and are sent change by change, with little credit."""
    limits = msgspec.structs.replace(
        SMALL_TURNS, page_versions=1, slice_changes=1, slice_steps=1, credit_bytes_max=2_000
    )
    assert violations(kvs={"watch": limits}) == []
