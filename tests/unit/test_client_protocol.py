"""The client's protocol core, fed bytes: no socket, no broker."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxmpi import errors
from fluxmpi.broker.wire import Hello
from fluxmpi.client.limits import HandleLimits
from fluxmpi.client.protocol import Connection, EventQueue, decoder, encode
from fluxmpi.client.session import Session
from fluxmpi.errors import (
    ConnectionLost,
    InvalidRequest,
    NoSuchKey,
    Overloaded,
    PermissionDenied,
    ProtocolError,
    TooLarge,
    encode_error,
)
from fluxmpi.message import (
    ANY,
    EVENT,
    FRAME_BYTES_MAX,
    LOCAL,
    MORE,
    OK,
    PROTOCOL,
    REQUEST,
    RESPONSE,
    Message,
    control,
    decode_batch,
    encode_batch,
    encode_body,
)
from fluxmpi.overlay.wire import EventRecord

HELLO = control("hello", Hello(PROTOCOL, "i1", 2, 4, "sha256", 77))


def frame(*messages: Message) -> bytes:
    batch = encode_batch(list(messages))
    return len(batch).to_bytes(4, "little") + batch


def response(tag: int, body: object = None, status: int = OK) -> Message:
    return Message(RESPONSE, "t", LOCAL, ANY, tag, status, [], encode_body(body))


def refusal(tag: int, error: Exception) -> Message:
    status, body = encode_error(error)  # type: ignore[arg-type]
    return Message(RESPONSE, "t", LOCAL, ANY, tag, status, [], body)


def event(seq: int, topic: str = "a.b") -> Message:
    return Message(EVENT, topic, body=encode_body(EventRecord(seq, 1.0, b"")))


def sent(connection: Connection) -> list[list[Message]]:
    """The messages of each frame that is to be written."""
    data, frames = connection.data_to_send(), []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        frames.append(decode_batch(data[4:end]))
        data = data[end:]
    return frames


@pytest.fixture
def connection() -> Connection:
    connection = Connection()
    connection.receive(frame(HELLO))
    return connection


# ------------------------------------------------------------------------------------------------------------- calls


def test_greeting_tells_where_we_are(connection: Connection) -> None:
    assert connection.hello is not None
    assert (connection.hello.rank, connection.hello.size, connection.hello.instance) == (2, 4, "i1")


def test_requests_gather_into_one_frame_with_tags_of_their_own(connection: Connection) -> None:
    first, second = connection.request("kvs.get", b"1"), connection.request("exec.run", b"2", 3)
    ((one, two),) = sent(connection)
    assert (one.kind, one.topic, one.target, one.tag, one.route, one.body) == (
        REQUEST,
        "kvs.get",
        ANY,
        first.tag,
        [],
        b"1",
    )
    assert (two.topic, two.target, two.tag) == ("exec.run", 3, second.tag)
    assert first.tag != second.tag
    assert min(first.tag, second.tag) > 0
    assert connection.data_to_send() == b""


def test_large_requests_travel_in_frames_of_their_own(connection: Connection) -> None:
    for size in (10, 1 << 20, 10, 10, 1 << 20):
        connection.request("t", b"x" * size)
    assert [[len(message.body) for message in messages] for messages in sent(connection)] == [
        [10],
        [1 << 20],
        [10, 10],
        [1 << 20],
    ]


def test_request_over_the_limit_is_refused_before_it_is_sent(connection: Connection) -> None:
    with pytest.raises(TooLarge, match="split it"):
        connection.request("t", bytes(FRAME_BYTES_MAX))
    assert connection.data_to_send() == b""


def test_answers_find_their_calls_in_any_order(connection: Connection) -> None:
    calls = [connection.request("t", b"") for _ in range(3)]
    connection.receive(frame(*(response(call.tag, call.tag * 10) for call in reversed(calls))))
    for call in calls:
        message = call.take()
        assert message is not None
        assert decoder(int)(message) == call.tag * 10
        assert call.ended


def test_error_of_the_service_is_raised(connection: Connection) -> None:
    call = connection.request("t", b"")
    connection.receive(frame(refusal(call.tag, NoSuchKey("there is no key 'x'"))))
    for _ in range(2):  # whoever asks again is told again
        with pytest.raises(NoSuchKey, match="no key 'x'"):
            call.take()


def test_stream_gives_each_answer_once_and_ends(connection: Connection) -> None:
    call = connection.request("t", b"")
    connection.receive(frame(response(call.tag, 1, MORE), response(call.tag, 2, MORE)))
    assert not call.ended
    connection.receive(frame(response(call.tag, 3)))
    taken = [call.take() for _ in range(4)]
    assert [message and message.status for message in taken] == [MORE, MORE, OK, None]


def test_stream_that_nobody_reads_is_bounded() -> None:
    connection = Connection(limits=HandleLimits(stream_messages_max=3))
    connection.receive(frame(HELLO))
    call = connection.request("t", b"")
    connection.receive(frame(*(response(call.tag, n, MORE) for n in range(5))))
    assert [call.take() is not None for _ in range(3)] == [True] * 3
    with pytest.raises(Overloaded):
        call.take()


def test_late_answer_to_an_abandoned_call_is_dropped(connection: Connection) -> None:
    call, other = connection.request("t", b""), connection.request("t", b"")
    connection.abandon(call)
    connection.receive(frame(response(call.tag), response(other.tag)))
    assert not call.ready
    assert other.ready
    assert connection.statistics()["calls"] == 0


def test_an_abandoned_call_still_hears_of_its_end(connection: Connection) -> None:
    ends: list[int] = []
    call = connection.request("t", b"")
    call.on_end = lambda message: ends.append(message.tag)
    connection.abandon(call)
    connection.receive(frame(response(call.tag)))
    assert ends == [call.tag]
    assert not call.responses


# ------------------------------------------------------------------------------------------------------------ events


def test_events_come_once_and_to_each_prefix_that_they_match(connection: Connection) -> None:
    narrow, wide, other = EventQueue("a.b"), EventQueue(""), EventQueue("z")
    assert [connection.subscribe(each) for each in (narrow, wide, other)] == [True] * 3
    connection.receive(frame(event(1), event(1), event(2, "a.c"), event(3)))
    assert [[e.seq for _, e in each.events] for each in (narrow, wide, other)] == [[1, 3], [1, 2, 3], []]


def test_subscription_begins_with_its_answer(connection: Connection) -> None:
    """What comes before it was sent for another prefix, so that some numbers before it would be told and others not."""
    narrow, wide = EventQueue("a.b"), EventQueue("")
    connection.subscribe(narrow)
    connection.subscribe(wide)
    connection.receive(frame(event(5), event(7), event(10)))
    wide.begin(9)
    connection.receive(frame(event(9), event(11)))
    assert [[e.seq for _, e in each.events] for each in (narrow, wide)] == [[5, 7, 10, 11], [10, 11]]


def test_broker_is_asked_once_for_a_prefix_and_told_at_the_last_end(connection: Connection) -> None:
    one, two = EventQueue("a"), EventQueue("a")
    assert [connection.subscribe(one), connection.subscribe(two)] == [True, False]
    assert [connection.unsubscribe(one), connection.unsubscribe(two)] == [False, True]
    assert connection.unsubscribe(two) is False


def test_subscription_that_nobody_reads_is_bounded() -> None:
    connection = Connection(limits=HandleLimits(stream_messages_max=2))
    connection.receive(frame(HELLO))
    subscription = EventQueue("")
    connection.subscribe(subscription)
    connection.receive(frame(*map(event, range(1, 6))))
    assert [subscription.take() is not None for _ in range(2)] == [True, True]
    with pytest.raises(Overloaded, match="number 2"):
        subscription.take()


# ------------------------------------------------------------------------------------------------------------ framing


@given(st.data())
def test_bytes_may_be_cut_anywhere(data: st.DataObject) -> None:
    connection = Connection()
    calls = [connection.request("t", b"") for _ in range(4)]
    stream = frame(HELLO) + b"".join(frame(response(call.tag, "x" * 50 * call.tag)) for call in calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if begin != end:
            connection.receive(stream[begin:end])
    assert connection.hello is not None
    assert all(call.ready for call in calls)
    assert connection.statistics()["buffered_bytes"] == 0


BAD = {
    "a length over the limit": (FRAME_BYTES_MAX + 1).to_bytes(4, "little"),
    "no msgpack": b"\x04\0\0\0\xc1\xc1\xc1\xc1",
    "no list of messages": b"\x01\0\0\0\x01",
    "trailing bytes": b"\x02\0\0\0\x90\x90",
    "an empty frame": b"\0\0\0\0",
    "a request": frame(Message(REQUEST, "t")),
    "a control message that is no greeting": frame(control("kvs.setroot")),
    "a greeting that does not decode": frame(control("hello", "hi")),
    "an event that does not decode": frame(Message(EVENT, "t", body=b"\xc1")),
    "another protocol": frame(control("hello", Hello(PROTOCOL + 1, "i", 0, 1, "sha256", 1))),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_frame_ends_the_connection_with_a_protocol_error(data: bytes, connection: Connection) -> None:
    call = connection.request("t", b"")
    with pytest.raises(ProtocolError):
        connection.receive(data)
    with pytest.raises(ProtocolError):
        call.take()
    with pytest.raises(ProtocolError):
        connection.request("t", b"")


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_can_do_worse_than_a_protocol_error(data: bytes) -> None:
    connection = Connection()
    try:
        connection.receive(data)
    except ProtocolError:
        assert connection.error is not None


def test_end_of_file_fails_what_waits(connection: Connection) -> None:
    call, subscription = connection.request("t", b""), EventQueue("")
    connection.subscribe(subscription)
    connection.receive(b"")
    for waiting in (call, subscription):
        with pytest.raises(ConnectionLost) as caught:
            waiting.take()
        assert not caught.value.definite


def test_what_arrived_before_the_end_is_still_read(connection: Connection) -> None:
    call = connection.request("t", b"")
    connection.receive(frame(response(call.tag, 1, MORE)))
    connection.receive(b"")
    assert call.take() is not None
    with pytest.raises(ConnectionLost):
        call.take()


def test_refusal_says_why() -> None:
    connection = Connection()
    connection.receive(frame(refusal(0, PermissionDenied("you are uid 7"))))
    with pytest.raises(PermissionDenied, match="uid 7"):
        connection.request("t", b"")


def test_body_that_msgpack_cannot_hold_is_the_callers_fault() -> None:
    loop: list[object] = []
    loop.append(loop)
    for body in (object(), 1 << 70, loop):
        with pytest.raises(InvalidRequest):
            encode("t", body)


# ------------------------------------------------------------------------------------------------------------ session


def test_session_never_forgets_the_newest_version() -> None:
    session = Session("c")
    for version in (3, 7, 5):
        session.saw("primary", version)
    assert session.at_least("primary") == 7
    assert session.at_least("other") == 0


@given(st.permutations(range(1, 8)))
def test_acked_is_the_longest_prefix_of_answered_commits(order: list[int]) -> None:
    session = Session("c")
    assert [session.commit_id().serial for _ in order] == list(range(1, 8))
    answered: set[int] = set()
    for serial in order:
        answered.add(serial)
        session.answered(serial)
        assert session.acked == next((n - 1 for n in range(1, 9) if n not in answered), 7)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.RequestTimeout, TimeoutError),
        (errors.ConnectionLost, ConnectionError),
        (errors.PermissionDenied, PermissionError),
        (errors.NoSuchKey, KeyError),
    ],
)
def test_errors_are_those_of_python_too(error: type[errors.FluxmpiError], builtin: type[Exception]) -> None:
    """Their text stays whole, also after a response and a pickle: an OSError would parse two arguments, a KeyError quote."""
    raised = error("what was wrong")
    assert isinstance(raised, builtin)
    for same in (raised, errors.decode_error(*errors.encode_error(raised)), pickle.loads(pickle.dumps(raised))):
        assert (type(same), str(same), same.text) == (error, "what was wrong", "what was wrong")
    raised.args = ("key 'a': what was wrong",)
    assert (str(raised), raised.text) == ("key 'a': what was wrong",) * 2
    assert isinstance(raised, OSError) is (builtin is not KeyError)
