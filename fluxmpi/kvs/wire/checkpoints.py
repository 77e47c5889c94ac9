"""Records of the ``checkpoint`` service."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.wire.base import Record


class Save(Record):
    """``checkpoint.save`` → Progress with MORE, then Saved. ``path`` None: the instance's checkpoint file."""

    path: str | None = None


class Progress(Record):
    """Blobs written, and blobs found so far."""

    done: int
    total: int


class Saved(Record):
    """``roots``: namespace, version, root ref, time (seconds since 1970)."""

    path: str
    blobs: int
    bytes: int
    roots: list[tuple[str, int, Ref, float]]


class Restore(Record):
    """``checkpoint.restore`` → Progress with MORE, then Restored. Each saved root becomes a new version."""

    path: str


class Restored(Record):
    """``roots``: the new versions, as in Saved."""

    path: str
    blobs: int
    roots: list[tuple[str, int, Ref, float]]
