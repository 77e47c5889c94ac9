"""Members that leave a fence before it is complete. The fence then breaks for all, so a departure must be certain.

A client that loses its connection may connect again, to this broker or another, and send its contribution again. So::

    its broker:  kvs.fence-left ──▶ rank 0 ── after grace_s ──▶ kvs.fence-missing, down to every broker
    a broker at which the client waits:       kvs.fence-here ──▶ rank 0: it has not left
    a broker at which it does not wait, when all of its children have reported so, too:
                                              kvs.fence-absent ──▶ rank 0, once from each: leader.fence-break

So a silent broker breaks no fence: it is slow and replies later, or it is dead and the instance ends. A member that
gives up by itself, after its time limit, has left at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxmpi.kvs.fence.limits import FENCE_LIMITS, FenceLimits
from fluxmpi.kvs.wire import CommitId, FenceMember
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import CONTROL, Body, Message, control

_decode = Body(FenceMember)


class FenceMembership(Machine):
    """Rank 0's machine that decides whether a member has left."""

    name = "departures"

    def __init__(self, limits: FenceLimits = FENCE_LIMITS) -> None:
        super().__init__()
        self._limits = limits
        self._waiting: dict[CommitId, tuple[float, FenceMember]] = {}
        """Contribution to the time at which its member is searched."""
        self._searched: dict[CommitId, int] = {}
        """Contribution to the number of the search for its member."""
        self._searches = 0
        topics = [f"departures.{what}" for what in ("left", "here", "absent")]
        self.topics = dict.fromkeys(topics, Topic(CONTROL, Sender.MACHINE, self._decide, FenceMember))

    def _decide(self, msg: Message, now: float) -> list[Message]:
        """Handle what the brokers report about a member."""
        member = _decode(msg)
        if msg.topic == "departures.absent":
            if self._searched.get(member.id) != member.search:
                return []  # it was found since then
            del self._searched[member.id]
            return [control("leader.fence-break", member)]
        self._searched.pop(member.id, None)
        self._waiting.pop(member.id, None)
        if msg.topic == "departures.left":
            if member.gone or len(self._waiting) + len(self._searched) >= self._limits.missing_max:
                return [control("leader.fence-break", member)]
            self._waiting[member.id] = now + self._limits.grace_s, member
        self._plan()
        return []

    def tick(self, now: float) -> list[Message]:
        """Search the members whose time of grace is over."""
        out = []
        for id_, (due, member) in list(self._waiting.items()):
            if due <= now:
                del self._waiting[id_]
                self._searches += 1
                self._searched[id_] = member.search = self._searches
                out.append(control("kvs.fence-missing", member))
        self._plan()
        return out

    def _plan(self) -> None:
        self.deadline = min((due for due, _ in self._waiting.values()), default=NEVER)

    def statistics(self) -> dict[str, float]:
        return {"missing": len(self._waiting) + len(self._searched)}


class MemberSearches:
    """One broker's part in rank 0's searches for members: which children have not reported yet."""

    def __init__(self) -> None:
        self._open: dict[CommitId, tuple[int, dict[int, None]]] = {}
        """Contribution to the number of its search, and those children."""

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, member: FenceMember, children: Sequence[int]) -> None:
        """Begin a search; it replaces an earlier one for this member."""
        self._open[member.id] = member.search, dict.fromkeys(children)

    def absent(self, member: FenceMember, child: int) -> bool:
        """Note that the member is nowhere below ``child``.

        Return whether that is the last child: the search is over here.
        """
        search, children = self._open.get(member.id, (None, {}))
        if search != member.search:
            return False
        children.pop(child, None)
        if children:
            return False
        del self._open[member.id]
        return True

    def found(self, member: FenceMember) -> None:
        """End the search: the member waits at some broker."""
        self._open.pop(member.id, None)
