"""Bodies of the content services' messages.

A ``content.store`` request and a ``content.load`` response are a bare blob.
"""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.message import CONTROL, SEGMENTS, Message, Record, encode_body


class LoadRequest(Record):
    """``content.load`` → the blob's bytes as the whole body, or NoSuchBlob.

    ``keep`` False: the requester stores it in a segment of this broker, so it need not be cached as well.
    """

    ref: Ref
    keep: bool = True


class Stored(Record):
    """The response to ``content.store``: rank 0 has the blob."""

    ref: Ref


class Dropped(Record):
    """``content.dropcache`` → what was evicted from that broker's cache.

    Rank 0 has the store itself, and evicts nothing.
    """

    blobs: int
    bytes: int


class Map(Record):
    """``value.map`` → Mapped, with the descriptor of a read-only file that has the blobs' bytes one after another.

    Only the client's own broker can send a descriptor. Errors: NoSuchBlob; DigestMismatch: the blobs do not have
    ``size`` bytes in total; TooLarge, Overloaded: the value does not fit into the broker's memory for segments, so load
    its blobs one by one.
    """

    refs: list[Ref]
    size: int


class Mapped(Record):
    size: int


# ------------------------------------------------------------------------------------------------- to and from SEGMENTS


class Create(Record):
    """``segment.create``: create a file of that size, filled with zeros."""

    segment: int
    size: int


class Pass(Record):
    """``segment.pass``: respond to the client's ``value.map`` of that tag with Mapped and the file's descriptor."""

    segment: int
    hop: int
    tag: int


class Spoilt(Record):
    """``value.spoilt``, from SEGMENTS: the file cannot be created or written; ``status`` and ``body`` are the error."""

    segment: int
    status: int
    body: bytes


class BlobPlace(Record):
    """The place of a blob: segment, first byte, number of bytes. ``segment.read`` → ``content.read``, see ``read``."""

    segment: int
    offset: int
    size: int


def read(place: BlobPlace, tag: int) -> Message:
    """Make a ``segment.read`` → ``content.read`` of the same tag, whose body is the bytes.

    Its status is not OK if the segment is closed.
    """
    return Message(CONTROL, "segment.read", SEGMENTS, tag=tag, body=encode_body(place))


def write(segment: int, offset: int, blob: bytes) -> Message:
    """Make a ``segment.write``, whose body is the bytes themselves, uncopied.

    ``tag`` is the segment, ``target`` the offset.
    """
    return Message(CONTROL, "segment.write", SEGMENTS, offset, segment, body=blob)
