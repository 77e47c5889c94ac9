"""The producer/consumer example, run as a user runs it, on real brokers."""

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
    reports = sorted(line for line in done.stdout.splitlines() if line.startswith("rank "))
    no_errors = "saw 180 of 180 events: 0 missed, 0 twice, 0 out of order; 0 snapshots that disagree"
    assert reports == [f"rank {rank} {no_errors}" for rank in consumers]
    assert "Processors in use" in done.stdout
