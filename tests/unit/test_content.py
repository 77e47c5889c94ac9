"""Blobs: one request per ref, verified digests, and the contents of caches."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from machines import CLIENT, NOW, OTHER, answer_to, ask, body, error, failed_with, topics

from fluxmpi import errors
from fluxmpi.blobref import BLOB_BYTES_MAX, digest_function, from_text, to_text
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import CONTENT_LIMITS, ContentLimits, ContentService
from fluxmpi.content.store import Store
from fluxmpi.content.wire import Dropped, LoadRequest, Stored
from fluxmpi.message import LOOP, OK

SHA256 = digest_function("sha256")
BLOB = b"some bytes"
REF = SHA256(BLOB)


def follower(bytes_max=1000, limits=CONTENT_LIMITS):
    return ContentService(Cache(bytes_max), SHA256, parent=4, limits=limits)


def load(machine, ref=REF, hop=CLIENT, tag=1):
    return machine.step(ask("content.load", LoadRequest(ref), hop=hop, tag=tag), NOW)


def test_a_cached_blob_is_the_response():
    machine = ContentService(Store(), SHA256, -1)
    (answer,) = machine.step(ask("content.store", raw=BLOB), NOW)
    assert body(answer, Stored) == Stored(REF)
    (answer,) = load(machine)
    assert (answer.status, answer.body) == (OK, BLOB)


def test_a_missing_blob_at_rank_0_is_an_error():
    (answer,) = load(ContentService(Store(), SHA256, -1))
    assert isinstance(error(answer), errors.NoSuchBlob)
    assert to_text(REF) in error(answer).text


def test_the_parent_is_asked_once_for_all_requests():
    machine = follower()
    (asked,) = load(machine, tag=10)
    assert (asked.topic, asked.target, body(asked, LoadRequest)) == ("content.load", 4, LoadRequest(REF))
    for tag in range(11, 40):
        assert load(machine, hop=OTHER, tag=tag) == []
    (other,) = load(machine, SHA256(b"x"))
    assert other.tag != asked.tag
    out = machine.step(answer_to(asked, raw=BLOB), NOW)
    assert [(msg.tag, msg.body) for msg in out] == [(tag, BLOB) for tag in range(10, 40)]
    assert load(machine)[0].body == BLOB, "and now it is cached"
    statistics = machine.statistics()
    assert (statistics["coalesced"], statistics["loaded"], statistics["pending"]) == (29, 1, 1)
    machine.check()


def test_a_damaged_blob_is_refused_not_cached_and_requested_again():
    machine = follower()
    (asked,) = load(machine, tag=1)
    load(machine, tag=2)
    out = machine.step(answer_to(asked, raw=BLOB[:-1]), NOW)
    assert [type(error(msg)) for msg in out] == [errors.DigestMismatch] * 2
    assert machine.statistics()["blobs"] == 0
    (again,) = load(machine)
    assert again.topic == "content.load"


@pytest.mark.parametrize("kind", [errors.NoSuchBlob, errors.RankLost, errors.Overloaded])
def test_all_requests_get_the_parents_error(kind):
    machine = follower()
    (asked,) = load(machine, tag=1)
    load(machine, tag=2)
    out = machine.step(failed_with(asked, kind("why")), NOW)
    assert [(msg.tag, type(error(msg)), error(msg).text) for msg in out] == [(1, kind, "why"), (2, kind, "why")]
    assert machine.step(answer_to(asked, raw=BLOB), NOW) == [], "a second response is ignored"


def test_a_store_is_answered_when_rank_0_has_it():
    machine = follower()
    (asked,) = machine.step(ask("content.store", raw=BLOB, tag=8), NOW)
    assert (asked.topic, asked.target, asked.body) == ("content.store", 0, BLOB)
    assert load(machine)[0].body == BLOB
    (answer,) = machine.step(answer_to(asked, Stored(REF)), NOW)
    assert (answer.tag, answer.route, body(answer, Stored)) == (8, [CLIENT], Stored(REF))
    (asked,) = machine.step(ask("content.store", raw=b"y"), NOW)
    (answer,) = machine.step(failed_with(asked, errors.StorageError("full")), NOW)
    assert isinstance(error(answer), errors.StorageError)
    assert machine.statistics()["pending"] == 0


def test_blobs_have_a_bound():
    machine = ContentService(Store(), SHA256, -1)
    assert body(machine.step(ask("content.store", raw=bytes(BLOB_BYTES_MAX)), NOW)[0])
    (answer,) = machine.step(ask("content.store", raw=bytes(BLOB_BYTES_MAX + 1)), NOW)
    assert isinstance(error(answer), errors.TooLarge)


@pytest.mark.parametrize("raw", [b"", b"\x91\xc4\x00", b"\x91\xc4\x03abc", b"\xc0"])
def test_an_invalid_ref_is_refused(raw):
    (answer,) = follower().step(ask("content.load", raw=raw), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)


def test_loads_are_bounded():
    machine = follower(limits=ContentLimits(loads_max=2))
    for blob in (b"1", b"2"):
        assert topics(load(machine, SHA256(blob))) == [("content.load", -1)]
    assert isinstance(error(load(machine, SHA256(b"3"))[0]), errors.Overloaded)
    assert load(machine, SHA256(b"2"), tag=2) == [], "a further request for the same blob is no further load"


def test_a_disconnected_client_gets_no_response_and_the_others_do():
    machine = follower()
    (asked,) = load(machine, hop=CLIENT, tag=1)
    load(machine, hop=OTHER, tag=2)
    machine.disconnect(CLIENT, NOW)
    assert [msg.tag for msg in machine.step(answer_to(asked, raw=BLOB), NOW)] == [2]


def test_dropping_the_cache():
    machine = follower()
    machine.step(ask("content.store", raw=BLOB), NOW)
    out = machine.step(ask("content.dropcache"), NOW)
    assert topics(out) == [
        ("kvs.dropcache", -1), ("value.dropcache", -1), ("loop.trim", LOOP), ("content.dropcache", -1)
    ]  # fmt: skip
    assert body(out[3], Dropped) == Dropped(1, len(BLOB))
    assert load(machine)[0].topic == "content.load"
    root = ContentService(Store(), SHA256, -1)
    root.step(ask("content.store", raw=BLOB), NOW)
    assert body(root.step(ask("content.dropcache"), NOW)[3], Dropped) == Dropped(0, 0), "the store has the only copy"
    assert load(root)[0].body == BLOB


# --------------------------------------------------------------------------------------------------------------- cache


class CacheAgainstModel(RuleBasedStateMachine):
    """The cache evicts the least recently used blobs, bounded in bytes; the newest stays, however large."""

    def __init__(self):
        super().__init__()
        self.cache = Cache(100)
        self.model: OrderedDict[bytes, bytes] = OrderedDict()

    @rule(number=st.integers(0, 9), size=st.sampled_from([0, 1, 30, 60, 99, 100, 101, 300]))
    def put(self, number, size):
        ref, blob = bytes([number, size % 256]), bytes(size)
        self.cache.put(ref, blob)
        if ref not in self.model:
            self.model[ref] = blob
            while sum(map(len, self.model.values())) > 100 and len(self.model) > 1:
                self.model.popitem(last=False)

    @rule(number=st.integers(0, 9), size=st.sampled_from([0, 1, 30, 60, 99, 100, 101, 300]))
    def get(self, number, size):
        ref = bytes([number, size % 256])
        assert self.cache.get(ref) == self.model.get(ref)
        if ref in self.model:
            self.model.move_to_end(ref)

    @rule()
    def drop(self):
        assert self.cache.drop() == (len(self.model), sum(map(len, self.model.values())))
        self.model.clear()

    @invariant()
    def same(self):
        self.cache.check()
        assert self.cache.refs() == list(self.model)
        assert len(self.cache) == len(self.model)


CacheAgainstModel.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestCache = CacheAgainstModel.TestCase


# ---------------------------------------------------------------------------------------------------------------- refs


@given(st.binary(max_size=50), st.sampled_from(["sha256", "sha1"]))
def test_refs_as_text_and_back(blob, algorithm):
    ref = digest_function(algorithm)(blob)
    assert to_text(ref).startswith(f"{algorithm}-")
    assert from_text(to_text(ref)) == ref


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256-", "sha256-12", "sha1-" + "0" * 64, "md5-" + "0" * 32, "sha256-" + "g" * 64]
)
def test_invalid_texts_of_refs(text):
    with pytest.raises(errors.InvalidRequest, match="is not a blobref"):
        from_text(text)
    with pytest.raises(errors.InvalidRequest, match="md5"):
        digest_function("md5")
