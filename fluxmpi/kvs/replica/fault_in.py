"""Reads suspended on a missing blob, resumed when it arrives.

A *walk* is a generator. It yields what it lacks, a list of refs or a ``PathRequest`` (a node and the names to be found
below it), is sent what was loaded, a dict of ref to blob, and continues. It returns the messages that answer its
request. It yields a message that is to be sent before the end, and is sent None. It yields None to pause until another
turn (``resume_paused``), so that the broker serves others meanwhile. A walk that lacks nothing runs to its end at once.

    start ──refs──▶ content.load each, here ──all arrived──────────────────▶ resume where it stopped ──▶ …
          └─Path──▶ kvs.path to the parent ──all nodes on the path at once─┘

A path costs one round trip, where its nodes one by one would cost one each. Walks that lack the same node share its
path.

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
AskPath = Callable[[PathRequest], Message | None]
Keep = Callable[[bytes], Ref]
OnFailure = Callable[[FluxmpiError], list[Message]]
ReportDefect = Callable[[str, Exception], FluxmpiError]

_decode_blobs = Body(list[bytes])


@dataclass(slots=True, eq=False)
class _Suspended:
    """``waiting``: responses still to come. ``dropped``: its client has disconnected.

    ``what``: the topic of a read or a watch; an exception of its walk concerns it alone. Empty if that is not so.
    """

    walk: Walk
    fail: OnFailure
    route: list[int]
    what: str = ""
    waiting: int = 0
    loaded: dict[Ref, bytes] = field(default_factory=dict)
    error: FluxmpiError | None = None
    dropped: bool = False


class FaultIn:
    """``count``: walks that are suspended or paused."""

    def __init__(self, load: Load, ask_path: AskPath, keep: Keep, report: ReportDefect) -> None:
        """``load`` makes the request for a blob, ``ask_path`` the one for a path, or None where there is no parent.

        ``keep`` digests a blob that came with a path, puts it into the cache, and returns its ref. ``report`` reports an
        exception of a walk that is a defect, and makes the error for its request.
        """
        self.report = report
        self._load = load
        self._ask_path = ask_path
        self._keep = keep
        self._loads: dict[int, tuple[_Suspended, Ref]] = {}
        self._paths: dict[int, tuple[Ref, list[_Suspended]]] = {}
        self._path_tags: dict[Ref, int] = {}
        """First node of a requested path → the request's tag."""
        self._paused: deque[_Suspended] = deque()
        self.count = 0
        self._held: dict[tuple[int, ...], int] = {}
        """Route → the walks among them that answer its requests."""

    def start(self, walk: Walk, fail: OnFailure, msg: Message) -> list[Message]:
        """Run ``walk``, which answers ``msg`` and changes nothing, to its end or to its first missing blob.

        ``fail`` makes the messages of a walk that raised.
        """
        return self._resume(_Suspended(walk, fail, msg.route, msg.topic), None)

    def suspend(self, walk: Walk, missing: list[Ref] | PathRequest, fail: OnFailure, what: str) -> list[Message]:
        """Take over a walk that its caller ran to the first missing blob."""
        return self._suspend(_Suspended(walk, fail, [], what), missing)

    def drop(self, route: list[int]) -> None:
        """Drop a disconnected client's walks: paused ones now, suspended ones when their blobs arrive."""
        for suspended in [suspended for suspended in self._paused if suspended.route == route]:
            self._paused.remove(suspended)
            self._count(suspended, -1)
            suspended.walk.close()
        for suspended, _ in self._loads.values():
            suspended.dropped |= suspended.route == route
        for _, waiting in self._paths.values():
            for suspended in waiting:
                suspended.dropped |= suspended.route == route

    def held(self, route: list[int]) -> int:
        """Return how many walks of this client wait."""
        return self._held.get(tuple(route), 0)

    def _count(self, suspended: _Suspended, change: int) -> None:
        self.count += change
        if suspended.route:
            client = tuple(suspended.route)
            held = self._held.get(client, 0) + change
            if held:
                self._held[client] = held
            else:
                del self._held[client]

    @property
    def has_paused(self) -> bool:
        return bool(self._paused)

    def resume_paused(self) -> list[Message]:
        """Continue the walk that has been paused longest."""
        return self._end_wait(self._paused.popleft()) if self._paused else []

    def owns(self, tag: int) -> bool:
        return tag in self._loads or tag in self._paths

    def loaded(self, msg: Message) -> list[Message]:
        """Take the response to a load or a path."""
        if msg.tag in self._paths:
            return self._path_loaded(msg)
        suspended, ref = self._loads.pop(msg.tag)
        suspended.waiting -= 1
        if msg.status == OK:
            suspended.loaded[ref] = msg.body
        else:
            suspended.error = decode_error(msg.status, msg.body)
        return [] if suspended.waiting else self._end_wait(suspended)

    def _path_loaded(self, msg: Message) -> list[Message]:
        """Resume all walks that wait for the path's first node, with all blobs on the path."""
        ref, waiting = self._paths.pop(msg.tag)
        del self._path_tags[ref]
        blobs: dict[Ref, bytes] = {}
        error: FluxmpiError | None = None
        try:
            if msg.status != OK:
                raise decode_error(msg.status, msg.body)
            blobs = {self._keep(blob): blob for blob in _decode_blobs(msg)}
            if ref not in blobs:
                raise DigestMismatch(f"kvs.path: the answer lacks node {ref_text(ref)}, which was asked for")
        except FluxmpiError as problem:
            error = problem
        out = []
        for suspended in waiting:
            suspended.waiting = 0
            suspended.loaded, suspended.error = blobs, error
            out += self._end_wait(suspended)
        return out

    def _end_wait(self, suspended: _Suspended) -> list[Message]:
        self._count(suspended, -1)
        if suspended.dropped:
            suspended.walk.close()
            return []
        if suspended.error is not None:
            suspended.walk.close()
            return suspended.fail(suspended.error)
        blobs, suspended.loaded = suspended.loaded, {}
        return self._resume(suspended, blobs)

    def _resume(self, suspended: _Suspended, blobs: dict[Ref, bytes] | None) -> list[Message]:
        out: list[Message] = []
        try:
            step = suspended.walk.send(blobs)
            while isinstance(step, Message):
                out.append(step)
                step = next(suspended.walk)
        except StopIteration as end:
            answers: list[Message] = end.value
            return out + answers
        except FluxmpiError as error:
            return out + suspended.fail(error)
        except Exception as error:
            if not suspended.what:
                raise
            return out + suspended.fail(self.report(suspended.what, error))
        return out + self._suspend(suspended, step)

    def _suspend(self, suspended: _Suspended, step: list[Ref] | PathRequest | None) -> list[Message]:
        """Request what the walk lacks, or let it wait for its turn."""
        self._count(suspended, 1)
        if step is None:
            self._paused.append(suspended)
            return []
        return (
            self._request_path(suspended, step)
            if isinstance(step, PathRequest)
            else self._request_blobs(suspended, step)
        )

    def _request_blobs(self, suspended: _Suspended, refs: list[Ref]) -> list[Message]:
        asked = []
        for ref in dict.fromkeys(refs):
            ask = self._load(ref)
            self._loads[ask.tag] = (suspended, ref)
            asked.append(ask)
        suspended.waiting = len(asked)
        return asked

    def _request_path(self, suspended: _Suspended, path: PathRequest) -> list[Message]:
        suspended.waiting = 1
        tag = self._path_tags.get(path.ref)
        if tag is not None:
            self._paths[tag][1].append(suspended)
            return []
        ask = self._ask_path(path)
        if ask is None:
            return self._request_blobs(suspended, [path.ref])
        self._paths[ask.tag] = (path.ref, [suspended])
        self._path_tags[path.ref] = ask.tag
        return [ask]

    def check(self) -> None:
        assert sum(self._held.values()) <= self.count
        assert len(self._paths) == len(self._path_tags)
        assert all(waiting for _, waiting in self._paths.values())
