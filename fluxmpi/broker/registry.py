"""Which machine answers which topic, on one broker.

A topic is ``service.method``. The registry finds the machine by the first word, and, for a response, by the index that the
machine put into its request's tag.
"""

from __future__ import annotations

from collections.abc import Iterable

from fluxmpi.machine import MACHINES_MAX, NEVER, Machine

TOPICS_MAX = 1024
"""Topics remembered with their machine (or that there is none); a further one is looked up by its first word each time."""


class Registry:
    def __init__(self, machines: Iterable[Machine]) -> None:
        self.machines: list[Machine] = list(machines)
        assert len(self.machines) <= MACHINES_MAX
        self._by_name: dict[str, Machine] = {}
        self._by_topic: dict[str, Machine | None] = {}
        for index, machine in enumerate(self.machines):
            machine.join(index)
            for name in (machine.name, *machine.topics):
                assert name not in self._by_name, f"two services are called {name}"
                self._by_name[name] = machine

    def find(self, topic: str) -> Machine | None:
        try:
            return self._by_topic[topic]
        except KeyError:
            machine = self._by_name.get(topic.partition(".")[0])
            if len(self._by_topic) < TOPICS_MAX:
                self._by_topic[topic] = machine
            return machine

    def owner(self, tag: int) -> Machine | None:
        """The machine that made the request with this tag."""
        index = tag % MACHINES_MAX
        return self.machines[index] if index < len(self.machines) else None

    def deadline(self) -> float:
        soonest = NEVER
        for machine in self.machines:
            if machine.deadline < soonest:
                soonest = machine.deadline
        return soonest

    def names(self) -> list[str]:
        return list(self._by_name)
