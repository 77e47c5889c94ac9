"""Pending requests: their bounds, and how they are resumed."""

from __future__ import annotations

from machines import CLIENT, NOW, body, error, put
from world import World, replica_limits

from fluxmpi import errors
from fluxmpi.kvs.wire import Cancel, GetRequest, GetRoot


def test_parked_requests_are_resumed_over_several_turns():
    world = World(limits=replica_limits(resumed_per_turn=3))
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


def test_parked_requests_are_bounded():
    world = World(limits=replica_limits(parked_max=2))
    for tag in range(2):
        assert world.step("kvs.getroot", GetRoot("primary", 1), tag=tag) == []
    (refused,) = world.step("kvs.getroot", GetRoot("primary", 1), tag=3)
    assert isinstance(error(refused), errors.Overloaded)
    assert [msg.tag for msg in world.commit(put("a", 1))] == [0, 1]


def test_suspended_reads_are_bounded():
    bare = World(with_nodes=False, limits=replica_limits(reads_suspended_max=2))
    bare.commit(put("a", 1))
    loads = bare.step("kvs.get", GetRequest("a"), tag=1)
    assert bare.step("kvs.get", GetRequest("a"), tag=2) == []
    (refused,) = bare.step("kvs.get", GetRequest("a"), tag=3)
    assert isinstance(error(refused), errors.Overloaded)
    assert sorted(msg.tag for msg in bare.feed(loads)[1]) == [1, 2]
