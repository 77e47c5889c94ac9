"""Publish and subscribe: ``h.event``. All subscribers see all events in one order, numbered by rank 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fluxmpi.client import protocol
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import encode_json
from fluxmpi.errors import FluxmpiError
from fluxmpi.overlay import wire

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future, Handle

LEADER = 0

_decode_seq = protocol.decoder(int)


@dataclass(frozen=True, slots=True)
class Event:
    """``seq`` counts the instance's events from 1; ``time`` is when it was numbered, seconds since 1970.

    ``snapshot``: of the commit that published it (``Transaction.publish``), which this node's broker has; else None.
    """

    topic: str
    seq: int
    time: float
    payload: bytes
    snapshot: Snapshot | None = None

    @property
    def value(self) -> Any:
        """The payload as JSON; None when there is none. Raises ValueError when it is something else."""
        return msgspec.json.decode(self.payload) if self.payload else None


class Events:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def publish(self, topic: str, payload: Any = b"", *, timeout: float | None = None) -> int:
        """Publish to all nodes; returns the event's number. ``payload``: bytes, or anything that is JSON."""
        return self.publish_async(topic, payload).get(timeout)

    def publish_async(self, topic: str, payload: Any = b"") -> Future:
        """As ``publish``, without waiting for the number."""
        data = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else encode_json(payload)
        body = protocol.encode("event.publish", wire.Publish(topic, data))
        return self._handle.send("event.publish", body, LEADER, _decode_seq)

    def subscribe(self, prefix: str = "") -> Subscription:
        """Events whose topic starts with ``prefix``; those numbered after this call returns are all seen."""
        return Subscription(self._handle, prefix)


class Subscription:
    """Iterate for Events, or call ``get`` with a time limit. Close it when done.

    Who leaves too much unread is told no more: when all that came before is read, ``get`` raises Overloaded. ``seq`` is then the
    number of the last event that was told; what came after it is missed, and a new subscription begins later.
    """

    def __init__(self, handle: Handle, prefix: str) -> None:
        self._handle = handle
        self._core = protocol.Subscription(prefix)
        if handle._protocol.subscribe(self._core):
            try:
                self._core.begin(handle.rpc("event.subscribe", wire.Subscribe(prefix), reply=int))
            except FluxmpiError:
                handle._protocol.unsubscribe(self._core)
                raise

    @property
    def ready(self) -> bool:
        return self._core.ready

    @property
    def seq(self) -> int:
        """The number of the last event that has come, read or not; 0 if none has."""
        return self._core.seq

    def get(self, timeout: float | None = None) -> Event:
        """The next event. Raises RequestTimeout, and Overloaded when too much was left unread."""
        self._handle.wait_events(self._core, timeout)
        taken = self._core.take()
        assert taken is not None
        topic, event = taken
        snapshot = Snapshot(*event.snapshot) if event.snapshot is not None else None
        return Event(topic, event.seq, event.time, event.payload, snapshot)

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self.get()

    def close(self) -> None:
        if self._handle._protocol.unsubscribe(self._core) and not self._handle.closed:
            self._handle.rpc_async("event.unsubscribe", wire.Subscribe(self._core.prefix))

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
