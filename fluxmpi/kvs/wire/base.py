"""Records and types that several services of the KVS use."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.message import Record as Record

PRIMARY = "primary"
"""The namespace that always exists."""

NAME_CHARS_MAX = 128
"""Characters of the name of a namespace or a client."""

Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
"""The name of a namespace or a client: brokers keep it, so a longer one is refused when it is decoded."""


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
