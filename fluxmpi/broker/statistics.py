"""The ``stats`` service: the numbers of every machine and driver of one broker."""

from __future__ import annotations

from typing import Protocol

from fluxmpi.errors import InvalidRequest
from fluxmpi.machine import Machine
from fluxmpi.message import REQUEST, Message, reply, reply_error


class HasStatistics(Protocol):
    def statistics(self) -> dict[str, dict[str, float]]: ...


class Statistics(Machine):
    """``stats.get`` (null) → dict of service to dict of name to number."""

    name = "stats"

    def __init__(self, broker: HasStatistics) -> None:
        super().__init__()
        self._broker = broker

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind != REQUEST:
            return []
        if msg.topic != "stats.get":
            return [reply_error(msg, InvalidRequest(f"service stats has no method {msg.topic!r}"))]
        return [reply(msg, self._broker.statistics())]
