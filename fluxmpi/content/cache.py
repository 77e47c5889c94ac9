"""Blobs by digest, bounded in bytes: least recently used first out.

A blob's name is its content, so an entry is never stale and dropping one is never wrong, only slow.

Invariant: ``bytes`` is the sum of the sizes, at most ``bytes_max`` unless the newest blob alone is larger.
"""

from __future__ import annotations

from fluxmpi.blobref import Ref

CACHE_BYTES_MAX = 64 << 20


class Cache:
    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._blobs: dict[Ref, bytes] = {}
        """In order of last use: a hit is taken out and put in again."""
        self.hits = self.misses = self.evictions = 0

    def get(self, ref: Ref) -> bytes | None:
        blob = self._blobs.pop(ref, None)
        if blob is None:
            self.misses += 1
            return None
        self._blobs[ref] = blob
        self.hits += 1
        return blob

    def put(self, ref: Ref, blob: bytes) -> None:
        """Keep ``blob``, whose digest the caller has verified to be ``ref``."""
        blobs = self._blobs
        if ref in blobs:
            return
        blobs[ref] = blob
        self.bytes += len(blob)
        while self.bytes > self.bytes_max and len(blobs) > 1:
            oldest = next(iter(blobs))
            self.bytes -= len(blobs.pop(oldest))
            self.evictions += 1

    def drop(self) -> tuple[int, int]:
        """Forget everything; (blobs, bytes) that were held."""
        held = len(self._blobs), self.bytes
        self._blobs.clear()
        self.bytes = 0
        return held

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._blobs

    def __len__(self) -> int:
        return len(self._blobs)

    def statistics(self) -> dict[str, float]:
        return {
            "blobs": len(self._blobs),
            "bytes": self.bytes,
            "bytes_max": self.bytes_max,
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
        }

    def check(self) -> None:
        assert self.bytes == sum(map(len, self._blobs.values()))
        assert self.bytes <= self.bytes_max or len(self._blobs) <= 1
