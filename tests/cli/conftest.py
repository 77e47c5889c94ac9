"""One instance of three brokers for all tests of the commands. Each test uses its own keys."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from instance import Instance


@pytest.fixture(scope="session")
def instance() -> Iterator[Instance]:
    with Instance(3) as running:
        yield running


def pending(instance: Instance) -> dict[str, float]:
    """Return the counters of pending state on all brokers that are not 0: ``service.name on rank N`` → count."""
    found: dict[str, float] = {}
    names = {
        "kvs": ("suspended", "parked", "asked", "adding", "fences", "searches", "watchers", "watch_pending"),
        "leader": ("fences", "queued"),
        "departures": ("missing",),
        "roots": ("leases", "searches"),
        "content": ("pending",),
        "value": ("pending", "loading"),
        "event": ("subscriptions",),
        "exec": ("running",),
    }
    with instance.connect(0) as h:
        for rank in range(instance.size):
            statistics = h.rpc("stats.get", target=rank)
            for service, counts in names.items():
                for name in counts:
                    count = statistics.get(service, {}).get(name, 0)
                    if count:
                        found[f"{service}.{name} on rank {rank}"] = count
    return found


@pytest.fixture
def nothing_left(instance: Instance) -> Iterator[None]:
    """Check before and after the test that no broker has pending state."""
    assert pending(instance) == {}
    yield
    deadline = time.monotonic() + 10
    while (left := pending(instance)) and time.monotonic() < deadline:
        pass
    assert left == {}
