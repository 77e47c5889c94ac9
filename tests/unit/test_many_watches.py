"""Many watches at one broker: what concerns all of them takes many turns, and neither order nor anything else is lost by it."""

from __future__ import annotations

import itertools

import pytest
from machines import CLIENT, NOW, OTHER, ask, body, error, put
from test_watching import foreign, notes
from world import World, val

from fluxmpi import errors
from fluxmpi.kvs.watch import notifier as finding
from fluxmpi.kvs.watch import service as watching
from fluxmpi.kvs.wire import KeyChange, Notification, RootInfo, WatchProgress, WatchRequest
from fluxmpi.message import MORE, RESPONSE

MANY = 6000


@pytest.fixture
def world():
    return World()


@pytest.fixture
def crowd(world, monkeypatch):
    """Many watches of one key, of several clients, each told once; and what each turn does from now on, counted."""
    for n in range(MANY):
        world.kvs.step(ask("kvs.watch", WatchRequest("a"), tag=n, hop=CLIENT - n % 3), NOW)
    while world.kvs.deadline <= NOW:
        world.kvs.tick(NOW)
    watching_ = world.kvs._watching
    world.done = {"looked": 0, "told": 0, "cleared": 0}

    def counted(owner, name, what):
        right = getattr(owner, name)

        def counting(*arguments):
            world.done[what] += 1
            return right(*arguments)

        monkeypatch.setattr(owner, name, counting)

    counted(watching_._looking, "look", "looked")
    counted(watching_._finder, "_tell", "told")
    counted(watching_, "_clear", "cleared")
    return world


def turns(world, out):
    """What comes of it, turn by turn, and the most that one turn did of each."""
    most = dict(world.done)
    yield out
    while world.kvs.deadline <= NOW:
        world.done.update(dict.fromkeys(world.done, 0))
        yield world.kvs.tick(NOW)
        for what, count in world.done.items():
            most[what] = max(most[what], count)
        world.kvs.check()
    assert most["looked"] <= watching.TURN_LOOKS
    assert most["told"] <= watching.TURN_LOOKS * watching.LOOK_STEPS // finding.TELL_STEPS + finding.TELL_MAX
    assert most["cleared"] <= watching.TURN_LOOKS * watching.CHORE_STEPS // watching.CHORE_LOOKS + watching.CHORE_STEPS
    assert world.kvs.statistics()["watch_pending"] == 0


def test_a_commit_that_concerns_many_watches_of_one_key_is_told_in_slices(crowd):
    first, second = crowd.make(put("a", 1)), crowd.make(put("a", 2))
    out = crowd.kvs.step(first, NOW)
    assert crowd.done["told"] < MANY
    out += crowd.kvs.step(second, NOW)
    slices = [[msg for msg in part if msg.kind == RESPONSE] for part in turns(crowd, out)]
    assert len(slices) > 10
    told = {}
    for msg in itertools.chain(*slices):
        told.setdefault((msg.route[0], msg.tag), []).append(body(msg, Notification).version)
    assert len(told) == MANY
    assert all(versions == [1, 2] for versions in told.values())


def test_one_who_comes_while_others_are_told_is_told_once(crowd):
    out = crowd.kvs.step(crowd.make(put("a", 1)), NOW)
    assert crowd.kvs.statistics()["watch_pending"]
    out += crowd.watch("a", tag=MANY, hop=OTHER - 9)
    crowd.kvs.disconnect(CLIENT, NOW)
    out = [msg for part in turns(crowd, out) for msg in part if msg.kind == RESPONSE]
    (mine,) = [msg for msg in out if msg.tag == MANY]
    assert notes([mine]) == [(1, [KeyChange("a", val(1), False)])]
    assert all(msg.status == MORE for msg in out)


def test_the_end_of_many_watches_is_told_in_slices(crowd):
    crowd.watch("other", tag=MANY, at_least=1000, wait=True)
    out = crowd.kvs._watching.removed(RootInfo("primary", 0, b"", NOW))
    assert len(out) < MANY
    assert crowd.kvs.step(ask("kvs.watch-progress", WatchProgress(1), tag=1, hop=CLIENT - 1), NOW) == []
    crowd.kvs.deadline = NOW
    ends = [msg for part in turns(crowd, out) for msg in part if msg.kind == RESPONSE]
    assert [type(error(msg)) for msg in ends] == [errors.NoSuchNamespace] * MANY
    assert crowd.kvs.statistics()["watchers"] == 1, "who waits for the namespace waits for one that comes again"


def test_a_client_with_many_watches_is_cleared_away_in_slices(crowd):
    crowd.kvs.disconnect(CLIENT, NOW)
    assert crowd.done["cleared"] < MANY / 3
    assert crowd.kvs.deadline <= NOW
    out = crowd.kvs.step(crowd.make(put("a", 1)), NOW)
    hops = [msg.route[0] for part in turns(crowd, out) for msg in part if msg.kind == RESPONSE]
    assert CLIENT not in hops
    assert len(hops) == crowd.kvs.statistics()["watchers"] == MANY * 2 / 3


def test_many_who_wait_for_a_namespace_begin_in_slices(world, monkeypatch):
    for n in range(MANY):
        world.kvs.step(ask("kvs.watch", WatchRequest("a", namespace="ns2", wait=True), tag=n, hop=CLIENT - n % 3), NOW)
    monkeypatch.setattr(world.kvs, "check", lambda: None)
    begun = []
    start = world.kvs._watching._start
    monkeypatch.setattr(world.kvs._watching, "_start", lambda *who: begun.append(who) or start(*who))
    out = foreign(world, 1, put("a", 1))
    assert 0 < len(begun) < MANY
    while world.kvs.deadline <= NOW:
        out += world.kvs.tick(NOW)
    assert len(begun) == len(out) == MANY


def test_versions_that_wait_too_long_are_taken_from_the_history(crowd, monkeypatch):
    monkeypatch.setattr(finding, "FIND_MAX", 3)
    crowd.watch("a", tag=MANY, latest=True, hop=OTHER - 9)
    out = []
    for n in range(20):
        out += crowd.kvs.step(crowd.make(put("a", n)), NOW)
    assert crowd.kvs.statistics()["watch_pending"] <= 4
    told = {}
    for part in turns(crowd, out):
        for msg in part:
            if msg.kind == RESPONSE:
                told.setdefault((msg.route[0], msg.tag), []).append(body(msg, Notification).version)
    newest = told.pop((OTHER - 9, MANY))
    assert newest[-1] == 20
    assert len(newest) < 20
    assert len(told) == MANY
    assert all(versions == list(range(1, 21)) for versions in told.values())
