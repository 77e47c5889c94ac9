"""One seed gives one trace: repeated in one process, and in others with other hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fluxmpi.simulator.plan import plan_of
from fluxmpi.simulator.run import run

ROOT = Path(__file__).parents[2]
SEEDS = (3, 12, 40, 67, 82)

SCRIPT = f"""
from fluxmpi.simulator.plan import plan_of
from fluxmpi.simulator.run import run
print(*[run(plan_of(seed)).digest for seed in {SEEDS}])
"""


def digests(hash_seed: str) -> list[str]:
    env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    here = [run(plan_of(seed)).digest for seed in SEEDS]
    assert here == [run(plan_of(seed)).digest for seed in SEEDS]
    assert digests("1") == digests("2") == here


def test_other_seeds_give_other_traces() -> None:
    assert len({run(plan_of(seed)).digest for seed in range(20)}) == 20
