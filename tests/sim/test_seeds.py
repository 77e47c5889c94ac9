"""Over a thousand seeds, each a small instance: 1 to 16 brokers, tiny caches, slow links, pauses, kills in some.

A failure names the broken rule and the command that reproduces it.
"""

from __future__ import annotations

import pytest

from fluxmpi.simulator.plan import plan_of
from fluxmpi.simulator.run import run

CHUNK = 40
CHUNKS = 30


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_seeds_have_no_violations(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        report = run(plan_of(seed))
        assert report.ok, "\n".join([*report.violations, f"again: python -m fluxmpi.simulator --seed {seed}"])


def test_the_seeds_cover_what_they_are_for() -> None:
    """Runs in which nothing happens would pass as well."""
    numbers: dict[str, float] = {}
    plans = [plan_of(seed) for seed in range(CHUNKS * CHUNK)]
    for plan in plans[:60]:
        for name, value in run(plan).numbers.items():
            numbers[name] = numbers.get(name, 0) + value
    for name, least in {
        "calls": 3000,
        "versions": 1000,
        "commits": 1500,
        "refused": 50,
        "resent": 300,
        "notifications": 1000,
        "events": 100,
        "loads": 2000,
        "old_setroots": 30,
    }.items():
        assert numbers[name] >= least, f"{name}: {numbers[name]}"
    assert {plan.shape.ranks for plan in plans} >= {1, 2, 7, 16}
    assert {plan.shape.topology for plan in plans} >= {"kary:2", "binomial", "flat"}
    assert sum(bool(plan.faults.kills) for plan in plans) > 50
    assert sum(plan.faults.pauses > 0 for plan in plans) > 500
    assert sum(plan.shape.cache_bytes_max < 1000 for plan in plans) > 300
