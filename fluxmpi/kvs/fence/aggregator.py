"""Fences at one broker: contributions of its clients and children go up together, answers come from the setroot.

    client ─kvs.fence─┐
    child ─kvs.gather─┴▶ Gathering of this fence ──together──▶ kvs.gather to the parent (at rank 0: leader.fence)
    FenceDone (in a setroot, or alone when it failed) ─▶ the clients that wait here
    a client that waits here disconnects, or gives up ─▶ kvs.fence-left (see ``departures``)

Processes that fence again and again do it from the same places. So a broker holds what it has, up to HOLD_S, until as many
contributions are here as came by it in the last fence of that size: then each link carries one message.

Invariants: a client's request is answered once; a fence that is done is forgotten; ``_members`` names those that wait, by hop.
"""

from __future__ import annotations

from fluxmpi.errors import FluxmpiError, InvalidRequest
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.wire import CommitId, Fence, FenceDone, FenceMember
from fluxmpi.machine import NEVER
from fluxmpi.message import RESPONSE, Message, control

HOLD_S = 0.002
SIZES_MAX = 1024
"""Sizes of fences of which the usual count is remembered."""

FENCES_MAX = 100_000
"""Fences that gather at one broker at a time."""


class FenceAggregator:
    def __init__(self) -> None:
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._waiters: dict[CommitId, list[Message]] = {}
        self._members: dict[int, dict[CommitId, FenceMember]] = {}
        """Client hop to its contributions that have no outcome yet."""
        self._outlets: dict[tuple[str, str], float] = {}
        """Fences with something to send up, and when to do it."""
        self._usual: dict[int, int] = {}
        """Size of a fence to the contributions that came by here in the last one of that size."""

    def __len__(self) -> int:
        return len(self._fences)

    @property
    def deadline(self) -> float:
        """When ``outlets`` will have something."""
        return min(self._outlets.values()) if self._outlets else NEVER

    def from_client(self, msg: Message, fence: Fence, now: float) -> None:
        """Take a client's contribution, and keep its request for the outcome."""
        if len(fence.parts) != 1 or fence.objects:
            raise InvalidRequest("a client contributes to a fence once, with its own operations")
        hop = msg.route[-1]
        self._add(fence, hop, now)
        id_ = fence.parts[0].id
        self._waiters.setdefault(id_, []).append(msg)
        self._members.setdefault(hop, {})[id_] = FenceMember(fence.namespace, fence.name, id_)

    def from_child(self, msg: Message, fence: Fence, now: float) -> list[Message]:
        """Take a child's; if they cannot be taken, it is told so by a FenceDone for them."""
        try:
            self._add(fence, msg.hop, now)
        except FluxmpiError as error:
            ids = [part.id for part in fence.parts]
            done = FenceDone(fence.namespace, fence.name, ids, 0, error.code, error.text)
            return [control("kvs.fence-done", done, msg.hop)]
        return []

    def _add(self, fence: Fence, hop: int, now: float) -> None:
        key = fence.namespace, fence.name
        gathering = self._fences.get(key)
        if gathering is None:
            if len(self._fences) >= FENCES_MAX:
                raise InvalidRequest(f"{FENCES_MAX} fences are under way already")
            gathering = Gathering(fence)
        fresh = gathering.add(fence, hop)
        if gathering.parts:
            self._fences[key] = gathering
        if (
            fresh
        ):  # else there is nothing to send: an empty message that comes after the fence would make one anew above
            if len(gathering.parts) >= self._usual.get(fence.size, 0):
                self._outlets[key] = now
            else:
                self._outlets.setdefault(key, now + HOLD_S)

    def outlets(self, now: float) -> list[Fence]:
        """What is to go up in this turn, one message per fence."""
        due = [key for key, at in self._outlets.items() if at <= now]
        out = []
        for key in due:
            gathering = self._fences[key]
            out.append(gathering.outlet())
            if not gathering.behind:
                del self._outlets[key]
        return out

    def done(self, done: FenceDone, body: bytes, now: float) -> list[Message]:
        """The outcome for some contributors: answer those that wait here with ``body``."""
        key = done.namespace, done.name
        gathering = self._fences.get(key)
        if gathering is not None:
            count = len(gathering.parts)
            if gathering.forget(done.ids):
                self._remember(gathering.size, count)
                if gathering.parts:
                    self._outlets[key] = now
                else:
                    del self._fences[key]
                    self._outlets.pop(key, None)
        waiters, out = self._waiters, []
        for commit_id in done.ids:
            if not waiters:
                break
            for msg in waiters.pop(commit_id, ()):
                self._forget(msg.route[-1], commit_id)
                out.append(Message(RESPONSE, msg.topic, tag=msg.tag, status=done.status, route=msg.route, body=body))
        return out

    def _forget(self, hop: int, commit_id: CommitId) -> None:
        members = self._members.get(hop)
        if members is not None and members.pop(commit_id, None) is not None and not members:
            del self._members[hop]

    def waits(self, commit_id: CommitId) -> bool:
        """A client that is here waits for the outcome."""
        return commit_id in self._waiters

    def disconnect(self, hop: int) -> list[FenceMember]:
        """A client is gone; those of its contributions that nobody waits for here any more."""
        left = []
        for id_, member in self._members.pop(hop, {}).items():
            still = [msg for msg in self._waiters[id_] if msg.route[-1] != hop]
            if still:
                self._waiters[id_] = still
            else:
                del self._waiters[id_]
                left.append(member)
        return left

    def gives_up(self, hop: int, tag: int) -> FenceMember | None:
        """The contribution that this client made with the request ``tag``, if it waits. It is still told the outcome."""
        for id_, member in self._members.get(hop, {}).items():
            if any(msg.tag == tag and msg.route[-1] == hop for msg in self._waiters[id_]):
                return FenceMember(member.namespace, member.name, id_, gone=True)
        return None

    def flush(self, member: FenceMember) -> list[Fence]:
        """What is to go up before word of this member does."""
        key = member.namespace, member.name
        out = []
        if self._outlets.pop(key, None) is not None:
            gathering = self._fences[key]
            out.append(gathering.outlet())
            while gathering.behind:
                out.append(gathering.outlet())
        return out

    def _remember(self, size: int, count: int) -> None:
        self._usual.pop(size, None)
        self._usual[size] = count
        if len(self._usual) > SIZES_MAX:
            del self._usual[next(iter(self._usual))]

    def check(self) -> None:
        assert all(key in self._fences for key in self._outlets)
        assert all(gathering.parts for gathering in self._fences.values())
        waiting = {(msg.route[-1], id_) for id_, messages in self._waiters.items() for msg in messages}
        assert waiting == {(hop, id_) for hop, members in self._members.items() for id_ in members}
        assert all(self._members.values())
