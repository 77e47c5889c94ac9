"""Shared by the benchmarks: start an instance, connect to its ranks, time, compute statistics.

Rules for a new benchmark: variants that are compared take turns in one run (``alternate``), so that disturbances affect
all of them; record a list of samples, not one number; a benchmark is no test, so it does not fail for being slow.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import fluxmpi  # noqa: E402
from fluxmpi import Future, Handle  # noqa: E402
from fluxmpi.client.channel import Channel  # noqa: E402
from fluxmpi.client.sockets import open_socket  # noqa: E402
from fluxmpi.kvs.replica.root_page import RootPage  # noqa: E402

BROKERS = 8
LEAF = 7
"""With eight brokers as ``kary:2`` rank 7 is three hops below rank 0: 7 → 3 → 1 → 0."""

START_S = 60.0

clock = time.perf_counter
START = [sys.executable, "-m", "fluxmpi.cli.main", "start"]


def environment() -> dict[str, str]:
    """Return the environment of this process, with the project importable."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


class ChannelWithoutRootPage(Channel):
    """A connection whose reads ask the broker for the newest root each time."""

    def root_page(self) -> RootPage | None:
        return None


class Instance:
    """Brokers on this host, in a ``with`` block. ``uri(rank)`` is an address, ``connect(rank)`` returns a handle.

    ``prefix``: words before the command, for example of a program that sets limits.
    """

    def __init__(self, size: int = BROKERS, *options: str, prefix: Sequence[str] = ()) -> None:
        self.size = size
        self._options = options
        self._prefix = prefix
        self._handles = contextlib.ExitStack()

    def __enter__(self) -> Instance:
        command = [*self._prefix, *START, "-n", str(self.size), *self._options, "--"]
        command += ["sh", "-c", 'echo "$FLUXMPI_URI"; exec cat >/dev/null']  # ends when its stdin is closed
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert self._process.stdout is not None
        uri = self._process.stdout.readline().strip()
        if not uri:
            raise RuntimeError(f"the instance did not start: exit status {self._process.wait(START_S)}")
        self.directory = os.path.dirname(uri)
        handle = self.connect(0)
        for rank in range(self.size):  # rank 0 is up, the others may not be yet
            handle.rpc("ping.ping", [0], target=rank, timeout=START_S)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handles.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.status = self._process.wait(START_S)

    def uri(self, rank: int) -> str:
        return f"{self.directory}/broker.{rank}.sock"

    def connect(self, rank: int) -> Handle:
        """Return a new handle; it is closed with the instance."""
        return self._handles.enter_context(fluxmpi.connect(self.uri(rank)))

    def connect_without_root_page(self, rank: int) -> Handle:
        """Return a new handle whose reads ask the broker for the newest root each time."""
        path = self.uri(rank).removeprefix("local://")
        return self._handles.enter_context(Handle(ChannelWithoutRootPage(open_socket(path))))

    def pids(self) -> list[int]:
        """Return the process ids of the brokers, by rank."""
        found = []
        for rank in range(self.size):
            with fluxmpi.connect(self.uri(rank)) as handle:
                found.append(handle.broker_pid)
        return found


# ------------------------------------------------------------------------------------------------------------ timing


def latencies(action: Callable[[int], Any], count: int, pause_s: float = 0.0) -> list[float]:
    """Return the seconds of each of ``count`` calls ``action(i)``, one after another, each after a pause."""
    samples = []
    for index in range(count):
        if pause_s:
            time.sleep(pause_s)
        begin = clock()
        action(index)
        samples.append(clock() - begin)
    return samples


def pipelined(handle: Handle, send: Callable[[int], Future[Any]], count: int, window: int) -> float:
    """Return the requests per second with ``window`` in flight: each response that is taken is followed by a request.

    Within ``handle.batch()``, so that requests made while responses are available are sent together.
    """
    in_flight: deque[Future[Any]] = deque()
    begin = clock()
    with handle.batch():
        for index in range(count):
            if len(in_flight) >= window:
                in_flight.popleft().get()
            in_flight.append(send(index))
        while in_flight:
            in_flight.popleft().get()
    return count / (clock() - begin)


def alternate(rounds: int, variants: dict[str, Callable[[], Iterable[float]]]) -> dict[str, list[float]]:
    """Run the variants in turn for ``rounds`` rounds, each in a random order. Return all samples of each variant."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    chance = random.Random(1)
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            samples[name] += variants[name]()
    return samples


def once(action: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    begin = clock()
    action()
    return clock() - begin


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="fluxmpi-bench-") as path:
        yield Path(path)


# ---------------------------------------------------------------------------------------------------------- statistics


def quantile(samples: Sequence[float], share: float) -> float:
    """Return a quantile, interpolated linearly between samples."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(samples: Sequence[float]) -> float:
    return quantile(samples, 0.5)


# ------------------------------------------------------------------------------------------------------------ processes


def cpu_seconds(pid: int) -> float:
    """Return the processor time of all threads of a process, exact to 1 ns (``/proc/PID/task/*/schedstat``)."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (VmRSS), shared libraries included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
