"""Promise 4: a snapshot reads the same for as long as it is held, however far the store has moved on; past retention it fails
with SnapshotCollected, and never with a wrong value or a hang.
"""

from __future__ import annotations

import pytest
from checkers.record import Operation
from checkers.replay import replay

from fluxmpi.kvs.reads import Reads
from promises.simulation import Break, Patch, kept, noticed

MIX = {"mix": "snapshots"}


def judge(history: list[Operation]) -> list[str]:
    """What was read of a version, by number or root, is what its commits say; and the same each time."""
    return [*replay(history).problems, *same(history)]


def same(history: list[Operation]) -> list[str]:
    """This needs nobody to know what is right: one root, one key, one value."""
    known: dict[tuple[str, str], Operation] = {}
    found = []
    for one in history:
        if one.kind == "read" and one.ref and one.answered:
            for index, step in enumerate(one.steps):
                first = known.setdefault((one.ref, step.key), one)
                was = first.result([step.key for step in first.steps].index(step.key))
                if was != one.result(index):
                    found.append(f"snapshots: {step.key} was {was}, and then {one.result(index)}:\n    {first}\n    {one}")
    return found


def test_kept() -> None:
    for history in kept(judge, **MIX):
        newest = max(one.version or 0 for one in history)
        old = [one for one in history if one.kind == "read" and one.at and one.version and one.version < newest - 10]
        assert len(old) > 10, "old versions were read"


def a_version_is_read_as_the_newest(patch: Patch) -> None:
    root_at = Reads.root_at
    patch(Reads, "root_at", lambda self, namespace, at: root_at(self, namespace, None if isinstance(at, int) else at))


def a_snapshot_is_read_as_the_newest(patch: Patch) -> None:
    root_at = Reads.root_at

    def newest(self: Reads, namespace: str, at: object) -> object:
        root = root_at(self, namespace, at)  # type: ignore[arg-type]
        now = root_at(self, namespace, None)
        return type(root)(root.namespace, root.version, now.ref if isinstance(at, bytes) else root.ref, root.time)

    patch(Reads, "root_at", newest)


BREAKS: list[tuple[str, Break]] = [
    ("replay: version", a_version_is_read_as_the_newest),
    ("replay: ", a_snapshot_is_read_as_the_newest),
]


@pytest.mark.parametrize(("beginning", "break_it"), BREAKS, ids=[one.__name__.replace("_", " ") for _, one in BREAKS])
def test_broken(beginning: str, break_it: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it(monkeypatch.setattr)
    noticed(judge, beginning, **MIX)
