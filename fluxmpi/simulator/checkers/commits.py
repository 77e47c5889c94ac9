"""Commits and fences: a commit has one outcome, however often it is sent.

A fence has one version for all contributors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fluxmpi.errors import FenceBroken, StoreFull
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.versions import VersionStates

ACKNOWLEDGED = "was answered already"
"""In the error of a commit that is sent again after its answer was acknowledged."""


def violations(history: Iterable[Operation], states: VersionStates, abandoned: str | None = None) -> Iterator[str]:
    """``abandoned``: the prefix of the names of fences that a member leaves; only these may break. None: any may."""
    history = [operation for operation in history if operation.kind == "commit" or operation.repeats]
    for operation in history:
        yield from _once(operation)
        if operation.answered and operation.version is not None:
            state = states.at(operation.namespace, operation.version)
            wrong = state is None if states.complete else False
            if wrong or (state is not None and state.ref and operation.ref and state.ref != operation.ref):
                yield f"commits: its version does not have the root that was answered:\n    {operation}"
    yield from fences(history, abandoned)


def _once(operation: Operation) -> Iterator[str]:
    """All answers are equal, except that a late one may say that the commit was answered already."""
    first = [operation.error, operation.version, operation.ref, operation.results]
    for again in operation.repeats:
        late = not operation.error and ACKNOWLEDGED in again[0]
        same = again == first if not operation.error else bool(again[0])
        if not late and not same:
            yield f"once: it was answered again with {again}:\n    {operation}"


def fences(history: Iterable[Operation], abandoned: str | None = None) -> Iterator[str]:
    """Judge by the first answers: a contribution to another round, under the same name, has another version."""
    answers: dict[tuple[str, str], dict[int, list[Operation]]] = {}
    errors: dict[tuple[str, str], set[str]] = {}
    for operation in history:
        if operation.fence and not operation.pending:
            place = operation.namespace, operation.fence
            errors.setdefault(place, set()).add(operation.error)
            answers.setdefault(place, {}).setdefault(operation.version or 0, []).append(operation)
    for (namespace, name), found in errors.items():
        if (
            abandoned is not None
            and FenceBroken.__name__ in found
            and (not name.startswith(abandoned) or len(found) > 1)
        ):
            yield f"fences: {name} of {namespace} broke for some: {sorted(found)}, or no member had left it"
    for (namespace, name), outcomes in answers.items():
        size = max(one.size for operations in outcomes.values() for one in operations)
        if not size:
            continue
        for version, operations in outcomes.items():
            refused = {operation.error for operation in operations} == {StoreFull.__name__}  # rounds, of one name
            if len(operations) > size and not refused:
                yield f"fences: {len(operations)} contributors of {name} of {namespace} were answered with version {version}"
        rounds = -(-sum(map(len, outcomes.values())) // size)
        if len(outcomes) > rounds:
            yield f"fences: {name} of {namespace} was answered in {len(outcomes)} ways in {rounds} rounds: {list(outcomes)}"
