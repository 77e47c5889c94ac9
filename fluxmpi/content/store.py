"""Rank 0's blobs: all that the instance has. The same reading interface as a ``Cache``; nothing is lost but what is collected.

A blob stays while a root that is kept reaches it, or somebody works with it. Which these are, the collector finds out
(``kvs/gc``) while clients go on; for its sake the store does three things:

- While a collection runs (between ``begin`` and ``end``), what is put is marked, also if it was here already; and so is what is
  *held*: found to be here, by somebody who is about to refer to it.
- It knows when clients last stored a blob: one that no commit has referred to yet is not garbage for a while (``young``).
- It tells when so much was stored that a collection is worth its while (``on_full``).

Invariants: ``bytes`` is the sum of the sizes; a blob that is marked is not removed, nor one that the collector needs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from fluxmpi.blobref import Ref

NEVER = float("inf")


class Store:
    def __init__(self) -> None:
        self._blobs: dict[Ref, bytes] = {}
        self.bytes = 0
        self.stored = self.stored_bytes = 0
        """Ever."""
        self.full_at: float = NEVER
        """When ``stored_bytes`` comes to this, ``on_full`` is called."""
        self.on_full: Callable[[], None] = lambda: None
        self.cycle = 0
        """Counts the collections: what was found whole before one began may not be whole any more."""
        self._marked: set[Ref] | None = None
        self._young: dict[Ref, float] = {}
        """Blobs that clients stored and when they last did, in order of that."""

    def get(self, ref: Ref) -> bytes | None:
        return self._blobs.get(ref)

    def put(self, ref: Ref, blob: bytes) -> None:
        """Keep ``blob``, whose digest the caller has verified to be ``ref``."""
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
        """As ``get``, for who is about to refer to it: if it is here, no collection under way removes it any more. From then on
        it needs no grace: it is reachable, or its commit has failed.
        """
        self._young.pop(ref, None)
        if self._marked is not None and ref in self._blobs:
            self._marked.add(ref)
        return self._blobs.get(ref)

    def touch(self, ref: Ref, now: float) -> None:
        """A client stored it, again or for the first time."""
        self._young.pop(ref, None)
        self._young[ref] = now

    def drop(self) -> tuple[int, int]:
        """Nothing: there is nowhere to fetch it from again."""
        return 0, 0

    # ------------------------------------------------------------------------------------------------- collecting

    def begin(self, since: float) -> set[Ref]:
        """A collection begins: the set of what is marked, which grows from now on. Clients' blobs stored after ``since`` are."""
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
        return list(self._blobs)

    def sweep(self, refs: list[Ref], needed: Sequence[Container[Ref]]) -> tuple[list[Ref], int]:
        """Remove those that are neither marked nor ``needed``; which these were, and their bytes together."""
        blobs = self._blobs
        assert self._marked is not None
        gone = refs
        for group in (self._marked, *needed):
            gone = [ref for ref in gone if ref not in group]
        size = 0
        for ref in gone:
            size += len(blobs.pop(ref))
        self.bytes -= size
        return gone, size

    def end(self) -> None:
        self._marked = None

    def __contains__(self, ref: Ref) -> bool:
        return ref in self._blobs

    def __len__(self) -> int:
        return len(self._blobs)

    def statistics(self) -> dict[str, float]:
        return {"blobs": len(self._blobs), "bytes": self.bytes}

    def check(self) -> None:
        assert self.bytes == sum(map(len, self._blobs.values()))
