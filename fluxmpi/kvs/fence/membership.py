"""Who leaves a fence before it is complete: found out for sure, since it then breaks for all.

A client that loses its connection may be back at once, at this broker or another, and send its contribution again. So::

    its broker:  kvs.fence-left ──▶ rank 0 ──GRACE_S──▶ kvs.fence-missing, down to every broker
    a broker at which it waits:              kvs.fence-here ──▶ rank 0: it is not gone
    one at which it does not, when all of its children have said so, too:
                                             kvs.fence-absent ──▶ rank 0, from everywhere: leader.fence-break

A broker that is silent therefore breaks no fence: it is slow, and answers later, or it is dead, and the instance ends. A member
that gives up by itself, after its time limit, is gone at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import CommitId, FenceMember
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import CONTROL, REQUEST, Body, Message, control, reply_error

GRACE_S = 2.0
"""Time for a client to connect again."""

MEMBERS_MAX = 100_000
"""Of fences, looked for at a time; past it a member counts as gone without that."""

_decode = Body(FenceMember)


class FenceMembership(Machine):
    """At rank 0: the members that may have left."""

    name = "departures"

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[CommitId, tuple[float, FenceMember]] = {}
        """Contribution to when all brokers are to be asked for it."""
        self._asked: dict[CommitId, int] = {}
        """Contribution to the number of the search that is under way."""
        self._searches = 0

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == REQUEST:
            return [reply_error(msg, InvalidRequest("service departures is for brokers only"))]
        if msg.kind != CONTROL:
            return []
        member = _decode(msg)
        if msg.topic == "departures.absent":
            if self._asked.get(member.id) != member.search:
                return []  # it was seen somewhere since then
            del self._asked[member.id]
            return [control("leader.fence-break", member)]
        self._asked.pop(member.id, None)
        self._waiting.pop(member.id, None)
        if msg.topic == "departures.left":
            if member.gone or len(self._waiting) + len(self._asked) >= MEMBERS_MAX:
                return [control("leader.fence-break", member)]
            self._waiting[member.id] = now + GRACE_S, member
        self._wake()
        return []

    def tick(self, now: float) -> list[Message]:
        out = []
        for id_, (due, member) in list(self._waiting.items()):
            if due <= now:
                del self._waiting[id_]
                self._searches += 1
                self._asked[id_] = member.search = self._searches
                out.append(control("kvs.fence-missing", member))
        self._wake()
        return out

    def _wake(self) -> None:
        self.deadline = min((due for due, _ in self._waiting.values()), default=NEVER)

    def statistics(self) -> dict[str, float]:
        return {"missing": len(self._waiting) + len(self._asked)}


class MemberSearches:
    """At each broker: the members that rank 0 looks for, and which of the children have not answered yet."""

    def __init__(self) -> None:
        self._open: dict[CommitId, tuple[int, dict[int, None]]] = {}
        """Contribution to the number of its search, and those children."""

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, member: FenceMember, children: Sequence[int]) -> None:
        """A later search takes the place of an earlier one."""
        self._open[member.id] = member.search, dict.fromkeys(children)

    def absent(self, member: FenceMember, child: int) -> bool:
        """It is nowhere below that child. True when it is nowhere below any of them: the search is over here."""
        search, children = self._open.get(member.id, (0, {}))
        if search != member.search:
            return False
        children.pop(child, None)
        if children:
            return False
        del self._open[member.id]
        return True

    def found(self, member: FenceMember) -> None:
        self._open.pop(member.id, None)
