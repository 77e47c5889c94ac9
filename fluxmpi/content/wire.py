"""Bodies of the content service's messages. A ``content.store`` request and a ``content.load`` response are a bare blob."""

from __future__ import annotations

import msgspec

from fluxmpi.blobref import Ref


class Record(msgspec.Struct, array_like=True, gc=False): ...


class Load(Record):
    """``content.load`` → the blob's bytes as the whole body, or NoSuchBlob."""

    ref: Ref


class Stored(Record):
    """The answer to ``content.store``: rank 0 has the blob."""

    ref: Ref


class Dropped(Record):
    """``content.dropcache`` → what the cache of that broker gave up. Rank 0 holds the store itself and drops nothing of it."""

    blobs: int
    bytes: int
