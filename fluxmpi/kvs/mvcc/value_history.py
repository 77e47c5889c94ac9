"""The last values of single keys, beyond the versions that had them: a short tail of each key that a rule matches.

Retention keeps whole versions, so a key that is written often pushes out the past of one that is not. A *rule* keeps
the last N values of each key that its pattern matches. What a version changed is recorded when the version before it is
compacted: then, for the last time, the two can be compared::

    versions      … 5  6  7 │ 8  9  10        8 is the oldest that retention keeps: 7 is compacted, and the change
                            │                 from 7 to 8 recorded
    tail of  a    2: 1   6: 2   8: 3          a was 1 in versions 2 to 5, 2 in 6 and 7, and is 3 in version 8
    tail of  b    3: –                        b was removed in version 3

The comparison is a diff of the two trees, bounded by the patterns. So it finds every change, also of a directory that
was replaced, a checkpoint that was restored, or a transaction of a million keys; and none where a value was written
again. A version whose keys are known, and that wrote nothing that a rule can match, is not compared. Commits pay
nothing: a version is compacted later, and namespaces without rules have no ``ValueHistory``.

What a key was in a version that has gone is known from its tail: the last entry up to that version. It is unknown
before the oldest entry, and where the key was a directory. Directories and links above a key have no entries. So it is
remembered which keys ended to be one (``_directories``, ``_links``), and nothing is said about a missing key that may
have been a directory, or may have been reached through a link.

The last entry of a tail is the key's value in the oldest version that is kept, so it costs only its record. The values
of the other entries, the *past values*, are kept by the tail alone: they are counted in ``bytes`` and pinned for the
collector. Past ``bytes_max``, entries are evicted: the oldest of the key with the most bytes, and a key's last past
value only when no key has more than one.

Invariants: ``bytes`` is at most ``bytes_max``; the entries of a tail are in order of version, and as many values as the
rules say.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, Overloaded
from fluxmpi.kvs.mvcc.limits import ValueHistoryLimits
from fluxmpi.kvs.objects import SEPARATOR, Dir, Link, Object, Val, ValRef, join_key, split_key
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.lookup import Lookup, no_other_namespace
from fluxmpi.kvs.store.node import Missing, Node, NodeCache
from fluxmpi.kvs.store.pattern import Pattern, has_wildcards
from fluxmpi.kvs.store.pattern_trie import PatternTrie
from fluxmpi.kvs.store.version_log import VersionLog
from fluxmpi.kvs.wire import RootInfo, ValueRule

ENTRY_BYTES = 300
"""What an entry takes beside its value and key."""

UNKNOWN = Dir(b"")
"""The object of an entry from which on a key was reached through a link: what the link leads to is not recorded."""

KeysOf = Callable[[int], list[str] | None]
"""From a version to the keys that it wrote, None if they are not known."""


class PastEntry(msgspec.Struct, gc=False):
    """What a key became in a version, and was until the next entry.

    ``object``: None for no key; of a directory only that it is one. ``existed``: there was an object before. ``exact``
    False: the key was that already when the version began, and it is not known since when.
    """

    version: int
    time: float
    ref: Ref
    object: Object | None
    existed: bool
    exact: bool = True


class _Tail:
    """The entries of one key, oldest first. ``size``: of its past values, which are all but the last."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries: deque[PastEntry] = deque()
        self.size = 0


class _Ended:
    """Keys that ended to be something, with the version: the last ``keys_max``, and the highest version of the others."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._ended: dict[str, int] = {}
        self._before = -1

    def note(self, key: str, version: int) -> None:
        ended = self._ended
        ended.pop(key, None)
        ended[key] = version
        if len(ended) > self._keys_max:
            self._before = max(self._before, ended.pop(next(iter(ended))))

    def after(self, key: str, version: int) -> bool:
        """Return whether ``key`` may have ended after that version."""
        return max(self._ended.get(key, -1), self._before) > version


class _Rule(msgspec.Struct, gc=False):
    """``since``: the version with which recording began."""

    pattern: Pattern
    values: int
    since: RootInfo


class _Nodes:
    """Nodes of the two versions that are compared; they do not push others out of the cache."""

    def __init__(self, nodes: NodeCache, nodes_max: int) -> None:
        self._nodes = nodes
        self._nodes_max = nodes_max
        self._read: dict[Ref, Node] = {}

    def node(self, ref: Ref) -> Node | None:
        node = self._read.get(ref)
        if node is None:
            node = self._nodes.peek(ref)
            if node is not None:
                if len(self._read) >= self._nodes_max:
                    self._read.clear()
                self._read[ref] = node
        return node


def rule_pattern(text: str) -> tuple[str, Pattern]:
    """Return a rule's pattern, and its text in one form.

    As for a watch: a key; with a dot at its end everything below; with wildcards every key that matches. Empty names
    are left out, as in every key, so that one rule has one text.
    """
    below = text.endswith(SEPARATOR)
    text = join_key([*split_key(text), *(["**"] if below else [])])
    if has_wildcards(text):
        return text, Pattern.glob(text)
    return text, Pattern.key(text)


def literal_object(root: RootInfo, nodes: NodeCache, parts: list[str]) -> tuple[Object | None, bool]:
    """Return the object at a key in a version that is kept, and whether a link above the key is on its path."""
    lookup = Lookup(nodes, no_other_namespace, root.namespace, root.ref, parts, follow=False)
    try:
        found = lookup.advance()
    except FluxmpiError:
        return None, True
    assert not isinstance(found, Missing), "a node of a kept version is missing"
    return found.value, lookup.links_followed > 0


class ValueHistory:
    """The tails of one namespace. ``bytes_max``: the bound of ``bytes``; see ``bound``."""

    def __init__(self, nodes: NodeCache, limits: ValueHistoryLimits, bytes_max: int) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max
        self._nodes = nodes
        self._limits = limits
        self._rules: dict[str, _Rule] = {}
        self._trie: PatternTrie[str] = PatternTrie()
        self._tails: dict[str, _Tail] = {}
        self._count = 0
        """Entries of all tails."""
        self._blobs: dict[Ref, tuple[int, int]] = {}
        """Blobs of past values: how many entries have them, and their bytes."""
        self._forgotten: RootInfo | None = None
        """The last version of an entry of a tail that was evicted as a whole: nothing is known of its key before."""
        self._links = _Ended(limits.ended_max)
        self._directories = _Ended(limits.ended_max)
        self._sizes: list[tuple[int, int, str]] = []
        """A heap of the tails in the order in which they lose entries; stale ones stay until they reach its top."""
        self._diff: Diff | None = None
        """Of the version that is being compacted and the next one."""

    # ------------------------------------------------------------------------------------------------------------ rules

    @property
    def rules(self) -> list[ValueRule]:
        """The rules, in order of their patterns."""
        return [ValueRule(text, rule.values) for text, rule in sorted(self._rules.items())]

    def set_rule(self, wanted: ValueRule, since: RootInfo) -> None:
        """Keep the last values of the keys that match, from the version ``since`` on; ``values`` 0 ends that."""
        text, pattern = rule_pattern(wanted.key)
        limits = self._limits
        if not 0 <= wanted.values <= limits.values_max:
            raise InvalidRequest(
                f"invalid retention of {wanted.values} values of '{wanted.key}': give 1 to {limits.values_max:,}, or 0"
                " to keep none"
            )
        rule = self._rules.get(text)
        if wanted.values and rule is None:
            if len(self._rules) >= limits.rules_max:
                raise Overloaded(
                    f"the namespace has {limits.rules_max} rules for past values already: remove one with 0 values"
                )
            self._rules[text] = _Rule(pattern, wanted.values, since)
            self._trie.add(pattern, text)
            self._diff = None  # it begins again with the new patterns: a change that was found is not recorded twice
        elif wanted.values and rule is not None:
            shorter = wanted.values < rule.values
            rule.values = wanted.values
            if shorter:
                self._trim_all()
        elif rule is not None:
            del self._rules[text]
            self._trie.remove(rule.pattern, text)
            self._diff = None
            self._trim_all()

    def _trim_all(self) -> None:
        """Drop the entries that the rules do not keep any more."""
        for key, tail in list(self._tails.items()):
            count = self._count_of(key)
            if not count:
                self._drop(key, tail)
            else:
                self._trim(key, tail, count)

    def matching(self, key: str) -> list[_Rule]:
        """Return the rules that match a key."""
        trie = self._trie
        state = trie.start
        for name in split_key(key):
            state = trie.step(state, name)
            if not state:
                return []
        return [self._rules[text] for node in state for text in node.items]

    def _count_of(self, key: str) -> int:
        """Return how many values of a key are kept, 0 if no rule matches it."""
        return max((rule.values for rule in self.matching(key)), default=0)

    @property
    def is_empty(self) -> bool:
        """There are no rules."""
        return not self._rules

    # -------------------------------------------------------------------------------------------------------- recording

    def record(self, log: VersionLog, keys_of: KeysOf, count: int) -> int:
        """Record what the versions after the ``count`` first ones of the log changed, before these are compacted.

        Return how many are done: as many as one turn has steps for.
        """
        steps = self._limits.steps_per_turn
        version = log.first
        for done in range(count):
            if steps <= 0:
                return done
            before, after = log[version + done], log[version + done + 1]
            if self._diff is None:
                steps -= 1
                keys = keys_of(after.version)
                if before.ref == after.ref or (keys is not None and not any(map(self._may_match, keys))):
                    continue
                self._diff = Diff(_Nodes(self._nodes, self._limits.nodes_max), before.ref, after.ref, "", self._trie)
            while steps > 0:
                found = self._diff.advance(self._limits.slice_changes, self._limits.slice_steps)
                assert not isinstance(found, Missing), "a node of a kept version is missing"
                steps -= self._limits.slice_changes
                for key, old, new in found.value:
                    self._change(key, old, new, after)
                if not found.more:
                    self._diff = None
                    break
            else:
                return done
        return count

    def _may_match(self, key: str) -> bool:
        """Return whether a write to ``key`` may change a key that a rule matches.

        That is the key itself, one below it, if it was a directory or becomes one, or one above it, if a value made way
        for a directory.
        """
        trie = self._trie
        state = trie.start
        for name in split_key(key):
            state = trie.step(state, name)
            if not state:
                return False
            if any(node.items for node in state):
                return True
        return bool(state)

    def _change(self, key: str, old: Object | None, new: Object | None, after: RootInfo) -> None:
        """Record that a key became another object in the version ``after``."""
        if type(old) is Link:
            self._links.note(key, after.version)
        elif type(old) is Dir:
            self._directories.note(key, after.version)
        tail = self._tails.get(key)
        if tail is None and not (_is_value(old) or _is_value(new)):
            return
        rules = self.matching(key)
        if not rules:
            return
        if tail is not None and tail.entries[-1].version == after.version:
            return  # the comparison began again, with other rules
        if tail is None:
            tail = self._tails[key] = _Tail()
            since = self._known_since(rules)
            if since.version < after.version:
                self._append(key, tail, PastEntry(since.version, since.time, since.ref, old, True, False))
        if new is None and literal_object(after, self._nodes, split_key(key))[1]:
            new = UNKNOWN
        self._append(key, tail, PastEntry(after.version, after.time, after.ref, new, old is not None))
        self._trim(key, tail, max(rule.values for rule in rules))
        self._evict()

    def _known_since(self, rules: list[_Rule]) -> RootInfo:
        """Return the version since which every change of a key without a tail would have been recorded."""
        since = min((rule.since for rule in rules), key=lambda root: root.version)
        forgotten = self._forgotten
        return since if forgotten is None or forgotten.version <= since.version else forgotten

    def _append(self, key: str, tail: _Tail, entry: PastEntry) -> None:
        if tail.entries:
            self._charge(tail, tail.entries[-1])
        tail.entries.append(entry)
        self._count += 1
        self.bytes += ENTRY_BYTES + len(key)
        self._note_size(key, tail)

    def _trim(self, key: str, tail: _Tail, count: int) -> None:
        """Drop the oldest entries beyond ``count``. What a key was when its rule began is not one of its last values."""
        entries = tail.entries
        while len(entries) > count + (not entries[0].exact and not _is_value(entries[0].object)):
            self._drop_oldest(key, tail)

    def _drop_oldest(self, key: str, tail: _Tail) -> None:
        entry = tail.entries.popleft()
        self._count -= 1
        self.bytes -= ENTRY_BYTES + len(key)
        if tail.entries:
            self._discharge(tail, entry)
            self._note_size(key, tail)

    def _drop(self, key: str, tail: _Tail) -> None:
        while tail.entries:
            self._drop_oldest(key, tail)
        del self._tails[key]

    # ------------------------------------------------------------------------------------------------------------ bytes

    def _charge(self, tail: _Tail, entry: PastEntry) -> None:
        """Count the bytes of a value that only its tail keeps from now on."""
        obj = entry.object
        tail.size += _size(obj)
        if type(obj) is Val:
            self.bytes += len(obj.data)
        elif type(obj) is ValRef:
            share = -(-obj.size // max(1, len(obj.refs)))
            for ref in obj.refs:
                users, size = self._blobs.get(ref, (0, share))
                if not users:
                    self.bytes += size
                self._blobs[ref] = users + 1, size

    def _discharge(self, tail: _Tail, entry: PastEntry) -> None:
        obj = entry.object
        tail.size -= _size(obj)
        if type(obj) is Val:
            self.bytes -= len(obj.data)
        elif type(obj) is ValRef:
            for ref in obj.refs:
                users, size = self._blobs.pop(ref)
                if users > 1:
                    self._blobs[ref] = users - 1, size
                else:
                    self.bytes -= size

    def bound(self, bytes_max: int) -> None:
        """Set the bound of ``bytes``."""
        self.bytes_max = bytes_max
        self._evict()

    def _note_size(self, key: str, tail: _Tail) -> None:
        heappush(self._sizes, _order(key, tail))
        if len(self._sizes) > 2 * len(self._tails) + 64:
            self._sizes = [_order(key, tail) for key, tail in self._tails.items() if tail.entries]
            heapify(self._sizes)

    def _evict(self) -> None:
        """Drop entries until the bounds are met; see the module's text for the order."""
        limits = self._limits
        while self._sizes and (self.bytes > self.bytes_max or self._count > limits.entries_max):
            top = heappop(self._sizes)
            key = top[2]
            tail = self._tails.get(key)
            if tail is None or _order(key, tail) != top:
                continue
            if len(tail.entries) > 1:
                self._drop_oldest(key, tail)
                continue
            last = tail.entries[0]
            if self._forgotten is None or last.version > self._forgotten.version:
                self._forgotten = RootInfo("", last.version, last.ref, last.time)
            self._drop(key, tail)

    def pinned(self) -> Iterator[Ref]:
        """Yield the blobs of the past values, which the collector must keep."""
        yield from self._blobs

    # ---------------------------------------------------------------------------------------------------------- reading

    def history(self, key: str, below: int, limit: int) -> list[PastEntry]:
        """Return the recorded changes of a key in versions below that one, newest first."""
        tail = self._tails.get(key)
        if tail is None:
            return []
        entries = reversed(tail.entries)
        found = [each for each in entries if each.exact and each.version < below and each.object is not UNKNOWN]
        return found[:limit]

    def at_version(self, key: str, version: int) -> PastEntry | None:
        """Return what a key was in a version that has gone; None if that is not known, or the key has no tail."""
        tail = self._tails.get(key)
        return None if tail is None else self._checked(key, tail, [each.version for each in tail.entries], version)

    def at_time(self, key: str, time: float) -> PastEntry | None:
        """Return what a key was in the version that was the newest at a time; None as ``at_version``."""
        tail = self._tails.get(key)
        return None if tail is None else self._checked(key, tail, [each.time for each in tail.entries], time)

    def _checked(self, key: str, tail: _Tail, starts: list[int] | list[float], at: float) -> PastEntry | None:
        index = bisect_right(starts, at) - 1
        if index < 0:
            return None
        entry = tail.entries[index]
        if type(entry.object) is Dir or (entry.object is None and self.was_linked(key, entry.version)):
            return None
        return entry

    def unchanged_since(self, key: str, missing: bool) -> RootInfo | None:
        """Return the version since which a key that has no tail has not changed; None if that is not known.

        ``missing``: there is no such key now.
        """
        rules = self.matching(key)
        if not rules or key in self._tails:
            return None
        since = self._known_since(rules)
        if missing and (self._directories.after(key, since.version) or self.was_linked(key, since.version)):
            return None
        return since

    def was_linked(self, key: str, since: int) -> bool:
        """Return whether a key above ``key`` may have been a link in a version from ``since`` on."""
        at = key.rfind(SEPARATOR)
        while at > 0:
            if self._links.after(key[:at], since):
                return True
            at = key.rfind(SEPARATOR, 0, at)
        return False

    # ----------------------------------------------------------------------------------------------------- housekeeping

    def statistics(self) -> dict[str, int]:
        """``past_keys`` with a tail, ``past_values`` of all of them, and the ``past_bytes`` that only tails keep."""
        return {"past_keys": len(self._tails), "past_values": self._count, "past_bytes": self.bytes}

    def check(self) -> None:
        assert self.bytes <= self.bytes_max or not self._count
        assert self._count == sum(len(tail.entries) for tail in self._tails.values())
        size = sum(bytes_ for _, bytes_ in self._blobs.values())
        users: dict[Ref, int] = {}
        for key, tail in self._tails.items():
            assert tail.entries
            versions = [entry.version for entry in tail.entries]
            assert versions == sorted(set(versions))
            assert all(entry.exact for entry in list(tail.entries)[1:])
            assert self._count_of(key), "a tail without a rule is kept"
            past = list(tail.entries)[:-1]
            assert tail.size == sum(_size(entry.object) for entry in past)
            size += len(tail.entries) * (ENTRY_BYTES + len(key))
            for entry in past:
                obj = entry.object
                size += len(obj.data) if type(obj) is Val else 0
                for ref in obj.refs if type(obj) is ValRef else ():
                    users[ref] = users.get(ref, 0) + 1
        assert size == self.bytes
        assert users == {ref: count for ref, (count, _) in self._blobs.items()}
        assert all(_order(key, tail) in self._sizes for key, tail in self._tails.items())
        self._trie.check()


def _order(key: str, tail: _Tail) -> tuple[int, int, str]:
    """Return a tail's place in the order of evictions: the smallest first."""
    entries = tail.entries
    past = len(entries) - 1
    if past > 1:
        return 0, -tail.size - past * ENTRY_BYTES, key
    return 2 - past, entries[0].version, key


def _is_value(obj: Object | None) -> bool:
    return obj is not None and type(obj) is not Dir


def _size(obj: Object | None) -> int:
    """Return the bytes of a value, blobs that others share included."""
    return len(obj.data) if type(obj) is Val else obj.size if type(obj) is ValRef else 0
