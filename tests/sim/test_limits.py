"""What happens past a limit, in whole instances: the limits are made so small that every run passes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from fluxmpi.client.kvs import transaction as txn
from fluxmpi.kvs.fence import gathering as fence
from fluxmpi.kvs.leader import batch as version
from fluxmpi.kvs.leader import committer as maker
from fluxmpi.kvs.leader import service as leader
from fluxmpi.kvs.leader import validation as values
from fluxmpi.kvs.mvcc.limits import MvccLimits
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.store import edit as tree
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
        shape["kvs"] = replace(plan.shape.kvs, **(kvs or {}))
        found += run(replace(plan, shape=replace(plan.shape, **shape))).violations
    return found


def test_setroots_that_name_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every watcher is asked."""
    monkeypatch.setattr(maker, "SETROOT_KEYS_MAX", 1)
    assert violations() == []


def test_setroots_without_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every broker faults them in."""
    monkeypatch.setattr(maker, "SETROOT_NODES_BYTES_MAX", 0)
    assert violations() == []


def test_short_histories() -> None:
    """Then old versions are not known any more, and that is told."""
    limits = ReplicaLimits(history_max=10)
    assert violations(Faults(pauses=1.0), {"replica": limits}, retention=20) == []


def test_values_of_many_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long values are cut, and appends begin new blobs."""
    monkeypatch.setattr(values, "BLOB_BYTES_MAX", 100)
    monkeypatch.setattr(values, "APPEND_BLOB_BYTES", 60)
    assert violations() == []


def test_versions_that_are_made_over_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits, restores and reads come between any two slices of a large transaction, and of a look through a directory, also
    of one that a namespace is to begin with.
    """
    for module, limit, value in (
        (leader, "TURN_STEPS", 1),
        (version, "LARGE_OPS", 2),
        (maker, "LARGE_OPS", 2),
        (version, "SLICE_OPS", 1),
        (maker, "SLICE_OPS", 1),
        (values, "SLICE_OPS", 1),
        (tree, "SLICE_NODES", 1),
        (maker, "VERSION_STEPS_MAX", 4),
        (txn, "PIECE_OPS", 1),
        (fence, "OUTLET_OPS", 1),
    ):
        monkeypatch.setattr(module, limit, value)
    assert violations(kvs={"mvcc": MvccLimits(creation_steps_per_turn=1)}) == []


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
    """Versions, ends and new watches come between any two watchers that are notified of one version."""
    assert violations(kvs={"watch": SMALL_TURNS}) == []


@pytest.mark.parametrize("keys", [1, 1000])
def test_more_versions_than_may_wait_for_their_watchers(monkeypatch: pytest.MonkeyPatch, keys: int) -> None:
    """Then the watchers take them from the log, and still miss none."""
    monkeypatch.setattr(maker, "SETROOT_KEYS_MAX", keys)
    assert violations(kvs={"watch": replace(SMALL_TURNS, versions_max=2)}) == []


def test_pages_of_one_version_and_parts_of_one_change() -> None:
    """Watchers catch up version by version, and are sent change by change, with little credit."""
    limits = replace(SMALL_TURNS, page_versions=1, slice_changes=1, slice_steps=1, credit_bytes_max=2_000)
    assert violations(kvs={"watch": limits}) == []
