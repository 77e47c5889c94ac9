"""The trace service: what is recorded, in which order, how much, and for whom."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from machines import CLIENT, NOW, OTHER, Cluster, ask, body, commit, error, put, to_broker

from fluxmpi import errors
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.outbox import sort_outgoing
from fluxmpi.broker.tracer import TraceLimits, Tracer
from fluxmpi.broker.wire import TraceChunk, TraceMark, TraceRead, TraceRecord, TraceStart, TraceState, TraceStop
from fluxmpi.cli.trace import connecting
from fluxmpi.cli.trace_formats import Chrome, Merger, Unanswered, as_json, as_line
from fluxmpi.message import ANY, CONTROL, LOCAL, REQUEST, RESPONSE, Message, control
from fluxmpi.overlay.topology import parents
from fluxmpi.overlay.wire import Ping


class SkewedCluster(Cluster):
    """Brokers whose clocks differ by ``skews``, and whose batches carry marks, as in the loop."""

    def __init__(self, size: int, skews: dict[int, float], **config: Any) -> None:
        self.skews = skews
        super().__init__(size, **config)

    def take(self, rank: int, messages: list[Message]) -> None:
        outgoing = sort_outgoing(messages)
        if self.brokers[rank].tracer.on:
            self.brokers[rank].tracer.mark(outgoing.peers)
        super().take(rank, [msg for batch in outgoing.peers.values() for msg in batch])
        super().take(rank, [msg for batch in outgoing.clients.values() for msg in batch] + outgoing.drivers)

    def step(self, rank: int, msg: Message) -> None:
        self.now += 0.001
        self.take(rank, self.brokers[rank].step(msg, self.now + self.skews.get(rank, 0.0)))

    def start(self) -> None:
        for rank in range(len(self.brokers)):
            assert body(self.call(rank, to_broker("trace.start", TraceStart()))[0], TraceState).on

    def records(self) -> list[tuple[int, TraceRecord]]:
        """All records, merged."""
        merger = Merger(range(len(self.brokers)))
        for rank in range(len(self.brokers)):
            chunk = body(self.call(rank, to_broker("trace.read", TraceRead(), tag=2))[0], TraceChunk)
            merger.add(rank, decoded(chunk), (chunk.time, chunk.count))
        return list(merger.released(all_of_them=True))


def decoded(chunk: TraceChunk) -> list[TraceRecord]:
    return [msgspec.msgpack.decode(record, type=TraceRecord) for record in chunk.records]


def shown(records: list[tuple[int, TraceRecord]], topic: str = "") -> list[str]:
    """Rank, source, target, kind and topic of the records whose topic begins so."""
    found = [as_json(rank, record) for rank, record in records]
    return [
        f"{each['rank']}: {each['source']} → {each['target']} {each['kind']} {each['topic']}"
        for each in found
        if each["topic"].startswith(topic)
    ]


def broker_of_one(**limits: int) -> Broker:
    return Broker(Config(trace=TraceLimits(**limits)), NOW)


def read(broker: Broker, start: int = 0) -> TraceChunk:
    (answer,) = broker.step(to_broker("trace.read", TraceRead(start)), NOW)
    return body(answer, TraceChunk)


def ping(broker: Broker, count: int = 1) -> None:
    for _ in range(count):
        broker.step(to_broker("ping.ping", Ping(1)), NOW)


# ----------------------------------------------------------------------------------------------------------- recording


def test_a_broker_records_nothing_until_it_is_asked_to():
    broker = broker_of_one()
    ping(broker)
    assert read(broker) == TraceChunk(False, 0, 0, False, NOW, 0, [])
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    ping(broker)
    assert shown([(0, record) for record in decoded(read(broker))]) == [
        "0: client-16 → overlay request ping.ping",
        "0: overlay → client-16 response ping.ping",
    ]


def test_each_hop_of_a_request_is_a_record():
    cluster = SkewedCluster(4, {})
    cluster.start()
    cluster.call(3, to_broker("ping.ping", Ping(1), target=2, hop=OTHER))
    assert shown(cluster.records(), "ping.") == [
        "3: client-17 → rank 1 request ping.ping",
        "1: rank 3 → rank 0 request ping.ping",
        "0: rank 1 → rank 2 request ping.ping",
        "2: rank 0 → overlay request ping.ping",
        "2: overlay → rank 0 response ping.ping",
        "0: rank 2 → rank 1 response ping.ping",
        "1: rank 0 → rank 3 response ping.ping",
        "3: rank 1 → client-17 response ping.ping",
    ]


def test_messages_between_machines_are_recorded():
    broker = broker_of_one()
    broker.start(NOW)
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    broker.step(to_broker("kvs.commit", commit(1, put("a", 1))), NOW)
    broker.tick(NOW)
    lines = shown([(0, record) for record in decoded(read(broker))])
    assert lines[:2] == ["0: client-16 → kvs request kvs.commit", "0: kvs → leader request leader.commit"]
    assert "0: leader → kvs control kvs.setroot" in lines
    assert lines[-1] == "0: kvs → client-16 response kvs.commit"


def test_messages_of_the_trace_service_are_not_recorded_but_events_of_that_name_are():
    broker = broker_of_one()
    for topic, request in (("trace.start", TraceStart()), ("trace.read", TraceRead()), ("event.subscribe", [""])):
        broker.step(to_broker(topic, request), NOW)
    broker.step(to_broker("event.publish", ["trace.me", b""]), NOW)
    topics = [record.topic for record in decoded(read(broker))]
    assert topics == ["event.subscribe", "event.subscribe", "event.publish", "trace.me", "event.publish"]


def test_a_record_has_the_fields_of_its_message():
    broker = broker_of_one()
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    broker.step(to_broker("kvs.get", 7, tag=9), NOW + 1)
    asked, answered = decoded(read(broker))
    assert (asked.kind, asked.topic, asked.tag, asked.status, asked.to) == (REQUEST, "kvs.get", 9, 0, ANY)
    assert (asked.source, asked.target, asked.handler, asked.route, asked.bytes) == (CLIENT, LOCAL, "kvs", [CLIENT], 1)
    assert (answered.kind, answered.status, answered.maker) == (RESPONSE, errors.InvalidRequest.code, "kvs")
    assert (answered.source, answered.target, answered.clock) == (LOCAL, CLIENT, NOW + 1)


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("skews", [{}, {0: -5.0}, {1: -3.0, 3: 4.0}, {3: -100.0}])
def test_a_receipt_is_never_before_its_sending_whatever_the_clocks(skews):
    """The clocks of the brokers differ by seconds, and a message takes a millisecond."""
    cluster = SkewedCluster(4, skews)
    cluster.start()
    for tag in range(5):
        cluster.call(3, to_broker("kvs.commit", commit(tag + 1, put(f"k{tag}", tag)), tag=tag, hop=OTHER))
        cluster.call(2, to_broker("ping.ping", Ping(tag), target=3, tag=tag, hop=OTHER))
    cluster.run(seconds=5.0)
    sent, pairs = {}, 0
    for place, (rank, record) in enumerate(cluster.records()):
        ends = as_json(rank, record)
        if ends["received"] is not None:
            pairs += 1
            assert ends["received"] in sent, f"received before it was sent: {as_line(rank, record)}"
            before, message = sent.pop(ends["received"])
            assert before < place
            assert (message.kind, message.topic, message.bytes) == (record.kind, record.topic, record.bytes)
        if ends["sent"] is not None:
            sent[ends["sent"]] = place, record
    assert pairs > 40
    assert not [record.topic for _, record in sent.values()], "what was sent was received"


def test_a_second_recording_shares_no_message_number_with_the_first():
    cluster = SkewedCluster(2, {})
    names = []
    for _ in range(2):
        cluster.start()
        cluster.call(1, to_broker("ping.ping", Ping(1), target=0, hop=OTHER))
        names.append({as_json(rank, record)["sent"] for rank, record in cluster.records()} - {None})
        for rank in range(2):
            cluster.call(rank, to_broker("trace.stop", TraceStop(), tag=3))
    assert len(names[0]) == len(names[1]) == 2
    assert names[0].isdisjoint(names[1])


def test_a_mark_moves_the_clock_forward_and_never_back():
    tracer = Tracer(TraceLimits())
    tracer.step(ask("trace.start", TraceStart()), NOW)
    for time, count in ((NOW + 50, 3), (NOW - 50, 9)):
        mark = control("trace.mark", TraceMark(time, count, 1), 5)
        assert tracer.step(Message(CONTROL, "trace.mark", 5, body=mark.body), NOW) == []
        (answer,) = tracer.step(ask("trace.read", TraceRead()), NOW)
        assert (body(answer, TraceChunk).time, body(answer, TraceChunk).count) == (NOW + 50, 3)


def test_records_are_released_when_no_broker_can_have_an_earlier_one():
    def record(time: float) -> TraceRecord:
        return TraceRecord(time, 0, time, 0, "", 1, "", -1, -1, CONTROL, "a.b", 0, 0, ANY, [], 0)

    merger = Merger([0, 1])
    merger.add(0, [record(1.0), record(3.0)], (4.0, 0))
    assert list(merger.released()) == [], "rank 1 may have one of time 0"
    merger.add(1, [record(2.0)], (2.5, 0))
    assert [(rank, entry.time) for rank, entry in merger.released()] == [(0, 1.0), (1, 2.0)]
    merger.leave_out(1)
    assert [(rank, entry.time) for rank, entry in merger.released()] == [(0, 3.0)]


def test_the_brokers_between_the_traced_ones_record_too():
    tree = parents("kary:2", 15)
    assert connecting([7, 8], tree) == [3, 7, 8]
    assert connecting([7, 4], tree) == [1, 3, 4, 7]
    assert connecting([14, 7], tree) == [0, 1, 2, 3, 6, 7, 14]
    assert connecting([5], tree) == [5]
    assert connecting([1, 7], tree) == [1, 3, 7]


# -------------------------------------------------------------------------------------------------------------- bounds


def test_the_ring_drops_its_oldest_records():
    broker = broker_of_one(entries_max=10)
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    ping(broker, 20)
    chunk = read(broker)
    assert (chunk.first, chunk.next, len(chunk.records)) == (30, 40, 10)
    broker.check()


def test_the_ring_is_bounded_in_bytes():
    broker = broker_of_one(bytes_max=1000)
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    for number in range(50):
        broker.step(to_broker("x" * number), NOW)
        broker.check()
    statistics = broker.statistics()["trace"]
    assert 800 < statistics["bytes"] <= 1000
    assert statistics["recorded"] == 50


def test_a_response_is_bounded_and_says_that_there_is_more():
    broker = broker_of_one(read_bytes_max=300)
    broker.step(to_broker("trace.start", TraceStart()), NOW)
    ping(broker, 20)
    found, at, more = [], 0, True
    while more:
        chunk = read(broker, at)
        assert chunk.first == at
        assert 0 < len(chunk.records) < 10
        found += decoded(chunk)
        at, more = chunk.next, chunk.more
    assert len(found) == 40


def test_followers_are_bounded():
    broker = broker_of_one(followers_max=2)
    for hop in (CLIENT, OTHER):
        broker.step(to_broker("trace.start", TraceStart(), hop=hop), NOW)
    (answer,) = broker.step(to_broker("trace.start", TraceStart(), hop=OTHER - 1), NOW)
    assert isinstance(error(answer), errors.Overloaded)
    (answer,) = broker.step(to_broker("trace.start", TraceStart(), hop=OTHER), NOW)
    assert body(answer, TraceState).on, "once more changes nothing"


# ----------------------------------------------------------------------------------------------------- on and off


def test_recording_ends_with_the_last_client_that_follows():
    broker = broker_of_one()
    for hop in (CLIENT, OTHER):
        broker.step(to_broker("trace.start", TraceStart(), hop=hop), NOW)
    ping(broker)
    broker.step(to_broker("trace.stop", TraceStop(), hop=OTHER), NOW)
    assert broker.statistics()["trace"]["records"] > 0
    broker.disconnect(CLIENT, NOW)
    statistics = broker.statistics()["trace"]
    assert (statistics["on"], statistics["records"]) == (0, 0)
    broker.check()


def test_recording_that_is_kept_outlives_its_client_until_it_is_switched_off():
    broker = broker_of_one()
    broker.step(to_broker("trace.start", TraceStart(keep=True)), NOW)
    broker.disconnect(CLIENT, NOW)
    broker.step(to_broker("trace.stop", TraceStop(), hop=OTHER), NOW)
    assert broker.tracer.on
    broker.step(to_broker("trace.stop", TraceStop(keep=True), hop=OTHER), NOW)
    assert not broker.tracer.on


def test_a_client_of_another_broker_that_disconnects_ends_its_recording():
    cluster = SkewedCluster(4, {})
    (answer,) = cluster.call(3, to_broker("trace.start", TraceStart(), target=0))
    assert body(answer, TraceState).on
    assert cluster.brokers[0].tracer.on
    cluster.take(3, cluster.brokers[3].disconnect(CLIENT, NOW))
    cluster.run()
    assert not cluster.brokers[0].tracer.on


@pytest.mark.parametrize("topic", ["trace.start", "trace.stop", "trace.read", "trace.none"])
def test_a_bad_request_is_answered_with_an_error(topic):
    broker = broker_of_one()
    (answer,) = broker.step(to_broker(topic, "x"), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)


# ------------------------------------------------------------------------------------------------------------- formats


def traced_commit(skews: dict[int, float] | None = None) -> list[tuple[int, TraceRecord]]:
    cluster = SkewedCluster(4, skews or {})
    cluster.start()
    cluster.call(3, to_broker("kvs.commit", commit(1, put("a", 1)), hop=OTHER))
    return cluster.records()


def test_a_line_has_the_simulators_format():
    record = TraceRecord(1.5, 0, 1.5, CLIENT, "", LOCAL, "kvs", -1, -1, REQUEST, "kvs.get", 3, 0, ANY, [CLIENT], 12)
    assert as_line(2, record) == (
        "1.500000 rank 2: client-16 → kvs       request  kvs.get              tag 3 status 0 target -1 route [-16] 12 bytes"
    )


def test_perfetto_gets_a_slice_for_each_end_and_an_arrow_for_each_message():
    records = traced_commit({1: -2.0})
    chrome = Chrome({rank: f"node{rank}" for rank in range(4)})
    events = [event for rank, record in records for event in chrome.events(rank, record)]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"rank 0 (node0)", "rank 1 (node1)", "rank 2 (node2)", "rank 3 (node3)"}
    tracks = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"kvs", "leader", "client-17", "forwarded"} <= set(tracks.values())
    slices = [event for event in events if event["ph"] == "X"]
    assert all((event["pid"], event["tid"]) in tracks for event in slices)
    begins = {event["id"]: event for event in events if event["ph"] == "s"}
    for end in (event for event in events if event["ph"] == "f"):
        assert begins[end["id"]]["ts"] < end["ts"], "an arrow points forward in time"
    joined = {event["id"] for event in events if event["ph"] == "f"}
    assert {as_json(*record)["received"] for record in records} - {None} <= joined
    places = [(event["pid"], event["tid"], event["ts"]) for event in slices]
    assert len(set(places)) == len(places), "no two slices of a track overlap"
    bars = [(event["ph"], event["name"]) for event in events if event["ph"] in "be"]
    assert bars == [("b", "kvs.commit"), ("e", "kvs.commit")]


def test_unanswered_requests_are_those_without_a_response():
    unanswered = Unanswered()
    records = traced_commit()
    for rank, record in records:
        unanswered.add(rank, record)
    assert unanswered.rest() == []
    unanswered = Unanswered()
    for rank, record in records[:-1]:
        unanswered.add(rank, record)
    assert [(rank, record.topic) for rank, record in unanswered.rest()] == [(3, "kvs.commit")]
