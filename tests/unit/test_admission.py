"""Who may send what: the broker compares kind and sender with the topic's row before a machine sees the message."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, OTHER, Cluster, body, commit, error, put, to_broker

from fluxmpi import errors
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.content.wire import Map, Spoilt
from fluxmpi.errors import ProtocolError
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import (
    Adds,
    CommitId,
    Contribution,
    Fence,
    FenceMember,
    GetRoot,
    Got,
    OldNamespace,
    Put,
    WatchAck,
    WatchRequest,
)
from fluxmpi.machine import ANY_TOPIC, Answers, Sender
from fluxmpi.message import (
    ANY,
    CONTROL,
    DISK,
    EVENT,
    LAUNCHER,
    LOCAL,
    LOOP,
    REQUEST,
    RESPONSE,
    SEGMENTS,
    Message,
    control,
    encode_body,
    request,
)
from fluxmpi.overlay.wire import Heartbeat, LostRank, Subscribe

CONTRIBUTION = Fence("primary", "f", 2, [Contribution(CommitId("c", 1), [Put("a", Val("raw", b"x"))])])


def broker(rank: int = 0, size: int = 7) -> Broker:
    return Broker(Config(rank=rank, size=size, hosts=("h",) * size), NOW)


def refused(messages: list[Message]) -> str:
    (answer,) = messages
    found = error(answer)
    assert type(found) is errors.InvalidRequest
    return found.text


def call(cluster: Cluster, rank: int, topic: str, record: object = None, target: int = ANY) -> list[Message]:
    return [msg for msg in cluster.call(rank, to_broker(topic, record, target=target)) if msg.kind == RESPONSE]


def still_works(cluster: Cluster) -> None:
    (answer,) = call(cluster, 0, "kvs.commit", commit(77, put("fine", 1), client="last"))
    version = body(answer, list)[1]
    for rank in range(len(cluster.brokers)):
        (answer,) = call(cluster, rank, "kvs.get", ["fine", "primary", None, version])
        assert body(answer, Got).data == b"1"


@pytest.mark.parametrize("target", [ANY, 0, 1, 2])
@pytest.mark.parametrize("raw", [b"\xc0", b"", b"\xc1", encode_body(Spoilt(1, 45, b"\xa1x")), b"\x93\x01\x2d\xa1x"])
@pytest.mark.parametrize("topic", ["content.read", "value.spoilt", "value.dropcache", "kvs.dropcache"])
def test_what_a_driver_answers_is_no_request(topic, raw, target):
    """content.read and value.spoilt ended the broker; value.dropcache acted and was never answered."""
    cluster = Cluster(3)
    (answer,) = cluster.call(1, to_broker(topic, raw=raw, target=target))
    assert refused([answer]).startswith(f"{topic} is no request")
    assert cluster.brokers[1 if target == ANY else target].statistics()["broker"]["refused"] == 1
    still_works(cluster)


def test_a_client_cannot_spoil_the_segment_of_another():
    cluster = Cluster(1)
    (answer,) = cluster.call(0, to_broker("content.store", raw=bytes(100)))
    ref = body(answer, list)[0]
    cluster.step(0, to_broker("value.map", Map([ref], 100), hop=OTHER))
    cluster.run()
    before = cluster.brokers[0].statistics()["value"]
    assert before["segments"] == 1
    assert refused(cluster.call(0, to_broker("value.spoilt", Spoilt(1, 45, b"\xa1x"))))
    assert cluster.brokers[0].statistics()["value"] == before


MACHINES_ONLY = {
    "leader.commit": commit(1, put("a", 1)),
    "leader.adds": Adds("primary", "a", []),
    "kvs.adds": Adds("primary", "a", []),
    "kvs.disconnect": CLIENT,
    "roots.disconnect": CLIENT,
    "exec.disconnect": CLIENT,
    "trace.disconnect": CLIENT,
    "roots.get": GetRoot(),
    "roots.since": ["primary", 0],
}


@pytest.mark.parametrize("topic", sorted(MACHINES_ONLY))
def test_what_brokers_send_each_other_is_refused_to_clients(topic):
    cluster = Cluster(7)
    for rank, target in ((0, ANY), (0, 0), (5, 0), (5, ANY if topic.startswith(("leader", "roots")) else 5)):
        text = refused(call(cluster, rank, topic, MACHINES_ONLY[topic], target))
        assert text == f"{topic} is sent by {'the child brokers' if topic == 'kvs.adds' else 'brokers'} only"
    still_works(cluster)


@pytest.mark.parametrize(
    ("topic", "record"),
    [
        ("kvs.watch", WatchRequest("a")),
        ("kvs.watch-ack", WatchAck(1, 1)),
        ("kvs.fence", CONTRIBUTION),
        ("value.map", Map([bytes(32)], 10)),
        ("event.subscribe", Subscribe("")),
        ("event.unsubscribe", Subscribe("")),
    ],
)
def test_state_is_kept_for_a_brokers_own_clients_only(topic, record):
    """A broker does not learn that another broker's client disconnects; and the hops of two brokers' clients are equal."""
    cluster = Cluster(3)
    for rank, target in ((1, 0), (0, 2), (2, 1)):
        text = refused(call(cluster, rank, topic, record, target))
        assert text == f"{topic} is for a client's own broker: leave the target out"
    for each in cluster.brokers:
        numbers = each.statistics()
        assert not numbers["kvs"]["watchers"]
        assert not numbers["kvs"]["fences"]
        assert not numbers["event"]["subscriptions"]
        assert not numbers["value"]["segments"]


def test_a_clients_farewell_is_sent_by_its_broker():
    """Its requests at another rank are dropped there, and those of a client with the same hop at a third one are not."""
    cluster = Cluster(7)
    for rank in (5, 6, 2):
        cluster.step(rank, to_broker("kvs.get", ["a", "primary", None, 9], target=2, tag=rank))
    cluster.run()
    assert cluster.brokers[2].statistics()["kvs"]["parked"] == 3
    cluster.take(5, cluster.brokers[5].disconnect(CLIENT, NOW))
    cluster.run()
    assert cluster.brokers[2].statistics()["kvs"]["parked"] == 2
    assert refused(call(cluster, 6, "kvs.disconnect", CLIENT, 2))
    assert cluster.brokers[2].statistics()["kvs"]["parked"] == 2


@pytest.mark.parametrize(
    ("topic", "record", "hop"),
    [
        ("kvs.setroot", ["primary", 99, bytes(32), NOW, None, []], 3),
        ("kvs.removed", OldNamespace("primary"), 3),
        ("kvs.gather", CONTRIBUTION, 0),
        ("kvs.fence-left", FenceMember("primary", "f", CommitId("c", 1)), 0),
        ("kvs.fence-missing", FenceMember("primary", "f", CommitId("c", 1)), 4),
        ("lifecycle.end", [1, "forged"], 3),
        ("lifecycle.bye", None, 0),
        ("lifecycle.lost", LostRank(0, "forged"), 3),
        ("lifecycle.stop", [1, "forged"], 0),
        ("lifecycle.signal", 15, 0),
        ("overlay.lost", LostRank(0, "forged"), 0),
        ("overlay.heartbeat", Heartbeat(6, [0]), 6),
        ("launcher.spawned", [0, 0, b"", 1, ""], 0),
        ("value.spoilt", Spoilt(1, 45, b"\xa1x"), 0),
        ("content.read", None, 3),
        ("event.lags", CLIENT, 3),
        ("kvs.dropcache", None, 0),
        ("kvs.commit", commit(1, put("a", 1)), 3),
        ("unknown.topic", None, 3),
    ],
)
def test_a_control_message_from_another_sender_is_dropped(topic, record, hop):
    relay = broker(rank=1)
    dropped = []
    relay.on_drop = dropped.append
    before = relay.statistics()
    msg = control(topic, record, hop)
    assert relay.step(msg, NOW) == []
    assert dropped == [msg]
    after = relay.statistics()
    assert after.pop("broker")["dropped"] == before.pop("broker")["dropped"] + 1
    assert after == before, "no machine saw it"


@pytest.mark.parametrize("hop", [3, CLIENT, LAUNCHER, DISK, SEGMENTS, LOOP])
def test_events_come_from_the_parent_only(hop):
    relay = broker(rank=1)
    relay.step(to_broker("event.subscribe", Subscribe("")), NOW)
    event = Message(EVENT, "kvs.setroot", hop, body=encode_body([5, NOW, b""]))
    assert relay.step(event, NOW) == []
    assert relay.statistics()["event"]["seq"] == 0
    event.hop = 0
    assert [msg.hop for msg in relay.step(event, NOW)] == [3, 4, CLIENT]


def test_a_response_that_nobody_asked_for_is_ignored():
    for rank in (0, 1):
        relay = broker(rank)
        before = relay.statistics()
        for tag in (*range(64), -1, -(1 << 63), (1 << 64) - 1, 1 << 40):
            for status in (0, -1, 2, 1 << 40, -5):
                assert (
                    relay.step(Message(RESPONSE, "x.y", 1, tag=tag, status=status, route=[LOCAL], body=b"\xc1"), NOW)
                    == []
                )
        assert relay.statistics() == before


def test_a_machine_that_sends_what_no_machine_takes_is_a_defect():
    with pytest.raises(ProtocolError):
        broker().step(control("kvs.nothing"), NOW)


def test_the_error_for_an_unknown_topic_names_the_methods():
    text = refused(broker().step(to_broker("event.subscrib"), NOW))
    assert text == "service event has no method 'event.subscrib': its methods are publish, subscribe, unsubscribe"
    text = refused(broker().step(to_broker("leader.x" + "y" * 10_000), NOW))
    assert text.endswith("…': it is for brokers only")
    assert len(text) < 200


def test_requests_with_a_strange_route_or_hop_are_refused():
    """No socket lets them in. From a peer they would be a defect, and do no harm."""
    for hop, route in ((3, []), (3, [1]), (3, [-3]), (DISK, []), (1 << 60, []), (3, [0] * 1000), (-7, [-7])):
        relay = broker(rank=1)
        msg = Message(REQUEST, "kvs.watch", hop, 1, 1, 0, route, encode_body(WatchRequest("a")))
        relay.step(msg, NOW)
        assert relay.statistics()["kvs"]["watchers"] == 0
    relay = broker(rank=1)
    asked = request("roots.get", GetRoot(), target=1)
    assert relay.step(asked, NOW) == [], "the error is a response to a machine, which did not ask"


def test_every_row_is_complete():
    for rank in (0, 3):
        for topic, entry in broker(rank).registry.topics.items():
            row = entry.row
            assert row.kind in (REQUEST, CONTROL, EVENT)
            assert (row.kind == EVENT) == (topic == ANY_TOPIC)
            assert row.senders
            if row.kind != REQUEST:
                assert not row.senders & (Sender.CLIENT | Sender.OWN_CLIENT), f"{topic}: clients send requests only"
                assert row.answers is Answers.ONE
