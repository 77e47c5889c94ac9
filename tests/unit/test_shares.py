"""What clients of a broker share is bounded, in number and in bytes, and none can take all of it."""

from __future__ import annotations

import pytest
from machines import (
    CLIENT,
    NOW,
    OTHER,
    Cluster,
    answer_to,
    ask,
    body,
    commit,
    control_from,
    error,
    put,
    responses,
    to_broker,
    topics,
)
from trees import SHA256
from world import World, replica_limits, watch_limits

from fluxmpi import errors
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentLimits, ContentService
from fluxmpi.content.values import ValueLimits, ValueService
from fluxmpi.content.wire import Create, LoadRequest, Map
from fluxmpi.jobs.exec import ExecLimits, ExecService
from fluxmpi.jobs.wire import RunRequest
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc.limits import GcLimits, MvccLimits
from fluxmpi.kvs.objects import KEY_BYTES_MAX, TYPE_CHARS_MAX, Link, Val
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.wire import (
    AddTo,
    Cancel,
    CommitId,
    Contribution,
    DiffRequest,
    Fence,
    GetRequest,
    GetRoot,
    Lease,
    Leased,
    ListRequest,
    Put,
    Release,
    Swept,
    WatchRequest,
)
from fluxmpi.message import EVENT_TOPIC_MAX, Message, encode_body
from fluxmpi.overlay.events import EventLimits, EventService
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import Subscribe
from fluxmpi.shares import Pool

LONG_NAME = "x" * 129
LONG_KEY = "x" * (KEY_BYTES_MAX + 1)


def refused(messages: list[Message], expected: type[errors.FluxmpiError] = errors.Overloaded) -> str:
    """The text of the error that is the only message."""
    (answer,) = messages
    raised = error(answer)
    assert type(raised) is expected
    return raised.text


def test_a_pool_gives_each_client_a_share_and_all_of_them_its_size():
    pool = Pool("things", 10, 6)
    pool.take("a", 6)
    with pytest.raises(errors.Overloaded, match="this client has 6 things at this broker, and 1 more"):
        pool.take("a")
    pool.take("b", 4)
    with pytest.raises(errors.Overloaded, match="this broker has 10 things"):
        pool.take("b")
    pool.check()
    pool.give("a", 2)
    pool.take("machine", 2, shared=False)
    assert (pool.taken, pool.held("a"), pool.held("b")) == (10, 4, 4)
    pool.drop("a")
    pool.give("a", 3)  # what ends after its client has gone
    assert (pool.taken, pool.held("a")) == (6, 0)
    pool.check()


# ------------------------------------------------------------------------------------------------------ names and keys


@pytest.mark.parametrize(
    ("topic", "record"),
    [
        ("kvs.get", GetRequest("a", LONG_NAME)),
        ("kvs.list", ListRequest("a", LONG_NAME)),
        ("kvs.diff", DiffRequest(LONG_NAME, 1, 2)),
        ("kvs.getroot", GetRoot(LONG_NAME)),
        ("kvs.watch", WatchRequest("a", LONG_NAME, wait=True)),
        ("kvs.add", AddTo(LONG_NAME, CommitId("c", 1), 0, "a", 1)),
        ("kvs.add", AddTo("primary", CommitId(LONG_NAME, 1), 0, "a", 1)),
        ("kvs.fence", Fence("primary", "f", 2, [Contribution(CommitId(LONG_NAME, 1), [])])),
        ("kvs.fence", Fence("primary", "f" * 1025, 2, [Contribution(CommitId("c", 1), [])])),
        ("kvs.fence", Fence(LONG_NAME, "f", 2, [Contribution(CommitId("c", 1), [])])),
    ],
)
def test_a_long_name_is_refused_at_the_clients_broker(topic, record):
    world = World()
    assert "length <= " in refused(world.step(topic, record), errors.InvalidRequest)
    statistics = world.kvs.statistics()
    assert (statistics["fences"], statistics["adding"], statistics["watchers"], statistics["asked"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "op",
    [
        Put("a", Val("x" * (TYPE_CHARS_MAX + 1), b"")),
        Put("a", Link("b", LONG_NAME)),
    ],
)
def test_a_long_type_or_link_is_refused_at_the_leader(op):
    world = World()
    assert "length <= " in refused(world.leader.step(ask("leader.commit", commit(1, op)), NOW), errors.InvalidRequest)


def test_a_long_client_name_is_refused_at_the_leader_and_not_kept():
    world = World()
    long = commit(1, put("a", 1), client=LONG_NAME)
    assert "length <= 128" in refused(world.leader.step(ask("leader.commit", long), NOW), errors.InvalidRequest)
    assert world.leader.statistics()["clients"] == 0


@pytest.mark.parametrize(
    ("topic", "record"),
    [
        ("kvs.get", GetRequest(LONG_KEY, at_least=9)),
        ("kvs.get", GetRequest(LONG_KEY, "unknown")),
        ("kvs.list", ListRequest(LONG_KEY, at_least=9)),
        ("kvs.diff", DiffRequest("primary", 1, 2, LONG_KEY, at_least=9)),
        ("kvs.watch", WatchRequest(LONG_KEY, at_least=9)),
        ("kvs.add", AddTo("primary", CommitId("c", 1), 0, LONG_KEY, 1)),
    ],
)
def test_a_long_key_is_refused_before_its_request_waits(topic, record):
    world = World()
    assert f"over {KEY_BYTES_MAX} bytes" in refused(world.step(topic, record), errors.InvalidKey)
    statistics = world.kvs.statistics()
    assert (statistics["parked"], statistics["asked"], statistics["adding"], statistics["waiting_bytes"]) == (0,) * 4


# ----------------------------------------------------------------------------------------------------- waiting requests


def test_waiting_requests_are_bounded_in_bytes_per_client_and_for_all():
    size = len(encode_body(GetRoot("primary", 1)))
    world = World(limits=replica_limits(waiting_bytes_client_max=2 * size, waiting_bytes_max=3 * size))
    for tag in (1, 2):
        assert world.step("kvs.getroot", GetRoot("primary", 1), tag=tag) == []
    assert "exceed its share" in refused(world.step("kvs.getroot", GetRoot("primary", 1), tag=3))
    assert world.step("kvs.getroot", GetRoot("primary", 1), tag=4, hop=OTHER) == []
    assert "exceed its limit" in refused(world.step("kvs.getroot", GetRoot("primary", 1), tag=5, hop=OTHER))
    world.step("kvs.cancel", Cancel(1))
    assert world.step("kvs.getroot", GetRoot("primary", 2), tag=6) == []
    assert [msg.tag for msg in world.commit(put("a", 1))] == [2, 4]
    assert world.kvs.statistics()["waiting_bytes"] == size
    world.kvs.disconnect(CLIENT, NOW)
    world.kvs.check()
    assert world.kvs.statistics()["waiting_bytes"] == 0


def test_waiting_requests_of_one_client_are_bounded_in_number():
    world = World(limits=replica_limits(waiting_client_max=2))
    asked = [world.step("kvs.get", GetRequest("a", f"unknown{tag}"), tag=tag)[0] for tag in (1, 2)]
    assert [msg.topic for msg in asked] == ["roots.get", "roots.get"]
    assert "2 waiting requests" in refused(world.step("kvs.get", GetRequest("a", "unknown3"), tag=3))
    assert "2 waiting requests" in refused(world.step("kvs.getroot", GetRoot("primary", 1), tag=4))
    assert world.step("kvs.getroot", GetRoot("primary", 1), tag=4, hop=OTHER) == []
    world.kvs.disconnect(CLIENT, NOW)
    world.kvs.check()


def test_a_forwarded_commit_keeps_no_body_and_too_many_stop_the_reading_of_clients():
    cluster = Cluster(2, kvs=KvsLimits(replica=ReplicaLimits(asked_high=2)))
    broker = cluster.brokers[1]
    for serial in range(1, 4):
        assert not broker.congestion
        cluster.step(1, to_broker("kvs.commit", commit(serial, put("a", "x" * 100)), tag=serial))
    assert broker.congestion
    assert broker.kvs.statistics()["waiting_bytes"] == 0
    assert [msg.tag for _, msg in cluster.run() if msg.hop == CLIENT] == [1, 2, 3]
    assert not broker.congestion


def test_suspended_reads_of_one_client_are_bounded():
    bare = World(with_nodes=False, limits=replica_limits(reads_suspended_client_max=2))
    bare.commit(put("a", 1))
    loads = bare.step("kvs.get", GetRequest("a"), tag=1) + bare.step("kvs.get", GetRequest("a"), tag=2)
    assert "2 reads of this client" in refused(bare.step("kvs.get", GetRequest("a"), tag=3))
    assert bare.step("kvs.get", GetRequest("a"), tag=4, hop=OTHER) == []
    assert sorted(msg.tag for msg in bare.feed(loads)[1]) == [1, 2, 4]
    assert [msg.tag for msg in bare.step("kvs.get", GetRequest("a"), tag=5)] == [5]


def test_additions_are_bounded_per_client_and_in_bytes():
    size = len(encode_body(AddTo("primary", CommitId("c", 1), 0, "k", 1)))
    world = World(limits=replica_limits(adds_client_max=2, adds_bytes_max=3 * size))

    def add(serial: int, hop: int = CLIENT) -> list[Message]:
        return world.step("kvs.add", AddTo("primary", CommitId("c", serial), 0, "k", 1), tag=serial, hop=hop)

    assert [msg.topic for msg in add(1)] == ["kvs.adds"]
    assert add(2) == []
    assert "2 additions of this client" in refused(add(3))
    assert add(4, OTHER) == []
    assert "bytes of keys" in refused(add(5, OTHER))
    world.kvs.disconnect(CLIENT, NOW)  # its addition that waits is dropped; the one under way is not
    world.kvs.check()
    assert add(6, OTHER) == []


# -------------------------------------------------------------------------------------------------------------- watches


def test_one_client_gets_a_share_of_the_watches():
    world = World(limits=watch_limits(watches_client_max=2))
    for tag in (1, 2):
        assert len(world.watch("a", tag=tag)) == 1
    assert "2 watches" in refused(world.watch("a", tag=3))
    assert len(world.watch("a", tag=3, hop=OTHER)) == 1
    world.step("kvs.cancel", Cancel(1))
    assert len(world.watch("a", tag=3)) == 1
    world.kvs.disconnect(CLIENT, NOW)
    world.kvs.tick(NOW)
    world.kvs.check()
    assert world.kvs.statistics()["watchers"] == 1


def test_the_keys_of_watches_are_bounded_in_bytes():
    world = World(limits=watch_limits(key_bytes_client_max=30, key_bytes_max=40))
    world.watch("a" * 20, tag=1)
    assert "bytes of watches' keys" in refused(world.watch("a" * 11, tag=2))
    world.watch("a" * 20, tag=1, hop=OTHER)
    assert "limit of 40" in refused(world.watch("a", tag=2, hop=OTHER))
    world.step("kvs.cancel", Cancel(1))
    world.kvs.check()
    assert world.kvs.statistics()["watch_key_bytes"] == 20


# ------------------------------------------------------------------------------------------- rank 0's searches, leases, …


def test_one_client_gets_a_share_of_the_leases():
    cluster = Cluster(2, kvs=KvsLimits(mvcc=MvccLimits(leases_client_max=2)))

    def lease(hop: int) -> Message:
        return responses(cluster.call(1, to_broker("roots.lease", Lease("primary"), hop=hop)))[0]

    first = body(lease(CLIENT), Leased)
    body(lease(CLIENT), Leased)
    assert "2 leases" in refused([lease(CLIENT)])
    body(lease(OTHER), Leased)
    cluster.call(1, to_broker("roots.release", Release(first.id)))
    body(lease(CLIENT), Leased)
    cluster.take(1, cluster.brokers[1].disconnect(CLIENT, NOW))
    cluster.run()
    assert cluster.brokers[0].statistics()["roots"]["leases"] == 1


def test_one_client_gets_a_share_of_the_collections():
    cluster = Cluster(1, kvs=KvsLimits(gc=GcLimits(runs_client_max=2)))
    for tag in (1, 2):
        cluster.step(0, to_broker("gc.run", tag=tag))
    cluster.step(0, to_broker("gc.run", tag=3))
    cluster.step(0, to_broker("gc.run", tag=4, hop=OTHER))
    answers = {msg.tag: msg for _, msg in cluster.run() if msg.hop in (CLIENT, OTHER)}
    assert "2 requests of this client" in refused([answers.pop(3)])
    assert sorted(answers) == [1, 2, 4]
    assert all(msg.status == 0 for msg in answers.values())


# ---------------------------------------------------------------------------------------- events, commands, blobs, values


def test_the_prefixes_of_subscriptions_are_bounded_in_bytes():
    machine = EventService(Router(1, 2), EventLimits(subscription_bytes_client_max=20, subscription_bytes_max=30))

    def subscribe(prefix: str, hop: int = CLIENT) -> list[Message]:
        out = machine.step(ask("event.subscribe", Subscribe(prefix), hop=hop), NOW)
        machine.check()
        return out

    assert body(subscribe("é" * 10)[0]) == 0
    assert "exceed its share of 20" in refused(subscribe("a"))
    subscribe("a" * 10, OTHER)
    assert "exceed its limit of 30" in refused(subscribe("b", OTHER))
    subscribe("a" * 10, OTHER)  # the same again
    machine.step(ask("event.unsubscribe", Subscribe("é" * 10)), NOW)
    assert body(subscribe("b")[0]) == 0
    machine.disconnect(OTHER, NOW)
    machine.check()
    assert machine.statistics()["subscription_bytes"] == 1
    text = refused(machine.step(ask("event.unsubscribe", Subscribe("x" * 100_000)), NOW), errors.InvalidRequest)
    assert len(text) < 2 * EVENT_TOPIC_MAX


def test_one_client_gets_a_share_of_the_commands_and_of_their_input():
    machine = ExecService(ExecLimits(commands_client_max=2, stdin_bytes_client_max=10, stdin_bytes_max=15))

    def start(stdin: bytes = b"", hop: int = CLIENT) -> list[Message]:
        out = machine.step(ask("exec.run", RunRequest(["cat"], stdin=stdin), hop=hop), NOW)
        machine.check()
        return out

    assert [msg.topic for msg in start(b"x" * 10)] == ["launcher.spawn"]
    assert "input" in refused(start(b"x"))
    start()
    assert "2 commands" in refused(start())
    assert "exceed its limit of 15" in refused(start(b"x" * 6, OTHER))
    start(b"x" * 5, OTHER)


def test_one_client_gets_a_share_of_the_requests_for_blobs():
    machine = ContentService(Cache(), SHA256, 0, None, ContentLimits(waiting_client_max=2))

    def load(text: bytes, hop: int = CLIENT) -> list[Message]:
        out = machine.step(ask("content.load", LoadRequest(SHA256(text)), hop=hop), NOW)
        machine.check()
        return out

    assert [msg.topic for msg in load(b"a")] == ["content.load"]
    assert load(b"a") == []
    assert "2 requests for blobs" in refused(load(b"b"))
    assert load(b"a", OTHER) == []
    assert "2 requests for blobs" in refused(machine.step(ask("content.store", raw=b"blob"), NOW))
    machine.disconnect(CLIENT, NOW)
    machine.check()
    (store,) = machine.step(ask("content.store", raw=b"blob"), NOW)
    assert (store.topic, store.body) == ("content.store", b"blob")
    machine.check()


def test_one_client_gets_a_share_of_the_requests_for_long_values():
    machine = ValueService({}, 1 << 30, ValueLimits(waiting_client_max=2))

    def ask_for(size: int, hop: int = CLIENT) -> list[Message]:
        return machine.step(ask("value.map", Map([SHA256(b"a")], size), hop=hop), NOW)

    assert [msg.topic for msg in ask_for(1)] == ["segment.create"]
    assert ask_for(1) == []
    assert "2 requests of this client" in refused(ask_for(2))
    assert ask_for(1, OTHER) == []
    machine.check()


# ------------------------------------------------------------------------------------------------- segments of old values


def filled(machine: ValueService, *blobs: bytes) -> int:
    """Map a value, and load its blobs; return the number of its segment."""
    refs = [SHA256(blob) for blob in blobs]
    (create,) = machine.step(ask("value.map", Map(refs, sum(map(len, blobs)))), NOW)
    out: list[Message] = []
    for load in machine.tick(NOW):
        ref = body(load, LoadRequest).ref
        out += machine.step(answer_to(load, raw=blobs[refs.index(ref)]), NOW)
    assert out[-1].topic == "segment.pass"
    return body(create, Create).segment


def test_segments_of_collected_values_are_closed_at_every_broker():
    machine = ValueService({}, 1 << 30)
    old, new, both = b"old" * 100, b"new" * 100, b"both" * 100
    first, second = filled(machine, both, old), filled(machine, both, new)
    assert machine.step(control_from("value.swept", [SHA256(b"never seen")]), NOW) == []
    (closed,) = machine.step(control_from("value.swept", [SHA256(old), SHA256(b"x")]), NOW)
    assert (closed.topic, body(closed)) == ("segment.close", first)
    machine.check()
    statistics = machine.statistics()
    assert (statistics["segments"], statistics["bytes"], statistics["collected"]) == (1, len(both + new), 1)
    (closed,) = machine.step(control_from("value.swept", [SHA256(new)]), NOW)
    assert body(closed) == second


def test_a_segment_that_is_being_filled_stays_when_its_blob_is_collected():
    machine = ValueService({}, 1 << 30)
    refs = [SHA256(b"a"), SHA256(b"b")]
    machine.step(ask("value.map", Map(refs, 2)), NOW)
    first, _ = machine.tick(NOW)
    machine.step(answer_to(first, raw=b"a"), NOW)
    assert machine.step(control_from("value.swept", refs), NOW) == []
    machine.check()
    assert machine.statistics()["pending"] == 1


def test_swept_blobs_are_passed_down_the_tree():
    world = World()
    out = world.kvs.step(control_from("kvs.swept", Swept([b"r" * 32]), 0), NOW)
    assert topics(out) == [("kvs.swept", 3), ("kvs.swept", 4), ("value.swept", -1)]
    assert body(out[0], Swept) == Swept([b"r" * 32])
    assert body(out[2]) == [b"r" * 32]
