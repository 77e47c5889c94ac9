"""``fluxmpi trace`` on real brokers: what it prints, that it leaves nothing on, and a broker that does not answer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from instance import Instance
from killing import wait

LINE = re.compile(
    r"\d+\.\d{6} rank (\d+): +(\S.*?) → (\S.*?) +(request|response|event|control) +(\S+) +tag \d+ .* bytes"
)


@pytest.fixture(autouse=True)
def off(instance: Instance) -> Iterator[None]:
    """No broker records before a test, nor after it."""
    yield
    assert instance.run("trace", "--off").status == 0
    assert recording(instance) == []


def recording(instance: Instance) -> list[int]:
    with instance.connect(0) as h:
        return [rank for rank in range(instance.size) if h.rpc("stats.get", target=rank)["trace"]["on"]]


def hops(lines: list[str]) -> list[tuple[str, ...]]:
    """(rank, source, target, kind, topic) of each line."""
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    return [match.groups() for match in found if match]


# ------------------------------------------------------------------------------------------------------- what it prints


def test_without_a_recording_it_says_what_to_do(instance: Instance) -> None:
    done = instance.run("trace")
    assert (done.status, done.out) == (1, "")
    assert done.err == (
        "fluxmpi trace: ranks 0, 1, 2 record nothing: use --seconds or --follow, or switch recording on with --on first\n"
    )
    assert "rank 1 records nothing" in instance.run("trace", "-r", "1").err


def test_a_commit_is_followed_from_client_to_client(instance: Instance) -> None:
    assert instance.run("trace", "--on") == instance.run("trace", "--on")
    assert recording(instance) == [0, 1, 2]
    assert instance.run("kvs", "put", "trace.a=1", rank=1).status == 0
    done = instance.run("trace", "-r", "0,1", "--topic", "*.commit", "--topic", "kvs.setroot")
    assert done.status == 0, done.err
    found = [hop for hop in hops(done.lines) if hop[2] != "rank 2"]
    client = found[0][1]
    assert client.startswith("client-")
    assert found == [
        ("1", client, "kvs", "request", "kvs.commit"),
        ("1", "kvs", "rank 0", "request", "leader.commit"),
        ("0", "rank 1", "leader", "request", "leader.commit"),
        ("0", "leader", "kvs", "control", "kvs.setroot"),
        ("0", "kvs", "rank 1", "control", "kvs.setroot"),
        ("0", "leader", "rank 1", "response", "leader.commit"),
        ("1", "rank 0", "kvs", "control", "kvs.setroot"),
        ("1", "rank 0", "kvs", "response", "leader.commit"),
        ("1", "kvs", client, "response", "kvs.commit"),
    ]


def test_json_is_a_line_a_message_and_names_both_ends_alike(instance: Instance) -> None:
    instance.run("trace", "--on")
    instance.run("ping", "-c", "1", "2", rank=1)
    done = instance.run("trace", "--format", "json", "--topic", "ping.*")
    records = [json.loads(line) for line in done.lines]
    assert [(each["rank"], each["kind"]) for each in records] == [
        (1, "request"), (0, "request"), (2, "request"), (2, "response"), (0, "response"), (1, "response"),
    ]  # fmt: skip
    sent = [each["sent"] for each in records if each["sent"]]
    assert [each["received"] for each in records if each["received"]] == sent
    assert len(sent) == 4


def test_perfetto_gets_one_document(instance: Instance) -> None:
    instance.run("trace", "--on")
    instance.run("ping", "-c", "1", "2", rank=1)
    done = instance.run("trace", "--format", "chrome")
    events = json.loads(done.out)["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1, 2}
    assert {event["ph"] for event in events} >= {"M", "X", "s", "f", "b", "e"}
    assert json.loads(instance.run("trace", "--format", "chrome", "--topic", "none.*").out) == {"traceEvents": []}


def test_seconds_records_for_a_while_and_then_no_more(instance: Instance) -> None:
    with instance.popen("trace", "-r", "2", "-s", "2s", "--topic", "ping.*") as tracing:
        wait(lambda: 2 in recording(instance), what=lambda: "it records")
        assert 1 not in recording(instance)
        instance.run("ping", "-c", "1", "2", rank=2)
        out, _ = tracing.communicate(timeout=20)
    assert tracing.returncode == 0
    assert [hop[0] for hop in hops(out.decode().splitlines())] == ["2", "2"]
    wait(lambda: recording(instance) == [], what=lambda: "it ends recording")


@pytest.mark.parametrize("form", ["text", "json", "chrome"])
def test_follow_prints_as_it_goes_and_ends_at_ctrl_c(instance: Instance, tmp_path: Path, form: str) -> None:
    path = tmp_path / "trace"
    words = ["trace", "--follow", "--format", form, "--topic", "ping.*"]
    with open(path, "wb") as out, instance.popen(*words, stdout=out, stderr=subprocess.PIPE) as tracing:
        wait(lambda: recording(instance) == [0, 1, 2], what=lambda: "it records")
        instance.run("ping", "-c", "1", "0", rank=1)
        wait(lambda: path.stat().st_size > 0, what=lambda: "it prints while it runs")
        tracing.send_signal(signal.SIGINT)
        _, err = tracing.communicate(timeout=20)
    assert (tracing.returncode, err) == (130, b"")
    text = path.read_text()
    if form == "chrome":
        assert len([event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]) == 4
    else:
        assert len(text.splitlines()) == 4
    wait(lambda: recording(instance) == [], what=lambda: "it ends recording")


def test_a_trace_that_is_killed_leaves_nothing_on(instance: Instance) -> None:
    with instance.popen("trace", "--follow", stdout=subprocess.DEVNULL) as tracing:
        wait(lambda: recording(instance) == [0, 1, 2], what=lambda: "it records")
        tracing.kill()
    wait(lambda: recording(instance) == [], what=lambda: "its connection has ended")


def test_recording_that_is_on_stays_on_after_a_follower(instance: Instance) -> None:
    instance.run("trace", "--on", "-r", "1")
    instance.run("trace", "-s", "0.1")
    wait(lambda: recording(instance) == [1], what=lambda: "only what was switched on is left")


def test_unanswered_requests(instance: Instance) -> None:
    instance.run("trace", "--on")
    with instance.connect(1) as h:
        h.rpc_async("kvs.fence", ["primary", "trace-fence", 2, [[["trace-client", 1], [], 0, [], []]], [], 0])
        instance.run("kvs", "put", "trace.b=1", rank=1)
        wait(lambda: "kvs.fence" in instance.run("trace", "--unanswered").out, what=lambda: "it is listed")
        done = instance.run("trace", "--unanswered", "--topic", "kvs.*")
        assert [hop[:1] + hop[2:] for hop in hops(done.lines)] == [("1", "kvs", "request", "kvs.fence")]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["-r", "9"], 1, "rank 9 does not exist"),
        (["-r", "x"], 1, "'x'"),
        (["--follow", "--on"], 2, "exclude one another"),
        (["--follow", "--unanswered"], 2, "--unanswered needs a trace that ends"),
        (["-s", "soon"], 2, "'soon'"),
        (["--format", "xml"], 2, "'xml'"),
    ],
)
def test_bad_input(instance: Instance, words: list[str], status: int, text: str) -> None:
    done = instance.run("trace", *words)
    assert (done.status, done.out) == (status, "")
    assert text in done.err
    assert "Traceback" not in done.err


def test_help_has_examples_and_exit_statuses(instance: Instance) -> None:
    done = instance.run("trace", "--help")
    assert done.status == 0
    assert "Examples:" in done.out
    assert "Exit status:" in done.out
    assert max(map(len, done.lines)) <= 120


def test_a_broker_that_does_not_answer_is_named_and_left_out() -> None:
    """Rank 2 is stopped, as by a debugger; the others are traced."""
    with Instance(3, ["--heartbeat", "60"]) as instance:
        os.kill(instance.pids[2], signal.SIGSTOP)
        try:
            done = instance.run("trace", "-s", "0.5", "-t", "1s", "--topic", "stats.*")
            assert done.status == 1
            assert "rank 2 is left out: " in done.err
            assert done.out == ""
        finally:
            os.kill(instance.pids[2], signal.SIGCONT)
        wait(lambda: recording(instance) == [], what=lambda: "it ends recording, also where it got no answer")
