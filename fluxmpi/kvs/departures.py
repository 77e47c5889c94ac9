"""Who leaves a fence before it is complete: found out for sure at rank 0, since it then breaks for all.

A client that loses its connection may be back at once, at this broker or another, and send its contribution again. So::

    its broker:  kvs.fence-left ──▶ here ──GRACE_S──▶ kvs.fence-missing, down to every broker
    a broker at which it waits:  kvs.fence-here ──▶ here: it is not gone
    no such answer in ANSWER_S ──▶ leader.fence-break

A member that gives up by itself, after its time limit, is gone at once.
"""

from __future__ import annotations

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import CommitId, FenceMember
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import CONTROL, REQUEST, Body, Message, control, reply_error

GRACE_S = 0.5
"""Time for a client to connect again."""

ANSWER_S = 5.0
"""Time for a broker that has it to say so: half of that after which a silent neighbour is taken for dead."""

MEMBERS_MAX = 100_000
"""Of fences, looked for at a time; past it a member counts as gone without that."""

_decode = Body(FenceMember)


class Departures(Machine):
    name = "departures"

    def __init__(self) -> None:
        super().__init__()
        self._due: dict[CommitId, tuple[float, FenceMember, bool]] = {}
        """Contribution to the time of the next step, and whether all brokers were asked; in order of time."""

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == REQUEST:
            return [reply_error(msg, InvalidRequest("service departures is for brokers only"))]
        if msg.kind != CONTROL:
            return []
        member = _decode(msg)
        if msg.topic == "departures.here":
            self._due.pop(member.id, None)
        elif member.gone or len(self._due) >= MEMBERS_MAX:
            return [control("leader.fence-break", member)]
        else:
            self._due.setdefault(member.id, (now + GRACE_S, member, False))
            self._wake()
        return []

    def tick(self, now: float) -> list[Message]:
        out = []
        for id_, (due, member, asked) in list(self._due.items()):
            if due > now:
                continue
            del self._due[id_]
            if asked:
                out.append(control("leader.fence-break", member))
            else:
                self._due[id_] = now + ANSWER_S, member, True
                out.append(control("kvs.fence-missing", member))
        self._wake()
        return out

    def _wake(self) -> None:
        self.deadline = min((due for due, _, _ in self._due.values()), default=NEVER)

    def statistics(self) -> dict[str, float]:
        return {"missing": len(self._due)}
