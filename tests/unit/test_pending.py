"""Requests that wait for a version: how many may, and how they go on."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, body, error, put
from world import World

from fluxmpi import errors
from fluxmpi.kvs import service
from fluxmpi.kvs.replica import pending as waiting
from fluxmpi.kvs.wire import Cancel, GetRequest, GetRoot


@pytest.fixture
def world():
    return World()


def test_many_who_waited_for_a_version_are_answered_over_some_turns(world, monkeypatch):
    monkeypatch.setattr(waiting, "RELEASED_MAX", 3)
    for tag in range(8):
        world.step("kvs.getroot", GetRoot("primary", 1), tag=tag, hop=CLIENT - tag % 2)
    out = world.commit(put("a", 1))
    assert [msg.tag for msg in out] == [0, 1, 2]
    assert (world.kvs.deadline, world.kvs.statistics()["parked"]) == (NOW, 5)
    (gone,) = world.step("kvs.cancel", Cancel(4))
    assert (gone.topic, gone.tag, body(gone)) == ("kvs.getroot", 4, None)
    world.kvs.disconnect(CLIENT - 1, NOW)
    assert [msg.tag for msg in world.kvs.tick(NOW)] == [6]
    assert world.kvs.deadline > NOW
    assert world.kvs.statistics()["parked"] == 0


def test_no_more_than_so_many_wait_for_a_version(world, monkeypatch):
    monkeypatch.setattr(waiting, "PARKED_MAX", 2)
    for tag in range(2):
        assert world.step("kvs.getroot", GetRoot("primary", 1), tag=tag) == []
    (refused,) = world.step("kvs.getroot", GetRoot("primary", 1), tag=3)
    assert isinstance(error(refused), errors.Overloaded)
    assert [msg.tag for msg in world.commit(put("a", 1))] == [0, 1]


def test_no_more_than_so_many_reads_wait_for_a_blob(monkeypatch):
    monkeypatch.setattr(service, "STALLED_MAX", 2)
    bare = World(with_nodes=False)
    bare.commit(put("a", 1))
    loads = bare.step("kvs.get", GetRequest("a"), tag=1)
    assert bare.step("kvs.get", GetRequest("a"), tag=2) == []
    (refused,) = bare.step("kvs.get", GetRequest("a"), tag=3)
    assert isinstance(error(refused), errors.Overloaded)
    assert sorted(msg.tag for msg in bare.feed(loads)[1]) == [1, 2]
