"""A file descriptor that is closed with its last reference: several queued responses may carry the same one."""

from __future__ import annotations

import contextlib
import os
import threading

SLOW_BYTES = 16 << 20
"""The last close of a file in memory frees its pages, 0.1 ms per MiB: a thread closes larger ones."""


class Descriptor:
    """An open descriptor ``fd`` of a file of ``size`` bytes."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int = 0) -> None:
        self.fd = fd
        self.size = size

    def __del__(self) -> None:
        if self.size >= SLOW_BYTES:
            with contextlib.suppress(RuntimeError):  # no thread can be started
                threading.Thread(target=os.close, args=(self.fd,), name="close").start()
                return
        os.close(self.fd)
