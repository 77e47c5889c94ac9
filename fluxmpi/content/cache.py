"""LRU cache of blobs by digest, bounded in bytes.

A blob is named by its content, so an entry is never stale: eviction costs time, never correctness.

A blob of PIECE_BYTES is a piece of a long value, which each child and client reads once, from end to end. Pieces may
use free space. When space is short, they are evicted first while they hold more than half of the cache. So a value of
gigabytes that passes through does not evict the nodes and values that are read repeatedly, and half of the cache holds
pieces for children that read it slowly.

Invariant: ``bytes`` is the sum of the sizes, at most ``bytes_max`` unless the newest blob alone is larger.
"""

from __future__ import annotations

from fluxmpi.blobref import BLOB_BYTES_MAX, Ref

CACHE_BYTES_MAX = 64 << 20
PIECE_BYTES = BLOB_BYTES_MAX
"""Clients cut long values into blobs of this size; other blobs are seldom as large."""


class Cache:
    """The blobs of one broker other than rank 0."""

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX, piece_bytes: int = PIECE_BYTES) -> None:
        self.bytes_max = bytes_max
        self._piece_bytes = piece_bytes
        self.bytes = 0
        self._blobs: dict[Ref, bytes] = {}
        """In order of last use: a hit is removed and inserted again."""
        self._pieces: dict[Ref, bytes] = {}
        """The same of the pieces."""
        self._pieces_bytes = 0
        self.hits = self.misses = self.evictions = 0

    def get(self, ref: Ref) -> bytes | None:
        """Return the blob, or None."""
        blobs = self._blobs
        blob = blobs.pop(ref, None)
        if blob is None:
            blobs = self._pieces
            blob = blobs.pop(ref, None)
            if blob is None:
                self.misses += 1
                return None
        blobs[ref] = blob
        self.hits += 1
        return blob

    def put(self, ref: Ref, blob: bytes) -> None:
        """Store ``blob``, whose digest the caller has verified to be ``ref``."""
        size = len(blob)
        piece = size >= self._piece_bytes
        blobs = self._pieces if piece else self._blobs
        if ref in blobs:
            return
        blobs[ref] = blob
        self.bytes += size
        if piece:
            self._pieces_bytes += size
        while self.bytes > self.bytes_max and len(self) > 1:
            self._evict(ref)

    def _evict(self, newest: Ref) -> None:
        """Evict one blob other than the newest.

        While pieces hold more than half, it is the oldest piece, otherwise the oldest other blob.
        """
        pieces_first = 2 * self._pieces_bytes > self.bytes_max
        for blobs in (self._pieces, self._blobs) if pieces_first else (self._blobs, self._pieces):
            oldest = next(iter(blobs), None)
            if oldest is None or oldest == newest:
                continue
            size = len(blobs.pop(oldest))
            self.bytes -= size
            if blobs is self._pieces:
                self._pieces_bytes -= size
            self.evictions += 1
            return

    def has_room(self, size: int, now: float) -> bool:
        """Return True: a cache makes room."""
        return True

    def touch(self, ref: Ref, now: float) -> None:
        """Do nothing: only rank 0's store records when clients stored a blob."""

    def drop(self) -> tuple[int, int]:
        """Evict everything; returns the number of blobs and their bytes."""
        held = len(self), self.bytes
        self._blobs.clear()
        self._pieces.clear()
        self.bytes = self._pieces_bytes = 0
        return held

    def refs(self) -> list[Ref]:
        """Return the refs of the blobs that are not pieces, the least recently used first."""
        return list(self._blobs)

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._blobs or ref in self._pieces

    def __len__(self) -> int:
        return len(self._blobs) + len(self._pieces)

    def statistics(self) -> dict[str, float]:
        return {
            "blobs": len(self),
            "bytes": self.bytes,
            "bytes_max": self.bytes_max,
            "pieces": len(self._pieces),
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
        }

    def check(self) -> None:
        assert self._pieces_bytes == sum(map(len, self._pieces.values()))
        assert self.bytes == self._pieces_bytes + sum(map(len, self._blobs.values()))
        assert self.bytes <= self.bytes_max or len(self) <= 1
