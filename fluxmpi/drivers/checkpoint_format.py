"""The layout of a checkpoint file: an HDF5 file behind a seal. docs/checkpoint-format.md specifies it for readers.

::

    0     the seal: a line that identifies the file, and a digest of everything but the seal and the blobs
    512   HDF5's structures, attributes and roots
          digests, offsets       three contiguous arrays, in the order of the blobs
          bytes                  all blobs, one after the other

**Why HDF5 does not write the file.** A write that fails inside HDF5 2.0 (full disk, quota, ``ulimit -f``) ends the
process with SIGSEGV when the file is closed; a test reproduces it with h5py alone. So HDF5 lays out the file in memory
(`Sparse`, some KiB), with its large arrays reserved but not written, and plain ``pwritev`` calls write everything to
the disk: their errors are exceptions, they copy nothing, and they release the interpreter for other threads.

**Why the seal is checked before HDF5 reads.** Changed bits in HDF5's structures made it hang or crash in 1 of 100
trials.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import sub
from typing import Any, ClassVar

from fluxmpi.blobref import SIZES, Ref
from fluxmpi.errors import CheckpointError

FORMAT = "fluxmpi-checkpoint"
FORMAT_VERSION = 2
"""The one that is written. ``roots/settings`` is new in 2; every earlier format is read, too."""
MAGIC = FORMAT.encode() + b" "
SEAL_BYTES = 512
"""Size of HDF5's user block, the smallest possible: HDF5 ignores these bytes."""
SLICE_BYTES_MAX = 1 << 20
"""Bytes of one write or read, unless one blob is longer; also the memory that is used beside the blobs."""
SLICE_BUFFERS_MAX = 1024
"""IOV_MAX of Linux and macOS."""

FileProgress = Callable[[int, int], None]
"""``progress(bytes_done, bytes_total)``, called after each slice in the thread that saves or reads."""


@dataclass(frozen=True, slots=True)
class SavedRoot:
    """One version of one namespace: its root's ref, and when it was committed (seconds since the epoch).

    ``settings``: of the namespace, a JSON object; empty in files of format 1.
    """

    namespace: str
    version: int
    ref: Ref
    time: float
    settings: str = ""


class Damaged(CheckpointError):
    """A file cannot be read; ``reason`` is the cause, the text also says what to do."""

    advice = "the file is damaged and cannot be used"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"cannot read the checkpoint '{path}': {reason}; {self.advice}")
        self.path = path
        self.reason = reason


class Foreign(Damaged):
    """The file is no checkpoint."""

    advice = "give the path of a file that `fluxmpi checkpoint save` wrote"


class TooNew(Damaged):
    """The file has a later format."""

    advice = "use the fluxmpi that wrote it, or a later one"


class Absent(Damaged):
    """The file does not exist."""

    advice = "check the path"


class Sparse:
    """A file in memory that HDF5 writes to. Only pages that are written use memory."""

    PAGE = 4096

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def flush(self) -> None: ...

    def _spans(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the part of each page that ``length`` bytes reach, and advance the position.

        A part is (page number, first byte in the page, first byte of the caller's buffer, length).
        """
        done = 0
        while done < length:
            number, within = divmod(self._at, self.PAGE)
            step = min(self.PAGE - within, length - done)
            yield number, within, done, step
            self._at += step
            done += step

    def read(self, size: int = -1) -> bytes:
        """Exist, because h5py requires the method of a file object; it calls `readinto`."""
        raise NotImplementedError

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        for number, within, done, step in self._spans(len(out)):
            page = self.pages.get(number)
            out[done : done + step] = bytes(step) if page is None else page[within : within + step]
        return len(out)

    def write(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for number, within, done, step in self._spans(len(data)):
            page = self.pages.setdefault(number, bytearray(self.PAGE))
            page[within : within + step] = data[done : done + step]
        self.size = max(self.size, self._at)
        return len(data)


def lay_out(
    roots: Sequence[SavedRoot], count: int, total: int, algorithm: str, instance: str, created: float
) -> tuple[dict[str, int], Sparse]:
    """Have HDF5 lay out the file without its three large arrays.

    Returns the arrays' offsets in the file, and the rest.
    """
    import h5py
    import numpy

    sparse = Sparse()
    width = SIZES[algorithm]
    root_refs = numpy.frombuffer(b"".join(root.ref for root in roots), "u1").reshape(len(roots), width)
    names = [root.namespace for root in roots]
    # The default libver is the oldest that can represent the file, so that every HDF5 reads it.
    with h5py.File(sparse, "w", userblock_size=SEAL_BYTES) as file:
        file.attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            hash_algorithm=algorithm,
            fluxmpi_version=_own_version(),
            instance=instance,
            created=created,
            blob_count=count,
            byte_count=total,
            root_count=len(roots),
        )
        group = file.create_group("roots")
        group.create_dataset("namespace", data=names, shape=(len(names),), dtype=h5py.string_dtype())
        group.create_dataset("version", data=numpy.array([root.version for root in roots], "<u8"))
        group.create_dataset("ref", data=root_refs)
        settings = [root.settings for root in roots]
        group.create_dataset("settings", data=settings, shape=(len(names),), dtype=h5py.string_dtype())
        group.create_dataset("time", data=numpy.array([root.time for root in roots], "<f8"))
        reserved = {
            "digests": _reserve(file, "digests", (count, width), "u1"),
            "offsets": _reserve(file, "offsets", (count + 1,), "<u8"),
            "bytes": _reserve(file, "bytes", (total,), "u1"),
        }
        file.flush()
        # An empty dataset has no offset: HDF5 returns 511 or None.
        places = {name: array.get_offset() if all(array.shape) else SEAL_BYTES for name, array in reserved.items()}
    return places, sparse


def _reserve(file: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Create a contiguous dataset with an offset in the file and without content."""
    import h5py
    import numpy

    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    kind = h5py.h5t.py_create(numpy.dtype(dtype))
    return h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=plan)


@dataclass(frozen=True, slots=True)
class Seal:
    """The first SEAL_BYTES of the file: its identification, and a digest of everything but the seal and the blobs."""

    algorithm: str
    file_bytes: int
    blobs_at: int
    blobs_bytes: int
    digest: str

    TEXT: ClassVar[str] = (
        FORMAT + " {}\nan HDF5 file of {} bytes\nblobs at {} for {} bytes\n{} of the rest {}\n"
        "read it with any HDF5 software; docs/checkpoint-format.md of fluxmpi tells what is in it\n"
    )
    PATTERN: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"[^\n]*\nan HDF5 file of (\d+) bytes\nblobs at (\d+) for (\d+) bytes\n(\w+) of the rest ([0-9a-f]+)\n"
    )

    @classmethod
    def of(cls, fd: int, algorithm: str, blobs_at: int, blobs_bytes: int) -> Seal:
        """Compute the seal of the open file ``fd``."""
        hasher = hashlib.new(algorithm, usedforsecurity=False)
        file_bytes = os.fstat(fd).st_size
        for start, stop in ((SEAL_BYTES, blobs_at), (blobs_at + blobs_bytes, file_bytes)):
            while start < stop:
                part = os.pread(fd, min(SLICE_BYTES_MAX, stop - start), start)
                if not part:
                    break
                hasher.update(part)
                start += len(part)
        return cls(algorithm, file_bytes, blobs_at, blobs_bytes, hasher.hexdigest())

    def put(self, fd: int) -> None:
        text = self.TEXT.format(
            FORMAT_VERSION, self.file_bytes, self.blobs_at, self.blobs_bytes, self.algorithm, self.digest
        )
        _pwrite_all(fd, 0, memoryview(text.encode().ljust(SEAL_BYTES, b"\n")))

    @classmethod
    def check(cls, path: str, fd: int) -> None:
        """Raise CheckpointError unless the file is a complete, undamaged checkpoint of this format.

        The blobs are not checked.
        """
        head = os.pread(fd, SEAL_BYTES, 0)
        if not head:
            raise Damaged(path, "it is empty")
        if not head.startswith(MAGIC):
            raise Foreign(path, f"it does not begin with '{FORMAT}'")
        number = re.match(rb"\d+\n", head[len(MAGIC) :])
        if number and int(number[0]) > FORMAT_VERSION:
            raise TooNew(path, f"it has format {int(number[0])}, and this fluxmpi reads up to {FORMAT_VERSION}")
        match = cls.PATTERN.match(head)
        if not number or int(number[0]) < 1 or not match or match[4].decode() not in SIZES:
            raise Damaged(path, f"its first {SEAL_BYTES} bytes are garbled")
        told = cls(match[4].decode(), int(match[1]), int(match[2]), int(match[3]), match[5].decode())
        if (size := os.fstat(fd).st_size) != told.file_bytes:
            raise Damaged(path, f"it has {size:,} bytes and should have {told.file_bytes:,}")
        if cls.of(fd, told.algorithm, told.blobs_at, told.blobs_bytes) != told:
            raise Damaged(path, "its index does not match its digest")


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fluxmpi")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


def pour(
    fd: int,
    places: dict[str, int],
    sparse: Sparse,
    refs: Sequence[Ref],
    offsets: array[int],
    blobs: Iterable[bytes],
    progress: FileProgress | None,
) -> None:
    """Write everything to the disk: HDF5's pages first, because their edges overlap the arrays, then the arrays."""
    os.ftruncate(fd, sparse.size)
    for number, page in sparse.pages.items():
        start = number * sparse.PAGE
        _pwrite_all(fd, start, memoryview(page)[: max(0, sparse.size - start)])
    total = offsets[-1]
    sizes = map(sub, islice(offsets, 1, None), offsets)
    if sys.byteorder == "big":
        offsets = offsets[:]
        offsets.byteswap()
    view = memoryview(offsets).cast("B")
    slices = (view[start : start + SLICE_BYTES_MAX] for start in range(0, len(view), SLICE_BYTES_MAX))
    _pour_buffers(fd, places["digests"], refs, None, 0)
    _pour_buffers(fd, places["offsets"], slices, None, 0)
    poured = _pour_buffers(fd, places["bytes"], _measured(blobs, sizes), progress, total)
    assert poured == total, "as many blobs as refs"


def _measured(blobs: Iterable[bytes], sizes: Iterable[int]) -> Iterator[bytes]:
    for blob, size in zip(blobs, sizes, strict=True):
        assert len(blob) == size, "each blob has the size that was given"
        yield blob


def _pour_buffers(
    fd: int, offset: int, buffers: Iterable[bytes | memoryview], progress: FileProgress | None, total: int
) -> int:
    """Write ``buffers`` one after another from ``offset``, one slice per system call, without joining them."""
    start = offset
    batch: list[bytes | memoryview] = []
    size = 0
    for buffer in buffers:
        batch.append(buffer)
        size += len(buffer)
        if size < SLICE_BYTES_MAX and len(batch) < SLICE_BUFFERS_MAX:
            continue
        _pwritev_all(fd, offset, batch, size)
        offset += size
        if progress:
            progress(offset - start, total)
        batch, size = [], 0
    _pwritev_all(fd, offset, batch, size)
    if progress:
        progress(offset + size - start, total)
    return offset + size - start


def _pwritev_all(fd: int, offset: int, batch: list[bytes | memoryview], size: int) -> None:
    done = os.pwritev(fd, batch, offset) if size else 0
    if done < size:  # a nearly full disk takes a part; the next call raises the error
        _pwrite_all(fd, offset + done, memoryview(b"".join(batch))[done:])


def _pwrite_all(fd: int, offset: int, rest: memoryview) -> None:
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest = rest[done:]
        offset += done
