"""The checkpoint service: jobs in order, periodic saves, the save at the end, and what is published."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, ask, body, commit, control_from, error, put
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.errors import encode_error
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService, Chunk, Failed, Write, Written
from fluxmpi.kvs.mvcc.limits import MvccLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.wire import Restore, Retention, Save, SavedFile, SavedNamespace
from fluxmpi.machine import NEVER
from fluxmpi.message import DISK, LOCAL, LOOP, RESPONSE


def test_later_messages_of_a_failed_restore_do_not_count_for_the_next_job():
    """1. A blob is damaged. 2. A save waits. 3. The driver sends its last message: only then does the save begin."""
    nodes, blobs = make_nodes()
    leader = Leader(Namespaces(), nodes, blobs, SHA256, NOW, [])
    service = CheckpointService(leader, nodes, blobs, SHA256, "")
    before = leader.roots()
    service.step(ask("checkpoint.restore", Restore("/a.h5"), tag=1), NOW)
    assert service.step(ask("checkpoint.save", Save("/b.h5"), tag=2), NOW) == []

    assert service.step(control_from("disk.blobs", Chunk([SHA256(b"good")], [b"bad"]), DISK), NOW) == []
    assert service.step(control_from("disk.blobs", Chunk([SHA256(b"late")], [b"late"]), DISK), NOW) == []
    (answer,) = service.step(
        control_from("disk.roots", [SavedNamespace("primary", 9, SHA256(b"late"), 1.0)], DISK), NOW
    )
    assert (answer.kind, answer.tag, type(error(answer))) == (RESPONSE, 1, errors.DigestMismatch)
    assert leader.roots() == before, "no root of it was adopted"
    assert SHA256(b"late") not in blobs
    assert service.deadline == NOW, "the save has begun"
    service.check()


# ------------------------------------------------------------------------------------------------------- periodic saves

EVERY = 60.0


class World:
    """The service with a leader, a file at /x.h5, and periodic saves; the driver is played by the test."""

    def __init__(self, **limits):
        self.nodes, blobs = make_nodes()
        self.leader = Leader(Namespaces(), self.nodes, blobs, SHA256, NOW, [])
        self.service = CheckpointService(self.leader, self.nodes, blobs, SHA256, "/x.h5", MvccLimits(**limits))
        self.service.start(EVERY, NOW)
        self.serial = 0

    def commit(self):
        self.serial += 1
        self.leader.step(ask("leader.commit", commit(self.serial, put("a.b", self.serial))), NOW)
        self.leader.tick(NOW)

    def step(self, msg, now=NOW):
        out = self.service.step(msg, now)
        self.service.check()
        return out

    def tick(self, now):
        """Tick until the save waits for the driver; returns the topics of what came out."""
        out = []
        assert self.service.deadline <= now
        while self.service.deadline <= now:
            out += self.service.tick(now)
            self.service.check()
        return out

    def written(self, now=NOW):
        return self.step(control_from("disk.saved", Written("/x.h5", 3, 100), DISK), now)

    def failed(self, now=NOW):
        status, text = encode_error(errors.StorageError("the disk is full"))
        return self.step(control_from("disk.failed", Failed(status, text), DISK), now)


def names(out):
    return [msg.topic for msg in out]


def test_the_store_is_saved_in_each_period_in_which_something_has_changed():
    world = World()
    assert world.service.deadline == NOW + EVERY
    assert world.tick(NOW + EVERY) == [], "a new instance: nothing to save"
    world.commit()
    assert world.service.deadline == NOW + 2 * EVERY, "a commit does not move it"
    *_, write = out = world.tick(NOW + 2 * EVERY)
    assert names(out) == ["disk.refs", "disk.commit"]
    (saved,) = body(write, Write).roots
    assert (saved.version, saved.keys, body(write, Write).path) == (1, 1, "/x.h5")
    (published,) = world.written(NOW + 2 * EVERY + 1)
    assert (published.topic, published.hop) == ("lifecycle.checkpoint", LOCAL)
    assert body(published, SavedFile) == SavedFile("/x.h5", NOW + 2 * EVERY, 1, 1)
    assert world.tick(NOW + 3 * EVERY) == [], "nothing has changed since"
    assert world.service.statistics()["periodic"] == 1
    assert world.service.statistics()["skipped"] == 2


def test_a_change_of_retention_or_of_namespaces_is_a_change():
    world = World()
    world.leader.namespaces.find("primary").retain(Retention(count=7))
    assert names(world.tick(NOW + EVERY))[-1] == "disk.commit"
    world.written()
    world.leader.create("work", 3, None, NOW)
    assert names(world.tick(NOW + 2 * EVERY))[-1] == "disk.commit"
    world.written()
    world.leader.namespaces.remove("work")
    *_, write = world.tick(NOW + 3 * EVERY)
    assert [saved.namespace for saved in body(write, Write).roots] == ["primary"]


def test_a_commit_during_a_save_is_in_the_next_one():
    world = World()
    world.commit()
    world.tick(NOW + EVERY)
    world.commit()
    world.written()
    *_, write = world.tick(NOW + 2 * EVERY)
    assert body(write, Write).roots[0].version == 2


def test_no_periodic_save_begins_while_another_job_runs():
    world = World()
    world.commit()
    world.step(ask("checkpoint.save", Save("/y.h5")), NOW + EVERY - 1)
    out = world.tick(NOW + EVERY)
    assert [body(msg, Write).path for msg in out if msg.topic == "disk.commit"] == ["/y.h5"]
    assert world.tick(NOW + 2 * EVERY) == [], "the driver still writes"
    published, answer = world.step(control_from("disk.saved", Written("/y.h5", 3, 100), DISK))
    assert (body(published, SavedFile).path, answer.kind) == ("/y.h5", RESPONSE)
    assert names(world.tick(NOW + 3 * EVERY))[-1] == "disk.commit", "another file does not count for the instance's"


def test_a_failure_is_told_once_and_retried_in_the_next_period():
    world = World()
    world.commit()
    for period in (1, 2):
        assert names(world.tick(NOW + period * EVERY))[-1] == "disk.commit"
        told = world.failed()
        assert [(msg.topic, msg.hop) for msg in told] == ([("loop.tell", LOOP)] if period == 1 else [])
        if told:
            assert body(told[0]) == "the checkpoint was not saved: the disk is full; the next attempt is in 60 s"
    world.tick(NOW + 3 * EVERY)
    published, told = world.written()
    assert (published.topic, body(told)) == ("lifecycle.checkpoint", "checkpoints are saved again: /x.h5")
    assert world.service.statistics()["failed"] == 2


def test_a_save_that_a_client_asked_for_is_not_told_to_the_user():
    world = World()
    world.commit()
    world.step(ask("checkpoint.save", Save()))
    world.tick(NOW)
    (answer,) = world.failed()
    assert isinstance(error(answer), errors.StorageError)


@pytest.mark.parametrize("every_s", [0.0, EVERY])
def test_without_a_period_or_a_file_nothing_is_saved(every_s):
    nodes, blobs = make_nodes()
    leader = Leader(Namespaces(), nodes, blobs, SHA256, NOW, [])
    service = CheckpointService(leader, nodes, blobs, SHA256, "" if every_s else "/x.h5")
    service.start(every_s, NOW)
    assert service.deadline == NEVER


# ------------------------------------------------------------------------------------------------- the save at the end


def at_the_end(world, now=NOW):
    return world.step(ask("checkpoint.save", Save(), hop=LOCAL, tag=9), now)


def test_the_save_at_the_end_replaces_a_periodic_one_that_still_reads():
    world = World(checkpoint_nodes_per_turn=1)
    world.commit()
    assert names(world.service.tick(NOW + EVERY)) == ["disk.refs"], "one node of two"
    (discard,) = at_the_end(world)
    assert (discard.topic, discard.hop) == ("disk.discard", DISK)
    out = world.tick(NOW)
    assert names(out)[-1] == "disk.commit"
    published, answer = world.written()
    assert (published.topic, answer.tag) == ("lifecycle.checkpoint", 9)
    assert world.service.deadline == NEVER, "no periodic save follows"


def test_the_save_at_the_end_waits_for_a_file_that_is_being_written_and_for_no_other_job():
    world = World()
    world.commit()
    world.tick(NOW + EVERY)
    for tag in range(1, 100):
        assert world.step(ask("checkpoint.save", Save("/y.h5"), tag=tag, hop=CLIENT - tag % 5)) == []
    (refused,) = world.step(ask("checkpoint.save", Save("/y.h5"), tag=100))
    assert isinstance(error(refused), errors.Overloaded)
    assert at_the_end(world) == [], "not refused, though 100 jobs wait"
    world.written()
    assert names(world.tick(NOW))[-1] == "disk.commit"
    _, answer = world.written()
    assert answer.tag == 9
