"""Ordered publish and subscribe.

Rank 0 numbers every event of the instance and sends it down the tree; links keep their order, so all brokers see one
order. A broker passes an event on to its children and to those of its clients that subscribed to a prefix of its topic.

    client --event.publish--> rank 0: seq += 1 --EVENT--> children ... --EVENT--> subscribers
                              '--seq--> client
    leader --event.committed, after the setroot--> the same; these carry the snapshot of their commit

Links keep their order, so whoever has an event with a snapshot has that version.

Invariant: ``seen`` never goes backwards and never skips.
"""

from __future__ import annotations

from fluxmpi.errors import FluxmpiError, InvalidRequest, TooLarge
from fluxmpi.machine import Machine
from fluxmpi.message import (
    CONTROL,
    EVENT,
    EVENT_PAYLOAD_BYTES_MAX,
    EVENT_TOPIC_MAX,
    REQUEST,
    Body,
    Message,
    encode_body,
    reply,
    reply_error,
)
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import Event, Origin, Publish, Published, Subscribe

_decode_publish = Body(Publish)
_decode_published = Body(Published)
_decode_subscribe = Body(Subscribe)
_decode_event = Body(Event)


class Events(Machine):
    name = "event"

    def __init__(self, router: Router) -> None:
        super().__init__()
        self._router = router
        self.seen = 0
        self._subscribers: dict[str, dict[int, None]] = {}
        self._lengths: list[int] = []
        """The distinct lengths of the prefixes, so that an event costs a look-up per length, not per subscriber."""
        self._published = 0
        self._delivered = 0

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == EVENT:
            self.seen = _decode_event(msg).seq
            return self._spread(msg)
        if msg.kind == CONTROL and msg.topic == "event.committed":
            return self._committed(_decode_published(msg))
        if msg.kind != REQUEST:
            return []
        try:
            return self._request(msg, now)
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _request(self, msg: Message, now: float) -> list[Message]:
        match msg.topic:
            case "event.publish":
                return self._publish(msg, now)
            case "event.subscribe":
                prefix, client = _decode_subscribe(msg).prefix, _own_client(msg)
                self._subscribers.setdefault(prefix, {})[client] = None
                self._measure()
                return [reply(msg, self.seen)]
            case "event.unsubscribe":
                self._unsubscribe(_decode_subscribe(msg).prefix, _own_client(msg))
                return [reply(msg)]
        raise InvalidRequest(f"service event has no method {msg.topic!r}")

    def _publish(self, msg: Message, now: float) -> list[Message]:
        if self._router.rank:
            raise InvalidRequest("events are published at rank 0")
        publish = _decode_publish(msg)
        if not publish.topic or len(publish.topic) > EVENT_TOPIC_MAX:
            raise InvalidRequest(f"an event's topic has 1 to {EVENT_TOPIC_MAX} characters")
        if len(publish.payload) > EVENT_PAYLOAD_BYTES_MAX:
            raise TooLarge(f"an event's payload has at most {EVENT_PAYLOAD_BYTES_MAX} bytes: store it and send its key")
        return [*self._number(publish.topic, publish.payload, now), reply(msg, self.seen)]

    def _committed(self, published: Published) -> list[Message]:
        """The events of a version's commits, whose setroot is on its way on the same links."""
        time = published.snapshot[3]
        return [msg for topic, payload in published.events for msg in self._number(topic, payload, time, published.snapshot)]

    def _number(self, topic: str, payload: bytes, time: float, snapshot: Origin | None = None) -> list[Message]:
        self.seen += 1
        self._published += 1
        return self._spread(Message(EVENT, topic, body=encode_body(Event(self.seen, time, payload, snapshot))))

    def _spread(self, event: Message) -> list[Message]:
        """The same event to every child and every subscriber."""
        topic, body = event.topic, event.body
        out = [Message(EVENT, topic, child, body=body) for child in self._router.live_children()]
        if self._lengths:
            hops: dict[int, None] = {}
            for length in self._lengths:
                hops.update(self._subscribers.get(topic[:length], {}))
            out += [Message(EVENT, topic, hop, body=body) for hop in hops]
            self._delivered += len(hops)
        return out

    def _unsubscribe(self, prefix: str, hop: int) -> None:
        hops = self._subscribers.get(prefix, {})
        if hops.pop(hop, 0) == 0:
            raise InvalidRequest(f"there is no subscription to '{prefix}'")
        if not hops:
            del self._subscribers[prefix]
            self._measure()

    def disconnect(self, hop: int, now: float) -> list[Message]:
        for prefix in [prefix for prefix, hops in self._subscribers.items() if hop in hops]:
            self._unsubscribe(prefix, hop)
        return []

    def _measure(self) -> None:
        self._lengths = sorted({len(prefix) for prefix in self._subscribers})

    def statistics(self) -> dict[str, float]:
        subscriptions = sum(len(hops) for hops in self._subscribers.values())
        return {
            "seq": self.seen,
            "published": self._published,
            "delivered": self._delivered,
            "subscriptions": subscriptions,
        }

    def check(self) -> None:
        assert all(self._subscribers.values())


def _own_client(msg: Message) -> int:
    """The hop of the client that asks. One of another broker has a hop that means somebody else here."""
    if len(msg.route) != 1:
        raise InvalidRequest("a client subscribes at its own broker: leave the target out")
    return msg.route[0]
