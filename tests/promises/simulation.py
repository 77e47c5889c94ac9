"""Runs of the simulator for one promise: what the clients saw, in the common form, from plans that reach what it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.plan import Faults, Plan, plan_of
from fluxmpi.simulator.run import Run
from fluxmpi.simulator.workload.operations import operations

SEEDS = 25
"""Tried at most until a broken rule is noticed: most are with the first."""

KEPT = 6
"""Seeds that must keep the rule while nothing is broken."""

Judge = Callable[[list[Operation]], list[str]]
Patch = Callable[[Any, str, object], None]
Break = Callable[[Patch], None]


def plan_for(seed: int, *, resends: float = 0.2, fences: int = 0, mix: str = "fresh", retention: int = 10_000) -> Plan:
    """Seven brokers in three levels, pauses, five clients; nobody dies."""
    plan = plan_of(seed, steps=200)
    shape = replace(
        plan.shape, ranks=7, topology="kary:2", algorithm="sha256", command=(), checkpoint="", cache_bytes_max=64 << 20,
        nodes_max=16384, retention=retention,
    )  # fmt: skip
    faults = Faults(pauses=2.0, slows=1.0, resends=resends)
    return replace(
        plan, shape=shape, faults=faults, mix=mix, clients=5, fences=fences, rounds=0, namespaces=("primary",), reference_steps=0
    )  # fmt: skip


def saw(seed: int, **wanted: Any) -> list[Operation]:
    """Return what the clients asked and were answered. A run that ends with a failed assertion has a history until then."""
    run = Run(plan_for(seed, **wanted))
    report = run.report()
    for violation in report.violations:
        # The replay of the leader's log needs the blobs of all versions, collected or not; the history is complete by then.
        mine = "AssertionError" in violation or "checkers/from_wire.py" in violation
        assert mine or not violation.startswith("broken: "), f"a break that breaks too much: {violation}"
    return operations(run.transcript)


def kept(judge: Judge, **wanted: Any) -> Iterator[list[Operation]]:
    """The histories of all KEPT seeds, each without a complaint."""
    for seed in range(KEPT):
        history = saw(seed, **wanted)
        problems = judge(history)
        assert problems == [], f"seed {seed}:\n" + "\n".join(problems)
        yield history


def noticed(judge: Judge, beginning: str, **wanted: Any) -> None:
    """One of the first SEEDS seeds complains with a text that begins so."""
    others: dict[str, int] = {}
    for seed in range(SEEDS):
        for problem in judge(saw(seed, **wanted)):
            if problem.startswith(beginning):
                return
            others[problem[:80]] = seed
    raise AssertionError(f"{SEEDS} seeds did not notice it; what they noticed: {others}")
