"""Reads suspended on a missing blob, resumed when it arrives.

A *walk* is a generator over pure steps. It yields what it lacks: a list of refs, or a ``PathRequest``, a node and the names to
be found below it. It is sent what was loaded, a dict of ref to blob, and goes on. What it returns is the messages that answer its
request; one that must not wait for the end, it yields, and is sent None. A walk that lacks nothing runs through at once, unless
it yields None: then it goes on in another turn (``turn``), and the broker has served others meanwhile.

    start ──refs──▶ content.load each, here ──all arrived──────────────────▶ resume where it stopped ──▶ …
          └─Path──▶ kvs.path to the parent ──all nodes on the path at once─┘

A path costs one round trip, where its nodes one by one would cost one each. Walks that lack the same node share its path.

A walk is resumed with the blobs in hand, so that a cache too small to hold them cannot make it start over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from fluxmpi.blobref import Ref
from fluxmpi.errors import DigestMismatch, FluxmpiError, decode_error
from fluxmpi.kvs.store.node import ref_text
from fluxmpi.kvs.wire import PathRequest
from fluxmpi.message import OK, Body, Message

Walk = Generator[list[Ref] | PathRequest | Message | None, dict[Ref, bytes] | None, list[Message]]
Load = Callable[[Ref], Message]
Follow = Callable[[PathRequest], Message | None]
Keep = Callable[[bytes], Ref]
Fail = Callable[[FluxmpiError], list[Message]]

_decode_blobs = Body(list[bytes])


@dataclass(slots=True, eq=False)
class _Stalled:
    walk: Walk
    fail: Fail
    route: list[int]
    waiting: int = 0
    loaded: dict[Ref, bytes] = field(default_factory=dict)
    error: FluxmpiError | None = None
    dropped: bool = False


class FaultIn:
    def __init__(self, load: Load, follow: Follow, keep: Keep) -> None:
        """``load`` makes the request for a blob, ``follow`` the one for a path, or None where there is no parent to ask.

        ``keep`` digests a blob that came with a path, puts it into the cache, and gives its ref.
        """
        self._load = load
        self._follow = follow
        self._keep = keep
        self._loads: dict[int, tuple[_Stalled, Ref]] = {}
        self._paths: dict[int, tuple[Ref, list[_Stalled]]] = {}
        self._path_tags: dict[Ref, int] = {}
        """The path under way that begins with this node."""
        self._paused: deque[_Stalled] = deque()
        """In order of their turn."""
        self.count = 0

    def start(self, walk: Walk, fail: Fail, route: list[int] | None = None) -> list[Message]:
        """Run ``walk`` to its end or to its first missing blob. ``fail`` makes the messages of a walk that raised.

        ``route``: of the request that it answers, by which it can be dropped.
        """
        return self._resume(_Stalled(walk, fail, route or []), None)

    def drop(self, route: list[int]) -> None:
        """Who asked this way is gone: a walk that waits for its turn ends now, and one that waits for blobs when they come."""
        for stalled in [stalled for stalled in self._paused if stalled.route == route]:
            self._paused.remove(stalled)
            self.count -= 1
            stalled.walk.close()
        for stalled, _ in self._loads.values():
            stalled.dropped |= stalled.route == route
        for _, waiting in self._paths.values():
            for stalled in waiting:
                stalled.dropped |= stalled.route == route

    @property
    def paused(self) -> bool:
        """A walk waits for a turn."""
        return bool(self._paused)

    def turn(self) -> list[Message]:
        """Let the walk go on that paused first."""
        return self._go_on(self._paused.popleft()) if self._paused else []

    def owns(self, tag: int) -> bool:
        return tag in self._loads or tag in self._paths

    def loaded(self, msg: Message) -> list[Message]:
        """The response to one of the loads or paths."""
        if msg.tag in self._paths:
            return self._path_answered(msg)
        stalled, ref = self._loads.pop(msg.tag)
        stalled.waiting -= 1
        if msg.status == OK:
            stalled.loaded[ref] = msg.body
        else:
            stalled.error = decode_error(msg.status, msg.body)
        return [] if stalled.waiting else self._go_on(stalled)

    def _path_answered(self, msg: Message) -> list[Message]:
        """All that is on the path goes to all that wait for its first node."""
        ref, waiting = self._paths.pop(msg.tag)
        del self._path_tags[ref]
        blobs: dict[Ref, bytes] = {}
        error: FluxmpiError | None = None
        try:
            if msg.status != OK:
                raise decode_error(msg.status, msg.body)
            blobs = {self._keep(blob): blob for blob in _decode_blobs(msg)}
            if ref not in blobs:
                raise DigestMismatch(f"node {ref_text(ref)} was asked for, and is not among what came")
        except FluxmpiError as problem:
            error = problem
        out = []
        for stalled in waiting:
            stalled.waiting = 0
            stalled.loaded, stalled.error = blobs, error
            out += self._go_on(stalled)
        return out

    def _go_on(self, stalled: _Stalled) -> list[Message]:
        self.count -= 1
        if stalled.dropped:
            stalled.walk.close()
            return []
        if stalled.error is not None:
            stalled.walk.close()
            return stalled.fail(stalled.error)
        blobs, stalled.loaded = stalled.loaded, {}
        return self._resume(stalled, blobs)

    def _resume(self, stalled: _Stalled, blobs: dict[Ref, bytes] | None) -> list[Message]:
        out: list[Message] = []
        try:
            step = stalled.walk.send(blobs)
            while isinstance(step, Message):
                out.append(step)
                step = next(stalled.walk)
        except StopIteration as end:
            return out + end.value
        except FluxmpiError as error:
            return out + stalled.fail(error)
        self.count += 1
        if step is None:
            self._paused.append(stalled)
            return out
        return out + (self._ask_path(stalled, step) if isinstance(step, PathRequest) else self._ask(stalled, step))

    def _ask(self, stalled: _Stalled, refs: list[Ref]) -> list[Message]:
        asked = []
        for ref in dict.fromkeys(refs):
            ask = self._load(ref)
            self._loads[ask.tag] = (stalled, ref)
            asked.append(ask)
        stalled.waiting = len(asked)
        return asked

    def _ask_path(self, stalled: _Stalled, path: PathRequest) -> list[Message]:
        stalled.waiting = 1
        tag = self._path_tags.get(path.ref)
        if tag is not None:
            self._paths[tag][1].append(stalled)
            return []
        ask = self._follow(path)
        if ask is None:
            return self._ask(stalled, [path.ref])
        self._paths[ask.tag] = (path.ref, [stalled])
        self._path_tags[path.ref] = ask.tag
        return [ask]

    def check(self) -> None:
        assert len(self._paths) == len(self._path_tags)
        assert all(waiting for _, waiting in self._paths.values())
