"""Linearizability: is there one order of all operations, each at some moment between its start and its end, in which every
answer is right?

The search is Wing and Gong's ("Testing and verifying concurrent objects", 1993) with Lowe's memory of the configurations seen
("Testing for linearizability", 2017): a configuration is the set of operations placed so far and the state after them; one
that was seen before leads nowhere new. Keys are independent objects, so each is searched for itself; so are the versions of
each namespace.

    placed: A B      next may be whoever began before the first of the others ended
            ├── C, if the state allows C's answer ──▶ …
            └── D …                                     none left to try: back, and place another one there

An operation without an answer may be placed anywhere after its start, or nowhere. The search is bounded: a history that it
cannot decide within its budget is not allowed, since nobody knows that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from typing import Any, Protocol

from checkers.record import ANSWERS, Operation, Step

BUDGET = 200_000
"""Placements tried, at most, for one object."""

FOREVER = float("inf")


class Model(Protocol):
    """An object as it would be if all operations came one after another.

    ``step``: the states that the operation may lead to, given its answer; none if that answer is wrong in this state.
    ``idle``: whether an operation may be left out without making a wrong history of a right one; for counterexamples.
    """

    initial: Any

    def step(self, state: Any, operation: Operation) -> Sequence[Any]: ...
    def idle(self, operation: Operation, others: list[Operation]) -> bool: ...


# -------------------------------------------------------------------------------------------------------------- models

WRONG = object()
DIRECTORY = "<directory>"

ANY = "<any>"
"""What a key is that nobody can know. In an answer: a value that is too long to come with it."""

BLOB = "<blob> "
"""Before the digest of a long value, in an answer that has no more of it."""


def is_told(value: Any, told: Any) -> bool:
    """Whether the answer ``told`` says this, as far as it says what it is."""
    if isinstance(value, list) and isinstance(told, list):
        return value[0] == told[0] and is_told(value[1], told[1])
    if isinstance(told, str) and told.startswith(BLOB) and isinstance(value, str) and value != ANY:
        name = told.removeprefix(BLOB)
        return (sha1 if len(name) == 40 else sha256)(value.encode("latin-1")).hexdigest() == name
    return value == told or ANY in (value, told)


class Register:
    """One key: read, write, append, remove, exchange, compare-and-swap, add. None is: absent."""

    def __init__(self, initial: Any = None) -> None:
        self.initial = initial

    def step(self, state: Any, operation: Operation) -> Sequence[Any]:
        known = operation.results is not None
        for index, step in enumerate(operation.steps):
            state, result = STEPS[step.what](state, step)
            if state is WRONG:
                return ()
            if known and result is not WRONG and not is_told(result, operation.result(index)):
                return ()
        return (state,)

    def idle(self, operation: Operation, others: list[Operation]) -> bool:
        """A read; or a write of a value that nobody has seen, where values can be seen by reading alone."""
        if all(step.what in ("get", "equals", "differs") for step in operation.steps):
            return True
        if any(step.what not in ("get", "put", "within") for other in [*others, operation] for step in other.steps):
            return False
        seen = [result for other in others for result in other.results or ()]
        return not any(step.value in seen for step in operation.steps if step.what == "put")


class Counter(Register):
    """A number that grows by ``add``, which answers what it is afterwards."""

    def __init__(self) -> None:
        super().__init__(None)

    def step(self, state: Any, operation: Operation) -> Sequence[Any]:
        assert all(step.what in ("add", "get") for step in operation.steps)
        return super().step(state, operation)


class Log(Register):
    """A text that grows by ``append`` alone. All that it ever was is a beginning of the longest that anybody saw, or goes on
    from there: so an append that cannot be next is known at once, and not when somebody reads.
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


class Versions:
    """A namespace as one register. A commit makes the next version, or is in the newest, beside others that it does not
    touch; a fresh root is the newest. ``gaps``: versions may be made by what nobody recorded (a restored checkpoint).
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


def _get(state: Any, step: Step) -> tuple[Any, Any]:
    return state, state


def _put(state: Any, step: Step) -> tuple[Any, Any]:
    return step.value, WRONG


def _append(state: Any, step: Step) -> tuple[Any, Any]:
    return WRONG if state == DIRECTORY else ("" if state is None else str(state)) + step.value, WRONG


def _unlink(state: Any, step: Step) -> tuple[Any, Any]:
    return None, WRONG


def _mkdir(state: Any, step: Step) -> tuple[Any, Any]:
    """Also what a put of a key below this one needs here."""
    return (DIRECTORY, WRONG) if state in (None, DIRECTORY) else (WRONG, WRONG)


def _add(state: Any, step: Step) -> tuple[Any, Any]:
    old = 0 if state is None else state
    if not isinstance(old, int):
        return WRONG, WRONG
    if step.limit is not None and old >= step.limit:
        return state, [False, old]
    return old + step.value, [True, old + step.value]


def _exchange(state: Any, step: Step) -> tuple[Any, Any]:
    return step.value, state


def _swap(state: Any, step: Step) -> tuple[Any, Any]:
    return (step.value, [True, state]) if state == step.expected else (state, [False, state])


def _equals(state: Any, step: Step) -> tuple[Any, Any]:
    return (state, WRONG) if state == step.value else (WRONG, WRONG)


def _differs(state: Any, step: Step) -> tuple[Any, Any]:
    return (WRONG, WRONG) if state == step.value else (state, WRONG)


STEPS: dict[str, Callable[[Any, Step], tuple[Any, Any]]] = {
    "get": _get,
    "put": _put,
    "append": _append,
    "unlink": _unlink,
    "mkdir": _mkdir,
    "add": _add,
    "exchange": _exchange,
    "swap": _swap,
    "equals": _equals,
    "differs": _differs,
    "within": _mkdir,
}
"""From state and step to the state after it and the result, WRONG for a step that has none; the state WRONG: impossible."""


# -------------------------------------------------------------------------------------------------------------- search


@dataclass(slots=True)
class Verdict:
    """``allowed`` None: undecided, the budget was used up. ``order``: one that explains all. ``stuck``: the answers of which
    one cannot be explained, with all that matters for it.
    """

    allowed: bool | None
    tried: int
    order: list[Operation] = field(default_factory=list)
    stuck: list[Operation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.allowed is True


def check(operations: Iterable[Operation], model: Model, budget: int = BUDGET, explain: bool = True) -> Verdict:
    """Whether one object's operations are linearizable. Those with a definite error are to be left out by the caller, or to
    be such that the model knows them. ``explain``: make the counterexample small, which takes more searches.
    """
    operations = sorted(operations, key=lambda operation: operation.start)
    verdict = _Search(operations, model, budget).run()
    if verdict.allowed is False:
        verdict.stuck = _explain(operations, model, budget) if explain else operations
    return verdict


Configuration = tuple[int, int, int, Any]
"""Of the answered operations, all before this place are placed; which of the others, as a bit mask from there on; which of the
open ones, as a bit mask; the state.
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
        # Only which is tried first: the order of versions is a good guess, and no more than that.
        self._guess = [FOREVER if operation.version is None else operation.version for operation in self.answered]

    def run(self) -> Verdict:
        """Depth first."""
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
        """Who may be placed next, and what that leads to: answered ones first, by the guess."""
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
    """The shortest beginning that is wrong already: its last answer is the one that nothing explains. Then without all that
    does not matter for it.
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
    """What a client knew at that time: later answers have not come yet."""
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
    """What is wrong with a history, as texts: with any key that an answer depends on, and the versions of any namespace."""
    history = list(history)
    return [*keys(history), *versions(history, initial=initial)]


def keys(history: Iterable[Operation]) -> list[str]:
    found: list[str] = []
    for (namespace, key), operations in sorted(by_key(one for one in history if not one.error).items()):
        found += complaint(f"key {key} of {namespace}", check(operations, model_of(operations)))
    return found


def versions(history: Iterable[Operation], *, initial: dict[str, int] | None = None, gaps: bool = False) -> list[str]:
    """``initial``: the first version of each namespace, by default 0. ``gaps``: see ``Versions``."""
    found: list[str] = []
    for namespace, operations in sorted(by_namespace(one for one in history if not one.error).items()):
        model = Versions((initial or {}).get(namespace, 0), gaps)
        found += complaint(f"versions of {namespace}", check(operations, model))
    return found


def model_of(operations: list[Operation]) -> Model:
    """The narrowest: it knows the most."""
    whats = {step.what for operation in operations for step in operation.steps}
    if whats <= {"add", "get"}:
        return Counter()
    return Log(operations) if whats <= {"append", "get"} else Register()


def by_namespace(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Commits and fresh roots. Contributions to a fence count as commits that share a version."""
    found: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.kind == "commit" or (operation.fresh and operation.version is not None and not operation.at):
            found.setdefault(operation.namespace, []).append(operation)
    return found


def by_key(history: Iterable[Operation]) -> dict[tuple[str, str], list[Operation]]:
    """Each key's part of the commits and fresh reads: what an operation does to a key, it does to all of its keys at once."""
    found: dict[tuple[str, str], list[Operation]] = {}
    for operation in history:
        if operation.kind != "commit" and not operation.fresh:
            continue
        keys = dict.fromkeys(step.key for step in operation.steps)
        for key in keys:
            found.setdefault((operation.namespace, key), []).append(part_of(operation, key, len(keys) == 1))
    return {
        place: operations
        for place, operations in found.items()
        if any(step.what in ANSWERS for operation in operations for step in operation.steps)
    }


def part_of(operation: Operation, key: str, whole: bool) -> Operation:
    if whole:
        return operation
    places = [index for index, step in enumerate(operation.steps) if step.key == key]
    return Operation(
        operation.client, operation.kind, operation.start, operation.end, [operation.steps[at] for at in places],
        None if operation.results is None else [operation.result(at) for at in places], operation.version,
        operation.namespace, operation.broker, operation.fresh, operation.at, operation.fence,
    )  # fmt: skip


def complaint(what: str, verdict: Verdict) -> list[str]:
    """Nothing, or one text that a person can follow."""
    if verdict:
        return []
    if verdict.allowed is None:
        return [f"linearizability: {what}: undecided after {verdict.tried:,} placements"]
    lines = [f"linearizability: {what}: no order explains these answers:"]
    last = max((operation.end or 0.0 for operation in verdict.stuck), default=0.0)
    for operation in verdict.stuck:
        lines.append(f"    {operation}{'      <- not explained' if operation.end == last else ''}")
    return ["\n".join(lines)]
