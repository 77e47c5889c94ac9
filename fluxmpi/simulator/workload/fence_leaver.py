"""Fences that one member leaves before they are complete."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Put
from fluxmpi.simulator.plan import ABANDONED, FENCE_CHANCE, Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.load_generator import LoadGenerator, PlannedFence
from fluxmpi.simulator.workload.transcript import ClientCall


class FenceLeaver:
    """Contributes to one fence and leaves it: its process ends, or it cancels."""

    steps = 0

    def __init__(self, client: Client, rng: Random, fence: str, size: int) -> None:
        self.client = client
        self._rng = rng
        self._fence = fence
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
        key = f"fence.{self._fence}.{self.client.name}"
        call = self.client.fence(self._fence, self._size, [Put(key, Val("raw", b"?"))])
        self.client.cluster.schedule.after(self._rng.expovariate(10), lambda: self._leave(call))

    def _leave(self, call: ClientCall) -> None:
        self._left = True
        if not call.done and not self.client.gone:
            if self._rng.random() < 0.5:
                self.client.quit()
            else:
                self.client.leave_fence(call)


def fence_leavers(found: list[LoadGenerator], plan: Plan, make: Callable[[int], Client]) -> list[FenceLeaver]:
    """Return one member that leaves for each abandoned fence of the plan, and let others of ``found`` contribute to it.

    A fence may also lack one member more, which never arrives. ``make`` returns a client by number.
    """
    rng = plan.rng(FENCE_CHANCE)
    staying = [one for one in found if one.quits_after < 0]
    leaving = []
    for number in range(plan.abandoned_fences):
        name, others = f"{ABANDONED}{number}", rng.randint(0, 2 * len(staying))
        size = others + 1 + rng.randint(0, 1)
        for _ in range(others):
            one = rng.choice(staying)
            one.fences.append(PlannedFence(rng.randint(0, one.steps), name, size, rng.random() < 0.5))
            one.fences.sort(key=lambda fence: -fence.steps_left)
        leaving.append(FenceLeaver(make(number), plan.rng(f"{FENCE_CHANCE}{number}"), name, size))
    return leaving
