"""The checkpoint service: a restore with a damaged blob, and the job queued after it."""

from __future__ import annotations

from machines import NOW, ask, control_from, error
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.checkpoint import CheckpointService, Chunk
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.wire import Restore, Save, SavedNamespace
from fluxmpi.message import DISK, RESPONSE


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
