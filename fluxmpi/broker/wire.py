"""Bodies of the messages about the broker and the instance themselves."""

from __future__ import annotations

from fluxmpi.message import Record


class Hello(Record):
    """CONTROL ``hello``: the first message that a broker sends to a client."""

    protocol: int
    instance: str
    rank: int
    size: int
    algorithm: str
    pid: int


class Shutdown(Record):
    """``lifecycle.shutdown`` to rank 0 → null: the instance ends with ``status``. Also CONTROL, down the tree."""

    status: int = 0
    reason: str = ""


class GetAttr(Record):
    """``lifecycle.getattr`` → str; ``lifecycle.lsattr`` (null) → dict of all."""

    name: str
