"""Additions to one key, combined on their way up: a hot counter costs rank 0 one operation per round trip, not one per client.

    client ─kvs.add──┐   one message for this key is under way: they wait here        ┌▶ its number to each client
    child ──kvs.adds─┴▶ none is: at once ──kvs.adds to the parent, at rank 0 leader.adds─┴▶ its share to each child

While the answer is awaited, what comes gathers, and goes as one message when it is there. So each broker has one message for a
key under way, and rank 0 hears from its children only. As the combining of memory requests in a network of switches (Gottlieb et
al., the NYU Ultracomputer, 1983): each addition gets its own prefix sum, as if they had been made one by one in the order of the
message, all of them between the request and the answer. That is linearizable.

Exactly once is rank 0's work: each part has its commit id, and one that comes again, by whatever broker, has its old answer.

Invariants: a key is here as long as a message for it is under way; who waits here is in one message at a time, and is answered
once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fluxmpi.errors import InvalidRequest, Overloaded
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.wire import Added, AddPart, Adds, AddTo, Committed, OpResult
from fluxmpi.message import OK, RESPONSE, Body, Message, encode_body, reply

_decode_added = Body(Added)

_Key = tuple[str, str]


@dataclass(slots=True)
class _Origin:
    """A client's or child's request, and its additions."""

    msg: Message
    parts: list[AddPart]


@dataclass(slots=True)
class _Counter:
    """One key of one namespace. ``under_way``: whose additions the message has; ``waiting`` are for the next ones."""

    under_way: list[_Origin] = field(default_factory=list)
    waiting: deque[_Origin] = field(default_factory=deque)


class AddCombiner:
    def __init__(self, ask: Callable[[Adds], Message], limits: ReplicaLimits) -> None:
        """``ask`` makes the request to whoever is above."""
        self._ask = ask
        self._limits = limits
        self._counters: dict[_Key, _Counter] = {}
        self._tags: dict[int, _Key] = {}
        self.waiting = 0
        """Additions that are here, waiting or under way."""
        self.from_clients = 0
        self.from_children = 0
        """Messages with additions that have come."""

    def owns(self, tag: int) -> bool:
        return tag in self._tags

    def from_client(self, msg: Message, add: AddTo) -> list[Message]:
        self.from_clients += 1
        return self._take((add.namespace, add.key), _Origin(msg, [AddPart(add.id, add.acked, add.amount)]))

    def from_child(self, msg: Message, adds: Adds) -> list[Message]:
        if not adds.parts:
            raise InvalidRequest("kvs.adds: there is nothing to add")
        self.from_children += 1
        return self._take((adds.namespace, adds.key), _Origin(msg, adds.parts))

    def _take(self, key: _Key, origin: _Origin) -> list[Message]:
        if self.waiting + len(origin.parts) > self._limits.adds_waiting_max:
            raise Overloaded(f"{self._limits.adds_waiting_max} additions wait at this broker already; try again")
        self.waiting += len(origin.parts)
        counter = self._counters.get(key)
        if counter is not None:
            counter.waiting.append(origin)
            return []
        counter = self._counters[key] = _Counter(waiting=deque([origin]))
        return self._send(key, counter)

    def _send(self, key: _Key, counter: _Counter) -> list[Message]:
        """The next message, if something waits; else the key is forgotten."""
        parts: list[AddPart] = []
        counter.under_way = []
        while counter.waiting and (
            not parts or len(parts) + len(counter.waiting[0].parts) <= self._limits.adds_per_message_max
        ):
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
        """The version, if there is one; the answers to all who asked, good when that is here; and what goes up next."""
        key = self._tags.pop(msg.tag)
        counter = self._counters[key]
        added: Added | None = _decode_added(msg) if msg.status == OK else None
        answers = []
        first = 0
        for origin in counter.under_way:
            count = len(origin.parts)
            self.waiting -= count
            if added is None:
                answers.append(_answer(origin.msg, msg.status, msg.body))
            else:
                answers.append(_share(origin.msg, added, first, count))
            first += count
        return added, answers, self._send(key, counter)

    def disconnect(self, hop: int) -> None:
        """Forget what a client that is gone waits for, if it has not left."""
        for counter in self._counters.values():
            gone = [origin for origin in counter.waiting if origin.msg.route == [hop]]
            if gone:
                counter.waiting = deque(origin for origin in counter.waiting if origin.msg.route != [hop])
                self.waiting -= len(gone)

    def __len__(self) -> int:
        return len(self._counters)

    def check(self) -> None:
        assert sorted(self._tags.values()) == sorted(self._counters)
        assert all(counter.under_way for counter in self._counters.values())
        origins = [origin for counter in self._counters.values() for origin in (*counter.under_way, *counter.waiting)]
        assert self.waiting == sum(len(origin.parts) for origin in origins)


def _answer(asked: Message, status: int, body: bytes) -> Message:
    return Message(RESPONSE, asked.topic, tag=asked.tag, status=status, route=asked.route, body=body)


def _share(asked: Message, added: Added, first: int, count: int) -> Message:
    """What the answer says of ``count`` parts, as the answer to who sent them."""
    others = [(index - first, status, body) for index, status, body in added.others if first <= index < first + count]
    root = added.namespace, added.version, added.ref, added.time
    if asked.topic != "kvs.add":
        return reply(asked, Added(*root, added.numbers[first : first + count], others))
    if others:
        return _answer(asked, *others[0][1:])
    return _answer(asked, OK, encode_body(Committed(*root, True, [OpResult(True, added.numbers[first])])))
