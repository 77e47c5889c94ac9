"""Garbage collection: it removes all garbage and nothing else, whatever happens between its slices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, NOW, ask, body, commit, control_from, error, put, responses
from trees import SHA256

from fluxmpi import errors
from fluxmpi.content.store import Store
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc import gc
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService, Chunk
from fluxmpi.kvs.mvcc.gc import Collector
from fluxmpi.kvs.mvcc.limits import GcLimits, MvccLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.objects import Dir, Val, ValRef, split_key
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import NodeCache, check
from fluxmpi.kvs.wire import (
    PRIMARY,
    CommitId,
    Contribution,
    Fence,
    GcStatus,
    Lease,
    Leased,
    NewNamespace,
    Put,
    Release,
    Restore,
    Retention,
    RootInfo,
    Save,
    Swept,
    Unlink,
)
from fluxmpi.machine import NEVER
from fluxmpi.message import LOOP

GRACE = 10.0


class World:
    """Rank 0's machines, without a broker. ``now`` is the time."""

    def __init__(self, count=1000, checkpoint_nodes=100, **limits):
        self.store = Store()
        self.nodes = NodeCache(self.store, SHA256)
        self.namespaces = Namespaces(count)
        self.leader = Leader(self.namespaces, self.nodes, self.store, SHA256, NOW, [])
        self.roots = MvccService(self.namespaces, self.nodes, self.leader)
        self.checkpoint = CheckpointService(
            self.leader, self.nodes, self.store, SHA256, "file", MvccLimits(checkpoint_nodes_per_turn=checkpoint_nodes)
        )
        bounds = GcLimits(**{"bytes_min": 1 << 30, "grace_s": GRACE, **limits})
        self.gc = Collector(self.store, self.nodes, self.namespaces, self.leader, [self.checkpoint], bounds)
        self.store.on_full = self.gc.wake
        self.now = NOW
        self.serial = 0

    def commit(self, *ops, namespace=PRIMARY):
        """Commit, and return the error or the root."""
        self.serial += 1
        self.leader.step(ask("leader.commit", commit(self.serial, *ops, namespace=namespace)), self.now)
        (answer,) = responses(self.leader.tick(self.now))
        return error(answer) if answer.status else body(answer, RootInfo)

    def ask(self, topic, record=None, kind=None):
        (answer,) = responses(self.roots.step(ask(f"roots.{topic}", record), self.now))
        return error(answer) if answer.status else body(answer, kind) if kind else answer

    def retain(self, count):
        self.ask("retention", Retention(count=count))

    def slice(self):
        """One turn of the collector, if it has a deadline."""
        if self.gc.deadline > self.now:
            return []
        out = self.gc.tick(self.now)
        self.gc.check()
        return out

    def collect(self):
        """Run a whole collection, and return its status."""
        assert self.gc.step(ask("gc.run"), self.now) == []
        out = []
        while not out:
            assert self.gc.deadline <= self.now
            out = self.slice()
        self.store.check()
        return body(out[0], GcStatus)

    def keep(self, data):
        """A client stores a blob."""
        ref = SHA256(data)
        self.store.put(ref, data)
        self.store.touch(ref, self.now)
        return ref

    def get(self, key, namespace=PRIMARY):
        root = self.namespaces.find(namespace).root.ref
        return Lookup(self.nodes, lambda _: None, namespace, root, split_key(key)).advance().value

    def reached(self):
        """The refs that kept roots reach, by another walk than the collector's."""
        found = set()
        todo = [root.ref for namespace in self.namespaces for root in namespace.roots()]
        while todo:
            ref = todo.pop()
            if ref in found:
                continue
            found.add(ref)
            node = NodeCache(self.store, SHA256).node(ref)
            assert node is not None, "a kept root lacks a node"
            todo += getattr(node, "refs", [])
            for obj in getattr(node, "objects", []):
                if isinstance(obj, Dir):
                    todo.append(obj.ref)
                elif isinstance(obj, ValRef):
                    found.update(obj.refs)
        assert all(ref in self.store for ref in found), "a kept value lacks a blob"
        return found


@pytest.fixture
def world():
    return World()


def long(text):
    return Val("raw", str(text).encode().ljust(300, b"."))


def test_blobs_of_compacted_versions_are_removed(world):
    for number in range(20):
        world.commit(Put("a", long(number)), put(f"d.k{number}", number))
    before = len(world.store)
    status = world.collect()
    assert status.garbage_blobs == status.freed_blobs == 0
    assert status.live_blobs + status.history_blobs == status.blobs == before
    world.retain(3)
    status = world.collect()
    assert set(world.store.refs()) == world.reached()
    assert status.garbage_blobs == before - len(world.store) > 20
    assert (status.cycles, status.running, status.blobs) == (2, False, len(world.store))
    assert status.live_bytes + status.history_bytes == status.bytes == world.store.bytes
    world.retain(1)
    status = world.collect()
    assert (status.history_blobs, status.live_blobs) == (0, len(world.store))
    assert world.get("a").size == 300
    assert world.gc.deadline == NEVER, "the collection has ended"


def test_decoded_nodes_are_dropped_with_their_blobs(world):
    old = world.commit(put("a", 1)).ref
    world.commit(put("a", 2))
    world.retain(1)
    world.collect()
    assert world.nodes.node(old) is None


def test_a_collection_begins_when_enough_was_stored():
    world = World(count=1, bytes_min=20_000)
    cycles = []
    for number in range(400):
        world.commit(Put("a", long(number)))
        while world.gc.deadline <= world.now:
            world.slice()
        cycles.append(world.gc.status.cycles)
    assert 3 < cycles[-1] < 40
    assert world.store.bytes < 25_000
    assert all(cycles[at + 10] - cycles[at] <= 1 for at in range(380))


def test_a_lease_keeps_the_blobs_of_its_version(world):
    root = world.commit(Put("a", long(1)))
    lease = world.ask("lease", Lease(PRIMARY, root.version), Leased)
    world.commit(Put("a", long(2)))
    world.retain(1)
    world.collect()
    check(NodeCache(world.store, SHA256), root.ref)
    world.ask("release", Release(lease.id))
    world.collect()
    assert root.ref not in world.store


def test_a_blob_that_a_client_stored_has_its_grace(world):
    ref = world.keep(b"x" * 400)
    world.now += GRACE - 1
    world.collect()
    assert world.keep(b"x" * 400) == ref, "stored again: its grace begins again"
    world.now += GRACE - 1
    world.collect()
    assert isinstance(world.commit(Put("a", ValRef("raw", 400, (ref,)))), RootInfo)
    other = world.keep(b"y" * 400)
    world.now += GRACE
    world.collect()
    assert other not in world.store
    assert ref in world.store, "a kept version refers to it"
    refused = world.commit(Put("b", ValRef("raw", 400, (other,))))
    assert isinstance(refused, errors.NoSuchBlob)
    assert "store it before" in refused.text


def run_to(world, phase):
    """Run a collection up to this phase."""
    world.gc.step(ask("gc.run"), world.now)
    while world.gc.phase is not phase:
        world.slice()


@pytest.mark.parametrize("phase", [gc.Phase.LIVE, gc.Phase.HISTORY, gc.Phase.SWEEP])
def test_blobs_referred_to_during_a_collection_stay(phase):
    """A blob, and a directory, that were garbage when it began."""
    world = World(nodes_per_turn=1, nodes_per_stored_blob=0)
    blob = world.keep(b"x" * 400)
    world.commit(put("d.e.a", 1), Put("d.b", long("b")), *(put(f"wide.k{number}", 1) for number in range(100)))
    directory = world.get("d")
    world.commit(Unlink("d"))
    world.retain(1)
    world.now += GRACE
    run_to(world, phase)
    assert isinstance(world.commit(Put("v", ValRef("raw", 400, (blob,))), Put("again", directory)), RootInfo)
    while world.gc.deadline <= world.now:
        world.slice()
    world.reached()
    assert world.get("again.e.a") == Val("raw", b"1")


def test_a_verified_directory_is_verified_again_after_a_collection_begins(world):
    world.commit(put("d.a", 1))
    directory = world.get("d")
    world.commit(Put("copy", directory))
    world.commit(Unlink("d"), Unlink("copy"))
    world.retain(1)
    world.collect()
    assert isinstance(world.commit(Put("again", directory)), errors.NoSuchBlob)


@pytest.mark.parametrize("marked", [False, True])
def test_a_node_that_is_made_again_stays(world, marked):
    first = world.commit(put("a", 1)).ref
    world.commit(put("a", 2))
    world.retain(1)
    if marked:
        run_to(world, gc.Phase.SWEEP)
    else:
        world.collect()
        assert first not in world.store
    assert world.commit(put("a", 1)).ref == first
    while world.gc.deadline <= world.now:
        world.slice()
    assert first in world.store
    world.reached()


def test_a_blob_that_is_a_value_and_a_node_is_marked_as_a_node(world):
    """A client stores the blob of a directory's node as a value, and puts it as a directory."""
    world.commit(Put("d.a", long(1)))
    ref = world.get("d").ref
    blob = world.store.get(ref)
    world.commit(Put("as.value", ValRef("raw", len(blob), (ref,))), Put("z", Dir(ref)), Unlink("d"))
    world.retain(1)
    world.collect()
    world.reached()
    assert world.get("z.a").size == 300


def test_blobs_of_an_incomplete_fence_stay(world):
    blob = world.keep(b"x" * 400)
    world.commit(Put("d.a", long(1)))
    directory = world.get("d")
    parts = [
        Contribution(CommitId("f0", 1), [Put("v", ValRef("raw", 400, (blob,)))]),
        Contribution(CommitId("f1", 1), [Put("copy", directory)]),
    ]
    world.leader.step(control_from("leader.fence", Fence(PRIMARY, "f", 3, parts)), world.now)
    world.commit(Unlink("d"))
    world.retain(1)
    world.now += 2 * GRACE
    world.collect()
    last = Contribution(CommitId("f2", 1), [put("w", 1)])
    world.leader.step(control_from("leader.fence", Fence(PRIMARY, "f", 3, [last])), world.now)
    world.leader.tick(world.now)
    assert world.get("copy.a").size == 300
    world.reached()


def test_a_pending_commit_with_missing_blobs_does_no_harm(world):
    """It is refused when it is applied."""
    blob = world.keep(b"no node")
    wanted = commit(1, Put("a", Dir(b"x" * 32)), Put("b", Dir(blob)), client="d")
    world.leader.step(ask("leader.commit", wanted), world.now)
    world.collect()
    assert isinstance(error(responses(world.leader.tick(world.now))[0]), errors.FluxmpiError)


def test_blobs_of_a_running_save_stay():
    world = World(checkpoint_nodes=1)
    world.commit(*(Put(f"d.k{number}", long(number)) for number in range(50)))
    world.checkpoint.step(ask("checkpoint.save", Save()), world.now)
    world.checkpoint.tick(world.now)
    world.commit(Unlink("d"))
    world.retain(1)
    world.collect()
    while world.checkpoint.deadline <= world.now:
        out = world.checkpoint.tick(world.now)
        assert not any(msg.topic == "disk.discard" for msg in out), "a blob was missing"


def test_blobs_of_a_running_restore_stay(world):
    world.commit(Put("d.a", long(1)))
    root = world.commit(Put("d.b", long(2)))
    saved = {ref: world.store.get(ref) for ref in world.reached()}
    world.commit(Unlink("d"))
    world.retain(1)
    world.collect()
    world.checkpoint.step(ask("checkpoint.restore", Restore("file")), world.now)
    world.checkpoint.step(control_from("disk.blobs", Chunk(list(saved), list(saved.values()))), world.now)
    world.collect()
    world.checkpoint.step(control_from("disk.roots", [root]), world.now)
    world.reached()
    assert world.get("d.a").size == 300
    world.collect()
    assert set(world.store.refs()) == world.reached()


def test_a_run_is_answered_after_a_collection_that_began_after_it(world):
    world.commit(put("a", 1))
    run_to(world, gc.Phase.SWEEP)
    world.gc.step(ask("gc.run", tag=2), world.now)
    first = []
    while not first:
        first = world.slice()
    assert [msg.tag for msg in first] == [1]
    second = []
    while not second:
        second = world.slice()
    assert [(msg.tag, body(msg, GcStatus).cycles) for msg in second] == [(2, 2)]


def test_requests_for_a_run_are_bounded_and_dropped_with_their_client():
    world = World(runs_max=1)
    world.gc.step(ask("gc.run"), world.now)
    (refused,) = world.gc.step(ask("gc.run"), world.now)
    assert isinstance(error(refused), errors.Overloaded)
    world.gc.disconnect(CLIENT, world.now)
    assert all(world.slice() == [] for _ in range(9))
    (refused,) = world.gc.step(ask("gc.other"), world.now)
    assert isinstance(error(refused), errors.InvalidRequest)


def test_the_longest_slice_is_reported(world):
    world.commit(put("a", 1))
    world.gc.step(ask("gc.run"), world.now)
    for wait in (0.0, 0.002, 0.03, 0.001):
        world.now += wait
        world.slice()
    world.now += 100.0
    world.collect()
    assert body(world.gc.step(ask("gc.status"), world.now)[0], GcStatus).longest_slice_s == pytest.approx(0.03)


# ---------------------------------------------------------------------------------------------------------- everything

KEYS = ["a", "b", "d.a", "d.b", "d.e.a", "x.a"]
steps = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("long"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("unlink"), st.sampled_from([*KEYS, "d", "d.e"])),
    st.tuples(st.just("store"), st.integers(0, 3)),
    st.tuples(st.just("refer"), st.sampled_from(KEYS), st.integers(0, 3)),
    st.tuples(st.just("remember"), st.sampled_from(["d", "d.e", "x"])),
    st.tuples(st.just("copy"), st.sampled_from(["x", "d.c"]), st.integers(0, 5)),
    st.tuples(st.just("create"), st.integers(0, 1)),
    st.tuples(st.just("retain"), st.integers(1, 4)),
    st.tuples(st.just("lease"), st.integers(0, 3)),
    st.tuples(st.just("release"), st.integers(1, 5)),
    st.tuples(st.just("run")),
    st.tuples(st.just("slice"), st.integers(1, 6)),
    st.tuples(st.just("wait"), st.sampled_from([1.0, GRACE])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_reachable_blob_is_ever_missing(done):
    world = World(count=3, nodes_per_turn=1, nodes_per_stored_blob=0, sweep_blobs_per_node=2)
    known: list[Dir] = []
    for step in done:
        match step:
            case "put", key, number:
                world.commit(put(key, number))
            case "long", key, number:
                world.commit(Put(key, long(number)))
            case "unlink", key:
                world.commit(Unlink(key))
            case "store", number:
                world.keep(b"%d" % number * 300)
            case "refer", key, number:
                data = b"%d" % number * 300
                out = world.commit(Put(key, ValRef("raw", 300, (SHA256(data),))))
                young = world.store.grace_from(SHA256(data))
                if young is not None and world.now - young < GRACE:
                    assert not isinstance(out, errors.NoSuchBlob), "a young blob was removed"
            case "remember", key:
                found = world.get(key)
                if isinstance(found, Dir):
                    known.append(found)
            case "copy", key, number:
                if known:
                    world.commit(Put(key, known[number % len(known)]))
            case "create", number:
                if known and len(world.namespaces) < 3:
                    world.ask("create", NewNamespace(f"n{world.serial}", 0, known[number % len(known)].ref))
            case "retain", count:
                world.retain(count)
            case "lease", back:
                world.ask("lease", Lease(PRIMARY, max(0, world.namespaces.find(PRIMARY).root.version - back)))
            case "release", number:
                world.ask("release", Release(number))
            case ("run",):
                world.gc.step(ask("gc.run"), world.now)
            case "slice", count:
                for _ in range(count):
                    world.slice()
            case "wait", seconds:
                world.now += seconds
        world.reached()
    while world.gc.deadline <= world.now:
        world.slice()
    world.now += 2 * GRACE
    world.collect()
    assert set(world.store.refs()) == world.reached(), "the blobs left are not the reachable ones"


def test_a_collection_publishes_the_large_blobs_that_it_removed_and_has_much_memory_given_back(world):
    world = World(count=1, trim_bytes=200_000)
    large = [world.keep(bytes([number]) * 100_000) for number in range(4)]
    kept = world.keep(b"k" * 100_000)
    world.commit(*(Put(f"v{number}", ValRef("raw", 100_000, (ref,))) for number, ref in enumerate([*large, kept])))
    world.commit(*(Unlink(f"v{number}") for number in range(4)), Put("small", long("x")))
    world.commit(Unlink("small"))
    world.now += GRACE + 1
    assert world.gc.step(ask("gc.run"), world.now) == []
    out = []
    while world.gc.deadline <= world.now:
        out += world.slice()
    swept = [ref for msg in out if msg.topic == "kvs.swept" for ref in body(msg, Swept).refs]
    assert sorted(swept) == sorted(large), "no node, and no value that is short or kept"
    assert [msg.hop for msg in out if msg.topic == "loop.trim"] == [LOOP]
    world.commit(put("a", 1))
    world.commit(put("a", 2))
    assert world.collect().garbage_blobs > 0
