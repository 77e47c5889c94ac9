"""The one record that everything speaks: between brokers, between a broker and its clients, and inside a broker.

A message has a *kind*:

- REQUEST: asks a service, named by the topic's first word (``kvs.commit`` asks ``kvs``). ``target`` is a rank, or ANY: the
  nearest broker on the way to rank 0 that has the service. Each broker that receives it appends the hop it came from to
  ``route``.
- RESPONSE: goes back by popping ``route``, so it takes the way that the request came. ``status`` is 0, MORE (a stream goes
  on), or an error's code.
- EVENT: published; numbered by rank 0 and sent down the tree to all.
- CONTROL: from a neighbour, or from a driver, to the machine that the topic names; it is not routed further.

``hop`` is where the message came from (when it goes into a machine) or goes next (when it comes out): a rank, LOCAL, a local
driver, or a client of this broker. It means nothing on the wire: who receives a message sets it to whom it received from.

``body`` is bytes that a relay never decodes; each service has its own records for it.

On the wire a *batch*, a list of messages, is one msgpack array, so that a turn of the loop costs one call of the encoder per
neighbour.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fluxmpi.errors import FluxmpiError, InvalidRequest, encode_error

# kinds
REQUEST, RESPONSE, EVENT, CONTROL = 1, 2, 3, 4

# targets
ANY = -1
"""The nearest service on the way up to rank 0, this broker included."""

# status of a response
OK = 0
MORE = -1
"""A response of a stream that goes on: the next one has the same tag."""

# hops that are not ranks
LOCAL = -1
DISK = -2
LAUNCHER = -3
LOOP = -4
PAGE = -5
SEGMENTS = -6
CLIENT_FIRST = -16
"""Clients have the hops CLIENT_FIRST, CLIENT_FIRST - 1, …; a hop is never used twice in a broker's life."""

INTEGER_MIN, INTEGER_MAX = -(1 << 63), (1 << 63) - 1
"""What versions, counts and the integers that are added to are between."""

FRAME_BYTES_MAX = 64 << 20
"""A longer frame on a client's socket is refused before it is read."""

EVENT_TOPIC_MAX = 1024
EVENT_PAYLOAD_BYTES_MAX = 1 << 20

PROTOCOL = 1
"""Number of this wire format; brokers greet clients with it."""


class Message(msgspec.Struct, array_like=True, gc=False):
    """See the module's text. ``tag`` matches a response to its request, and is the requester's own choice."""

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
"""Any body record to bytes. Deterministic: the same record gives the same bytes."""

encode_batch = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(list[Message]).decode


class Body:
    """Decoder of one record type; a body that does not fit is the sender's fault: InvalidRequest with the reason.

    >>> decode_get = Body(Get)
    >>> get = decode_get(msg)
    """

    def __init__(self, record: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(record).decode

    def __call__(self, msg: Message) -> Any:
        try:
            return self._decode(msg.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"{msg.topic}: the body does not decode: {error}") from None


def request(topic: str, body: Any = None, *, target: int = ANY, tag: int = 0) -> Message:
    """A request from one of this broker's machines."""
    return Message(REQUEST, topic, LOCAL, target, tag, OK, [], encode_body(body))


def reply(msg: Message, body: Any = None, status: int = OK) -> Message:
    """The response to the request ``msg``. ``status=MORE`` for all responses of a stream but the last."""
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, msg.route[:], encode_body(body))


def reply_raw(msg: Message, body: bytes) -> Message:
    """As ``reply``, with a body that is bytes already (a blob)."""
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, OK, msg.route[:], body)


def reply_error(msg: Message, error: FluxmpiError) -> Message:
    """The response that says why not; it ends a stream."""
    status, body = encode_error(error)
    return Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, msg.route[:], body)


def control(topic: str, body: Any = None, hop: int = LOCAL) -> Message:
    """A message to a neighbour's, a driver's or an own machine."""
    return Message(CONTROL, topic, hop, ANY, 0, OK, [], encode_body(body))
