"""What the records of all the KVS's services are made of."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.message import Record

PRIMARY = "primary"
"""The namespace that always exists."""


At = int | Ref | None
"""Where to read: a version, a root ref, or None, which is the newest root that the broker knows."""


class RootInfo(Record):
    """A version of a namespace. ``ref`` names the root directory's node; ``time`` is the commit's, seconds since 1970."""

    namespace: str
    version: int
    ref: Ref
    time: float


class Cancel(Record):
    """``kvs.cancel``: ends the stream that this client requested with ``tag``; no answer but the stream's end."""

    tag: int
