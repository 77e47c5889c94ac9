"""The producer/consumer example as a user runs it, over real brokers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FLUXMPI = str(Path(sys.executable).parent / "fluxmpi")


@pytest.mark.parametrize(("size", "consumers"), [(1, [0]), (3, [1, 2])])
def test_every_consumer_sees_every_event(size: int, consumers: list[int]) -> None:
    example = [sys.executable, "-m", "fluxmpi.examples.usage", "--jobs", "60", "--seconds", "0.5"]
    command = [FLUXMPI, "start", "-n", str(size), "--", *example]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    said = sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))
    all_is_well = "saw 180 of 180 events: 0 missed, 0 twice, 0 out of order; 0 snapshots that disagree"
    assert said == [f"rank {rank} {all_is_well}" for rank in consumers]
    assert "Processors in use" in done.stdout
