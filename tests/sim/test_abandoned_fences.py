"""Fences that a member leaves: over some seeds both outcomes happen, so the rules for both are tested."""

from __future__ import annotations

from collections import Counter

from fluxmpi.errors import FenceBroken
from fluxmpi.message import OK
from fluxmpi.simulator.plan import ABANDONED, plan_of
from fluxmpi.simulator.run import Run


def test_some_break_and_some_are_complete_before_that() -> None:
    outcomes: Counter[int] = Counter()
    for seed in range(60):
        plan = plan_of(seed)
        if not plan.abandoned_fences or plan.faults.kills or plan.faults.stop_at is not None:
            continue
        run = Run(plan)
        assert run.report().ok
        for call in run.transcript.of("kvs.fence"):
            if call.body.name.startswith(ABANDONED):
                outcomes.update({answer.status for answer in call.answers})
    assert outcomes[FenceBroken.code] > 10, outcomes
    assert outcomes[OK] > 10, outcomes
