"""A few large instances: many brokers, deep and wide trees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.simulator.plan import Faults, plan_of
from fluxmpi.simulator.run import run


@pytest.mark.parametrize(
    ("seed", "ranks", "topology", "steps", "cache"),
    [(1, 64, "kary:2", 600, 2_000), (2, 64, "binomial", 600, 64 << 20), (3, 256, "kary:2", 300, 64 << 20)],
)
def test_many_brokers(seed: int, ranks: int, topology: str, steps: int, cache: int) -> None:
    plan = plan_of(seed, ranks, steps)
    shape = replace(plan.shape, topology=topology, cache_bytes_max=cache, nodes_max=4096, checkpoint="", command=())
    report = run(replace(plan, shape=shape, faults=Faults(pauses=3.0, resends=0.2), mix="everything"))
    assert report.violations == []
    assert report.numbers["versions"] > 50


def test_an_inner_broker_of_many_is_killed() -> None:
    plan = plan_of(4, 64, 300)
    shape = replace(plan.shape, topology="kary:2", command=(), checkpoint="")
    report = run(replace(plan, shape=shape, faults=Faults(kills=((2, 0.02),))))
    assert report.violations == []


def test_a_thousand_brokers() -> None:
    plan = plan_of(5, 1000, 60)
    shape = replace(plan.shape, topology="kary:4", command=(), checkpoint="", cache_bytes_max=64 << 20, nodes_max=4096)
    report = run(replace(plan, shape=shape, faults=Faults(), mix="hot", clients=8))
    assert report.violations == []
    assert report.numbers["versions"] > 10
