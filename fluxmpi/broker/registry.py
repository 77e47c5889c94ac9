"""Table of the services of one broker: topic → machine, tag → machine.

A topic is ``service.method``. The registry finds a machine by the topic's first word. For a response it finds the
machine by the index that the machine put into its request's tag.

``wrap`` puts a stand-in before each machine, so that a tracer sees each delivery without a test on the way of each
message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fluxmpi.machine import MACHINES_MAX, NEVER, Machine
from fluxmpi.message import Message

TOPICS_MAX = 1024
"""Topics whose look-up is cached, those without a service included; a further one is looked up by its first word each
time.
"""


class Stepper(Protocol):
    """A machine, or a stand-in that passes messages on to it."""

    def step(self, msg: Message, now: float) -> list[Message]: ...


class Registry:
    def __init__(self, machines: Iterable[Machine]) -> None:
        self.machines: list[Machine] = list(machines)
        assert len(self.machines) <= MACHINES_MAX
        self._by_name: dict[str, Stepper] = {}
        self._by_topic: dict[str, Stepper | None] = {}
        self._by_index: list[Stepper] = []
        for index, machine in enumerate(self.machines):
            machine.join(index)
            for name in (machine.name, *machine.topics):
                assert name not in self._by_name, f"two services are called {name}"
                self._by_name[name] = machine
        self.wrap(None)

    def wrap(self, wrapper: Callable[[Machine], Stepper] | None) -> None:
        """Have every look-up return ``wrapper(machine)`` instead of the machine; None restores it."""
        self._by_index = [machine if wrapper is None else wrapper(machine) for machine in self.machines]
        self._by_topic.clear()
        for machine, stepper in zip(self.machines, self._by_index, strict=True):
            self._by_name.update(dict.fromkeys((machine.name, *machine.topics), stepper))

    def find(self, topic: str) -> Stepper | None:
        """Return the machine that answers ``topic``, or None."""
        try:
            return self._by_topic[topic]
        except KeyError:
            machine = self._by_name.get(topic.partition(".")[0])
            if len(self._by_topic) < TOPICS_MAX:
                self._by_topic[topic] = machine
            return machine

    def service(self, name: str) -> Stepper:
        """Return the machine of this name, which exists."""
        return self._by_name[name]

    def owner(self, tag: int) -> Stepper | None:
        """Return the machine that made the request with this tag."""
        index = tag % MACHINES_MAX
        return self._by_index[index] if index < len(self._by_index) else None

    def deadline(self) -> float:
        """Return the earliest deadline of all machines."""
        soonest = NEVER
        for machine in self.machines:
            if machine.deadline < soonest:
                soonest = machine.deadline
        return soonest

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return ``statistics()`` of every machine by its name."""
        return {machine.name: machine.statistics() for machine in self.machines}

    @property
    def cached_topics(self) -> int:
        """Number of topics whose look-up is cached, at most TOPICS_MAX."""
        return len(self._by_topic)
