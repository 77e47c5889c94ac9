"""The past client: it alone writes to a namespace of few versions, and reads values whose versions have gone.

It sets and removes rules for past values, and judges every answer itself::

    history        the changes of the key, newest first, none missing; at least as many as its rule keeps
    roots.past     what the key was in that version; SnapshotCollected only where no rule kept it
    a collection   the blobs of past values are still there
"""

from __future__ import annotations

from fluxmpi.errors import SnapshotCollected
from fluxmpi.kvs.objects import Object, Val, ValRef
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.wire import (
    HistoryRequest,
    KeyVersion,
    NewNamespace,
    OldNamespace,
    Op,
    PastRequest,
    Put,
    Retention,
    RootInfo,
    Unlink,
    ValueRule,
)
from fluxmpi.simulator.plan import PAST_CHANCE, Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.own_namespace import OwnNamespace, OwnVersion
from fluxmpi.simulator.workload.reference_client import ReferenceClient, Script

NAME = "past"
KEYS = ("busy", "quiet", "d.a", "d.b", "other")
PATTERNS = ("busy", "quiet", "d.*", "**", "*")

ENOUGH = 1 << 30
"""Bytes that bound nothing here."""

Changes = list[tuple[int, bytes | None, bool]]
"""Version, the value from then on or None, and whether there was one before; newest first."""


class PastClient(ReferenceClient):
    """Drives ``writer`` and ``reader`` as its base does, with a script of its own."""

    def __init__(self, writer: Client, reader: Client, plan: Plan, steps: int) -> None:
        super().__init__(writer, reader, plan, steps)
        self._rng = plan.rng(PAST_CHANCE)
        self._rules: dict[str, int] = {}
        """Pattern → values."""
        self._bounded = False
        """The namespace has few bytes for its past: anything may be missing, and nothing may be wrong."""
        self._from: dict[str, int] = {}
        """Key → the version from which on it must be known, by the rules that there were before the last change of rules.
        """

    def _run(self) -> Script:
        actions = {
            self._write: 40, self._history: 12, self._past: 20, self._set_rule: 3, self._collect: 4,
            self._create_again: 1,
        }  # fmt: skip
        yield from self._begin()
        while self.steps and self._namespaces:
            self.steps -= 1
            yield from self._rng.choices(list(actions), list(actions.values()))[0]()
            yield self._rng.expovariate(1 / self._plan.think_s)
        if self._namespaces:
            yield from self._remove_quietly(NAME)

    def _begin(self) -> Script:
        call = self._ask("roots.create", NewNamespace(NAME, 7))
        yield call
        root = self._answer(call, RootInfo)
        if root is None:
            return
        count = self._rng.choice((1, 1, 2, 5))
        self._namespaces[NAME] = OwnNamespace(NAME, {root.version: OwnVersion(root, {})}, count, floor=root.version)
        self._rules, self._from = {}, {}
        size = self._rng.choice((ENOUGH, ENOUGH, 4_000))
        self._bounded = size < ENOUGH or self._plan.shape.small_store
        call = self._ask("roots.retention", Retention(NAME, count, 0.0, size))
        yield call
        self._answer(call, Retention)
        yield from self._set_rule()

    def _create_again(self) -> Script:
        """Remove the namespace: nothing of its past may appear in the next one of that name."""
        del self._namespaces[NAME]
        call = self._ask("roots.remove", OldNamespace(NAME))
        yield call
        self._answer(call, None)
        if not self._lost:
            yield from self._begin()

    @property
    def _space(self) -> OwnNamespace:
        return self._namespaces[NAME]

    # ---------------------------------------------------------------------------------------------------------- actions

    def _set_rule(self) -> Script:
        pattern, values = self._rng.choice(PATTERNS), self._rng.choice((0, 1, 2, 3, 10))
        self._space.trim(self._now)
        # The rules that remain may be younger than one that is removed: then no more is known than they recorded.
        self._from = {key: self._known_from(key) if values else self._space.floor for key in KEYS}
        call = self._ask("roots.retention", Retention(NAME, values=[ValueRule(pattern, values)]))
        yield call
        answer = self._answer(call, Retention)
        if answer is None:
            return
        if values:
            self._rules[pattern] = values
        else:
            self._rules.pop(pattern, None)
        right = [ValueRule(key, self._rules[key]) for key in sorted(self._rules)]
        if answer.values != right:
            self._report(f"the rules of {NAME} are {answer.values}, and must be {right}")

    def _write(self) -> Script:
        rng, space = self._rng, self._space
        content = dict(space.newest.content)
        ops: list[Op] = []
        for _ in range(rng.choice((1, 1, 1, 3))):
            key = rng.choice(("busy", "busy", "busy", *KEYS))
            self._serial += 1
            if rng.random() < 0.15:
                content.pop(key, None)
                ops.append(Unlink(key))
            elif rng.random() < 0.05:
                for name in [name for name in content if name.startswith("d.")]:
                    del content[name]
                ops.append(Unlink("d"))
            else:
                content[key] = (b"%d." % (self._serial % 50)) * rng.choice((1, 1, 200))
                ops.append(Put(key, Val("raw", content[key])))
        yield from self._commit_to(space, ops, content)

    def _history(self) -> Script:
        space, key = self._space, self._rng.choice(KEYS)
        limit = self._rng.choice((1, 3, 1000))
        before = self._rng.choice((None, None, max(space.made) - self._rng.randrange(5)))
        call = self._ask("roots.history", HistoryRequest(NAME, key, before, limit))
        yield call
        past = self._answer(call, list[KeyVersion])
        if past is None:
            return
        space.trim(self._now)
        changes = self._changes(key)
        known, since = self._known_from(key), self._from.get(key, 0) if self._values(key) else space.floor
        must = [each for each in changes if each[0] > space.floor or (each[0] >= known and each[0] > since)]
        if before is not None:
            changes, must = ([each for each in some if each[0] < before] for some in (changes, must))
        found = [(each.version, each.object is not None, each.existed) for each in past]
        right = [(version, value is not None, existed) for version, value, existed in changes]
        least = 0 if self._bounded else min(limit, len(must))
        if found != right[: len(found)] or len(found) < least:
            self._report(f"the history of {key}, before {before}, is {found}, and must begin {right[: len(must)]}")
        for each in past[:3]:
            yield from self._compare(key, each.version, each.object)

    def _past(self) -> Script:
        space, key = self._space, self._rng.choice(KEYS)
        version = self._rng.choice([*list(space.made)[-8:], *space.made])
        made = space.made[version]
        by_root = self._rng.random() < 0.2
        request = PastRequest(key, NAME, version, root=made.root.ref if by_root else b"")
        if not by_root and self._rng.random() < 0.3:
            request = PastRequest(key, NAME, time=made.root.time)
            version = max(each for each, other in space.made.items() if other.root.time <= made.root.time)
        call = self._ask("roots.past", request)
        yield call
        answer = self._answer(call, KeyVersion, SnapshotCollected.code)
        space.trim(self._now)
        if answer is not None:
            yield from self._compare(key, version, answer.object)
        elif not self._lost and not self._bounded:
            known = self._known_from(key)
            verified = not by_root or version in [changed for changed, _, _ in self._changes(key) if changed >= known]
            if version >= space.floor or (version >= known and verified):
                self._report(f"{key} in version {version}: {call.answers[0].body}, and is kept from {known} on")

    # ---------------------------------------------------------------------------------------------------------- judging

    def _values(self, key: str) -> int:
        """Return how many values of a key the rules keep."""
        return max((many for pattern, many in self._rules.items() if Pattern.glob(pattern).matches(key)), default=0)

    def _known_from(self, key: str) -> int:
        """Return the version from which on it must be known what a key was."""
        values = self._values(key)
        if not values:
            return self._space.floor
        last = [version for version, _, _ in self._changes(key)][values - 1 : values]
        return max([self._from.get(key, 0), *last])

    def _changes(self, key: str) -> Changes:
        made = self._space.made
        found: Changes = []
        for version in range(max(made), min(made), -1):
            old, new = made[version - 1].content.get(key), made[version].content.get(key)
            if old != new:
                found.append((version, new, old is not None))
        return found

    def _compare(self, key: str, version: int, obj: Object | None) -> Script:
        """Compare an object that was answered with what the key was in that version; its blobs must be here."""
        right = self._space.made[version].content.get(key)
        if type(obj) is ValRef and (len(obj.refs) > 1 or self._rng.random() < 0.5):
            pieces = []
            for ref in obj.refs:
                call = self._reader.load(ref)
                yield call
                piece = self._certain(call)
                pieces.append(piece.body if piece is not None and piece.status == 0 else b"")
            found: bytes | None = b"".join(pieces)
        elif type(obj) is ValRef:
            same = right is not None and obj.refs == (self._reader.cluster.digest(right),)
            found = right if same else b"another blob"
        else:
            found = obj.data if type(obj) is Val else None
        if found != right and not self._lost:
            self._report(f"{key} in version {version} is {found!r}, and must be {right!r}")
