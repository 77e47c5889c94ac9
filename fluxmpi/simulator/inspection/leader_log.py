"""The leader's log: every request to the leader, in its order, and the answers.

It wraps the leader's methods and changes nothing.

    leader.commit ──▶ pending ──ticks──▶ LoggedRequest(ids, outcome: a version, or an error)
    leader.adds ──▶ the same, of several ids
    leader.fence ──▶ contributors are counted here too; the last one makes the fence pending
    reset (a restored checkpoint) ──▶ LoggedRequest(reset)

``leader_replay`` applies the requests of a namespace in order. Only message records are used, nothing of how the leader
makes versions: so a leader's mistake is not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.wire import (
    Added,
    Adds,
    Commit,
    CommitId,
    Committed,
    Fence,
    FenceDone,
    RootInfo,
    SavedNamespace,
    Setroot,
)
from fluxmpi.message import CONTROL, OK, REQUEST, RESPONSE, Body, Message
from fluxmpi.overlay.wire import Published
from fluxmpi.simulator.cluster import Shape

_decode_commit = Body(Commit)
_decode_fence = Body(Fence)
_decode_done = Body(FenceDone)
_decode_setroot = Body(Setroot)
_decode_adds = Body(Adds)
_decode_answer = {"leader.commit": Body(Committed), "leader.adds": Body(Added)}
_decode_published = Body(Published)

NO_OUTCOME = -2
"""Status of a request without an outcome."""

_LoggedKey = tuple[tuple[int, ...], int]
"""Route and tag: they identify a request."""


@dataclass(slots=True)
class LoggedRequest:
    """``version`` 0 with ``status`` not OK: it failed. ``reset``: no commit, but a version that a restore made.

    ``answer``: the leader's. ``adds``: combined additions. ``newest``: the newest version when it was answered.
    """

    namespace: str
    ids: list[CommitId]
    fence: str | None = None
    version: int = 0
    status: int = NO_OUTCOME
    reset: Ref | None = None
    adds: Adds | None = None
    answer: Any = None
    newest: int = 0

    def __str__(self) -> str:
        what = "restore" if self.reset else f"fence {self.fence}" if self.fence else "adds" if self.adds else "commit"
        return f"{what} of {', '.join(f'{i.client}/{i.serial}' for i in self.ids)}"


@dataclass(slots=True)
class _Fence:
    size: int
    ids: dict[CommitId, None] = field(default_factory=dict)


class LeaderLog:
    """``problems``: mistakes that need no model to be noticed. ``shape``: has what the leader may refuse, and drop."""

    def __init__(self, leader: Leader, shape: Shape) -> None:
        self.shape = shape
        self.first = {root.namespace: root for root in leader.roots()}
        self.requests: dict[str, list[LoggedRequest]] = {name: [] for name in self.first}
        self.setroots: dict[str, list[Setroot]] = {name: [] for name in self.first}
        self.times: dict[str, list[float]] = {name: [] for name in self.first}
        """When each of ``setroots`` was made."""
        self.published: dict[tuple[str, int], list[tuple[str, bytes]]] = {}
        """Namespace and version to the events that were published with it, after its setroot."""
        self.problems: list[str] = []
        self.resent = 0
        self._pending: dict[str, list[tuple[_LoggedKey | None, LoggedRequest]]] = {}
        self._fences: dict[tuple[str, str], _Fence] = {}
        self._completed: dict[CommitId, None] = {}
        """Contributors of the fences that became complete in this turn."""
        self._done: dict[CommitId, FenceDone] = {}
        self._leader = leader
        self._step, self._tick, self._reset, self._create = leader.step, leader.tick, leader.reset, leader.create
        for name, method in (("step", self.step), ("tick", self.tick), ("reset", self.reset), ("create", self.create)):
            setattr(leader, name, method)

    # ------------------------------------------------------------------------------------------------ wrapped methods

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == REQUEST and msg.topic in _decode_answer:
            key, name = _key(msg), ""
            if msg.topic == "leader.commit":
                commit: Commit = _decode_commit(msg)
                entry = LoggedRequest(commit.namespace, [commit.id])
            else:
                adds: Adds = _decode_adds(msg)
                entry = LoggedRequest(adds.namespace, [part.id for part in adds.parts], adds=adds)
            name = entry.namespace
            out = self._step(msg, now)
            if not any(sent.kind == RESPONSE and _key(sent) == key for sent in out):
                self._pending.setdefault(name, []).append((key, entry))
            return out
        if msg.kind == CONTROL and msg.topic == "leader.fence":
            fence = _decode_fence(msg)
            out = self._step(msg, now)
            self._contributed(fence, out)
            return out
        if msg.kind == CONTROL and msg.topic == "leader.fence-break":
            out = self._step(msg, now)
            self._broke(out)
            return out
        return self._step(msg, now)

    def tick(self, now: float) -> list[Message]:
        out = self._tick(now)
        outcomes: dict[_LoggedKey, tuple[int, int, Any]] = {}
        asked = {key: entry for pending in self._pending.values() for key, entry in pending if key is not None}
        fences: dict[tuple[str, str], FenceDone] = {}
        for msg in out:
            if msg.kind == RESPONSE:
                answer = _decode_answer[msg.topic](msg) if msg.status == OK else None
                outcome = answer.version if answer is not None else 0, msg.status, answer
                if outcomes.setdefault(_key(msg), outcome) != outcome:
                    self.problems.append(f"leader: two answers to one request: {msg.topic} {msg.route} {msg.tag}")
                elif _key(msg) in asked:
                    entry = asked[_key(msg)]
                    entry.newest = self._newest(entry.namespace)
            elif msg.topic == "kvs.setroot":
                setroot = _decode_setroot(msg)
                self._made(setroot, now)
                fences.update(((done.namespace, done.name), done) for done in setroot.fences)
            elif msg.topic == "kvs.fence-done":
                done = _decode_done(msg)
                fences[done.namespace, done.name] = done
            elif msg.topic == "event.committed":
                self._published(_decode_published(msg))
        for done in fences.values():
            self._done.update(dict.fromkeys(done.ids, done))
            for commit_id in done.ids:
                self._completed.pop(commit_id, None)
        for name, pending in self._pending.items():
            for key, entry in pending:
                if key in outcomes:
                    entry.version, entry.status, entry.answer = outcomes[key]
                elif key is None and (name, entry.fence or "") in fences and entry.status == NO_OUTCOME:
                    done = fences.pop((name, entry.fence or ""))
                    entry.version, entry.status = done.version, done.status
            while pending and pending[0][1].status != NO_OUTCOME:
                self.requests[name].append(pending.pop(0)[1])
            if pending and self._leader.deadline > now + 1.0 and not self._leader.waits_for_room:
                self.problems.append(f"leader: {pending[0][1]} was accepted, and will have no outcome")
        return out

    def _published(self, published: Published) -> None:
        namespace, version, ref, time = published.snapshot
        made = self.setroots[namespace][-1]
        if (version, ref, time) != (made.version, made.ref, made.time) or (namespace, version) in self.published:
            self.problems.append(f"events: {published.events} name version {version}, after setroot {made.version}")
        self.published[namespace, version] = [(topic, bytes(payload)) for topic, payload in published.events]

    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]:
        """Create a namespace; one that is created again continues its versions, with another root."""
        root, out = self._create(name, owner, ref, now)
        self._begun(root, out, now)
        return root, out

    def reset(self, saved: SavedNamespace, now: float) -> tuple[RootInfo, list[Message]]:
        root, out = self._reset(saved, now)
        self._begun(root, out, now)
        return root, out

    def _begun(self, root: RootInfo, out: list[Message], now: float) -> None:
        namespace = root.namespace
        if namespace not in self.requests:
            self.first[namespace] = root
            self.requests[namespace], self.setroots[namespace], self.times[namespace] = [], [], []
            return
        self.requests[namespace].append(LoggedRequest(namespace, [], version=root.version, status=OK, reset=root.ref))
        for msg in out:
            self._made(_decode_setroot(msg), now)

    # ------------------------------------------------------------------------------------------------------- the log

    def _made(self, setroot: Setroot, now: float) -> None:
        name = setroot.namespace
        made, last = self.setroots[name], self._newest(name)
        if setroot.version != last + 1:
            self.problems.append(f"versions: the leader made version {setroot.version} of {name} after {last}")
        before = made[-1].time if made else self.first[name].time if name in self.first else 0.0
        if setroot.time < before:
            self.problems.append(f"versions: version {setroot.version} of {name} is of {setroot.time}, after {before}")
        made.append(setroot)
        self.times[name].append(now)

    def _newest(self, name: str) -> int:
        """Return the newest version by the leader's messages so far."""
        made = self.setroots.get(name)
        return made[-1].version if made else self.first[name].version if name in self.first else 0

    def _contributed(self, fence: Fence, out: list[Message]) -> None:
        """Count the contributors: each id once, none of a fence that is done, all of one size."""
        key = fence.namespace, fence.name
        outcomes = [_decode_done(msg) for msg in out if msg.topic == "kvs.fence-done"]
        answered = {commit_id: done for done in outcomes for commit_id in done.ids}
        for part in fence.parts:
            if part.id in self._done:
                self.resent += 1
                was, now = self._done[part.id], answered.get(part.id)
                same = now is not None and (now.version, now.status) == (was.version, was.status)
                if not same and (now is None or "was answered already" not in now.text):
                    self.problems.append(
                        f"fences: {part.id} was sent again after {key} was done, and did not get its outcome"
                    )
            elif part.id not in answered and part.id not in self._completed:
                self._fences.setdefault(key, _Fence(fence.size)).ids[part.id] = None
        gathered = self._fences.get(key)
        if gathered is not None and len(gathered.ids) >= gathered.size:
            del self._fences[key]
            self._completed.update(gathered.ids)
            self._pending.setdefault(key[0], []).append((None, LoggedRequest(key[0], list(gathered.ids), fence=key[1])))

    def _broke(self, out: list[Message]) -> None:
        """Assert that a broken fence names exactly the contributions that it had."""
        for done in map(_decode_done, out):
            key = done.namespace, done.name
            gathered = self._fences.pop(key, None)
            if gathered is None or list(gathered.ids) != done.ids:
                self.problems.append(f"fences: {key} broke for {done.ids}, and had {gathered and list(gathered.ids)}")
            self._done.update(dict.fromkeys(done.ids, done))

    @property
    def incomplete_fences(self) -> int:
        return len(self._fences)

    def version_at(self, namespace: str, time: float) -> int:
        """Return the newest version that rank 0 had at that time."""
        version = self.first[namespace].version
        for setroot, made in zip(self.setroots[namespace], self.times[namespace], strict=True):
            if made > time:
                break
            version = setroot.version
        return version


def _key(msg: Message) -> _LoggedKey:
    return tuple(msg.route), msg.tag
