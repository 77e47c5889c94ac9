"""Long values as memory: a file that the broker fills and passes, mapped read-only (``content/values``).

All readers of a node share its pages, and nobody can write to them any more. The broker has verified the bytes; they are not
digested once more here. A value that cannot be mapped, since it is longer than the broker may hold or no descriptor is left,
is loaded blob by blob into memory of the reader's own, and verified here.

    view ─▶ value.map ─descriptor─▶ mmap
              └─TooLarge, Overloaded─▶ loaded
"""

from __future__ import annotations

import mmap
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.content import Content
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.content.wire import Map, Mapped
from fluxmpi.errors import DigestMismatch, NoSuchBlob, Overloaded, SnapshotCollected, StorageError, TooLarge
from fluxmpi.kvs.objects import Val, ValRef
from fluxmpi.message import ANY, OK, Message

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle

UNMAPPED = (TooLarge, Overloaded, StorageError, OSError)
"""Why a value cannot be mapped although it is there: load its blobs instead."""

_decode_mapped = decoder(Mapped)


@contextmanager
def of_a_version() -> Iterator[None]:
    """What is loaded in this block is of a version's tree. All of that is there as long as the version is kept."""
    try:
        yield
    except NoSuchBlob:
        raise SnapshotCollected(
            "some of this value's bytes are not there any more: no version that is kept has it; lease a version to read it slowly"
        ) from None


class Passing:
    """Descriptors that came with answers and were not taken yet. The n-th answer that carries one carries the n-th."""

    def __init__(self) -> None:
        self.expected = 0
        """Requests under way whose answers may carry one."""
        self.arrived: deque[int] = deque()

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """As ``sock.recv``. A descriptor that there is no room for counts as -1."""
        data, control, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(content) >= 4:
                self.arrived.append(int.from_bytes(content[:4], "little"))
                return data
        if flags & socket.MSG_CTRUNC:
            self.arrived.append(-1)
        return data


class _Arrival:
    """What one ``value.map`` brings; called with its answer, also when nobody waits any more."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.fd = -1
        self.given_up = False

    def __call__(self, message: Message) -> None:
        passing = self._handle.passing
        assert passing is not None
        passing.expected -= 1
        if message.status == OK and passing.arrived:
            self.fd = passing.arrived.popleft()
        if not passing.expected:
            self._handle.passing = None
        if self.given_up:
            self.close()

    def close(self) -> None:
        self.given_up = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def descriptor(handle: Handle, found: ValRef, timeout: float | None = None) -> int:
    """A descriptor of a read-only file with the value's bytes, which the caller closes. Raises what ``value.map`` does, and
    StorageError when this process has no descriptor left.
    """
    arrival = _Arrival(handle)
    body = encode("value.map", Map(list(found.refs), found.size))
    if handle.passing is None:
        handle.passing = Passing()
    handle.passing.expected += 1
    future = handle.send("value.map", body, ANY, _decode_mapped, arrival)
    try:
        future.get(timeout)
    except BaseException:
        future.cancel()
        arrival.close()
        raise
    if arrival.fd < 0:
        raise StorageError("no file descriptor left for a value's bytes: close some files, or raise 'ulimit -n'")
    return arrival.fd


def view(handle: Handle, found: Val | ValRef) -> memoryview:
    """The bytes of a value, read-only; those of a long one in memory that the node's readers share, if it can be mapped."""
    if isinstance(found, Val):
        return memoryview(found.data)
    if found.size > BLOB_BYTES_MAX:
        with suppress(*UNMAPPED), of_a_version():
            fd = descriptor(handle, found)
            try:
                return memoryview(mmap.mmap(fd, found.size, mmap.MAP_SHARED, mmap.PROT_READ))
            finally:
                os.close(fd)
    return memoryview(loaded(handle.content, found)).toreadonly()


def loaded(content: Content, found: ValRef) -> bytes | bytearray:
    """The bytes of a value, loaded into memory of one's own, and verified here."""
    with of_a_version():
        if len(found.refs) == 1:
            return next(content.load_all(found.refs))
        data = bytearray()
        for blob in content.load_all(found.refs):
            data += blob
    same_size(found, len(data))
    return data


def same_size(found: ValRef, size: int) -> None:
    if size != found.size:
        raise DigestMismatch(f"a value of {found.size:,} bytes has blobs of {size:,} bytes: it was stored damaged")
