"""The client's end of the socket protocol, without the socket: bytes in, messages out; requests in, bytes out.

As in h11 and websockets, this file has all the rules and does no I/O, so a blocking client and an asyncio one are thin
layers over it. Such a layer does three things: it writes ``data_to_send()``, it passes what it reads to ``receive()``,
and it waits until the ``Call`` that it needs has a response.

A connection's states::

    HELLO --hello--> OPEN --EOF, bad frame, refusal--> CLOSED
      └───────────────────────────────────────────────────┘

A frame is a 4-byte little-endian length and a msgpack array of messages. Invariants:

- A tag is used once in a connection's life. A response whose tag is unknown belongs to a cancelled call, and is dropped.
- A commit's serial is acknowledged only when its answer has arrived, so the leader may drop exactly those up to ``acked``.
- Unread responses and events are bounded (``HandleLimits``); past the bound the stream or subscription ends with Overloaded.
- An error of a call whose request was queued is definite only if it is the broker's response; an error of ``request`` is
  always definite: nothing was queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

from fluxmpi.broker.wire import Hello
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.errors import (
    ConnectionLost,
    FluxmpiError,
    InvalidRequest,
    NoSuchRank,
    Overloaded,
    ProtocolError,
    TooLarge,
    decode_error,
    indefinite,
    unsent,
)
from fluxmpi.message import (
    ANY,
    CONTROL,
    EVENT,
    FRAME_BYTES_MAX,
    LOCAL,
    MORE,
    OK,
    PROTOCOL,
    REQUEST,
    RESPONSE,
    Message,
    decode_batch,
    encode_batch,
)
from fluxmpi.overlay.wire import EventRecord, Unsubscribed

RESENT = frozenset(("kvs.commit", "kvs.fence", "kvs.add"))
"""Topics of requests that carry an id, so that one that is sent again is applied once. Those that a lost connection left
unanswered are kept, and sent again over the session's next connection.
"""

FRAME_BYTES_GOAL = 1 << 20
"""Bodies gathered into one frame; a longer body travels in a frame of its own."""

T = TypeVar("T")

_HEADER_BYTES = 4
_MESSAGE_BYTES = 32
"""An upper bound of a message's bytes beside topic and body."""

_RANK_MAX = (1 << 31) - 1
"""The largest rank that any instance can have."""

UNDECODABLE = msgspec.DecodeError, UnicodeDecodeError, RecursionError
"""What decoders raise for bytes that are no such record."""

_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_event = msgspec.msgpack.Decoder(EventRecord).decode
_decode_unsubscribed = msgspec.msgpack.Decoder(Unsubscribed).decode


class Call:
    """One request and its responses: one, or a stream.

    Attributes:
        on_end: if set, called with the last response, also after the call was abandoned.
        request: the message of a call that is safe to resend, until it is answered.
        carrier: the channel that sent it again, if one did.
    """

    __slots__ = ("abandoned", "carrier", "ended", "error", "on_end", "request", "responses", "tag", "target", "topic")

    def __init__(self, topic: str, tag: int, target: int) -> None:
        self.topic = topic
        self.tag = tag
        self.target = target
        self.responses: deque[Message] = deque()
        self.ended = False
        self.abandoned = False
        self.error: FluxmpiError | None = None
        self.on_end: Callable[[Message], None] | None = None
        self.request: Message | None = None
        self.carrier: Any = None

    @property
    def ready(self) -> bool:
        """True if ``take`` has something to return or raise."""
        return bool(self.responses) or self.ended

    def take(self) -> Message | None:
        """Remove and return the next response; None at the end of the stream.

        Raises the error that the response carries, or the one that ended the connection.
        """
        if self.responses:
            message = self.responses.popleft()
            if message.status > OK:
                self.error = decode_error(message.status, message.body)
                raise self.error
            return message
        if self.error is not None:
            raise self.error
        return None


class EventQueue:
    """Unread events whose topic starts with ``prefix``, in order of their numbers, each once.

    Attributes:
        seq: the number of the last event that was received.
        bytes: the payload bytes of the unread events.
        error: what ended the subscription; None while it is open.
    """

    __slots__ = ("bytes", "error", "events", "prefix", "seq")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.seq = self.bytes = 0
        self.events: deque[tuple[str, EventRecord]] = deque()
        self.error: FluxmpiError | None = None

    def begin(self, seq: int) -> None:
        """Start after number ``seq``, the broker's answer: it sends every event after that.

        Events that arrived before the answer were sent for another subscription of this client, whose prefix covers
        some of the topics only. Delivered here too, they would be followed by a gap, so they are dropped.
        """
        self.seq = max(self.seq, seq)
        while self.events and self.events[0][1].seq <= seq:
            self.take()

    @property
    def ready(self) -> bool:
        """True if ``take`` has something to return or raise."""
        return bool(self.events) or self.error is not None

    def take(self) -> tuple[str, EventRecord] | None:
        """Remove and return the next event and its topic; None if there is none yet. Raises what ended the subscription."""
        if self.events:
            taken = self.events.popleft()
            self.bytes -= len(taken[1].payload)
            return taken
        if self.error is not None:
            raise self.error
        return None


class Connection:
    """The protocol of one connection; see the module's docstring. ``unanswered``: the session's calls that are safe to resend."""

    def __init__(self, unanswered: dict[int, Call] | None = None, limits: HandleLimits = DEFAULT_LIMITS) -> None:
        self._unanswered = {} if unanswered is None else unanswered
        self._limits = limits
        self.hello: Hello | None = None
        self.error: FluxmpiError | None = None
        self._tag = 0
        self._calls: dict[int, Call] = {}
        self._subscriptions: list[EventQueue] = []
        self._outgoing: list[Message] = []
        self._input = bytearray()

    # ------------------------------------------------------------------------------------------------------ output

    def request(self, topic: str, body: bytes, target: int = ANY) -> Call:
        """Queue a request for the next ``data_to_send``. Raises what closed the connection, if it is closed.

        What is queued can be encoded: a request that could not would be lost there with all others.
        """
        if self.error is not None:
            self.check_open(topic)
        if type(target) is not int or not ANY <= target <= _RANK_MAX:
            raise NoSuchRank(f"{topic}: invalid target {target!r}: ranks are ints from 0")
        size = len(body) + (len(topic) if topic.isascii() else _utf8_bytes(topic))
        if size + 2 * _MESSAGE_BYTES > FRAME_BYTES_MAX:
            raise TooLarge(
                f"{topic}: the request has {len(body):,} bytes, and a frame holds {FRAME_BYTES_MAX:,}: split it"
            )
        self._tag = tag = self._tag + 1
        self._calls[tag] = call = Call(topic, tag, target)
        message = Message(REQUEST, topic, LOCAL, target, tag, OK, [], body)
        self._outgoing.append(message)
        if topic in RESENT:
            call.request = message
            self._unanswered[id(call)] = call
        return call

    def check_open(self, topic: str) -> None:
        """Raise what closed the connection, if it is closed: nothing of a request for ``topic`` is sent."""
        if self.error is not None:
            raise unsent(self.error, f"{topic} was not sent: {self.error.text}")

    def resend(self) -> list[Call]:
        """Queue again what the session's lost connections left unanswered, in order, with the same ids. Return the calls."""
        lost = [call for call in self._unanswered.values() if call.ended]
        for call in lost:
            assert call.request is not None
            self._tag = call.tag = call.request.tag = self._tag + 1
            call.ended, call.error = False, None
            self._calls[call.tag] = call
            self._outgoing.append(call.request)
        return lost

    def adopt_subscriptions(self, other: Connection) -> list[str]:
        """Take over the subscriptions of a closed connection. Return the prefixes that the broker must be asked for."""
        self._subscriptions, other._subscriptions = other._subscriptions, []
        for subscription in self._subscriptions:
            if subscription.error is other.error:
                subscription.error = None
        return list(dict.fromkeys(subscription.prefix for subscription in self._subscriptions))

    def post(self, topic: str, body: bytes, target: int = ANY) -> None:
        """Queue a request, and drop its response."""
        call = self.request(topic, body, target)
        del self._calls[call.tag]

    @property
    def last_tag(self) -> int:
        """The tag of the last request."""
        return self._tag

    @property
    def outgoing(self) -> int:
        """The number of queued requests."""
        return len(self._outgoing)

    def data_to_send(self) -> bytes:
        """Return the frames of the queued requests, which the caller must write; empty if there are none."""
        messages, self._outgoing = self._outgoing, []
        if not messages:
            return b""
        if len(messages) == 1:
            return _frame(messages)
        frames = []
        begin = size = 0
        for end, message in enumerate(messages):
            weight = len(message.body) + len(message.topic) + _MESSAGE_BYTES
            if size and size + weight > FRAME_BYTES_GOAL:
                frames.append(_frame(messages[begin:end]))
                begin, size = end, 0
            size += weight
        frames.append(_frame(messages[begin:] if begin else messages))
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def abandon(self, call: Call) -> None:
        """Drop the responses to ``call``, and those that still arrive."""
        call.abandoned = True
        call.responses.clear()
        if call.on_end is None:
            self._calls.pop(call.tag, None)
            self._unanswered.pop(id(call), None)

    def subscribe(self, subscription: EventQueue) -> bool:
        """Deliver events to ``subscription`` from now on. Return whether the broker must be asked for the prefix."""
        first = all(other.prefix != subscription.prefix for other in self._subscriptions)
        self._subscriptions.append(subscription)
        return first

    def unsubscribe(self, subscription: EventQueue) -> bool:
        """End a subscription. Return whether it was the last one to its prefix, so that the broker must be notified."""
        if subscription not in self._subscriptions:
            return False
        self._subscriptions.remove(subscription)
        return all(other.prefix != subscription.prefix for other in self._subscriptions)

    # ------------------------------------------------------------------------------------------------------ input

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Process bytes from the broker; none means EOF. Calls and subscriptions may be ready afterwards.

        Raises ProtocolError, which is indefinite, and closes the connection if the broker breaks the protocol.
        """
        if self.error is not None:
            return
        if not data:
            self.close(
                ConnectionLost("the broker closed the connection: the instance has ended, or this node's broker died")
            )
            return
        try:
            self._take_frames(data)
        except ProtocolError as error:
            self.close(error)
            raise indefinite(error) from None

    def _take_frames(self, data: bytes | bytearray | memoryview) -> None:
        pending = self._input
        if not pending and len(data) == int.from_bytes(data[:_HEADER_BYTES], "little") + _HEADER_BYTES:
            for message in _decode_frame(data[_HEADER_BYTES:]):  # the usual case: exactly one frame
                self._dispatch(message)
            return
        if pending:
            pending += data
            data = pending
        position, end = 0, len(data)
        with memoryview(data) as view:
            while end - position >= _HEADER_BYTES:
                body = position + _HEADER_BYTES
                length = int.from_bytes(view[position:body], "little")
                if length > FRAME_BYTES_MAX:
                    raise ProtocolError(
                        f"the broker announced a frame of {length:,} bytes; {FRAME_BYTES_MAX:,} is the limit"
                    )
                if end - body < length:
                    break
                position = body + length
                for message in _decode_frame(view[body:position]):
                    self._dispatch(message)
            rest = bytes(view[position:]) if data is not pending else b""
        if data is pending:
            del pending[:position]
        else:
            pending += rest

    def _dispatch(self, message: Message) -> None:
        kind = message.kind
        if kind == RESPONSE and message.tag:
            self._response(message)
        elif kind == EVENT:
            self._event(message)
        elif kind == RESPONSE and message.status > OK:
            self.close(decode_error(message.status, message.body))
        elif kind == CONTROL and message.topic == "hello":
            self._hello(message)
        else:
            raise ProtocolError(
                f"the broker sent a message of kind {kind} and topic '{message.topic}' that a client cannot get"
            )

    def _response(self, message: Message) -> None:
        call = self._calls.get(message.tag)
        if call is None:
            return
        if message.status != MORE:
            del self._calls[message.tag]
            call.ended = True
            if call.request is not None:
                call.request = None
                del self._unanswered[id(call)]
            if call.on_end is not None:
                call.on_end(message)
        if call.abandoned:
            return
        if len(call.responses) >= self._limits.stream_messages_max:
            self._calls.pop(message.tag, None)
            call.ended = True
            unread = f"{call.topic}: {len(call.responses):,} responses are unread: read faster"
            call.error = indefinite(Overloaded(unread))
            return
        call.responses.append(message)

    def _unsubscribed(self, message: Message) -> None:
        """End the subscriptions that the broker has ended. The program may subscribe to the same prefixes again."""
        try:
            end = _decode_unsubscribed(message.body)
        except UNDECODABLE as error:
            raise ProtocolError(f"the broker sent an end of events that does not decode: {error}") from None
        over = [subscription for subscription in self._subscriptions if subscription.prefix in end.prefixes]
        for subscription in over:
            self._subscriptions.remove(subscription)
            subscription.error = subscription.error or Overloaded(
                f"subscription to '{subscription.prefix}': {end.text}"
            )

    def _event(self, message: Message) -> None:
        if message.status != OK:
            self._unsubscribed(message)
            return
        try:
            event = _decode_event(message.body)
        except UNDECODABLE as error:
            raise ProtocolError(f"the broker sent an event that does not decode: {error}") from None
        topic, limits = message.topic, self._limits
        for subscription in self._subscriptions:
            if not topic.startswith(subscription.prefix) or event.seq <= subscription.seq or subscription.error:
                continue
            size = subscription.bytes + len(event.payload)
            if len(subscription.events) >= limits.stream_messages_max or size > limits.event_bytes_max:
                subscription.error = Overloaded(
                    f"subscription to '{subscription.prefix}': {len(subscription.events):,} events are unread, so it has ended; "
                    f"the last event that it received is number {subscription.seq}"
                )
                continue
            subscription.seq, subscription.bytes = event.seq, size
            subscription.events.append((topic, event))

    def _hello(self, message: Message) -> None:
        try:
            hello = _decode_hello(message.body)
        except UNDECODABLE as error:
            raise ProtocolError(f"the broker's greeting does not decode: {error}") from None
        if hello.protocol != PROTOCOL:
            raise ProtocolError(
                f"the broker speaks protocol {hello.protocol} and this client {PROTOCOL}: "
                "use the fluxmpi that started the instance"
            )
        self.hello = hello

    def close(self, error: FluxmpiError) -> None:
        """End the connection: every pending call and subscription gets ``error``. Later calls change nothing.

        The requests of pending calls may have been carried out, whatever the error says.
        """
        if self.error is not None:
            return
        self.error = error
        for call in self._calls.values():
            call.ended = True
            call.error = indefinite(error, f"{error.text}; {call.topic} may or may not have been carried out")
        self._calls.clear()
        for subscription in self._subscriptions:
            subscription.error = subscription.error or error
        self._outgoing.clear()
        self._input.clear()

    def statistics(self) -> dict[str, int]:
        """Return counts of what was sent and what is pending."""
        return {
            "requests": self._tag,
            "calls": len(self._calls),
            "outgoing": len(self._outgoing),
            "subscriptions": len(self._subscriptions),
            "buffered_bytes": len(self._input),
        }


def _utf8_bytes(topic: str) -> int:
    try:
        return len(topic.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"the topic {topic!r} is not valid Unicode") from None


def _frame(messages: list[Message]) -> bytes:
    batch = encode_batch(messages)
    assert len(batch) <= FRAME_BYTES_MAX, "``request`` refuses a request that no frame holds"
    return len(batch).to_bytes(_HEADER_BYTES, "little") + batch


def _decode_frame(frame: bytes | bytearray | memoryview) -> list[Message]:
    try:
        return decode_batch(frame)
    except UNDECODABLE as error:
        raise ProtocolError(f"the broker sent a frame that does not decode: {error}") from None


@overload
def decoder(record: type[T]) -> Callable[[Message], T]: ...


@overload
def decoder(record: Any) -> Callable[[Message], Any]: ...


def decoder(record: Any) -> Callable[[Message], Any]:
    """Return a function from a response to its record. A body that does not fit raises ProtocolError, which is indefinite."""
    decode = msgspec.msgpack.Decoder(record).decode

    def decode_body(message: Message) -> Any:
        try:
            return decode(message.body)
        except UNDECODABLE as error:
            raise undecodable(message.topic, error) from None

    return decode_body


def undecodable(topic: str, reason: object) -> ProtocolError:
    """Return the error for a response that makes no sense. The request may have been carried out."""
    return indefinite(ProtocolError(f"{topic}: the broker's answer does not decode: {reason}"))


def bare(message: Message) -> bytes:
    """Return the bytes of a response that is not a record."""
    return message.body


def encode(topic: str, body: Any) -> bytes:
    """Encode a request's body. Raises InvalidRequest for a body that msgpack cannot encode."""
    try:
        return encode_batch(body)
    except OverflowError:
        raise InvalidRequest(f"{topic}: a number in it has more than 64 bits") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{topic}: the body cannot be sent: {error}") from None
