"""The linearizability checker: it accepts and rejects what it must, and agrees with one that tries every order."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxmpi.simulator.checkers.history import KeyStep, Operation
from fluxmpi.simulator.checkers.linearizability import (
    Model,
    NumberRegister,
    Register,
    TextRegister,
    VersionCounter,
    by_key,
    check,
    versions,
    violations,
)


def op(start: float, end: float | None, *steps: Any, client: str = "c", **more: Any) -> Operation:
    """``steps``: (what, value of the step, result); the key is k."""
    made = [
        KeyStep(step[0], "k", *step[1]) if isinstance(step[1], tuple) else KeyStep(step[0], "k", step[1])
        for step in steps
    ]
    writes = any(step[0] != "get" for step in steps)
    results = None if end is None else [step[2] if len(step) > 2 else None for step in steps]
    return Operation(client, "commit" if writes else "read", start, end, made, results, fresh=not writes, **more)


def put(start: float, end: float | None, value: Any, **more: Any) -> Operation:
    return op(start, end, ("put", value), **more)


def get(start: float, end: float, value: Any, **more: Any) -> Operation:
    return op(start, end, ("get", None, value), **more)


def add(start: float, end: float | None, amount: int, after: int | None = None, **more: Any) -> Operation:
    return op(start, end, ("add", amount, [True, after]), **more)


def swap(start: float, end: float | None, old: Any, new: Any, done: bool = True, found: Any = None) -> Operation:
    return op(start, end, ("swap", (new, old), [done, old if done else found]))


def commit(start: float, end: float | None, version: int | None, **more: Any) -> Operation:
    return Operation("c", "commit", start, end, [KeyStep("put", "k", start)], version=version, **more)


def root(start: float, end: float, version: int) -> Operation:
    return Operation("r", "root", start, end, version=version, fresh=True)


# --------------------------------------------------------------------------------------------------------- made by hand

ALLOWED = {
    "nothing": [],
    "a long value, named by its digest": [
        put(0, 1, "long"),
        swap(2, 3, 8, 9, False, f"<blob> {sha256(b'long').hexdigest()}"),
    ],
    "a number grows as a text": [put(0, 1, 7), op(2, 3, ("append", "x")), get(4, 5, "7x")],
    "one after another": [get(0, 1, None), put(2, 3, 1), get(4, 5, 1)],
    "a read beside a write sees either": [put(0, 9, 1), get(1, 2, None), get(3, 4, 1)],
    "two writes at once, in the order that a read shows": [put(0, 5, 1), put(0, 5, 2), get(6, 7, 1)],
    "a write without an answer is seen late": [put(0, None, 1), get(1, 2, None), get(3, 4, 1)],
    "a write without an answer is never seen": [put(0, None, 1), get(1, 2, None), get(3, 4, None)],
    "an exchange gives what was there": [put(0, 1, 1), op(2, 3, ("exchange", 2, 1)), get(4, 5, 2)],
    "a compare-and-swap that fails": [put(0, 1, 1), swap(2, 3, 7, 8, done=False, found=1), get(4, 5, 1)],
    "a compare-and-swap without an answer may fail": [put(0, 1, 1), swap(2, None, 7, 8), get(4, 5, 1)],
    "appends": [op(0, 9, ("append", "a")), op(0, 9, ("append", "b")), get(10, 11, "ba")],
    "removed": [put(0, 1, 1), op(2, 3, ("unlink", None)), get(4, 5, None)],
    "several steps of one commit": [op(0, 1, ("put", 1), ("add", 1, [True, 2])), get(2, 3, 2)],
    "sums": [add(0, 9, 1, 3), add(0, 9, 2, 2), add(10, 11, 1, 4)],
    "a sum without an answer is in the others": [add(0, None, 5), add(1, 2, 1, 6)],
    "a limit": [op(0, 1, ("add", (1, None, 1), [True, 1])), op(2, 3, ("add", (1, None, 1), [False, 1])), get(4, 5, 1)],
}

FORBIDDEN = {
    "a text has no sum": [put(0, 1, "x"), add(2, 3, 1, 1)],
    "a long value, and another's digest": [
        put(0, 1, "long"),
        swap(2, 3, 8, 9, False, f"<blob> {sha256(b'other').hexdigest()}"),
    ],
    "a stale fresh read": [put(0, 1, 1), put(2, 3, 2), get(4, 5, 1)],
    "a value from nowhere": [put(0, 1, 1), get(2, 3, 9)],
    "two reads that go back": [put(0, 1, 1), put(2, 20, 2), get(3, 4, 2), get(5, 6, 1)],
    "a lost update": [add(0, 5, 1, 1), add(1, 6, 1, 1)],
    "a lost update, seen by a read": [add(0, 1, 1, 1), add(2, 3, 1, 2), get(4, 5, 1)],
    "sums that repeat": [add(0, 9, 1, 1), add(0, 9, 1, 2), add(0, 9, 1, 2)],
    "a sum that one without an answer does not explain": [add(0, None, 5), add(1, 2, 1, 3)],
    "a swap that succeeded twice": [put(0, 1, 0), swap(2, 9, 0, 1), swap(2, 9, 0, 2)],
    "a swap that must have succeeded": [put(0, 1, 0), swap(2, 3, 0, 1, done=False, found=0)],
    "an exchange that gave a value twice": [put(0, 1, 0), op(2, 9, ("exchange", 1, 0)), op(2, 9, ("exchange", 2, 0))],
    "an append that is lost": [op(0, 1, ("append", "a")), op(2, 3, ("append", "b")), get(4, 5, "b")],
    "a removed key comes back": [put(0, 1, 1), op(2, 3, ("unlink", None)), get(4, 5, None), get(6, 7, 1)],
    "a write is seen before it began": [get(0, 1, 1), put(2, 3, 1)],
    "seen, and then not, without an answer": [put(0, None, 1), get(1, 2, 1), get(3, 4, None)],
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    assert violations(ALLOWED[name]) == []
    assert check(ALLOWED[name], Register())


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden(name: str) -> None:
    (text,) = violations(FORBIDDEN[name])
    assert text.startswith("linearizability: key k of primary: no order explains")


VERSIONS_ALLOWED = {
    "commits in a row": [commit(0, 1, 1), commit(2, 3, 2), root(4, 5, 2)],
    "two share a version": [commit(0, 5, 1), commit(1, 5, 1), root(6, 7, 1)],
    "one without an answer": [commit(0, None, None), commit(1, 2, 2), root(3, 4, 2)],
}
VERSIONS_FORBIDDEN = {
    "a fresh root that is old": [commit(0, 1, 1), commit(2, 3, 2), root(4, 5, 1)],
    "a later commit in an earlier version": [commit(0, 9, 1), commit(2, 3, 2), commit(4, 9, 1)],
    "a commit after a root, in its version": [commit(0, 1, 1), root(2, 3, 1), root(4, 5, 2)],
    "a version that no commit made": [commit(0, 1, 1), commit(2, 3, 3)],
}


@pytest.mark.parametrize("name", VERSIONS_ALLOWED)
def test_versions_allowed(name: str) -> None:
    assert violations(VERSIONS_ALLOWED[name]) == []


@pytest.mark.parametrize("name", VERSIONS_FORBIDDEN)
def test_versions_forbidden(name: str) -> None:
    (text,) = violations(VERSIONS_FORBIDDEN[name])
    assert text.startswith("linearizability: versions of primary: no order explains")


def test_gaps_allow_unrecorded_versions_and_nothing_else() -> None:
    assert versions(VERSIONS_FORBIDDEN["a version that no commit made"], gaps=["primary"]) == []
    assert versions(VERSIONS_FORBIDDEN["a fresh root that is old"], gaps=["primary"]) != []


# ------------------------------------------------------------------------------------------------------ counterexamples


def test_the_counterexample_is_small_and_names_the_answer() -> None:
    history = [put(at, at + 0.5, at, client=f"w{at}") for at in range(100)]
    history += [get(at + 0.6, at + 0.7, at, client="reader") for at in range(100)]
    history += [get(50.8, 50.9, 7, client="stale"), *(get(at + 0.8, at + 0.9, at) for at in range(60, 90))]
    (text,) = violations(history)
    lines = text.splitlines()
    assert len(lines) == 4, text
    assert "put k 7" in lines[1]
    assert "put k" in lines[2]
    assert "stale at broker 0 [50800.000 … 50900.000 ms] fresh get k → 7" in lines[3]
    assert lines[3].endswith("<- not explained")


def test_an_undecided_history_is_a_violation() -> None:
    history = [op(0, 99, ("append", letter)) for letter in "abcdefghij"] + [get(100, 101, "abc")]
    assert check(history, TextRegister(history)).allowed is False
    verdict = check(history, Register(), budget=500)
    assert verdict.allowed is None
    assert not verdict
    assert verdict.tried <= 600


def test_a_long_history_is_searched_in_a_straight_line() -> None:
    """Four clients at once, three thousand commits: no more placements than a few for each."""
    history = []
    for at in range(3000):
        history.append(put(at, at + 3.5, at, client=f"c{at % 4}", version=at + 1))
        history.append(get(at + 3.6, at + 3.7, at + 3 if at < 2997 else 2999))
    assert check([one for one in history if one.kind == "commit"], Register())
    many = [add(at, at + 3.5, 1, at + 1, version=at + 1) for at in range(3000)]
    verdict = check(many, NumberRegister())
    assert verdict
    assert verdict.tried < 20_000


# ----------------------------------------------------------------------------------- against one that tries every order


def brute(operations: list[Operation], model: Model) -> bool:
    """Try every order of every choice of the open ones, without a cache."""

    def any_order(left: list[Operation], state: Any) -> bool:
        answered = [one for one in left if not one.pending]
        return not answered or any(
            any_order([other for other in left if other is not one], after)
            for one in left
            if all(other is one or other.end >= one.start for other in answered)
            for after in model.step(state, one)
        )

    return any_order(operations, model.initial)


@st.composite
def histories(draw: st.DrawFn, steps: st.SearchStrategy[tuple[Any, ...]]) -> list[Operation]:
    found = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 8))
        end = None if draw(st.integers(0, 4)) == 0 else start + draw(st.integers(0, 5))
        step = draw(steps)
        if end is None and step[0] == "get":
            end = start
        found.append(op(start, end, step, version=draw(st.none() | st.integers(1, 6))))
    return found


values = st.integers(0, 2)
register_steps = st.one_of(
    st.tuples(st.just("get"), st.none(), st.none() | values),
    st.tuples(st.just("put"), values),
    st.tuples(st.just("exchange"), values, st.none() | values),
    st.tuples(st.just("swap"), st.tuples(values, values), st.tuples(st.booleans(), values).map(list)),
    st.tuples(st.just("unlink"), st.none()),
)
counter_steps = st.one_of(
    st.tuples(st.just("get"), st.none(), st.integers(0, 4)),
    st.tuples(st.just("add"), st.integers(1, 2), st.integers(1, 6).map(lambda number: [True, number])),
    st.tuples(st.just("add"), st.tuples(st.just(1), st.none(), st.just(2)), st.just([False, 2])),
)


@given(histories(register_steps))
@example([put(0, 1, 1), get(1, 2, None)])
@settings(max_examples=150)
def test_registers_agree_with_one_that_tries_every_order(history: list[Operation]) -> None:
    assert bool(check(history, Register())) is brute(history, Register())


@given(histories(counter_steps))
@settings(max_examples=150)
def test_counters_agree_with_one_that_tries_every_order(history: list[Operation]) -> None:
    assert bool(check(history, NumberRegister())) is brute(history, NumberRegister())


log_steps = st.one_of(
    st.tuples(st.just("get"), st.none(), st.none() | st.text("ab", min_size=1, max_size=4)),
    st.tuples(st.just("append"), st.sampled_from("ab")),
)


@given(histories(log_steps))
@settings(max_examples=150)
def test_logs_agree_with_one_that_tries_every_order(history: list[Operation]) -> None:
    assert bool(check(history, TextRegister(history))) is brute(history, Register())


@given(st.data())
@settings(max_examples=150)
def test_versions_agree_with_one_that_tries_every_order(data: st.DataObject) -> None:
    history = []
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, 8))
        end = start + data.draw(st.integers(0, 5))
        version = data.draw(st.integers(1, 4))
        kind = data.draw(st.sampled_from(("commit", "root", "open")))
        history.append(
            root(start, end, version) if kind == "root" else commit(start, end if kind == "commit" else None, version)
        )
        if kind == "open":
            history[-1].version = None
    assert bool(check(history, VersionCounter())) is brute(history, VersionCounter())


@given(histories(register_steps), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_the_guess_does_not_change_the_verdict(history: list[Operation], random: Any) -> None:
    before = bool(check(history, Register()))
    for one in history:
        one.version = random.randrange(5)
    assert bool(check(history, Register())) is before


@given(histories(register_steps))
@settings(max_examples=150)
def test_a_counterexample_is_one(history: list[Operation]) -> None:
    verdict = check(history, Register())
    if verdict.allowed is False:
        assert not brute(verdict.stuck, Register())
    else:
        assert all(one in verdict.order for one in history if not one.pending)


# ------------------------------------------------------------------------------------------- what one step does to keys


def written(*steps: KeyStep, results: list[Any] | None = None) -> dict[str, list[str]]:
    """Return the effects on each key of a commit of ``steps``, among reads and writes of all keys."""
    keys = ("d", "d.a", "d.a.b", "da", "e")
    read = Operation("r", "read", 0, 1, [KeyStep("get", key) for key in keys], [None] * len(keys), fresh=True)
    writes = Operation("w", "commit", 0, None, [KeyStep("put", key, 0) for key in keys])
    made = Operation("c", "commit", 0, 1, list(steps), results or [None] * len(steps), 1)
    return {
        key: [str(step) for one in operations for step in one.steps if one.client == "c"]
        for (_, key), operations in by_key([read, writes, made]).items()
        if any(one.client == "c" for one in operations)
    }


def test_a_key_needs_directories_above_it_and_a_value_replaces_what_is_below() -> None:
    assert written(KeyStep("put", "d.a", 1)) == {"d": ["within d"], "d.a": ["put d.a 1"], "d.a.b": ["unlink d.a.b"]}
    assert written(KeyStep("unlink", "d")) == {"d": ["unlink d"], "d.a": ["unlink d.a"], "d.a.b": ["unlink d.a.b"]}
    assert written(KeyStep("append", "d.a", "x")) == {"d": ["within d"], "d.a": ["append d.a x"]}
    assert written(KeyStep("mkdir", "d.a")) == {"d": ["within d"], "d.a": ["within d.a"]}
    assert written(KeyStep("exchange", "d", 1), results=[2])["d.a"] == ["unlink d.a"]


def test_a_swap_that_puts_nothing_needs_no_directory() -> None:
    assert list(written(KeyStep("swap", "d.a", 1, 2), results=[[False, 3]])) == ["d.a"]
    assert list(written(KeyStep("swap", "d.a", 1, 2), results=[[True, 2]])) == ["d", "d.a"]


def test_a_directory_has_no_contents_of_its_own() -> None:
    made = Operation("c", "commit", 0, 1, [KeyStep("exchange", "d", 1)], [{"a": 1}], 1)
    assert by_key([made])["primary", "d"][0].results == ["<directory>"]
