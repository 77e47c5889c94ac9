"""Whole brokers, connected by queues: routing of requests and responses, and no request ends a broker."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, NOW, OTHER, Cluster, body, commit, error, put, to_broker

from fluxmpi import errors
from fluxmpi.blobref import digest_function
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.registry import Registry
from fluxmpi.broker.wire import GetAttr, Shutdown
from fluxmpi.content.wire import LoadRequest, Stored
from fluxmpi.jobs.wire import Kill, RunRequest
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef
from fluxmpi.kvs.wire import (
    Append,
    Cancel,
    Commit,
    CommitId,
    Contribution,
    Fence,
    GetRequest,
    GetRoot,
    Got,
    ListRequest,
    Mkdir,
    NamespaceInfo,
    Notification,
    Put,
    PutShared,
    Restore,
    RootInfo,
    Save,
    Unlink,
    WatchRequest,
)
from fluxmpi.message import (
    ANY,
    CONTROL,
    EVENT,
    LAUNCHER,
    LOCAL,
    LOOP,
    MORE,
    OK,
    REQUEST,
    RESPONSE,
    Message,
    encode_body,
    request,
)
from fluxmpi.overlay.wire import EventRecord, Info, LostRank, Peer, Ping, Pong, Publish, Subscribe

SHAPES = ["kary:2", "kary:1", "kary:3", "binomial", "flat"]


def only(messages):
    (msg,) = messages
    return msg


# ------------------------------------------------------------------------------------------------------------- routing


@pytest.mark.parametrize("shape", SHAPES)
def test_any_client_reaches_any_rank_and_the_answer_comes_the_same_way(shape):
    cluster = Cluster(9, shape)
    for source in range(9):
        for target in range(9):
            answer = only(cluster.call(source, to_broker("ping.ping", Ping(1, b"x"), target=target, tag=target)))
            pong = body(answer, Pong)
            assert (answer.kind, answer.tag, answer.hop, answer.route) == (RESPONSE, target, CLIENT, [])
            assert (pong.rank, pong.payload) == (target, b"x")
            assert len(pong.route) - 1 == sum(1 for *_, msg in cluster.carried if msg.kind == REQUEST)
            cluster.carried.clear()


def test_without_a_target_the_nearest_service_answers():
    cluster = Cluster(7)
    assert body(only(cluster.call(5, to_broker("overlay.info"))), Info).rank == 5
    answer = only(cluster.call(5, to_broker("roots.list")))
    assert [info.version for info in body(answer, list[NamespaceInfo])] == [0], "only rank 0 has it"


def test_a_service_without_a_broker():
    cluster = Cluster(7)
    failed = error(only(cluster.call(5, to_broker("other.thing"))))
    assert isinstance(failed, errors.NoSuchService)
    assert "no service 'other': no broker on the way to rank 0 has it" in failed.text
    failed = error(only(cluster.call(5, to_broker("roots.list", target=3))))
    assert failed.text == "no service 'roots' on rank 3"
    for topic in ("", ".", "kvs", "kvs.", "x" * 10_000):
        assert error(only(cluster.call(5, to_broker(topic))))


@pytest.mark.parametrize("target", [7, 8, -2, 1 << 30, -(1 << 30)])
def test_a_rank_that_does_not_exist(target):
    failed = error(only(Cluster(7).call(3, to_broker("ping.ping", Ping(1), target=target))))
    assert isinstance(failed, errors.NoSuchRank)
    assert str(target) in failed.text


def test_a_rank_that_is_gone_and_one_behind_it():
    cluster = Cluster(7)
    cluster.kill(1)
    cluster.step(0, Message(CONTROL, "overlay.lost", LOOP, body=encode_body(LostRank(1, "killed"))))
    cluster.run()
    for target in (1, 3):
        failed = error(only(cluster.call(0, to_broker("ping.ping", Ping(1), target=target))))
        assert isinstance(failed, errors.RankLost)
        assert "killed" in failed.text


def test_an_answer_to_a_neighbour_that_is_gone_is_dropped():
    broker = Broker(Config(rank=1, size=4, hosts=("h",) * 4), NOW)
    broker.router.mark_lost(3, "test")
    assert broker.step(Message(RESPONSE, "a.b", route=[CLIENT, 3]), NOW) == []
    assert broker.step(Message(RESPONSE, "a.b", route=[]), NOW) == []
    (out,) = broker.step(Message(RESPONSE, "a.b", route=[CLIENT]), NOW)
    assert (out.hop, out.route) == (CLIENT, [])


def test_a_relay_changes_nothing_but_the_route():
    broker = Broker(Config(rank=1, size=8, hosts=("h",) * 8), NOW)
    asked = Message(REQUEST, "x.y", 3, 0, 1 << 40, OK, [CLIENT, 7], b"\xc1 not msgpack")
    (out,) = broker.step(asked, NOW)
    assert out == Message(REQUEST, "x.y", 0, 0, 1 << 40, OK, [CLIENT, 7, 3], b"\xc1 not msgpack")


def test_control_messages_without_a_machine_are_ignored():
    broker = Broker(Config(), NOW)
    assert broker.step(Message(CONTROL, "unknown.thing", 0), NOW) == []


def test_nothing_of_an_unknown_topic_is_kept():
    broker = Broker(Config(), NOW)
    topics = dict(broker.registry.topics)
    for number in range(2000):
        for topic in (f"none.{number}", f"kvs.{number}" + "x" * 10_000):
            (answer,) = broker.step(to_broker(topic), NOW)
            assert len(error(answer).text) < 400
    assert broker.registry.topics == topics
    assert broker.registry.owner(7 + 16 * len(topics)) is not None
    assert Registry([]).owner(7) is None


# --------------------------------------------------------------------------------------------------------- the main job


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_commit_anywhere_is_read_everywhere(shape, size):
    cluster = Cluster(size, shape)
    for rank in range(size):
        answer = only(cluster.call(rank, to_broker("kvs.commit", commit(1, put(f"k{rank}", rank), client=f"c{rank}"))))
        version = body(answer, RootInfo).version
        assert version == rank + 1
        for reader in range(size):
            got = body(only(cluster.call(reader, to_broker("kvs.get", GetRequest(f"k{rank}", at_least=version)))), Got)
            assert (got.data, got.version) == (str(rank).encode(), version)
    roots = {body(only(cluster.call(rank, to_broker("kvs.getroot", GetRoot()))), RootInfo).ref for rank in range(size)}
    assert len(roots) == 1


def test_a_broker_that_has_the_response_has_the_version():
    """The setroot arrives before the response: when the response is sent, a read at that broker returns that version."""
    cluster = Cluster(15)
    for rank in (14, 7, 1, 0):
        cluster.step(rank, to_broker("kvs.commit", commit(rank + 1, put("k", rank))))
        while not any(msg.kind == RESPONSE for _, msg in cluster.sent):
            cluster.tick()
            link = next((key for key, queue in cluster.links.items() if queue), None)
            assert link is not None
            msg = cluster.links[link].popleft()
            msg.hop = link[0]
            cluster.step(link[1], msg)
        answer = next(msg for _, msg in cluster.sent if msg.kind == RESPONSE)
        cluster.sent.clear()
        version = body(answer, RootInfo).version
        cluster.step(rank, to_broker("kvs.getroot", GetRoot(), tag=77))
        (root,) = [body(msg, RootInfo) for _, msg in cluster.sent if msg.tag == 77]
        assert root.version >= version
        cluster.run()


def test_readers_of_one_value_cost_each_link_one_transfer():
    cluster = Cluster(15)
    cluster.call(0, to_broker("kvs.commit", commit(1, Put("big", Val("raw", bytes(100_000))))))
    cluster.carried.clear()
    for rank in range(15):
        for hop in (CLIENT, OTHER):
            cluster.step(rank, to_broker("kvs.get", GetRequest("big"), hop=hop))
    answers = [msg for _, msg in cluster.run() if msg.kind == RESPONSE]
    assert len(answers) == 30
    assert all(body(msg, Got).data == bytes(100_000) for msg in answers)
    transfers = [(source, rank) for source, rank, msg in cluster.carried if len(msg.body) > 50_000]
    assert len(transfers) == len(set(transfers)) == 14


def test_watchers_everywhere_see_each_version_of_a_key():
    cluster = Cluster(7)
    for rank in range(7):
        cluster.step(rank, to_broker("kvs.watch", WatchRequest("k"), tag=9))
    cluster.run()
    for serial in range(1, 6):
        cluster.step(serial, to_broker("kvs.commit", commit(serial, put("k", serial))))
    seen: dict[int, list] = {rank: [] for rank in range(7)}
    for rank, msg in cluster.run():
        if msg.tag == 9:
            assert msg.status == MORE
            seen[rank].append((body(msg, Notification).version, body(msg, Notification).changes[0].object.data))
    assert [len(notes) for notes in seen.values()] == [5] * 7
    assert all(notes == seen[0] for notes in seen.values())
    assert [version for version, _ in seen[0]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_fence_of_all_is_one_version_and_answers_all(shape):
    cluster = Cluster(7, shape)
    for round_ in range(1, 4):
        for rank in range(7):
            for hop in (CLIENT, OTHER):
                ops = [put(f"r{rank}.{hop}", "same"), put(f"n{rank}.{hop}", round_)]
                part = Contribution(CommitId(f"{rank}.{hop}", round_), ops)
                cluster.step(rank, to_broker("kvs.fence", Fence("primary", "f", 14, [part]), hop=hop))
        answers = [msg for _, msg in cluster.run() if msg.kind == RESPONSE]
        assert [body(msg, RootInfo).version for msg in answers] == [round_] * 14
    got = body(only(cluster.call(3, to_broker("kvs.get", GetRequest(f"n6.{OTHER}")))), Got)
    assert got.data == b"3"


def test_contributors_of_a_fence_that_disagree_get_an_error_at_every_broker():
    cluster = Cluster(7)
    for rank, size in ((3, 3), (4, 4), (0, 3), (6, 3)):
        part = Contribution(CommitId(f"c{rank}", 1), [put(f"k{rank}", 1)])
        cluster.step(rank, to_broker("kvs.fence", Fence("primary", "f", size, [part])))
    answers = {rank: msg for rank, msg in cluster.run() if msg.kind == RESPONSE}
    assert sorted(answers) == [0, 3, 4, 6]
    assert isinstance(error(answers[4]), errors.FenceMismatch)
    assert {body(answers[rank], RootInfo).version for rank in (0, 3, 6)} == {1}


def test_events_reach_subscribers_everywhere_in_one_order():
    cluster = Cluster(7)
    for rank in range(7):
        cluster.call(rank, to_broker("event.subscribe", Subscribe("run.")))
    for rank in (6, 0, 3):
        cluster.step(rank, to_broker("event.publish", Publish(f"run.{rank}"), target=0))
    seen: dict[int, list] = {rank: [] for rank in range(7)}
    for rank, msg in cluster.run():
        if msg.kind == EVENT:
            seen[rank].append((body(msg, EventRecord).seq, msg.topic))
    assert [seq for seq, _ in seen[0]] == [1, 2, 3]
    assert all(events == seen[0] for events in seen.values())


def test_stored_blobs_are_loaded_elsewhere():
    cluster = Cluster(7)
    ref = body(only(cluster.call(5, to_broker("content.store", raw=b"blob"))), Stored).ref
    assert only(cluster.call(4, to_broker("content.load", LoadRequest(ref)))).body == b"blob"
    failed = error(only(cluster.call(4, to_broker("content.load", LoadRequest(bytes(32))))))
    assert isinstance(failed, errors.NoSuchBlob)


def test_status_of_all():
    cluster = Cluster(7)
    answer = only(cluster.call(4, to_broker("overlay.status", target=0)))
    assert [(peer.rank, peer.state) for peer in body(answer, list[Peer])] == [(rank, "up") for rank in range(7)]


def test_numbers_of_all_machines():
    numbers = body(only(Cluster(2).call(1, to_broker("stats.get"))))
    assert {"kvs", "content", "event", "overlay", "lifecycle", "exec"} <= set(numbers)
    assert isinstance(error(only(Cluster(1).call(0, to_broker("stats.other")))), errors.InvalidRequest)


# -------------------------------------------------------------------------------------------------------- disconnection


def test_all_machines_drop_the_state_of_a_disconnected_client():
    cluster = Cluster(3)
    for topic, record in (
        ("kvs.watch", WatchRequest("k")),
        ("kvs.get", GetRequest("k", at_least=9)),
        ("event.subscribe", Subscribe("")),
        ("exec.run", RunRequest(["sleep", "1"])),
    ):
        cluster.step(1, to_broker(topic, record))
    cluster.run()
    cluster.take(1, cluster.brokers[1].disconnect(CLIENT, NOW))
    out = cluster.run()
    assert [(rank, msg.topic, msg.hop) for rank, msg in out] == [(1, "launcher.signal", LAUNCHER)]
    numbers = cluster.brokers[1].statistics()
    assert (numbers["kvs"]["watchers"], numbers["kvs"]["parked"], numbers["event"]["subscriptions"]) == (0, 0, 0)


def test_requests_that_wait_at_other_brokers_end_with_their_client():
    cluster = Cluster(7)
    for target in (-1, 0, 3, 6):
        cluster.step(5, to_broker("kvs.get", GetRequest("k", at_least=9), target=target))
        cluster.step(5, to_broker("kvs.getroot", GetRoot("primary", 9), target=target, hop=OTHER))
    cluster.step(6, to_broker("kvs.getroot", GetRoot("primary", 9)))  # its hop at broker 6 is that of the other's at 5
    cluster.run()
    parked = [broker.statistics()["kvs"]["parked"] for broker in cluster.brokers]
    assert parked == [2, 0, 0, 2, 0, 2, 3]
    cluster.take(5, cluster.brokers[5].disconnect(CLIENT, NOW))
    assert cluster.run() == []
    parked = [broker.statistics()["kvs"]["parked"] for broker in cluster.brokers]
    assert parked == [1, 0, 0, 1, 0, 1, 2]


def test_commands_on_other_ranks_end_with_their_client():
    cluster = Cluster(7)
    for target in (0, 4, 6):
        cluster.step(5, to_broker("exec.run", RunRequest(["sleep", "1"]), target=target))
    cluster.step(5, to_broker("exec.run", RunRequest(["sleep", "1"]), target=3, hop=OTHER))
    cluster.run()
    cluster.take(5, cluster.brokers[5].disconnect(CLIENT, NOW))
    assert sorted((rank, msg.topic) for rank, msg in cluster.run()) == [(rank, "launcher.signal") for rank in (0, 4, 6)]


def test_no_state_is_kept_for_ranks_that_do_not_exist():
    cluster = Cluster(3)
    for target in range(100, 200):
        cluster.step(1, to_broker("exec.run", RunRequest(["true"]), target=target))
    cluster.run()
    assert cluster.brokers[1].remote_state == {}


def test_responses_to_own_machines_are_delivered_by_tag():
    broker = Broker(Config(), NOW)
    asked = request("nothing.here", tag=broker.registry.machines.index(broker.kvs))
    asked.hop = LOCAL
    assert broker.step(asked, NOW) == [], "the error is the response to the machine, which has no such request"


# ----------------------------------------------------------------------------------- no request ends a broker (fuzzing)

SHA256 = digest_function("sha256")
KEYS = st.sampled_from(["a", "a.b", "a.b.c", "l", "l.x", ".", "", "a..b", "\0", "a" * 5000, "é", "a.", ".a"])
NAMESPACES = st.sampled_from(["primary", "primary", "primary", "other", ""])
NUMBERS = st.sampled_from([0, 1, 2, 3, -1, 10, 1 << 31, -(1 << 63), (1 << 64) - 1])
BYTES = st.sampled_from(
    [b"", b"x", bytes(300), bytes(32), bytes(20), SHA256(b"x"), SHA256(b""), SHA256(b"\x93\x00\x90\x90")]
)
TYPES = st.sampled_from(["raw", "json", "ndarray;<f8;1", "", "other"])
OBJECTS = st.one_of(
    st.builds(Val, TYPES, BYTES),
    st.builds(ValRef, TYPES, NUMBERS, st.lists(BYTES, max_size=3).map(tuple)),
    st.builds(Dir, BYTES),
    st.builds(Link, KEYS, st.one_of(st.none(), NAMESPACES)),
)
OPS = st.one_of(
    st.builds(Put, KEYS, OBJECTS),
    st.builds(Append, KEYS, BYTES),
    st.builds(Unlink, KEYS),
    st.builds(Mkdir, KEYS),
    st.builds(PutShared, KEYS, NUMBERS),
)
IDS = st.builds(CommitId, st.sampled_from(["c", "d", ""]), NUMBERS)
AT = st.one_of(st.none(), NUMBERS, BYTES)
BODIES = {
    "kvs.commit": st.builds(Commit, NAMESPACES, IDS, NUMBERS, st.lists(OPS, max_size=3)),
    "kvs.fence": st.builds(
        Fence,
        NAMESPACES,
        st.sampled_from("fg"),
        st.integers(-1, 3),
        st.lists(st.builds(Contribution, IDS, st.lists(OPS, max_size=2)), max_size=2),
        st.lists(OBJECTS, max_size=1),
    ),
    "kvs.get": st.builds(GetRequest, KEYS, NAMESPACES, AT, NUMBERS, st.booleans(), st.booleans()),
    "kvs.list": st.builds(ListRequest, KEYS, NAMESPACES, AT, NUMBERS, KEYS, KEYS, NUMBERS),
    "kvs.watch": st.builds(WatchRequest, KEYS, NAMESPACES, NUMBERS, st.booleans(), st.booleans()),
    "kvs.cancel": st.builds(Cancel, NUMBERS),
    "kvs.getroot": st.builds(GetRoot, NAMESPACES, NUMBERS, st.booleans(), st.one_of(st.none(), NUMBERS)),
    "leader.commit": st.builds(Commit, NAMESPACES, IDS, NUMBERS, st.lists(OPS, max_size=3)),
    "roots.get": st.builds(GetRoot, NAMESPACES, NUMBERS),
    "content.load": st.builds(LoadRequest, BYTES),
    "content.store": st.sampled_from([b"x", b"\x93\x00\x90\x90"]),
    "content.dropcache": st.none(),
    "event.publish": st.builds(Publish, KEYS, BYTES),
    "event.subscribe": st.builds(Subscribe, KEYS),
    "event.unsubscribe": st.builds(Subscribe, KEYS),
    "ping.ping": st.builds(Ping, NUMBERS, BYTES),
    "overlay.status": st.none(),
    "overlay.info": st.none(),
    "exec.run": st.builds(RunRequest, st.lists(st.sampled_from(["", "true", "\0"]), max_size=2)),
    "exec.kill": st.builds(Kill, NUMBERS, NUMBERS),
    "exec.disconnect": st.none(),
    "stats.get": st.none(),
    "lifecycle.getattr": st.builds(GetAttr, KEYS),
    "lifecycle.lsattr": st.none(),
    "lifecycle.shutdown": st.builds(Shutdown, st.sampled_from([-1, 256, 1 << 40])),
    "checkpoint.save": st.builds(Save, st.one_of(st.none(), KEYS)),
    "checkpoint.restore": st.builds(Restore, KEYS),
    "launcher.spawn": st.none(),
    "disk.saved": st.none(),
    "lifecycle.lost": st.none(),
}


@st.composite
def wild_requests(draw):
    topic = draw(st.sampled_from(sorted(BODIES)))
    record = draw(BODIES[topic])
    raw = record if type(record) is bytes else encode_body(record)
    if draw(st.integers(0, 9)) == 0:
        raw = draw(st.one_of(st.binary(max_size=20), st.just(raw[:-1]), BODIES_OF_OTHERS))
    target = draw(st.sampled_from([ANY, ANY, ANY, ANY, 0, 1, 2, 9]))
    return to_broker(topic, raw=raw, target=target, tag=draw(NUMBERS), hop=draw(st.sampled_from([CLIENT, OTHER])))


BODIES_OF_OTHERS = st.sampled_from(sorted(BODIES)).flatmap(
    lambda topic: BODIES[topic].map(lambda record: record if type(record) is bytes else encode_body(record))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), wild_requests()), max_size=25), st.integers(0, 2))
def test_no_request_ends_a_broker(requests, quiet):
    """Whatever clients send, the brokers' invariants hold, and other clients get responses."""
    cluster = Cluster(3)
    for number, (rank, msg) in enumerate(requests):
        cluster.step(rank, msg)
        if number % 3 >= quiet:
            cluster.run()
    cluster.run()
    hop = OTHER - 1
    for rank in range(3):
        out = cluster.call(rank, to_broker("kvs.commit", commit(1, put("fine", rank), client=f"w{rank}"), hop=hop))
        assert body(only([msg for msg in out if msg.hop == hop]), RootInfo).version > 0
        out = cluster.call(rank, to_broker("kvs.get", GetRequest("fine"), hop=hop))
        assert body(only([msg for msg in out if msg.hop == hop]), Got).data == str(rank).encode()
    for rank in range(3):
        for hop in (CLIENT, OTHER):
            cluster.take(rank, cluster.brokers[rank].disconnect(hop, NOW))
    cluster.run()
    assert all(broker.statistics()["kvs"]["watchers"] == 0 for broker in cluster.brokers)
    assert isinstance(msgspec.msgpack.encode(cluster.brokers[0].statistics()), bytes)
