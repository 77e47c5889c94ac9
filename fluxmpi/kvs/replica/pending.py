"""Requests that wait at one broker: for a version that is not here yet, or for what rank 0 answers.

    park ──the version is here──▶ released ──resumed_per_turn──▶ stepped again
    ask  ──rank 0 has answered──▶ what ``OnAnswer`` says

What rank 0 is asked is limited by what waits to be sent: past BACKLOG_HIGH (``drivers/loop``) clients are not read from.

Invariant: nothing waits here for a client that is gone.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator, Mapping

from fluxmpi.errors import Overloaded
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.message import RESPONSE, Message, reply_error


class OnAnswer(enum.Enum):
    """What to do with what rank 0 answers."""

    ANSWER = enum.auto()
    """The request is answered with it, when its version is here."""
    AGAIN = enum.auto()
    """The namespace is known now: step the request again."""
    READ_AT = enum.auto()
    """It is the root to read at."""
    DIFF_AT = enum.auto()
    """It is the root of one of the two."""
    READ_THERE = enum.auto()
    """Rank 0 has read: as ANSWER."""


class PendingRequests:
    def __init__(self, replicas: Mapping[str, Replica], limits: ReplicaLimits) -> None:
        self._replicas = replicas
        self._limits = limits
        self.asked: dict[int, tuple[Message, OnAnswer]] = {}
        """Tag to the request that rank 0 was asked for: commits, and roots that we do not have."""
        self._released: deque[Message] = deque()
        """Requests that waited for a version which is here; ``_stepped`` of them were, in this turn."""
        self._stepped = 0

    def park(self, replica: Replica, version: int, msg: Message) -> list[Message]:
        """Keep a request until that version is here; what to send if it cannot be kept."""
        parked_max = self._limits.parked_max
        if replica.parked >= parked_max:
            text = (
                f"{parked_max:,} requests wait for versions of '{replica.namespace}' at this broker already; try again"
            )
            return [reply_error(msg, Overloaded(text))]
        replica.park(version, msg)
        return []

    def release(self, messages: list[Message]) -> list[Message]:
        """Of what was parked, the answers, which go at once; the requests go on in their turn."""
        self._released += (msg for msg in messages if msg.kind != RESPONSE)
        return [msg for msg in messages if msg.kind == RESPONSE]

    def turn(self) -> None:
        """Another turn begins."""
        self._stepped = 0

    def ready(self) -> Iterator[Message]:
        """The requests to step now, as many as the turn has room for."""
        while self._released and self._stepped < self._limits.resumed_per_turn:
            self._stepped += 1
            yield self._released.popleft()

    @property
    def behind(self) -> bool:
        return bool(self._released)

    def cancel(self, route: list[int], tag: int) -> Message | None:
        """Take out the request that came this way with this tag, if it waits, and can be taken back."""
        for replica in self._replicas.values():
            parked = replica.unpark(route, tag)
            if parked is not None:
                return parked
        for released in self._released:
            if released.tag == tag and released.route == route:
                self._released.remove(released)
                return released
        for asked, (request, then) in self.asked.items():
            if then is not OnAnswer.ANSWER and request.tag == tag and request.route == route:
                del self.asked[asked]
                return request
        return None

    def forget(self, route: list[int]) -> None:
        """The client that asks by this way is gone: nothing waits for it any more, and nothing begins for it."""
        for replica in self._replicas.values():
            replica.forget(route)
        if self._released:
            self._released = deque(msg for msg in self._released if msg.route != route)
        waits = (OnAnswer.AGAIN, OnAnswer.READ_AT, OnAnswer.DIFF_AT)
        for tag in [tag for tag, (request, then) in self.asked.items() if then in waits and request.route == route]:
            del self.asked[tag]

    def statistics(self) -> dict[str, float]:
        return {
            "parked": sum(replica.parked for replica in self._replicas.values()) + len(self._released),
            "asked": len(self.asked),
        }
