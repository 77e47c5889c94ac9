"""The trace of a run: everything that went over a wire, as one digest, and on request as lines.

Two runs with the same digest did the same things at the same times.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from fluxmpi.broker.trace_line import hop_name, trace_line
from fluxmpi.message import decode_batch


class Trace:
    """``write`` gets each line, if it is not None."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self._write = write
        self._hash = sha256()
        self.batches = self.bytes = 0

    def wire(self, now: float, source: int, target: int, batch: bytes) -> None:
        """Record a batch sent from one hop to another: ranks, clients, drivers."""
        self.batches += 1
        self.bytes += len(batch)
        self._hash.update(f"{now!r} {source} {target} ".encode())
        self._hash.update(batch)
        if self._write is not None:
            ends = hop_name(source), hop_name(target)
            for msg in decode_batch(batch):
                to, size = msg.target, len(msg.body)
                self._write(trace_line(now, *ends, msg.kind, msg.topic, msg.tag, msg.status, to, msg.route, size))

    def note(self, now: float, text: str) -> None:
        """Record an injected fault or another change from outside."""
        self._hash.update(f"{now!r} {text}".encode())
        if self._write is not None:
            self._write(f"{now:.6f} {text}")

    @property
    def digest(self) -> str:
        """The digest of everything so far."""
        return self._hash.hexdigest()
