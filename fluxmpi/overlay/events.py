"""Ordered publish and subscribe.

Rank 0 numbers every event of the instance and sends it down the tree; links keep their order, so all brokers receive
the same sequence. A broker forwards an event to its children and to those of its clients that subscribed to a prefix of
its topic.

    client --event.publish--> rank 0: seq += 1 --EVENT--> children ... --EVENT--> subscribers
                              '--seq--> client
    leader --event.committed, after the setroot--> the same; these carry the snapshot of their commit

A broker that has an event with a snapshot has that version, because the setroot was sent before it on the same links.

The broker's socket queues a bounded number of bytes of events for a client that does not read (``drivers/clients``).
Beyond that it sends ``event.lags``: the client's subscriptions end with Overloaded, which names the last event that was
sent, and the client may subscribe again.

Invariants: ``seen`` counts up by one; ``_prefixes`` has the same subscriptions as ``_subscribers``, by client.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from fluxmpi.errors import InvalidRequest, Overloaded, TooLarge
from fluxmpi.machine import ANY_TOPIC, Machine, Sender, Topic
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
)
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import EventRecord, Origin, Publish, Published, Subscribe, Unsubscribed
from fluxmpi.shares import Pool

_decode_publish = Body(Publish)
_decode_published = Body(Published)
_decode_subscribe = Body(Subscribe)
_decode_event = Body(EventRecord)
_decode_hop = Body(int)


class EventLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of subscriptions; a further one is refused with Overloaded."""

    subscriptions_max: int = 100_000
    """At one broker."""
    subscriptions_client_max: int = 1_000
    """Of one client."""
    subscription_bytes_max: int = 16 << 20
    """Of the prefixes of all subscriptions at one broker."""
    subscription_bytes_client_max: int = 1 << 20
    """Of those of one client."""


EVENT_LIMITS = EventLimits()


class EventService(Machine):
    """The ``event`` service of one broker."""

    name = "event"

    def __init__(self, router: Router, limits: EventLimits = EVENT_LIMITS) -> None:
        super().__init__()
        self._limits = limits
        self.router = router
        self.seen = 0
        """Sequence number of the newest event."""
        self._subscribers: dict[str, dict[int, None]] = {}
        """Prefix to the hops of its subscribers."""
        self._prefixes: dict[int, dict[str, None]] = {}
        """Client hop to its prefixes."""
        self._lengths: Counter[int] = Counter()
        """Length to the number of prefixes of that length: an event costs one look-up per length, not per
        subscriber.
        """
        self._subscriptions = 0
        self._bytes = Pool(
            "bytes of subscriptions' prefixes",
            limits.subscription_bytes_max,
            limits.subscription_bytes_client_max,
        )
        self._published = 0
        self._delivered = self._lagged = 0
        own_client = Sender.OWN_CLIENT
        self.topics = {
            "event.publish": Topic(REQUEST, Sender.CLIENT, self._publish, Publish),
            "event.subscribe": Topic(REQUEST, own_client, self._subscribe_client, Subscribe),
            "event.unsubscribe": Topic(REQUEST, own_client, self._unsubscribe_client, Subscribe),
            "event.committed": Topic(CONTROL, Sender.MACHINE, self._committed, Published),
            "event.lags": Topic(CONTROL, Sender.LOOP, self._end_subscriptions, int),
            ANY_TOPIC: Topic(EVENT, Sender.PARENT, self._pass, EventRecord),
        }

    def _pass(self, msg: Message, now: float) -> list[Message]:
        self.seen = _decode_event(msg).seq
        return self._forward(msg)

    def _subscribe_client(self, msg: Message, now: float) -> list[Message]:
        self._subscribe(_decode_subscribe(msg).prefix, msg.route[0])
        return [reply(msg, self.seen)]

    def _unsubscribe_client(self, msg: Message, now: float) -> list[Message]:
        self._unsubscribe(_decode_subscribe(msg).prefix, msg.route[0])
        return [reply(msg)]

    def _publish(self, msg: Message, now: float) -> list[Message]:
        if self.router.rank:
            raise InvalidRequest(f"event.publish was sent to rank {self.router.rank}: events are published at rank 0")
        publish = _decode_publish(msg)
        if not publish.topic or len(publish.topic) > EVENT_TOPIC_MAX:
            raise InvalidRequest(f"a topic of {len(publish.topic)} characters: it must have 1 to {EVENT_TOPIC_MAX}")
        if len(publish.payload) > EVENT_PAYLOAD_BYTES_MAX:
            raise TooLarge(
                f"an event's payload of {len(publish.payload)} bytes: the limit is {EVENT_PAYLOAD_BYTES_MAX}; "
                "store the data in the KVS and publish its key"
            )
        return [*self._number(publish.topic, publish.payload, now), reply(msg, self.seen)]

    def _committed(self, msg: Message, now: float) -> list[Message]:
        """Publish the events of a version's commits; its setroot was sent before on the same links."""
        published: Published = _decode_published(msg)
        time = published.snapshot[3]
        return [
            msg for topic, payload in published.events for msg in self._number(topic, payload, time, published.snapshot)
        ]

    def _number(self, topic: str, payload: bytes, time: float, snapshot: Origin | None = None) -> list[Message]:
        self.seen += 1
        self._published += 1
        return self._forward(Message(EVENT, topic, body=encode_body(EventRecord(self.seen, time, payload, snapshot))))

    def _forward(self, event: Message) -> list[Message]:
        """Send the event to every child and every subscriber."""
        topic, body = event.topic, event.body
        out = [Message(EVENT, topic, child, body=body) for child in self.router.live_children()]
        if self._lengths:
            hops: dict[int, None] = {}
            for length in self._lengths:
                hops.update(self._subscribers.get(topic[:length], {}))
            out += [Message(EVENT, topic, hop, body=body) for hop in hops]
            self._delivered += len(hops)
        return out

    def _subscribe(self, prefix: str, hop: int) -> None:
        if len(prefix) > EVENT_TOPIC_MAX:
            raise InvalidRequest(f"a prefix of {len(prefix)} characters: a topic has {EVENT_TOPIC_MAX} at most")
        prefixes = self._prefixes.get(hop, {})
        if prefix in prefixes:
            return
        limits = self._limits
        if len(prefixes) >= limits.subscriptions_client_max:
            raise Overloaded(
                f"this client has {limits.subscriptions_client_max:,} subscriptions already: subscribe to a shorter prefix"
            )
        if self._subscriptions >= limits.subscriptions_max:
            raise Overloaded(f"this broker has {limits.subscriptions_max:,} subscriptions already")
        self._bytes.take(hop, _bytes(prefix))
        self._prefixes.setdefault(hop, {})[prefix] = None
        hops = self._subscribers.setdefault(prefix, {})
        if not hops:
            self._lengths[len(prefix)] += 1
        hops[hop] = None
        self._subscriptions += 1

    def _unsubscribe(self, prefix: str, hop: int) -> None:
        prefixes = self._prefixes.get(hop, {})
        if prefix not in prefixes:
            raise InvalidRequest(f"there is no subscription to '{prefix[:EVENT_TOPIC_MAX]}'")
        del prefixes[prefix]
        self._bytes.give(hop, _bytes(prefix))
        if not prefixes:
            del self._prefixes[hop]
        hops = self._subscribers[prefix]
        del hops[hop]
        self._subscriptions -= 1
        if not hops:
            del self._subscribers[prefix]
            self._lengths[len(prefix)] -= 1
            if not self._lengths[len(prefix)]:
                del self._lengths[len(prefix)]

    def _end_subscriptions(self, msg: Message, now: float) -> list[Message]:
        """End all subscriptions of a client that lags, and notify it."""
        hop = _decode_hop(msg)
        prefixes = list(self._prefixes.get(hop, {}))
        if not prefixes:
            return []
        self.disconnect(hop, 0.0)
        self._lagged += 1
        text = f"too many events were left unread, so the subscription has ended; the last event sent is number {self.seen}"
        body = encode_body(Unsubscribed(self.seen, text, prefixes))
        return [Message(EVENT, "", hop, status=Overloaded.code, body=body)]

    def disconnect(self, hop: int, now: float) -> list[Message]:
        for prefix in list(self._prefixes.get(hop, {})):
            self._unsubscribe(prefix, hop)
        return []

    def statistics(self) -> dict[str, float]:
        return {
            "seq": self.seen,
            "published": self._published,
            "delivered": self._delivered,
            "subscriptions": self._subscriptions,
            "subscription_bytes": self._bytes.taken,
            "lagged": self._lagged,
        }

    def check(self) -> None:
        assert all(self._subscribers.values())
        assert all(self._prefixes.values())
        named = {(prefix, hop) for hop, prefixes in self._prefixes.items() for prefix in prefixes}
        assert named == {(prefix, hop) for prefix, hops in self._subscribers.items() for hop in hops}
        assert len(named) == self._subscriptions
        assert self._bytes.taken == sum(_bytes(prefix) for prefix, _ in named)
        self._bytes.check()
        assert self._lengths == Counter(map(len, self._subscribers))


def _bytes(prefix: str) -> int:
    return len(prefix.encode("utf-8", "surrogatepass"))
