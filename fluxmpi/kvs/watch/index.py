"""The watch index of one namespace: its watchers, and the versions whose watchers have still to be found.

    new version ─┬─ few keys, few matches ────────────────────────────▶ handed to the watchers on arrival
                 └─▶ pending ─▶ matched in slices ─▶ handed over in slices ─▶ done
                        └── too many are pending: one entry replaces them; the watchers take those versions from the log

Watchers are found by the changed keys that the setroot names, in a trie of patterns. If it names none, one diff of the
two trees finds the changed keys that any watcher matches.

Invariants: versions are matched one by one, in order; a watcher is handed versions in order. A watcher that begins
while versions are pending begins at the newest; it ignores the older ones (``Watcher.accept``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Link
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.node import Found
from fluxmpi.kvs.store.pattern import KeyFilter
from fluxmpi.kvs.store.pattern_trie import MatchSet, PatternTrie, TrieNode
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.watch.watcher import Watcher
from fluxmpi.kvs.wire import RootInfo


class Trees(Protocol):
    """Comparison of two versions' trees; implemented by ``Evaluator``."""

    def was_directory(self, before: RootInfo | None, root: RootInfo, key: str) -> bool: ...
    def diff(self, before: RootInfo, root: RootInfo, key_filter: KeyFilter[tuple[TrieNode[Watcher], ...]]) -> Diff: ...
    def advance(self, diff: Diff) -> Generator[list[Ref], dict[Ref, bytes], Found]: ...


@dataclass(slots=True, eq=False)
class PendingVersion:
    """A version whose watchers have still to be found or handed the version.

    ``before``: the version before it; None if it is unknown. ``keys``: the changed keys; None if they are unknown.
    ``appends``: those that were only appended to, as in ``Setroot``.
    ``by_reference``: it put values by reference, or perhaps did.
    ``all_later``: this entry stands for all later versions too, whose watchers are not searched for.
    """

    before: RootInfo | None
    root: RootInfo
    keys: list[str] | None
    appends: dict[str, list[int]] | None = None
    by_reference: bool = False
    all_later: bool = False
    keys_done: int = 0
    diff: Diff | None = None
    """Of the two trees, if the keys are unknown."""
    matches: MatchSet[Watcher] | None = None
    watchers: Iterator[Watcher] | None = None
    """All are found; the version has still to be handed to these."""


class WatchIndex:
    """The watchers of one namespace, whether it exists or not, and those that links led into it."""

    def __init__(self, namespace: str, limits: WatchLimits) -> None:
        self.namespace = namespace
        self.trie: PatternTrie[Watcher] = PatternTrie()
        self._limits = limits
        self._watchers: dict[Watcher, None] = {}
        self.linked: dict[Watcher, None] = {}
        """Watchers whose key leads through a link, maybe of another namespace: every version may match them."""
        self._waiting: dict[Watcher, None] = {}
        """Watchers that wait until the namespace exists."""
        self._starting = False
        """A chore begins some of these."""
        self._progress: dict[Watcher, None] = {}
        """Watchers whose client asked for progress up to a version that is pending."""
        self.pending: deque[PendingVersion] = deque()
        """Oldest first."""
        self._pending_keys = 0
        self._busy = self._ready = False
        """A slice is matched; or the index is queued for the next one."""
        self._steps = 0

    def __len__(self) -> int:
        return len(self._watchers)

    def __contains__(self, watcher: Watcher) -> bool:
        return watcher in self._watchers

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._watchers))

    @property
    def steps(self) -> int:
        """Steps of matching so far."""
        return self._steps + self.trie.steps

    @property
    def idle(self) -> bool:
        """True if the index is empty and may be dropped."""
        return not (self._watchers or self.linked or self._busy or self._ready or self.pending)

    def add(self, watcher: Watcher) -> None:
        self._watchers[watcher] = None
        self.trie.add(watcher.pattern, watcher)

    def remove(self, watcher: Watcher) -> None:
        for group in (self.linked, self._waiting, self._progress):
            group.pop(watcher, None)
        if watcher in self._watchers:
            del self._watchers[watcher]
            self.trie.remove(watcher.pattern, watcher)

    def link(self, watcher: Watcher) -> None:
        """Let every version match a watcher that a link leads into this namespace."""
        self.linked[watcher] = None

    # --------------------------------------------------------------------------------------------- waiting to begin

    def wait(self, watcher: Watcher) -> None:
        """Keep a watcher until the namespace, or the version to begin at, exists."""
        self._waiting[watcher] = None

    def start_waiting(self) -> bool:
        """Return True if a chore must begin watchers that wait, and none does so yet."""
        if self._starting or not self._waiting:
            return False
        self._starting = True
        return True

    def waiting_for(self, version: int) -> list[Watcher]:
        """Return the watchers that wait for this version, or an older one."""
        return [watcher for watcher in self._waiting if watcher.watch.at_least <= version]

    def stop_waiting(self, watcher: Watcher) -> bool:
        """Let a watcher begin. False if it does not wait any more."""
        if watcher not in self._waiting:
            return False
        del self._waiting[watcher]
        return True

    def all_started(self) -> None:
        """End the chore."""
        self._starting = False

    # ---------------------------------------------------------------------------------------------- pending versions

    def queue(self) -> bool:
        """Queue for matching. False: nothing is pending, or the index is queued, or a slice is matched."""
        if not self.pending or self._ready or self._busy:
            return False
        self._ready = True
        return True

    def start(self) -> None:
        """Leave the queue, and match a slice."""
        self._ready, self._busy = False, True

    def stop(self) -> dict[Watcher, None]:
        """End a slice. Return the watchers whose progress depended on it."""
        self._busy = False
        watchers, self._progress = self._progress, {}
        return watchers

    def wait_for_progress(self, watcher: Watcher) -> None:
        """Keep a watcher whose progress depends on a pending version until the next slice is matched."""
        self._progress[watcher] = None

    def append(self, version: PendingVersion) -> None:
        """Add a new version, to be matched later."""
        pending, limits = self.pending, self._limits
        if pending and pending[-1].all_later and pending[-1].watchers is None:
            return  # that entry stands for this version too
        pending.append(version)
        self._pending_keys += len(version.keys or ())
        if len(pending) > limits.versions_max or self._pending_keys > limits.keys_max:
            self.give_up()

    def give_up(self) -> None:
        """Replace all pending versions by one entry, except the first if it was handed to some watchers already."""
        pending = self.pending
        first = pending[0]
        if first.watchers is not None and len(pending) > 1:
            first = pending[1]
        while pending[-1] is not first:
            pending.pop()
        pending[-1] = PendingVersion(None, first.root, None, by_reference=True, all_later=True)
        self._pending_keys = sum(len(version.keys or ()) for version in pending)

    def clear_pending(self) -> None:
        self.pending.clear()
        self._pending_keys = 0

    def is_pending(self, version: int) -> bool:
        """Whether this version, or one before it, has still to be matched."""
        return bool(self.pending) and self.pending[0].root.version <= version

    # ------------------------------------------------------------------------------------------------------ matching

    def match_at_once(self, version: PendingVersion, trees: Trees) -> dict[Watcher, None] | None:
        """Return the watchers that a new version matches; None if it must become pending.

        That is so if it has many keys, matches many watchers, or others are pending before it.
        """
        at_once_max, keys = self._limits.at_once_max, version.keys
        if self.pending or self._busy or keys is None or len(keys) > at_once_max:
            return None
        found = self._match_keys(version, keys, trees)
        if found is None or len(found) + len(self.linked) > at_once_max:
            return None
        if self.linked:
            found.update(self.linked)
        return found

    def match(self, trees: Trees) -> Generator[list[Ref], dict[Ref, bytes], bool]:
        """Match a slice of the first pending version. False if that version is not pending any more."""
        version = self.pending[0]
        found: dict[Watcher, None] | None
        if version.keys is not None:
            found = self._match_keys(version, version.keys, trees)
        elif version.diff is None and (version.before is None or len(self) <= self._limits.match_all_max):
            found = dict.fromkeys(self._watchers)
        else:
            found = yield from self._match_diff(version, trees)
            if not self.pending or self.pending[0] is not version:  # the namespace was removed, or too many are pending
                return False
        if found is not None:
            version.watchers = iter({**found, **self.linked})
            version.diff = version.matches = None
        return True

    def take(self) -> list[Watcher]:
        """Take the next watchers to hand the first pending version to, once it is matched; with the last, remove it."""
        version = self.pending[0]
        assert version.watchers is not None
        watchers = list(islice(version.watchers, self._limits.hand_max))
        self._steps += 1 + len(watchers) * self._limits.hand_steps
        if len(watchers) < self._limits.hand_max:
            self.pending.popleft()
            self._pending_keys -= len(version.keys or ())
        return watchers

    def _match_keys(self, version: PendingVersion, keys: list[str], trees: Trees) -> dict[Watcher, None] | None:
        """Return the watchers that the changed keys match; None if some keys are left for the next slice."""
        trie = self.trie
        matches = version.matches = version.matches or MatchSet(trie)
        is_directory = partial(trees.was_directory, version.before, version.root)
        end = trie.steps + self._limits.match_steps
        while version.keys_done < len(keys) and trie.steps < end:
            matches.add(keys[version.keys_done], is_directory)
            version.keys_done += 1
        return matches.items if version.keys_done == len(keys) else None

    def _match_diff(
        self, version: PendingVersion, trees: Trees
    ) -> Generator[list[Ref], dict[Ref, bytes], dict[Watcher, None] | None]:
        """Add the watchers that a slice of the diff matches; return all after the last slice, else None."""
        matches = version.matches = version.matches or MatchSet(self.trie)
        if version.diff is None:
            assert version.before is not None
            version.diff = trees.diff(version.before, version.root, self.trie)
        part = yield from trees.advance(version.diff)
        self._steps += self._limits.diff_steps
        for key, old, new in part.value:
            matches.add_difference(key, type(old) is Link or type(new) is Link)
        return None if part.more else matches.items

    def check(self) -> None:
        for watcher in self._watchers:
            watcher.check()
        self.trie.check()
        assert len(self.trie) == len(self._watchers)
        assert all(watcher in self._watchers for watcher in self._waiting)
        assert self._pending_keys == sum(len(version.keys or ()) for version in self.pending)
        assert self._busy or self._ready or not self.pending, "versions are pending and the index is not queued"
