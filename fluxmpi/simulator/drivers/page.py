"""PAGE: a broker's root page in plain memory. Clients sometimes read it in the middle of a write."""

from __future__ import annotations

from random import Random

from fluxmpi.kvs.replica.root_page import PAGE_BYTES, SLOT_BYTES, Writer
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import Body, Message

TORN = 0.05
"""Share of reads that see a part of a slot as it was before the last turn."""

_decode_root = Body(RootInfo)
_decode_name = Body(str)


class SimulatedPage:
    """The broker's side, as ``drivers/page``."""

    def __init__(self, instance: str, rank: int) -> None:
        self.memory = bytearray(PAGE_BYTES)
        self.before = bytes(PAGE_BYTES)
        """The memory before the newest flush that wrote something."""
        self._writer = Writer(self.memory, instance, rank, 0)
        self._changed = False

    def step(self, msg: Message) -> None:
        self._changed = True
        if msg.topic == "page.root":
            self._writer.put(_decode_root(msg))
        elif msg.topic == "page.removed":
            self._writer.remove(_decode_name(msg))

    def flush(self) -> None:
        if self._changed:
            self._changed = False
            self.before = bytes(self.memory)
            self._writer.flush()
            self._writer.check()


class PageView:
    """A client's mapping of the page."""

    def __init__(self, page: SimulatedPage, rng: Random) -> None:
        self._page = page
        self._rng = rng

    def __getitem__(self, part: slice) -> bytes:
        now = bytes(self._page.memory[part])
        if len(now) == SLOT_BYTES and self._rng.random() < TORN:
            before, cut = self._page.before[part], self._rng.randrange(SLOT_BYTES)
            return now[:cut] + before[cut:] if self._rng.random() < 0.5 else before[:cut] + now[cut:]
        return now
