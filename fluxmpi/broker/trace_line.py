"""One line of text for one message on its way: the format of ``fluxmpi trace`` and of the simulator's ``--trace``.

12.345678 rank 3: client-16 → kvs       request  kvs.commit           tag 5 status 0 target -1 route [-16] 31 bytes
"""

from __future__ import annotations

from collections.abc import Sequence

from fluxmpi.message import (
    CLIENT_FIRST,
    CONTROL,
    DISK,
    EVENT,
    LAUNCHER,
    LOCAL,
    LOOP,
    PAGE,
    REQUEST,
    RESPONSE,
    SEGMENTS,
)

KINDS = {REQUEST: "request", RESPONSE: "response", EVENT: "event", CONTROL: "control"}
DRIVERS = {DISK: "disk", LAUNCHER: "launcher", LOOP: "loop", PAGE: "page", SEGMENTS: "segments"}


def hop_name(hop: int, machine: str = "") -> str:
    """Return the text of one end of a message. ``machine``: the name of the machine, where ``hop`` is LOCAL."""
    if hop >= 0:
        return f"rank {hop}"
    if hop <= CLIENT_FIRST:
        return f"client{hop}"
    return (machine or "local") if hop == LOCAL else DRIVERS.get(hop, f"hop {hop}")


def trace_line(
    time: float,
    source: str,
    target: str,
    kind: int,
    topic: str,
    tag: int,
    status: int,
    to: int,
    route: Sequence[int],
    size: int,
    rank: int | None = None,
) -> str:
    """Format one message.

    ``source`` and ``target`` are hop names; ``rank`` is the broker that handled it, if there is one.
    """
    where = "" if rank is None else f"rank {rank}: "
    return (
        f"{time:.6f} {where}{source:>9} → {target:<9} {KINDS.get(kind, kind):8} {topic:20}"
        f" tag {tag} status {status} target {to} route {list(route)} {size} bytes"
    )
