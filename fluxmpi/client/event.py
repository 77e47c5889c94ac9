"""Publish and subscribe: ``h.event``. All subscribers receive all events in one order, numbered by rank 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from fluxmpi.client.channel import Channel
from fluxmpi.client.future import Future
from fluxmpi.client.protocol import EventQueue, decoder, encode
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.client.values import encode_json
from fluxmpi.overlay import wire

LEADER = 0

_decode_seq = decoder(int)


@dataclass(frozen=True, slots=True)
class Event:
    """A published event.

    Attributes:
        topic: its topic.
        seq: its number; events of the instance are numbered from 1.
        time: when rank 0 numbered it, by its clock, in seconds since 1970.
        payload: its payload as bytes.
        snapshot: of the commit that published it (``Transaction.publish``), which this node's broker has; otherwise None.
    """

    topic: str
    seq: int
    time: float
    payload: bytes
    snapshot: Snapshot | None = None

    @property
    def value(self) -> Any:
        """The payload, decoded as JSON; None if it is empty. Raises ValueError for a payload that is not JSON."""
        return msgspec.json.decode(self.payload) if self.payload else None


class Events:
    """Publish and subscribe, ``h.event``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def publish(self, topic: str, payload: Any = b"", *, timeout: float | None = None) -> int:
        """Publish an event to all nodes.

        Args:
            topic: the topic; subscribers choose by its beginning.
            payload: bytes, or a value that JSON can hold.
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The event's number.

        Raises:
            InvalidRequest: the topic is empty or too long, or the payload cannot be encoded.
            RequestTimeout: no answer within ``timeout``; the event may still be published.

        Example:
            >>> with there.event.subscribe("doc.") as events:
            ...     _ = h.event.publish("doc.ready", {"step": 7})
            ...     events.get(timeout=10).value
            {'step': 7}
        """
        return self._channel.call(lambda: self.publish_async(topic, payload), timeout)

    def publish_async(self, topic: str, payload: Any = b"") -> Future[int]:
        """Publish like ``publish``, without waiting.

        Args:
            topic: the topic.
            payload: bytes, or a value that JSON can hold.

        Returns:
            The future number.
        """
        data = bytes(payload) if isinstance(payload, bytes | bytearray | memoryview) else encode_json(payload)
        return self._channel.send(
            "event.publish", encode("event.publish", wire.Publish(topic, data)), LEADER, _decode_seq
        )

    def subscribe(self, prefix: str = "") -> Subscription:
        """Subscribe to the events whose topic starts with ``prefix``; by default, to all.

        Returns:
            The subscription. It receives every event that is numbered after this call returns.

        Example:
            >>> with h.event.subscribe("doc.run.") as events:
            ...     number = there.event.publish("doc.run.ready", [1, 2])
            ...     event = events.get(timeout=10)
            >>> event.topic, event.value, event.seq == number
            ('doc.run.ready', [1, 2], True)
        """
        return Subscription(self._channel, prefix)


class Subscription:
    """Events of a topic prefix, made by ``h.event.subscribe``: iterate, or call ``get``. Close it, or use a ``with`` block.

    A subscription that leaves too much unread is ended: after the events before that, ``get`` raises Overloaded.
    ``seq`` is then the number of the last event that was received; a new subscription starts later.
    """

    def __init__(self, channel: Channel, prefix: str) -> None:
        self._channel = channel
        self._queue = EventQueue(prefix)
        with channel.use:
            if channel.connection.subscribe(self._queue):
                try:
                    self._queue.begin(channel.rpc("event.subscribe", wire.Subscribe(prefix), reply=int))
                except BaseException:
                    channel.connection.unsubscribe(self._queue)
                    raise

    @property
    def ready(self) -> bool:
        """True if ``get`` returns or raises at once."""
        return self._queue.ready

    @property
    def seq(self) -> int:
        """The number of the last event that was received, read or not; 0 before the first."""
        return self._queue.seq

    def get(self, timeout: float | None = None) -> Event:
        """Wait for the next event and return it.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Raises:
            RequestTimeout: no event within ``timeout``; the subscription continues.
            Overloaded: too much was left unread, and later events are lost.
            ConnectionLost: the connection ended.
        """
        self._channel.wait_events(self._queue, timeout)
        taken = self._queue.take()
        assert taken is not None
        topic, event = taken
        snapshot = Snapshot(*event.snapshot) if event.snapshot is not None else None
        return Event(topic, event.seq, event.time, event.payload, snapshot)

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self.get()

    def close(self) -> None:
        """End the subscription. Unread events are dropped."""
        if self._channel.connection.unsubscribe(self._queue) and not self._channel.closed:
            self._channel.post("event.unsubscribe", wire.Subscribe(self._queue.prefix))

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
