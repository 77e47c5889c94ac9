"""What a machine is: the shape of every service, and the only way in and out of one.

A machine is given a message and gives messages back. It never waits, never reads a clock and never touches the world: time is
the argument ``now`` (seconds since 1970, never going backwards in one process), chance and disks are messages. So the same
object runs under MPI and under the simulator, and a test feeds it messages and compares lists.
"""

from __future__ import annotations

from typing import ClassVar

from fluxmpi.message import Message, request

NEVER = float("inf")

MACHINES_MAX = 16
"""A request's tag holds the index of the machine that made it in its low bits, so that the response finds back."""


class Machine:
    """Base of the services of a broker. ``name`` is the first word of the topics that it answers.

    ``deadline``: the time of the next ``tick`` that it needs; NEVER when it waits for messages only.
    """

    name: ClassVar[str] = ""
    topics: ClassVar[tuple[str, ...]] = ()
    """Further first words that it answers."""

    def __init__(self) -> None:
        self.deadline: float = NEVER
        self._tag = 0

    def join(self, index: int) -> None:
        """The broker calls this once: ``index`` tells this machine's requests from those of the others."""
        assert 0 <= index < MACHINES_MAX
        self._tag = index

    def step(self, msg: Message, now: float) -> list[Message]:
        """Take one message: a request to this service, a response to one of its requests, a control message."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Message]:
        """Called when ``deadline`` has come, after all input of this turn has been stepped."""
        self.deadline = NEVER
        return []

    def disconnect(self, hop: int, now: float) -> list[Message]:
        """A client of this broker is gone: forget what is kept for it."""
        return []

    def statistics(self) -> dict[str, float]:
        return {}

    def check(self) -> None:
        """Assert the invariants; the simulator calls it after every step."""

    def ask(self, topic: str, body: object, target: int) -> Message:
        """A request with a tag of its own; keep the tag to know the response."""
        self._tag += MACHINES_MAX
        return request(topic, body, target=target, tag=self._tag)
