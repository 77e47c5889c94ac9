"""Routing of one turn's output: which message goes to which neighbour, client or driver.

One pure function, used by the real loop (``drivers/loop``) and by the simulated one (``simulator/cluster``). Each
neighbour and each client gets one batch; the order in a batch is the order in which the broker produced the messages.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from fluxmpi.broker.wire import Shutdown
from fluxmpi.message import CLIENT_FIRST, LOOP, Body, Message

_decode_shutdown = Body(Shutdown)
_decode_rank = Body(int)
_decode_text = Body(str)


class Outgoing(msgspec.Struct, gc=False):
    """The output of one turn, sorted.

    Send it in the order of the fields, with the root page flushed before ``clients``.
    """

    drivers: list[Message] = []
    """For drivers, in order; ``hop`` names the driver."""
    peers: dict[int, list[Message]] = {}
    """Rank to its batch."""
    hang_up: list[int] = []
    """Ranks that get nothing after this turn's batch."""
    clients: dict[int, list[Message]] = {}
    """Client hop to its batch."""
    trim: bool = False
    """Much memory was freed: give it back to the kernel."""
    told: list[str] = []
    """Lines for the user."""
    exit: Shutdown | None = None
    """The broker has ended; the loop exits."""


def sort_outgoing(messages: Iterable[Message]) -> Outgoing:
    """Sort a turn's messages by their ``hop``."""
    outgoing = Outgoing()
    peers, clients = outgoing.peers, outgoing.clients
    for msg in messages:
        hop = msg.hop
        if hop >= 0:
            batch = peers.get(hop)
            if batch is None:
                peers[hop] = [msg]
            else:
                batch.append(msg)
        elif hop <= CLIENT_FIRST:
            batch = clients.get(hop)
            if batch is None:
                clients[hop] = [msg]
            else:
                batch.append(msg)
        elif hop != LOOP:
            outgoing.drivers.append(msg)
        elif msg.topic == "loop.hang-up":
            outgoing.hang_up.append(_decode_rank(msg))
        elif msg.topic == "loop.tell":
            outgoing.told.append(_decode_text(msg))
        elif msg.topic == "loop.trim":
            outgoing.trim = True
        else:
            assert msg.topic == "loop.exit", f"the loop has no method {msg.topic!r}"
            outgoing.exit = _decode_shutdown(msg)
    return outgoing
