"""Fences that one member leaves before they are complete."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Put
from fluxmpi.simulator.plan import DESERTED, Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.load_generator import LoadGenerator
from fluxmpi.simulator.workload.transcript import ClientCall


class FenceLeaver:
    """Contributes to one fence and leaves it, as a process that dies or one that gives up."""

    steps = 0

    def __init__(self, client: Client, rng: Random, name: str, size: int) -> None:
        self.client = client
        self._rng = rng
        self._name = name
        self._size = size
        self._left = False

    @property
    def done(self) -> bool:
        return self.client.gone or (self._left and not self.client.open)

    def act(self) -> None:
        self.client.cluster.schedule.after(self._rng.random() * 0.2, self._contribute)

    def _contribute(self) -> None:
        if self.client.gone or not self.client.main.open:  # the instance ended
            self._left = True
            return
        call = self.client.fence(
            self._name, self._size, [Put(f"fence.{self._name}.{self.client.name}", Val("raw", b"?"))]
        )
        self.client.cluster.schedule.after(self._rng.expovariate(10), lambda: self._leave(call))

    def _leave(self, call: ClientCall) -> None:
        self._left = True
        if not call.done and not self.client.gone:
            if self._rng.random() < 0.5:
                self.client.quit()
            else:
                self.client.gives_up(call)


def fence_leavers(found: list[LoadGenerator], plan: Plan, make: Callable[[str], Client]) -> list[FenceLeaver]:
    """One for each fence of which the plan has it so; the other members are among ``found``, and one more may never come."""
    rng = plan.rng("deserted")
    loyal = [driver for driver in found if driver.quits_after < 0]
    leaving = []
    for number in range(plan.deserted):
        name, others = f"{DESERTED}{number}", rng.randint(0, 2 * len(loyal))
        size = others + 1 + rng.randint(0, 1)
        for _ in range(others):
            driver = rng.choice(loyal)
            driver.fences.append((rng.randint(0, driver.steps), name, size, rng.random() < 0.5))
            driver.fences.sort(key=lambda fence: -fence[0])
        leaving.append(FenceLeaver(make(name), plan.rng(name), name, size))
    return leaving
