"""Reads that lack a blob: stalled, not waiting.

A *walk* is a generator over pure steps. It yields the refs that it lacks, and is sent what was loaded: a dict of ref to blob.
What it returns is the messages that answer its request; one that must not wait for the end, it yields, and is sent None. A
walk that lacks nothing runs through at once.

    start ──lacks refs──▶ content.load each ──all arrived──▶ resume where it stopped ──▶ …

A walk is resumed with the blobs in hand, so that a cache too small to hold them cannot make it start over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, decode_error
from fluxmpi.message import OK, Message

Walk = Generator[list[Ref] | Message, dict[Ref, bytes] | None, list[Message]]
Load = Callable[[Ref], Message]
Fail = Callable[[FluxmpiError], list[Message]]


@dataclass(slots=True)
class _Stalled:
    walk: Walk
    fail: Fail
    waiting: int
    loaded: dict[Ref, bytes] = field(default_factory=dict)
    error: FluxmpiError | None = None


class Stalls:
    def __init__(self, load: Load) -> None:
        """``load`` makes the request for a blob, with a tag of its own."""
        self._load = load
        self._by_tag: dict[int, tuple[_Stalled, Ref]] = {}
        self.count = 0

    def start(self, walk: Walk, fail: Fail) -> list[Message]:
        """Run ``walk`` to its end or to its first missing blob. ``fail`` makes the messages of a walk that raised."""
        return self._resume(_Stalled(walk, fail, 0), None)

    def owns(self, tag: int) -> bool:
        return tag in self._by_tag

    def loaded(self, msg: Message) -> list[Message]:
        """The response to one of the loads."""
        stalled, ref = self._by_tag.pop(msg.tag)
        stalled.waiting -= 1
        if msg.status == OK:
            stalled.loaded[ref] = msg.body
        else:
            stalled.error = decode_error(msg.status, msg.body)
        if stalled.waiting:
            return []
        self.count -= 1
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
        missing = dict.fromkeys(step)
        stalled.waiting = len(missing)
        for ref in missing:
            ask = self._load(ref)
            self._by_tag[ask.tag] = (stalled, ref)
            out.append(ask)
        return out
