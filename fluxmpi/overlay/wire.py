"""Bodies of the overlay's messages: ping, status, heartbeats, events."""

from __future__ import annotations

from fluxmpi.message import Record


class Ping(Record):
    """``ping.ping`` to any rank → Pong."""

    seq: int
    payload: bytes = b""


class Pong(Record):
    """``route``: the hops of the request, first the client's own; it has one entry more than the tree has hops between."""

    seq: int
    payload: bytes
    rank: int
    route: list[int]


class Info(Record):
    """``overlay.info`` to any rank → the place of that broker in the tree. ``parent`` is -1 at rank 0."""

    rank: int
    size: int
    host: str
    topology: str
    parent: int
    children: list[int]


class Peer(Record):
    """One line of ``overlay.status``. ``idle_s``: seconds since its parent received its last heartbeat."""

    rank: int
    host: str
    parent: int
    state: str
    idle_s: float


class Heartbeat(Record):
    """CONTROL ``overlay.heartbeat`` between neighbours. ``lost``: the ranks that the sender knows to be lost."""

    rank: int
    lost: list[int] = []


class LostRank(Record):
    """CONTROL ``overlay.lost``, up to rank 0, and from the driver: ``rank`` is lost. ``reason`` is a text for users."""

    rank: int
    reason: str


class Publish(Record):
    """``event.publish`` → the event's sequence number (int). Rank 0 numbers all events of the instance."""

    topic: str
    payload: bytes = b""


class Subscribe(Record):
    """``event.subscribe`` → the last sequence number (int) that the broker has seen; ``event.unsubscribe`` → null.

    Events whose topic begins with ``prefix`` are sent to the client as EVENT messages, in order of their numbers. An
    EVENT with the status Overloaded ends subscriptions: its body is Unsubscribed.
    """

    prefix: str


class Unsubscribed(Record):
    """The client has left too much unread: its subscriptions to ``prefixes`` have ended.

    All events up to ``seq`` were sent.
    """

    seq: int
    text: str
    prefixes: list[str]


Origin = tuple[str, int, bytes, float]
"""Namespace, version, root ref and time of the commit that published an event."""


class EventRecord(Record):
    """Body of an EVENT message; its topic is the user's.

    ``snapshot``: of the commit that it was published with, if any.
    """

    seq: int
    time: float
    payload: bytes
    snapshot: Origin | None = None


class Published(Record):
    """CONTROL ``event.committed`` at rank 0: (topic, payload) of what a version's commits publish, after its setroot."""

    events: list[tuple[str, bytes]]
    snapshot: Origin
