"""Failure detection: heartbeats between neighbours in the tree.

Every broker sends a heartbeat to its parent and its children each ``heartbeat_s``, and marks a neighbour as lost from
which it received none for LOST_AFTER_BEATS periods. MPI does not report a dead peer (a receive just hangs), so this is
the only detector, except for a driver with better information (a doorbell without a reader on the same host), which
sends ``overlay.lost``.

    silent neighbour --> mark_lost, notify this broker's lifecycle --overlay.lost--> parent ... rank 0

``overlay.status`` is a request down the tree: each broker merges the responses of its children, so nothing is sent
without a request. A child that is lost meanwhile counts as answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.machine import Machine, Sender, Topic
from fluxmpi.message import CONTROL, OK, REQUEST, Body, Message, control, reply
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import Heartbeat, Info, LostRank, Peer, Ping, Pong

HEARTBEAT_S = 2.0
LOST_AFTER_BEATS = 5

_decode_heartbeat = Body(Heartbeat)
_decode_lost = Body(LostRank)
_decode_ping = Body(Ping)
_decode_peers = Body(list[Peer])


@dataclass(slots=True)
class _Gather:
    """A pending ``overlay.status``: ``waiting`` maps the tag of each request to its child."""

    asked: Message
    waiting: dict[int, int]
    peers: list[Peer] = field(default_factory=list)


class Health(Machine):
    """The ``overlay`` and ``ping`` services of one broker."""

    name = "overlay"

    def __init__(self, router: Router, hosts: list[str], heartbeat_s: float, now: float) -> None:
        super().__init__()
        self.router = router
        self._hosts = hosts
        self._heartbeat_s = heartbeat_s
        self._lost_after_s = heartbeat_s * LOST_AFTER_BEATS
        self._heard = dict.fromkeys(router.neighbours(), now)
        self._ticked = now
        self._gathers: list[_Gather] = []
        client, child, parent = Sender.CLIENT, Sender.CHILD, Sender.PARENT
        self.topics = {
            "ping.ping": Topic(REQUEST, client, self._ping, Ping, isolated=True),
            "overlay.info": Topic(REQUEST, client, self._info, isolated=True),
            "overlay.status": Topic(REQUEST, client | parent, self._status, isolated=True),
            "overlay.heartbeat": Topic(CONTROL, child | parent, self._heartbeat, Heartbeat),
            "overlay.lost": Topic(CONTROL, child | Sender.LOOP, self._lost, LostRank),
        }
        if self._heard:
            self.deadline = now

    # ------------------------------------------------------------------------------------------------ heartbeats

    def tick(self, now: float) -> list[Message]:
        """Send heartbeats, and mark silent neighbours as lost."""
        if now - self._ticked > self._lost_after_s / 2:
            # This process itself was stopped (a suspended node, a debugger). Heartbeats that arrived meanwhile have not
            # been read yet, so the neighbours are not necessarily lost.
            self._heard = dict.fromkeys(self._heard, now)
        self._ticked = now
        self.deadline = now + self._heartbeat_s
        out = []
        if self.router.parent_ended:
            self._heard.pop(self.router.parent, None)
        for rank, heard in self._heard.items():
            if rank not in self.router.lost and now - heard > self._lost_after_s:
                out += self._lose(rank, f"no heartbeat for {now - heard:.1f} s")
        beat = Heartbeat(self.router.rank, list(self.router.lost))
        return out + [control("overlay.heartbeat", beat, rank) for rank in self.router.neighbours()]

    def _heartbeat(self, msg: Message, now: float) -> list[Message]:
        self._heard[msg.hop] = now
        beat = _decode_heartbeat(msg)
        out = []
        for rank in beat.lost:
            out += self._lose(rank, f"reported by rank {beat.rank}")
        return out

    def _lost(self, msg: Message, now: float) -> list[Message]:
        lost = _decode_lost(msg)
        return self._lose(lost.rank, lost.reason)

    def _lose(self, rank: int, reason: str) -> list[Message]:
        """Mark a rank as lost, notify the lifecycle and the parent, and complete the requests that waited for it."""
        if not self.router.mark_lost(rank, reason):
            return []
        lost = LostRank(rank, reason)
        out = [control("lifecycle.lost", lost)]
        parent = self.router.parent
        if parent >= 0 and parent not in self.router.lost:
            out.append(control("overlay.lost", lost, parent))
        for gather in self._gathers[:]:
            for tag in [tag for tag, child in gather.waiting.items() if child == rank]:
                out += self._merge(gather, tag, [])
        return out

    # ---------------------------------------------------------------------------------------------------- status

    def _ping(self, msg: Message, now: float) -> list[Message]:
        ping = _decode_ping(msg)
        return [reply(msg, Pong(ping.seq, ping.payload, self.router.rank, msg.route))]

    def _info(self, msg: Message, now: float) -> list[Message]:
        router = self.router
        host = self._hosts[router.rank]
        return [reply(msg, Info(router.rank, router.size, host, router.topology, router.parent, router.children))]

    def _peer(self, rank: int, now: float) -> Peer:
        state = "lost" if rank in self.router.lost else "up"
        idle_s = max(0.0, now - self._heard.get(rank, now))
        return Peer(rank, self._hosts[rank], self.router.parents[rank], state, idle_s)

    def _status(self, msg: Message, now: float) -> list[Message]:
        router = self.router
        peers = [self._peer(child, now) for child in router.children]
        if router.rank == 0:
            peers.insert(0, self._peer(0, now))
        asked = [self.ask("overlay.status", None, child) for child in router.live_children()]
        gather = _Gather(msg, {request.tag: request.target for request in asked}, peers)
        if not asked:
            return [reply(msg, peers)]
        self._gathers.append(gather)
        return asked

    def answered(self, msg: Message, now: float) -> list[Message]:
        for gather in self._gathers:
            if msg.tag in gather.waiting:
                return self._merge(gather, msg.tag, _decode_peers(msg) if msg.status == OK else [])
        return []

    def _merge(self, gather: _Gather, tag: int, peers: list[Peer]) -> list[Message]:
        del gather.waiting[tag]
        gather.peers += peers
        if gather.waiting:
            return []
        self._gathers.remove(gather)
        return [reply(gather.asked, sorted(gather.peers, key=lambda peer: peer.rank))]

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._gathers = [gather for gather in self._gathers if gather.asked.route != [hop]]
        return []

    def statistics(self) -> dict[str, float]:
        return {**self.router.statistics(), "heartbeat_s": self._heartbeat_s, "gathers": len(self._gathers)}

    def check(self) -> None:
        self.router.check()
        assert all(gather.waiting for gather in self._gathers)
