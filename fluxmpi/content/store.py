"""Rank 0's store: all blobs of the instance. Same interface as ``Cache`` for reading; only a collection removes blobs.

A blob is live while a retained root reaches it or an operation uses it. The collector (``kvs/mvcc/gc``) finds the live
blobs while clients continue. For this the store does three things:

- While a collection runs (between ``begin`` and ``end``), every blob that is put is marked, also if it is stored
  already. So is every blob that is *held*: looked up by an operation that is about to refer to it.
- It records when clients last stored a blob: a blob that no commit refers to yet is not garbage for some time
  (``_young``).
- It calls ``on_full`` when enough was stored to make a collection worthwhile.

Whoever stores what a client sends asks ``has_room`` before (``kvs/mvcc/space``).

Invariants: ``bytes`` is the sum of the sizes; a collection removes no blob that is marked or that the collector needs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from fluxmpi.blobref import Ref

NEVER = float("inf")

SHARED_BYTES_MIN = 64 << 10
"""Blobs from this size on are published when they are swept, so that brokers drop the segments that have them."""


class Store:
    """The blobs of an instance."""

    def __init__(self) -> None:
        self._blobs: dict[Ref, bytes] = {}
        self.bytes = 0
        self.stored = self.stored_bytes = 0
        """Blobs and bytes stored since the start, removed ones included."""
        self.full_at: float = NEVER
        """``on_full`` is called when ``stored_bytes`` reaches this."""
        self.on_full: Callable[[], None] = lambda: None
        self.has_room: Callable[[int, float], bool] = lambda size, now: True
        """Whether so many bytes may be stored now; False: when a collection has ended. Raises StoreFull."""
        self.cycle = 0
        """Number of collections begun. A tree that was found complete before a collection may be incomplete after
        it.
        """
        self.swept_large: list[Ref] = []
        """Blobs of at least SHARED_BYTES_MIN that were swept; the collector takes them."""
        self._marked: set[Ref] | None = None
        self._young: dict[Ref, float] = {}
        """Blobs that clients stored, with the time of the last store, in order of time."""

    def get(self, ref: Ref) -> bytes | None:
        """Return the blob, or None."""
        return self._blobs.get(ref)

    def put(self, ref: Ref, blob: bytes) -> None:
        """Store ``blob``, whose digest the caller has verified to be ``ref``."""
        if self._marked is not None:
            self._marked.add(ref)
        if ref in self._blobs:
            return
        self._blobs[ref] = blob
        size = len(blob)
        self.bytes += size
        self.stored += 1
        self.stored_bytes += size
        if self.stored_bytes >= self.full_at:
            self.full_at = NEVER
            self.on_full()

    def hold(self, ref: Ref) -> bytes | None:
        """Return the blob, or None, for an operation that will refer to it.

        A running collection does not remove it.

        From then on the blob is no longer young: it is reachable, or its commit has failed.
        """
        self._young.pop(ref, None)
        if self._marked is not None and ref in self._blobs:
            self._marked.add(ref)
        return self._blobs.get(ref)

    def grace_from(self, ref: Ref) -> float | None:
        """When a client last stored a blob that no commit has referred to yet; None if one has, or it was not stored."""
        return self._young.get(ref)

    def touch(self, ref: Ref, now: float) -> None:
        """Record that a client stored the blob at ``now``."""
        self._young.pop(ref, None)
        self._young[ref] = now

    def drop(self) -> tuple[int, int]:
        """Do nothing: rank 0 has no parent to load a blob from again."""
        return 0, 0

    # ------------------------------------------------------------------------------------------------- collecting

    def begin(self, since: float) -> set[Ref]:
        """Begin a collection; returns the set of marked blobs, which grows from now on.

        Blobs stored after ``since`` are marked.
        """
        assert self._marked is None
        self.cycle += 1
        old = []
        for ref, time in self._young.items():
            if time > since:
                break
            old.append(ref)
        for ref in old:
            del self._young[ref]
        self._marked = set(self._young)
        return self._marked

    def refs(self) -> list[Ref]:
        """Return the refs of all blobs."""
        return list(self._blobs)

    def sweep(self, refs: list[Ref], needed: Sequence[Container[Ref]]) -> tuple[list[Ref], int]:
        """Remove the refs that are neither marked nor ``needed``; return them, and the sum of their bytes."""
        blobs = self._blobs
        assert self._marked is not None
        gone = refs
        for group in (self._marked, *needed):
            gone = [ref for ref in gone if ref not in group]
        size = 0
        for ref in gone:
            bytes_ = len(blobs.pop(ref))
            size += bytes_
            if bytes_ >= SHARED_BYTES_MIN:
                self.swept_large.append(ref)
        self.bytes -= size
        return gone, size

    def end(self) -> None:
        """End the collection."""
        self._marked = None

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._blobs

    def __len__(self) -> int:
        return len(self._blobs)

    def statistics(self) -> dict[str, float]:
        return {"blobs": len(self._blobs), "bytes": self.bytes}

    def check(self) -> None:
        assert self.bytes == sum(map(len, self._blobs.values()))
