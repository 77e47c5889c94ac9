"""The pure half of the producer/consumer example: above all, that its consumers would notice a fault."""

from __future__ import annotations

from collections import Counter

import pytest

from fluxmpi.examples import swf
from fluxmpi.examples.usage import COMPLETE, RUNNING, SUBMITTED, JobStateChange, Observer, binned, drawing, replay

A = swf.Job(1, 0, -1, 10, 4, 7)
B = swf.Job(2, 5, -1, 0, 8, 7)
C = swf.Job(3, 10, -1, 2, 1, 7)
EVENTS = list(replay([A, B, C]))


def observe(events: list[tuple[JobStateChange, int]], observer: Observer, first_version: int = 1) -> Observer:
    """Show the events, each with the processors that its snapshot counts; a version each."""
    for version, (event, in_use) in enumerate(events, first_version):
        observer.see(version, event.job.id, event.state, event.time, event.job.processors, in_use)
    return observer


def counted(events: list[JobStateChange]) -> list[tuple[JobStateChange, int]]:
    """The events with the right count, whatever the order."""
    running: Counter[int] = Counter()
    found = []
    for event in events:
        running[event.job.id] += {RUNNING: event.job.processors, COMPLETE: -event.job.processors}.get(event.state, 0)
        found.append((event, running.total()))
    return found


def test_replay_is_in_order_of_time_and_frees_before_it_takes() -> None:
    assert [(event.job.id, event.state, event.time) for event in EVENTS] == [
        (1, SUBMITTED, 0),
        (1, RUNNING, 0),
        (2, SUBMITTED, 5),
        (2, RUNNING, 5),
        (2, COMPLETE, 5),
        (1, COMPLETE, 10),
        (3, SUBMITTED, 10),
        (3, RUNNING, 10),
        (3, COMPLETE, 12),
    ]


def test_replay_of_the_shipped_log() -> None:
    events = list(replay(swf.shipped(2000)[1]))
    assert len(events) == 6000
    assert [event.time for event in events] == sorted(event.time for event in events)
    states: dict[int, list[str]] = {}
    for event in events:
        states.setdefault(event.job.id, []).append(event.state)
    assert all(found == [SUBMITTED, RUNNING, COMPLETE] for found in states.values())


def test_an_observer_that_sees_all_has_no_fault() -> None:
    observer = observe(counted(EVENTS), Observer(EVENTS))
    observer.close(len(EVENTS))
    assert observer.faults == 0
    assert observer.steps == [(0, 4), (5, 12), (5, 4), (10, 0), (10, 1), (12, 0)]
    assert "saw 9 of 9 events: 0 missed, 0 twice, 0 out of order; 0 snapshots that disagree" in observer.summary()


def faults(events: list[tuple[JobStateChange, int]]) -> tuple[int, int, int, int]:
    observer = observe(events, Observer(EVENTS))
    observer.close(len(EVENTS))
    return observer.missed, observer.twice, observer.disordered, observer.wrong


@pytest.mark.parametrize("place", range(len(EVENTS)))
def test_a_missed_event_is_noticed(place: int) -> None:
    all_events = counted(EVENTS)
    missed, twice, disordered, _ = faults(all_events[:place] + all_events[place + 1 :])
    assert (missed, twice, disordered) == (1, 0, 0)


def test_an_event_that_comes_twice_is_noticed() -> None:
    all_events = counted(EVENTS)
    assert faults([*all_events[:3], all_events[2], *all_events[3:]]) == (0, 1, 0, 0)


def test_events_out_of_order_are_noticed() -> None:
    events = counted(EVENTS)
    events[2], events[3] = events[3], events[2]
    missed, twice, disordered, _ = faults(events)
    assert (missed, twice, disordered) == (0, 0, 1)


def test_versions_that_go_back_are_noticed() -> None:
    observer = observe(counted(EVENTS)[:4], Observer(EVENTS))
    observe(counted(EVENTS)[4:], observer, first_version=4)
    assert observer.disordered == 1


def test_a_snapshot_of_another_version_is_noticed() -> None:
    events = counted(EVENTS)
    events[1] = (events[1][0], events[3][1])  # read after job 2 had started: the past is gone
    assert faults(events) == (0, 0, 0, 1)


def test_an_event_that_is_not_in_the_log_is_noticed() -> None:
    observer = observe(
        [*counted(EVENTS), (JobStateChange(swf.Job(9, 0, 0, 0, 0, 0), SUBMITTED, 12), 0)], Observer(EVENTS)
    )
    observer.close(len(EVENTS) + 1)
    assert observer.faults > 0


def test_a_producer_that_claims_more_is_noticed() -> None:
    observer = observe(counted(EVENTS), Observer(EVENTS))
    observer.close(len(EVENTS) + 2)
    assert observer.missed == 2


def test_bins_hold_the_mean() -> None:
    assert binned([(0, 4), (10, 0), (20, 8), (40, 0)], 4) == [4, 0, 8, 8]
    assert binned([(0, 4), (10, 0), (20, 8), (40, 0)], 2) == [2, 8]
    assert binned([(3, 4), (3, 0)], 2) == [0, 0]


def test_a_drawing_has_a_bar_for_each_level() -> None:
    assert drawing([0, 1, 2, 3, 4, 9], top=4, rows=2, blocks=" -#") == [
        "   -##",
        " -####",
    ]
