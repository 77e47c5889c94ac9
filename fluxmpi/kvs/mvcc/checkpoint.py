"""Checkpoints at rank 0: the blobs and roots of one. The DISK driver writes and reads the file.

    save     roots now ─▶ read what they reach, some nodes a turn ─▶ disk.chunk … ─▶ disk.commit ─▶ disk.saved
    restore  disk.read ─▶ disk.blobs … ─▶ verify each, store ─▶ disk.roots ─▶ the leader makes new versions

A save fixes the roots when it begins; nodes are immutable, so later commits do not change it. One save or
restore runs at a time; others wait in order.

Invariants: each blob is written once, and everything that a saved root reaches is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import (
    DigestMismatch,
    FluxmpiError,
    InvalidRequest,
    NoSuchBlob,
    UsageError,
    decode_error,
)
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.objects import Dir, ValRef
from fluxmpi.kvs.store.node import BlobSource, Leaf, NodeCache, ref_text
from fluxmpi.kvs.wire import Progress, Record, Restore, Restored, RootInfo, Save, Saved, SavedNamespace
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import CONTROL, DISK, MORE, REQUEST, Body, Message, control, reply, reply_error

CHUNK_BYTES = 1 << 20


class Chunk(Record):
    """CONTROL ``disk.chunk`` to DISK, ``disk.blobs`` from it: blobs of the current file, with their refs."""

    refs: list[Ref]
    blobs: list[bytes]


class Write(Record):
    """CONTROL ``disk.commit`` to DISK: write the chunks sent before to ``path``, with these roots."""

    path: str
    roots: list[SavedNamespace]


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


class Reach:
    """The blobs that roots reach, each once, a parent before its children. All must be in the store."""

    def __init__(self, nodes: NodeCache, blobs: BlobSource, roots: list[SavedNamespace]) -> None:
        self._nodes = nodes
        self._blobs = blobs
        self._seen: dict[Ref, None] = {}
        self._todo: list[Ref] = []
        for root in roots:
            self._push(root.ref)

    def _push(self, ref: Ref) -> None:
        if ref not in self._seen:
            self._seen[ref] = None
            self._todo.append(ref)

    def take(self, count: int) -> Iterator[tuple[Ref, bytes]]:
        """Take the next ``count`` nodes: their blobs, and those of the values in them. Nothing, if all are taken."""
        while self._todo and count:
            count -= 1
            ref = self._todo.pop()
            yield ref, self._blob(ref)
            node = self._nodes.peek(ref)
            if type(node) is not Leaf:
                for child in node.refs:  # type: ignore[union-attr]
                    self._push(child)
                continue
            for obj in node.objects:
                if type(obj) is Dir:
                    self._push(obj.ref)
                elif type(obj) is ValRef:
                    for part in obj.refs:
                        if part not in self._seen:
                            self._seen[part] = None
                            yield part, self._blob(part)

    def _blob(self, ref: Ref) -> bytes:
        blob = self._blobs.get(ref)
        if blob is None:
            raise NoSuchBlob(f"the store lacks blob {ref_text(ref)}, which a kept root reaches")
        return blob

    @property
    def done(self) -> bool:
        return not self._todo

    @property
    def progress(self) -> tuple[int, int]:
        """Blobs taken, and blobs found so far."""
        return len(self._seen) - len(self._todo), len(self._seen)


class _Save:
    def __init__(self, msg: Message, path: str) -> None:
        self.msg = msg
        self.path = path
        self.roots: list[SavedNamespace] = []
        self.reach: Reach | None = None
        self.reported = 0
        """Blobs in the last Progress."""


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
    topics = ("disk",)

    def __init__(
        self,
        leader: RootWriter,
        nodes: NodeCache,
        blobs: BlobSource,
        digest: Digest,
        path: str,
        limits: MvccLimits = MVCC_LIMITS,
    ) -> None:
        super().__init__()
        self._leader = leader
        self._nodes = nodes
        self._blobs = blobs
        self._digest = digest
        self._path = path
        self._limits = limits
        self._jobs: deque[_Save | _Restore] = deque()
        """The first one runs."""
        self._saved = self._restored = self._failed = 0

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == CONTROL:
            return self._disk(msg, now) if self._jobs else []
        if msg.kind != REQUEST:
            return []
        try:
            return self._request(msg, now)
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _request(self, msg: Message, now: float) -> list[Message]:
        job: _Save | _Restore
        if msg.topic == "checkpoint.save":
            path = _decode_save(msg).path or self._path
            if not path:
                raise InvalidRequest("no file: name one, or start the instance with --checkpoint FILE")
            job = _Save(msg, path)
        elif msg.topic == "checkpoint.restore":
            job = _Restore(msg, _decode_restore(msg).path)
        else:
            raise InvalidRequest(f"service checkpoint has no method {msg.topic!r}")
        if len(self._jobs) >= self._limits.checkpoints_max:
            raise InvalidRequest(f"{self._limits.checkpoints_max} checkpoints wait already; try again")
        self._jobs.append(job)
        return self._begin(now) if len(self._jobs) == 1 else []

    def _begin(self, now: float) -> list[Message]:
        job = self._jobs[0]
        if isinstance(job, _Restore):
            return [control("disk.read", ReadFile(job.path), DISK)]
        job.roots = self._leader.saved()
        job.reach = Reach(self._nodes, self._blobs, job.roots)
        self.deadline = now
        return []

    def tick(self, now: float) -> list[Message]:
        """Take the next nodes of a save."""
        self.deadline = NEVER
        job = self._jobs[0]
        assert isinstance(job, _Save)
        assert job.reach is not None
        chunk = Chunk([], [])
        out = []
        try:
            size = 0
            for ref, blob in job.reach.take(self._limits.checkpoint_nodes_per_turn):
                chunk.refs.append(ref)
                chunk.blobs.append(blob)
                size += len(blob)
                if size >= CHUNK_BYTES:
                    out.append(control("disk.chunk", chunk, DISK))
                    chunk, size = Chunk([], []), 0
        except FluxmpiError as error:
            return [control("disk.discard", None, DISK), *self._finish(reply_error(job.msg, error), now)]
        if chunk.refs:
            out.append(control("disk.chunk", chunk, DISK))
        done, total = job.reach.progress
        if job.reach.done:
            out.append(control("disk.commit", Write(job.path, job.roots), DISK))
        else:
            self.deadline = now
        if done - job.reported >= 1000:
            job.reported = done
            out.append(reply(job.msg, Progress(done, total), MORE))
        return out

    def _disk(self, msg: Message, now: float) -> list[Message]:
        """Take an answer of the driver, which is for the first job."""
        job = self._jobs[0]
        try:
            match msg.topic:
                case "disk.saved":
                    assert isinstance(job, _Save)
                    written = _decode_written(msg)
                    self._saved += 1
                    saved = Saved(written.path, written.blobs, written.bytes, _listed(job.roots))
                    return self._finish(reply(job.msg, saved), now)
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
            self._failed += 1
            return self._finish(reply_error(job.msg, error), now)
        return []

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
        return [*out, *self._finish(reply(job.msg, Restored(job.path, len(job.refs), _listed(adopted))), now)]

    def _finish(self, answer: Message, now: float) -> list[Message]:
        self._jobs.popleft()
        return [answer, *(self._begin(now) if self._jobs else [])]

    def pinned(self) -> list[Ref]:
        """Return the refs that the running job needs: the roots that it saves, or the blobs that it has stored."""
        job = self._jobs[0] if self._jobs else None
        if isinstance(job, _Save):
            return [root.ref for root in job.roots]
        return job.refs if job is not None else []

    def statistics(self) -> dict[str, float]:
        return {
            "saved": self._saved,
            "restored": self._restored,
            "failed": self._failed,
            "waiting": len(self._jobs),
        }

    def check(self) -> None:
        assert self.deadline == NEVER or isinstance(self._jobs[0], _Save)


def _listed(roots: Sequence[RootInfo | SavedNamespace]) -> list[tuple[str, int, Ref, float]]:
    return [(root.namespace, root.version, root.ref, root.time) for root in roots]
