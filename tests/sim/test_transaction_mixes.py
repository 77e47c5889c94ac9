"""Guards, atomic operations, combined additions and events under every weather: what is told of them is what the model says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxmpi.sim.plan import plan_of
from fluxmpi.sim.run import run


@pytest.mark.parametrize("mix", ["everything", "hot", "links", "directories"])
def test_transactions_keep_every_rule(mix: str) -> None:
    for seed in range(15):
        judge(mix, seed)


@pytest.mark.parametrize(
    ("mix", "seed"),
    [
        ("everything", 374),  # who waited for a version of a namespace that was made again was told that it was removed
        ("hot", 832),  # a fence broke since a dead broker was silent about a member that was behind it
        ("links", 288),  # a key written again, of several versions that a watch of the newest takes together
        ("links", 916),  # a blob's time of grace runs from when it is stored, not from when that is told
    ],
)
def test_what_seeds_have_found(mix: str, seed: int) -> None:
    judge(mix, seed)


def judge(mix: str, seed: int) -> None:
    assert run(replace(plan_of(seed, steps=100), mix=mix, transactions=True)).violations == [], (mix, seed)
