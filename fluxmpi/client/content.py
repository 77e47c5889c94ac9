"""Blobs by digest: ``h.content``. A long value is a list of them, moved with a few on the way at a time.

What is loaded is verified against its name here as well, at the last moment: no broker on the way need be trusted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fluxmpi.blobref import BLOB_BYTES_MAX, Digest, Ref, digest_function, from_text, to_text
from fluxmpi.client.protocol import bare, decoder, encode
from fluxmpi.content.wire import Dropped, LoadRequest, Stored
from fluxmpi.errors import DigestMismatch, TooLarge
from fluxmpi.message import ANY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future, Handle

WINDOW_BLOBS = 8
"""Blobs on the way at a time, in either direction: 8 MiB at most."""

_decode_stored = decoder(Stored)


class Content:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._digest: Digest = digest_function(handle.hello.algorithm)

    def store(self, blob: bytes) -> str:
        """Keep a blob of at most 1 MiB; returns its blobref, ``sha256-…``. Returns when rank 0 has it."""
        (ref,) = self.store_all([blob])
        return to_text(ref)

    def load(self, ref: str) -> bytes:
        """The blob of that blobref. Raises NoSuchBlob."""
        return next(self.load_all([from_text(ref)]))

    def store_all(self, blobs: Iterable[bytes]) -> list[Ref]:
        """Store many, pipelined. Returns the refs when rank 0 has them all."""
        writer = BlobWriter(self)
        refs = [writer.store(blob) for blob in blobs]
        writer.wait()
        return refs

    def load_all(self, refs: Sequence[Ref]) -> Iterator[bytes]:
        """Load many, pipelined, in order. Raises NoSuchBlob, and DigestMismatch for one that its name belies."""
        coming: deque[tuple[Ref, Future]] = deque()
        position = 0
        while position < len(refs) or coming:
            while position < len(refs) and len(coming) < WINDOW_BLOBS:
                ref = refs[position]
                coming.append(
                    (ref, self._handle.send("content.load", encode("content.load", LoadRequest(ref)), ANY, bare))
                )
                position += 1
            ref, future = coming.popleft()
            yield self.verified(ref, future.get())

    def verified(self, ref: Ref, blob: bytes) -> bytes:
        if self._digest(blob) != ref:
            raise DigestMismatch(f"blob {to_text(ref)} came damaged: its bytes do not have this digest")
        return blob

    def dropcache(self, rank: int = ANY) -> tuple[int, int]:
        """Make a broker give up its cache; (blobs, bytes) that it gave up. Rank 0 keeps the store itself."""
        dropped = self._handle.rpc("content.dropcache", target=rank, reply=Dropped)
        return dropped.blobs, dropped.bytes


class BlobWriter:
    """Stores blobs with at most WINDOW_BLOBS on the way; call ``wait`` before anything refers to them."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._going: deque[tuple[Ref, Future]] = deque()

    def store(self, blob: bytes) -> Ref:
        if len(blob) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob has at most {BLOB_BYTES_MAX:,} bytes, and this one has {len(blob):,}: cut it")
        if len(self._going) >= WINDOW_BLOBS:
            self._settle()
        ref = self._content._digest(blob)
        self._going.append((ref, self._content._handle.send("content.store", blob, ANY, _decode_stored)))
        return ref

    def wait(self) -> None:
        while self._going:
            self._settle()

    def _settle(self) -> None:
        ref, future = self._going.popleft()
        stored = future.get().ref
        if stored != ref:
            raise DigestMismatch(f"blob {to_text(ref)} was stored as {to_text(stored)}: it was damaged on the way")
