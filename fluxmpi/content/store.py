"""Rank 0's blobs: all that the instance has. The same reading interface as a ``Cache``, without bound or loss.

A blob stays until the instance ends. Checkpoints and restarts keep only what is reachable from a root.
"""

from __future__ import annotations

from fluxmpi.blobref import Ref


class Store:
    def __init__(self) -> None:
        self._blobs: dict[Ref, bytes] = {}
        self.bytes = 0

    def get(self, ref: Ref) -> bytes | None:
        return self._blobs.get(ref)

    def put(self, ref: Ref, blob: bytes) -> None:
        """Keep ``blob``, whose digest the caller has verified to be ``ref``."""
        if ref not in self._blobs:
            self._blobs[ref] = blob
            self.bytes += len(blob)

    def drop(self) -> tuple[int, int]:
        """Nothing: there is nowhere to fetch it from again."""
        return 0, 0

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._blobs

    def __len__(self) -> int:
        return len(self._blobs)

    def statistics(self) -> dict[str, float]:
        return {"blobs": len(self._blobs), "bytes": self.bytes}

    def check(self) -> None:
        assert self.bytes == sum(map(len, self._blobs.values()))
