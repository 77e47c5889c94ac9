"""Snapshots: a version reads the same each time; a read at a version fails only where the version is not available.

``SnapshotCollected`` is for versions older than retention keeps, ``VersionUnknown`` for those to come. Every read is
answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fluxmpi.errors import SnapshotCollected, VersionUnknown
from fluxmpi.simulator.checkers.history import Operation
from fluxmpi.simulator.checkers.versions import VersionStates

UNAVAILABLE = (SnapshotCollected.__name__, VersionUnknown.__name__)


def violations(history: Iterable[Operation], states: VersionStates) -> Iterator[str]:
    history = list(history)
    yield from unequal(history)
    yield from refused(history, states)


def unequal(history: Iterable[Operation]) -> Iterator[str]:
    """Compare the reads of each root and key with one another: this needs no knowledge of what is right."""
    known: dict[tuple[str, str, str], tuple[object, Operation]] = {}
    for one in history:
        if one.kind != "read" or not one.ref or not one.answered:
            continue
        for index, step in enumerate(one.steps):
            if step.what not in ("get", "look"):
                continue
            result = one.result(index)
            was, first = known.setdefault((one.ref, step.what, step.key), (result, one))
            # A long value may be named by its digest.
            if was != result and not any(str(value).startswith("<") for value in (was, result)):
                yield f"snapshots: {step.key} was {was}, and then {result}:\n    {first}\n    {one}"


def refused(history: list[Operation], states: VersionStates) -> Iterator[str]:
    """Check the reads that ended with an error of their own, or that have no answer."""
    named = {one.ref: one.version for one in history if one.version is not None and one.ref and not one.at}
    for one in history:
        if one.kind not in ("read", "root") or one.answered:
            continue
        if one.pending:
            yield f"snapshots: no answer:\n    {one}"
        elif not one.at or one.error not in UNAVAILABLE:
            yield f"snapshots: it must not end like this:\n    {one}"
        else:
            yield from _unavailable(one, history, named, states)


def _unavailable(
    one: Operation, history: list[Operation], named: dict[str, int], states: VersionStates
) -> Iterator[str]:
    version = named.get(one.asked) if one.asked else one.version
    others = [other for other in history if other.namespace == one.namespace and other.version is not None]
    if one.error == VersionUnknown.__name__:
        reached = max((other.version or 0 for other in others if not other.at and _before(other, one)), default=0)
        if not one.asked and version is not None and version <= reached:
            yield f"snapshots: version {reached} had been reached:\n    {one}"
        return
    if states.newest_at is not None and one.end is not None:
        same = [state.version for state in states.versions(one.namespace) if state.ref == one.asked]
        newest = states.newest_at(one.namespace, one.end)
        gone = all(states.collected(one.namespace, each, one.end) for each in (same if one.asked else [version or 0]))
        gone = gone or (not one.asked and one.window is not None and (version or 0) > one.window[0])
    else:
        newest = max((other.version or 0 for other in others if not other.at and _begun(other, one)), default=0)
        gone = version is None or not states.retention or version <= newest - states.retention
    if not gone:
        yield f"snapshots: it is among the {states.retention} newest, of which {newest} is the last:\n    {one}"


def _before(other: Operation, one: Operation) -> bool:
    return other.end is not None and other.end < one.start


def _begun(other: Operation, one: Operation) -> bool:
    return one.end is None or other.start <= one.end
