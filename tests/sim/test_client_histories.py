"""Simulated histories, judged without the leader's log, as histories of real processes are.

Without the reference client, which creates and removes namespaces and judges its answers itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.simulator.checkers import linearizability, sessions
from fluxmpi.simulator.checkers.judge import judge
from fluxmpi.simulator.checkers.linearizability import fresh_reads
from fluxmpi.simulator.plan import Plan, plan_of
from fluxmpi.simulator.run import Run
from fluxmpi.simulator.workload.operations import operations

CHUNK = 20
CHUNKS = 6
ALL_MIXES = 10
"""Seeds per chunk of histories of which only versions and sessions can be judged."""


def plan_for(seed: int) -> Plan:
    """Return a plan with fresh reads, hot keys and no links; faults are the seed's.

    In each fifth, rank 0 is killed, so that open requests have no answer.
    """
    plan = plan_of(seed, steps=150, kill=0 if seed % 5 == 0 else None)
    return replace(plan, mix="fresh", namespaces=("primary",), reference_steps=0, past_steps=0)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_histories_of_fresh_readers(chunk: int) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        done = Run(plan_for(seed))
        done.report()
        found = operations(done.transcript)
        problems = judge(found)
        assert problems == [], f"seed {seed}:\n" + "\n".join(problems)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_histories_of_all_mixes(chunk: int) -> None:
    """With links, restored checkpoints and copies, keys cannot be judged; versions and sessions can."""
    for seed in range(chunk * ALL_MIXES, (chunk + 1) * ALL_MIXES):
        done = Run(replace(plan_of(seed), reference_steps=0, past_steps=0))
        done.report()
        found = operations(done.transcript)
        restored = bool(done.transcript.of("checkpoint.restore"))
        problems = sessions.violations(found)
        problems += linearizability.versions(found, initial={"work": 7}, gaps=["primary", "work"] if restored else [])
        assert problems == [], f"seed {seed}:\n" + "\n".join(problems)


def test_there_is_something_to_judge() -> None:
    numbers = dict.fromkeys(("commits", "open", "fresh", "watched", "absent", "sums", "swaps"), 0)
    for seed in range(20):
        done = Run(plan_for(seed))
        done.report()
        found = operations(done.transcript)
        numbers["commits"] += sum(one.kind == "commit" and one.answered for one in found)
        numbers["open"] += sum(one.kind == "commit" and one.pending for one in found)
        steps = [step.what for one in found if one.answered for step in one.steps]
        numbers["sums"] += steps.count("add")
        numbers["swaps"] += steps.count("swap")
        numbers["watched"] += sum(one.kind == "watch" for one in found)
        fresh = fresh_reads(found)
        numbers["fresh"] += len(fresh)
        numbers["absent"] += sum(one.results == [None] for one in fresh)
    assert min(numbers["commits"], numbers["fresh"]) > 100, numbers
    assert min(numbers["sums"], numbers["swaps"]) > 50, numbers
    assert min(numbers["open"], numbers["absent"]) > 10, numbers
    assert numbers["watched"] > 40, numbers
