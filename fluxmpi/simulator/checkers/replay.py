"""Replay: every version is the one before it with its transactions applied.

Every read of a version returns the content of that version.

Only the clients are believed: the commits that were answered, with their versions, and what was read. A commit without
an answer may explain a version that nothing else explains, once.

    version 6 ── transactions answered with 7, in any order: they write different keys ──▶ must be version 7
             └── reads of 7 disagree, or no answer names 7? try the unanswered commits that would explain it, once each
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, combinations, islice
from typing import Any

import msgspec

from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs.objects import split_key
from fluxmpi.simulator.checkers.history import ANY, DIRECTORY, WRITES, KeyStep, Operation, says
from fluxmpi.simulator.checkers.model import ModelStore, Tree, lookup, tree_of, with_value
from fluxmpi.simulator.checkers.reads import gets, wrong
from fluxmpi.simulator.checkers.versions import VersionState, VersionStates

TOGETHER = 3
"""Unanswered commits that may explain one version together."""

CHOICES = 2_000
"""Explanations that are tried for one version."""

Values = dict[str, Any]


class Impossible(Exception):
    """A transaction was answered as applied, and cannot have been."""


def replay(
    history: Iterable[Operation], initial: dict[str, tuple[int, Values | None]] | None = None, *, gaps: bool = False
) -> VersionStates:
    """Return the versions that a history implies, with ``problems``.

    ``initial``: the first version of each namespace and its values by key; by default version 0, empty. ``gaps``:
    versions may be made by something that is not recorded, such as a restored checkpoint; their contents are unknown.
    """
    history = [operation for operation in history if not operation.error]
    states = VersionStates(guessed=any(one.kind == "commit" and one.pending for one in history))
    for namespace in sorted({operation.namespace for operation in history}):
        own = [operation for operation in history if operation.namespace == namespace]
        refs = dict(_roots(own, states.problems))
        first, values = (initial or {}).get(namespace, (0, {}))
        _Namespace(namespace, own, states, refs, gaps).replay(first, None if values is None else tree_of(values))
    return states


def _roots(history: list[Operation], problems: list[str]) -> Iterator[tuple[int, str]]:
    """Yield versions with their roots. One version has one root."""
    known: dict[int, Operation] = {}
    for operation in history:
        if operation.version is not None and operation.ref:
            first = known.setdefault(operation.version, operation)
            if first is operation:
                yield operation.version, operation.ref
            elif first.ref != operation.ref:
                problems.append(
                    f"replay: one version, two roots {first.ref[:12]} and {operation.ref[:12]}:\n    {first}\n    {operation}"
                )


class _Namespace:
    def __init__(
        self, name: str, history: list[Operation], states: VersionStates, refs: dict[int, str], gaps: bool
    ) -> None:
        self._name = name
        self._states = states
        self._refs = refs
        self._gaps = gaps
        self._made: dict[int, list[Operation]] = {}
        self._open: list[Operation] = []
        self._read: dict[int, list[Operation]] = {}
        self._written: dict[str, list[Operation]] = {}
        """Key to the answered commits of earlier versions that wrote it."""
        self._unknown = 0
        """Versions that some unanswered commit made, without a trace of which one."""
        self._maybe: dict[str, None] = {}
        """Keys that those commits may have written, and no answered one has written since."""
        for operation in history:
            if operation.kind == "commit" and operation.pending:
                self._open.append(operation)
            elif operation.kind == "commit" and operation.version is not None:
                self._made.setdefault(operation.version, []).append(operation)
            elif operation.version is not None and operation.answered:
                self._read.setdefault(operation.version, []).append(operation)
        whole = any(step.what == "tree" for reads in self._read.values() for one in reads for step in one.steps)
        self._vague = (
            [] if whole else [step.key for one in self._open for step in one.steps if step.what in ("append", "add")]
        )
        """Keys that grew without an answer. Unless whole versions were read, it is not known when."""

    def replay(self, first: int, tree: Tree | None) -> None:
        self._add(first, tree)
        self._compare(first, tree)
        for version in range(first + 1, max([first, *self._made, *self._read]) + 1):
            tree = self._version(version, tree)
            self._add(version, tree)
            for operation in self._made.get(version, []):
                for step in operation.steps:
                    if step.what in WRITES:
                        self._written.setdefault(step.key, []).append(operation)
                        for key in [key for key in self._maybe if key == step.key or below(key, step.key)]:
                            del self._maybe[key]

    def _add(self, version: int, tree: Tree | None) -> None:
        self._states.add(self._name, VersionState(version, self._refs.get(version, ""), tree))

    def _problem(self, text: str) -> None:
        self._states.problems.append(text)

    def _version(self, version: int, before: Tree | None) -> Tree | None:
        """Return this version's tree, with the fewest unanswered commits that explain what was read of it."""
        made = list(_transactions(self._made.get(version, [])))
        self._states.problems += self._disjoint(version, made)
        if before is None:
            return self._whole(version)
        before = _with_any(before, [*self._vague, *self._maybe])
        known = self._keys(version, made)
        open_ = [
            operation for operation in self._open if known is None or any(step.key in known for step in operation.steps)
        ]
        choices = chain.from_iterable(combinations(open_, count) for count in range(TOGETHER + 1))
        for chosen in islice(choices, CHOICES):
            for early in ((), chosen) if chosen else ((),):
                seen = tuple(self._overwritten(operation, version) for operation in early)
                tree = self._explained(version, before, made, seen or chosen)
                if tree is not None:
                    self._open = [operation for operation in self._open if operation not in chosen]
                    return tree
        return self._unexplained(version, before, made)

    def _keys(self, version: int, made: list[list[Operation]]) -> set[str] | None:
        """Return the keys that an unanswered commit must write to be visible here; None for all keys."""
        steps = [step for operation in self._read.get(version, []) for step in operation.steps]
        if any(step.what in ("tree", "list") for step in steps):
            return None
        return {step.key for step in steps}.union(step.key for group in made for one in group for step in one.steps)

    def _overwritten(self, operation: Operation, version: int) -> Operation:
        """Return an unanswered commit as this version shows it if an earlier version applied it.

        Steps that other commits may have overwritten are left out, if something else was read there.
        """
        shown = set()
        for read in self._read.get(version, []):
            for index, step in enumerate(read.steps):
                result = read.result(index)
                result = result[0] if read.kind == "watch" else result
                values = result if step.what == "tree" else dict(gets(step, result))
                shown |= {(key, str(value)) for key, value in values.items()}
        steps = [
            step
            for step in operation.steps
            if (step.what == "put" and (step.key, str(step.value)) in shown)
            or not any(other.end is None or other.end > operation.start for other in self._written.get(step.key, []))
        ]
        return msgspec.structs.replace(operation, steps=steps)

    def _explained(
        self, version: int, before: Tree, made: list[list[Operation]], chosen: tuple[Operation, ...]
    ) -> Tree | None:
        """Return the version with these unanswered commits in it, if all reads agree.

        Each of the commits makes a difference.
        """
        if not made and not chosen:
            return None
        try:
            # An unanswered one may be part of an earlier version of which that key was not read: so they come first.
            tree = self._apply(before, [*([operation] for operation in chosen), *made])
        except Impossible:
            return None
        if not self._fits(version, tree):
            return None
        for operation in chosen:
            others = [[other] for other in chosen if other is not operation]
            try:
                if self._fits(version, self._apply(before, [*others, *made])):
                    return None
            except Impossible:
                continue
        return tree

    def _unexplained(self, version: int, before: Tree, made: list[list[Operation]]) -> Tree | None:
        """Report that nothing fits, unless the contents cannot be known."""
        if not made and self._gaps:
            return self._whole(version)
        if not made and self._unknown < len(self._open) and self._fits(version, before):
            self._unknown += 1
            self._maybe |= dict.fromkeys(self._open_keys())
            return _with_any(before, self._maybe)
        try:
            tree = self._apply(before, made)
        except Impossible as problem:
            self._problem(f"replay: version {version} of {self._name}: {problem}")
            return self._whole(version)
        if not made:
            self._problem(f"replay: no commit made version {version} of {self._name}")
        self._compare(version, tree, made)
        return self._whole(version) or tree

    def _open_keys(self) -> list[str]:
        return [step.key for operation in self._open for step in operation.steps if step.what in WRITES]

    def _whole(self, version: int) -> Tree | None:
        """Return the whole version, if a client read all of it."""
        for operation in self._read.get(version, []):
            if [step.what for step in operation.steps] == ["tree"] and operation.steps[0].key == ".":
                return tree_of(operation.result(0))
        return None

    def _fits(self, version: int, tree: Tree) -> bool:
        return not any(True for operation in self._read.get(version, []) for _ in wrong(operation, tree))

    def _compare(self, version: int, tree: Tree | None, made: list[list[Operation]] | None = None) -> None:
        if tree is None:
            return
        for operation in self._read.get(version, []):
            for problem in wrong(operation, tree):
                lines = [f"replay: version {version} of {self._name} is not what its transactions make: {problem}"]
                lines += [f"    {one}" for one in [*(one for group in made or [] for one in group), operation]]
                self._problem("\n".join(lines))

    def _disjoint(self, version: int, made: list[list[Operation]]) -> Iterator[str]:
        """Two transactions that write one key need two versions: otherwise one of the values was never visible."""
        for one, other in combinations(made, 2):
            keys = {step.key for operation in one for step in operation.steps if step.what in WRITES}
            others = {step.key for operation in other for step in operation.steps if step.what in WRITES}
            for key in sorted(keys):
                if any(key == other or below(key, other) or below(other, key) for other in others):
                    yield f"merge: version {version} of {self._name}, {key}:\n    {one[0]}\n    {other[0]}"

    # ------------------------------------------------------------------------------------------------------- applying

    def _apply(self, before: Tree, made: list[list[Operation]]) -> Tree:
        """Apply transactions and compare their results. Raises Impossible."""
        store = ModelStore(before, self._name)
        for transaction in made:
            writers: dict[str, Operation] = {}
            if len(transaction) > 1 and not transaction[0].fence:
                start = lookup(store.tree, transaction[0].steps[-1].key)[0]
                transaction = _in_order(transaction, 0 if start is None else start)
            for operation in transaction:
                for index, step in enumerate(operation.steps):
                    result = _step(store, step, operation)
                    answer = operation.result(index)
                    has_result = step.what in ("add", "exchange", "swap")
                    if has_result and operation.results is not None and not _agrees(result, answer):
                        raise Impossible(f"'{step}' answered {answer}, and must answer {result}:\n    {operation}")
                    shared = step.what in WRITES and bool(operation.fence)
                    if shared and writers.setdefault(step.key, operation) is not operation:
                        store.tree = with_value(store.tree, split_key(step.key), ANY)
        return store.tree


def _step(store: ModelStore, step: KeyStep, operation: Operation) -> Any:
    """Apply one step; return its result. Raises Impossible."""
    results: list[Any] = []
    try:
        store.apply(step, results)
    except FluxmpiError as error:
        raise Impossible(f"'{step}' cannot have been applied: {error}\n    {operation}") from None
    return results[0]


def _agrees(right: Any, answer: Any) -> bool:
    """Return whether an answered result may be this one.

    Directories of recorded histories may be unknown, if they are empty.
    """
    return says(right, answer) or (answer in (DIRECTORY, [False, DIRECTORY]) and right in (None, [False, None]))


def _with_any(tree: Tree, keys: Iterable[str]) -> Tree:
    """Return the tree with these keys unknown; where a directory above one is missing, that directory is unknown."""
    for key in keys:
        parts = split_key(key)
        thing: Any = tree
        for depth, name in enumerate(parts, 1):
            thing = thing.get(name)
            if thing is None or (depth == len(parts) and not isinstance(thing, dict)):
                tree = with_value(tree, parts[:depth], ANY)
            if not isinstance(thing, dict):
                break
    return tree


def _transactions(operations: list[Operation]) -> Iterator[list[Operation]]:
    """Yield the transactions of one version.

    Each commit is one; all contributions to a fence are one; so are all additions to one key, which brokers combined.
    """
    fences: dict[str, list[Operation]] = {}
    sums: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.fence:
            fences.setdefault(operation.fence, []).append(operation)
        elif operation.results and [(step.what, step.limit) for step in operation.steps] == [("add", None)]:
            sums.setdefault(operation.steps[0].key, []).append(operation)
        else:
            yield [operation]
    yield from fences.values()
    yield from sums.values()


def _in_order(adds: list[Operation], start: Any) -> list[Operation]:
    """Return additions in the order of their sums.

    Each begins where another one ended, from ``start`` through all of them (Hierholzer's path: the same sum may occur
    twice).
    """
    after: dict[int, list[Operation]] = {}
    for operation in adds:
        number = operation.result(0)[1]
        after.setdefault(number - operation.steps[0].value, []).append(operation)
    path: list[tuple[Any, Operation | None]] = [(start, None)]
    found: list[Operation] = []
    while path:
        number, last = path[-1]
        if after.get(number):
            following = after[number].pop()
            path.append((following.result(0)[1], following))
        else:
            path.pop()
            if last is not None:
                found.append(last)
    return found[::-1] + [operation for left in after.values() for operation in left]


def below(key: str, directory: str) -> bool:
    """Return whether a key is below a directory."""
    return key.startswith(f"{directory}.") or directory == "."
