"""Rank 0's store in the simulator, which keeps every blob that was ever stored.

Checkers use it to read versions that are collected.

The brokers see only what a real store would still have.
"""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.content.store import Store


class ArchivingStore(Store):
    """``ever``: all blobs, also those that were collected."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: dict[Ref, bytes] = {}

    def put(self, ref: Ref, blob: bytes) -> None:
        self.ever.setdefault(ref, blob)
        super().put(ref, blob)
