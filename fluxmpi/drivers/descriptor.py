"""A file descriptor that is open while somebody refers to it: several answers on their way may carry the same one."""

from __future__ import annotations

import contextlib
import os
import threading

SLOW_BYTES = 16 << 20
"""The last close of a file in memory gives its pages back, 0.1 ms per MiB: of a larger one, a thread does it."""


class Descriptor:
    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int = 0) -> None:
        self.fd = fd
        self.size = size

    def __del__(self) -> None:
        if self.size >= SLOW_BYTES:
            with contextlib.suppress(RuntimeError):  # no thread can be had
                threading.Thread(target=os.close, args=(self.fd,), name="close").start()
                return
        os.close(self.fd)
