"""Who may send what: every message is compared here with its topic's row before a machine sees it.

    request          the topic is of another kind, or its row does not name the origin ─▶ InvalidRequest, which names both
    control, event   no such topic, another kind, or another sender ─▶ dropped and counted, and logged by the driver

The origin of a request is the first hop of its route, the sender of the others is their hop (see ``machine.Sender``).
Neither is in a client's hands: its broker's socket sets the hop, and empties the route.
"""

from __future__ import annotations

from fluxmpi.broker.registry import TopicEntry
from fluxmpi.errors import InvalidRequest
from fluxmpi.machine import CLIENTS, Sender
from fluxmpi.message import CLIENT_FIRST, DISK, LAUNCHER, LOCAL, LOOP, REQUEST, SEGMENTS, Message
from fluxmpi.overlay.router import Router

OWN_CLIENT = CLIENTS.value
FAR_CLIENT = Sender.CLIENT.value
MACHINE = Sender.MACHINE.value

WHO = {
    Sender.CLIENT: "clients",
    Sender.OWN_CLIENT: "clients of that broker",
    Sender.MACHINE: "brokers",
    Sender.CHILD: "the child brokers",
    Sender.PARENT: "the parent broker",
}


class Admission:
    """The senders that one broker can tell apart.

    ``hops``: hop to its sender, as the value of a Sender. Clients are not in it: they send requests only.
    """

    def __init__(self, router: Router) -> None:
        self.hops = {
            LOCAL: MACHINE,
            LOOP: Sender.LOOP.value,
            DISK: Sender.DISK.value,
            LAUNCHER: Sender.LAUNCHER.value,
            SEGMENTS: Sender.SEGMENTS.value,
            **dict.fromkeys(router.children, Sender.CHILD.value),
        }
        if router.parent >= 0:
            self.hops[router.parent] = Sender.PARENT.value

    def origin(self, route: list[int]) -> int:
        """Return the origin of a request with this route, which is not empty."""
        first = route[0]
        if len(route) == 1:
            return OWN_CLIENT if first <= CLIENT_FIRST else self.hops.get(first, 0)
        if first <= CLIENT_FIRST:
            return FAR_CLIENT
        if first != LOCAL:
            return 0
        return MACHINE | (self.hops.get(route[1], 0) if len(route) == 2 else 0)

    def refusal(self, entry: TopicEntry, msg: Message) -> InvalidRequest | None:
        """Return the error for a request whose origin may not send it to this broker, None if it may."""
        if entry.kind == REQUEST and entry.senders & self.origin(msg.route):
            return None
        senders = entry.row.senders
        if entry.kind == REQUEST and senders & Sender.OWN_CLIENT:
            return InvalidRequest(f"{msg.topic} is for a client's own broker: leave the target out")
        who = " or ".join(name for sender, name in WHO.items() if sender & senders) or "the broker's own drivers"
        what = "" if entry.kind == REQUEST else " is no request: it"
        return InvalidRequest(f"{msg.topic}{what} is sent by {who} only")
