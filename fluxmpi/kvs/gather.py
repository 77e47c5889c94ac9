"""Fences at one broker: contributions of its clients and children go up together, answers come from the setroot.

    client ─kvs.fence─┐
    child ─kvs.gather─┴▶ Gathering of this fence ──end of the turn──▶ kvs.gather to the parent (at rank 0: leader.fence)
    FenceDone (in a setroot, or alone when it failed) ─▶ the clients that wait here

Invariants: a client's request is answered once; a fence that is done is forgotten.
"""

from __future__ import annotations

from fluxmpi.errors import FluxmpiError, InvalidRequest
from fluxmpi.kvs.fence import Gathering
from fluxmpi.kvs.wire import CommitId, Fence, FenceDone
from fluxmpi.message import RESPONSE, Message, control

FENCES_MAX = 100_000
"""Fences that gather at one broker at a time."""


class Gatherings:
    def __init__(self) -> None:
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._waiters: dict[CommitId, list[Message]] = {}
        self._outlets: dict[tuple[str, str], None] = {}
        """Fences with something to send up at the end of this turn."""

    def __len__(self) -> int:
        return len(self._fences)

    def from_client(self, msg: Message, fence: Fence) -> None:
        """Take a client's contribution, and keep its request for the outcome."""
        if len(fence.parts) != 1 or fence.objects:
            raise InvalidRequest("a client contributes to a fence once, with its own operations")
        self._add(fence, msg.route[-1])
        self._waiters.setdefault(fence.parts[0].id, []).append(msg)

    def from_child(self, msg: Message, fence: Fence) -> list[Message]:
        """Take a child's; if they cannot be taken, it is told so by a FenceDone for them."""
        try:
            self._add(fence, msg.hop)
        except FluxmpiError as error:
            ids = [part.id for part in fence.parts]
            done = FenceDone(fence.namespace, fence.name, ids, 0, error.code, error.text)
            return [control("kvs.fence-done", done, msg.hop)]
        return []

    def _add(self, fence: Fence, hop: int) -> None:
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
            self._outlets[key] = None

    @property
    def waiting(self) -> bool:
        """There is something to send up."""
        return bool(self._outlets)

    def outlets(self) -> list[Fence]:
        """What has come since the last call, one message per fence."""
        outlets, self._outlets = self._outlets, {}
        return [self._fences[key].outlet() for key in outlets]

    def done(self, done: FenceDone, body: bytes) -> list[Message]:
        """The outcome for some contributors: answer those that wait here with ``body``."""
        key = done.namespace, done.name
        gathering = self._fences.get(key)
        if gathering is not None and any(commit_id in gathering.parts for commit_id in done.ids):
            if gathering.forget(done.ids):
                self._outlets[key] = None
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

    def check(self) -> None:
        assert all(key in self._fences for key in self._outlets)
        assert all(gathering.parts for gathering in self._fences.values())
