"""Whom a version concerns, found and told in slices: neither a version of many keys, nor one key of ten thousand watchers,
keeps a broker from serving.

    setroot ─▶ pending ─▶ find, by its keys, or by one diff for all watchers ─▶ todo ─▶ tell, TELL_MAX at a time
                   └── too many wait: one Arrival for all of them; whom that concerns takes them from the history, at its own pace

A version that names few keys and concerns few is done with at once (AT_ONCE_MAX), if none waits before it.

The versions of a namespace go through one by one: who is told of one has been told of those before. One who begins to watch
meanwhile begins at a later version, or is told of the same ones twice and looks once (``Watcher.pushed``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from itertools import islice

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Link
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.watch.evaluator import Evaluator
from fluxmpi.kvs.watch.index import Arrival, Concerned, WatchIndex
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import Message

ASK_ALL_MAX = 16
"""So many watchers are all asked, where changed keys are not known; for more they are found, once for all."""

FIND_MAX = 10_000
"""Versions of a namespace that may wait here: as many as a broker has in its history."""

FIND_KEYS_MAX = 1_000_000
"""Keys that they may name together: some 100 MB."""

PART_STEPS = 2000
"""Of finding and telling in one part, each about a microsecond."""

AT_ONCE_MAX = 16
"""A version of so many keys, which concerns so many watchers, is done with as soon as it is here."""

TELL_MAX = 400
"""Watchers told together."""

TELL_STEPS, DIFF_STEPS = 5, 1200
"""What it weighs to tell one, and a part of a diff."""

Part = Generator[list[Ref], dict[Ref, bytes], list[Message]]


class Notifier:
    """``tell`` puts a version into the queue of a watcher; it gives the messages of one that ends instead."""

    def __init__(self, looking: Evaluator, nodes: NodeCache, tell: Callable[[Watcher, Arrival], list[Message]]) -> None:
        self._looking = looking
        self._nodes = nodes
        self._tell = tell
        self.steps = 0
        """Taken so far."""

    def arrived(
        self, watches: WatchIndex, before: RootInfo | None, root: RootInfo, keys: list[str] | None
    ) -> list[Message]:
        pending = watches.pending
        if not (pending or watches.busy) and keys is not None and len(keys) <= AT_ONCE_MAX:
            return self._at_once(watches, Arrival(before, root, keys))
        if pending and pending[-1].history and pending[-1].todo is None:
            return []  # it stands for this one as well
        pending.append(Arrival(before, root, keys))
        watches.pending_keys += len(keys or ())
        if len(pending) > FIND_MAX or watches.pending_keys > FIND_KEYS_MAX:
            self.give_up(watches)
        return []

    def _at_once(self, watches: WatchIndex, arrival: Arrival) -> list[Message]:
        """Tell those whom a version with few keys concerns, if they are few; else it waits."""
        found = self._by_keys(watches, arrival)
        if found is not None and len(found) + len(watches.always) <= AT_ONCE_MAX:
            if watches.always:
                found.update(watches.always)
            out: list[Message] = []
            for watcher in found:
                out += self._tell(watcher, arrival)
            return out
        watches.pending.append(arrival)
        watches.pending_keys += len(arrival.keys or ())
        return []

    def give_up(self, watches: WatchIndex) -> None:
        """One for all that wait, but the first if some have been told of that."""
        pending = watches.pending
        first = pending[0]
        if first.todo is not None and len(pending) > 1:
            first = pending[1]
        while pending[-1] is not first:
            pending.pop()
        pending[-1] = Arrival(None, first.root, None, history=True)
        watches.pending_keys = sum(len(arrival.keys or ()) for arrival in pending)

    def part(self, watches: WatchIndex) -> Part:
        """Go on with the versions that wait, for PART_STEPS or a little more."""
        out: list[Message] = []
        begun = self.steps
        while watches.pending and self.steps - begun < PART_STEPS:
            arrival = watches.pending[0]
            if arrival.todo is None:
                found = yield from self._find(watches, arrival)
                if not watches.pending or watches.pending[0] is not arrival:  # removed, or given up meanwhile
                    break
                if found is None:
                    continue
                arrival.todo = iter({**found, **watches.always})
                arrival.diff = arrival.concerned = None
            out += self._told(watches, arrival, TELL_MAX)
        return out

    def _told(self, watches: WatchIndex, arrival: Arrival, limit: int) -> list[Message]:
        """Tell some of those that are found; when none is left the version is done with."""
        assert arrival.todo is not None
        out: list[Message] = []
        told = 0
        for watcher in islice(arrival.todo, limit):
            out += self._tell(watcher, arrival)
            told += 1
        self.steps += 1 + told * TELL_STEPS
        if told < limit:
            watches.pending.popleft()
            watches.pending_keys -= len(arrival.keys or ())
        return out

    def _asks_all(self, watches: WatchIndex, arrival: Arrival) -> bool:
        if arrival.keys is not None or arrival.diff is not None:
            return False
        return arrival.before is None or len(watches) <= ASK_ALL_MAX

    def _find(
        self, watches: WatchIndex, arrival: Arrival
    ) -> Generator[list[Ref], dict[Ref, bytes], dict[Watcher, None] | None]:
        """The watchers whom it concerns; None while some may be left to be found."""
        if arrival.keys is not None:
            return self._by_keys(watches, arrival)
        if self._asks_all(watches, arrival):
            return dict.fromkeys(watches)
        concerned = arrival.concerned = arrival.concerned or Concerned(watches)
        if arrival.diff is None:
            assert arrival.before is not None
            arrival.diff = Diff(self._nodes, arrival.before.ref, arrival.root.ref, "", watches)
        part = yield from self._looking.slice(arrival.diff)
        self.steps += DIFF_STEPS
        for key, old, new in part.value:
            concerned.met(key, type(old) is Link or type(new) is Link)
        return None if part.more else concerned.watchers

    def _by_keys(self, watches: WatchIndex, arrival: Arrival) -> dict[Watcher, None] | None:
        keys = arrival.keys
        assert keys is not None
        concerned = arrival.concerned = arrival.concerned or Concerned(watches)
        is_directory = partial(self._looking.was_directory, arrival.before, arrival.root)
        begun = watches.steps
        while arrival.place < len(keys) and watches.steps - begun < PART_STEPS:
            concerned.add(keys[arrival.place], is_directory)
            arrival.place += 1
        self.steps += watches.steps - begun
        return concerned.watchers if arrival.place == len(keys) else None
