"""Guards, atomic operations, combined additions and events under every weather: what is told of them is what the model says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.sim.plan import plan_of
from fluxmpi.sim.run import run


@pytest.mark.parametrize("mix", ["everything", "hot", "links", "directories"])
def test_transactions_keep_every_rule(mix: str) -> None:
    """What watchers are told of them is not judged here."""
    for seed in range(15):
        found = run(replace(plan_of(seed, steps=100), mix=mix, transactions=True)).violations
        assert [violation for violation in found if not violation.startswith(("watches:", "keeper:"))] == [], seed
