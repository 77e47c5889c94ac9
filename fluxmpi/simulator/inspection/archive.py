"""Rank 0's store as the simulator has it: it also remembers all that was ever in it, so that the truth can be told of versions
that are not kept any more. The brokers see nothing of that.
"""

from __future__ import annotations

from fluxmpi.blobref import Ref
from fluxmpi.content.store import Store


class ArchivingStore(Store):
    def __init__(self) -> None:
        super().__init__()
        self.ever: dict[Ref, bytes] = {}

    def put(self, ref: Ref, blob: bytes) -> None:
        self.ever.setdefault(ref, blob)
        super().put(ref, blob)
