"""A loop for drivers under test: polls descriptors until a condition holds, with a time limit."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

from fluxmpi.message import Message

LIMIT_S = 10.0


class Turns:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}
        self.delivered: list[Message] = []

    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None:
        known = fd in self.readers or fd in self.writers
        (self.writers if write else self.readers)[fd] = callback
        mask = (select.EPOLLIN if fd in self.readers else 0) | (select.EPOLLOUT if fd in self.writers else 0)
        (self._epoll.modify if known else self._epoll.register)(fd, mask)

    def unwatch(self, fd: int) -> None:
        if self.readers.pop(fd, None) is not None or fd in self.writers:
            self.writers.pop(fd, None)
            self._epoll.unregister(fd)

    def deliver(self, msg: Message) -> None:
        self.delivered.append(msg)

    def turn(self, timeout: float = 0.0) -> bool:
        """Call back the descriptors that are ready. Return False if none is."""
        ready = self._epoll.poll(timeout)
        for fd, mask in ready:
            reader, writer = self.readers.get(fd), self.writers.get(fd)
            if mask & ~select.EPOLLOUT and reader is not None:
                reader()
            if mask & select.EPOLLOUT and writer is not None:
                writer()
        return bool(ready)

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < end, "the condition did not hold in time"
            self.turn(0.05)

    def quiet(self) -> None:
        """Run turns until no descriptor is ready."""
        turns = 0
        while self.turn():
            turns += 1
            assert turns < 10_000, "a descriptor is ready for ever: the loop would spin"

    def close(self) -> None:
        self._epoll.close()
