"""The SEGMENTS driver: files in memory without a name, filled with a value's bytes and sent to clients as descriptors.

    segment.create ─▶ memfd ─segment.write …─▶ segment.seal ─▶ read-only for all processes ─segment.pass─▶ clients
                               └─segment.read─▶ content.read, of written bytes   └─segment.close─▶ freed when unmapped

A memfd exists while a process has it open, so nothing is left over when processes are killed. Seals prevent writing to
it, and truncating it, which would end processes that read their mapping (SIGBUS). It is filled with ``pwrite``, not
through a mapping: a page that is written as a whole need not be zeroed and faulted in first.

A failure (no memory, no descriptor left) is reported to the machine once, with ``value.spoilt``. A client that was to
get a failed segment gets the error instead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Protocol

from fluxmpi.content.wire import BlobPlace, Create, Mapped, Pass, Spoilt
from fluxmpi.drivers.descriptor import Descriptor
from fluxmpi.errors import FluxmpiError, StorageError, encode_error
from fluxmpi.message import CONTROL, RESPONSE, SEGMENTS, Body, Message, control, encode_body

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_decode_create = Body(Create)
_decode_pass = Body(Pass)
_decode_place = Body(BlobPlace)
_decode_segment = Body(int)


class DescriptorSender(Protocol):
    def send(self, hop: int, batch: list[Message], descriptor: Descriptor | None = None) -> None: ...


class Segments:
    """The segments of one broker. ``deliver`` queues a message for the broker's next turn."""

    def __init__(self, clients: DescriptorSender, deliver: Callable[[Message], None]) -> None:
        self._clients = clients
        self._deliver = deliver
        self._files: dict[int, Descriptor] = {}
        self._sizes: dict[int, int] = {}
        self._failed: dict[int, FluxmpiError] = {}
        self._passed = 0

    def step(self, msg: Message) -> None:
        topic = msg.topic
        if topic == "segment.write":
            self._write(msg.tag, msg.target, msg.body)
        elif topic == "segment.read":
            self._deliver(self._read(msg.tag, _decode_place(msg)))
        elif topic == "segment.create":
            self._create(_decode_create(msg))
        elif topic == "segment.seal":
            self._seal(_decode_segment(msg))
        elif topic == "segment.pass":
            self._pass(_decode_pass(msg))
        elif topic == "segment.close":
            self._close(_decode_segment(msg))

    def _create(self, create: Create) -> None:
        self._sizes[create.segment] = create.size
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            descriptor = Descriptor(os.memfd_create("fluxmpi-value", flags), create.size)
            os.ftruncate(descriptor.fd, create.size)
        except OSError as error:
            self._fail(create.segment, error)
            return
        self._files[create.segment] = descriptor

    def _write(self, segment: int, offset: int, blob: bytes) -> None:
        descriptor = self._files.get(segment)
        if descriptor is None:
            return
        try:
            rest = memoryview(blob)
            while rest:
                written = os.pwrite(descriptor.fd, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            self._fail(segment, error)

    def _read(self, tag: int, place: BlobPlace) -> Message:
        answer = Message(CONTROL, "content.read", SEGMENTS, tag=tag)
        descriptor = self._files.get(place.segment)
        if descriptor is None:
            answer.status = StorageError.code
            return answer
        answer.body = os.pread(descriptor.fd, place.size, place.offset)
        return answer

    def _seal(self, segment: int) -> None:
        descriptor = self._files.get(segment)
        if descriptor is None:
            return
        try:
            fcntl.fcntl(descriptor.fd, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            self._fail(segment, error)

    def _pass(self, wanted: Pass) -> None:
        answer = Message(RESPONSE, "value.map", tag=wanted.tag)
        descriptor = self._files.get(wanted.segment)
        if descriptor is None:
            answer.status, answer.body = encode_error(self._failed[wanted.segment])
        else:
            answer.body = encode_body(Mapped(self._sizes[wanted.segment]))
            self._passed += 1
        self._clients.send(wanted.hop, [answer], descriptor)

    def _fail(self, segment: int, problem: OSError) -> None:
        error = StorageError(f"no memory for a value of {self._sizes[segment]:,} bytes: {problem.strerror or problem}")
        self._files.pop(segment, None)
        self._failed[segment] = error
        self._deliver(control("value.spoilt", Spoilt(segment, *encode_error(error)), SEGMENTS))

    def _close(self, segment: int) -> None:
        """Close the segment as soon as no queued response carries it."""
        self._files.pop(segment, None)
        self._failed.pop(segment, None)
        self._sizes.pop(segment, None)

    def close(self) -> None:
        self._files.clear()

    def statistics(self) -> dict[str, float]:
        return {"segments": len(self._files), "passed": self._passed}
