"""``h.eventlog``: a watch returns each event once, in order, and fails when the log becomes invalid."""

from __future__ import annotations

import pytest
from instance import Instance

from fluxmpi import errors
from fluxmpi.client.eventlog import LogEvent


def test_events_of_many_writers_are_returned_once_and_in_order(instance: Instance) -> None:
    handles = [instance.connect(rank) for rank in range(3)]
    with instance.connect(2) as h, h.eventlog.watch("el.many", wait=True) as watch:
        for number in range(60):
            handles[number % 3].eventlog.append("el.many", "step", {"number": number}, timestamp=number + 1)
        got = [watch.get(60) for _ in range(60)]
        assert [event.context["number"] for event in got if event and event.context] == list(range(60))
        assert got == h.eventlog.get("el.many")
    for handle in handles:
        handle.close()


def test_long_logs(instance: Instance) -> None:
    """A log longer than one blob: only the new events are loaded, and line numbers continue."""
    with instance.connect(1) as h, h.eventlog.watch("el.long", wait=True) as watch:
        for number in range(100):
            h.eventlog.append("el.long", "x" * 500, timestamp=number + 1)
            event = watch.get(60)
            assert event is not None
            assert event.timestamp == number + 1
        with h.kvs.txn() as txn:
            txn.append("el.long", "nonsense\n")
        with pytest.raises(errors.InvalidValue, match="line 101: 'nonsense' is not JSON"):
            watch.get(60)


def test_a_watch_of_an_overwritten_or_removed_log_fails(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.eventlog.append("el.over", "a")
        with h.eventlog.watch("el.over") as watch:
            assert watch.get(60) is not None
            h.kvs.put("el.over", LogEvent(5.0, "other").encode().encode() + b"\n")
            with pytest.raises(errors.InvalidValue, match="was overwritten"):
                watch.get(60)
        h.eventlog.append("el.gone", "a")
        with h.eventlog.watch("el.gone") as watch:
            assert watch.get(60) is not None
            h.kvs.unlink("el.gone")
            with pytest.raises(errors.NoSuchKey, match="was removed in version"):
                watch.get(60)


def test_invalid_events(instance: Instance) -> None:
    with instance.connect(1) as h:
        for name, context, timestamp in [
            ("", None, None),
            ("a", None, 0.0),
            ("a", None, -1.0),
            ("a", None, float("nan")),
            ("a", {"x": float("inf")}, None),
            ("a", {"x": object()}, None),
        ]:
            with pytest.raises(errors.InvalidRequest):
                h.eventlog.append("el.bad", name, context, timestamp=timestamp)
        assert not h.kvs.exists("el.bad")
        with pytest.raises(errors.NoSuchKey, match="does not exist yet"):
            h.eventlog.wait_event("el.bad", "a", timeout=60)
        with pytest.raises(errors.RequestTimeout, match=r"no event 'a' in the eventlog 'el.bad' within 0.1 s"):
            h.eventlog.wait_event("el.bad", "a", wait=True, timeout=0.1)


def test_matching(instance: Instance) -> None:
    event = LogEvent(1.0, "finish", {"status": 0, "who": "x"})
    assert event.matches("finish")
    assert event.matches("finish", {"status": 0})
    assert not event.matches("finish", {"status": 1})
    assert not event.matches("finish", {"where": None})
    assert LogEvent.parse(event.encode()) == event
