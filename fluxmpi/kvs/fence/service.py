"""The fences at one broker: what clients and children contribute goes up, what comes down answers the clients that wait.

kvs.fence, kvs.gather ─▶ Gatherings ──end of the turn──▶ kvs.gather to the parent; at rank 0 leader.fence
FenceDone             ─▶ the clients that wait here
a client left         ─▶ kvs.fence-left up, and what ``departures`` tells
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fluxmpi.kvs.fence.aggregator import FenceAggregator
from fluxmpi.kvs.fence.membership import MemberSearches
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.wire import Fence, FenceDone, FenceMember, RootInfo
from fluxmpi.message import Body, Message, control, encode_body

DEPARTURE = "kvs.fence-"
"""Begins the topics of what brokers tell one another about members: left, missing, here, absent."""

_decode_fence = Body(Fence)
_decode_member = Body(FenceMember)


class Overlay(Protocol):
    """What this needs to know of the overlay."""

    rank: int
    parent: int
    lost: dict[int, str]

    def live_children(self) -> list[int]: ...


class FenceService:
    """``spread`` makes the same control message for every child."""

    def __init__(
        self, tree: Overlay, replicas: Mapping[str, Replica], spread: Callable[[Message], list[Message]]
    ) -> None:
        self._tree = tree
        self._replicas = replicas
        self._spread = spread
        self._gatherings = FenceAggregator()
        self._searches = MemberSearches()

    @property
    def deadline(self) -> float:
        return self._gatherings.deadline

    def from_client(self, msg: Message, now: float) -> list[Message]:
        self._gatherings.from_client(msg, _decode_fence(msg), now)
        return []

    def from_child(self, msg: Message, now: float) -> list[Message]:
        return self._gatherings.from_child(msg, _decode_fence(msg), now)

    def turn(self, now: float) -> list[Message]:
        """What has been gathered goes up."""
        return self._upward("kvs.gather", "leader.fence", self._gatherings.outlets(now))

    def _upward(self, topic: str, at_rank_0: str, bodies: Sequence[object]) -> list[Message]:
        """To the parent; at rank 0, to the machine that is for it there."""
        if self._tree.rank == 0:
            return [control(at_rank_0, body) for body in bodies]
        if self._tree.parent in self._tree.lost:
            return []
        return [control(topic, body, self._tree.parent) for body in bodies]

    def done(self, done: FenceDone, now: float) -> list[Message]:
        body = encode_body(done.text)
        if not done.status:
            replica = self._replicas.get(done.namespace)
            root = replica.at(done.version) if replica is not None else None
            body = encode_body(root or RootInfo(done.namespace, done.version, done.ref, done.time))
        return self._gatherings.done(done, body, now)

    # ------------------------------------------------------------------------------------------------- who goes away

    def gives_up(self, msg: Message, tag: int) -> list[Message] | None:
        """The client that sent ``msg`` takes its request ``tag`` back. None when that is no fence."""
        member = self._gatherings.gives_up(msg.route[-1], tag)
        return None if member is None else self._member("left", member)

    def disconnect(self, hop: int) -> list[Message]:
        return [msg for member in self._gatherings.disconnect(hop) for msg in self._member("left", member)]

    def _member(self, what: str, member: FenceMember) -> list[Message]:
        """Word of a member goes up to rank 0, behind the contributions to its fence that are here."""
        out = self._upward("kvs.gather", "leader.fence", self._gatherings.flush(member))
        return out + self._upward(f"{DEPARTURE}{what}", f"departures.{what}", [member])

    def departure(self, msg: Message) -> list[Message]:
        """A member has left a broker; or rank 0 searches all of them for it; or there is an answer to that."""
        what, member = msg.topic.removeprefix(DEPARTURE), _decode_member(msg)
        if what in ("left", "here"):
            self._searches.found(member)
            return self._member(what, member)
        here = self._gatherings.waits(member.id)
        if what == "missing" and not here:
            children = self._tree.live_children()
            if children:
                self._searches.begin(member, children)
                return self._spread(msg)
        elif what == "absent" and not self._searches.absent(member, msg.hop):
            return []
        return self._member("here" if here else "absent", member)

    # ------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, float]:
        return {"fences": len(self._gatherings), "searches": len(self._searches)}

    def check(self) -> None:
        self._gatherings.check()
