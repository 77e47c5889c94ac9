"""The examples of docs/patterns.md: the wrong patterns fail every time, the right ones never."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from instance import COMMAND_S, Instance, environment

from fluxmpi import Handle
from fluxmpi.examples.patterns import notify_control, notify_read, watch_chaining

RANKS = [(0, 0), (0, 2), (2, 0), (1, 2)]


@pytest.fixture(params=RANKS, ids=[f"consumer on {a}, producer on {b}" for a, b in RANKS])
def sides(instance: Instance, request: pytest.FixtureRequest) -> Iterator[tuple[Handle, Handle, str]]:
    consumer, producer = request.param
    with instance.connect(consumer) as first, instance.connect(producer) as second:
        yield first, second, f"pattern.{consumer}-{producer}"


def test_watch_chaining(sides: tuple[Handle, Handle, str]) -> None:
    consumer, producer, name = sides
    assert watch_chaining.wrong(consumer, producer, f"{name}.wrong") == ["DONE"], "the other states are missed"
    assert watch_chaining.right_after(consumer, producer, f"{name}.after") == watch_chaining.STATES
    assert watch_chaining.right_pattern(consumer, producer, f"{name}.pattern") == watch_chaining.STATES


def test_notify_read(sides: tuple[Handle, Handle, str]) -> None:
    consumer, producer, name = sides
    assert notify_read.wrong(consumer, producer, f"{name}.wrong") == {"step": 1, "energy": 3.0, "file": "dump.2"}, (
        "values of two versions"
    )
    assert notify_read.right(consumer, producer, f"{name}.right") == {"step": 1, "energy": 1.5, "file": "dump.1"}


def test_notify_control(sides: tuple[Handle, Handle, str]) -> None:
    consumer, producer, name = sides
    assert notify_control.wrong(consumer, producer, f"{name}.control-wrong") == ("READY", "RUN"), (
        "the reply is too late, and this is not reported"
    )
    assert notify_control.right(consumer, producer, f"{name}.control") == ["READY", "READY", "RUN"]
    assert not notify_control.too_late(consumer, producer, f"{name}.late")


@pytest.mark.parametrize("module", ["watch_chaining", "notify_read", "notify_control"])
def test_each_example_runs_alone(instance: Instance, module: str) -> None:
    words = [sys.executable, "-m", f"fluxmpi.examples.patterns.{module}"]
    done = subprocess.run(words, env=environment(instance.uri), capture_output=True, text=True, timeout=COMMAND_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wrong: ")
