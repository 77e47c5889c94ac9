"""Requests that wait at one broker: for a version that it does not have yet, or for an answer of rank 0.

    park ──the version arrives──▶ ready ──resumed_per_turn in a turn──▶ stepped again
    ask  ──rank 0 answers───────▶ what ``OnAnswer`` says

A request that waits keeps its body, and takes it from two pools of which each client has a share: ``waiting_max``
requests, ``waiting_bytes_max`` bytes. A commit that was forwarded keeps no body; past ``asked_high`` such requests, and
past BACKLOG_HIGH in the send queues (``drivers/loop``), the broker stops reading from clients.

Invariants: no request of a disconnected client waits here; the pools have exactly the requests that wait.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from fluxmpi.errors import FluxmpiError, Overloaded
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.wire import GetRoot
from fluxmpi.message import ANY, RESPONSE, Message, reply_error
from fluxmpi.shares import Pool, take_both


class OnAnswer(enum.Enum):
    """What to do with rank 0's answer to a pending request."""

    REPLY = enum.auto()
    """Reply with it, once this broker has its version."""
    RETRY = enum.auto()
    """The namespace is known now: step the request again."""
    READ_AT = enum.auto()
    """It is the root to read at."""
    DIFF_AT = enum.auto()
    """It is the root of one of the two versions to compare."""
    FORWARDED = enum.auto()
    """Rank 0 executed the read: as REPLY."""


class PendingRequests:
    def __init__(
        self,
        replicas: Mapping[str, Replica],
        limits: ReplicaLimits,
        ask: Callable[[str, object, int], Message],
        forward: Callable[[str, bytes, int], Message],
    ) -> None:
        """``ask`` makes a request (topic, body, target); ``forward`` one whose body is encoded already."""
        self._replicas = replicas
        self._limits = limits
        self._ask = ask
        self._forward = forward
        self.asked: dict[int, tuple[Message, OnAnswer]] = {}
        """Tag of a request to rank 0 → the client's request that it was sent for."""
        self._ready: deque[Message] = deque()
        """Parked requests whose version has arrived."""
        self._resumed = 0
        """Requests resumed in this turn."""
        self._waiting = Pool("waiting requests", limits.waiting_max, limits.waiting_client_max)
        self._waiting_bytes = Pool(
            "bytes of waiting requests", limits.waiting_bytes_max, limits.waiting_bytes_client_max
        )

    # ------------------------------------------------------------------------------------------------- rank 0's answers

    def forward(self, msg: Message, topic: str, then: OnAnswer = OnAnswer.REPLY, target: int = ANY) -> list[Message]:
        """Forward a client's request to rank 0 under ``topic``, with its body as it is."""
        ask = self._forward(topic, msg.body, target)
        return self._keep(ask, msg, then)

    def ask_root(self, msg: Message, getroot: GetRoot, then: OnAnswer) -> list[Message]:
        """Ask rank 0 for a root that a request needs."""
        return self._keep(self._ask("roots.get", getroot, ANY), msg, then)

    def _keep(self, ask: Message, msg: Message, then: OnAnswer) -> list[Message]:
        """Keep a client's request until rank 0 answers ``ask``; return that, or the error if too many wait."""
        if then is OnAnswer.REPLY:
            msg.body = b""  # the answer needs the route and the tag only
        else:
            try:
                self._take(msg)
            except FluxmpiError as error:
                return [reply_error(msg, error)]
        self.asked[ask.tag] = msg, then
        return [ask]

    def answered(self, tag: int) -> tuple[Message, OnAnswer] | None:
        """Take out the request that rank 0 has answered under this tag; None if there is none."""
        asked = self.asked.pop(tag, None)
        if asked is not None and asked[1] is not OnAnswer.REPLY:
            self._give(asked[0])
        return asked

    @property
    def congested(self) -> bool:
        """So many requests are at rank 0 that clients are not read from."""
        return len(self.asked) > self._limits.asked_high

    # ------------------------------------------------------------------------------------------------------------ pools

    def _take(self, msg: Message) -> None:
        """Count a request that begins to wait. Raises Overloaded past its client's share, or the limit."""
        take_both(tuple(msg.route), self._waiting, self._waiting_bytes, len(msg.body))

    def _give(self, msg: Message) -> None:
        """Count a request that has ended its wait."""
        client = tuple(msg.route)
        self._waiting.give(client)
        self._waiting_bytes.give(client, len(msg.body))

    # -------------------------------------------------------------------------------------------- versions not here yet

    def wait_for_version(self, msg: Message, namespace: str, at_least: int) -> list[Message] | None:
        """Return None if the namespace has that version here. Otherwise keep ``msg``; return what to send for it."""
        replica = self._replicas.get(namespace)
        if replica is None:
            return self.ask_root(msg, GetRoot(namespace), OnAnswer.RETRY)
        if replica.version < at_least or replica.root is None:
            return self._park(replica, max(at_least, 0), msg)
        return None

    def _park(self, replica: Replica, version: int, msg: Message) -> list[Message]:
        parked_max = self._limits.parked_max
        if replica.parked >= parked_max:
            waiting = f"{parked_max:,} requests wait for versions of '{replica.namespace}' at this broker already"
            return [reply_error(msg, Overloaded(f"{waiting}; try again"))]
        try:
            self._take(msg)
        except FluxmpiError as error:
            return [reply_error(msg, error)]
        replica.park(version, msg)
        return []

    def answer_at(self, replica: Replica, version: int, answer: Message) -> list[Message]:
        """Return the answer, or hold it until that version is here: no client sees more than its broker."""
        if version <= replica.version:
            return [answer]
        replica.park(version, answer)
        return []

    def release(self, messages: list[Message]) -> list[Message]:
        """Return the answers among parked messages, to be sent now; queue the requests among them (see ``ready``)."""
        self._ready += (msg for msg in messages if msg.kind != RESPONSE)
        return [msg for msg in messages if msg.kind == RESPONSE]

    def begin_turn(self) -> None:
        self._resumed = 0

    def ready(self) -> Iterator[Message]:
        """Yield the requests to step again now, as many as the turn has room for."""
        while self._ready and self._resumed < self._limits.resumed_per_turn:
            self._resumed += 1
            msg = self._ready.popleft()
            self._give(msg)
            yield msg

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    # ----------------------------------------------------------------------------------------------- cancel, disconnect

    def cancel(self, route: list[int], tag: int) -> Message | None:
        """Take out the request with this route and tag, if it waits here and can still be cancelled."""
        for replica in self._replicas.values():
            parked = replica.unpark(route, tag)
            if parked is not None:
                self._give(parked)
                return parked
        for ready in self._ready:
            if ready.tag == tag and ready.route == route:
                self._ready.remove(ready)
                self._give(ready)
                return ready
        for asked, (request, then) in self.asked.items():
            if then is not OnAnswer.REPLY and request.tag == tag and request.route == route:
                del self.asked[asked]
                self._give(request)
                return request
        return None

    def drop(self, route: list[int]) -> None:
        """Drop all requests of a disconnected client."""
        for replica in self._replicas.values():
            replica.drop(route)
        if self._ready:
            self._ready = deque(msg for msg in self._ready if msg.route != route)
        asked = self.asked.items()
        for tag in [tag for tag, (request, then) in asked if then is not OnAnswer.REPLY and request.route == route]:
            del self.asked[tag]
        client = tuple(route)
        self._waiting.drop(client)
        self._waiting_bytes.drop(client)

    def statistics(self) -> dict[str, float]:
        return {
            "parked": sum(replica.parked for replica in self._replicas.values()) + len(self._ready),
            "asked": len(self.asked),
            "waiting_bytes": self._waiting_bytes.taken,
        }

    def check(self) -> None:
        waiting: dict[tuple[int, ...], list[int]] = {}
        parked = [msg for replica in self._replicas.values() for msg in replica.parked_requests()]
        asked = [msg for msg, then in self.asked.values() if then is not OnAnswer.REPLY]
        for msg in (*parked, *self._ready, *asked):
            waiting.setdefault(tuple(msg.route), []).append(len(msg.body))
        assert self._waiting.taken == sum(map(len, waiting.values())), "a request waits and is not counted, or is gone"
        for client, sizes in waiting.items():
            assert self._waiting.held(client) == len(sizes)
            assert self._waiting_bytes.held(client) == sum(sizes)
        self._waiting.check()
        self._waiting_bytes.check()
