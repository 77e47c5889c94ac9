"""Guards, atomic operations, combined additions and events with all kinds of faults: every answer is the model's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.errors import SnapshotCollected
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.simulator.plan import plan_of
from fluxmpi.simulator.run import Run, run


@pytest.mark.parametrize("mix", ["everything", "hot", "links", "directories"])
def test_transactions_keep_every_rule(mix: str) -> None:
    for seed in range(15):
        judge(mix, seed)


@pytest.mark.parametrize(
    ("mix", "seed"),
    [
        ("everything", 374),  # a wait for a version of a namespace that was created again ended with NoSuchNamespace
        ("hot", 832),  # a fence broke because a dead broker did not answer for its member
        ("links", 288),  # a key written again, in several versions that a latest watch combines
        ("links", 916),  # a blob's grace period begins when it is stored, not when that is answered
    ],
)
def test_what_seeds_have_found(mix: str, seed: int) -> None:
    judge(mix, seed)


def judge(mix: str, seed: int) -> None:
    assert run(replace(plan_of(seed, steps=100), mix=mix, transactions=True)).violations == [], (mix, seed)


# ------------------------------------------------------------------------------------------------- guards on versions


def undecided(seed: int) -> tuple[list[str], int]:
    """Return the violations with few versions kept, and the number of guards on versions that could not be decided."""
    plan = plan_of(seed, steps=100)
    done = Run(replace(plan, mix="everything", transactions=True, shape=replace(plan.shape, retention=3)))
    violations = done.report().violations
    statuses = [answer.status for call in done.transcript.of("kvs.commit") for answer in call.answers]
    return violations, statuses.count(SnapshotCollected.code)


def test_guards_on_versions_are_undecided_exactly_where_the_past_is_not_kept() -> None:
    found = [undecided(seed) for seed in range(20)]
    assert [violations for violations, _ in found if violations] == []
    assert sum(count for _, count in found) > 5


@pytest.mark.parametrize(("later", "exact"), [(0, True), (1, False), (-1, False)])
def test_it_is_noticed_when_they_are_not(later: int, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    last_change = Namespace.last_change

    def wrong(self: Namespace, key: str, nodes: NodeCache) -> tuple[int, bool]:
        version, known = last_change(self, key, nodes)
        return (version, True) if known else (version + later, exact)

    monkeypatch.setattr(Namespace, "last_change", wrong)
    assert any("replay: commit" in violation for seed in range(20) for violation in undecided(seed)[0])
