"""Checkpoints: every blob and root of an instance in one HDF5 file, with older generations beside it.

Rank 0 calls this from a worker thread, ``fluxmpi checkpoint list`` without an instance. `write` saves, `read` (or
`reading`, in batches) restores, `list_generations` lists. checkpoint_format.py has the layout of the file, and the
reason why HDF5 does not write it; generations.py replaces one file by the next. h5py and numpy are imported at first
use.

Invariants: whatever fails, the files that were on the disk before are still there; no blob is returned that differs
from its digest; an older generation is never used without the user's request. Other threads run meanwhile: no step
holds the interpreter for more than a few ms (STRIDE, SLICE_BYTES_MAX).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate, islice
from typing import Any

import msgspec

from fluxmpi.blobref import DIGESTS, SIZES, Ref, to_text
from fluxmpi.drivers import generations
from fluxmpi.drivers.checkpoint_format import (
    FORMAT,
    MAGIC,
    SLICE_BYTES_MAX,
    Absent,
    Damaged,
    FileProgress,
    Foreign,
    SavedRoot,
    Seal,
    lay_out,
    pour,
)
from fluxmpi.drivers.generations import KEEP, KEEP_MAX
from fluxmpi.errors import CheckpointError, InvalidRequest, StorageError, indefinite
from fluxmpi.kvs.wire import RootInfo, SavedNamespace, decode_settings

STRIDE = 1 << 16
"""Items that one C-level loop handles before other threads get a turn."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One file of `list_generations`.

    ``damage`` is None if it is good, else what is wrong with it; then the fields that could not be read are zero or
    empty.
    """

    path: str
    file_bytes: int
    damage: str | None = None
    created: float = 0.0
    instance: str = ""
    algorithm: str = ""
    blob_count: int = 0
    byte_count: int = 0
    roots: tuple[SavedRoot, ...] = ()

    @property
    def state(self) -> str:
        return "damaged" if self.damage else "ok"


@dataclass(frozen=True, slots=True)
class CheckpointContents:
    """A whole checkpoint in memory."""

    path: str
    algorithm: str
    instance: str
    created: float
    roots: tuple[SavedRoot, ...]
    blobs: dict[Ref, bytes]


def write(
    path: str | os.PathLike[str],
    refs: Sequence[Ref],
    blobs: Iterable[bytes],
    roots: Sequence[SavedRoot],
    *,
    algorithm: str,
    instance: str,
    sizes: Iterable[int] | None = None,
    keep: int = KEEP,
    progress: FileProgress | None = None,
) -> Generation:
    """Save ``blobs`` (named by ``refs``, in the same order) and ``roots`` as the newest generation of ``path``.

    ``blobs`` is a sequence; or, when ``sizes`` gives the length of each, any iterable, for example one that reads them
    from disk one by one. Returns when the file is on stable storage. Raises StorageError when the disk refuses, and
    CheckpointError when ``path`` holds something that is not a checkpoint; in both cases what was there is still there.
    A StorageError after the first generation was renamed is indefinite: the new file may be the newest one.
    """
    if not 1 <= keep <= KEEP_MAX:
        raise InvalidRequest(f"keep={keep} is out of range: keep 1 to {KEEP_MAX} generations")
    if algorithm not in SIZES:
        raise InvalidRequest(f"hash '{algorithm}' is not known: use one of {', '.join(SIZES)}")
    path = _resolve(path)
    offsets = array("Q", [0])
    running = accumulate(map(len, blobs) if sizes is None else sizes)
    while part := array("Q", islice(running, STRIDE)):
        offsets.extend(part)
    assert len(offsets) == len(refs) + 1, "as many refs as blobs"
    assert all(len(ref) == SIZES[algorithm] for ref in refs), "refs of one algorithm"
    created = time.time()
    total = offsets[-1]
    renaming = False
    try:
        _refuse_foreign(path)
        with generations.temporary(path) as fd:
            places, pages = lay_out(roots, len(refs), total, algorithm, instance, created)
            pour(fd, places, pages, refs, offsets, blobs, progress)
            Seal.of(fd, algorithm, places["bytes"], total).put(fd)
            os.fsync(fd)
            file_bytes = os.fstat(fd).st_size
            renaming = True
            if keep > 1:
                generations.rotate(path)
            os.replace(path + generations.TEMPORARY, path)
            generations.sync_folder(path)
            generations.prune(path, keep)
    except OSError as error:
        refused = _refused(path, error, total)
        raise (indefinite(refused) if renaming else refused) from error
    return Generation(path, file_bytes, None, created, instance, algorithm, len(refs), total, tuple(roots))


def _resolve(path: str | os.PathLike[str]) -> str:
    """Return the absolute path, with a symbolic link resolved: the generations lie beside the file, not the link."""
    name = os.fspath(path)
    return os.path.realpath(name) if os.path.islink(name) else os.path.abspath(name)


_ADVICE = {
    errno.ENOSPC: "free some space there or save to another file system",
    errno.EDQUOT: "free some of your quota there or save to another file system",
    errno.EFBIG: "the limit on file sizes is too low: raise it with `ulimit -f unlimited`, or ask for fewer blobs",
    errno.EROFS: "the file system is read-only: save to another one",
    errno.EACCES: "you may not write there: choose a folder of your own",
    errno.EPERM: "you may not write there: choose a folder of your own",
    errno.ENOENT: "the folder does not exist: make it first",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "that is a folder: name a file in it",
    errno.EIO: "the disk failed: save to another file system",
}


def _refused(path: str, error: OSError, total: int) -> StorageError:
    advice = _ADVICE.get(error.errno or 0, "save to another file system")
    return StorageError(
        f"cannot save the checkpoint '{path}' ({total:,} bytes of blobs): {error.strerror or error}; {advice}. "
        f"Older checkpoints there are as they were."
    )


def _refuse_foreign(path: str) -> None:
    """Raise CheckpointError if ``path`` is not a checkpoint: rotation would rename and later delete it.

    A damaged checkpoint may be replaced.
    """
    if _is_special(path):
        raise CheckpointError(f"'{path}' is a device, a pipe or a socket, and saving would replace it: save to a file")
    with suppress(FileNotFoundError), open(path, "rb") as file:
        head = file.read(len(MAGIC))
        if head and head != MAGIC:
            raise CheckpointError(
                f"'{path}' is not a checkpoint, and saving would replace it: move it away or save to another file"
            )


def _is_special(path: str) -> bool:
    """Return True for a device, a pipe or a socket: opening it may block, and root would replace /dev/null."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@dataclass(frozen=True, slots=True)
class CheckpointReader:
    """An open checkpoint whose structure has been checked; its blobs have not been read. Made by `reading`."""

    path: str
    algorithm: str
    instance: str
    created: float
    roots: tuple[SavedRoot, ...]
    blob_count: int
    byte_count: int
    _file: Any
    _offsets: Any
    _digests: Any

    def batches(self, *, verify: bool = True) -> Iterator[tuple[list[Ref], list[bytes]]]:
        """Yield all blobs, in the order of the file, about SLICE_BYTES_MAX at a time, each compared with its digest.

        A batch is two lists, refs and blobs: a million pairs would start the garbage collector, which stops all
        threads. Raises CheckpointError at the first blob that differs: those before it are good, the checkpoint as a
        whole is not.
        """
        import numpy

        digest = DIGESTS[self.algorithm]
        width = SIZES[self.algorithm]
        data = self._file["bytes"]
        first = 0
        while first < self.blob_count:
            reach = self._offsets[first] + numpy.uint64(SLICE_BYTES_MAX)
            last = int(numpy.searchsorted(self._offsets, reach, "right")) - 1
            last = min(max(last, first + 1), first + STRIDE, self.blob_count)
            bounds = self._offsets[first : last + 1].tolist()
            start = bounds[0]
            with _raising_damaged(self.path):
                joined = data[start : bounds[-1]].tobytes()
            names = self._digests[first:last].tobytes()
            refs, blobs = [], []
            for index in range(last - first):
                ref = names[index * width : index * width + width]
                blob = joined[bounds[index] - start : bounds[index + 1] - start]
                if verify and digest(blob) != ref:
                    raise Damaged(self.path, f"blob {first + index} does not match its digest {to_text(ref)}")
                refs.append(ref)
                blobs.append(blob)
            yield refs, blobs
            first = last


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[CheckpointReader]:
    """Open a checkpoint and check all but its blobs.

    Use it as ``with reading(path) as reader: … reader.batches()``.

    Raises CheckpointError for a file that is missing, foreign, too new or damaged, StorageError when the disk refuses.
    """
    path = _resolve(path)
    with _opened(path) as raw:
        Seal.check(path, raw.fileno())
        import h5py

        with _raising_damaged(path):
            # HDF5 reads through our descriptor: the file we checked whatever is renamed meanwhile, without its flock,
            # which parallel file systems refuse, and with other threads running.
            file = h5py.File(raw, "r")
        with file:
            with _raising_damaged(path):
                reader = _inspect(path, file)
            yield reader


@contextmanager
def _opened(path: str) -> Iterator[FileIO]:
    if _is_special(path):
        raise Foreign(path, "it is a device, a pipe or a socket")
    try:
        raw = FileIO(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Absent(path, "there is no such file") from None
    except IsADirectoryError:
        raise Foreign(path, "it is a folder") from None
    except OSError as error:
        raise StorageError(f"cannot read the checkpoint '{path}': {error.strerror}") from error
    with raw:
        yield raw


@contextmanager
def _raising_damaged(path: str) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # what h5py raises on a damaged file is any of a dozen classes
        raise Damaged(path, f"HDF5 says: {error}") from error


def _inspect(path: str, file: Any) -> CheckpointReader:
    attributes = file.attrs
    if attributes.get("format") != FORMAT:
        raise Foreign(path, f"it is an HDF5 file without the attribute format={FORMAT}")
    algorithm = str(attributes["hash_algorithm"])
    if algorithm not in SIZES:
        raise Damaged(path, f"its hash algorithm '{algorithm}' is not one of {', '.join(SIZES)}")
    count, total = int(attributes["blob_count"]), int(attributes["byte_count"])
    number = int(attributes["format_version"])
    _check_arrays(path, file, algorithm, count, total, int(attributes["root_count"]), number)
    offsets = file["offsets"][:]
    if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise Damaged(path, f"its offsets do not rise from 0 to {total}")
    digests = file["digests"][:]
    roots = _inspect_roots(file["roots"])
    wanted = {root.ref: root for root in roots}
    names, width = digests.tobytes(), SIZES[algorithm]
    for start in range(0, len(names) if wanted else 0, width):
        wanted.pop(names[start : start + width], None)
    for root in wanted.values():
        raise Damaged(path, f"the root of {root.namespace} version {root.version}, {to_text(root.ref)}, is not in it")
    instance, created = str(attributes["instance"]), float(attributes["created"])
    return CheckpointReader(path, algorithm, instance, created, roots, count, total, file, offsets, digests)


def _check_arrays(
    path: str, file: Any, algorithm: str, count: int, total: int, root_count: int, format_version: int
) -> None:
    width = SIZES[algorithm]
    expected = {
        "bytes": ((total,), "u1"),
        "offsets": ((count + 1,), "u8"),
        "digests": ((count, width), "u1"),
        "roots/namespace": ((root_count,), "O"),
        "roots/version": ((root_count,), "u8"),
        "roots/ref": ((root_count, width), "u1"),
        "roots/time": ((root_count,), "f8"),
    }
    if format_version > 1:
        expected["roots/settings"] = ((root_count,), "O")
    for name, (shape, kind) in expected.items():
        if name not in file:
            raise Damaged(path, f"the dataset '{name}' is missing")
        dataset = file[name]
        if dataset.shape != shape or dataset.dtype.str[1:] != kind:
            raise Damaged(path, f"the dataset '{name}' is {dataset.shape} of {dataset.dtype}, not {shape} of {kind}")


def _inspect_roots(group: Any) -> tuple[SavedRoot, ...]:
    names = group["namespace"].asstr()[:].tolist()
    settings = group["settings"].asstr()[:].tolist() if "settings" in group else [""] * len(names)
    times = group["time"][:].tolist()
    rows = zip(names, group["version"][:].tolist(), group["ref"][:], times, settings, strict=True)
    return tuple(SavedRoot(name, version, ref.tobytes(), moment, text) for name, version, ref, moment, text in rows)


def saved_namespaces(path: str, roots: Sequence[SavedRoot]) -> list[SavedNamespace]:
    """Return the records of a file's roots. Raises CheckpointError for settings that do not decode."""
    try:
        return [
            decode_settings(RootInfo(root.namespace, root.version, root.ref, root.time), root.settings)
            for root in roots
        ]
    except msgspec.DecodeError as error:
        raise Damaged(path, f"the settings of a namespace do not decode: {error}") from error


def read(
    path: str | os.PathLike[str], *, verify: bool = True, progress: FileProgress | None = None
) -> CheckpointContents:
    """Read a whole checkpoint into memory, with every digest compared unless ``verify`` is False.

    `reading` returns the same in batches, in bounded memory. Use it for more than half a million blobs: the growth of
    this function's dict stops other threads for 0.1 s then.

    Raises what `reading` raises. The text then also names the newest other generation that is good, and the command
    that resumes from it: only the user decides to resume from an older state than the last save.
    """
    blobs: dict[Ref, bytes] = {}
    done = 0
    try:
        with reading(path) as reader:
            for refs, batch in reader.batches(verify=verify):
                blobs.update(zip(refs, batch, strict=True))
                if progress:
                    done += sum(map(len, batch))
                    progress(done, reader.byte_count)
            return CheckpointContents(
                reader.path, reader.algorithm, reader.instance, reader.created, reader.roots, blobs
            )
    except Damaged as error:
        raise CheckpointError(f"{error.text}.{_way_out(error)}") from error


def _way_out(error: Damaged) -> str:
    """Return advice for a damaged file: the newest good generation, its age, and the command that resumes from it."""
    path = error.path
    if type(error) not in (Damaged, Absent):
        return ""
    try:
        good = next(item for item in _generations(path, verify=True) if not item.damage and item.path != path)
    except (StopIteration, OSError):
        return ""
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(good.created))
    aside = "" if isinstance(error, Absent) else f"mv '{path}' '{path}.damaged' && "
    return (
        f" The generation before, '{good.path}', saved {saved}, is good: to resume from it, "
        f"`{aside}mv '{good.path}' '{path}'`. `fluxmpi checkpoint list '{path}'` lists all."
    )


def list_generations(path: str | os.PathLike[str], *, verify: bool = False) -> list[Generation]:
    """Return FILE and its older generations, newest first, each good or damaged. Reads the blobs only with ``verify``.

    Raises CheckpointError if there is none.
    """
    path = _resolve(path)
    try:
        found = list(_generations(path, verify))
    except (FileNotFoundError, NotADirectoryError):
        found = []
    except OSError as error:
        raise StorageError(f"cannot list the checkpoints of '{path}': {error.strerror}") from error
    if not found:
        raise Absent(path, "there is no such file")
    return found


def newest_good(path: str | os.PathLike[str]) -> Generation:
    """Return the newest generation whose blobs are all good, for a resume that may fall back to an older one.

    The caller must report which one it uses, and why not FILE. Raises CheckpointError, with the damage of each, if
    there is none.
    """
    found = list_generations(path, verify=True)
    for item in found:
        if not item.damage:
            return item
    damage = "; ".join(f"'{item.path}': {item.damage}" for item in found)
    raise CheckpointError(f"no generation of the checkpoint '{os.fspath(path)}' is good: {damage}")


def _generations(path: str, verify: bool) -> Iterator[Generation]:
    names = [name for name in (path, *(name for _, name in generations.numbered(path))) if os.path.lexists(name)]
    seen: set[tuple[int, int]] = set()
    for name in names:
        with suppress(FileNotFoundError):  # rotated away while we look
            status = os.stat(name)
            if (status.st_dev, status.st_ino) in seen:
                continue  # a save in progress, or killed, has given FILE its second name
            seen.add((status.st_dev, status.st_ino))
            yield _inspect_generation(name, status.st_size, verify)


def _inspect_generation(path: str, file_bytes: int, verify: bool) -> Generation:
    try:
        with reading(path) as reader:
            if verify:
                for _ in reader.batches():
                    pass
            return Generation(
                path,
                file_bytes,
                None,
                reader.created,
                reader.instance,
                reader.algorithm,
                reader.blob_count,
                reader.byte_count,
                reader.roots,
            )
    except Damaged as error:
        return Generation(path, file_bytes, error.reason)
    except StorageError as error:
        return Generation(path, file_bytes, error.text)
