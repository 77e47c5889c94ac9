"""Replay: every version of every namespace is the one before it with its transactions applied, and everything that was read of
a version is what that version says.

Only the clients are believed: the commits that they were answered, with their versions, and what they read. A commit without
an answer may explain a version that has no other explanation, once. What a version must be is a plain dict, from whole keys to
values; directories are what the dots make.

    version 6 ── transactions answered with 7, in any order: they touch different keys ──▶ must be version 7
             └── not what was read of 7, or nobody made 7? the unanswered ones that would explain it, once each
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from typing import Any

import msgspec

from checkers.linearizability import ANY, DIRECTORY, STEPS, WRONG, is_told
from checkers.record import WRITES, Operation, Step

Values = dict[str, Any]

TOGETHER = 3
"""Unanswered commits that may explain one version together …"""

CHOICES = 2_000
"""… and how many such explanations are tried for it."""


class Impossible(Exception):
    """A transaction that was answered as done cannot have been."""


@dataclass(slots=True)
class Replayed:
    """``at[namespace][version]``: its values, None where nobody can know them. ``problems``: what was wrong."""

    at: dict[str, dict[int, Values | None]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def replay(
    history: Iterable[Operation], initial: dict[str, tuple[int, Values | None]] | None = None, *, gaps: bool = False
) -> Replayed:
    """``initial``: the first version of each namespace and what it holds; by default version 0, with nothing. ``gaps``: versions
    may be made by what nobody recorded, such as a restored checkpoint; what they hold is not known then.
    """
    history = [operation for operation in history if not operation.error]
    done = Replayed()
    for namespace in sorted({operation.namespace for operation in history}):
        own = [operation for operation in history if operation.namespace == namespace]
        done.problems += roots(own)
        _Namespace(namespace, own, done, gaps).replay(*(initial or {}).get(namespace, (0, {})))
    return done


def roots(history: list[Operation]) -> Iterator[str]:
    """One version has one root."""
    known: dict[int, Operation] = {}
    for operation in history:
        if operation.version is not None and operation.ref:
            first = known.setdefault(operation.version, operation)
            if first.ref != operation.ref:
                yield f"replay: one version, two roots {first.ref[:12]} and {operation.ref[:12]}:\n    {first}\n    {operation}"


class _Namespace:
    def __init__(self, name: str, history: list[Operation], done: Replayed, gaps: bool) -> None:
        self._name = name
        self._done = done
        self._gaps = gaps
        self._made: dict[int, list[Operation]] = {}
        self._open: list[Operation] = []
        self._read: dict[int, list[Operation]] = {}
        self._written: dict[str, list[Operation]] = {}
        """Key to the answered commits of earlier versions that wrote it."""
        self._unknown = 0
        """Versions that some unanswered commit made, and nobody knows which."""
        for operation in history:
            if operation.kind == "commit" and operation.pending:
                self._open.append(operation)
            elif operation.kind == "commit" and operation.version is not None:
                self._made.setdefault(operation.version, []).append(operation)
            elif operation.version is not None and operation.answered:
                self._read.setdefault(operation.version, []).append(operation)
        told = any(
            step.what == "tree" for reads in self._read.values() for operation in reads for step in operation.steps
        )
        self._vague = (
            [] if told else [step.key for one in self._open for step in one.steps if step.what in ("append", "add")]
        )
        """Keys that grew without an answer: unless somebody reads everything, nobody knows before what else they grew."""

    def replay(self, first: int, values: Values | None) -> None:
        states = self._done.at[self._name] = {first: values}
        self._compare(first, values)
        for version in range(first + 1, max([first, *self._made, *self._read]) + 1):
            values = self._version(version, values)
            states[version] = values
            for operation in self._made.get(version, []):
                for step in operation.steps:
                    if step.what in WRITES:
                        self._written.setdefault(step.key, []).append(operation)

    def _version(self, version: int, before: Values | None) -> Values | None:
        """What this version holds, with the fewest unanswered commits that explain what was read of it."""
        made = list(_transactions(self._made.get(version, [])))
        if before is not None:
            before.update(dict.fromkeys(self._vague, ANY))
        self._done.problems += self._disjoint(version, made)
        if before is None:
            return self._tree(version)
        known = self._keys(version, made)
        open_ = [
            operation for operation in self._open if known is None or any(step.key in known for step in operation.steps)
        ]
        choices = chain.from_iterable(combinations(open_, count) for count in range(TOGETHER + 1))
        for chosen in islice(choices, CHOICES):
            for early in ((), chosen) if chosen else ((),):
                seen = tuple(self._overwritten(operation, version) for operation in early)
                values = self._explained(version, before, made, seen or chosen)
                if values is not None:
                    self._open = [operation for operation in self._open if operation not in chosen]
                    return values
        return self._unexplained(version, before, made)

    def _keys(self, version: int, made: list[list[Operation]]) -> set[str] | None:
        """What an unanswered commit must touch to be seen here; None for all keys."""
        steps = [step for operation in self._read.get(version, []) for step in operation.steps]
        if any(step.what == "tree" for step in steps):
            return None
        return {step.key for step in steps}.union(step.key for group in made for one in group for step in one.steps)

    def _overwritten(self, operation: Operation, version: int) -> Operation:
        """An unanswered commit as this version shows it if it was in an earlier one: without what others may have written over,
        and did, since something else was read there.
        """
        shown = set()
        for read in self._read.get(version, []):
            for index, step in enumerate(read.steps):
                result = read.result(index)
                told = result[0] if read.kind == "watch" else result
                shown |= {
                    (key, str(value)) for key, value in (told if step.what == "tree" else {step.key: told}).items()
                }
        steps = [
            step
            for step in operation.steps
            if (step.what == "put" and (step.key, str(step.value)) in shown)
            or not any(other.end is None or other.end > operation.start for other in self._written.get(step.key, []))
        ]
        return msgspec.structs.replace(operation, steps=steps)

    def _explained(
        self, version: int, before: Values, made: list[list[Operation]], chosen: tuple[Operation, ...]
    ) -> Values | None:
        """The version with these unanswered commits in it, if that is what was read of it, and each of them was seen."""
        if not made and not chosen:
            return None
        try:
            # An unanswered one may have been in an earlier version, of which nobody read that key: so they come first.
            values = _apply(before, [*([operation] for operation in chosen), *made])
        except Impossible:
            return None
        if not self._fits(version, values):
            return None
        for operation in chosen:
            others = [[other] for other in chosen if other is not operation]
            try:
                if self._fits(version, _apply(before, [*others, *made])):
                    return None
            except Impossible:
                continue
        return values

    def _unexplained(self, version: int, before: Values, made: list[list[Operation]]) -> Values | None:
        """Nothing fits: that is wrong, unless nobody can know."""
        if not made and self._gaps:
            return self._tree(version)
        if not made and self._unknown < len(self._open) and self._fits(version, before):
            self._unknown += 1
            return {**before, **dict.fromkeys(self._open_keys(), ANY)}
        try:
            values = _apply(before, made)
        except Impossible as problem:
            self._done.problems.append(f"replay: version {version} of {self._name}: {problem}")
            return self._tree(version)
        if not made:
            self._done.problems.append(f"replay: nobody made version {version} of {self._name}")
        self._compare(version, values, made)
        return self._tree(version) or values

    def _open_keys(self) -> Iterator[str]:
        return (step.key for operation in self._open for step in operation.steps if step.what in WRITES)

    def _tree(self, version: int) -> Values | None:
        """All of a version, if somebody read all of it."""
        for operation in self._read.get(version, []):
            if [step.what for step in operation.steps] == ["tree"] and operation.steps[0].key == ".":
                return dict(operation.result(0))
        return None

    def _fits(self, version: int, values: Values) -> bool:
        return not any(True for operation in self._read.get(version, []) for _ in wrong(operation, values))

    def _compare(self, version: int, values: Values | None, made: list[list[Operation]] | None = None) -> None:
        if values is None:
            return
        for operation in self._read.get(version, []):
            for problem in wrong(operation, values):
                lines = [f"replay: version {version} of {self._name} is not what its transactions make: {problem}"]
                lines += [f"    {one}" for one in [*(one for group in made or [] for one in group), operation]]
                self._done.problems.append("\n".join(lines))

    def _disjoint(self, version: int, made: list[list[Operation]]) -> Iterator[str]:
        """Two transactions that touch one key are two versions: else a value would never have been anywhere."""
        for one, other in combinations(made, 2):
            keys = {step.key for operation in one for step in operation.steps if step.what in WRITES}
            others = {step.key for operation in other for step in operation.steps if step.what in WRITES}
            for key in sorted(keys):
                if any(key == other or below(key, other) or below(other, key) for other in others):
                    yield f"merge: version {version} of {self._name}, {key}:\n    {one[0]}\n    {other[0]}"


def _transactions(operations: list[Operation]) -> Iterator[list[Operation]]:
    """Those of one version: each commit is one, all contributions to one fence are, and all additions to one key, which were
    combined on their way.
    """
    fences: dict[str, list[Operation]] = {}
    sums: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.fence:
            fences.setdefault(operation.fence, []).append(operation)
        elif operation.results and [(step.what, step.limit) for step in operation.steps[-1:]] == [("add", None)]:
            if all(step.what == "within" for step in operation.steps[:-1]):
                sums.setdefault(operation.steps[-1].key, []).append(operation)
            else:
                yield [operation]
        else:
            yield [operation]
    yield from fences.values()
    yield from sums.values()


def _in_order(adds: list[Operation], start: Any) -> list[Operation]:
    """Additions in their order, which their sums tell: each begins where another one ended, from ``start`` on through all of them
    (Hierholzer's path, since the same sum may come twice).
    """
    after: dict[int, list[Operation]] = {}
    for operation in adds:
        number = operation.result(len(operation.steps) - 1)[1]
        after.setdefault(number - operation.steps[-1].value, []).append(operation)
    way: list[tuple[Any, Operation | None]] = [(start, None)]
    found: list[Operation] = []
    while way:
        number, operation = way[-1]
        if after.get(number):
            following = after[number].pop()
            way.append((following.result(len(following.steps) - 1)[1], following))
        else:
            way.pop()
            if operation is not None:
                found.append(operation)
    return found[::-1] + [operation for left in after.values() for operation in left]


def _apply(before: Values, made: list[list[Operation]]) -> Values:
    values = dict(before)
    for transaction in made:
        touched: dict[str, Operation] = {}
        if len(transaction) > 1 and not transaction[0].fence:
            transaction = _in_order(transaction, values.get(transaction[0].steps[-1].key, 0))
        for operation in transaction:
            for index, step in enumerate(operation.steps):
                result = _step(values, step, operation)
                told = operation.result(index)
                if operation.results is not None and result not in (WRONG, ANY) and not _answers(result, told):
                    raise Impossible(f"'{step}' answered {told}, and must {result}:\n    {operation}")
                if step.what in WRITES and operation.fence and touched.setdefault(step.key, operation) is not operation:
                    values[step.key] = ANY
    return values


def _answers(must: Any, told: Any) -> bool:
    """Long values are told by their digests; and a directory may be an empty one, of which the values know nothing."""
    return is_told(must, told) or (told in (DIRECTORY, [False, DIRECTORY]) and must in (None, [False, None]))


def _step(values: Values, step: Step, operation: Operation) -> Any:
    """Apply one step to the dict; its result."""
    key = step.key
    for name in _above(key):
        if values.get(name) not in (None, ANY) and step.what not in ("unlink", "equals", "differs", "swap"):
            raise Impossible(f"'{step}' cannot have been done: {name} is a value\n    {operation}")
    if step.what in ("put", "unlink"):
        for name in [name for name in values if below(name, key)]:
            del values[name]
    old = values.get(key)
    if old == ANY and step.what in ("append", "add", "swap"):
        return ANY
    if old is None and any(below(name, key) for name in values):
        old = DIRECTORY
    if step.what == "differs" and step.value is old is None:  # an empty directory
        return ANY
    state, result = STEPS[step.what](old, step)
    if state is WRONG and old != ANY:
        raise Impossible(f"'{step}' cannot have been done: {key} is {old}\n    {operation}")
    if state in (None, DIRECTORY) or step.what in ("within", "mkdir"):
        values.pop(key, None)
    elif state is not WRONG:
        values[key] = state
    return ANY if old == ANY else result


def below(key: str, directory: str) -> bool:
    return key.startswith(f"{directory}.") or directory == "."


def _above(key: str) -> Iterator[str]:
    at = key.find(".")
    while at > 0:
        yield key[:at]
        at = key.find(".", at + 1)


def wrong(operation: Operation, values: Values) -> Iterator[str]:
    """Where a read's or a notification's values are not these."""
    for index, step in enumerate(operation.steps):
        result = operation.result(index)
        if operation.kind == "watch":
            result = result[0]
        if step.what == "tree":
            yield from _difference(step.key, result, values)
        elif step.what in ("equals", "differs"):
            value = values.get(step.key)
            # Where there is no value, there may be an empty directory.
            empty = value is None and step.value is None and step.what == "differs"
            if not empty and value != ANY and (value == step.value) is not (step.what == "equals"):
                yield f"{step.key} was found {'' if step.what == 'equals' else 'not '}to be {step.value}, and must be {value}"
        elif not is_told(values.get(step.key), None if result == DIRECTORY else result):
            yield f"{step.key} is {result}, and must be {values.get(step.key)}"


def _difference(key: str, told: Values, values: Values) -> Iterator[str]:
    """``told`` must be all that is below ``key``."""
    must = {name: value for name, value in values.items() if below(name, key)}
    for name in sorted({**told, **must}):
        if not is_told(must.get(name), told.get(name)):
            yield f"{name} is {told.get(name)}, and must be {must.get(name)}"


# ------------------------------------------------------------------------------------------------------------- watches


def watches(history: Iterable[Operation], replayed: Replayed) -> list[str]:
    """Each watch told what was there, or that it goes on from a version; then exactly the changes of each version, all together,
    in order, each once.
    """
    streams: dict[tuple[str, str], list[Operation]] = {}
    for operation in history:
        if operation.kind == "watch" and operation.answered:
            streams.setdefault((operation.client, operation.stream), []).append(operation)
    return [problem for stream in streams.values() for problem in _watch(stream, replayed.at[stream[0].namespace])]


def _watch(stream: list[Operation], states: dict[int, Values | None]) -> Iterator[str]:
    stream.sort(key=lambda operation: operation.end or 0.0)
    pattern, first = stream[0].pattern, stream[0].version or 0
    told = {operation.version: operation for operation in stream}
    versions = [operation.version for operation in stream]
    if versions != sorted(told):
        yield f"watches: {stream[0].client}, {pattern}: versions {versions} are not in order, each once"
        return
    since = stream[0].since
    if since is not None and (first != since or stream[0].steps):
        yield f"watches: {stream[0].client}, {pattern}: it was to go on from version {since}, and began with {stream[0]}"
        return
    before: Values = {}
    if since is not None:
        held = states.get(since)
        if held is None:
            return
        before = {key: value for key, value in held.items() if _matches(key, pattern)}
    for version in range(first, (stream[-1].version or 0) + 1):
        values = states.get(version)
        if values is None:
            return
        after = {key: value for key, value in values.items() if _matches(key, pattern)}
        # Where nobody knows a value, nobody knows whether it was changed either.
        unsure = [key for key in {**before, **after} if ANY in (before.get(key), after.get(key))]
        must = [
            (key, after.get(key), key in before)
            for key in sorted({**before, **after})
            if before.get(key) != after.get(key) and key not in unsure
        ]
        before = after
        notification = told.get(version)
        if notification is None:
            if must:
                yield f"watches: {stream[0].client}, {pattern}: version {version} was missed: {must}"
            continue
        changes = sorted(
            (step.key, *notification.result(index))
            for index, step in enumerate(notification.steps)
            if step.key not in unsure
        )
        if not _told(changes, must):
            yield f"watches: {stream[0].client}, {pattern}: version {version} told {changes}, and must {must}"


def _told(changes: list[Any], must: list[Any]) -> bool:
    return len(changes) == len(must) and all(
        key == other and is_told(expected, value) and existed == before
        for (key, value, existed), (other, expected, before) in zip(changes, must, strict=True)
    )


def _matches(key: str, pattern: str) -> bool:
    if pattern == ".":
        return True
    return key.startswith(pattern) or key == pattern[:-1] if pattern.endswith(".") else key == pattern
