"""Batches on the wire, bodies that do not decode, and the codes of errors."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import ask

from fluxmpi import errors
from fluxmpi.kvs.wire import GetRequest
from fluxmpi.message import (
    ANY,
    CONTROL,
    MORE,
    OK,
    REQUEST,
    RESPONSE,
    Body,
    Message,
    control,
    decode_batch,
    encode_batch,
    encode_body,
    reply,
    reply_error,
    reply_raw,
    request,
)

NUMBERS = st.integers(-(1 << 63), (1 << 64) - 1)
MESSAGES = st.builds(
    Message,
    kind=st.integers(1, 4),
    topic=st.text(max_size=20),
    hop=NUMBERS,
    target=NUMBERS,
    tag=NUMBERS,
    status=st.integers(-1, 99),
    route=st.lists(NUMBERS, max_size=5),
    body=st.binary(max_size=300),
)


@given(st.lists(MESSAGES, max_size=8))
def test_a_batch_survives_the_codec(batch):
    assert decode_batch(encode_batch(batch)) == batch


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.data())
def test_a_batch_that_was_cut_short_is_refused(batch, data):
    frame = encode_batch(batch)
    with pytest.raises(msgspec.DecodeError):
        decode_batch(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_are_a_batch(frame):
    try:
        batch = decode_batch(frame)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert all(type(msg) is Message for msg in batch)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x80",  # a map
        b"\x91\x90",  # a message without a kind
        b"\x91\x92\xa11\xa1a",  # whose kind is a text
        encode_body([[REQUEST, "a.b", -1, ANY, 0, OK, [], "text"]]),  # whose body is a text
        encode_batch([Message(REQUEST, "a.b")]) + b"\x00",  # trailing bytes
        b"\x91" * 100_000,  # nested for ever
        b"\x91\x92\x01\xa2\xff\xff",  # whose topic is not UTF-8
    ],
)
def test_frames_that_are_no_batch_are_refused(frame):
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        decode_batch(frame)


def test_a_body_that_does_not_decode_is_an_invalid_request():
    decode = Body(GetRequest)
    assert decode(ask("kvs.get", GetRequest("a.b"))) == GetRequest("a.b")
    for bad in (b"", b"\xc1", encode_body({"key": "a"}), encode_body([7]), b"\x91" * 10_000, b"\x91\xa2\xff\xff"):
        with pytest.raises(errors.InvalidRequest, match=r"kvs\.get: the body does not decode"):
            decode(ask("kvs.get", raw=bad))


def test_bodies_are_encoded_deterministically():
    assert encode_body({"b": 1, "a": [GetRequest("k")]}) == encode_body({"b": 1, "a": [GetRequest("k")]})


def test_responses_take_the_path_of_the_request():
    asked = Message(REQUEST, "kvs.get", 3, 0, 17, OK, [-16, 4, 3], b"")
    for answer, status in (
        (reply(asked, 1), OK),
        (reply(asked, 1, MORE), MORE),
        (reply_raw(asked, b"blob"), OK),
        (reply_error(asked, errors.NoSuchKey("no")), errors.NoSuchKey.code),
    ):
        assert (answer.kind, answer.topic, answer.tag, answer.status) == (RESPONSE, "kvs.get", 17, status)
        assert answer.route == [-16, 4, 3]
        assert answer.route is not asked.route, "a response has its own route, since brokers pop it"
    assert reply_raw(asked, b"blob").body == b"blob"


def test_routes_are_never_shared_between_messages():
    first, second = request("a.b"), request("a.b")
    first.route.append(1)
    assert second.route == []
    assert Message(CONTROL, "a.b").route is not Message(CONTROL, "a.b").route
    assert control("a.b").kind == CONTROL


# ------------------------------------------------------------------------------------------------------------- errors


def test_every_error_has_a_code_of_its_own_and_survives_the_wire():
    concrete = [kind for kind in vars(errors).values() if isinstance(kind, type) and "code" in vars(kind)]
    concrete.remove(errors.FluxmpiError)
    assert len(concrete) == len({kind.code for kind in concrete}) == len(errors.BY_CODE) - 1
    for kind in concrete:
        assert 0 < kind.code < 99, "0 and -1 are no errors, 99 is the base's"
        came = errors.decode_error(*errors.encode_error(kind("why: é")))
        assert type(came) is kind
        assert came.text == "why: é"


def test_codes_never_change():
    """Scripts and other versions rely on them."""
    assert {kind.__name__: kind.code for kind in (errors.InvalidKey, errors.NoSuchKey, errors.NoSuchBlob)} == {
        "InvalidKey": 1,
        "NoSuchKey": 3,
        "NoSuchBlob": 8,
    }
    assert (errors.ProtocolError.code, errors.RankLost.code, errors.StorageError.code) == (30, 40, 45)


def test_an_unknown_code_or_a_text_that_does_not_decode_is_still_an_error():
    assert type(errors.decode_error(77, encode_body("new"))) is errors.FluxmpiError
    for body in (b"\xc1", b"", b"\xa1\xff"):
        assert errors.decode_error(3, body).text == "error 3 without a text"
    assert errors.NoSuchKey().text == "NoSuchKey"


def test_errors_after_which_a_request_may_have_happened_are_not_definite():
    indefinite = {kind.__name__ for kind in errors.BY_CODE.values() if not kind.definite}
    assert indefinite == {"RankLost", "RequestTimeout", "ConnectionLost", "InstanceEnding", "InternalError"}


def test_an_error_says_whether_it_is_definite_where_its_class_does_not():
    for error in (errors.NoSuchKey("a"), errors.RankLost("a"), errors.StorageError("a")):
        status, body = errors.encode_error(error)
        assert body == encode_body("a"), "as versions before this one send it"
        assert errors.decode_error(status, body).definite is error.definite
        for other, definite in ((errors.indefinite(error), False), (errors.unsent(error), True)):
            sent = errors.decode_error(*errors.encode_error(other))
            assert (type(sent), sent.text, sent.definite) == (type(error), "a", definite)
    assert not errors.decode_error(77, encode_body("new")).definite, "of a later version"
    assert errors.decode_error(77, encode_body(("new", True))).definite
    assert type(errors.NoSuchKey("a")).definite
