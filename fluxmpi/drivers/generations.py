"""Generations of a checkpoint: replace the newest file so that a kill at any moment leaves a complete one.

Generations are plain files: FILE is the newest, FILE.1 the one before, FILE.2 older. A save::

    FILE.fluxmpi-tmp  written, fsynced              FILE, FILE.1 … are not changed until this has succeeded
    FILE.1 → FILE.2   oldest first, into the first gap
    FILE ⇒ FILE.1     a second name (hard link), so that FILE never ceases to exist
    FILE.fluxmpi-tmp → FILE    os.replace: the commit point; then fsync of the folder
    FILE.keep …       removed

Invariants: FILE is complete at every moment after the first save; a kill between two steps leaves a gap in the numbers,
or two names of one file, and the next save repairs either; one process saves to FILE at a time (flock on the temporary
file, if the file system supports it); the next writer reuses a killed writer's temporary file, so there is at most one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fluxmpi.errors import StorageError

KEEP = 3
KEEP_MAX = 100
"""Upper bound of ``keep``: FILE and FILE.1 to FILE.99."""
TEMPORARY = ".fluxmpi-tmp"


@contextmanager
def temporary(path: str) -> Iterator[int]:
    """Open FILE's temporary file, empty and locked; it is removed unless it was renamed to FILE."""
    name = path + TEMPORARY
    while True:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StorageError(
                f"cannot save the checkpoint '{path}': another process is saving to it; "
                f"wait until it has finished, or give each instance its own file"
            ) from None
        except OSError:
            pass  # a parallel file system without flock: concurrent saves are not excluded
        # 1. A opens and locks the temporary file.  2. B opens it.  3. A renames it to FILE and closes it: B's lock
        # succeeds, on the file that is FILE now.  4. B must not truncate it: B compares the name with the open file.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(name)):
                break
        os.close(fd)
    try:
        os.ftruncate(fd, 0)
        yield fd
    except BaseException:
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(name)):
                os.unlink(name)
        raise
    finally:
        os.close(fd)


def rotate(path: str) -> None:
    """Give the newest file the second name FILE.1, after renaming the older ones. FILE keeps its name."""
    first = f"{path}.1"
    if not os.path.exists(path) or (os.path.exists(first) and os.path.samefile(path, first)):
        return  # the first save, or a killed writer has rotated already
    gap = next((n for n in range(1, KEEP_MAX) if not os.path.lexists(f"{path}.{n}")), KEEP_MAX - 1)
    for number in range(gap, 1, -1):
        os.replace(f"{path}.{number - 1}", f"{path}.{number}")
    try:
        os.link(path, first)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copy2(path, first + TEMPORARY)  # the file system has no hard links
        os.replace(first + TEMPORARY, first)


def prune(path: str, keep: int) -> None:
    """Remove all but the newest ``keep`` generations.

    Errors are ignored: the new one is saved, and the next save retries.
    """
    with suppress(OSError):
        for number, name in numbered(path):
            if number >= keep:
                os.unlink(name)
        if os.path.exists(f"{path}.1{TEMPORARY}"):
            os.unlink(f"{path}.1{TEMPORARY}")


def numbered(path: str) -> list[tuple[int, str]]:
    """Return the numbers and names of the older generations that exist, newest first."""
    folder, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.([1-9][0-9]?)")
    matches = filter(None, map(pattern.fullmatch, os.listdir(folder)))
    return sorted((int(match[1]), os.path.join(folder, match[0])) for match in matches)


def sync_folder(path: str) -> None:
    """Write the folder's entries to stable storage."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(fd)
