"""Additions to one key, combined on their way to rank 0.

A hot counter costs rank 0 one operation per round trip, not one per client.

    client ─kvs.add──┐   while a message for this key is under way, they wait here     ┌▶ its number to each client
    child ──kvs.adds─┴▶ otherwise ──kvs.adds to the parent, at rank 0 leader.adds─ … ──┴▶ its share to each child

Additions that arrive before the answer are combined, and sent as one message when it arrives. So each broker has one
message for a key under way, and rank 0 receives messages from its children only. This is the combining of memory
requests in a network of switches (Gottlieb et al., the NYU Ultracomputer, 1983): each addition gets its own prefix sum,
as if they had been made one by one in the order of the message, all between the request and the answer. That is
linearizable.

Rank 0 applies each addition exactly once: each part has its commit id, and a part that is sent again, by any broker,
gets its first answer again.

Invariants: a key has an entry while a message for it is under way; each request is in one message at a time, and is
answered once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fluxmpi.errors import InvalidRequest, Overloaded
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.wire import Added, AddPart, Adds, AddTo, Committed, OpResult
from fluxmpi.message import OK, RESPONSE, Body, Message, encode_body, reply

_decode_added = Body(Added)

_Key = tuple[str, str]
"""Namespace and key."""


@dataclass(slots=True)
class _Origin:
    """A client's or child's request, and its additions."""

    msg: Message
    parts: list[AddPart]
    bytes: int
    """Of its body, which is not kept."""


@dataclass(slots=True)
class _Counter:
    """One key. ``under_way``: the requests in the message that is under way; ``waiting``: those for the next ones."""

    under_way: list[_Origin] = field(default_factory=list)
    waiting: deque[_Origin] = field(default_factory=deque)


class AddCombiner:
    """``count``: additions here, waiting or under way; ``bytes``: of the requests that they came with."""

    def __init__(self, ask: Callable[[Adds], Message], limits: ReplicaLimits) -> None:
        """``ask`` makes the request to the parent, at rank 0 to the leader."""
        self._ask = ask
        self._limits = limits
        self._counters: dict[_Key, _Counter] = {}
        self._tags: dict[int, _Key] = {}
        self.count = self.bytes = 0
        self._held: dict[int, int] = {}
        """Client hop → its additions among them."""
        self._from_clients = 0
        self._from_children = 0

    def owns(self, tag: int) -> bool:
        return tag in self._tags

    def from_client(self, msg: Message, add: AddTo) -> list[Message]:
        self._from_clients += 1
        client, share = msg.route[0], self._limits.adds_client_max
        held = self._held.get(client, 0) + 1
        if held > share:
            raise Overloaded(f"{share:,} additions of this client wait already, its share of this broker's; try again")
        out = self._enqueue((add.namespace, add.key), msg, [AddPart(add.id, add.acked, add.amount)])
        self._held[client] = held
        return out

    def from_child(self, msg: Message, adds: Adds) -> list[Message]:
        if not adds.parts:
            raise InvalidRequest("kvs.adds: the list of additions is empty")
        self._from_children += 1
        return self._enqueue((adds.namespace, adds.key), msg, adds.parts)

    def _enqueue(self, key: _Key, msg: Message, parts: list[AddPart]) -> list[Message]:
        limits, size = self._limits, len(msg.body)
        if self.count + len(parts) > limits.adds_waiting_max:
            raise Overloaded(f"{limits.adds_waiting_max:,} additions wait at this broker already; try again")
        if self.bytes + size > limits.adds_bytes_max:
            raise Overloaded(f"additions with {self.bytes:,} bytes of keys wait at this broker already; try again")
        self.count += len(parts)
        self.bytes += size
        msg.body = b""
        origin = _Origin(msg, parts, size)
        counter = self._counters.get(key)
        if counter is not None:
            counter.waiting.append(origin)
            return []
        counter = self._counters[key] = _Counter(waiting=deque([origin]))
        return self._send(key, counter)

    def _send(self, key: _Key, counter: _Counter) -> list[Message]:
        """Send the next message, or drop the key's entry if no request waits."""
        parts_max = self._limits.adds_per_message_max
        parts: list[AddPart] = []
        counter.under_way = []
        while counter.waiting and (not parts or len(parts) + len(counter.waiting[0].parts) <= parts_max):
            origin = counter.waiting.popleft()
            counter.under_way.append(origin)
            parts += origin.parts
        if not parts:
            del self._counters[key]
            return []
        ask = self._ask(Adds(*key, parts))
        self._tags[ask.tag] = key
        return [ask]

    def answered(self, msg: Message) -> tuple[Added | None, list[Message], list[Message]]:
        """Take the response to a message of this combiner.

        Returns the version, if one was made; the answers to the requests, which may be sent when that version is here;
        and the next message.
        """
        key = self._tags.pop(msg.tag)
        counter = self._counters[key]
        added: Added | None = _decode_added(msg) if msg.status == OK else None
        if added is not None and len(added.numbers) != sum(len(origin.parts) for origin in counter.under_way):
            raise InvalidRequest(f"{len(added.numbers)} numbers do not answer the additions that were sent")
        answers = []
        first = 0
        for origin in counter.under_way:
            count = len(origin.parts)
            self._forget(origin)
            if added is None:
                answers.append(_answer(origin.msg, msg.status, msg.body))
            else:
                answers.append(_share(origin.msg, added, first, count))
            first += count
        return added, answers, self._send(key, counter)

    def _forget(self, origin: _Origin) -> None:
        """Count a request that has its answer, or is dropped."""
        self.count -= len(origin.parts)
        self.bytes -= origin.bytes
        if origin.msg.topic == "kvs.add":
            client = origin.msg.route[0]
            held = self._held.get(client, 0) - 1
            if held > 0:
                self._held[client] = held
            else:
                self._held.pop(client, None)

    def disconnect(self, hop: int) -> None:
        """Drop the waiting requests of a disconnected client."""
        for counter in self._counters.values():
            dropped = [origin for origin in counter.waiting if origin.msg.route == [hop]]
            if dropped:
                counter.waiting = deque(origin for origin in counter.waiting if origin.msg.route != [hop])
                for origin in dropped:
                    self._forget(origin)

    def statistics(self) -> dict[str, float]:
        """``adding``: additions here; the others count messages with additions, from clients and from children."""
        return {
            "adding": self.count,
            "adding_keys": len(self._counters),
            "adding_bytes": self.bytes,
            "adds_from_clients": self._from_clients,
            "adds_from_children": self._from_children,
        }

    def check(self) -> None:
        assert sorted(self._tags.values()) == sorted(self._counters)
        assert all(counter.under_way for counter in self._counters.values())
        origins = [origin for counter in self._counters.values() for origin in (*counter.under_way, *counter.waiting)]
        assert self.count == sum(len(origin.parts) for origin in origins)
        assert self.bytes == sum(origin.bytes for origin in origins)
        assert self._held == Counter(origin.msg.route[0] for origin in origins if origin.msg.topic == "kvs.add")


def _answer(asked: Message, status: int, body: bytes) -> Message:
    return Message(RESPONSE, asked.topic, tag=asked.tag, status=status, route=asked.route, body=body)


def _share(asked: Message, added: Added, first: int, count: int) -> Message:
    """Return the answer to one request, which contributed ``count`` parts from ``first`` on."""
    others = [(index - first, status, body) for index, status, body in added.others if first <= index < first + count]
    root = added.namespace, added.version, added.ref, added.time
    if asked.topic != "kvs.add":
        return reply(asked, Added(*root, added.numbers[first : first + count], others))
    if others:
        return _answer(asked, *others[0][1:])
    return _answer(asked, OK, encode_body(Committed(*root, True, [OpResult(True, added.numbers[first])])))
