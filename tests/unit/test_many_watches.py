"""Many watches at one broker: work for all of them takes many turns, and neither order nor a version is lost."""

from __future__ import annotations

import itertools

import pytest
from machines import CLIENT, NOW, OTHER, ask, body, control_from, error, put
from test_watch_service import foreign, notes
from world import World, val, watch_limits

from fluxmpi import errors
from fluxmpi.kvs.wire import KeyChange, Notification, OldNamespace, WatchProgress, WatchRequest
from fluxmpi.message import MORE, RESPONSE

MANY = 6000


@pytest.fixture
def world():
    return World()


COUNTED = ("evaluated", "matched", "watchers")


def watch_many(world, namespace="primary"):
    """Many watches of one key, of several clients; each was notified once."""
    for n in range(MANY):
        watch = WatchRequest("a", namespace=namespace, wait=True)
        world.kvs.step(ask("kvs.watch", watch, tag=n, hop=CLIENT - n % 3), NOW)
    while world.kvs.deadline <= NOW:
        world.kvs.tick(NOW)
    return world


@pytest.fixture
def crowd(world):
    return watch_many(world)


def counts(world):
    statistics = world.kvs.statistics()
    return {what: statistics[what] for what in COUNTED}


def turns(world, before, out):
    """The messages of each turn, whose work is bounded. ``out``: the first turn's, ``before``: the counts before it."""
    limits = world.limits
    hand = limits.turn_evaluations * limits.evaluation_steps // limits.hand_steps + limits.hand_max
    clear = limits.turn_evaluations * limits.chore_steps // limits.chore_evaluations + limits.chore_steps
    while True:
        after = counts(world)
        assert after["evaluated"] - before["evaluated"] <= limits.turn_evaluations
        assert after["matched"] - before["matched"] <= hand
        assert before["watchers"] - after["watchers"] <= clear
        yield out
        if world.kvs.deadline > NOW:
            break
        before = counts(world)
        out = world.kvs.tick(NOW)
        world.kvs.check()
    assert world.kvs.statistics()["watch_pending"] == 0


def test_a_commit_that_matches_many_watches_of_one_key_is_notified_in_slices(crowd):
    first, second = crowd.make(put("a", 1)), crowd.make(put("a", 2))
    before = counts(crowd)
    out = crowd.kvs.step(first, NOW)
    assert crowd.kvs.statistics()["matched"] - before["matched"] < MANY
    out += crowd.kvs.step(second, NOW)
    slices = [[msg for msg in part if msg.kind == RESPONSE] for part in turns(crowd, before, out)]
    assert len(slices) > 10
    notified = {}
    for msg in itertools.chain(*slices):
        notified.setdefault((msg.route[0], msg.tag), []).append(body(msg, Notification).version)
    assert len(notified) == MANY
    assert all(versions == [1, 2] for versions in notified.values())


def test_a_watch_that_begins_while_others_are_notified_is_notified_once(crowd):
    before = counts(crowd)
    out = crowd.kvs.step(crowd.make(put("a", 1)), NOW)
    assert crowd.kvs.statistics()["watch_pending"]
    out += crowd.watch("a", tag=MANY, hop=OTHER - 9)
    crowd.kvs.disconnect(CLIENT, NOW)
    out = [msg for part in turns(crowd, before, out) for msg in part if msg.kind == RESPONSE]
    (mine,) = [msg for msg in out if msg.tag == MANY]
    assert notes([mine]) == [(1, [KeyChange("a", val(1), False)])]
    assert all(msg.status == MORE for msg in out)


def test_many_watches_of_a_removed_namespace_end_in_slices(world):
    foreign(world, 1, put("a", 1))
    watch_many(world, "ns2")
    world.watch("other", tag=MANY, at_least=1000, wait=True, namespace="ns2")
    before = counts(world)
    out = world.kvs.step(control_from("kvs.removed", OldNamespace("ns2", 1), 0), NOW)
    assert len(out) < MANY
    assert world.kvs.step(ask("kvs.watch-progress", WatchProgress(1), tag=1, hop=CLIENT - 1), NOW) == []
    ends = [msg for part in turns(world, before, out) for msg in part if msg.kind == RESPONSE]
    assert [type(error(msg)) for msg in ends] == [errors.NoSuchNamespace] * MANY
    assert world.kvs.statistics()["watchers"] == 1, "one that waits for the namespace goes on waiting"


def test_the_watches_of_a_disconnected_client_are_removed_in_slices(crowd):
    before = counts(crowd)
    crowd.kvs.disconnect(CLIENT, NOW)
    assert before["watchers"] - crowd.kvs.statistics()["watchers"] < MANY / 3
    assert crowd.kvs.deadline <= NOW
    out = crowd.kvs.step(crowd.make(put("a", 1)), NOW)
    hops = [msg.route[0] for part in turns(crowd, before, out) for msg in part if msg.kind == RESPONSE]
    assert CLIENT not in hops
    assert len(hops) == crowd.kvs.statistics()["watchers"] == MANY * 2 / 3


def test_many_watches_that_wait_for_a_namespace_begin_in_slices(world):
    watch_many(world, "ns2")
    before = counts(world)
    out = foreign(world, 1, put("a", 1))
    assert 0 < len(out) < MANY
    slices = [[msg for msg in part if msg.kind == RESPONSE] for part in turns(world, before, out)]
    assert len(slices) > 10
    assert sum(map(len, slices)) == MANY


def test_more_pending_versions_than_the_limit_are_read_from_the_log():
    crowd = watch_many(World(limits=watch_limits(versions_max=3)))
    before = counts(crowd)
    crowd.watch("a", tag=MANY, latest=True, hop=OTHER - 9)
    out = []
    for n in range(20):
        out += crowd.kvs.step(crowd.make(put("a", n)), NOW)
    assert crowd.kvs.statistics()["watch_pending"] <= 4
    notified = {}
    for part in turns(crowd, before, out):
        for msg in part:
            if msg.kind == RESPONSE:
                notified.setdefault((msg.route[0], msg.tag), []).append(body(msg, Notification).version)
    newest = notified.pop((OTHER - 9, MANY))
    assert newest[-1] == 20
    assert len(newest) < 20
    assert len(notified) == MANY
    assert all(versions == list(range(1, 21)) for versions in notified.values())
