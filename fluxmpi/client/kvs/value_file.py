"""Long values as files: read and stored piece by piece, never as a whole in memory.

ValueFile     content.load, WINDOW_BLOBS ahead, each blob verified here
store_file    content.store, WINDOW_BLOBS at a time; the commit follows
"""

from __future__ import annotations

import io
import os
import stat
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from fluxmpi.blobref import BLOB_BYTES_MAX, Ref
from fluxmpi.client.channel import Channel
from fluxmpi.client.content import WINDOW_BLOBS, BlobWriter, request_blob, verified
from fluxmpi.client.future import Future
from fluxmpi.client.kvs.stored_value import NOT_MAPPABLE, check_size, descriptor, of_a_version
from fluxmpi.client.values import RAW
from fluxmpi.errors import InvalidRequest, TooLarge
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Object, Val, ValRef

TransferProgress = Callable[[int], None]
File = str | os.PathLike[str] | BinaryIO

OF_PROCESS = ("/dev/fd/", "/dev/std", "/proc/")
"""Prefixes of the names of files that a process has open already."""

REFS_MAX = 1 << 14
"""Blobs of one value that is put from a file, 16 GiB: the key's directory node holds the ref of each."""


class ValueFile(io.RawIOBase):
    """A value as a binary file: read-only, seekable, a few blobs of it in memory; made by ``h.kvs.open``.

    Loading starts with the first read, and runs 8 MiB ahead. Appends make blobs of any size, so the start of a blob is
    known only after the blobs before it were read. A read after a jump ahead therefore uses the broker's segment from
    then on; of a value that is too long for a segment, it loads the blobs in between and drops them.

    Attributes:
        size: the number of bytes of the value.
    """

    def __init__(self, channel: Channel, found: Val | ValRef, *, mappable: bool = True) -> None:
        """``mappable`` False: load blobs, as for a value that is too long for a segment."""
        super().__init__()
        self._channel = channel
        self._found = found
        self._refs: tuple[Ref, ...] = found.refs if isinstance(found, ValRef) else ()
        self.size = found.size if isinstance(found, ValRef) else len(found.data)
        self._position = 0
        self._starts = [0]
        """Where the blobs start that were loaded, and where the next one does."""
        self._blob: bytes = b""
        self._at = -1
        """The index of the blob in ``_blob``."""
        if isinstance(found, Val):
            self._blob, self._at = found.data, 0
            self._starts.append(self.size)
        self._pending: deque[tuple[int, Future[bytes]]] = deque()
        self._fd = -1
        self._mappable = mappable and self.size > BLOB_BYTES_MAX

    @property
    def is_mapped(self) -> bool:
        """True while reads use the broker's segment."""
        return self._fd >= 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position of the next read, and return it. Raises ValueError for one before the start."""
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}: it is before the start of the file")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read into a buffer, and return the number of bytes; 0 at the end. It may be less than the buffer holds."""
        self._check_open()
        if self._position >= self.size:
            return 0
        with memoryview(buffer).cast("B") as target:
            if self._jumped():
                done = os.preadv(self._fd, [target], self._position)
            else:
                piece = self._here()[: len(target)]
                done = len(piece)
                target[:done] = piece
        self._position += done
        return done

    def pieces(self) -> Iterator[memoryview]:
        """Iterate over the rest of the value, blob by blob, without copying."""
        while self._position < self.size:
            self._check_open()
            piece = memoryview(os.pread(self._fd, BLOB_BYTES_MAX, self._position)) if self._jumped() else self._here()
            self._position += len(piece)
            yield piece

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file was closed: open the key again")

    def _jumped(self) -> bool:
        """Whether to read from the segment: from the first time on that blobs would be loaded only to be dropped."""
        if self._fd < 0 and self._mappable and self._position >= self._starts[-1] + BLOB_BYTES_MAX:
            self._mappable = False
            assert isinstance(self._found, ValRef)
            with suppress(*NOT_MAPPABLE), of_a_version():
                self._fd = descriptor(self._channel, self._found)
                self._give_up()
        return self._fd >= 0

    def _here(self) -> memoryview:
        """Return the bytes from the position to the end of its blob."""
        index = max(bisect_right(self._starts, self._position) - 1, 0)
        while True:
            if self._at != index:
                self._fetch(index)
            begin = self._position - self._starts[index]
            if begin < len(self._blob):
                return memoryview(self._blob)[begin:]
            index += 1

    def _fetch(self, index: int) -> None:
        """Load the blob of that index, whose start is known, and request those after it."""
        if self._pending and self._pending[0][0] != index:
            self._give_up()
        ahead = self._pending[-1][0] + 1 if self._pending else index
        while len(self._pending) < WINDOW_BLOBS and ahead < len(self._refs):
            self._pending.append((ahead, request_blob(self._channel, self._refs[ahead])))
            ahead += 1
        _, future = self._pending.popleft()
        with of_a_version():
            self._blob = verified(self._channel, self._refs[index], future.get())
        self._at = index
        if index + 1 == len(self._starts):
            end = self._starts[index] + len(self._blob)
            self._starts.append(end)
            assert isinstance(self._found, ValRef)
            if end > self.size or index + 1 == len(self._refs):
                check_size(self._found, end)

    def _give_up(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._give_up()
            self._blob, self._at = b"", -1
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            super().close()


def store_file(channel: Channel, file: File, progress: TransferProgress | None = None) -> tuple[int, Object]:
    """Store a file's bytes as blobs, several at a time; return their number, and the object to put. Rank 0 has them then."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb", buffering=0) as opened:
            return store_file(channel, opened, progress)
    writer = BlobWriter(channel)
    refs: list[Ref] = []
    size = 0
    while blob := _piece(file):
        size += len(blob)
        if len(blob) == size <= VAL_BYTES_MAX:
            return size, Val(RAW, blob)
        if len(refs) >= REFS_MAX:
            raise TooLarge(
                f"a value from a file has at most {REFS_MAX * BLOB_BYTES_MAX:,} bytes: cut it into several keys"
            )
        refs.append(writer.store(blob))
        if progress is not None:
            progress(size)
    writer.wait()
    return size, ValRef(RAW, size, tuple(refs)) if refs else Val(RAW, b"")


def _piece(file: BinaryIO) -> bytes:
    """Return the next BLOB_BYTES_MAX bytes, or the rest: one read of a pipe may return less. Raises InvalidRequest."""
    read = file.read(BLOB_BYTES_MAX)
    if isinstance(read, str):
        raise InvalidRequest("a file must be open for bytes: open(…, 'rb')")
    if not read or len(read) == BLOB_BYTES_MAX:
        return read or b""
    piece = bytearray(read)
    while len(piece) < BLOB_BYTES_MAX and (read := file.read(BLOB_BYTES_MAX - len(piece))):
        piece += read
    return bytes(piece)


def copy_to(source: ValueFile, file: File, progress: TransferProgress | None = None) -> int:
    """Write the rest of a value to a file, by name or open for writing; return the number of bytes."""
    if isinstance(file, str | os.PathLike):
        return _copy_to_named(source, os.fspath(file), progress)
    done = 0
    for piece in source.pieces():
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]
        done += len(piece)
        if progress is not None:
            progress(done)
    return done


def _copy_to_named(source: ValueFile, name: str, progress: TransferProgress | None) -> int:
    """Replace a file as a whole or not at all, keeping its mode. Links are followed; pipes and devices are written in place."""
    path = os.path.realpath(name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        mode = None
    if name.startswith(OF_PROCESS) or (mode is not None and not stat.S_ISREG(mode)):
        with open(name, "wb", buffering=0) as opened:
            return copy_to(source, opened, progress)
    part = f"{path}.{os.urandom(4).hex()}.part"
    with open(part, "xb", buffering=0) as opened:
        try:
            if mode is not None:
                os.fchmod(opened.fileno(), stat.S_IMODE(mode))
            written = copy_to(source, opened, progress)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    return written
