"""The fences at one broker: contributions of clients and children go up together, outcomes come down.

    client ─ kvs.fence ──┐
    child ── kvs.gather ─┴▶ Gathering ── end of the turn, or hold_s ──▶ kvs.gather to the parent (rank 0: leader.fence)
    FenceDone (in a setroot, or as kvs.fence-done) ──▶ responses to the clients that wait here
    a client that waits here disconnects or gives up ──▶ kvs.fence-left (see ``membership``)

Programs that fence again and again do it from the same brokers. So a broker holds contributions, up to ``hold_s``,
until as many are here as passed by in the last fence of that size: then each link carries one message per fence.

Invariants: a client's request is answered once; a gathering without contributions is dropped; ``_members`` has exactly
the contributions of ``_waiters``, by client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from fluxmpi.errors import FluxmpiError, InvalidRequest, Overloaded, encode_error
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.fence.limits import FENCE_LIMITS, FenceLimits
from fluxmpi.kvs.fence.membership import MemberSearches
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.wire import CommitId, Fence, FenceDone, FenceMember, RootInfo
from fluxmpi.machine import NEVER
from fluxmpi.message import RESPONSE, Body, Message, control, encode_body
from fluxmpi.shares import Pool, take_both

MEMBER_TOPICS = "kvs.fence-"
"""Prefix of the topics about members: left, missing, here, absent."""

_decode_fence = Body(Fence)
_decode_member = Body(FenceMember)


class Overlay(Protocol):
    """The part of the overlay's router that fences use."""

    rank: int
    parent: int
    lost: dict[int, str]

    def live_children(self) -> list[int]: ...


class FenceService:
    """``broadcast`` returns the same control message for every child."""

    def __init__(
        self,
        tree: Overlay,
        replicas: Mapping[str, Replica],
        broadcast: Callable[[Message], list[Message]],
        limits: FenceLimits = FENCE_LIMITS,
    ) -> None:
        self._tree = tree
        self._replicas = replicas
        self._broadcast = broadcast
        self._limits = limits
        self._gatherings: dict[tuple[str, str], Gathering] = {}
        self._due: dict[tuple[str, str], float] = {}
        """Gatherings with something to send up, and when to send it."""
        self._usual: dict[int, int] = {}
        """Size of a fence to the contributions that passed by in the last fence of that size."""
        self._waiters: dict[CommitId, list[Message]] = {}
        """Contribution to the requests of the clients that wait here for its outcome."""
        self._members: dict[int, dict[CommitId, FenceMember]] = {}
        """Client hop to its contributions that have no outcome yet."""
        self._sizes: dict[tuple[int, CommitId], int] = {}
        """Client hop and contribution → bytes of its request."""
        self._waiting = Pool("contributions to fences", limits.waiting_max, limits.waiting_client_max)
        self._client_bytes = Pool("bytes of contributions", limits.bytes_max, limits.bytes_client_max)
        self._bytes = 0
        """Of all gatherings."""
        self._searches = MemberSearches()

    @property
    def deadline(self) -> float:
        """When ``turn`` has something to send."""
        return min(self._due.values()) if self._due else NEVER

    # -------------------------------------------------------------------------------------------------- contributions

    def from_client(self, msg: Message, now: float) -> list[Message]:
        """Take a client's contribution, and keep its request for the outcome."""
        fence = _decode_fence(msg)
        if len(fence.parts) != 1 or fence.objects:
            raise InvalidRequest("a client's kvs.fence has one contribution, with its own operations")
        hop = msg.route[-1]
        id_ = fence.parts[0].id
        size = 0 if id_ in self._members.get(hop, {}) else len(msg.body)
        if size:
            take_both(hop, self._waiting, self._client_bytes, size)
        try:
            self._add(fence, hop, len(msg.body), now)
        except FluxmpiError:
            if size:
                self._give(hop, size)
            raise
        if size:
            self._sizes[hop, id_] = size
        msg.body = b""  # the outcome needs the route and the tag only
        self._waiters.setdefault(id_, []).append(msg)
        self._members.setdefault(hop, {})[id_] = FenceMember(fence.namespace, fence.name, id_)
        return []

    def from_child(self, msg: Message, now: float) -> list[Message]:
        """Take a child's contributions; an error is returned to it as a FenceDone for them."""
        fence = _decode_fence(msg)
        try:
            self._add(fence, msg.hop, len(msg.body), now)
        except FluxmpiError as error:
            ids = [part.id for part in fence.parts]
            failed = FenceDone.failed(fence.namespace, fence.name, ids, error)
            return [control("kvs.fence-done", failed, msg.hop)]
        return []

    def _give(self, hop: int, size: int) -> None:
        self._waiting.give(hop)
        self._client_bytes.give(hop, size)

    def _add(self, fence: Fence, hop: int, size: int, now: float) -> None:
        key = fence.namespace, fence.name
        gathering = self._gatherings.get(key)
        if gathering is None:
            if len(self._gatherings) >= self._limits.fences_max:
                raise Overloaded(f"this broker has {self._limits.fences_max:,} incomplete fences already; try again")
            gathering = Gathering(fence, self._limits)
        if self._bytes + size > self._limits.bytes_max:
            raise Overloaded(
                f"incomplete fences hold {self._bytes:,} bytes at broker {self._tree.rank} already: store long values before"
                " the fence, or try again later"
            )
        fresh = gathering.add(fence, hop)
        if gathering.parts:
            self._gatherings[key] = gathering
            if fresh:
                gathering.bytes += size
                self._bytes += size
        if not fresh:
            return  # nothing to send: an empty message that arrives after the fence is done would create it anew above
        if len(gathering.parts) >= self._usual.get(fence.size, 0):
            self._due[key] = now
        else:
            self._due.setdefault(key, now + self._limits.hold_s)

    def turn(self, now: float) -> list[Message]:
        """Send up what is due, one message per fence."""
        out = []
        for key in [key for key, at in self._due.items() if at <= now]:
            gathering = self._gatherings[key]
            out.append(gathering.take_unsent())
            if not gathering.has_unsent:
                del self._due[key]
        return self._to_parent("kvs.gather", "leader.fence", out)

    def _to_parent(self, topic: str, at_rank_0: str, bodies: Iterable[object]) -> list[Message]:
        """Return messages to the parent; at rank 0, to the machine that handles them there."""
        if self._tree.rank == 0:
            return [control(at_rank_0, body) for body in bodies]
        if self._tree.parent in self._tree.lost:
            return []
        return [control(topic, body, self._tree.parent) for body in bodies]

    # ------------------------------------------------------------------------------------------------------- outcomes

    def done(self, done: FenceDone, now: float) -> list[Message]:
        """Answer the clients that wait here for the outcome of these contributions."""
        key = done.namespace, done.name
        gathering = self._gatherings.get(key)
        if gathering is not None:
            count = len(gathering.parts)
            if gathering.remove(done.ids):
                self._remember(gathering.size, count)
                if gathering.parts:
                    self._due[key] = now
                else:
                    del self._gatherings[key]
                    self._bytes -= gathering.bytes
                    self._due.pop(key, None)
        waiters, out = self._waiters, []
        body = b""
        for id_ in done.ids:
            if not waiters:
                break
            for msg in waiters.pop(id_, ()):
                self._forget(msg.route[-1], id_)
                body = body or self._outcome(done)
                out.append(Message(RESPONSE, msg.topic, tag=msg.tag, status=done.status, route=msg.route, body=body))
        return out

    def _outcome(self, done: FenceDone) -> bytes:
        """Encode the response: the version's root, or the text of the error."""
        if done.status:
            return encode_error(done.error)[1]
        replica = self._replicas.get(done.namespace)
        root = replica.at(done.version) if replica is not None else None
        return encode_body(root or RootInfo(done.namespace, done.version, done.ref, done.time))

    def _remember(self, size: int, count: int) -> None:
        self._usual.pop(size, None)
        self._usual[size] = count
        if len(self._usual) > self._limits.sizes_max:
            del self._usual[next(iter(self._usual))]

    def _forget(self, hop: int, id_: CommitId) -> None:
        self._give_back(hop, id_)
        members = self._members.get(hop)
        if members is not None and members.pop(id_, None) is not None and not members:
            del self._members[hop]

    def _give_back(self, hop: int, id_: CommitId) -> None:
        size = self._sizes.pop((hop, id_), 0)
        if size:
            self._give(hop, size)

    # -------------------------------------------------------------------------------------------- members that leave

    def cancel(self, msg: Message, tag: int) -> list[Message] | None:
        """Let the client that sent ``msg`` leave the fence of its request ``tag``; it still gets the outcome.

        Return None if that request is no fence.
        """
        hop = msg.route[-1]
        for id_, member in self._members.get(hop, {}).items():
            if any(waiter.tag == tag and waiter.route[-1] == hop for waiter in self._waiters[id_]):
                return self._report("left", FenceMember(member.namespace, member.name, id_, gone=True))
        return None

    def disconnect(self, hop: int) -> list[Message]:
        """Report the contributions of a disconnected client for which no other connection waits here."""
        out: list[Message] = []
        for id_, member in self._members.pop(hop, {}).items():
            self._give_back(hop, id_)
            others = [msg for msg in self._waiters[id_] if msg.route[-1] != hop]
            if others:
                self._waiters[id_] = others
            else:
                del self._waiters[id_]
                out += self._report("left", member)
        return out

    def _report(self, what: str, member: FenceMember) -> list[Message]:
        """Report to rank 0 about a member, after all contributions to its fence that are here."""
        key = member.namespace, member.name
        unsent = []
        if self._due.pop(key, None) is not None:
            gathering = self._gatherings[key]
            unsent.append(gathering.take_unsent())
            while gathering.has_unsent:
                unsent.append(gathering.take_unsent())
        out = self._to_parent("kvs.gather", "leader.fence", unsent)
        return out + self._to_parent(f"{MEMBER_TOPICS}{what}", f"departures.{what}", [member])

    def about_member(self, msg: Message) -> list[Message]:
        """Handle a message about a member of a fence.

        The member left a broker (left), rank 0 searches it (missing), or a broker replies to that (here, absent).
        """
        what, member = msg.topic.removeprefix(MEMBER_TOPICS), _decode_member(msg)
        if what in ("left", "here"):
            self._searches.found(member)
            return self._report(what, member)
        here = member.id in self._waiters
        if what == "missing" and not here:
            children = self._tree.live_children()
            if children:
                self._searches.begin(member, children)
                return self._broadcast(msg)
        elif what == "absent" and not self._searches.absent(member, msg.hop):
            return []
        return self._report("here" if here else "absent", member)

    # --------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, float]:
        return {"fences": len(self._gatherings), "fence_bytes": self._bytes, "searches": len(self._searches)}

    def check(self) -> None:
        assert all(key in self._gatherings for key in self._due)
        assert all(gathering.parts for gathering in self._gatherings.values())
        waiting = {(msg.route[-1], id_) for id_, messages in self._waiters.items() for msg in messages}
        assert waiting == {(hop, id_) for hop, members in self._members.items() for id_ in members}
        assert all(self._members.values())
        assert self._sizes.keys() == waiting
        assert self._waiting.taken == len(self._sizes)
        assert self._client_bytes.taken == sum(self._sizes.values())
        self._waiting.check()
        self._client_bytes.check()
        assert self._bytes == sum(gathering.bytes for gathering in self._gatherings.values()) <= self._limits.bytes_max
