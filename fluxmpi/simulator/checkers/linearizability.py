"""Linearizability: one order of all operations explains every answer.

Each operation is at some moment between its start and its end.

The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's cache of configurations
("Testing for linearizability", 2017). A configuration is the set of operations placed so far and the state after them;
a configuration that was visited before is not visited again. Each key is an independent object, and so is the sequence
of versions of each namespace; each is searched separately.

    placed: A B      candidates: operations that began before the first unplaced one ended
            ├── C, if the state allows C's answer ──▶ …
            └── D …                                     none left: backtrack, and place another one there

An operation without an answer may be placed anywhere after its start, or nowhere. The search is bounded; a history that
it cannot decide within its budget counts as not allowed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fluxmpi.errors import FluxmpiError, InvalidRequest, NotADirectory
from fluxmpi.kvs.objects import Link
from fluxmpi.simulator.checkers.history import ANSWERS, ANY, BLOB, DIRECTORY, ERROR, WRITES, KeyStep, Operation, says
from fluxmpi.simulator.checkers.model import NO_RESULT, transition
from fluxmpi.simulator.checkers.reads import gets

BUDGET = 200_000
"""Placements that are tried at most for one object."""

FOREVER = float("inf")


class Model(Protocol):
    """A sequential object.

    ``step``: the states that an operation may lead to, given its answer; none if that answer is wrong in this state.
    ``idle``: whether an operation can be left out without turning a right history into a wrong one; for
    counterexamples.
    """

    initial: Any

    def step(self, state: Any, operation: Operation) -> Sequence[Any]: ...
    def idle(self, operation: Operation, others: list[Operation]) -> bool: ...


# -------------------------------------------------------------------------------------------------------------- models


class Register:
    """One key, with all steps of the model. None means absent."""

    def __init__(self, initial: Any = None) -> None:
        self.initial = initial

    def step(self, state: Any, operation: Operation) -> Sequence[Any]:
        known = operation.results is not None
        for index, step in enumerate(operation.steps):
            try:
                state, result = step_of_key(state, step)
            except FluxmpiError:
                return ()
            if known and result is not NO_RESULT and not says(result, operation.result(index)):
                return ()
        return (state,)

    def idle(self, operation: Operation, others: list[Operation]) -> bool:
        """Return True for a read; or a write of a value that no answer contains, if the others only read and write."""
        if all(step.what in ("get", "equals", "differs") for step in operation.steps):
            return True
        if any(step.what not in ("get", "put", "within") for other in [*others, operation] for step in other.steps):
            return False
        seen = [result for other in others for result in other.results or ()]
        return not any(step.value in seen for step in operation.steps if step.what == "put")


class NumberRegister(Register):
    """A number that changes only by ``add``."""

    def __init__(self) -> None:
        super().__init__(None)

    def step(self, state: Any, operation: Operation) -> Sequence[Any]:
        assert all(step.what in ("add", "get") for step in operation.steps)
        return super().step(state, operation)


class TextRegister(Register):
    """A text that changes only by ``append``.

    Each of its states is a prefix of the longest text in any answer, or extends it.

    So a wrong append is rejected at once, not at the next read.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        super().__init__(None)
        results = [result for operation in operations for result in operation.results or () if isinstance(result, str)]
        self._longest = max(results, key=len, default="")

    def step(self, state: Any, operation: Operation) -> Sequence[Any]:
        assert all(step.what in ("append", "get") for step in operation.steps)
        after = super().step(state, operation)
        return after if all(self._can_be(text or "") for text in after) else ()

    def _can_be(self, text: str) -> bool:
        return self._longest.startswith(text) or text.startswith(self._longest)


class VersionCounter:
    """A namespace's version number. A commit makes the next version, or shares the newest; a fresh root is the newest.

    ``gaps``: versions may be made by something that is not recorded (a restored checkpoint).
    """

    def __init__(self, initial: int = 0, gaps: bool = False) -> None:
        self.initial = initial
        self._gaps = gaps

    def step(self, state: int, operation: Operation) -> Sequence[int]:
        version = operation.version
        if operation.kind != "commit":
            return (version,) if version == state or (self._gaps and version is not None and version > state) else ()
        if version is None:
            return (state + 1,)
        return (version,) if version in (state, state + 1) or (self._gaps and version > state) else ()

    def idle(self, operation: Operation, others: list[Operation]) -> bool:
        return operation.kind != "commit"


def step_of_key(state: Any, step: KeyStep) -> tuple[Any, Any]:
    """Return one key's state after a step, and its result or NO_RESULT.

    Raises FluxmpiError where the step is impossible.
    """
    match step.what:
        case "get" | "look":
            return state, state
        case "unlink":
            return None, NO_RESULT
        case "mkdir" | "within":
            if state not in (None, DIRECTORY) and step.value is not True:
                raise NotADirectory("a value on the path")
            return DIRECTORY, NO_RESULT
        case "equals" | "differs":
            if says(state, step.value) is not (step.what == "equals"):
                raise InvalidRequest("the guard found something else")
            return state, NO_RESULT
    return transition(state, step)


@dataclass(slots=True)
class Verdict:
    """``allowed`` None: undecided, the budget was used up.

    ``order``: one that explains all answers. ``stuck``: a small history that no order explains.
    """

    allowed: bool | None
    tried: int
    order: list[Operation] = field(default_factory=list)
    stuck: list[Operation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.allowed is True


def check(operations: Iterable[Operation], model: Model, budget: int = BUDGET, explain: bool = True) -> Verdict:
    """Return whether one object's operations are linearizable. The caller leaves out those with a definite error.

    ``explain``: make the counterexample small, which takes more searches.
    """
    operations = sorted(operations, key=lambda operation: operation.start)
    verdict = _Search(operations, model, budget).run()
    if verdict.allowed is False:
        verdict.stuck = _explain(operations, model, budget) if explain else operations
    return verdict


Configuration = tuple[int, int, int, Any]
"""All answered operations before this index are placed; a bit mask of the later ones that are placed; a bit mask of the
open operations that are placed; the state.
"""


class _Search:
    """``answered`` and ``open`` operations, both in order of their starts."""

    def __init__(self, operations: list[Operation], model: Model, budget: int) -> None:
        self.answered = [operation for operation in operations if not operation.pending]
        self.open = [operation for operation in operations if operation.pending]
        self._model = model
        self._budget = budget
        self._tried = 0
        self._ends = [FOREVER if operation.end is None else operation.end for operation in self.answered]
        # The guess decides only what is tried first: the order of versions is likely.
        self._guess = [FOREVER if operation.version is None else operation.version for operation in self.answered]

    def run(self) -> Verdict:
        """Search depth first."""
        first: Configuration = 0, 0, 0, self._model.initial
        seen = {first}
        path: list[Operation] = []
        frames = [self._next(first)]
        if not self.answered:
            return Verdict(True, 0)
        while frames:
            for operation, there in frames[-1]:
                if self._tried > self._budget:
                    return Verdict(None, self._tried)
                if there in seen:
                    continue
                path.append(operation)
                if there[0] == len(self.answered):
                    return Verdict(True, self._tried, path)
                seen.add(there)
                frames.append(self._next(there))
                break
            else:
                frames.pop()
                if path:
                    path.pop()
        return Verdict(False, self._tried)

    def _next(self, here: Configuration) -> Iterator[tuple[Operation, Configuration]]:
        """Yield the operations that may be placed next, and their configurations: answered ones first, by the guess."""
        low, placed, opened, state = here
        answered, ends, step = self.answered, self._ends, self._model.step
        until, found, index = FOREVER, [], low
        while index < len(answered) and answered[index].start <= until:
            if not placed >> index - low & 1:
                found.append(index)
                until = min(until, ends[index])
            index += 1
        found.sort(key=self._guess.__getitem__)
        for index in found:
            self._tried += 1
            for after in step(state, answered[index]):
                yield answered[index], (*_place(low, placed | 1 << index - low), opened, after)
        for index, operation in enumerate(self.open):
            if operation.start <= until and not opened >> index & 1:
                self._tried += 1
                for after in step(state, operation):
                    yield operation, (low, placed, opened | 1 << index, after)


def _place(low: int, placed: int) -> tuple[int, int]:
    while placed & 1:
        placed >>= 1
        low += 1
    return low, placed


# ------------------------------------------------------------------------------------------------------ counterexamples


def _explain(operations: list[Operation], model: Model, budget: int) -> list[Operation]:
    """Return the shortest prefix that is wrong: its last answer is the unexplained one.

    Then drop what does not matter for it.
    """
    ends = sorted(operation.end for operation in operations if operation.end is not None)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _Search(_until(operations, ends[middle]), model, budget).run().allowed is False:
            high = middle
        else:
            low = middle + 1
    left = _until(operations, ends[low])
    for operation in reversed(left[:]):
        others = [other for other in left if other is not operation]
        if model.idle(operation, others) and _Search(others, model, budget).run().allowed is False:
            left = others
    return left


def _until(operations: list[Operation], time: float) -> list[Operation]:
    """Return the history as known at that time: later answers are missing."""
    known = []
    for operation in operations:
        if operation.start > time:
            continue
        if operation.end is not None and operation.end > time:
            operation = Operation(
                operation.client, operation.kind, operation.start, None, operation.steps, namespace=operation.namespace,
                broker=operation.broker, fresh=operation.fresh, fence=operation.fence,
            )  # fmt: skip
        known.append(operation)
    return known


# ------------------------------------------------------------------------------------------------------ whole histories


def violations(history: Iterable[Operation], *, initial: dict[str, int] | None = None) -> list[str]:
    """Return the violations of a history: of every key that an answer depends on, and of every namespace's versions."""
    history = list(history)
    return [*keys(history), *versions(history, initial=initial)]


def keys(history: Iterable[Operation]) -> list[str]:
    found: list[str] = []
    for (namespace, key), operations in sorted(by_key(one for one in history if not one.error).items()):
        found += complaint(f"key {key} of {namespace}", check(operations, model_of(operations)))
    return found


def versions(
    history: Iterable[Operation], *, initial: dict[str, int] | None = None, gaps: Collection[str] = ()
) -> list[str]:
    """Return the violations in a history. ``initial``: the first version of each namespace, by default 0.

    ``gaps``: namespaces with gaps (see ``VersionCounter``).
    """
    found: list[str] = []
    for namespace, operations in sorted(by_namespace(one for one in history if not one.error).items()):
        model = VersionCounter((initial or {}).get(namespace, 0), namespace in gaps)
        found += complaint(f"versions of {namespace}", check(operations, model))
    return found


def model_of(operations: list[Operation]) -> Model:
    """Return the narrowest model that fits: it rejects the most."""
    whats = {step.what for operation in operations for step in operation.steps}
    if whats <= {"add", "get"}:
        return NumberRegister()
    return TextRegister(operations) if whats <= {"append", "get"} else Register()


def by_namespace(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return each namespace's commits and fresh roots.

    Contributions to a fence count as commits that share a version.
    """
    found: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.kind == "commit" or (operation.fresh and operation.version is not None and not operation.at):
            found.setdefault(operation.namespace, []).append(operation)
    return found


def by_key(history: Iterable[Operation]) -> dict[tuple[str, str], list[Operation]]:
    """Return each key's part of the commits and fresh reads. An operation does its steps to all of its keys at once."""
    chosen = [operation for operation in history if operation.kind == "commit" or operation.fresh]
    written = {step.key for operation in chosen for step in operation.steps if step.what in WRITES}
    names = sorted(written.union(*map(_above, written)))
    found: dict[tuple[str, str], list[Operation]] = {}
    for operation in chosen:
        parts: dict[str, list[tuple[KeyStep, Any]]] = {}
        for index, step in enumerate(operation.steps):
            for part in _effects(step, operation.result(index), names):
                parts.setdefault(part[0].key, []).append(part)
        for key, steps in parts.items():
            found.setdefault((operation.namespace, key), []).append(_part_of(operation, steps))
    return {
        place: operations
        for place, operations in found.items()
        if any(step.what in ANSWERS for operation in operations for step in operation.steps)
    }


def _effects(step: KeyStep, result: Any, names: list[str]) -> Iterator[tuple[KeyStep, Any]]:
    """Yield what a step does to each key, with results.

    A key needs directories above it, and a value replaces those below.

    ``names``: all keys that are written, and the directories above them, sorted.
    """
    what, key = step.what, step.key
    if what in WRITES and what != "unlink" and not (what == "swap" and not _puts(step, result)):
        replace = what == "mkdir" and step.value is True
        yield from ((KeyStep("within", name, replace), None) for name in _above(key))
    below: list[str] = []
    if what in ("put", "unlink", "exchange"):
        below = names if key == "." else names[bisect_left(names, f"{key}.") : bisect_left(names, f"{key}/")]
    if what != "exchange":
        yield from ((KeyStep("unlink", name), None) for name in below)
    yield (KeyStep("within", key, step.value), None) if what == "mkdir" else (step, _without_contents(result))
    if what == "exchange":
        yield from ((KeyStep("unlink", name), None) for name in below)


def _above(key: str) -> Iterator[str]:
    at = key.find(".")
    while at > 0:
        yield key[:at]
        at = key.find(".", at + 1)


def _without_contents(result: Any) -> Any:
    """Return a result in which a directory is only that: its contents are other keys."""
    if isinstance(result, list):
        return [_without_contents(one) for one in result]
    return DIRECTORY if isinstance(result, dict) else result


def _puts(swap: KeyStep, result: Any) -> bool:
    """Return whether a swap put a value: one that puts nothing needs no directory above it."""
    return swap.value is not None and isinstance(result, list) and bool(result[0])


def _part_of(operation: Operation, steps: list[tuple[KeyStep, Any]]) -> Operation:
    return Operation(
        operation.client, operation.kind, operation.start, operation.end, [step for step, _ in steps],
        None if operation.results is None else [result for _, result in steps], operation.version,
        operation.namespace, operation.broker, operation.fresh, operation.at, operation.fence,
    )  # fmt: skip


def fresh_reads(history: Iterable[Operation]) -> list[Operation]:
    """Return the reads that fresh roots imply: at the moment of the answer, every key was as that version has it.

    Whatever any client read of that version counts, since it cannot have read anything else.
    """
    read: dict[tuple[str, int], dict[KeyStep, Any]] = {}
    roots = []
    for operation in history:
        if operation.kind == "read" and operation.version is not None and operation.answered:
            known = read.setdefault((operation.namespace, operation.version), {})
            for index, step in enumerate(operation.steps):
                known.update((KeyStep("get", key), value) for key, value in gets(step, operation.result(index)))
        elif operation.kind == "root" and operation.fresh and operation.answered:
            roots.append(operation)
    return [
        Operation(
            root.client, "read", root.start, root.end, [step], [result], root.version, root.namespace, root.broker,
            fresh=True,
        )
        for root in roots
        for step, result in read.get((root.namespace, root.version or 0), {}).items()
        if result != ANY and not isinstance(result, Link) and not str(result).startswith((BLOB, ERROR))
    ]  # fmt: skip


def complaint(what: str, verdict: Verdict) -> list[str]:
    """Return nothing, or one text with the counterexample."""
    if verdict:
        return []
    if verdict.allowed is None:
        return [f"linearizability: {what}: undecided after {verdict.tried:,} placements"]
    lines = [f"linearizability: {what}: no order explains these answers:"]
    last = max((operation.end or 0.0 for operation in verdict.stuck), default=0.0)
    for operation in verdict.stuck:
        lines.append(f"    {operation}{'      <- not explained' if operation.end == last else ''}")
    return ["\n".join(lines)]
