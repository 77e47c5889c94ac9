"""The replay checker: partial, lost, repeated and merged transactions; and what unanswered commits may explain."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest

from fluxmpi.simulator.checkers import watches
from fluxmpi.simulator.checkers.history import KeyStep, Operation
from fluxmpi.simulator.checkers.replay import replay


def commit(
    version: int | None, *steps: Any, client: str = "c", fence: str = "", results: list[Any] | None = None
) -> Operation:
    made = [KeyStep(*step) for step in steps]
    start = float(version or 0)
    if version is None:
        return Operation(client, "commit", start, None, made)
    return Operation(client, "commit", start, start + 0.5, made, results or [None] * len(made), version, fence=fence)


def tree(version: int, values: dict[str, Any], ref: str = "") -> Operation:
    return Operation("r", "read", 100, 101, [KeyStep("tree", ".")], [values], version, at=True, ref=ref)


def get(version: int, key: str, value: Any) -> Operation:
    return Operation("r", "read", 100, 101, [KeyStep("get", key)], [value], version, at=True)


def put(key: str, value: Any) -> tuple[str, str, Any]:
    return ("put", key, value)


def problems(*history: Operation, **more: Any) -> list[str]:
    return replay(history, **more).problems


UP_AND_DOWN = ((-3, 2), (3, 5), (-7, -5), (7, 2), (3, 5), (-3, 2))
"""Amounts and sums, from 5 on, out of order."""

KEPT: dict[str, list[Operation]] = {
    "two keys at once": [commit(1, put("a", 1), put("b", 1)), tree(1, {"a": 1, "b": 1})],
    "two clients in one version": [commit(1, put("a", 1)), commit(1, put("b", 2)), tree(1, {"a": 1, "b": 2})],
    "all steps": [
        commit(1, put("d.a", 1), put("d.b", 2), ("append", "log", "x")),
        commit(2, ("append", "log", "y"), ("unlink", "d.a"), ("add", "n", 2), results=[None, None, [True, 2]]),
        commit(3, ("unlink", "d"), ("exchange", "n", 7), ("swap", "log", "z", "xy"), results=[None, 2, [True, "xy"]]),
        tree(2, {"d.b": 2, "log": "xy", "n": 2}),
        tree(3, {"log": "z", "n": 7}),
    ],
    "a value in the place of a directory": [commit(1, put("d.a", 1)), commit(2, put("d", 5)), tree(2, {"d": 5})],
    "an append below a directory that may exist": [
        commit(None, put("d.k", 1)),
        commit(2, ("append", "d.a", "x"), put("d.b", 1)),
        tree(2, {"d.a": "x", "d.b": 1}),
    ],
    "combined additions": [
        commit(1, ("add", "n", 2), results=[[True, 5]]),
        commit(1, ("add", "n", 3), client="d", results=[[True, 3]]),
        tree(1, {"n": 5}),
    ],
    "combined additions up and down": [
        commit(1, ("add", "n", 5), results=[[True, 5]]),
        *(
            commit(2, ("add", "n", by), client=str(index), results=[[True, to]])
            for index, (by, to) in enumerate(UP_AND_DOWN)
        ),
        tree(2, {"n": 5}),
    ],
    "a guard on what is below a value": [commit(1, put("l", 1)), commit(2, ("equals", "l.k"), put("b", 1))],
    "a guard on an empty directory": [
        commit(1, put("d.a", 1)),
        commit(2, ("unlink", "d.a")),
        commit(3, ("differs", "d"), put("b", 1)),
    ],
    "an empty directory is exchanged": [
        commit(1, put("d.a", 1)),
        commit(2, ("unlink", "d.a")),
        commit(3, ("exchange", "d", 7), results=["<directory>"]),
    ],
    "a long value is exchanged": [
        commit(1, put("a", "long")),
        commit(2, ("exchange", "a", 7), results=["<blob> " + sha256(b"long").hexdigest()]),
    ],
    "a swap of what is below a value": [
        commit(1, put("l", 1)),
        commit(2, ("swap", "l.k", 2, 1), put("b", 1), results=[[False, None], None]),
        tree(2, {"l": 1, "b": 1}),
    ],
    "a directory is exchanged": [
        commit(1, put("d.a", 1)),
        commit(2, ("exchange", "d", 7), ("unlink", "d.a"), results=["<directory>", None]),
        tree(2, {"d": 7}),
    ],
    "a fence": [commit(1, put("a", 1), fence="f"), commit(1, put("b", 1), fence="f"), tree(1, {"a": 1, "b": 1})],
    "contributors that disagree": [
        commit(1, put("a", 1), fence="f"),
        commit(1, put("a", 2), fence="f"),
        get(1, "a", 2),
    ],
    "no answer, applied late": [
        commit(None, put("a", 9)),
        commit(1, put("b", 1)),
        tree(1, {"b": 1}),
        tree(2, {"a": 9, "b": 1}),
    ],
    "no answer, merged": [commit(None, put("a", 9)), commit(1, put("b", 1)), tree(1, {"a": 9, "b": 1})],
    "no answer, never applied": [commit(None, put("a", 9)), commit(1, put("b", 1)), tree(1, {"b": 1})],
    "no answer, and no read": [commit(None, put("a", 9)), commit(2, put("b", 1)), get(2, "b", 1), get(2, "a", 9)],
    "no answer, before a sum": [commit(None, ("add", "n", 5)), commit(1, ("add", "n", 1), results=[[True, 6]])],
}

BROKEN: dict[str, tuple[str, list[Operation]]] = {
    "half of a transaction": (
        "replay: version 1 of primary is not",
        [commit(1, put("a", 1), put("b", 1)), tree(1, {"a": 1})],
    ),
    "the other half, seen by one get": ("replay: version 1", [commit(1, put("a", 1), put("b", 1)), get(1, "b", None)]),
    "half of one without an answer": (
        "replay: no commit made",
        [commit(None, put("a", 1), put("b", 1)), tree(1, {"a": 1})],
    ),
    "a lost transaction": ("replay: version 2", [commit(1, put("a", 1)), commit(2, put("b", 1)), tree(2, {"a": 1})]),
    "an older value comes back": (
        "replay: version 2",
        [commit(1, put("a", 1)), commit(2, put("b", 1)), get(2, "a", None)],
    ),
    "an append done twice": (
        "replay: no commit made version 2",
        [commit(1, ("append", "a", "x")), tree(2, {"a": "xx"})],
    ),
    "an append done twice in a version": ("replay: version 1", [commit(1, ("append", "a", "x")), tree(1, {"a": "xx"})]),
    "a sum that repeats": (
        "replay: version 2",
        [commit(1, ("add", "n", 1), results=[[True, 1]]), commit(2, ("add", "n", 1), results=[[True, 1]])],
    ),
    "a sum that repeats in a version": (
        "replay: version 1",
        [commit(1, ("add", "n", 1), results=[[True, 1]]), commit(1, ("add", "n", 1), client="d", results=[[True, 1]])],
    ),
    "a swap that succeeded twice": (
        "replay: version 3",
        [
            commit(1, put("a", 0)),
            commit(2, ("swap", "a", 1, 0), results=[[True, 0]]),
            commit(3, ("swap", "a", 2, 0), results=[[True, 0]]),
        ],
    ),
    "two commits to a key in a version": (
        "merge: version 1",
        [commit(1, put("a", 1)), commit(1, put("a", 2), client="d")],
    ),
    "a commit above another's key": (
        "merge: version 1",
        [commit(1, put("a.b", 1)), commit(1, ("unlink", "a"), client="d")],
    ),
    "a version that no commit made": ("replay: no commit made version 1", [commit(2, put("a", 1))]),
    "one without an answer, twice": (
        "replay: no commit made version 2",
        [commit(None, ("append", "a", "x")), tree(1, {"a": "x"}), tree(2, {"a": "xx"})],
    ),
    "a refused key that was written": ("replay: version 2", [commit(1, put("a", 1)), commit(2, put("a.b", 1))]),
    "two roots of one version": ("replay: one version, two roots", [tree(0, {}, "aaaa"), tree(0, {}, "bbbb")]),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    assert problems(*KEPT[name]) == []


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    beginning, history = BROKEN[name]
    found = problems(*history)
    assert found
    assert found[0].startswith(beginning)


def test_one_that_was_refused_did_nothing() -> None:
    refused = commit(None, put("a", 1))
    refused.end, refused.error = 1.0, "InvalidRequest"
    assert problems(refused, tree(0, {})) == []
    assert problems(refused, tree(1, {"a": 1})) != []


def test_gaps_are_unknown_versions_until_a_whole_version_is_read() -> None:
    history = [commit(1, put("a", 1)), commit(3, put("b", 1)), tree(3, {"b": 1, "z": 5}), commit(4, put("a", 2))]
    assert problems(*history, tree(4, {"a": 2, "b": 1, "z": 5}), gaps=True) == []
    assert problems(*history, tree(4, {"a": 2, "b": 1}), gaps=True) != []


def test_the_first_version_may_hold_something() -> None:
    history = [commit(8, put("a", 1)), tree(8, {"a": 1, "old": 1})]
    assert problems(*history, initial={"primary": (7, {"old": 1})}) == []
    assert problems(*history, initial={"primary": (7, {})}) != []


def test_a_guard_s_finding_counts_as_a_read() -> None:
    def guard(what: str, value: Any) -> Operation:
        return Operation("g", "read", 100, 101, [KeyStep(what, "a", value)], None, 1)

    made = commit(1, put("a", 5))
    assert problems(made, guard("equals", 5), guard("differs", 6), guard("differs", None)) == []
    for wrong in (guard("equals", 6), guard("equals", None), guard("differs", 5)):
        assert problems(made, wrong)[0].startswith("replay: version 1")


# ------------------------------------------------------------------------------------------------------------- watches


def notified(version: int, *changes: tuple[str, Any, bool], pattern: str = "d.") -> Operation:
    steps, results = [KeyStep("get", key) for key, _, _ in changes], [[value, existed] for _, value, existed in changes]
    return Operation("w", "watch", 0, float(version), steps, results, version, stream="1", pattern=pattern)


def watched(*notifications: Operation) -> list[str]:
    """With these versions: 1 makes d.a and d.b, 2 something else, 3 changes d.a and removes d.b, 4 makes d.c."""
    commits = [
        commit(1, put("d.a", 1), put("d.b", 1)),
        commit(2, put("e", 1)),
        commit(3, put("d.a", 2), ("unlink", "d.b")),
        commit(4, put("d.c", 1)),
    ]
    replayed = replay([*commits, *notifications])
    return [*replayed.problems, *watches.violations(notifications, replayed)]


ALL = [
    notified(1, ("d.a", 1, False), ("d.b", 1, False)),
    notified(3, ("d.a", 2, True), ("d.b", None, True)),
    notified(4, ("d.c", 1, False)),
]


def continued(after: int, *notifications: Operation) -> list[Operation]:
    return [msgspec.structs.replace(one, after=after) for one in notifications]


def test_a_watch_that_continues_after_a_version() -> None:
    assert watched(*continued(1, notified(1), *ALL[1:])) == []
    assert watched(*continued(2, notified(2), *ALL[1:])) == []
    assert watched(*continued(1, notified(1), ALL[2])) != [], "skips a version"
    assert watched(*continued(1, notified(1), *ALL)) != [], "repeats a version"
    assert watched(*continued(1, *ALL)) != [], "reports the initial state"
    assert watched(*continued(1, notified(2), *ALL[1:])) != [], "begins with another version"


def test_a_watch_that_reports_everything() -> None:
    assert watched(*ALL) == []
    assert watched(notified(0), *ALL) == []
    assert watched(notified(3, ("d.a", 2, False), pattern="d.a")) == []


@pytest.mark.parametrize(
    "notifications",
    [
        [ALL[0], ALL[2]],
        [ALL[0], ALL[1], notified(3, ("d.a", 2, True))],
        [notified(1, ("d.a", 1, False)), *ALL[1:]],
        [ALL[0], notified(3, ("d.a", 2, True)), ALL[2]],
        [ALL[0], notified(3, ("d.a", 2, False), ("d.b", None, True)), ALL[2]],
        [ALL[0], notified(2, ("e", 1, False)), *ALL[1:]],
        [ALL[0], notified(3, ("d.a", 9, True), ("d.b", None, True)), ALL[2]],
    ],
    ids=[
        "skips a version",
        "repeats a version",
        "half of a version",
        "half of a change",
        "existence",
        "not filtered",
        "value",
    ],
)
def test_a_watch_that_does_not(notifications: list[Operation]) -> None:
    assert watched(*notifications) != []
