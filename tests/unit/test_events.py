"""Publish and subscribe at one broker: sequence numbers, recipients, and errors."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import CLIENT, NOW, OTHER, ask, body, control_from, error

from fluxmpi import errors
from fluxmpi.message import EVENT, EVENT_PAYLOAD_BYTES_MAX, EVENT_TOPIC_MAX, RESPONSE, Message, encode_body
from fluxmpi.overlay.events import EventLimits, EventService
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import EventRecord, Publish, Subscribe, Unsubscribed


def events(rank=0, size=4):
    return EventService(Router(rank, size))


def subscribe(machine, prefix, hop=CLIENT):
    (answer,) = machine.step(ask("event.subscribe", Subscribe(prefix), hop=hop), NOW)
    return body(answer)


def publish(machine, topic, payload=b""):
    return machine.step(ask("event.publish", Publish(topic, payload), tag=9), NOW)


def event(topic, seq, payload=b""):
    return Message(EVENT, topic, 0, body=encode_body(EventRecord(seq, NOW, payload)))


def test_rank_0_numbers_events_and_answers_after_it_sent_them():
    machine = events()
    for seq in (1, 2, 3):
        *out, answer = publish(machine, "run.ready", b"x")
        assert [(msg.kind, msg.topic, msg.hop) for msg in out] == [(EVENT, "run.ready", 1), (EVENT, "run.ready", 2)]
        assert {msg.body for msg in out} == {encode_body(EventRecord(seq, NOW, b"x"))}
        assert (answer.kind, body(answer)) == (RESPONSE, seq)
    assert machine.statistics() == {
        "seq": 3,
        "published": 3,
        "delivered": 0,
        "subscriptions": 0,
        "subscription_bytes": 0,
        "lagged": 0,
    }


def test_a_broker_forwards_events_unchanged_and_records_the_last():
    machine = events(rank=1, size=5)
    out = machine.step(event("a", 41, b"p"), NOW)
    assert [(msg.hop, msg.body) for msg in out] == [(3, encode_body(EventRecord(41, NOW, b"p"))), (4, out[0].body)]
    assert subscribe(machine, "a") == 41, "the response has the number of the last event before the stream"


def test_a_lost_child_gets_nothing():
    machine = events()
    machine.router.mark_lost(1, "test")
    assert [msg.hop for msg in publish(machine, "a")[:-1]] == [2]


PREFIXES = ["", "run", "run.", "run.a", "stop"]


@given(
    st.lists(st.tuples(st.sampled_from(PREFIXES), st.sampled_from([CLIENT, OTHER]))),
    st.sampled_from(["run.a", "ru", "stop"]),
)
def test_each_subscriber_of_a_prefix_gets_an_event_once(subscriptions, topic):
    machine = events(rank=3)
    for prefix, hop in subscriptions:
        subscribe(machine, prefix, hop)
    machine.check()
    out = machine.step(event(topic, 1), NOW)
    expected = {hop for prefix, hop in subscriptions if topic.startswith(prefix)}
    assert sorted(msg.hop for msg in out) == sorted(expected)
    assert machine.statistics()["subscriptions"] == len(set(subscriptions))


def test_unsubscribing_and_disconnecting():
    machine = events(rank=3)
    for hop in (CLIENT, OTHER):
        subscribe(machine, "run.", hop)
    subscribe(machine, "stop", OTHER)
    (answer,) = machine.step(ask("event.unsubscribe", Subscribe("run.")), NOW)
    assert body(answer) is None
    assert [msg.hop for msg in machine.step(event("run.x", 1), NOW)] == [OTHER]
    (answer,) = machine.step(ask("event.unsubscribe", Subscribe("run.")), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert machine.disconnect(OTHER, NOW) == []
    assert machine.step(event("run.x", 2), NOW) == machine.step(event("stop", 3), NOW) == []
    assert machine.statistics()["subscriptions"] == 0
    machine.check()


@pytest.mark.parametrize(
    ("topic", "body_", "kind", "text"),
    [
        ("event.publish", Publish("", b""), errors.InvalidRequest, "topic"),
        ("event.publish", Publish("a" * (EVENT_TOPIC_MAX + 1), b""), errors.InvalidRequest, "topic"),
        ("event.publish", Publish("a", bytes(EVENT_PAYLOAD_BYTES_MAX + 1)), errors.TooLarge, "payload"),
        ("event.publish", [1], errors.InvalidRequest, "decode"),
        ("event.subscribe", None, errors.InvalidRequest, "decode"),
        ("event.subscribe", Subscribe("a" * (EVENT_TOPIC_MAX + 1)), errors.InvalidRequest, "a prefix of"),
        ("event.listen", None, errors.InvalidRequest, "no method 'event.listen'"),
    ],
)
def test_an_invalid_request_gets_an_error_and_changes_nothing(topic, body_, kind, text):
    machine = events()
    (answer,) = machine.step(ask(topic, body_), NOW)
    assert type(error(answer)) is kind
    assert text in error(answer).text
    assert machine.seen == 0


def test_the_largest_event_passes():
    out = publish(events(size=1), "a" * EVENT_TOPIC_MAX, bytes(EVENT_PAYLOAD_BYTES_MAX))
    assert body(out[-1]) == 1


def test_only_rank_0_publishes():
    (answer,) = publish(events(rank=1), "a")
    assert isinstance(error(answer), errors.InvalidRequest)


def test_the_subscriptions_of_a_client_that_lags_end_with_the_last_number():
    machine = events(rank=3)
    for prefix, hop in (("run.", CLIENT), ("", CLIENT), ("run.", OTHER)):
        subscribe(machine, prefix, hop)
    for seq in range(1, 8):
        machine.step(event("run.x", seq), NOW)
    (end,) = machine.step(control_from("event.lags", CLIENT), NOW)
    assert (end.kind, end.hop, end.status) == (EVENT, CLIENT, errors.Overloaded.code)
    over = msgspec.msgpack.decode(end.body, type=Unsubscribed)
    assert (over.seq, over.prefixes) == (7, ["run.", ""])
    assert machine.step(control_from("event.lags", CLIENT), NOW) == [], "it is notified once"
    assert [msg.hop for msg in machine.step(event("run.x", 8), NOW)] == [OTHER]
    assert subscribe(machine, "run.", CLIENT) == 8, "it may subscribe again"
    assert machine.statistics()["lagged"] == 1
    machine.check()


def test_subscriptions_are_bounded():
    machine = EventService(Router(3, 4), EventLimits(subscriptions_max=3, subscriptions_client_max=2))
    for prefix in ("a", "b", "a"):
        subscribe(machine, prefix)
    subscribe(machine, "a", OTHER)
    for hop, text in ((CLIENT, "this client has 2"), (OTHER, "this broker has 3")):
        (answer,) = machine.step(ask("event.subscribe", Subscribe("c"), hop=hop), NOW)
        assert isinstance(error(answer), errors.Overloaded)
        assert text in error(answer).text
    machine.disconnect(CLIENT, NOW)
    subscribe(machine, "c", OTHER)
    machine.check()
