"""A subscriber of a real broker that does not read: its events use bounded memory, and end with the last number."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_broker import running_broker

from fluxmpi import errors
from fluxmpi.client.event import Subscription
from fluxmpi.client.limits import HandleLimits
from fluxmpi.drivers.clients import ClientLimits

PAYLOAD = bytes(100_000)


def read_all(subscription: Subscription) -> list[int]:
    """Return the numbers of all events up to the end."""
    found: list[int] = []
    with pytest.raises(errors.Overloaded) as raised:
        found += (event.seq for event in subscription)
    assert f"is number {found[-1]}" in raised.value.text
    assert subscription.seq == found[-1]
    return found


def test_the_subscriptions_of_a_client_that_does_not_read_end(tmp_path: Path) -> None:
    limits = ClientLimits(event_bytes_max=1_000_000)
    with running_broker(tmp_path, limits) as world, world.connect() as lazy, world.connect() as other:
        mine, all_, theirs = lazy.event.subscribe("run."), lazy.event.subscribe(), other.event.subscribe("run.")
        count = 0
        while other.rpc("stats.get")["event"]["subscriptions"] > 1:
            count += 1
            assert count < 200, "its unread events are not bounded"
            other.event.publish("run.x", PAYLOAD)
            assert theirs.get(20).seq == count
        found = read_all(mine)
        assert found == list(range(1, len(found) + 1))
        assert 10 <= len(found) <= count
        assert read_all(all_) == found
        assert lazy.rpc("stats.get")["clients"]["clients"] == 2, "it is still connected"
        mine.close()
        with lazy.event.subscribe("run.") as again:
            other.event.publish("run.y")
            assert again.get(20).topic == "run.y"
        assert lazy.rpc("stats.get")["event"]["subscriptions"] == 1


def test_unread_events_in_a_client_are_bounded(tmp_path: Path) -> None:
    """The client receives its events while it waits for something else."""
    limits = HandleLimits(event_bytes_max=5 * len(PAYLOAD))
    with running_broker(tmp_path) as world, world.connect(limits) as h:
        few, many = h.event.subscribe("few"), h.event.subscribe("many")
        for _ in range(8):
            h.event.publish("many", PAYLOAD)
        h.event.publish("few", PAYLOAD)
        assert few.get(20).seq == 9
        assert read_all(many) == [1, 2, 3, 4, 5]
        many.close()
        assert h.rpc("stats.get")["event"]["subscriptions"] == 1
