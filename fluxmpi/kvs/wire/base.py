"""Records and types that several services of the KVS use."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.message import Record as Record

PRIMARY = "primary"
"""The namespace that always exists."""


At = int | Ref | None
"""Where to read: a version, a root ref, or None for the newest root of the broker."""


class RootInfo(Record):
    """A version of a namespace. ``ref``: of the root directory's node; ``time``: of the commit, seconds since 1970."""

    namespace: str
    version: int
    ref: Ref
    time: float


class Cancel(Record):
    """``kvs.cancel``: end the stream that this client requested with ``tag``. The stream's end is the only answer."""

    tag: int
