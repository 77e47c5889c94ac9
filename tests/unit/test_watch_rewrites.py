"""``uniq=False``: a write of the value that a key has is notified, if the version is new and its keys are known."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, ask, body, error, put
from test_watch_service import updates, weight
from world import World, val, watch_limits

from fluxmpi import errors
from fluxmpi.kvs.objects import Link
from fluxmpi.kvs.wire import KeyChange, Notification, Put, Setroot, Unlink, WatchAck, WatchRequest
from fluxmpi.message import MORE, REQUEST, RESPONSE

AGAIN = [KeyChange("a", val(1), True, val(1), [])]


@pytest.fixture
def world():
    made = World()
    made.commit(put("a", 1))
    return made


def notes(out):
    return [(note.version, note.changes) for note in updates(out)]


def commit_many(world, op):
    """Notifications of a version of more keys than a setroot names."""
    made = world.make(*(put(f"other.k{n}", n) for n in range(1100)), op)
    assert body(made, Setroot).keys is None
    out = world.setroot(made)
    sent = [msg for msg in out if msg.kind == RESPONSE]
    return sent + world.feed([msg for msg in out if msg.kind == REQUEST])[1]


def test_each_version_that_writes_the_key_is_notified_and_counted(world):
    world.watch("a", uniq=False, count=3)
    world.watch("a", tag=2)
    assert world.commit(put("b", 1)) == []
    assert notes(world.commit(put("a", 1))) == [(3, AGAIN)]
    note, end = world.commit(put("a", 0), put("a", 1))
    assert notes([note]) == [(4, AGAIN)]
    assert end.status != MORE, "three with the first notification"
    assert world.commit(Unlink("nothing")) == []


def test_a_version_of_very_many_keys_is_notified_if_the_value_differs(world):
    world.watch("a", uniq=False)
    assert commit_many(world, put("a", 1)) == []
    assert notes(commit_many(world, put("a", 2))) == [(3, [KeyChange("a", val(2), True, val(1))])]
    assert notes(world.commit(put("a", 2))) == [(4, [KeyChange("a", val(2), True, val(2), [])])]


def test_a_version_from_the_log_is_notified_if_the_value_differs(world):
    for value in (1, 2, 2, 3):
        world.commit(put("a", value))
    out = world.watch("a", uniq=False, after=1)
    assert [(version, [change.object for change in changes]) for version, changes in notes(out)] == [
        (1, []),
        (3, [val(2)]),
        (5, [val(3)]),
    ]
    assert notes(world.commit(put("a", 3))) == [(6, [KeyChange("a", val(3), True, val(3), [])])], (
        "once it is synced, every write"
    )


def test_mode_latest_notifies_once_of_writes_made_while_there_was_no_credit(world):
    (first,) = world.watch("a", uniq=False, latest=True, window=1)
    for _ in range(3):
        assert world.commit(put("a", 1)) == []
    assert world.commit(put("b", 1)) == []
    assert notes(world.step("kvs.watch-ack", WatchAck(1, weight([first])), tag=9)) == [
        (4, [KeyChange("a", val(1), True, val(1))])
    ], "which writes were appends is not known any more"


def test_a_write_before_the_first_evaluation_is_notified():
    world = World(limits=watch_limits(turn_evaluations=1))
    world.commit(put("a", 1))
    world.watch("b", tag=2)
    assert world.watch("a", uniq=False) == [], "the turn is over"
    assert world.commit(put("a", 1)) == []
    assert notes(world.kvs.tick(NOW)) == [(1, [KeyChange("a", val(1), False)])]
    assert notes(world.kvs.tick(NOW)) == [(2, AGAIN)]


def test_through_a_link_writes_of_its_target_are_notified(world):
    world.commit(Put("l", Link("a")))
    world.watch("l", uniq=False)
    world.watch("l", uniq=False, follow=False, tag=2)
    (msg,) = world.commit(put("a", 1))
    assert (msg.tag, body(msg, Notification).changes) == (1, [KeyChange("l", val(1), True, val(1), [])])
    (msg,) = world.commit(Put("l", Link("a")))
    assert (msg.tag, body(msg, Notification).changes) == (2, [KeyChange("l", Link("a"), True, Link("a"), [])])


@pytest.mark.parametrize("kind", [{"recursive": True}, {"glob": True}])
def test_a_directory_or_pattern_is_refused(world, kind):
    (answer,) = world.kvs.step(ask("kvs.watch", WatchRequest("a", uniq=False, **kind), hop=CLIENT), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert "are reported for one key only" in error(answer).text
