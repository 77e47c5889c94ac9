"""The bytes of stored values: long ones as memory, a file that the broker fills and passes, mapped read-only.

All readers of a node share the file's pages, and the file is sealed: it cannot be written any more. The broker has
verified the bytes; they are not digested again here. A value that cannot be mapped, since it is longer than the broker
may hold or no descriptor is left, is loaded blob by blob into the reader's own memory, and verified here.

    view ─▶ value.map ─descriptor─▶ mmap
              └─TooLarge, Overloaded─▶ loaded
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.client.channel import Channel
from fluxmpi.client.content import load_blobs
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.sockets import DescriptorQueue
from fluxmpi.client.values import decode_value
from fluxmpi.content.wire import Map, Mapped
from fluxmpi.errors import DigestMismatch, NoSuchBlob, Overloaded, SnapshotCollected, StorageError, TooLarge, indefinite
from fluxmpi.kvs.objects import Object, Val, ValRef
from fluxmpi.message import ANY, OK, Message

NOT_MAPPABLE = (TooLarge, Overloaded, StorageError)
"""Why a value cannot be mapped although it is stored: load its blobs instead."""

_decode_mapped = decoder(Mapped)


@contextmanager
def of_a_version() -> Iterator[None]:
    """Report a missing blob in this block as SnapshotCollected: a version's blobs are stored as long as it is kept."""
    try:
        yield
    except NoSuchBlob as missing:
        error = SnapshotCollected(
            "some of this value's bytes were collected: no version that is kept has it; lease a version to read it slowly"
        )
        raise (error if missing.definite else indefinite(error)) from None


class _Arrival:
    """The descriptor of one ``value.map``; called with the response, also after the request was given up."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.fd = -1
        self.given_up = False

    def __call__(self, message: Message) -> None:
        descriptors = self._channel.descriptors
        assert descriptors is not None
        descriptors.expected -= 1
        if message.status == OK and descriptors.arrived:
            self.fd = descriptors.arrived.popleft()
        if not descriptors.expected:
            self._channel.descriptors = None
        if self.given_up:
            self.close()

    def close(self) -> None:
        self.given_up = True
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def descriptor(channel: Channel, found: ValRef, timeout: float | None = None) -> int:
    """Return a descriptor of a read-only file with the value's bytes, which the caller closes.

    Raises what ``value.map`` does, and StorageError if this process has no descriptor left.
    """
    arrival = _Arrival(channel)
    body = encode("value.map", Map(list(found.refs), found.size))
    with channel.use:
        if channel.descriptors is None:
            channel.descriptors = DescriptorQueue()
        channel.descriptors.expected += 1
        future = channel.send("value.map", body, ANY, _decode_mapped, arrival)
        try:
            future.get(timeout)
        except BaseException:
            future.cancel()
            arrival.close()
            raise
    if arrival.fd < 0:
        text = "no file descriptor left for a value's bytes: close some files, or raise 'ulimit -n'"
        raise indefinite(StorageError(text))
    return arrival.fd


def value_of(channel: Channel, found: Object | None) -> Any:
    """Return the Python value of a stored object; None for no object, a directory or a link."""
    if isinstance(found, Val):
        return decode_value(found.type, found.data)
    return decode_value(found.type, view(channel, found)) if isinstance(found, ValRef) else None


def bytes_of(channel: Channel, found: Val | ValRef) -> bytes | bytearray:
    """Return the bytes of a stored value, loaded into the caller's own memory."""
    return found.data if isinstance(found, Val) else loaded(channel, found)


def view(channel: Channel, found: Val | ValRef) -> memoryview:
    """Return the bytes of a value, read-only; a long value's are in memory that the node's readers share, if possible."""
    if isinstance(found, Val):
        return memoryview(found.data)
    if found.size > BLOB_BYTES_MAX:
        mapped = _mapped(channel, found)
        if mapped is not None:
            return memoryview(mapped)
    return memoryview(loaded(channel, found)).toreadonly()


def _mapped(channel: Channel, found: ValRef) -> mmap.mmap | None:
    try:
        with of_a_version():
            fd = descriptor(channel, found)
    except NOT_MAPPABLE:
        return None
    try:
        return mmap.mmap(fd, found.size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError:
        return None
    finally:
        os.close(fd)


def loaded(channel: Channel, found: ValRef) -> bytes | bytearray:
    """Load the bytes of a value into the caller's own memory, and verify them."""
    with of_a_version():
        if len(found.refs) == 1:
            return next(load_blobs(channel, found.refs))
        data = bytearray()
        for blob in load_blobs(channel, found.refs):
            data += blob
    check_size(found, len(data))
    return data


def check_size(found: ValRef, size: int) -> None:
    """Raise DigestMismatch unless the blobs of a value have as many bytes as the value says."""
    if size != found.size:
        text = f"a value of {found.size:,} bytes has blobs of {size:,} bytes: it was stored damaged"
        raise indefinite(DigestMismatch(text))
