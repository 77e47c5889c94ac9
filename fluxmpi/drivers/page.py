"""The PAGE driver: the root page as a file, ``roots.RANK`` beside the broker's socket, which clients map.

See ``kvs/replica/root_page``.

The loop flushes the page before it sends a turn's messages to clients: a client that has a response or a notification
of a version finds that version in the page.

If the file cannot be created (no space), the broker runs without it, and clients ask the broker.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from fluxmpi.kvs.replica.root_page import PAGE_BYTES, Writer
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import Body, Message

_decode_root = Body(RootInfo)
_decode_name = Body(str)


class RootPageWriter:
    """Writes one broker's root page."""

    def __init__(self, path: str, instance: str, rank: int) -> None:
        self.path = path
        self._map = _make(path)
        self._writer = None if self._map is None else Writer(self._map, instance, rank, os.getpid())
        if self._writer is not None:
            os.rename(f"{path}.new", path)

    def step(self, msg: Message) -> None:
        writer = self._writer
        if writer is None:
            return
        if msg.topic == "page.root":
            writer.put(_decode_root(msg))
        elif msg.topic == "page.removed":
            writer.remove(_decode_name(msg))

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Remove the file; clients that have mapped it keep its last state."""
        if self._map is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._map.close()
            self._map = self._writer = None

    def statistics(self) -> dict[str, float]:
        return {} if self._writer is None else self._writer.statistics()


def _make(path: str) -> mmap.mmap | None:
    """Create the file with all its blocks allocated: a write into a hole on a full disk would end the broker."""
    try:
        fd = os.open(f"{path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, PAGE_BYTES)
            return mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")
        return None
