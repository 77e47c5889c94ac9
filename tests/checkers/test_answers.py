"""The checkers of answers: right ones pass, and each rule is noticed when it is broken by hand."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from fluxmpi.kvs.objects import Link
from fluxmpi.simulator.checkers import blobs, commits, events, reads, snapshots, watches
from fluxmpi.simulator.checkers.blobs import BlobAnswer
from fluxmpi.simulator.checkers.events import EventStream, ReceivedEvent
from fluxmpi.simulator.checkers.history import KeyStep, Operation, WatchOptions
from fluxmpi.simulator.checkers.versions import VersionState, VersionStates

TREES: list[dict[str, Any]] = [
    {},
    {"d": {"a": 1, "b": "x"}},
    {"d": {"a": 2, "b": "x"}, "l": Link("d")},
    {"d": {"a": 2}, "l": Link("d"), "loop": Link("loop")},
    {"d": {"a": 2, "c": 3}, "l": Link("d")},
]


def known(newest: int = 4, retention: int = 2) -> VersionStates:
    """Versions 0 to 4, all known, of which two are kept."""
    states = VersionStates(complete=True, newest_at=lambda namespace, time: newest, retention=retention)
    for version, tree in enumerate(TREES):
        states.add("primary", VersionState(version, f"r{version}", tree, ["d.a"]))
    return states


# --------------------------------------------------------------------------------------------------------------- reads


def read(step: KeyStep, result: Any, version: int | None, window: tuple[int, int] = (0, 4), **more: Any) -> Operation:
    ref = "" if version is None else f"r{version}"
    return Operation("c", "read", 0, 1, [step], [result], version, window=window, **({"ref": ref} | more))


def get(key: str) -> KeyStep:
    return KeyStep("get", key)


def listing(prefix: str = "", after: str = "", limit: int = 9) -> KeyStep:
    return KeyStep("list", "d", [prefix, after, limit])


RIGHT_READS = {
    "a value": read(get("d.a"), 1, 1),
    "through a link": read(get("l.a"), 2, 2),
    "a link itself": read(KeyStep("look", "l"), Link("d"), 2),
    "a directory": read(get("d"), "<directory>", 1),
    "absent, in one of the broker's versions": read(get("d.c"), None, None, (2, 3)),
    "a loop": read(get("loop"), "<error> LinkLoop", None, (2, 3)),
    "a list": read(listing(), [{"a": 1, "b": "x"}, False], 1),
    "a part of a list": read(listing(limit=1), [{"a": 1}, True], 1),
    "a list that ends, and says that it may not": read(listing(after="a"), [{"b": "x"}, True], 1),
    "a list of a value": read(KeyStep("list", "d.a", ["", "", 9]), "<error> NotADirectory", None),
    "a root": Operation("c", "root", 0, 1, version=2, ref="r2"),
    "at an old root": read(get("d.a"), 1, 1, (4, 4), at=True, asked="r1"),
}

WRONG_READS = {
    "another value": read(get("d.a"), 2, 1),
    "a link that is not followed": read(get("l"), Link("d"), 2),
    "absent, and was not": read(get("d.c"), None, None, (4, 4)),
    "another error": read(get("d.a"), "<error> LinkLoop", None),
    "a version that the broker did not have yet": read(get("d.a"), 2, 4, (2, 3)),
    "a version that the broker had no more": read(get("d.a"), 1, 1, (2, 3)),
    "a version below the one waited for": read(get("d.a"), 2, 2, (1, 4), least=3),
    "a version that was never made": read(get("d.a"), 2, 7, (0, 9)),
    "another root": read(get("d.a"), 1, 1, ref="r2"),
    "another root than was asked for": read(get("d.a"), 2, 2, at=True, asked="r1"),
    "a root that no version has": read(get("d.a"), 2, 2, at=True, asked="r9", ref="r9"),
    "a list without an entry": read(listing(), [{"a": 1}, False], 1),
    "a list that is too long": read(listing(limit=1), [{"a": 1, "b": "x"}, False], 1),
    "a list in another order": read(listing(), [{"b": "x", "a": 1}, False], 1),
    "a list that ends too early": read(listing(limit=1), [{"a": 1}, False], 1),
    "a list that ignores the prefix": read(listing("b"), [{"a": 1, "b": "x"}, False], 1),
    "a root of another version": Operation("c", "root", 0, 1, version=2, ref="r3"),
}


@pytest.mark.parametrize("name", RIGHT_READS)
def test_right_read(name: str) -> None:
    assert list(reads.violations([RIGHT_READS[name]], known())) == []


@pytest.mark.parametrize("name", WRONG_READS)
def test_wrong_read(name: str) -> None:
    (text,) = reads.violations([WRONG_READS[name]], known())
    assert text.startswith("reads: ")


# ----------------------------------------------------------------------------------------------------------- snapshots


def refused(error: str, version: int | None = None, asked: str = "", window: tuple[int, int] = (4, 4)) -> Operation:
    return Operation("c", "read", 5, 6, [get("d.a")], None, version, at=True, asked=asked, error=error, window=window)


def test_a_read_may_be_refused_where_its_version_is_not_available() -> None:
    allowed = [refused("SnapshotCollected", 2), refused("SnapshotCollected", asked="r1"), refused("VersionUnknown", 9)]
    assert list(snapshots.violations(allowed, known())) == []


@pytest.mark.parametrize(
    ("one", "noticed"),
    [
        (refused("SnapshotCollected", 3), "snapshots: it is among the 2 newest"),
        (refused("SnapshotCollected", asked="r4"), "snapshots: it is among the 2 newest"),
        (refused("VersionUnknown", 1), "snapshots: version 2 had been reached"),
        (refused("StorageError", 1), "snapshots: it must not end like this"),
        (Operation("c", "read", 5, 6, [get("d.a")], error="VersionUnknown"), "snapshots: it must not end like this"),
        (Operation("c", "read", 5, None, [get("d.a")], version=1, at=True), "snapshots: no answer"),
    ],
)
def test_a_read_is_refused_without_reason(one: Operation, noticed: str) -> None:
    earlier = Operation("d", "root", 0, 1, version=2, ref="r2")
    assert [text for text in snapshots.violations([earlier, one], known()) if text.startswith(noticed)]


def test_one_root_reads_the_same_each_time() -> None:
    one, other = read(get("d.a"), 1, 1), read(get("d.a"), 2, 1)
    assert list(snapshots.unequal([one, one])) == []
    assert [text for text in snapshots.unequal([one, other]) if text.startswith("snapshots: d.a was 1, and then 2")]


# ------------------------------------------------------------------------------------------------------------- commits


def commit(version: int, *repeats: list[Any], ref: str = "", error: str = "", **more: Any) -> Operation:
    done = Operation("c", "commit", 0, 1, [KeyStep("put", "k", 1)], [None], version, ref=ref or f"r{version}", **more)
    if error:
        done.error, done.version, done.ref, done.results = error, None, "", None
    done.repeats = list(repeats)
    return done


SAME = ["", 1, "r1", [None]]
LATE = ["InvalidRequest: it was answered already", None, "", None]


def test_a_commit_has_one_outcome() -> None:
    assert list(commits.violations([commit(1, SAME, LATE)], known())) == []
    for wrong in (["", 2, "r2", [None]], ["", 1, "r1", [5]], ["InvalidValue: no", None, "", None]):
        (text,) = commits.violations([commit(1, SAME, wrong)], known())
        assert text.startswith("once: ")
    (text,) = commits.violations([commit(1, SAME, error="InvalidValue")], known())
    assert text.startswith("once: ")


@pytest.mark.parametrize("wrong", [commit(1, ref="r2"), commit(9)])
def test_a_commit_is_answered_with_the_root_of_its_version(wrong: Operation) -> None:
    (text,) = commits.violations([wrong], known())
    assert text.startswith("commits: ")


def fence(version: int, name: str = "f", size: int = 2, error: str = "") -> Operation:
    return commit(version, fence=name, size=size, error=error)


def test_a_fence_has_one_version_for_all() -> None:
    assert list(commits.fences([fence(1), fence(1), fence(2), fence(2)], "left")) == []
    assert list(commits.fences([fence(0, "left", error="FenceBroken")] * 2, "left")) == []
    for wrong in (
        [fence(1), fence(2)],
        [fence(1), fence(1), fence(1)],
        [fence(1), fence(0, error="FenceBroken")],
        [fence(0, error="FenceBroken")] * 2,
        [fence(1, "left"), fence(0, "left", error="FenceBroken")],
    ):
        assert [text for text in commits.fences(wrong, "left") if text.startswith("fences: ")], wrong


# -------------------------------------------------------------------------------------------------------------- events


def event(seq: int, topic: str = "run.a", origin: Any = None) -> ReceivedEvent:
    return ReceivedEvent(topic, seq, b"%d" % seq, origin)


ORIGIN = ("primary", 1, bytes.fromhex("aa"), 0.0)


def judged(answered: list[ReceivedEvent], *streams: EventStream) -> list[str]:
    states = known()
    states.namespaces["primary"][1].ref = "aa"
    published = {("primary", 1): [("run.a", b"2")]}
    return list(events.violations(answered, list(streams), states, published))


def test_events_are_in_one_order() -> None:
    everything = EventStream("c", "", 0, [event(1), event(2, origin=ORIGIN), event(3, "log")])
    some = EventStream("d", "run.", 1, [event(2)])
    late = EventStream("e", "run.", 0, [event(1)], ended=True)
    assert judged([event(1), event(3, "log")], everything, some, late) == []


@pytest.mark.parametrize(
    ("answered", "streams"),
    [
        ([event(1), event(1)], []),
        ([event(1)], [EventStream("c", "", 0, [event(1, "log")])]),
        ([event(1), event(2)], [EventStream("c", "", 0, [event(1)])]),
        ([], [EventStream("c", "", 0, [event(1), event(3)])]),
        ([], [EventStream("c", "run.", 0, [event(2), event(1)])]),
        ([], [EventStream("c", "run.", 0, [event(1, "log")])]),
        ([], [EventStream("c", "", 1, [event(1)])]),
        ([], [EventStream("c", "", 0, [ReceivedEvent("a", 1, b"x")]), EventStream("d", "a", 0, [ReceivedEvent("a", 2, b"x")])]),
        ([], [EventStream("c", "", 0, [event(1, origin=ORIGIN)])]),
        ([], [EventStream("c", "run.", 1, [event(2, origin=("primary", 2, bytes.fromhex("aa"), 0.0))])]),
    ],
    ids=[
        "two with one number", "one number, two events", "missed", "a gap", "out of order", "another topic",
        "before the subscription", "one event, two numbers", "not published by that version", "of another version",
    ],
)  # fmt: skip
def test_events_that_are_not(answered: list[ReceivedEvent], streams: list[EventStream]) -> None:
    found = judged(answered, *streams)
    assert found
    assert all(text.startswith("events: ") for text in found)


# --------------------------------------------------------------------------------------------------------------- blobs

STORED = {sha256(data).digest(): data for data in (b"one", b"two")}
ONE, TWO = STORED


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (BlobAnswer("c", "store", [], 0, ONE), True),
        (BlobAnswer("c", "store", [], 0, b"?"), False),
        (BlobAnswer("c", "load", [ONE], 0, b"one"), True),
        (BlobAnswer("c", "load", [ONE], 0, b"two"), False),
        (BlobAnswer("c", "map", [ONE, TWO], 6, b"onetwo"), True),
        (BlobAnswer("c", "map", [ONE, TWO], 6, b"twoone"), False),
        (BlobAnswer("c", "map", [ONE, TWO], 5, b"onetwo"), False),
        (BlobAnswer("c", "map", [ONE, TWO], 5, b"", "InvalidRequest"), True),
        (BlobAnswer("c", "map", [ONE, TWO], 6, b"", "DigestMismatch"), False),
    ],
)
def test_blobs(answer: BlobAnswer, right: bool) -> None:
    found = list(blobs.violations([answer], STORED, lambda data: sha256(data).digest()))
    assert (found == []) is right
    assert all(text.startswith("content: ") for text in found)


# ------------------------------------------------------------------------------------------------------------- watches

Changes = list[tuple[str, Any, bool, Any]]


def watched(options: WatchOptions, *updates: tuple[int, Changes], window: tuple[int, int] = (0, 4)) -> list[str]:
    options.drained = not options.cancelled
    history = [Operation("c", "watching", 0, None, stream="1", window=window, options=options)]
    for number, (version, changes) in enumerate(updates):
        steps, results = [KeyStep("get", key) for key, *_ in changes], [list(change[1:]) for change in changes]
        history.append(Operation("c", "watch", 0, 1 + number, steps, results, version, ref=f"r{version}", stream="1"))
    return watches.violations(history, known(), queue_max=3)


def below(**more: Any) -> WatchOptions:
    return WatchOptions("d", recursive=True, **more)


NEW: Changes = [("d.a", 1, False, None), ("d.b", "x", False, None)]
SECOND: Changes = [("d.a", 2, True, 1)]
THIRD: Changes = [("d.b", None, True, "x")]
FOURTH: Changes = [("d.c", 3, False, None)]
ALL = [(1, NEW), (2, SECOND), (3, THIRD), (4, FOURTH)]


def test_watches_that_report_all_changes() -> None:
    assert watched(below(), *ALL) == []
    assert watched(below(initial=False), (1, []), *ALL[1:]) == []
    assert watched(below(after=1), (1, []), *ALL[1:]) == []
    assert watched(below(latest=True), (1, NEW), (4, [*SECOND, *THIRD, *FOURTH])) == []
    assert watched(below(count=2, ending="end"), *ALL[:2]) == []
    assert watched(below(cancelled=True), *ALL[:2]) == []
    assert watched(below(progress=[4]), *ALL, (4, [])) == []
    assert watched(WatchOptions("l.a"), (1, []), (2, [("l.a", 2, False, None)])) == []
    assert watched(WatchOptions("*.b", glob=True), (1, NEW[1:]), (3, THIRD)) == []
    assert watched(WatchOptions("d.a", uniq=False), (1, NEW[:1]), (2, SECOND), (3, [("d.a", 2, True, 2)])) == []
    assert watched(WatchOptions("d", ending="IsADirectory"), window=(1, 1)) == []
    assert watched(below(after=9, ending="VersionUnknown")) == []
    assert watched(below(after=1, ending="SnapshotCollected")) == []
    assert watched(below(ending="Overloaded", ending_text="after=1"), (1, NEW)) == []


WRONG_WATCHES: dict[str, list[str]] = {
    "one is missed": watched(below(), ALL[0], *ALL[2:]),
    "the last is missed": watched(below(), *ALL[:3]),
    "one twice": watched(below(), *ALL[:2], ALL[1], *ALL[2:]),
    "out of order": watched(below(), ALL[0], ALL[2], ALL[1], ALL[3]),
    "half of one": watched(below(), (1, NEW[:1]), *ALL[1:]),
    "keys out of order": watched(below(), (1, NEW[::-1]), *ALL[1:]),
    "another value": watched(below(), ALL[0], (2, [("d.a", 9, True, 1)]), *ALL[2:]),
    "another old value": watched(below(), ALL[0], (2, [("d.a", 2, True, 9)]), *ALL[2:]),
    "another existence": watched(below(), ALL[0], (2, [("d.a", 2, False, None)]), *ALL[2:]),
    "a key that is not watched": watched(below(), ALL[0], (2, [*SECOND, ("l", Link("d"), False, None)]), *ALL[2:]),
    "a key that the pattern does not match": watched(WatchOptions("*.b", glob=True), (1, NEW), (3, THIRD)),
    "the initial state, unasked": watched(below(initial=False), *ALL),
    "it begins with another version": watched(below(after=1), (2, []), *ALL[2:]),
    "it begins below what was read": watched(below(at_least=2), *ALL),
    "the difference to another version": watched(below(latest=True), (1, NEW), (4, [*THIRD, *FOURTH])),
    "the newest is missed": watched(below(latest=True), (1, NEW), (2, SECOND)),
    "more than asked for": watched(below(count=2, ending="end"), *ALL[:3]),
    "it ends by itself": watched(below(ending="end"), *ALL[:2]),
    "it ends with an error": watched(below(ending="IsADirectory"), *ALL[:2]),
    "it must have ended with an error": watched(WatchOptions("d")),
    "it reports nothing": watched(below()),
    "no progress": watched(below(progress=[]), *ALL),
    "progress beyond a change": watched(below(), ALL[0], (4, [])),
    "written again, by another version": watched(WatchOptions("l", uniq=False), (2, []), (3, [("l", 1, True, 1)])),
    "a version that is known": watched(below(after=1, ending="VersionUnknown"), window=(4, 4)),
    "a version that is kept": watched(below(after=4, ending="SnapshotCollected")),
    "overloaded, without lag": watched(below(ending="Overloaded", ending_text="after=4"), *ALL),
    "overloaded, and not where to continue": watched(below(ending="Overloaded"), (1, NEW)),
    "parts of two versions": watched(below(contradiction="version 1 was sent in part"), *ALL),
}


@pytest.mark.parametrize("name", WRONG_WATCHES)
def test_watches_that_do_not(name: str) -> None:
    assert WRONG_WATCHES[name]
    assert WRONG_WATCHES[name][0].startswith("watches: ")
