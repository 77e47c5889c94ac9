"""Blobs by digest: ``h.content``, and the functions that load and store the blobs of long values, several at a time.

Every loaded blob is verified against its name here, at the last moment: the client trusts no broker on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from fluxmpi.blobref import BLOB_BYTES_MAX, Ref, from_text, to_text
from fluxmpi.client.channel import Channel
from fluxmpi.client.future import Future
from fluxmpi.client.protocol import bare, decoder, encode
from fluxmpi.content.wire import Dropped, LoadRequest, Stored
from fluxmpi.errors import DigestMismatch, FluxmpiError, TooLarge, indefinite
from fluxmpi.message import ANY

WINDOW_BLOBS = 8
"""Pending blobs of one loader or writer, in either direction: 8 MiB at most."""

_decode_stored = decoder(Stored)


def request_blob(channel: Channel, ref: Ref) -> Future[bytes]:
    """Ask for a blob, without waiting; pass the result to ``verified``."""
    return channel.send("content.load", encode("content.load", LoadRequest(ref)), ANY, bare)


def verified(channel: Channel, ref: Ref, blob: bytes) -> bytes:
    """Return ``blob`` if its digest is ``ref``. Raises DigestMismatch."""
    if channel.digest(blob) != ref:
        raise indefinite(DigestMismatch(f"blob {to_text(ref)} is damaged: its bytes do not have this digest"))
    return blob


def load_blobs(channel: Channel, refs: Sequence[Ref]) -> Iterator[bytes]:
    """Load blobs in order, WINDOW_BLOBS at a time. Raises NoSuchBlob, DigestMismatch."""
    pending: deque[tuple[Ref, Future[bytes]]] = deque()
    position = 0
    while position < len(refs) or pending:
        while position < len(refs) and len(pending) < WINDOW_BLOBS:
            ref = refs[position]
            pending.append((ref, request_blob(channel, ref)))
            position += 1
        ref, future = pending.popleft()
        yield verified(channel, ref, future.get())


class BlobWriter:
    """Stores blobs, WINDOW_BLOBS at a time; call ``wait`` before a commit refers to them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pending: deque[tuple[Ref, Future[Stored]]] = deque()

    def store(self, blob: bytes) -> Ref:
        """Send a blob to rank 0 and return its ref. Raises TooLarge."""
        if len(blob) > BLOB_BYTES_MAX:
            raise TooLarge(f"a blob has at most {BLOB_BYTES_MAX:,} bytes, and this one has {len(blob):,}: cut it")
        if len(self._pending) >= WINDOW_BLOBS:
            self._settle()
        ref = self._channel.digest(blob)
        self._pending.append((ref, self._channel.send("content.store", blob, ANY, _decode_stored)))
        return ref

    def wait(self) -> None:
        """Return when rank 0 has every blob."""
        while self._pending:
            self._settle()

    def _settle(self) -> None:
        ref, future = self._pending.popleft()
        stored = future.get().ref
        if stored != ref:
            text = f"blob {to_text(ref)} was stored as {to_text(stored)}: it was damaged on the way"
            raise indefinite(DigestMismatch(text))


class Content:
    """The blobs of the instance, ``h.content``: immutable bytes, named by their digest."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def store(self, blob: bytes) -> str:
        """Store a blob; return when rank 0 has it.

        A blob that no kept version of the key-value store refers to is garbage, and is collected.

        Args:
            blob: at most 1 MiB.

        Returns:
            Its blobref: the algorithm and the digest in hexadecimal.

        Raises:
            TooLarge: the blob is longer than 1 MiB.

        Example:
            >>> ref = h.content.store(b"some bytes")
            >>> ref.startswith("sha256-"), h.content.load(ref)
            (True, b'some bytes')
        """
        (ref,) = self.store_all([blob])
        return to_text(ref)

    def load(self, ref: str) -> bytes:
        """Return the blob of a blobref.

        Raises:
            NoSuchBlob: the instance has no such blob.
            InvalidRequest: ``ref`` is not a blobref.
        """
        return next(self.load_all([from_text(ref)]))

    def store_all(self, blobs: Iterable[bytes]) -> list[Ref]:
        """Store many blobs, several at a time; return when rank 0 has all.

        Returns:
            Their digests as bytes, in order.

        Raises:
            TooLarge: a blob is longer than 1 MiB.
        """
        writer = BlobWriter(self._channel)
        refs: list[Ref] = []
        alone = False
        with self._channel.use:
            try:
                for blob in blobs:
                    refs.append(writer.store(blob))
                alone = len(refs) == 1
                writer.wait()
            except FluxmpiError as error:
                if alone or not refs:
                    raise
                raise indefinite(error) from None  # others may be stored
        return refs

    def load_all(self, refs: Sequence[Ref]) -> Iterator[bytes]:
        """Load many blobs, in order, several at a time.

        Args:
            refs: digests as bytes, as ``store_all`` returns them.

        Raises:
            NoSuchBlob: the instance has no such blob.
            DigestMismatch: a blob was damaged on the way.
        """
        return load_blobs(self._channel, refs)

    def dropcache(self, rank: int = ANY) -> tuple[int, int]:
        """Make a broker drop its cache. Nothing is lost: rank 0 keeps the store.

        Args:
            rank: the broker; by default that of this handle.

        Returns:
            How many blobs and bytes it dropped.
        """
        dropped = self._channel.rpc("content.dropcache", target=rank, reply=Dropped)
        return dropped.blobs, dropped.bytes
