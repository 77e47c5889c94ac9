"""The interface of a machine: every service of a broker is one.

A machine takes a message and returns messages. It never waits, reads no clock and has no side effects: time is the
argument ``now`` (seconds since 1970, monotonic within a process); disks, processes and random choices are messages. So
the same object runs under MPI and in the simulator, and a test passes messages to it and compares lists.

Each machine declares its topics in a *table*: the kind, the allowed senders, the handler and the body of each. The
broker compares every message with it before the machine sees the message (``broker/admission``), so a handler may rely
on the kind and the sender, and has to validate only what the body says.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from fluxmpi.errors import FluxmpiError, InternalError, InvalidRequest, OutOfMemory
from fluxmpi.message import EVENT, REQUEST, RESPONSE, Body, Message, reply_error, request

NEVER = float("inf")

MACHINES_MAX = 16
"""Machines of a broker at most. The tag of a request modulo this is the index of the machine that made it and gets the
response.
"""

ANY_TOPIC = "*"
"""The row for messages of the kind EVENT: their topics are the users'."""

TOPIC_SHOWN_MAX = 64
"""Characters of an unknown topic in an error."""

EXCEPTION_SHOWN_MAX = 200
"""Characters of an exception in an InternalError."""

_decode_hop = Body(int)


class Sender(enum.Flag):
    """Who sends a message, as the broker that delivers it sees it.

    The origin of a request is the first hop of its route, the sender of a control message or an event is its hop. Both
    are set by brokers and drivers, never by a client.
    """

    CLIENT = enum.auto()
    """A client of any broker."""
    OWN_CLIENT = enum.auto()
    """A client of this broker."""
    MACHINE = enum.auto()
    """A machine: of this broker; for a request, also of another broker."""
    CHILD = enum.auto()
    """The broker of a child in the tree."""
    PARENT = enum.auto()
    """The broker of the parent."""
    LOOP = enum.auto()
    DISK = enum.auto()
    LAUNCHER = enum.auto()
    SEGMENTS = enum.auto()


class Answers(enum.Enum):
    """How many responses a request gets."""

    ONE = enum.auto()
    STREAM = enum.auto()
    """Any number with the status MORE, then a last one."""
    NONE = enum.auto()
    """None, or one with an error."""


class Topic(NamedTuple):
    """A row of a machine's table.

    ``handle`` takes the message and ``now``. ``body``: the type that the body decodes to; None for null, ``bytes`` for
    bytes that are not encoded. ``isolated``: an exception of the handler leaves the state of this broker whole, so the
    broker answers the request with InternalError, or OutOfMemory, and goes on. Otherwise an exception ends the broker.
    """

    kind: int
    senders: Sender
    handle: Callable[[Message, float], list[Message]]
    body: Any = None
    answers: Answers = Answers.ONE
    isolated: bool = False


class Machine:
    """Base of the services of a broker. ``name`` is its name in statistics and traces.

    ``topics``: its table. ``deadline``: the time of the next ``tick`` that it needs; NEVER if it needs none.
    """

    name: ClassVar[str] = ""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.deadline: float = NEVER
        self.on_internal_error: Callable[[str, Exception], None] = _ignore
        """Called with each exception that becomes an InternalError, and what was being done; the broker sets it."""
        self._tag = 0

    def join(self, index: int) -> None:
        """Set the machine's index in its broker, which calls this once."""
        assert 0 <= index < MACHINES_MAX
        self._tag = index

    def step(self, msg: Message, now: float) -> list[Message]:
        """Take one message; return the messages that it causes.

        It is of a topic and a kind in the table, or a response to one of this machine's requests. A FluxmpiError of a
        request's handler is the response. Another handler raises one only if a peer sent what is not possible: this
        ends the broker.
        """
        kind = msg.kind
        if kind == REQUEST:
            try:
                topic = self.topics.get(msg.topic)
                if topic is None:
                    raise no_such_method(msg.topic, self.topics)
                return topic.handle(msg, now)
            except FluxmpiError as error:
                return [reply_error(msg, error)]
        if kind == RESPONSE:
            return self.answered(msg, now)
        return self.topics[msg.topic if kind != EVENT else ANY_TOPIC].handle(msg, now)

    def answered(self, msg: Message, now: float) -> list[Message]:
        """Take a response. One whose tag is not of a pending request of this machine is ignored."""
        return []

    def failed(self, what: str, error: Exception) -> InternalError | OutOfMemory:
        """Report an exception that is a defect; return the error for the request that met it. MemoryError is none.

        Call it only where the state is whole in spite of the exception.
        """
        if isinstance(error, MemoryError):
            return OutOfMemory(f"{what}: this broker could not allocate memory for it, and nothing of it was done")
        self.on_internal_error(what, error)
        name = f"{type(error).__name__}: {str(error)[:EXCEPTION_SHOWN_MAX]}".removesuffix(": ")
        return InternalError(f"{what}: {name}; this is a defect of fluxmpi: the broker's log has the traceback")

    def tick(self, now: float) -> list[Message]:
        """Do what is due. Called when ``deadline`` has passed, after all input of the turn has been stepped."""
        self.deadline = NEVER
        return []

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """Discard the state of a client of this broker that has disconnected."""
        return []

    def statistics(self) -> dict[str, float]:
        """Return the machine's numbers by name, for ``fluxmpi stats``."""
        return {}

    def check(self) -> None:
        """Assert the invariants; the simulator calls it after every step."""

    def ask(self, topic: str, body: object, target: int) -> Message:
        """Make a request with a new tag, by which the caller recognizes the response."""
        self._tag += MACHINES_MAX
        return request(topic, body, target=target, tag=self._tag)


def _ignore(what: str, error: Exception) -> None: ...


def client_of(farewell: Message) -> list[int]:
    """Return the route that a client's requests had here, from ``SERVICE.disconnect``, which its broker sent for it."""
    hop: int = _decode_hop(farewell)
    return [hop, *farewell.route[1:]]


def no_such_method(topic: str, table: dict[str, Topic]) -> InvalidRequest:
    """Return the error for a topic that ``table`` lacks; it names the methods of the service that clients may call."""
    service = topic.partition(".")[0]
    methods = sorted(
        name.partition(".")[2]
        for name, row in table.items()
        if row.kind == REQUEST and row.senders & CLIENTS and name.startswith(f"{service}.")
    )
    has = f"its methods are {', '.join(methods)}" if methods else "it is for brokers only"
    return InvalidRequest(f"service {service} has no method {shorten(topic)!r}: {has}")


CLIENTS = Sender.CLIENT | Sender.OWN_CLIENT


def shorten(topic: str) -> str:
    """Return a topic for an error: a long one is cut."""
    return topic if len(topic) <= TOPIC_SHOWN_MAX else f"{topic[:TOPIC_SHOWN_MAX]}…"
