"""The ``stats`` service: the numbers of every machine and driver of one broker."""

from __future__ import annotations

from typing import Protocol

from fluxmpi.machine import Machine, Sender, Topic
from fluxmpi.message import REQUEST, Message, reply


class HasStatistics(Protocol):
    def statistics(self) -> dict[str, dict[str, float]]: ...


class Statistics(Machine):
    """``stats.get`` (null) → dict of service to dict of name to number."""

    name = "stats"

    def __init__(self, broker: HasStatistics) -> None:
        super().__init__()
        self._broker = broker
        self.topics = {"stats.get": Topic(REQUEST, Sender.CLIENT, self._get, isolated=True)}

    def _get(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._broker.statistics())]
