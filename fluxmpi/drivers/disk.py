"""The DISK driver: a worker thread writes and reads checkpoints, so that the loop continues meanwhile.

    disk.refs …, disk.commit ─▶ thread: checkpoint.write ─▶ disk.saved or disk.failed
    disk.read                 ─▶ thread: checkpoint.reading ─▶ disk.blobs …, disk.roots, or disk.failed

The checkpoint service sends one job at a time. The thread shares nothing with the loop but the messages that it posts
and, to read, the store: blobs are immutable, and none of those that it writes is removed meanwhile.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

from fluxmpi.blobref import Ref, to_text
from fluxmpi.drivers.log import logger
from fluxmpi.drivers.memory import AddressSpace
from fluxmpi.errors import FluxmpiError, NoSuchBlob, OutOfMemory, StorageError, encode_error
from fluxmpi.kvs.mvcc.checkpoint import Chunk, Failed, ReadFile, Refs, Write, Written
from fluxmpi.kvs.wire import encode_settings
from fluxmpi.message import DISK, Body, Message, control

log = logger("disk")

READ_AHEAD = 8
"""Batches of blobs that the reading thread may be ahead of the loop; this bounds the memory of a restore."""

RESERVE_BYTES = 48 << 20
"""A thread's stack, h5py's buffers, and the lists of a save."""

_decode_refs = Body(Refs)
_decode_write = Body(Write)
_decode_read = Body(ReadFile)


class Disk:
    def __init__(
        self, deliver: Callable[[Message], None], load: Callable[[Ref], bytes | None], algorithm: str, instance: str
    ) -> None:
        """``deliver`` may be called from any thread: it queues a message for the broker and wakes the loop.

        ``load`` returns a blob of the store, from any thread.
        """
        self._deliver = deliver
        self._algorithm = algorithm
        self._instance = instance
        self._load = load
        self._refs: list[Ref] = []
        self._thread: threading.Thread | None = None
        self._ahead = threading.Semaphore(READ_AHEAD)
        self.reserve = AddressSpace(RESERVE_BYTES)
        """Released while a file is written or read, so that a process at its limit can save."""

    def step(self, msg: Message) -> None:
        match msg.topic:
            case "disk.refs":
                self._refs += _decode_refs(msg).refs
            case "disk.discard":
                self._refs = []
            case "disk.commit":
                refs, self._refs = self._refs, []
                self._start(self._write, _decode_write(msg), refs)
            case "disk.read":
                self._start(self._read, _decode_read(msg))

    def _start(self, work: Callable[..., None], *args: object) -> None:
        self.reserve.release()
        thread = threading.Thread(target=self._run, args=(work, *args), name="disk")
        try:
            thread.start()
        except RuntimeError as problem:
            self._fail(OutOfMemory(f"there is no memory for a thread that reads or writes a checkpoint: {problem}"))
            return
        self._thread = thread

    def _run(self, work: Callable[..., None], *args: object) -> None:
        """Run ``work`` and report its failure; without the report, the requests that wait for it would wait for ever."""
        try:
            work(*args)
        except MemoryError:
            self._fail(OutOfMemory("there is no memory to read or write a checkpoint; older files are as they were"))
        except Exception as problem:
            self._fail(
                problem if isinstance(problem, FluxmpiError) else StorageError(f"{type(problem).__name__}: {problem}")
            )
        self.reserve.refill()

    def _fail(self, error: FluxmpiError) -> None:
        log.warning("%s", error.text)
        self._send("disk.failed", Failed(*encode_error(error)))

    def _send(self, topic: str, body: object) -> None:
        self._deliver(control(topic, body, DISK))

    def _write(self, write: Write, refs: list[Ref]) -> None:
        begin = time.monotonic()
        blobs = [self._blob(ref) for ref in refs]
        gc.freeze()  # importing h5py collects garbage several times: 100 ms with a million objects
        from fluxmpi.drivers import checkpoint
        from fluxmpi.drivers.checkpoint_format import SavedRoot

        roots = [
            SavedRoot(root.namespace, root.version, root.ref, root.time, encode_settings(root)) for root in write.roots
        ]
        written = checkpoint.write(write.path, refs, blobs, roots, algorithm=self._algorithm, instance=self._instance)
        if write.verify:
            with checkpoint.reading(written.path) as reader:
                for _ in reader.batches():
                    pass
        log.info(
            "saved checkpoint %s: %d blobs, %d bytes, %.2f s",
            *(written.path, written.blob_count, written.file_bytes, time.monotonic() - begin),
        )
        self._send("disk.saved", Written(written.path, written.blob_count, written.file_bytes))

    def _blob(self, ref: Ref) -> bytes:
        blob = self._load(ref)
        if blob is None:
            raise NoSuchBlob(f"the store lacks blob {to_text(ref)}, which the checkpoint needs")
        return blob

    def _read(self, read: ReadFile) -> None:
        from fluxmpi.drivers import checkpoint

        begin = time.monotonic()
        with checkpoint.reading(read.path) as reader:
            if reader.algorithm != self._algorithm:
                raise StorageError(
                    f"{read.path} was written with hash {reader.algorithm}, this instance uses {self._algorithm}: "
                    f"start one with --hash {reader.algorithm}"
                )
            for refs, blobs in reader.batches():
                self._ahead.acquire()
                self._send("disk.blobs", Chunk(list(refs), list(blobs)))
            roots = checkpoint.saved_namespaces(reader.path, reader.roots)
        log.info("read checkpoint %s: %d roots, %.2f s", read.path, len(roots), time.monotonic() - begin)
        self._send("disk.roots", roots)

    def taken(self, msg: Message) -> None:
        """Let the reading thread continue: the loop has stepped one of its messages."""
        if msg.topic == "disk.blobs":
            self._ahead.release()

    def close(self) -> None:
        """Wait for a write in progress: a client requested it."""
        for _ in range(READ_AHEAD * 2):
            self._ahead.release()
        if self._thread is not None:
            self._thread.join(timeout=60)
