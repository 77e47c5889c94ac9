"""Bodies of the messages about the broker and the instance themselves."""

from __future__ import annotations

import msgspec

from fluxmpi.blobref import Ref


class Record(msgspec.Struct, array_like=True, gc=False): ...


class Hello(Record):
    """CONTROL ``hello``: the first message that a broker sends to a client."""

    protocol: int
    instance: str
    rank: int
    size: int
    algorithm: str
    pid: int


class Shutdown(Record):
    """``lifecycle.shutdown`` to rank 0 → null: the instance ends with ``status``. Also CONTROL, down the tree."""

    status: int = 0
    reason: str = ""


class GetAttr(Record):
    """``lifecycle.getattr`` → str; ``lifecycle.lsattr`` (null) → dict of all."""

    name: str


class Save(Record):
    """``checkpoint.save`` → Progress with MORE, then Saved. ``path`` None: the instance's own file."""

    path: str | None = None


class Progress(Record):
    done: int
    total: int


class Saved(Record):
    path: str
    blobs: int
    bytes: int
    roots: list[tuple[str, int, Ref, float]]
    """namespace, version, root ref, time (seconds since 1970)."""


class Restore(Record):
    """``checkpoint.restore`` → Progress with MORE, then Restored. Each namespace gets a new version with the saved root."""

    path: str


class Restored(Record):
    path: str
    blobs: int
    roots: list[tuple[str, int, Ref, float]]
