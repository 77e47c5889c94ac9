"""The message: the one record that brokers, clients, machines and drivers exchange.

A message has a *kind*:

- REQUEST: to the service that the topic's first word names (``kvs.commit`` goes to ``kvs``). ``target`` is a rank, or
  ANY: the nearest broker on the path to rank 0 that has the service. Each broker that receives it appends the hop it
  came from to ``route``.
- RESPONSE: follows the request's path back by popping ``route``. ``status`` is 0, MORE (further responses follow), or
  an error's code.
- EVENT: published; numbered by rank 0 and sent down the tree to all brokers.
- CONTROL: from a neighbour or a driver to the machine that the topic names; it is not forwarded.

``hop`` is the source of a message that enters a machine, and the next destination of one that leaves it: a rank, LOCAL,
a driver, or a client of this broker. It has no meaning on the wire: the receiver sets it to the sender.

``body`` is bytes, which brokers that forward the message do not decode. Each service has records for its bodies.

On the wire, a *batch* (a list of messages) is one msgpack array: one call of the encoder per neighbour and turn.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fluxmpi.errors import FluxmpiError, InvalidRequest, OutOfMemory, encode_error

# kinds
REQUEST, RESPONSE, EVENT, CONTROL = 1, 2, 3, 4

# targets
ANY = -1
"""The nearest broker on the path to rank 0 that has the service, this one included."""

# status of a response
OK = 0
MORE = -1
"""A response of a stream that is not the last: the next one has the same tag."""

# hops that are not ranks
LOCAL = -1
DISK = -2
LAUNCHER = -3
LOOP = -4
PAGE = -5
SEGMENTS = -6
CLIENT_FIRST = -16
"""Clients have the hops CLIENT_FIRST, CLIENT_FIRST - 1, …; a broker uses each hop once."""

INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 63) - 1
"""Range of versions, counts and integer values."""

FRAME_BYTES_MAX = 64 << 20
"""Longest frame on a client's socket; a longer one is refused before it is read."""

EVENT_TOPIC_MAX = 1024
EVENT_PAYLOAD_BYTES_MAX = 1 << 20

PROTOCOL = 1
"""Number of this wire format, which brokers send to clients in ``hello``."""


class Message(msgspec.Struct, array_like=True, gc=False):
    """See the module. ``tag`` matches a response to its request; the requester chooses it."""

    kind: int
    topic: str
    hop: int = LOCAL
    target: int = ANY
    tag: int = 0
    status: int = OK
    route: list[int] = []
    body: bytes = b""


class Record(msgspec.Struct, array_like=True, gc=False):
    """Base of the bodies of messages: encoded as an array, its fields in order."""


encode_body = msgspec.msgpack.Encoder().encode
"""Encode a body. Deterministic: the same record gives the same bytes."""

encode_batch = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(list[Message]).decode


class Body:
    """Decoder of one record type. A body that does not decode raises InvalidRequest with the reason.

    One for which there is no memory raises OutOfMemory. Handlers decode before they change anything.

    >>> decode_get = Body(Get)
    >>> get = decode_get(msg)
    """

    def __init__(self, record: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(record).decode

    def __call__(self, msg: Message) -> Any:
        """Return the record in the body of a message. Raises InvalidRequest, OutOfMemory."""
        try:
            return self._decode(msg.body)
        except MemoryError:
            raise OutOfMemory(f"{msg.topic}: no memory to decode a body of {len(msg.body):,} bytes") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"{msg.topic}: the body does not decode: {error}") from None


def request(topic: str, body: Any = None, *, target: int = ANY, tag: int = 0) -> Message:
    """Make a request of one of this broker's machines."""
    return Message(REQUEST, topic, LOCAL, target, tag, OK, [], encode_body(body))


def reply(msg: Message, body: Any = None, status: int = OK) -> Message:
    """Make the response to the request ``msg``; ``status=MORE`` for all responses of a stream but the last."""
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, msg.route[:], encode_body(body))


def reply_raw(msg: Message, body: bytes) -> Message:
    """Make the response to the request ``msg`` with a body that is encoded already, or a blob."""
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, OK, msg.route[:], body)


def reply_error(msg: Message, error: FluxmpiError) -> Message:
    """Make the response that carries an error; it ends a stream."""
    status, body = encode_error(error)
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, msg.route[:], body)


def control(topic: str, body: Any = None, hop: int = LOCAL) -> Message:
    """Make a control message to a neighbour, a driver or a machine of this broker."""
    return Message(CONTROL, topic, hop, ANY, 0, OK, [], encode_body(body))
