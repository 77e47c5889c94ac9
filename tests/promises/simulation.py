"""Simulated histories for one promise, from plans that exercise it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.plan import Faults, Plan, plan_of
from fluxmpi.simulator.run import Run
from fluxmpi.simulator.workload.operations import operations

SEEDS = 25
"""Tried at most until a broken rule is noticed. Most need one."""

KEPT = 6
"""Seeds that must have no violation while nothing is broken."""

Judge = Callable[[list[Operation]], list[str]]
Patch = Callable[[Any, str, object], None]
Break = Callable[[Patch], None]


def plan_for(seed: int, *, resends: float = 0.2, fences: int = 0, mix: str = "fresh", retention: int = 10_000) -> Plan:
    """Return a plan of seven brokers in three levels, with pauses and five clients; no kills."""
    plan = plan_of(seed, steps=200)
    shape = replace(
        plan.shape, ranks=7, topology="kary:2", algorithm="sha256", command=(), checkpoint="", cache_bytes_max=64 << 20,
        nodes_max=16384, retention=retention,
    )  # fmt: skip
    faults = Faults(pauses=2.0, slows=1.0, resends=resends)
    return replace(
        plan, shape=shape, faults=faults, mix=mix, clients=5, fences=fences, rounds=0, namespaces=("primary",), reference_steps=0,
        past_steps=0,
    )  # fmt: skip


def history_of(seed: int, **wanted: Any) -> list[Operation]:
    """Return what the clients asked and were answered. A run that ends with a failed assertion has a history until then."""
    run = Run(plan_for(seed, **wanted))
    report = run.report()
    for violation in report.violations:
        # The replay of the leader's log needs the blobs of all versions, collected or not; the history is complete by
        # then.
        expected = "AssertionError" in violation or "checkers/from_wire.py" in violation
        assert expected or not violation.startswith("broken: "), f"a break that breaks too much: {violation}"
    return operations(run.transcript)


def kept(judge: Judge, **wanted: Any) -> Iterator[list[Operation]]:
    """Yield the histories of all KEPT seeds; assert that each has no violation."""
    for seed in range(KEPT):
        history = history_of(seed, **wanted)
        problems = judge(history)
        assert problems == [], f"seed {seed}:\n" + "\n".join(problems)
        yield history


def noticed(judge: Judge, beginning: str, **wanted: Any) -> None:
    """Assert that one of the first SEEDS seeds has a violation that begins so."""
    others: dict[str, int] = {}
    for seed in range(SEEDS):
        for problem in judge(history_of(seed, **wanted)):
            if problem.startswith(beginning):
                return
            others[problem[:80]] = seed
    raise AssertionError(f"{SEEDS} seeds did not notice it; what they noticed: {others}")
