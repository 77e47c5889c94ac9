"""Table of the services of one broker: topic → machine and its row, tag → machine.

The rows are the machines' own tables, put together. So a message costs one look-up, and a topic that no machine
declared is never kept. For a response the registry finds the machine by the index that the machine put into its
request's tag.

``wrap`` puts a stand-in before each machine, so that a tracer sees each delivery without a test on the way of each
message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fluxmpi.machine import ANY_TOPIC, MACHINES_MAX, NEVER, Machine, Sender, Topic
from fluxmpi.message import REQUEST, Message


class Stepper(Protocol):
    """A machine, or a stand-in that passes messages on to it."""

    def step(self, msg: Message, now: float) -> list[Message]: ...


class TopicEntry:
    """A topic of this broker: its row, and where to deliver it. ``senders`` is the row's as a number.

    ``any_client``, ``any_machine``: any of them may request it, which are the most frequent checks.
    """

    __slots__ = ("any_client", "any_machine", "isolated", "kind", "machine", "row", "senders", "stepper")

    def __init__(self, row: Topic, machine: Machine) -> None:
        self.row = row
        self.machine = machine
        self.kind = row.kind
        self.senders = row.senders.value
        self.any_client = row.kind == REQUEST and Sender.CLIENT in row.senders
        self.any_machine = row.kind == REQUEST and Sender.MACHINE in row.senders
        self.isolated = row.isolated
        self.stepper: Stepper = machine


class Registry:
    """``topics``: every topic that a machine of this broker declared."""

    def __init__(self, machines: Iterable[Machine]) -> None:
        self.machines: list[Machine] = list(machines)
        assert len(self.machines) <= MACHINES_MAX
        self.topics: dict[str, TopicEntry] = {}
        self._services: dict[str, Machine] = {}
        """First word of a topic to its machine."""
        self._by_index: list[Stepper] = []
        for index, machine in enumerate(self.machines):
            machine.join(index)
            for topic, row in machine.topics.items():
                assert topic not in self.topics, f"two machines have the topic {topic}"
                self.topics[topic] = TopicEntry(row, machine)
                if topic != ANY_TOPIC:
                    service = topic.partition(".")[0]
                    assert self._services.setdefault(service, machine) is machine, f"two services are called {service}"
        self.wrap(None)

    def wrap(self, wrapper: Callable[[Machine], Stepper] | None) -> None:
        """Deliver everything to ``wrapper(machine)`` instead of the machine; None restores it."""
        self._by_index = [machine if wrapper is None else wrapper(machine) for machine in self.machines]
        steppers = dict(zip(map(id, self.machines), self._by_index, strict=True))
        for entry in self.topics.values():
            entry.stepper = steppers[id(entry.machine)]

    def service(self, name: str) -> Machine | None:
        """Return the machine of this broker that has topics with this first word, or None."""
        return self._services.get(name)

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
