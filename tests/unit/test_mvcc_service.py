"""The roots service: the log, histories, retention, leases and namespaces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, NOW, OTHER, Cluster, ask, body, commit, control_from, error, put, responses
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX, MvccLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.objects import Dir, Link, Val, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Leaf
from fluxmpi.kvs.wire import (
    PRIMARY,
    CommitId,
    Contribution,
    Fence,
    FenceDone,
    GetRoot,
    HistoryRequest,
    KeyVersion,
    Lease,
    Leased,
    Log,
    LogEntry,
    Mkdir,
    NamespaceInfo,
    NewNamespace,
    OldNamespace,
    Put,
    Release,
    Retention,
    RootInfo,
    SavedNamespace,
    Setroot,
    Unlink,
)
from fluxmpi.machine import NEVER
from fluxmpi.message import LOCAL, Message


class World:
    def __init__(self, count=1000, restored=(), **limits):
        limits = MvccLimits(**limits)
        self.nodes, self.blobs = make_nodes()
        self.nodes.insert(Leaf([], []))  # the root of ``restored``
        self.namespaces = Namespaces(count, 7, limits)
        self.leader = Leader(self.namespaces, self.nodes, self.blobs, SHA256, NOW, list(restored))
        self.roots = MvccService(self.namespaces, self.nodes, self.leader, limits)
        self.serial = 0

    def commit(self, *ops, now=NOW, namespace=PRIMARY):
        self.serial += 1
        self.leader.step(ask("leader.commit", commit(self.serial, *ops, namespace=namespace)), now)
        out = self.leader.tick(now)
        self.namespaces.check()
        return out

    def ask(self, topic, record=None, kind=None, now=NOW, hop=CLIENT):
        """The answer, after as many turns as it takes: as ``kind``, or the error."""
        out = self.roots.step(ask(f"roots.{topic}", record, hop=hop), now)
        while not responses(out):
            assert self.roots.deadline <= now
            out = self.roots.tick(now)
        self.roots.check()
        (answer,) = responses(out)
        return error(answer) if answer.status else body(answer, kind) if kind else answer

    def versions(self, now=NOW):
        return [entry.version for entry in self.ask("log", Log(), list[LogEntry], now=now)]


@pytest.fixture
def world():
    return World()


def val(text):
    return Val("raw", str(text).encode())


# ------------------------------------------------------------------------------------------------------------- history


def test_the_log_has_pages_the_newest_version_first(world):
    world.commit(put("a", 1))
    world.commit(put("b", 1), put("c.d", 1), now=NOW + 1)
    entries = world.ask("log", Log(), list[LogEntry])
    assert [(entry.version, entry.time - NOW, entry.keys, entry.commits) for entry in entries] == [
        (2, 1.0, ["b", "c.d"], 1),
        (1, 0.0, ["a"], 1),
        (0, 0.0, None, 1),
    ]
    assert entries[0].ref == world.namespaces.find(PRIMARY).root.ref
    assert [entry.version for entry in world.ask("log", Log(before=2, limit=1), list[LogEntry])] == [1]
    assert world.ask("log", Log(before=0), list[LogEntry]) == []
    assert isinstance(world.ask("log", Log(limit=0)), errors.InvalidRequest)


def test_a_long_log_is_cut():
    world = World(log_keys_max=3)
    for number in range(5):
        world.commit(put("a", number), put("b", number))
    assert world.versions() == [5, 4]


def test_a_history_has_each_version_that_changed_the_key(world):
    world.commit(put("a.b", 1))
    world.commit(put("c", 1))
    world.commit(put("a.b", 1))
    world.commit(put("a.b", 2))
    world.commit(Unlink("a"))
    past = world.ask("history", HistoryRequest(PRIMARY, "a.b"), list[KeyVersion])
    assert [(each.version, each.object, each.existed) for each in past] == [
        (5, None, True),
        (4, val(2), True),
        (1, val(1), False),
    ]
    assert [each.version for each in world.ask("history", HistoryRequest(PRIMARY, "a.b", 5, 1), list[KeyVersion])] == [
        4
    ]
    assert [each.version for each in world.ask("history", HistoryRequest(PRIMARY, "a"), list[KeyVersion])] == [5, 4, 1]
    assert [each.version for each in world.ask("history", HistoryRequest(PRIMARY, "."), list[KeyVersion])] == [
        5,
        4,
        2,
        1,
    ]
    assert world.ask("history", HistoryRequest(PRIMARY, "none"), list[KeyVersion]) == []
    assert [each.version for each in world.ask("history", HistoryRequest(PRIMARY, "..a."), list[KeyVersion])] == [
        5,
        4,
        1,
    ]
    assert isinstance(world.ask("history", HistoryRequest(PRIMARY, "a\0b")), errors.InvalidKey)
    assert isinstance(world.ask("history", HistoryRequest("nowhere", "a")), errors.NoSuchNamespace)


def test_a_history_through_a_link_to_another_namespace_is_refused(world):
    world.commit(Put("l", Link("a", "other")))
    failed = world.ask("history", HistoryRequest(PRIMARY, "l.x"))
    assert isinstance(failed, errors.InvalidRequest)
    assert "namespace 'other'" in failed.text


KEYS = ["a", "a.b", "a.b.c", "l", "l.b", "l.b.c", "m", "m.c"]
operations = st.one_of(
    st.builds(lambda key, number: put(key, number), st.sampled_from(KEYS), st.integers(0, 2)),
    st.builds(Unlink, st.sampled_from(KEYS)),
    st.builds(Mkdir, st.sampled_from(KEYS)),
    st.builds(
        lambda key, target: Put(key, Link(target)), st.sampled_from(["l", "m", "a"]), st.sampled_from(["a", "a.b", "l"])
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(operations, max_size=25), st.sampled_from([4, 1000]), st.sampled_from(KEYS))
def test_a_history_equals_that_of_comparing_all_versions(ops, kept, key):
    world = World(kept, search_versions_per_turn=2)
    for op in ops:
        world.commit(op)
    namespace = world.namespaces.find(PRIMARY)

    def found(version):
        root = namespace.history[version].ref
        try:
            return Lookup(world.nodes, lambda _: None, PRIMARY, root, split_key(key)).advance().value
        except errors.FluxmpiError:
            return None

    expected = [
        (version, found(version), found(version - 1) is not None)
        for version in range(namespace.root.version, namespace.oldest, -1)
        if found(version) != found(version - 1)
    ]
    past = world.ask("history", HistoryRequest(PRIMARY, key))
    if isinstance(past, errors.LinkLoop):
        return
    found_versions = [(each.version, each.object, each.existed) for each in body(past, list[KeyVersion])]
    assert found_versions == expected


def test_a_version_by_its_time(world):
    for number in range(1, 4):
        world.commit(put("a", number), now=NOW + 10 * number)

    def at(time):
        return answer(GetRoot(time=NOW + time))

    def ago(seconds):
        return answer(GetRoot(ago_s=seconds))

    def answer(getroot):
        found = world.ask("get", getroot, now=NOW + 40)
        return found if isinstance(found, errors.FluxmpiError) else body(found, RootInfo).version

    assert [at(time) for time in (0, 9.9, 10, 29, 30, 40)] == [0, 0, 1, 2, 3, 3]
    assert [ago(seconds) for seconds in (0, 10, 10.1, 30, 31)] == [3, 3, 2, 1, 0]
    assert type(at(-1)) is errors.VersionUnknown, "there was no version"
    for to_come in (at(40.1), ago(-1), at(1e300), at(float("nan"))):
        assert type(to_come) is errors.VersionUnknown
        assert "it is in the future, now is 1970-01-01T00:17:20.000+00:00" in to_come.text
    world.ask("retention", Retention(count=2))
    assert type(at(9)) is errors.SnapshotCollected
    assert "version 2, the oldest kept, is of 1970-01-01T00:17:00.000+00:00" in ago(31).text
    assert at(20) == 2


def test_times_do_not_go_back_when_the_clock_is_behind_a_checkpoint():
    """The checkpoint was saved on a host whose clock was an hour ahead: versions wait for it, and reads by time work."""
    ahead = NOW + 3600
    saved = SavedNamespace(PRIMARY, 41, make_nodes()[0].insert(Leaf([], [])), ahead)
    world = World(restored=[saved])
    for later in (0, 1, 3599, 3600, 3601):
        world.commit(put("a", later), now=NOW + later)
    entries = world.ask("log", Log(), list[LogEntry], now=NOW + 3601)
    assert [entry.time - ahead for entry in reversed(entries)] == [0, 0, 0, 0, 0, 1]

    def at(getroot, now=0):
        found = world.ask("get", getroot, now=NOW + now)
        return type(found) if isinstance(found, errors.FluxmpiError) else body(found, RootInfo).version

    assert at(GetRoot(ago_s=0.0), 3601) == at(GetRoot(time=NOW + 3601), 3601) == 46
    assert at(GetRoot(ago_s=1.0), 3601) == at(GetRoot(time=ahead), 3601) == 45, "the last one of that time"
    assert at(GetRoot(ago_s=1.1), 3601) is errors.VersionUnknown, "it is from before this instance"
    world = World(restored=[saved])
    assert at(GetRoot(ago_s=0.0)) == at(GetRoot(time=ahead)) == 41
    assert at(GetRoot(time=ahead + 1)) is errors.VersionUnknown, "in the future"


def test_times_do_not_go_back_when_a_namespace_is_created_again(world):
    world.ask("create", NewNamespace("work", 7), now=NOW + 5)
    world.ask("remove", OldNamespace("work"), now=NOW + 5)
    (answer,) = responses(world.roots.step(ask("roots.create", NewNamespace("work", 7)), NOW))
    assert (body(answer, RootInfo).version, body(answer, RootInfo).time) == (1, NOW + 5)


# ----------------------------------------------------------------------------------------------------------- retention


def test_versions_are_kept_by_count(world):
    for number in range(6):
        world.commit(put("a", number))
    assert world.ask("retention", Retention(), Retention) == Retention(PRIMARY, 1000, 0.0, HISTORY_BYTES_MAX)
    assert world.ask("retention", Retention(count=2), Retention) == Retention(PRIMARY, 2, 0.0, HISTORY_BYTES_MAX)
    assert world.versions() == [6, 5]
    world.commit(put("a", 7))
    assert world.versions() == [7, 6]
    for at, kind in ((5, errors.SnapshotCollected), (8, errors.VersionUnknown), (-1, errors.VersionUnknown)):
        assert type(world.ask("get", GetRoot(at=at))) is kind
    world.ask("retention", Retention(count=1))
    assert world.versions() == [7], "the newest is always kept"
    world.ask("retention", Retention(count=3))
    world.commit(put("a", 8))
    assert world.versions() == [8, 7], "a compacted version does not return"


def test_versions_are_compacted_by_age_without_commits(world):
    world.ask("retention", Retention(age_s=10.0))
    assert world.roots.deadline == NEVER, "there is one version, and it is the newest"
    for number in range(3):
        world.commit(put("a", number), now=NOW + number)
    world.roots.tick(NOW + 2)
    assert world.versions(NOW + 2) == [3, 2, 1, 0]
    assert world.roots.deadline == NOW + 10, "version 0 was the newest until then"
    for wait, left in ((10, [3, 2, 1]), (11.5, [3, 2]), (12, [3]), (100, [3])):
        if world.roots.deadline <= NOW + wait:
            world.roots.tick(NOW + wait)
        assert world.versions(NOW + wait) == left
    assert world.roots.deadline == NEVER
    world.commit(put("a", 9), now=NOW + 200)
    assert world.roots.deadline <= NOW + 210
    assert world.ask("retention", Retention(age_s=0.0, count=5), Retention, now=NOW + 200) == Retention(
        PRIMARY, 5, 0.0, HISTORY_BYTES_MAX
    )
    world.roots.tick(NOW + 200)
    assert world.roots.deadline == NEVER


def test_a_shorter_retention_holds_at_once_and_is_applied_in_slices():
    world = World(compactions_per_turn=4)
    for number in range(20):
        world.commit(put("a", number))
    world.ask("retention", Retention(count=2))
    assert world.versions() == [20, 19]
    namespace, turns = world.namespaces.find(PRIMARY), 0
    while world.roots.deadline <= NOW:
        world.roots.tick(NOW)
        world.namespaces.check()
        turns += 1
    assert list(namespace.history) == [19, 20]
    assert turns >= 3


@pytest.mark.parametrize(
    "wanted",
    [
        Retention(count=0),
        Retention(count=1 << 40),
        Retention(age_s=-1.0),
        Retention(age_s=float("inf")),
        Retention(bytes=0),
    ],
)
def test_an_invalid_retention_is_refused(world, wanted):
    assert isinstance(world.ask("retention", wanted), errors.InvalidRequest)
    assert world.ask("retention", Retention(), Retention) == Retention(PRIMARY, 1000, 0.0, HISTORY_BYTES_MAX)


def test_a_setroot_names_the_oldest_kept_version():
    world = World(3)
    setroots = [body(world.commit(put("a", number))[0], Setroot) for number in range(6)]
    assert [(setroot.version, setroot.oldest) for setroot in setroots] == [
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 2),
        (5, 3),
        (6, 4),
    ]


# -------------------------------------------------------------------------------------------------------------- leases


def test_a_lease_keeps_its_version_until_it_is_released():
    world = World(2)
    world.commit(put("a", 1))
    first = world.ask("lease", Lease(PRIMARY, 1), Leased)
    second = world.ask("lease", Lease(PRIMARY, first.root.ref), Leased)
    assert (first.root.version, first.expires, second.root) == (1, None, first.root)
    assert first.id != second.id
    for number in range(5):
        world.commit(put("a", number))
    assert world.ask("get", GetRoot(at=1), RootInfo) == first.root
    assert type(world.ask("lease", Lease(PRIMARY, 2))) is errors.SnapshotCollected
    assert type(world.ask("lease", Lease(PRIMARY, b"x" * 32))) is errors.SnapshotCollected
    third = world.ask("lease", Lease(PRIMARY, 1), Leased)
    for number in (first.id, second.id):
        world.ask("release", Release(number))
    assert world.ask("get", GetRoot(at=1), RootInfo) == first.root
    world.ask("release", Release(third.id))
    assert type(world.ask("get", GetRoot(at=1))) is errors.SnapshotCollected
    for topic in ("release", "renew"):
        assert type(world.ask(topic, Release(first.id))) is errors.LeaseExpired
    assert world.ask("lease", Lease(PRIMARY), Leased).root.version == 6


def test_a_lease_expires_unless_it_is_renewed():
    world = World(1)
    lease = world.ask("lease", Lease(PRIMARY, ttl_s=5.0), Leased)
    assert (lease.expires, world.roots.deadline) == (NOW + 5, NOW + 5)
    world.commit(put("a", 1))
    assert world.ask("renew", Release(lease.id), Leased, now=NOW + 4) == Leased(lease.id, lease.root, NOW + 9)
    assert world.roots.deadline == NOW + 9
    world.roots.tick(NOW + 5)
    assert world.ask("get", GetRoot(at=0), RootInfo, now=NOW + 8.9) == lease.root
    world.roots.tick(NOW + 9)
    assert world.roots.deadline == NEVER
    assert type(world.ask("get", GetRoot(at=0), now=NOW + 9)) is errors.SnapshotCollected
    assert type(world.ask("renew", Release(lease.id), now=NOW + 9)) is errors.LeaseExpired
    for ttl_s in (0.0, -1.0, float("inf"), float("nan")):
        assert isinstance(world.ask("lease", Lease(PRIMARY, ttl_s=ttl_s)), errors.InvalidRequest)


def test_a_lease_ends_with_its_holder():
    world = World(1)
    for hop in (CLIENT, OTHER):
        world.ask("lease", Lease(PRIMARY), hop=hop)
    far = ask("roots.lease", Lease(PRIMARY, ttl_s=9.0))
    far.route = [CLIENT, 3]
    world.roots.step(far, NOW)
    assert world.roots.statistics()["leases"] == 3
    world.roots.disconnect(CLIENT, NOW)
    assert world.roots.statistics()["leases"] == 2, "a client of another broker with the same hop is another client"
    farewell = ask("roots.disconnect", CLIENT)
    farewell.route = [LOCAL, 3]
    assert world.roots.step(farewell, NOW) == []
    assert world.roots.statistics()["leases"] == 1
    assert world.roots.deadline == NEVER
    world.roots.check()


def test_leases_are_bounded():
    world = World(leases_max=2)
    held = [world.ask("lease", Lease(PRIMARY, ttl_s=9.0), Leased).id for _ in range(2)]
    assert isinstance(world.ask("lease", Lease(PRIMARY)), errors.Overloaded)
    for _ in range(20):
        world.ask("renew", Release(held[0]))
    assert world.roots.leases.statistics()["expiries"] <= 5


def test_a_lease_ends_when_a_client_of_another_broker_disconnects():
    cluster = Cluster(7, retention=1)
    cluster.call(6, Message(1, "roots.lease", CLIENT, body=ask("", Lease(PRIMARY)).body))
    assert cluster.brokers[0].roots.statistics()["leases"] == 1
    cluster.take(6, cluster.brokers[6].disconnect(CLIENT, cluster.now))
    cluster.run()
    assert cluster.brokers[0].roots.statistics()["leases"] == 0


# ---------------------------------------------------------------------------------------------------------- namespaces


def test_namespaces_are_created_listed_and_removed(world):
    out = world.roots.step(ask("roots.create", NewNamespace("work", 1234)), NOW)
    assert [msg.topic for msg in out] == ["kvs.setroot", "roots.create"], (
        "every broker has the namespace before the client has the answer"
    )
    root = body(out[1], RootInfo)
    assert (root.namespace, root.version) == ("work", 0)
    world.commit(put("a", 1), namespace="work")
    world.commit(put("a", 1))
    world.commit(put("a", 2))
    found = world.ask("list", None, list[NamespaceInfo])
    assert [(each.name, each.owner, each.version) for each in found] == [(PRIMARY, 7, 2), ("work", 1234, 1)]
    assert isinstance(world.ask("create", NewNamespace("work", 1)), errors.NamespaceExists)
    out = world.roots.step(ask("roots.remove", OldNamespace("work")), NOW)
    assert body(out[0], OldNamespace) == OldNamespace("work", 1)
    assert isinstance(world.ask("remove", OldNamespace("work")), errors.NoSuchNamespace)
    assert isinstance(world.ask("get", GetRoot("work")), errors.NoSuchNamespace)
    assert isinstance(world.ask("remove", OldNamespace(PRIMARY)), errors.InvalidRequest)
    assert world.ask("create", NewNamespace("work", 1), RootInfo).version == 2, "sessions never see versions go back"


def test_a_namespace_can_begin_with_a_complete_root(world):
    world.commit(put("a.b", 1))
    ref = world.namespaces.find(PRIMARY).root.ref
    assert world.ask("create", NewNamespace("copy", 1, ref), RootInfo).ref == ref
    world.commit(put("a.b", 2), namespace="copy")
    assert world.namespaces.find(PRIMARY).root.ref == ref
    below = Lookup(world.nodes, lambda _: None, PRIMARY, ref, ["a"]).advance().value
    assert isinstance(below, Dir)
    del world.blobs[below.ref]
    world.leader.validator.forget()
    assert isinstance(world.ask("create", NewNamespace("torn", 1, ref)), errors.NoSuchBlob)
    assert isinstance(world.ask("create", NewNamespace("none", 1, b"x" * 32)), errors.NoSuchBlob)
    assert len(world.namespaces) == 2


def begin_creation(name="copy", hop=CLIENT, **limits):
    """Begin to create a namespace from a root with many directories, of which a turn verifies one."""
    world = World(creation_steps_per_turn=1, **limits)
    world.commit(*(put(f"d{number}.a", number) for number in range(5)))
    root = world.namespaces.find(PRIMARY).root
    assert world.roots.step(ask("roots.create", NewNamespace(name, 1, root.ref), hop=hop), NOW) == []
    assert world.leader.blocks_collection, "verified blobs are held: no collection begins"
    return world, root


def test_a_namespaces_root_is_verified_while_requests_are_answered():
    world, root = begin_creation()
    assert world.roots.deadline <= NOW
    assert body(world.roots.step(ask("roots.get", GetRoot()), NOW)[0], RootInfo).version == 1
    turns = 0
    out = []
    while not out:
        world.roots.check()
        out = world.roots.tick(NOW)
        turns += 1
    assert turns >= 5
    assert [msg.topic for msg in out] == ["kvs.setroot", "roots.create"]
    assert body(out[1], RootInfo).ref == root.ref
    assert not world.leader.blocks_collection
    assert world.roots.deadline == NEVER


def test_of_two_namespaces_with_one_name_one_is_created():
    world, root = begin_creation()
    world.roots.step(ask("roots.create", NewNamespace("copy", 2, root.ref), tag=2), NOW)
    out = []
    while world.roots.deadline <= NOW:
        out += world.roots.tick(NOW)
    made, refused = responses(out)
    assert (made.status, type(error(refused))) == (0, errors.NamespaceExists)
    assert not world.leader.blocks_collection


def test_a_namespace_with_an_incomplete_root_is_refused():
    world, root = begin_creation("first")
    below = Lookup(world.nodes, lambda _: None, PRIMARY, root.ref, ["d0"]).advance().value
    del world.blobs[below.ref]
    while world.roots.deadline <= NOW:
        out = world.roots.tick(NOW)
    assert isinstance(error(out[0]), errors.NoSuchBlob)
    assert not world.leader.blocks_collection
    assert len(world.namespaces) == 1


def test_a_disconnected_clients_namespace_is_not_created():
    world, _ = begin_creation(hop=OTHER)
    world.roots.disconnect(OTHER, NOW)
    assert not world.leader.blocks_collection
    assert world.roots.deadline == NEVER
    assert world.roots.statistics()["creations"] == 0


def test_creations_are_bounded():
    world, root = begin_creation(creations_max=1)
    (refused,) = world.roots.step(ask("roots.create", NewNamespace("more", 1, root.ref), tag=2), NOW)
    assert isinstance(error(refused), errors.Overloaded)


@pytest.mark.parametrize("name", ["", "a@b", "a:b", "a b", "a/b", "a\n", "x" * 129])
def test_invalid_names_of_namespaces(world, name):
    assert isinstance(world.ask("create", NewNamespace(name, 1)), errors.InvalidRequest)
    assert len(world.namespaces) == 1


def test_namespaces_and_remembered_removed_ones_are_bounded():
    world = World(namespaces_max=3, removed_max=1)
    for name in ("a", "b"):
        world.ask("create", NewNamespace(name, 1))
        for number in range(5):
            world.commit(put("k", number), namespace=name)
    assert isinstance(world.ask("create", NewNamespace("c", 1)), errors.Overloaded)
    for name in ("a", "b"):
        world.ask("remove", OldNamespace(name))
    world.namespaces.check()
    assert world.ask("create", NewNamespace("a", 1), RootInfo).version == 6, (
        "its last version is not remembered, so it begins above all forgotten ones"
    )


def test_a_removed_namespace_refuses_pending_commits(world):
    world.ask("create", NewNamespace("work", 1))
    applied = commit(1, put("a", 1), namespace="work", client="d")
    world.leader.step(ask("leader.commit", applied), NOW)
    done = body(responses(world.leader.tick(NOW))[0], RootInfo)
    for one in (commit(2, put("a", 2), namespace="work", client="d"), applied):
        world.leader.step(ask("leader.commit", one, tag=one.id.serial), NOW)
    part = Contribution(CommitId("e", 1), [put("f", 1)])
    world.leader.step(control_from("leader.fence", Fence("work", "f", 2, [part])), NOW)
    lease = world.ask("lease", Lease("work"), Leased)
    out = world.roots.step(ask("roots.remove", OldNamespace("work"), tag=9), NOW)
    answers = {msg.tag: msg for msg in responses(out)}
    assert isinstance(error(answers[2]), errors.NoSuchNamespace)
    assert body(answers[1], RootInfo) == done, "it was applied; sent again, it has the same answer"
    (fence,) = [body(msg, FenceDone) for msg in out if msg.topic == "kvs.fence-done"]
    assert (fence.ids, fence.status) == ([CommitId("e", 1)], errors.NoSuchNamespace.code)
    assert type(world.ask("renew", Release(lease.id))) is errors.LeaseExpired
    assert world.leader.tick(NOW) == []
    (again,) = world.leader.step(ask("leader.commit", applied), NOW)
    assert body(again, RootInfo) == done
    world.ask("create", NewNamespace("work", 1))
    world.leader.step(control_from("leader.fence", Fence("work", "f", 1, [part])), NOW)
    assert world.leader.tick(NOW) == [], "a commit that was answered with an error must not be applied"
