"""Bodies of the content services' messages. A ``content.store`` request and a ``content.load`` response are a bare blob."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.message import CONTROL, SEGMENTS, Message, Record, encode_body


class LoadRequest(Record):
    """``content.load`` → the blob's bytes as the whole body, or NoSuchBlob.

    ``keep`` False: who asks keeps it, in a segment of this broker, so it need not stand in the cache as well.
    """

    ref: Ref
    keep: bool = True


class Stored(Record):
    """The answer to ``content.store``: rank 0 has the blob."""

    ref: Ref


class Dropped(Record):
    """``content.dropcache`` → what the cache of that broker gave up. Rank 0 holds the store itself and drops nothing of it."""

    blobs: int
    bytes: int


class Map(Record):
    """``value.map`` → Mapped, and with it the descriptor of a read-only file that holds the blobs' bytes one after another.

    Only a client's own broker can pass it one. NoSuchBlob; DigestMismatch: the blobs together do not have ``size`` bytes;
    TooLarge, Overloaded: the value does not fit into what the broker may hold, so load its blobs one by one instead.
    """

    refs: list[Ref]
    size: int


class Mapped(Record):
    size: int


# ------------------------------------------------------------------------------------------------- to and from SEGMENTS


class Create(Record):
    """``segment.create``: an empty file of that size, zeros."""

    segment: int
    size: int


class Pass(Record):
    """``segment.pass``: answer the client's ``value.map`` of that tag with Mapped and the file's descriptor."""

    segment: int
    hop: int
    tag: int


class Spoilt(Record):
    """``value.spoilt``, from SEGMENTS: the file cannot be had, or not be written; an error's code and body say why."""

    segment: int
    status: int
    body: bytes


class BlobPlace(Record):
    """Where a blob stands: in which segment, at which byte, how many. ``segment.read`` → ``content.read``, see ``read``."""

    segment: int
    offset: int
    size: int


def read(place: BlobPlace, tag: int) -> Message:
    """``segment.read`` → ``content.read`` of the same tag: the bytes as the whole body, or a status that is not OK when the
    segment is there no more.
    """
    return Message(CONTROL, "segment.read", SEGMENTS, tag=tag, body=encode_body(place))


def write(segment: int, offset: int, blob: bytes) -> Message:
    """``segment.write``: the body is the bytes themselves, uncopied; ``tag`` is the file and ``target`` where they go."""
    return Message(CONTROL, "segment.write", SEGMENTS, offset, segment, body=blob)
