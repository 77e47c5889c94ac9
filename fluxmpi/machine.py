"""The interface of a machine: every service of a broker is one.

A machine takes a message and returns messages. It never waits, reads no clock and has no side effects: time is the
argument ``now`` (seconds since 1970, monotonic within a process); disks, processes and random choices are messages. So
the same object runs under MPI and in the simulator, and a test passes messages to it and compares lists.
"""

from __future__ import annotations

from typing import ClassVar

from fluxmpi.message import Message, request

NEVER = float("inf")

MACHINES_MAX = 16
"""Machines of a broker at most. The tag of a request modulo this is the index of the machine that made it and gets the
response.
"""


class Machine:
    """Base of the services of a broker. ``name`` is the first word of the topics that it answers.

    ``deadline``: the time of the next ``tick`` that it needs; NEVER if it needs none.
    """

    name: ClassVar[str] = ""
    topics: ClassVar[tuple[str, ...]] = ()
    """Further first words that it answers."""

    def __init__(self) -> None:
        self.deadline: float = NEVER
        self._tag = 0

    def join(self, index: int) -> None:
        """Set the machine's index in its broker, which calls this once."""
        assert 0 <= index < MACHINES_MAX
        self._tag = index

    def step(self, msg: Message, now: float) -> list[Message]:
        """Take one message; return the messages that it causes.

        It is a request to this service, a response to one of its requests, or a control message.
        """
        raise NotImplementedError

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
