"""Recorded histories of real client processes on real brokers under MPI, checked afterwards.

Ten clients work on four brokers at the same time; two of them are killed with commits in flight. Then every version of
the store is read completely, and all responses must be consistent: fresh reads and commits are linearizable, sessions
never go back, versions are the result of their transactions, watches miss nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from checkers.record import load
from instance import Instance, environment

from fluxmpi.simulator.checkers.history import KeyStep, Operation
from fluxmpi.simulator.checkers.judge import judge

TESTS = Path(__file__).parents[1]
BROKERS = 4
CLIENTS = 8
DYING = 2
STEPS = 120
CLIENT_S = 60.0


def history_of(seed: int) -> list[Operation]:
    with Instance(BROKERS) as instance, tempfile.TemporaryDirectory(prefix="fluxmpi-test-") as out:
        environ = environment()
        environ["PYTHONPATH"] = os.pathsep.join((str(TESTS), environ["PYTHONPATH"]))
        processes = []
        for place in range(CLIENTS + DYING):
            die = place >= CLIENTS
            words = [
                str(instance.folder),
                f"{'dying' if die else 'c'}{place}",
                "--out",
                out,
                *(["--die"] if die else []),
            ]
            numbers = {
                "place": place, "rank": place % BROKERS, "size": BROKERS, "clients": CLIENTS, "seed": seed, "steps": STEPS
            }  # fmt: skip
            words += [f"--{name}={number}" for name, number in numbers.items()]
            command = [sys.executable, "-m", "checkers.client", *words]
            processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE))
        try:
            for place, process in enumerate(processes):
                errors = process.communicate(timeout=CLIENT_S)[1]
                assert process.returncode == (-9 if place >= CLIENTS else 0), errors.decode()
        finally:
            for process in processes:
                process.kill()
        return [*load(sorted(Path(out).glob("*.history"))), *whole_versions(instance)]


def whole_versions(instance: Instance) -> Iterator[Operation]:
    """Read every version completely, each at one of the brokers."""
    for rank in range(BROKERS):
        with instance.connect(rank) as h:
            newest = h.kvs.snapshot(fresh=True).version
            for version in range(1 + rank, newest + 1, BROKERS):
                values = {
                    entry.key: entry.value
                    for entry in h.kvs.entries(recursive=True, at=version)
                    if not entry.is_directory
                }
                texts = {key: value.decode() if isinstance(value, bytes) else value for key, value in values.items()}
                yield Operation("all", "read", 0, 1, [KeyStep("tree", ".")], [texts], version, broker=rank, at=True)


@pytest.fixture(scope="module")
def history() -> list[Operation]:
    return history_of(seed=1)


def test_the_recorded_history_is_allowed(history: list[Operation]) -> None:
    problems = judge(history)
    assert problems == [], "\n".join(problems[:10])


def test_the_recorded_history_covers_all_operations(history: list[Operation]) -> None:
    counts = {
        kind: sum(one.kind == kind and one.answered for one in history) for kind in ("commit", "read", "root", "watch")
    }
    assert min(counts.values()) > 100, counts
    assert sum(one.kind == "commit" and one.pending for one in history) == 3 * DYING
    assert len({one.broker for one in history}) == BROKERS
    assert len({(one.client, one.broker) for one in history}) > CLIENTS + DYING + BROKERS, (
        "no client moved to another broker"
    )
    assert sum(one.fresh for one in history) > 100
    results = {(step.what, str(one.result(index))[:5]) for one in history for index, step in enumerate(one.steps)}
    assert {("add", "[True"), ("add", "[Fals"), ("swap", "[True"), ("swap", "[Fals")} <= results
    assert {"equals", "differs"} <= {step.what for one in history for step in one.steps}
    assert sum(bool(one.fence) for one in history) == 3 * CLIENTS


# ------------------------------------------------------------------------------------------------ falsified histories


def a_fresh_read_is_stale(history: list[Operation]) -> str:
    values = [
        (one.end or 0.0, step.value)
        for one in history
        if one.kind == "commit" and one.answered
        for step in one.steps
        if step.what == "put" and step.key == "hot.a"
    ]
    last = max(
        (one for one in history if one.kind == "read" and one.fresh and one.steps[0].key == "hot.a"),
        key=lambda one: one.start,
    )
    last.results = [values[len(values) // 2][1]]
    return "linearizability: key hot.a"


def an_update_is_lost(history: list[Operation]) -> str:
    last = [one for one in history if one.kind == "commit" and one.answered and one.steps[0].what == "append"][-1]
    for one in history:
        if one.kind == "read":
            for index, step in enumerate(one.steps):
                text = one.result(index).get("log.a") if step.what == "tree" else one.result(index)
                cut = (
                    text.replace(last.steps[0].value, "") if isinstance(text, str) and one.results is not None else text
                )
                if step.what == "tree":
                    one.result(index)["log.a"] = cut
                elif step.key == "log.a" and one.results is not None:
                    one.results[index] = cut
    return "replay: version"


def a_sum_is_returned_twice(history: list[Operation]) -> str:
    sums = [
        one for one in history if one.answered and one.steps and one.steps[0].key == "count.a" and one.kind == "commit"
    ]
    sums.sort(key=lambda one: one.version or 0)
    sums[20].results = sums[19].results
    return "linearizability: key count.a"


def a_swap_succeeds_twice(history: list[Operation]) -> str:
    lost = [
        one
        for one in history
        if one.answered and one.steps[-1:] and one.steps[-1].what == "swap" and not one.result(0)[0]
    ]
    lost[0].results = [[True, lost[0].steps[0].expected]]
    return "linearizability: key cell.a"


def half_of_a_commit_is_applied(history: list[Operation]) -> str:
    whole = next(one for one in history[50:] if one.kind == "commit" and one.answered and len(one.steps) > 2)
    tree = next(one for one in history if one.client == "all" and one.version == whole.version)
    tree.result(0)[whole.steps[1].key] = "the previous value"
    return f"replay: version {whole.version} "


def a_client_goes_back(history: list[Operation]) -> str:
    roots = [one for one in history if one.kind == "root" and one.client == "c0" and not one.fresh]
    assert roots[-1].version is not None
    roots[-1].version, roots[-1].ref, roots[-1].least = roots[0].version, roots[0].ref, 0
    return "sessions: "


def a_moved_client_reads_an_old_value(history: list[Operation]) -> str:
    """The read names no version, so only its value shows the error."""
    own = [one for one in history if one.client == "c1" and one.steps and one.steps[0].key == "hot.a" and not one.at]
    reads = [one for one in own if one.kind == "read" and not one.fresh]
    old = next(one.steps[0].value for one in own if one.kind == "commit" and one.steps[0].what == "put")
    reads[-1].results = [old]
    return "sessions: "


def a_watch_skips_versions(history: list[Operation]) -> str:
    """Remove four notifications of the longest stream: the commit of one alone may be unknown if its client died."""
    streams: dict[tuple[str, str], list[Operation]] = {}
    for one in history:
        if one.kind == "watch" and one.answered:
            streams.setdefault((one.client, one.stream), []).append(one)
    longest = max(streams.values(), key=len)
    assert len(longest) > 12
    for one in longest[len(longest) // 3 : len(longest) // 3 + 4]:
        history.remove(one)
    return "watches: "


def two_commits_share_a_version(history: list[Operation]) -> str:
    made = {
        one.version: one for one in history if one.kind == "commit" and one.steps[0].key == "log.a" and not one.pending
    }
    later = next(one for version, one in made.items() if version is not None and any(v and v > version for v in made))
    other = min(
        (one for version, one in made.items() if version and version > (later.version or 0)), key=lambda one: one.start
    )
    other.version, other.ref = later.version, later.ref
    return "merge: version"


FALSIFICATIONS: list[Callable[[list[Operation]], str]] = [
    a_fresh_read_is_stale,
    an_update_is_lost,
    a_sum_is_returned_twice,
    a_swap_succeeds_twice,
    half_of_a_commit_is_applied,
    a_client_goes_back,
    a_moved_client_reads_an_old_value,
    a_watch_skips_versions,
    two_commits_share_a_version,
]


@pytest.mark.parametrize("falsify", FALSIFICATIONS, ids=lambda falsify: falsify.__name__.replace("_", " "))
def test_a_falsified_history_is_detected(history: list[Operation], falsify: Callable[[list[Operation]], str]) -> None:
    """A checker that accepts falsified histories would prove nothing."""
    falsified = deepcopy(history)
    finding = falsify(falsified)
    problems = judge(falsified)
    assert any(problem.startswith(finding) for problem in problems), problems[:3]
