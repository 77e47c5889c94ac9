"""Checkpoints at rank 0: the blobs and roots of one. The DISK driver writes and reads the file.

    save     roots now ─▶ find what they reach, some nodes a turn ─▶ disk.refs … ─▶ disk.commit ─▶ disk.saved
    restore  disk.read ─▶ disk.blobs … ─▶ verify each, store ─▶ disk.roots ─▶ the leader makes new versions

A save fixes the roots when it begins; nodes are immutable, so later commits do not change it, and no collection removes
them. The driver reads the blobs from the store, so a save takes no memory for them. One save or
restore runs at a time; others wait in order.

**Periodic saves.** With ``start``, the instance's file is saved after each period, by the deadline of the machine: no
save begins if no namespace has a new version or another retention since the last one, or while another job runs. A
failure is reported once, and the next period tries again. The save at the end of the instance does not wait for a
periodic one that still reads: it would read the same again.

Every file that was written is published with ``lifecycle.checkpoint``, so that each broker can name the newest one when
the instance ends.

Invariants: each blob is written once, and everything that a saved root reaches is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import (
    DigestMismatch,
    FluxmpiError,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    UsageError,
    decode_error,
)
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.mvcc.reach import Reach
from fluxmpi.kvs.store.node import BlobSource, NodeCache, ref_text
from fluxmpi.kvs.wire import (
    PRIMARY,
    Progress,
    Record,
    Restore,
    Restored,
    RootInfo,
    Save,
    Saved,
    SavedFile,
    SavedNamespace,
)
from fluxmpi.machine import NEVER, Answers, Machine, Sender, Topic
from fluxmpi.message import CONTROL, DISK, LOCAL, LOOP, MORE, REQUEST, Body, Message, control, reply, reply_error

PATH_CHARS_MAX = 4096


class Refs(Record):
    """CONTROL ``disk.refs`` to DISK: further blobs of the current file. DISK reads them from the store itself."""

    refs: list[Ref]


class Chunk(Record):
    """CONTROL ``disk.blobs`` from DISK: blobs of the file that is read, with their refs."""

    refs: list[Ref]
    blobs: list[bytes]


class Write(Record):
    """CONTROL ``disk.commit`` to DISK: write the blobs named before to ``path``, with these roots."""

    path: str
    roots: list[SavedNamespace]
    verify: bool = False
    """Read the file afterwards and compare every digest."""


class ReadFile(Record):
    """CONTROL ``disk.read`` to DISK, which answers ``disk.blobs`` …, then ``disk.roots``; or ``disk.failed``."""

    path: str


class Written(Record):
    """CONTROL ``disk.saved`` from DISK."""

    path: str
    blobs: int
    bytes: int


class Failed(Record):
    """CONTROL ``disk.failed`` from DISK: the error's code and text."""

    status: int
    body: bytes


class RootWriter(Protocol):
    """The leader."""

    def saved(self) -> list[SavedNamespace]: ...
    def reset(self, saved: SavedNamespace, now: float) -> tuple[RootInfo, list[Message]]: ...


_decode_save = Body(Save)
_decode_restore = Body(Restore)
_decode_chunk = Body(Chunk)
_decode_written = Body(Written)
_decode_failed = Body(Failed)
_decode_roots = Body(list[SavedNamespace])


class _Save:
    """``msg`` None: the service itself saves, as it does periodically."""

    def __init__(self, msg: Message | None, path: str, verify: bool = False) -> None:
        self.msg = msg
        self.path = path
        self.verify = verify
        self.began = 0.0
        self.state: list[SavedNamespace] = []
        """The namespaces when it began."""
        self.reach: Reach | None = None
        self.reported = 0
        """Blobs in the last Progress."""

    @property
    def is_reading(self) -> bool:
        """The driver has not been told to write the file."""
        return self.reach is None or not self.reach.done

    def roots(self) -> list[SavedNamespace]:
        """Return the namespaces with the numbers of their keys, when all is read."""
        assert self.reach is not None
        return [replace(saved, keys=self.reach.keys(saved.ref)) for saved in self.state]


class _Restore:
    def __init__(self, msg: Message, path: str) -> None:
        self.msg = msg
        self.path = path
        self.refs: list[Ref] = []
        """Blobs stored so far: nothing refers to them until the roots have arrived."""
        self.error: FluxmpiError | None = None
        """What is wrong with a blob.

        The driver's last message ends the job all the same, so that no message of this job counts for the next one.
        """


class CheckpointService(Machine):
    name = "checkpoint"

    def __init__(
        self,
        leader: RootWriter,
        nodes: NodeCache,
        blobs: BlobSource,
        digest: Digest,
        path: str,
        limits: MvccLimits = MVCC_LIMITS,
    ) -> None:
        """``path``: the instance's file, empty for none. Call ``start`` to save to it periodically."""
        super().__init__()
        self._leader = leader
        self._nodes = nodes
        self._blobs = blobs
        self._digest = digest
        self._path = path
        self._limits = limits
        self._jobs: deque[_Save | _Restore] = deque()
        """The first one runs."""
        self._every_s = 0.0
        self._due = NEVER
        """When the next periodic save begins."""
        self._in_file = leader.saved()
        """What the instance's file has: nothing to save while the namespaces are the same."""
        self._failing = False
        """The last periodic save failed, and the user was told."""
        self._saved = self._restored = self._failed = self._periodic = self._skipped = 0

        client, disk, stream = Sender.CLIENT, Sender.DISK, Answers.STREAM
        self.topics = {
            "checkpoint.save": Topic(REQUEST, client | Sender.MACHINE, self._save, Save, stream),
            "checkpoint.restore": Topic(REQUEST, client, self._restore, Restore, stream),
            "disk.saved": Topic(CONTROL, disk, self._disk, Written),
            "disk.blobs": Topic(CONTROL, disk, self._disk, Chunk),
            "disk.roots": Topic(CONTROL, disk, self._disk, list[SavedNamespace]),
            "disk.failed": Topic(CONTROL, disk, self._disk, Failed),
        }

    def start(self, every_s: float, now: float) -> None:
        """Save to the instance's file every so many seconds from now on, if something has changed; 0: never."""
        if every_s and self._path:
            self._every_s = every_s
            self._due = self.deadline = now + every_s

    def step(self, msg: Message, now: float) -> list[Message]:
        out = super().step(msg, now)
        self._plan(now)
        return out

    def _plan(self, now: float) -> None:
        """Set the deadline of the next tick."""
        self.deadline = now if self._reading is not None else self._due

    @property
    def _reading(self) -> _Save | None:
        """The save that reads nodes, if one does."""
        job = self._jobs[0] if self._jobs else None
        return job if isinstance(job, _Save) and job.is_reading else None

    def _save(self, msg: Message, now: float) -> list[Message]:
        save = _decode_save(msg)
        path = save.path or self._path
        if not path:
            raise InvalidRequest("no file: name one, or start the instance with --checkpoint FILE")
        job = _Save(msg, path, save.verify)
        return self._save_at_the_end(job, now) if msg.route == [LOCAL] else self._enqueue(job, now)

    def _restore(self, msg: Message, now: float) -> list[Message]:
        return self._enqueue(_Restore(msg, _decode_restore(msg).path), now)

    def _enqueue(self, job: _Save | _Restore, now: float) -> list[Message]:
        if len(self._jobs) >= self._limits.checkpoints_max:
            raise Overloaded(f"{self._limits.checkpoints_max} checkpoints wait already; try again")
        clients = [other.msg.route for other in self._jobs if other.msg is not None]
        if job.msg is not None and clients.count(job.msg.route) >= self._limits.checkpoints_client_max:
            raise Overloaded(
                f"{self._limits.checkpoints_client_max} checkpoints of this client wait already; try again"
            )
        if len(job.path) > PATH_CHARS_MAX:
            raise InvalidRequest(f"a path of {len(job.path):,} characters: the most is {PATH_CHARS_MAX:,}")
        self._jobs.append(job)
        return self._begin(now) if len(self._jobs) == 1 else []

    def _save_at_the_end(self, job: _Save, now: float) -> list[Message]:
        """Save before the instance ends: no waiting job is done before it, and no periodic save that still reads."""
        self._due = NEVER
        out = []
        running = self._jobs[0] if self._jobs else None
        if running is not None and running is self._reading and running.msg is None:
            out.append(control("disk.discard", None, DISK))
            self._jobs.popleft()
            running = None
        if running is not None:
            self._jobs.insert(1, job)
            return out
        self._jobs.appendleft(job)
        return out + self._begin(now)

    def _begin(self, now: float) -> list[Message]:
        job = self._jobs[0]
        if isinstance(job, _Restore):
            return [control("disk.read", ReadFile(job.path), DISK)]
        job.began = now
        job.state = self._leader.saved()
        job.reach = Reach(self._nodes, self._blobs, [saved.ref for saved in job.state])
        return []

    def tick(self, now: float) -> list[Message]:
        """Begin a periodic save if it is due, and take the next nodes of a save."""
        if self._due <= now:
            self._due = now + self._every_s
            self._begin_periodic(now)
        job = self._reading
        out = [] if job is None else self._read(job, now)
        self._plan(now)
        return out

    def _begin_periodic(self, now: float) -> None:
        """Begin a periodic save, unless nothing has changed or another job runs: then the next period covers it."""
        if self._jobs or self._leader.saved() == self._in_file:
            self._skipped += 1
            return
        self._jobs.append(_Save(None, self._path))
        self._begin(now)

    def _read(self, job: _Save, now: float) -> list[Message]:
        """Take the next nodes of a save."""
        assert job.reach is not None
        try:
            refs = [ref for ref, _ in job.reach.take(self._limits.checkpoint_nodes_per_turn)]
        except FluxmpiError as error:
            return [control("disk.discard", None, DISK), *self._finish_with(error, now)]
        except MemoryError:
            lack = OutOfMemory(f"{job.path} was not saved: rank 0 has no memory to list what the store holds")
            return [control("disk.discard", None, DISK), *self._finish_with(lack, now)]
        out = [control("disk.refs", Refs(refs), DISK)] if refs else []
        done, total = job.reach.progress
        if job.reach.done:
            out.append(control("disk.commit", Write(job.path, job.roots(), job.verify), DISK))
        if job.msg is not None and done - job.reported >= 1000:
            job.reported = done
            out.append(reply(job.msg, Progress(done, total), MORE))
        return out

    def _disk(self, msg: Message, now: float) -> list[Message]:
        """Take an answer of the driver, which is for the first job."""
        if not self._jobs:
            return []
        job = self._jobs[0]
        try:
            match msg.topic:
                case "disk.saved":
                    assert isinstance(job, _Save)
                    return self._written(job, _decode_written(msg), now)
                case "disk.blobs":
                    assert isinstance(job, _Restore)
                    return self._take(job, _decode_chunk(msg))
                case "disk.roots":
                    assert isinstance(job, _Restore)
                    return self._adopt(job, _decode_roots(msg), now)
                case "disk.failed":
                    failed = _decode_failed(msg)
                    raise decode_error(failed.status, failed.body)
        except FluxmpiError as error:
            return self._finish_with(error, now)
        return []

    def _written(self, job: _Save, written: Written, now: float) -> list[Message]:
        """Publish that the file is there, and answer."""
        self._saved += 1
        out = [control("lifecycle.checkpoint", saved_file(written.path, job.began, job.state))]
        if job.path == self._path:
            self._in_file = job.state
            if self._failing:
                self._failing = False
                out.append(control("loop.tell", f"checkpoints are saved again: {job.path}", LOOP))
        if job.msg is None:
            self._periodic += 1
            return [*out, *self._finish(now)]
        saved = Saved(written.path, written.blobs, written.bytes, _listed(job.state))
        return [*out, reply(job.msg, saved), *self._finish(now)]

    def _finish_with(self, error: FluxmpiError, now: float) -> list[Message]:
        """End the first job with an error: answer, or tell the user once of a periodic save."""
        self._failed += 1
        msg = self._jobs[0].msg
        if msg is not None:
            return [reply_error(msg, error), *self._finish(now)]
        out = []
        if not self._failing:
            self._failing = True
            text = f"the checkpoint was not saved: {error.text.rstrip('.')}; the next attempt is in {self._every_s:g} s"
            out.append(control("loop.tell", text, LOOP))
        return [*out, *self._finish(now)]

    def _take(self, job: _Restore, chunk: Chunk) -> list[Message]:
        for ref, blob in zip(chunk.refs, chunk.blobs, strict=True):
            if job.error is not None:
                break
            if self._digest(blob) != ref:
                job.error = DigestMismatch(f"{job.path}: blob {ref_text(ref)} is damaged: its digest is another one")
                break
            self._blobs.put(ref, blob)
            job.refs.append(ref)
        return []

    def _adopt(self, job: _Restore, roots: list[SavedNamespace], now: float) -> list[Message]:
        """Make each saved root a new version of its namespace."""
        if job.error is not None:
            raise job.error
        if not roots:
            raise UsageError(f"{job.path} holds no root: it is not a checkpoint")
        out, adopted = [], []
        for saved in roots:
            root, messages = self._leader.reset(saved, now)
            adopted.append(root)
            out += messages
        self._restored += 1
        return [*out, reply(job.msg, Restored(job.path, len(job.refs), _listed(adopted))), *self._finish(now)]

    def _finish(self, now: float) -> list[Message]:
        self._jobs.popleft()
        return self._begin(now) if self._jobs else []

    def pinned(self) -> list[Ref]:
        """Return the refs that the running job needs: the roots that it saves, or the blobs that it has stored."""
        job = self._jobs[0] if self._jobs else None
        if isinstance(job, _Save):
            return [saved.ref for saved in job.state]
        return job.refs if job is not None else []

    def statistics(self) -> dict[str, float]:
        return {
            "saved": self._saved,
            "restored": self._restored,
            "failed": self._failed,
            "periodic": self._periodic,
            "skipped": self._skipped,
            "waiting": len(self._jobs),
        }

    def check(self) -> None:
        assert self._reading is not None or self.deadline == self._due
        assert self.deadline <= self._due


def saved_file(path: str, time: float, state: Sequence[SavedNamespace]) -> SavedFile:
    """Return the record of a file that has these namespaces as they were at ``time``."""
    version = next((saved.version for saved in state if saved.namespace == PRIMARY), 0)
    return SavedFile(path, time, version, len(state))


def _listed(roots: Sequence[RootInfo | SavedNamespace]) -> list[tuple[str, int, Ref, float]]:
    return [(root.namespace, root.version, root.ref, root.time) for root in roots]
