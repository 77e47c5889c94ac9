"""The kvs service of one broker: suspended reads, parked requests, commits, fences, diffs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from machines import (
    CLIENT,
    NOW,
    OTHER,
    answer_to,
    ask,
    body,
    commit,
    control_from,
    error,
    failed_with,
    put,
    responses,
    topics,
    work,
)
from trees import SHA256
from world import World, replica_limits, val

from fluxmpi import errors
from fluxmpi.kvs import wire
from fluxmpi.kvs.objects import Link, Val, ValRef
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import (
    CommitId,
    Contribution,
    Diffed,
    DiffRequest,
    Fence,
    FenceDone,
    GetRequest,
    GetRoot,
    Got,
    KeyChange,
    Listed,
    ListRequest,
    Mkdir,
    OldNamespace,
    PathRequest,
    Put,
    RootInfo,
    Setroot,
    Unlink,
    WatchNeed,
    WatchRequest,
)
from fluxmpi.machine import NEVER
from fluxmpi.message import ANY, CONTROL, OK, PAGE, REQUEST, RESPONSE, encode_body
from fluxmpi.overlay.router import Router


@pytest.fixture
def world():
    return World()


@pytest.fixture
def bare():
    """A world whose setroots have no nodes: all are faulted in."""
    return World(with_nodes=False)


# ------------------------------------------------------------------------------------------------------------- setroot


def test_a_new_root_is_sent_to_the_children_first(world):
    world.step("kvs.get", GetRequest("a", at_least=1))
    made = world.make(put("a", 1))
    out = world.setroot(made)
    assert [(msg.kind, msg.topic, msg.hop) for msg in out[:2]] == [
        (CONTROL, "kvs.setroot", 3),
        (CONTROL, "kvs.setroot", 4),
    ]
    assert out[0].body == made.body, "unchanged"
    assert (out[2].topic, out[2].hop) == ("page.root", PAGE), "and to the root page before any answer"
    assert body(out[3], Got).data == b"1"


def test_a_replica_never_takes_an_older_root(world):
    first, second = world.make(put("a", 1)), world.make(put("a", 2))
    assert world.setroot(second)
    assert world.setroot(first) == []
    assert world.setroot(second) == [], "nor the same root twice"
    assert body(world.step("kvs.get", GetRequest("a"))[0], Got).data == b"2"
    assert body(world.step("kvs.getroot", GetRoot())[0], RootInfo).version == 2


def test_a_lost_child_is_sent_nothing(world):
    world.router.mark_lost(3, "test")
    assert [msg.hop for msg in world.setroot(world.make(put("a", 1)))] == [4, PAGE]


# --------------------------------------------------------------------------------------------------- suspended reads


def test_a_suspended_read_continues_at_its_position(bare):
    bare.commit(put("a.b.c", 1))
    loads = bare.step("kvs.get", GetRequest("a.b.c"), tag=9)
    assert topics(loads) == [("kvs.path", -1)]
    assert body(loads[0], PathRequest) == PathRequest(bare.root.ref, ["a", "b", "c"], True)
    rounds, (answer,) = bare.feed(loads)
    assert rounds == 1, "all nodes on the path arrive at once"
    assert (answer.tag, answer.route) == (9, [CLIENT])
    assert body(answer, Got) == Got(1, bare.root.ref, val(1), b"1")
    assert bare.kvs.statistics()["suspended"] == 0
    assert body(bare.step("kvs.get", GetRequest("a.b.c"))[0], Got).data == b"1", "and now they are cached"


def test_a_suspended_read_stays_at_its_root(bare):
    bare.commit(put("a.b", "old"))
    loads = bare.step("kvs.get", GetRequest("a.b"))
    bare.commit(put("a.b", "new"))
    _, (answer,) = bare.feed(loads)
    assert (body(answer, Got).version, body(answer, Got).data) == (1, b"old")


def test_two_reads_suspended_on_one_node_are_both_answered(bare):
    bare.commit(put("a", 1), put("b", 2))
    loads = bare.step("kvs.get", GetRequest("a"), tag=1) + bare.step("kvs.get", GetRequest("b"), tag=2, hop=OTHER)
    assert topics(loads) == [("kvs.path", -1)], "the second one waits for the same path"
    _, out = bare.feed(loads)
    assert [(msg.tag, msg.route, body(msg, Got).data) for msg in out] == [(1, [CLIENT], b"1"), (2, [OTHER], b"2")]


def path_blobs(world, names, value=True):
    """The blobs that answer a child's kvs.path from the newest root."""
    (answer,) = world.step("kvs.path", PathRequest(world.root.ref, names, value), hop=3)
    return body(answer, list[bytes])


def test_a_child_gets_the_nodes_of_a_path_and_the_value(world):
    world.commit(Put("a.b.c", Val("raw", bytes(5000))), put("a.b.d", 1), Put("a.k", Link("a.b.c")))
    world.blobs.update(world.store)
    *nodes, value = path_blobs(world, ["a", "b", "c"])
    assert SHA256(nodes[0]) == world.root.ref
    assert (len(nodes), value) == (3, bytes(5000))
    assert path_blobs(world, ["a", "b", "c"], value=False) == nodes
    assert path_blobs(world, ["a", "b", "d"]) == nodes, "an inline value is in its node"
    assert path_blobs(world, ["a", "b", "c", "x"]) == nodes, "the path ends at a value"
    assert path_blobs(world, ["a", "x", "c"]) == nodes[:2]
    assert path_blobs(world, ["a", "k", "x"]) == nodes[:2], "the path ends at a link, which the child follows"
    assert path_blobs(world, []) == nodes[:1]


def test_a_path_through_a_large_directory_has_one_node_of_each_level(world):
    world.commit(*(put(f"d.k{n}", n) for n in range(1000)))
    world.blobs.update(world.store)
    assert 3 <= len(path_blobs(world, ["d", "k500"])) <= 6


def test_a_broker_without_the_nodes_asks_its_parent_for_the_path(bare):
    bare.commit(put("a.b.c", 1))
    (ask_up,) = bare.step("kvs.path", PathRequest(bare.root.ref, ["a", "b", "c"]), hop=3, tag=8)
    assert (ask_up.topic, ask_up.target, body(ask_up, PathRequest).names) == ("kvs.path", 0, ["a", "b", "c"])
    _, (answer,) = bare.feed([ask_up])
    assert (answer.tag, answer.route, len(body(answer, list[bytes]))) == (8, [3], 3)


@pytest.mark.parametrize("blobs", [[], [b"another"], [b"damaged", b"\x93\x00\x90\x90"]])
def test_a_path_without_its_first_node_is_refused(bare, blobs):
    bare.commit(put("a.b", 1))
    (load,) = bare.step("kvs.get", GetRequest("a.b"))
    (answer,) = bare.kvs.step(answer_to(load, blobs), NOW)
    assert type(error(answer)) is errors.DigestMismatch
    assert bare.kvs.statistics()["suspended"] == 0


@pytest.mark.parametrize("kind", [errors.DigestMismatch, errors.RankLost])
def test_a_blob_that_cannot_be_loaded_is_the_reads_error(bare, kind):
    bare.commit(put("a.b", 1))
    (load,) = bare.step("kvs.get", GetRequest("a.b"))
    (answer,) = bare.kvs.step(failed_with(load, kind("why")), NOW)
    assert type(error(answer)) is kind
    assert bare.kvs.statistics()["suspended"] == 0


def test_a_read_of_a_collected_newest_root_is_forwarded_to_rank_0(bare):
    bare.commit(put("a.b", 1))
    (load,) = bare.step("kvs.get", GetRequest("a.b"))
    (asked,) = bare.kvs.step(failed_with(load, errors.NoSuchBlob("collected")), NOW)
    assert (asked.topic, asked.target, body(asked, GetRequest)) == ("kvs.get", 0, GetRequest("a.b"))
    got = Got(3, b"r" * 32, val("new"), b"new")
    assert bare.kvs.step(answer_to(asked, got), NOW) == [], "held until this broker has that version"
    bare.make(put("x", 1))
    out = bare.setroot(bare.make(put("x", 2)))
    (answer,) = [msg for msg in out if msg.kind != CONTROL]
    assert body(answer, Got) == got


@pytest.mark.parametrize("at", [0, 1, b"r" * 32])
def test_a_read_of_a_collected_older_root_is_snapshot_collected(bare, at):
    bare.commit(put("a.b", 1))
    bare.commit(put("a.b", 2))
    (load,) = bare.step("kvs.get", GetRequest("a.b", at=at))
    (answer,) = bare.kvs.step(failed_with(load, errors.NoSuchBlob("collected")), NOW)
    assert type(error(answer)) is errors.SnapshotCollected
    assert "is not kept any more" in error(answer).text


def test_a_read_at_an_unknown_version_asks_rank_0_for_its_root():
    world = World(limits=replica_limits(history_max=1))
    world.commit(put("a", 1))
    old = world.kvs.replicas["primary"].root
    world.commit(put("a", 2))
    (asked,) = world.step("kvs.get", GetRequest("a", at=1))
    assert (asked.topic, body(asked, GetRoot)) == ("roots.get", GetRoot(at=1))
    (answer,) = world.kvs.step(answer_to(asked, old), NOW)
    assert (body(answer, Got).version, body(answer, Got).object) == (1, val(1))
    (asked,) = world.step("kvs.list", ListRequest(".", at=7))
    (answer,) = world.kvs.step(failed_with(asked, errors.VersionUnknown("not yet")), NOW)
    assert type(error(answer)) is errors.VersionUnknown


def test_a_link_into_an_unknown_namespace_asks_rank_0(world):
    world.commit(Put("l", Link("a", "other")))
    (asked,) = world.step("kvs.get", GetRequest("l"))
    assert (asked.topic, body(asked, GetRoot)) == ("roots.get", GetRoot("other"))
    root = RootInfo("other", 4, world.kvs.replicas["primary"].root.ref, NOW)
    _, answer = world.kvs.step(answer_to(asked, root), NOW)
    assert type(error(answer)) is errors.NoSuchKey, "the read continues in that namespace"
    world.commit(Put("far", Link("a", "nowhere")))
    (asked,) = world.step("kvs.get", GetRequest("far"))
    (answer,) = world.kvs.step(failed_with(asked, errors.NoSuchNamespace("no")), NOW)
    assert type(error(answer)) is errors.NoSuchNamespace


def test_a_removed_namespace_ends_pending_requests(world):
    root = RootInfo("other", 4, world.kvs.replicas["primary"].root.ref, NOW)
    setroot = Setroot("other", 4, root.ref, NOW, None, [])
    world.kvs.step(control_from("kvs.setroot", setroot, 0), NOW)
    world.step("kvs.watch", WatchRequest("a", "other"), tag=7)
    world.step("kvs.get", GetRequest("a", "other", at_least=9), tag=8)
    out = world.kvs.step(control_from("kvs.removed", OldNamespace("other", 4), 0), NOW)
    assert topics(out[:3]) == [("kvs.removed", 3), ("kvs.removed", 4), ("page.removed", PAGE)]
    need, watch, asked = out[3:]
    assert (need.topic, need.hop, body(need, WatchNeed)) == ("kvs.watch-need", 0, WatchNeed("other"))
    assert (watch.tag, type(error(watch))) == (7, errors.NoSuchNamespace)
    assert asked.topic == "roots.get", "a request for a later version may be of a new namespace with that name"
    (read,) = world.kvs.step(failed_with(asked, errors.NoSuchNamespace("there is no namespace 'other'")), NOW)
    assert (read.tag, type(error(read))) == (8, errors.NoSuchNamespace)
    assert world.kvs.statistics()["watchers"] == world.kvs.statistics()["parked"] == 0
    (asked,) = world.step("kvs.get", GetRequest("a", "other"))
    assert asked.topic == "roots.get", "it may have been created again"
    again = Setroot("other", 5, root.ref, NOW, None, [])
    world.kvs.step(control_from("kvs.setroot", again, 0), NOW)
    assert world.kvs.replicas["other"].version == 5


def test_a_request_for_a_recreated_namespaces_version_is_answered(world):
    """A request for a version of a namespace that was created again waits for it.

    1. The namespace is removed and created again.
    2. A client that knows a version of the new one asks a broker that knows the old one.
    3. The broker receives the removal.
    """
    root = RootInfo("other", 4, world.kvs.replicas["primary"].root.ref, NOW)
    world.kvs.step(control_from("kvs.setroot", Setroot("other", 4, root.ref, NOW, None, []), 0), NOW)
    world.step("kvs.getroot", GetRoot("other", at_least=6), tag=8)
    asked = world.kvs.step(control_from("kvs.removed", OldNamespace("other", 4), 0), NOW)[-1]
    assert world.kvs.step(answer_to(asked, RootInfo("other", 5, root.ref, NOW)), NOW)[-1].kind != RESPONSE
    answer = world.kvs.step(control_from("kvs.setroot", Setroot("other", 6, root.ref, NOW, None, []), 0), NOW)[-1]
    assert (answer.tag, body(answer, RootInfo).version) == (8, 6)


def test_a_large_value_comes_with_its_bytes_if_it_is_one_blob(bare):
    bare.commit(
        Put("one", Val("raw", bytes(5000))), Put("two", Val("raw", bytes(2 << 20))), Put("none", ValRef("raw", 0, ()))
    )
    one, two, none, alone = _four(bare)
    assert body(one, Got).data == bytes(5000)
    assert body(two, Got).data is None
    assert len(body(two, Got).object.refs) == 2
    assert body(none, Got).data == b""
    assert body(alone, Got).data is None


def _four(bare):
    answers = []
    for get in (GetRequest("one"), GetRequest("two"), GetRequest("none"), GetRequest("one", load=False)):
        out = bare.step("kvs.get", get)
        loads = [msg for msg in out if msg.kind == REQUEST]
        answers += [msg for msg in out if msg.kind != REQUEST] or bare.feed(loads)[1]
    return answers


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (GetRequest("none"), errors.NoSuchKey),
        (GetRequest("v.x"), errors.NoSuchKey),
        (GetRequest("d"), errors.IsADirectory),
        (GetRequest("."), errors.IsADirectory),
        (GetRequest(""), errors.InvalidKey),
        (GetRequest("..."), errors.IsADirectory),
        (GetRequest("k" * 10_240), errors.InvalidKey),
        (GetRequest("\0"), errors.InvalidKey),
        (GetRequest("loop"), errors.LinkLoop),
        (GetRequest("v", at=b"short"), errors.InvalidRequest),
        (ListRequest("v"), errors.NotADirectory),
        (ListRequest("none"), errors.NoSuchKey),
        (ListRequest(".", limit=0), errors.InvalidRequest),
        (ListRequest(".", limit=-5), errors.InvalidRequest),
        (WatchRequest("a\0b"), errors.InvalidKey),
        (WatchRequest("d"), errors.IsADirectory),
    ],
)
def test_invalid_reads_are_refused(world, record, kind):
    world.commit(put("v", 1), Mkdir("d"), Put("loop", Link("loop")))
    method = type(record).__name__.removesuffix("Request").lower()
    (answer,) = world.step(f"kvs.{method}", record)
    assert type(error(answer)) is kind
    assert world.kvs.statistics()["watchers"] == 0


@pytest.mark.parametrize(
    "topic", ["kvs.get", "kvs.list", "kvs.getroot", "kvs.watch", "kvs.fence", "kvs.cancel", "kvs.other"]
)
@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x91\xc0", b"\x93\xa1a\xa1b", b"\x91\xa2\xff\xff"])
def test_bodies_that_do_not_decode(world, topic, raw):
    (answer,) = world.step(topic, raw=raw)
    assert type(error(answer)) is errors.InvalidRequest


def test_the_table_has_the_topics_that_the_records_name(world):
    """Records name their topics in their docstrings. The others have no record of their own."""
    folder = Path(wire.__file__).parent
    named = {topic for file in folder.glob("*.py") for topic in re.findall(r"``(kvs\.[a-z-]+)``", file.read_text())}
    assert named == world.kvs.topics.keys() - {"kvs.gather", "kvs.dropcache", "kvs.disconnect"}
    assert {topic.kind for topic in world.kvs.topics.values()} == {REQUEST, CONTROL}


def test_a_blob_that_is_not_a_node_is_an_error_of_the_read(world):
    world.commit(put("v", 1))
    no_utf8 = b"\x93\x00\x91\xa1\xff\x91\x93\x00\xa3raw\xc4\x00"
    no_order, no_child = encode_body([0, ["b", "a"], []]), encode_body([1, 1, ["a"], [SHA256(b"nowhere")]])
    for blob in (b"text", no_utf8, no_order, no_child):
        world.blobs[SHA256(blob)] = blob
        out = world.step("kvs.get", GetRequest("x", at=SHA256(blob)))
        if out[0].kind == REQUEST:
            out = world.kvs.step(failed_with(out[0], errors.NoSuchBlob("no")), NOW)
        assert type(error(out[0])) in (errors.ProtocolError, errors.NoSuchKey, errors.NoSuchBlob)


def test_the_pages_of_a_list_are_of_one_root(world):
    world.commit(*(put(f"d.{n:03}", n) for n in range(50)), put("d.x", 1))
    root = world.root.ref
    (answer,) = world.step("kvs.list", ListRequest("d", limit=20, prefix="0"))
    page = body(answer, Listed)
    assert ([name for name, _ in page.entries], page.more) == ([f"{n:03}" for n in range(20)], True)
    world.commit(put("d.0195", "new"))
    (answer,) = world.step("kvs.list", ListRequest("d", at=page.root, limit=99, prefix="0", after="019"))
    page = body(answer, Listed)
    assert ([name for name, _ in page.entries], page.more, page.root) == (
        [f"{n:03}" for n in range(20, 50)],
        False,
        root,
    )


# -------------------------------------------------------------------------------------------- versions that are awaited


def test_reads_wait_for_their_version(world):
    assert world.step("kvs.get", GetRequest("a", at_least=2), tag=2) == []
    assert world.step("kvs.getroot", GetRoot(at_least=1), tag=1) == []
    assert world.step("kvs.list", ListRequest(".", at_least=2), tag=3) == []
    assert world.kvs.statistics()["parked"] == 3
    assert [msg.tag for msg in world.commit(put("a", 1))] == [1]
    out = world.commit(put("a", 2))
    assert [msg.tag for msg in out] == [2, 3]
    assert body(out[0], Got).data == b"2"
    assert world.kvs.statistics()["parked"] == 0


def test_a_disconnected_clients_requests_are_dropped(world):
    world.step("kvs.get", GetRequest("a", at_least=1), tag=1, hop=CLIENT)
    world.step("kvs.get", GetRequest("a", at_least=1), tag=2, hop=OTHER)
    world.kvs.disconnect(CLIENT, NOW)
    assert [msg.tag for msg in world.commit(put("a", 1))] == [2]


def test_requests_wait_for_the_first_root():
    world = World()
    kvs = KvsService(Router(1, 4), NodeCache(world.blobs, SHA256), world.blobs, SHA256)
    assert kvs.step(ask("kvs.get", GetRequest("a")), NOW) == []
    assert kvs.step(ask("kvs.watch", WatchRequest("a"), tag=2), NOW) == []
    out = kvs.step(control_from("kvs.setroot", body(world.make(put("a", 1)), Setroot), 0), NOW)
    assert [msg.tag for msg in out if msg.kind != CONTROL] == [1, 2]


def test_a_commit_is_answered_when_its_version_has_arrived(world):
    (asked,) = world.step("kvs.commit", commit(1, put("a", 1)), tag=5)
    assert (asked.topic, asked.target, asked.body) == ("leader.commit", ANY, encode_body(commit(1, put("a", 1))))
    made = world.make(put("a", 1))
    assert world.kvs.step(answer_to(asked, RootInfo("primary", 1, world.root.ref, NOW)), NOW) == [], (
        "rank 0 was quicker"
    )
    out = [msg for msg in world.setroot(made) if msg.kind != CONTROL]
    assert [(msg.topic, msg.tag, body(msg, RootInfo).version) for msg in out] == [("kvs.commit", 5, 1)]
    assert world.kvs.statistics()["asked"] == 0


def test_a_commit_whose_version_arrived_before_is_answered_at_once(world):
    (asked,) = world.step("kvs.commit", commit(1, put("a", 1)), tag=5)
    world.commit(put("a", 1))
    (answer,) = world.kvs.step(answer_to(asked, RootInfo("primary", 1, world.root.ref, NOW)), NOW)
    assert (answer.tag, answer.status) == (5, OK)
    (asked,) = world.step("kvs.commit", commit(2, put("", 1)), tag=6)
    (answer,) = world.kvs.step(failed_with(asked, errors.InvalidKey("empty")), NOW)
    assert isinstance(error(answer), errors.InvalidKey)


def test_a_fresh_root_is_requested_from_rank_0_and_awaited(world):
    (asked,) = world.step("kvs.getroot", GetRoot(fresh=True), tag=5)
    assert asked.topic == "roots.get"
    made = world.make(put("a", 1))
    assert world.kvs.step(answer_to(asked, world.root), NOW) == []
    assert [msg.tag for msg in world.setroot(made) if msg.kind != CONTROL] == [5]


def test_the_root_of_a_recent_version_needs_no_request(world):
    """So the short text of a snapshot costs no round trip to rank 0."""
    world.commit(put("a", 1))
    root = world.kvs.replicas["primary"].root
    world.commit(put("a", 2))
    (answer,) = world.step("kvs.getroot", GetRoot(at=1))
    assert body(answer, RootInfo) == root
    for question in (GetRoot(time=NOW), GetRoot(ago_s=1.0)):
        (asked,) = world.step("kvs.getroot", question)
        assert (asked.topic, body(asked, GetRoot)) == ("roots.get", question), "rank 0's clock counts"


def test_unknown_roots_are_requested_from_rank_0(world):
    (asked,) = world.step("kvs.getroot", GetRoot(at=9))
    (answer,) = world.kvs.step(failed_with(asked, errors.VersionUnknown("not reached")), NOW)
    assert isinstance(error(answer), errors.VersionUnknown)
    (asked,) = world.step("kvs.get", GetRequest("a", "other"), tag=3)
    assert body(asked, GetRoot).namespace == "other"
    (answer,) = world.kvs.step(failed_with(asked, errors.NoSuchNamespace("none")), NOW)
    assert isinstance(error(answer), errors.NoSuchNamespace)
    (asked,) = world.step("kvs.get", GetRequest("a", "other"), tag=3)
    world.commit(put("a", 7))
    shown, answer = world.kvs.step(answer_to(asked, RootInfo("other", 1, world.root.ref, NOW)), NOW)
    assert (shown.topic, shown.hop, body(shown, RootInfo).namespace) == ("page.root", PAGE, "other")
    assert (answer.tag, body(answer, Got).data) == (3, b"7")


# -------------------------------------------------------------------------------------------------------------- fences


def contribution(number, *ops, size=2, name="f", serial=1):
    return Fence("primary", name, size, [Contribution(CommitId(f"c{number}", serial), list(ops))])


def test_contributions_of_one_turn_are_one_message(world):
    assert world.step("kvs.fence", contribution(1, put("a", "x")), tag=1) == []
    assert world.step("kvs.fence", contribution(2, put("b", "x")), tag=2, hop=OTHER) == []
    assert world.kvs.deadline == NOW
    (up,) = world.kvs.tick(NOW)
    assert (up.topic, up.hop) == ("kvs.gather", 0)
    assert (len(body(up, Fence).parts), body(up, Fence).objects) == (2, [val("x")])
    assert world.kvs.deadline == NEVER
    done = FenceDone("primary", "f", [CommitId("c1", 1), CommitId("c2", 1)], 1)
    setroot = body(world.make(put("a", "x")), Setroot)
    setroot.fences = [done]
    out = [msg for msg in world.kvs.step(control_from("kvs.setroot", setroot, 0), NOW) if msg.kind != CONTROL]
    assert [(msg.tag, msg.route, body(msg, RootInfo).version) for msg in out] == [(1, [CLIENT], 1), (2, [OTHER], 1)]
    assert world.kvs.statistics()["fences"] == 0


def test_a_childs_contributions_are_passed_up_and_its_conflict_is_answered(world):
    world.step("kvs.fence", contribution(1))
    world.kvs.step(control_from("kvs.gather", contribution(2), 3), NOW)
    (refused,) = world.kvs.step(control_from("kvs.gather", contribution(3, size=5), 4), NOW)
    assert (refused.topic, refused.hop) == ("kvs.fence-done", 4)
    assert body(refused, FenceDone).status == errors.FenceMismatch.code
    assert [part.id.client for part in body(world.kvs.tick(NOW)[0], Fence).parts] == ["c1", "c2"]


@pytest.mark.parametrize("definite", [True, False])
def test_a_failed_fence_is_answered_and_passed_to_the_children(world, definite):
    world.step("kvs.fence", contribution(1), tag=4)
    failed = FenceDone("primary", "f", [CommitId("c1", 1)], 0, errors.NotADirectory.code, "why", definite=definite)
    out = world.kvs.step(control_from("kvs.fence-done", failed, 0), NOW)
    assert topics(out[:2]) == [("kvs.fence-done", 3), ("kvs.fence-done", 4)]
    assert (out[2].tag, type(error(out[2])), error(out[2]).text) == (4, errors.NotADirectory, "why")
    assert error(out[2]).definite is definite
    assert world.kvs.tick(NOW) == [], "none of its contributions are sent any more"


def test_invalid_fences_leave_no_state(world):
    two = contribution(1)
    two.parts *= 2
    shared = contribution(1)
    shared.objects = [val("x")]
    for bad in (two, shared, contribution(1, size=0), Fence("primary", "f", 1, [])):
        assert isinstance(error(world.step("kvs.fence", bad)[0]), errors.InvalidRequest)
    (answer,) = world.step("kvs.fence", raw=encode_body(["primary", "f", 9, [[["c1", 1], [[4, "k", 0]]]], []]))
    assert isinstance(error(answer), errors.InvalidRequest)
    assert world.kvs.statistics()["fences"] == 0
    assert world.kvs.tick(NOW) == []
    world.step("kvs.fence", contribution(1, size=2))
    assert len(world.kvs.tick(NOW)) == 1, "the name is free for a fence of another size"


# ------------------------------------------------------------------------------------------------------------ the rest


def test_dropcache_drops_decoded_nodes(bare):
    bare.commit(put("a", 1))
    bare.feed(bare.step("kvs.get", GetRequest("a")))
    assert bare.step("kvs.get", GetRequest("a"))[0].kind != REQUEST
    bare.blobs.clear()
    bare.kvs.step(control_from("kvs.dropcache"), NOW)
    assert bare.step("kvs.get", GetRequest("a"))[0].kind == REQUEST


def test_an_answer_does_not_replace_the_first_setroot():
    """1.

    A client asks for a fresh root before the first setroot. 2. Its answer arrives. 3. The setroot must still be passed
    on.
    """
    world = World()
    first = control_from("kvs.setroot", body(world.leader.start(NOW)[0], Setroot), 0)
    kvs = KvsService(world.router, NodeCache(world.blobs, SHA256), world.blobs, SHA256)
    (asked,) = kvs.step(ask("kvs.getroot", GetRoot(fresh=True), tag=3), NOW)
    assert kvs.step(answer_to(asked, world.root), NOW) == []
    out = kvs.step(first, NOW)
    told_on = [(msg.topic, msg.hop) for msg in out if msg.kind == CONTROL]
    assert told_on == [("kvs.setroot", 3), ("kvs.setroot", 4), ("page.root", PAGE)]
    assert [(msg.topic, msg.tag) for msg in responses(out)] == [("kvs.getroot", 3)]


def compare(world, diff, tag=5):
    """The pages of a diff, each with its number of turns."""
    pages = []
    while not pages or pages[-1][0].more:
        out, turns = world.step("kvs.diff", diff, tag=tag), 0
        while not out:
            assert world.kvs.deadline <= NOW, "the rest is left for another turn"
            out, turns = world.kvs.tick(NOW), turns + 1
        (answer,) = out
        assert world.kvs.statistics()["suspended"] == 0, "no state is kept from one page to the next"
        pages.append((body(answer, Diffed), turns))
        diff.after, diff.between = pages[-1][0].changes[-1].key if pages[-1][0].changes else None, pages[-1][0].between
    return pages


def test_a_diff_has_pages_and_runs_over_several_turns():
    world = World(limits=replica_limits(diff_turn_steps=20))
    world.commit(*(put(f"d.k{number:03}", number) for number in range(60)), put("same", 1))
    world.commit(*(put(f"d.k{number:03}", "new") for number in range(0, 60, 2)), put("e", 1), Unlink("d.k001"))
    pages = compare(world, DiffRequest("primary", 1, 2, ".", 7))
    changes = [change for page, _ in pages for change in page.changes]
    expected = sorted([f"d.k{number:03}" for number in range(0, 60, 2)] + ["d.k001", "e"])
    assert [change.key for change in changes] == expected
    assert [len(page.changes) for page, _ in pages] == [7, 7, 7, 7, 4]
    assert (changes[1].object, changes[1].old, changes[-1].existed) == (None, val(1), False)
    (whole,) = compare(world, DiffRequest("primary", 1, 2, "d", 1000))
    assert [change.key for change in whole[0].changes] == expected[:-1]
    assert whole[1] >= 3


def test_a_page_of_long_changes_ends_early():
    world = World(limits=replica_limits(diff_page_bytes=1000, diff_turn_changes=1))
    world.commit(*(put(f"k{number}", "x" * 200) for number in range(20)))
    pages = compare(world, DiffRequest("primary", 0, 1))
    assert [len(page.changes) for page, _ in pages] == [5, 5, 5, 5, 0]


def test_a_directory_that_becomes_a_value_is_reported_once(world):
    world.commit(*(put(f"d.k{number}", number) for number in range(3)))
    world.commit(put("d", "a value"))
    changes = [change for page, _ in compare(world, DiffRequest("primary", 1, 2, "d", 1)) for change in page.changes]
    assert [(change.key, change.object) for change in changes] == [("d", val("a value"))] + [
        (f"d.k{n}", None) for n in range(3)
    ]


def test_a_disconnected_clients_diff_is_dropped():
    """1. Two clients' diffs are paused. 2. One client disconnects. 3. Only the other diff is answered."""
    world = World(limits=replica_limits(diff_turn_steps=20))
    world.commit(*(put(f"k{number:03}", number) for number in range(200)))
    assert world.step("kvs.diff", DiffRequest("primary", 0, 1, ".", 1000), tag=5) == []
    assert world.kvs.step(ask("kvs.diff", DiffRequest("primary", 0, 1, ".", 1000), hop=OTHER, tag=6), NOW) == []
    assert world.kvs.statistics()["suspended"] == 2
    assert world.kvs.disconnect(CLIENT, NOW) == []
    assert world.kvs.statistics()["suspended"] == 1
    out = work(world.kvs)
    assert [(msg.tag, len(body(msg, Diffed).changes)) for msg in out] == [(6, 200)]
    assert world.kvs.statistics()["suspended"] == 0


@pytest.mark.parametrize("topic", ["kvs.diff", "kvs.get"])
def test_a_disconnected_clients_suspended_walk_ends_when_its_blobs_arrive(bare, topic):
    bare.commit(put("a.b", 1))
    bare.commit(put("a.b", 2))
    read = DiffRequest("primary", 0, 1) if topic == "kvs.diff" else GetRequest("a.b", at=1)
    loads = bare.step(topic, read)
    assert bare.kvs.statistics()["suspended"] == 1
    bare.kvs.disconnect(CLIENT, NOW)
    for load in loads:
        assert bare.kvs.step(failed_with(load, errors.NoSuchBlob("collected")), NOW) == []
    assert bare.kvs.statistics()["suspended"] == 0
    bare.kvs.check()


def test_a_diff_waits_for_the_version_that_its_client_has_seen(world):
    world.commit(put("a", 1))
    assert world.step("kvs.diff", DiffRequest("primary", 0, None, at_least=2)) == [], "it waits for that version"
    assert world.kvs.statistics()["parked"] == 1


def test_a_diff_of_an_unknown_version_asks_rank_0_for_its_root():
    world = World(limits=replica_limits(history_max=1))
    world.commit(put("a", 1))
    old = world.kvs.replicas["primary"].root
    world.commit(put("a", 2))
    (asked,) = world.step("kvs.diff", DiffRequest("primary", 1, None), tag=5)
    assert body(asked, GetRoot) == GetRoot(at=1)
    (told_,) = world.kvs.step(answer_to(asked, old), NOW)
    assert body(told_, Diffed).changes == [KeyChange("a", val(2), True, val(1))]
    (refused,) = world.step("kvs.diff", DiffRequest("primary", None, None, ".", 0))
    assert isinstance(error(refused), errors.InvalidRequest)
