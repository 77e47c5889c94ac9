"""DISK: checkpoint files in memory, with injected write failures.

It answers the same messages as ``drivers/disk``, after a delay. A write is atomic, as there (a temporary file, then a
rename): one that fails, or is interrupted by a kill, leaves the older file unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fluxmpi.blobref import Ref
from fluxmpi.errors import CheckpointError, FluxmpiError, StorageError, encode_error
from fluxmpi.kvs.mvcc.checkpoint import Chunk, Failed, ReadFile, Refs, Write, Written, saved_file
from fluxmpi.kvs.wire import SavedFile, SavedNamespace
from fluxmpi.message import DISK, Body, Message, control
from fluxmpi.simulator.schedule import Schedule

BATCH_BLOBS = 8
"""Blobs in one ``disk.blobs``: few, so that a restore takes several turns."""

_decode_refs = Body(Refs)
_decode_write = Body(Write)
_decode_read = Body(ReadFile)


@dataclass(slots=True)
class SimulatedFile:
    """One checkpoint."""

    blobs: dict[Ref, bytes]
    roots: list[SavedNamespace]


class SimulatedDisk:
    """``deliver`` passes a message to this disk's broker, ``load`` returns a blob of its store.

    ``failures``: share of writes that fail.
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: Random,
        deliver: Callable[[Message], None],
        load: Callable[[Ref], bytes | None],
        failures: float = 0.0,
    ) -> None:
        self._schedule = schedule
        self._rng = rng
        self._deliver = deliver
        self._load = load
        self._refs: list[Ref] = []
        self.failures = failures
        self.files: dict[str, SimulatedFile] = {}
        self.written = self.failed = 0
        self.failed_last: dict[str, bool] = {}
        """Path to whether its last write failed."""

    def step(self, msg: Message) -> None:
        match msg.topic:
            case "disk.refs":
                refs = _decode_refs(msg).refs
                assert not any(ref in self._refs for ref in refs), "a blob is written twice into one checkpoint"
                self._refs += refs
            case "disk.discard":
                self._refs = []
            case "disk.commit":
                write, refs, self._refs = _decode_write(msg), self._refs, []
                self._later(lambda: self._write(write, refs))
            case "disk.read":
                path = _decode_read(msg).path
                self._later(lambda: self._read(path))

    def _later(self, action: Callable[[], None]) -> None:
        self._schedule.after(self._rng.uniform(0.0001, 0.05), action)

    def _send(self, topic: str, body: object) -> None:
        self._deliver(control(topic, body, DISK))

    def _fail(self, error: FluxmpiError) -> None:
        self.failed += 1
        self._send("disk.failed", Failed(*encode_error(error)))

    def _write(self, write: Write, refs: list[Ref]) -> None:
        path, blobs = write.path, {ref: self._load(ref) for ref in refs}
        assert None not in blobs.values(), "a blob was removed while its checkpoint was being written"
        file = SimulatedFile(blobs, write.roots)  # type: ignore[arg-type]
        self.failed_last[path] = self._rng.random() < self.failures
        if self.failed_last[path]:
            self._fail(StorageError(f"{path}: no space left on device"))
            return
        self.files[path] = file
        self.written += 1
        self._send("disk.saved", Written(path, len(file.blobs), sum(map(len, file.blobs.values()))))

    def rescue(self, path: str, roots: list[SavedNamespace], blobs: dict[Ref, bytes], now: float) -> SavedFile:
        """Write a file as ``drivers/rescue`` does when the broker of rank 0 has failed."""
        self.files[path] = SimulatedFile(blobs, roots)
        self.failed_last[path] = False
        return saved_file(path, now, roots)

    def _read(self, path: str) -> None:
        file = self.files.get(path)
        if file is None:
            self._fail(CheckpointError(f"{path}: no such file"))
            return
        entries = list(file.blobs.items())
        delay = 0.0
        for at in range(0, len(entries), BATCH_BLOBS):
            batch = entries[at : at + BATCH_BLOBS]
            chunk = Chunk([ref for ref, _ in batch], [blob for _, blob in batch])
            delay += self._rng.uniform(0.0, 0.001)
            self._schedule.after(delay, lambda chunk=chunk: self._send("disk.blobs", chunk))  # type: ignore[misc]
        self._schedule.after(delay, lambda: self._send("disk.roots", file.roots))
