"""Fences at one broker: contributions of its clients and children go up together, answers come from the setroot.

    client ─kvs.fence─┐
    child ─kvs.gather─┴▶ Gathering of this fence ──together──▶ kvs.gather to the parent (at rank 0: leader.fence)
    FenceDone (in a setroot, or alone when it failed) ─▶ the clients that wait here

Processes that fence again and again do it from the same places. So a broker holds what it has, up to HOLD_S, until as many
contributions are here as came by it in the last fence of that size: then each link carries one message.

Invariants: a client's request is answered once; a fence that is done is forgotten.
"""

from __future__ import annotations

from fluxmpi.errors import FluxmpiError, InvalidRequest
from fluxmpi.kvs.fence import Gathering
from fluxmpi.kvs.wire import CommitId, Fence, FenceDone
from fluxmpi.machine import NEVER
from fluxmpi.message import RESPONSE, Message, control

HOLD_S = 0.002
SIZES_MAX = 1024
"""Sizes of fences of which the usual count is remembered."""

FENCES_MAX = 100_000
"""Fences that gather at one broker at a time."""


class Gatherings:
    def __init__(self) -> None:
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._waiters: dict[CommitId, list[Message]] = {}
        self._outlets: dict[tuple[str, str], float] = {}
        """Fences with something to send up, and when to do it."""
        self._usual: dict[int, int] = {}
        """Size of a fence to the contributions that came by here in the last one of that size."""

    def __len__(self) -> int:
        return len(self._fences)

    @property
    def deadline(self) -> float:
        """When ``outlets`` will have something."""
        return min(self._outlets.values(), default=NEVER)

    def from_client(self, msg: Message, fence: Fence, now: float) -> None:
        """Take a client's contribution, and keep its request for the outcome."""
        if len(fence.parts) != 1 or fence.objects:
            raise InvalidRequest("a client contributes to a fence once, with its own operations")
        self._add(fence, msg.route[-1], now)
        self._waiters.setdefault(fence.parts[0].id, []).append(msg)

    def from_child(self, msg: Message, fence: Fence, now: float) -> list[Message]:
        """Take a child's; if they cannot be taken, it is told so by a FenceDone for them."""
        try:
            self._add(fence, msg.hop, now)
        except FluxmpiError as error:
            ids = [part.id for part in fence.parts]
            done = FenceDone(fence.namespace, fence.name, ids, 0, error.code, error.text)
            return [control("kvs.fence-done", done, msg.hop)]
        return []

    def _add(self, fence: Fence, hop: int, now: float) -> None:
        key = fence.namespace, fence.name
        gathering = self._fences.get(key)
        if gathering is None:
            if len(self._fences) >= FENCES_MAX:
                raise InvalidRequest(f"{FENCES_MAX} fences are under way already")
            gathering = Gathering(fence)
        fresh = gathering.add(fence, hop)
        if gathering.parts:
            self._fences[key] = gathering
        if fresh:  # else there is nothing to send: an empty message that comes after the fence would make one anew above
            if len(gathering.parts) >= self._usual.get(fence.size, 0):
                self._outlets[key] = now
            else:
                self._outlets.setdefault(key, now + HOLD_S)

    def outlets(self, now: float) -> list[Fence]:
        """What is to go up now, one message per fence."""
        due = [key for key, at in self._outlets.items() if at <= now]
        for key in due:
            del self._outlets[key]
        return [self._fences[key].outlet() for key in due]

    def done(self, done: FenceDone, body: bytes, now: float) -> list[Message]:
        """The outcome for some contributors: answer those that wait here with ``body``."""
        key = done.namespace, done.name
        gathering = self._fences.get(key)
        if gathering is not None and any(commit_id in gathering.parts for commit_id in done.ids):
            self._remember(gathering.size, len(gathering.parts))
            if gathering.forget(done.ids):
                self._outlets[key] = now
            else:
                del self._fences[key]
                self._outlets.pop(key, None)
        if not self._waiters:
            return []
        out = []
        for commit_id in done.ids:
            for msg in self._waiters.pop(commit_id, ()):
                out.append(Message(RESPONSE, msg.topic, tag=msg.tag, status=done.status, route=msg.route, body=body))
        return out

    def _remember(self, size: int, count: int) -> None:
        self._usual.pop(size, None)
        self._usual[size] = count
        if len(self._usual) > SIZES_MAX:
            del self._usual[next(iter(self._usual))]

    def check(self) -> None:
        assert all(key in self._fences for key in self._outlets)
        assert all(gathering.parts for gathering in self._fences.values())
