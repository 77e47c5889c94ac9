"""Watches of long values survive a history of one version: needs, versions in transit, leases, and their bounds."""

from __future__ import annotations

from machines import CLIENT, Cluster, answer_to, body, commit, responses, to_broker
from trees import SHA256

from fluxmpi import errors
from fluxmpi.errors import decode_error
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.mvcc.limits import MvccLimits, WatchHoldLimits
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.watch.index import WatchIndex
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.needs import WatchNeeds
from fluxmpi.kvs.watch.request import pattern_of
from fluxmpi.kvs.watch.watcher import WatchClient, Watcher
from fluxmpi.kvs.wire import (
    NOTIFICATION_BYTES,
    PRIMARY,
    Cancel,
    Held,
    NewNamespace,
    Notification,
    OldNamespace,
    Put,
    Retention,
    RootInfo,
    Unlink,
    WatchAck,
    WatchRequest,
)
from fluxmpi.message import ANY, MORE, OK, REQUEST, Message, encode_body
from fluxmpi.overlay.router import Router


class Instance:
    """Three brokers that keep one version; the watches are at rank 2."""

    def __init__(self, **hold):
        limits = KvsLimits(mvcc=MvccLimits(hold=WatchHoldLimits(**hold)))
        self.cluster = Cluster(3, kvs=limits, retention=1)
        self.serial = 0
        self.got = {}

    @property
    def space(self):
        return self.cluster.brokers[0].leader.namespaces.find(PRIMARY)

    def run(self, seconds=0.0):
        for _, msg in self.cluster.run(seconds):
            self.got.setdefault(msg.tag, []).append(msg)

    def send(self, rank, topic, record, tag):
        self.cluster.step(rank, to_broker(topic, record, tag=tag))
        self.run()

    def put(self, number, key="a", size=1000):
        self.serial += 1
        op = Unlink(key) if number is None else Put(key, Val("raw", b"%d" % number * size))
        self.send(1, "kvs.commit", commit(self.serial, op), 1000 + self.serial)

    def watch(self, tag=1, **arguments):
        self.send(2, "kvs.watch", WatchRequest("a", **arguments), tag)

    def notes(self, tag=1):
        return [body(msg, Notification) for msg in self.got.get(tag, []) if msg.status == MORE]

    def move_past(self, count, tag=1):
        """The client acknowledges its first notifications that are not acknowledged."""
        msgs = [msg for msg in self.got[tag] if msg.status == MORE]
        size = sum(len(msg.body) + NOTIFICATION_BYTES for msg in msgs[:count])
        self.got[tag] = msgs[count:]
        self.send(2, "kvs.watch-ack", WatchAck(tag, size), 999)

    def has(self, number, size=1000):
        """Rank 0 has the value, after a collection."""
        self.send(0, "gc.run", None, 998)
        self.run(10.0)
        return SHA256(b"%d" % number * size) in self.cluster.brokers[0].store


def test_a_notified_version_stays_readable_until_the_client_has_moved_past_it():
    world = Instance()
    world.watch()
    for number in range(5):
        world.put(number)
    assert [note.version for note in world.notes()] == [0, 1, 2, 3, 4, 5]
    assert all(world.space.at(version).version == version for version in range(1, 6))
    assert world.space.oldest == 5
    assert world.has(0)
    world.move_past(3)  # the state at the beginning, and versions 1 and 2
    assert world.space.held == 2  # the one before version 3 has its previous value
    world.move_past(3)
    assert world.space.held == 5
    assert not world.has(0)


def test_a_watch_of_mode_latest_holds_what_it_was_notified_of_and_no_version_between():
    world = Instance()
    world.watch(latest=True, window=1)
    world.move_past(1)
    for number in range(5):
        world.put(number)
    assert [note.version for note in world.notes()] == [1]
    assert world.has(0)
    assert not world.has(2)
    world.move_past(1)
    assert [note.version for note in world.notes()] == [5]
    assert not world.has(0)


def test_watches_of_short_values_hold_nothing_and_send_nothing():
    world = Instance()
    world.watch()
    world.cluster.carried.clear()
    for number in range(5):
        world.put(number, size=1)
    assert world.space.held == 5
    assert not [msg for _, _, msg in world.cluster.carried if msg.topic in ("kvs.watch-need", "roots.held")]


def test_what_is_held_ends_with_the_watch_and_with_its_client():
    world = Instance()
    world.watch()
    world.watch(tag=2)
    for number in range(3):
        world.put(number)
    world.send(2, "kvs.cancel", Cancel(1), 997)
    assert world.space.held == 0
    world.cluster.take(2, world.cluster.brokers[2].disconnect(CLIENT, world.cluster.now))
    world.run()
    assert world.space.held == 3
    assert world.space.hold is None


def test_needs_end_with_the_namespace_also_at_brokers_without_watches():
    """A namespace of the same name continues the count of versions: a need that is left over would hold them."""
    cluster = Cluster(4, retention=1)  # rank 3 is below rank 1
    big = [Put("a", Val("raw", bytes([number]) * 1000)) for number in range(8)]
    create = to_broker("roots.create", NewNamespace("n", -1))
    cluster.step(0, create)
    cluster.run()
    cluster.step(3, to_broker("kvs.watch", WatchRequest("a", namespace="n", window=1), tag=7))
    cluster.run()
    for serial in (1, 2, 3):
        cluster.step(2, to_broker("kvs.commit", commit(serial, big[serial], namespace="n"), tag=serial))
        cluster.run()
    assert [broker.kvs.statistics()["watch_needs"] for broker in cluster.brokers] == [1, 1, 0, 1]
    cluster.step(0, to_broker("roots.remove", OldNamespace("n")))
    cluster.run()
    assert [broker.kvs.statistics()["watch_needs"] for broker in cluster.brokers] == [0, 0, 0, 0]
    cluster.step(0, create)
    cluster.run()
    for serial in (4, 5, 6):
        cluster.step(2, to_broker("kvs.commit", commit(serial, big[serial], namespace="n"), tag=serial))
        cluster.run()
    space = cluster.brokers[0].leader.namespaces.find("n")
    assert space.held == space.root.version


def test_a_late_answer_about_a_need_that_has_ended_covers_nothing():
    """1. A need is sent, and rank 0 is asked. 2. The need ends. 3. Another begins. 4. The first answer arrives."""
    asked = []

    def ask(topic, record, target):
        asked.append(Message(REQUEST, topic, 0, target, len(asked) + 1, OK, [], encode_body(record)))
        return asked[-1]

    replica = Replica("n")
    root = RootInfo("n", 3, bytes(20), 0.0)
    replica.adopt(root)
    indexes = {}
    needs = WatchNeeds(Router(1, 3), {"n": replica}, indexes, ask)
    index = WatchIndex("n", WatchLimits())
    watch = WatchRequest("a", namespace="n")
    watcher = Watcher(ask("kvs.watch", watch, ANY), watch, pattern_of(watch), WatchClient(WatchLimits()))
    index.add(watcher)
    for present in (True, False, True):
        indexes.clear()
        if present:
            indexes["n"] = index
        needs.touch("n")
        needs.report()
    _, first, second = asked
    needs.answered(answer_to(first, Held(1, True)))
    assert not needs.covers(watcher, root)
    needs.answered(answer_to(second, Held(2, True)))
    assert needs.covers(watcher, root)


def test_past_the_bound_the_oldest_versions_are_given_up_and_the_watch_ends():
    world = Instance(bytes_max=2500)
    world.watch(window=1)
    world.move_past(1)
    for number in range(8):
        world.put(number)
    assert world.space.held > 3
    world.move_past(1)
    last = world.got[1][-1]
    assert isinstance(decode_error(last.status, last.body), errors.SnapshotCollected)
    assert "after=1" in decode_error(last.status, last.body).text


def test_with_full_wait_commits_wait_until_the_watch_has_moved_on():
    world = Instance(bytes_max=2500, wait_s=5.0)
    world.send(0, "roots.retention", Retention(full="wait"), 996)
    world.watch(window=1)
    world.move_past(1)
    for number in range(6):
        world.put(number)
    made = world.space.root.version
    assert made < 6
    while world.notes():
        world.move_past(1)
    assert world.space.root.version == 6
    assert all(responses(world.got[1000 + serial])[0].status == OK for serial in range(1, 7))


def test_commits_do_not_wait_for_ever():
    world = Instance(bytes_max=2500, wait_s=5.0)
    world.send(0, "roots.retention", Retention(full="wait"), 996)
    world.watch(window=1)
    for number in range(6):
        world.put(number)
    assert world.space.root.version < 6
    world.run(60.0)
    assert world.space.root.version == 6


def test_removals_go_on_while_commits_would_wait():
    world = Instance(bytes_max=2500)
    world.send(0, "roots.retention", Retention(full="wait"), 996)
    world.watch(window=1)
    for number in range(4):
        world.put(number)
    assert world.space.hold.is_full(world.cluster.now)
    made = world.space.root.version
    world.put(None, key="a")
    assert world.space.root.version == made + 1


def test_a_watch_that_has_failed_needs_only_what_its_client_has_still_to_read():
    """It waits with its error, for its client has been notified of a long value. It holds no later version."""
    world = Instance(bytes_max=5 << 20)
    world.watch()
    world.put(0)
    window = 3 * (len(world.got[1][-1].body) + NOTIFICATION_BYTES)
    world.send(2, "kvs.cancel", Cancel(1), 997)
    world.got.clear()
    world.watch(window=window)
    for number in range(1, 10):
        world.put(number, size=2 << 20)
    assert [note.version for note in world.notes()] == [1, 2, 3]
    world.move_past(2)  # version 4 has gone
    for number in range(1, 10):
        world.put(number, size=1 << 20)
    assert [note.version for note in world.notes()] == [3]
    assert world.space.hold.bytes == 0
    assert [version for version in range(1, world.space.root.version) if world.space.leases(version)] == [3]
    world.move_past(1)
    last = world.got[1][-1]
    assert isinstance(decode_error(last.status, last.body), errors.SnapshotCollected)
