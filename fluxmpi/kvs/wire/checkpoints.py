"""The service ``checkpoint``."""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.kvs.wire.base import Record


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
