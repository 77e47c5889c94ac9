"""Long values as streams: read and put piece by piece, never the whole in memory. The part of ``h.kvs`` for that.

open, get_file   content.load, WINDOW_BLOBS ahead, each blob verified here
put_file         content.store, WINDOW_BLOBS on the way, then the commit
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

Progress = Callable[[int], None]
File = str | os.PathLike[str] | BinaryIO

OF_PROCESS = ("/dev/fd/", "/dev/std", "/proc/")
"""Begins the names of what is open in a process already."""

REFS_MAX = 1 << 14
"""Blobs of one value that is put from a file, 16 GiB: its key's directory node holds a ref of each."""


class ValueFile(io.RawIOBase):
    """A value as a file to read from: seekable, a few blobs of it in memory at a time. ``size`` is its bytes.

    Loading begins with the first read, and runs WINDOW_BLOBS ahead. Nobody knows where in a value a blob begins before those
    ahead of it were read (one that was appended to has blobs of any size): so who jumps ahead reads from the broker's segment
    from then on, or, of a value that is too long for one, loads what is between and drops it.
    """

    def __init__(self, channel: Channel, found: Val | ValRef) -> None:
        super().__init__()
        self._channel = channel
        self._found = found
        self._refs: tuple[Ref, ...] = found.refs if isinstance(found, ValRef) else ()
        self.size = found.size if isinstance(found, ValRef) else len(found.data)
        self._position = 0
        self._starts = [0]
        """Where the blobs begin, as far as they were loaded, and where the next one does."""
        self._blob: bytes = b""
        self._at = -1
        """Which of them is in ``_blob``."""
        if isinstance(found, Val):
            self._blob, self._at = found.data, 0
            self._starts.append(self.size)
        self._pending: deque[tuple[int, Future[bytes]]] = deque()
        self._fd = -1
        self._mappable = self.size > BLOB_BYTES_MAX

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence] + offset
        if position < 0:
            raise ValueError(f"a file has nothing before its begin, and {position} is there")
        self._position = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
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
        """The rest of the value, blob by blob, uncopied."""
        while self._position < self.size:
            self._check_open()
            piece = memoryview(os.pread(self._fd, BLOB_BYTES_MAX, self._position)) if self._jumped() else self._here()
            self._position += len(piece)
            yield piece

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("this reader was closed: open the key again")

    def _jumped(self) -> bool:
        """The segment is what is read from: from the first time on that blobs would be loaded only to be dropped."""
        if self._fd < 0 and self._mappable and self._position >= self._starts[-1] + BLOB_BYTES_MAX:
            self._mappable = False
            assert isinstance(self._found, ValRef)
            with suppress(*NOT_MAPPABLE), of_a_version():
                self._fd = descriptor(self._channel, self._found)
                self._give_up()
        return self._fd >= 0

    def _here(self) -> memoryview:
        """From the position to the end of its blob."""
        index = max(bisect_right(self._starts, self._position) - 1, 0)
        while True:
            if self._at != index:
                self._fetch(index)
            begin = self._position - self._starts[index]
            if begin < len(self._blob):
                return memoryview(self._blob)[begin:]
            index += 1

    def _fetch(self, index: int) -> None:
        """Load the blob of that index, which begins at a place that is known; ask for those after it."""
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
        if not self.closed:
            self._give_up()
            self._blob, self._at = b"", -1
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            super().close()


def store_file(channel: Channel, file: File, progress: Progress | None = None) -> tuple[int, Object]:
    """Store a file's bytes as blobs, a few on the way at a time; (bytes, the object for a key). Rank 0 has them then."""
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
    """The next BLOB_BYTES_MAX bytes, or what is left: one read of a pipe gives less. Raises InvalidRequest for a text file."""
    read = file.read(BLOB_BYTES_MAX)
    if isinstance(read, str):
        raise InvalidRequest("a file must be open for bytes: open(…, 'rb')")
    if not read or len(read) == BLOB_BYTES_MAX:
        return read or b""
    piece = bytearray(read)
    while len(piece) < BLOB_BYTES_MAX and (read := file.read(BLOB_BYTES_MAX - len(piece))):
        piece += read
    return bytes(piece)


def copy_to(reader: ValueFile, file: File, progress: Progress | None = None) -> int:
    """Write all that is left of a reader to a file, by name or open for writing; returns the bytes."""
    if isinstance(file, str | os.PathLike):
        return _copy_to_named(reader, os.fspath(file), progress)
    done = 0
    for piece in reader.pieces():
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]
        done += len(piece)
        if progress is not None:
            progress(done)
    return done


def _copy_to_named(reader: ValueFile, name: str, progress: Progress | None) -> int:
    """A file is there as a whole or not at all, and keeps its mode. A link stays one: what it leads to is written. What is no
    file, a pipe or a device, is written as it stands.
    """
    path = os.path.realpath(name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        mode = None
    if name.startswith(OF_PROCESS) or (mode is not None and not stat.S_ISREG(mode)):
        with open(name, "wb", buffering=0) as opened:
            return copy_to(reader, opened, progress)
    part = f"{path}.{os.urandom(4).hex()}.part"
    with open(part, "xb", buffering=0) as opened:
        try:
            if mode is not None:
                os.fchmod(opened.fileno(), stat.S_IMODE(mode))
            written = copy_to(reader, opened, progress)
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise
    return written
