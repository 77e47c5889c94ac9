"""The client's reader: what it gives must be what the broker would have answered, with no request where all is known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import Cluster, body, commit, error, put, responses, to_broker

from fluxmpi import errors
from fluxmpi.blobref import digest_function
from fluxmpi.client.cached_reader import ENTRY_BYTES, CachedReader, RefCache, UnknownRoot
from fluxmpi.client.session import Session
from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs.objects import Link, Object, Val, ValRef
from fluxmpi.kvs.replica.root_page import RootPage
from fluxmpi.kvs.store.node import Leaf, encode_node
from fluxmpi.kvs.wire import GetRequest, Got, Listed, ListRequest, Mkdir, Op, PathRequest, Put, RootInfo, Unlink
from fluxmpi.message import encode_body

SHA256 = digest_function("sha256")


class Client:
    """A reader at one broker of a cluster of two, and the requests that it makes."""

    def __init__(self, cluster: Cluster, rank: int = 1, **limits: int) -> None:
        self.cluster = cluster
        self.rank = rank
        self.session = Session("c")
        self.reader = CachedReader(self.session, SHA256, RootPage(cluster.pages[rank].memory), **limits)
        self.serial = 0
        self.asked: list[str] = []

    def ask(self, topic: str, record: Any, rank: int | None = None) -> Any:
        (answer,) = responses(self.cluster.call(self.rank if rank is None else rank, to_broker(topic, record)))
        if answer.status > 0:
            raise error(answer)
        return answer

    def commit(self, *ops: Op, rank: int = 0, namespace: str = "primary") -> RootInfo:
        self.serial += 1
        return body(self.ask("kvs.commit", commit(self.serial, *ops, namespace=namespace), rank), RootInfo)

    def run(self, walk: Any) -> Any:
        try:
            ask = next(walk)
            while True:
                self.asked.append(ask.topic)
                ask = walk.send(bytes(self.ask(ask.topic, ask.body).body))
        except StopIteration as end:
            return end.value

    def root(self) -> bytes:
        root = self.reader.root("primary")
        assert root is not None
        return root.ref

    def get(self, key: str) -> tuple[Object, bytes | None]:
        return self.run(self.reader.get("primary", self.root(), key))

    def brokers(self, key: str) -> tuple[Object, bytes | None]:
        """As the broker answers it."""
        got = body(self.ask("kvs.get", GetRequest(key)), Got)
        return got.object, got.data


def outcome(action: Any, *arguments: Any) -> Any:
    try:
        return action(*arguments)
    except FluxmpiError as problem:
        return type(problem), problem.text


@pytest.fixture
def client() -> Client:
    return Client(Cluster(2))


# ------------------------------------------------------------------------------------------------------------ requests


def test_the_first_read_is_one_request_and_others_are_none(client: Client) -> None:
    client.commit(put("a.b.c", "1"), put("a.b.d", "2"), put("a.x", "3"))
    assert client.get("a.b.c") == (Val("raw", b"1"), b"1")
    assert client.asked == ["kvs.path"]
    for key, data in (("a.b.c", b"1"), ("a.b.d", b"2"), ("a.x", b"3")):
        assert client.get(key)[1] == data
    assert outcome(client.get, "a.b.none")[0] is errors.NoSuchKey
    assert outcome(client.get, "a.b")[0] is errors.IsADirectory
    assert client.asked == ["kvs.path"]


def test_after_a_commit_only_what_it_changed_is_asked_for(client: Client) -> None:
    client.commit(put("a.b", "1"), put("c.d", "1"))
    client.get("a.b")
    client.get("c.d")
    client.commit(put("c.d", "2"))
    client.asked.clear()
    assert client.get("a.b")[1] == b"1"
    assert client.asked == ["kvs.path"], "the root's node is new"
    assert client.get("c.d")[1] == b"2"
    assert client.asked == ["kvs.path"] * 2
    assert client.session.at_least("primary") == 2


def test_a_value_of_one_blob_comes_with_the_way_to_it_and_is_remembered(client: Client) -> None:
    client.commit(put("a.long", "x" * 5000))
    for _ in range(2):
        found, data = client.get("a.long")
        assert isinstance(found, ValRef)
        assert data == b"x" * 5000
    assert client.asked == ["kvs.path"]


def test_a_page_behind_the_session_gives_no_root(client: Client) -> None:
    root = client.commit(put("a", "1"))
    assert client.reader.root("primary") == root
    client.session.saw("primary", root.version + 1)
    assert client.reader.root("primary") is None
    client.commit(put("a", "2"))
    assert client.reader.root("primary") is not None
    assert client.reader.root("nowhere") is None
    client.reader.page = None
    assert client.reader.root("primary") is None


def test_a_link_into_a_namespace_that_is_not_known_here_is_left_to_the_broker(client: Client) -> None:
    client.commit(Put("l", Link("x", "other")), Put("m", Link("a", "primary")), put("a", "1"))
    with pytest.raises(UnknownRoot):
        client.get("l")
    assert client.get("m")[1] == b"1"


def test_nodes_that_are_not_what_their_name_says_are_refused(client: Client) -> None:
    client.commit(put("a", "1"), put("long", "x" * 5000))
    blob = encode_node(Leaf(["a"], [Val("raw", b"forged")]))
    for answer in ([blob], []):
        walk = client.reader.get("primary", client.root(), "a")
        next(walk)
        with pytest.raises(errors.DigestMismatch, match="was requested"):
            walk.send(encode_body(answer))
    walk = client.reader.get("primary", client.root(), "a")
    next(walk)
    with pytest.raises(errors.ProtocolError, match="does not decode"):
        walk.send(b"\xc1")
    found, _ = client.get("long")
    assert isinstance(found, ValRef)
    client.reader.cache.clear()
    client.run(client.reader.find("primary", client.root(), "long"))
    walk = client.reader.get("primary", client.root(), "long")
    assert next(walk).topic == "content.load"
    with pytest.raises(errors.DigestMismatch, match="damaged"):
        walk.send(b"forged")
    assert client.get("a")[1] == b"1"


def test_a_large_directory_is_left_to_the_broker(client: Client) -> None:
    client.commit(*(put(f"small.k{n:03}", n) for n in range(40)), *(put(f"large.k{n:05}", n) for n in range(5000)))
    assert client.run(client.reader.listing("primary", client.root(), "large")) is None
    entries, more = client.run(client.reader.listing("primary", client.root(), "small", limit=30))
    assert [name for name, _ in entries] == [f"k{n:03}" for n in range(30)]
    assert more
    client.run(client.reader.listing("primary", client.root(), "small"))
    client.asked.clear()
    client.run(client.reader.listing("primary", client.root(), "small"))
    assert client.asked == []


# -------------------------------------------------------------------------------------------- the same as the broker's

NAMES = st.sampled_from(["a", "b", "c", "dir", "é"])
KEYS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)
TARGETS = st.one_of(KEYS, st.just("."))
VALUES = st.one_of(st.integers(0, 9), st.just("x" * 300)).map(str)
OPS = st.one_of(
    st.builds(put, KEYS, VALUES),
    st.builds(put, KEYS, VALUES),
    st.builds(Unlink, KEYS),
    st.builds(Mkdir, KEYS),
    st.builds(Put, KEYS, st.builds(Link, TARGETS, st.sampled_from([None, None, "primary"]))),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=4), st.lists(KEYS, max_size=4)), max_size=12),
    st.sampled_from([1, 600, 4000, 1 << 20]),
)
def test_reads_are_the_brokers(rounds: list[tuple[list[Op], list[str]]], bytes_max: int) -> None:
    client = Client(Cluster(2), bytes_max=bytes_max)
    for ops, keys in rounds:
        outcome(client.commit, *ops)
        for key in [*keys, "."]:
            assert outcome(client.get, key) == outcome(client.brokers, key)
            for follow in (False, True):

                def look(key: str, follow: bool) -> Any:
                    return client.run(client.reader.find("primary", client.root(), key, follow))

                def theirs(key: str, follow: bool) -> Any:
                    return body(client.ask("kvs.get", GetRequest(key, follow=follow, load=False)), Got).object

                assert outcome(look, key, follow) == outcome(theirs, key, follow)
            assert outcome(_list, client, key) == outcome(_brokers_list, client, key)
            client.reader.cache.check()


def _list(client: Client, key: str) -> Any:
    return client.run(client.reader.listing("primary", client.root(), key, "", "b", 2))


def _brokers_list(client: Client, key: str) -> Any:
    listed = body(client.ask("kvs.list", ListRequest(key, after="b", limit=2)), Listed)
    return listed.entries, listed.more


def test_a_large_tree_is_read_as_the_broker_reads_it_with_any_memory() -> None:
    cluster = Cluster(2)
    writer = Client(cluster)
    writer.commit(*(put(f"d.k{n:04}", n) for n in range(2000)))
    for bytes_max in (2, 5000, 1 << 20):
        client = Client(cluster, bytes_max=bytes_max)
        for n in (0, 1, 700, 1999, 700, 2):
            assert client.get(f"d.k{n:04}")[1] == str(n).encode()
            client.reader.cache.check()


# -------------------------------------------------------------------------------------------------------------- memory


@given(
    st.lists(st.tuples(st.sampled_from("nvl"), st.integers(0, 12), st.integers(0, 700)), max_size=120),
    st.integers(0, 8000),
)
def test_memory_is_bounded_and_never_wrong(steps: list[tuple[str, int, int]], bytes_max: int) -> None:
    memory = RefCache(bytes_max)
    blobs = {
        bytes([n]): encode_node(Leaf([str(n)], [Val("raw", b"x" * 50 * n)])) if n % 2 else b"value" * n
        for n in range(13)
    }
    for what, number, _ in steps:
        ref = bytes([number])
        if what == "l":
            memory.add(ref, blobs[ref])
            assert memory.value(ref) == blobs[ref], "what was just learned is here"
        elif what == "v":
            assert memory.value(ref) in (None, blobs[ref])
        elif number % 2:
            node = memory.node(ref)
            assert node is None or encode_node(node) == blobs[ref]
        memory.check()
        assert memory.statistics()["bytes"] <= max(bytes_max, 2 * (3 * ENTRY_BYTES + 650)) + 3 * ENTRY_BYTES + 650


def test_memory_keeps_what_is_used() -> None:
    memory = RefCache(10 * (100 + ENTRY_BYTES))
    memory.add(b"hot", b"h" * 100)
    for n in range(100):
        memory.add(bytes([n]), b"c" * 100)
        assert memory.value(b"hot") == b"h" * 100
    assert memory.value(bytes([0])) is None
    assert memory.statistics()["evicted"] > 80
    memory.clear()
    memory.check()
    assert memory.value(b"hot") is None


def test_what_is_no_node_is_refused_but_may_be_a_value() -> None:
    memory = RefCache()
    memory.add(b"v" * 32, b"just bytes")
    with pytest.raises(errors.ProtocolError):
        memory.node(b"v" * 32)
    assert memory.value(b"v" * 32) == b"just bytes"
    memory.check()


def test_a_path_that_a_client_asks_is_answered_like_a_brokers(client: Client) -> None:
    root = client.commit(put("a.b", "1"))
    blobs = body(client.ask("kvs.path", PathRequest(root.ref, ["a", "b"])), list[bytes])
    assert SHA256(blobs[0]) == root.ref
    assert len(blobs) == 2
