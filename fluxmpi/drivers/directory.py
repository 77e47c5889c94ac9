"""The instance's directory on one host: ``$TMPDIR/fluxmpi-<uid>-<instance>``, mode 0700, with one socket per broker.

Each broker holds a lock on a file there while it runs. The kernel releases the lock however the broker ends, so a
directory without a held lock is left over from a crash, and the next instance of the same user on the host removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile

from fluxmpi.errors import LaunchError, PermissionDenied

SOCKET_PATH_MAX = 100
"""Longest path of a socket, with a reserve: the kernel allows 107 bytes."""

_NAME = "fluxmpi-{uid}-{instance}"


def parent_directory() -> str:
    """Return the directory in which instances create theirs."""
    return os.environ.get("FLUXMPI_RUNDIR") or tempfile.gettempdir()


def path_of(instance: str) -> str:
    """Return the path of an instance's directory on this host."""
    return os.path.join(parent_directory(), _NAME.format(uid=os.getuid(), instance=instance))


class InstanceDirectory:
    """The directory of one broker: created by the first broker of the host, used by all of them, removed by the last."""

    def __init__(self, instance: str, rank: int) -> None:
        self.path = path_of(instance)
        self.rank = rank
        self.socket = os.path.join(self.path, f"broker.{rank}.sock")
        if len(self.socket.encode()) > SOCKET_PATH_MAX:
            raise LaunchError(f"{self.socket} is too long for a socket: set TMPDIR or FLUXMPI_RUNDIR to a shorter path")
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        check_private(self.path)
        self._lock = self._take_lock()

    def _take_lock(self) -> int:
        """Create the lock under another name, take it, and rename it.

        Otherwise another broker that starts now could find it free.
        """
        path = os.path.join(self.path, f"lock.{self.rank}")
        unnamed = path if os.path.exists(path) else os.path.join(self.path, f"new.{self.rank}")
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
            os.rename(unnamed, path)
        except OSError:
            os.close(lock)
            raise
        return lock

    def close(self) -> None:
        """Remove this broker's files, and the directory if it is empty then."""
        for name in (f"broker.{self.rank}.sock", f"bell.{self.rank}", f"roots.{self.rank}", f"lock.{self.rank}"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.path, name))
        os.close(self._lock)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def check_private(path: str) -> None:
    """Raise PermissionDenied unless ``path`` is a directory of this user, closed to others."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionDenied(f"{path} is not a directory of yours with mode 0700: remove it, or set TMPDIR elsewhere")


def remove_leftovers() -> list[str]:
    """Remove this user's directories whose brokers are all dead; returns their paths."""
    removed = []
    parent = parent_directory()
    pattern = re.compile(re.escape(_NAME.format(uid=os.getuid(), instance="")) + r"[0-9a-z]+\Z")
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(parent)):
            path = os.path.join(parent, name)
            if pattern.match(name) and _is_dead(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
    return removed


def _is_dead(path: str) -> bool:
    """Return True if no lock in it is held. A directory without any lock may be in creation, and is not dead."""
    locks = 0
    try:
        check_private(path)
        for name in os.listdir(path):
            if not name.startswith("lock."):
                continue
            locks += 1
            fd = os.open(os.path.join(path, name), os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(fd)
    except (OSError, PermissionDenied):
        return False
    return locks > 0
