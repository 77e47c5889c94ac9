"""No control character of a key, a value, a name or an error reaches a terminal, in any command."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_table import PRINTS, SILENT, STREAMS
from instance import FLUXMPI, Instance, environment

from fluxmpi.cli.common import commands
from fluxmpi.cli.main import cli

ALL = {path for path, _ in commands(cli)}

HOSTILE = "\x1b[31m\x1b]0;owned\x07\r\x08\x7f\x9b2J\u202e\u2028"
BAD = f"t{HOSTILE}"
DEEP = f"{BAD}{'.x' * 128}"
"""An invalid key: it has over 128 components."""
BYTES = HOSTILE.encode() + b"\xff\x9b\n\tend"
END_S = 60.0
OWN = re.compile(rb"\x1b\[[0-9;]*m")
"""Colours that an eventlog is printed in, and nothing else."""


def on_terminal(instance: Instance, *words: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a command whose stdout and stderr are a terminal. Return its exit status, and what the terminal got."""
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [*FLUXMPI, *words], stdin=subprocess.PIPE, stdout=end, stderr=end, env=environment(instance.rank_uri(1))
    ) as process:
        os.close(end)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        output = b""
        deadline = time.monotonic() + END_S
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                piece = os.read(terminal, 1 << 16)
            except OSError:  # the last writer has closed it
                break
            output += piece
        else:
            process.kill()
        os.close(terminal)
        return process.wait(END_S), output.replace(b"\r\n", b"\n")


def check(output: bytes) -> None:
    text = output.decode()  # all of it is UTF-8
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", text), repr(text)


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """An instance of this file's own: its checkpoints and keys are seen in other commands' output."""
    with Instance(3) as running:
        yield running


@pytest.fixture(scope="module")
def hostile(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.commit({f"{BAD}.value": BYTES, f"{BAD}.text": HOSTILE, f"{BAD}.json": {HOSTILE: [HOSTILE]}})
        h.kvs.commit({f"{BAD}.value": BYTES + b"2", f"{BAD}.deep.{BAD}": HOSTILE, f"{BAD}.gone": 1})
        h.kvs.unlink(f"{BAD}.gone")
        h.kvs.link(f"{BAD}.value", f"{BAD}.link")
        h.eventlog.append(f"{BAD}.log", f"start{HOSTILE}", {HOSTILE: HOSTILE})


COMMANDS: dict[tuple[str, ...], list[list[str]]] = {
    ("kvs", "get"): [
        ["{k}.value"], ["-l", "{k}.value"], ["{k}.text"], ["-j", "{k}.json"], ["{k}.json"], ["-t", "{k}.link"],
        ["{k}.none"], ["{k}"], ["-w", "-c", "1", "{k}.value"],
    ],
    ("kvs", "put"): [["{deep}=1"], ["{k}"], ["-t", "{k}=x{k}"]],
    ("kvs", "ls"): [["-R", "{k}"], ["-1", "{k}"], ["-j", "{k}"], ["{k}.none"], ["-d", "{k}", "{k}.value"]],
    ("kvs", "dir"): [["{k}"], ["-R", "-w", "0", "{k}"], ["-j", "{k}"], ["-d", "{k}"], ["{k}.none"]],
    ("kvs", "mkdir"): [["{deep}"]],
    ("kvs", "unlink"): [["{k}.none"], ["{k}"]],
    ("kvs", "link"): [["a", "{deep}"]],
    ("kvs", "readlink"): [["{k}.link"], ["{k}.value"]],
    ("kvs", "copy"): [["{k}.none", "x"], ["{k}.value", "{deep}"]],
    ("kvs", "move"): [["{k}.none", "x"]],
    ("kvs", "txn"): [[]],
    ("kvs", "add"): [["{k}.value"], ["{k}.none", "{k}"]],
    ("kvs", "watch"): [
        ["-G", "-c", "1", "{k}.value"], ["-R", "-c", "5", "{k}"], ["-R", "-j", "-c", "5", "{k}"], ["-s", "9999999", "{k}"],
    ],
    ("kvs", "version"): [["-N", "{k}"]],
    ("kvs", "wait"): [["-N", "{k}", "1"], ["{k}"]],
    ("kvs", "getroot"): [["-N", "{k}"], ["-a", "{k}"]],
    ("kvs", "history"): [["{k}.value"], ["-j", "{k}.value"], ["{k}.gone"], ["{k}.text"]],
    ("kvs", "log"): [[], ["-j"]],
    ("kvs", "diff"): [["1"], ["-j", "1"], ["{k}"]],
    ("kvs", "retention"): [["-N", "{k}"]],
    ("kvs", "lease"): [["{k}", "--", "true"], ["1", "--", "{k}"]],
    ("kvs", "namespace", "create"): [["{k}"]],
    ("kvs", "namespace", "remove"): [["{k}"]],
    ("kvs", "namespace", "list"): [[]],
    ("kvs", "gc"): [[]],
    ("kvs", "dropcache"): [["{k}"]],
    ("kvs", "sync"): [["{k}"]],
    ("kvs", "stats"): [["-r", "{k}"]],
    ("kvs", "eventlog", "append"): [["{k}.deep", "n"], ["{k}.log", "n", "{k}"]],
    ("kvs", "eventlog", "get"): [
        ["--color=never", "{k}.log"], ["-u", "{k}.log"], ["-H", "--color=never", "{k}.log"], ["{k}.value"],
    ],
    ("kvs", "eventlog", "wait-event"): [["-u", "{k}.log", "start{h}"], ["-t", "0.01", "{k}.log", "{k}"]],
    ("event", "pub"): [["e", "{k}"], ["-s", "{k}"]],
    ("checkpoint", "save"): [["-f", "{file}"]],
    ("checkpoint", "list"): [["{file}"], ["{k}"]],
    ("checkpoint", "restore"): [["{k}"]],
    ("content", "store"): [["{k}"]],
    ("content", "load"): [["{k}"], []],
    ("content", "dropcache"): [["-r", "{k}"]],
    ("content", "stats"): [["{k}"]],
    ("overlay", "status"): [["-r", "{k}"], []],
    ("overlay", "info"): [["{k}"]],
    ("getattr",): [["{k}"]],
    ("lsattr",): [["-v"], ["{k}"]],
    ("stats",): [["{k}"], []],
    ("uptime",): [["{k}"]],
    ("ping",): [["{k}"], ["0!{k}"]],
    ("exec",): [["-r", "{k}", "true"], ["-x", "{k}", "true"], ["-r", "0", "{k}"]],
    ("trace",): [["{k}"], ["-s", "0.01", "-r", "{k}"]],
    ("start",): [["--no-such-{k}"], ["-n", "{k}"]],
    ("shutdown",): [["{k}"]],
}  # fmt: skip
"""Words with ``{k}``, a hostile key, name or number, and ``{deep}``, an invalid key."""

APART = {("event", "sub"), ("kvs", "get"), ("exec",)}
"""Commands that have a test of their own below."""


def test_the_table_has_every_command() -> None:
    assert {*COMMANDS, *APART} == ALL
    assert {*PRINTS, *STREAMS, *SILENT} == ALL, "say in command_table.py whether the command streams"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_control_character_reaches_the_terminal(
    instance: Instance, hostile: None, tmp_path: Path, path: tuple[str, ...]
) -> None:
    file = str(tmp_path / BAD)
    if path[0] == "checkpoint":
        with instance.connect(0) as h:
            assert instance.run("checkpoint", "save", "-f", file).status == 0
            assert h.size == 3
    stdin = json.dumps({"then": [["swap", f"{BAD}.value", 1, 2], ["nonsense", BAD]]}).encode()
    printed = b""
    for words in COMMANDS[path]:
        filled = [word.replace("{k}", BAD).replace("{h}", HOSTILE).replace("{file}", file) for word in words]
        filled = [word.replace("{deep}", DEEP) for word in filled]
        _, output = on_terminal(instance, *path, *filled, stdin=stdin)
        assert b"Traceback" not in output
        check(output)
        printed += output
    assert printed or path[-1] == "remove"


def test_values_are_shown_with_escapes_and_kept_in_pipes(instance: Instance, hostile: None) -> None:
    shown = on_terminal(instance, "kvs", "get", f"{BAD}.text")[1]
    assert shown == rb"\x1b[31m\x1b]0;owned\x07\x0d\x08\x7f\u009b2J\u202e\u2028" + b"\n"
    assert instance.run("kvs", "get", f"{BAD}.value").raw == BYTES + b"2\n"
    for words in (
        ["history", f"{BAD}.text"],
        ["watch", "-G", "-c", "1", f"{BAD}.text"],
        ["diff", "1"],
        ["ls", f"{BAD}.deep"],
    ):
        assert b"\x1b" in instance.run("kvs", *words).raw, f"{words}: a pipe gets the bytes"
    status, output = on_terminal(instance, "kvs", "get", "--raw", f"{BAD}.value")
    assert (status, b"\x1b[31m" in output) == (0, True), "--raw is for those who want the bytes"


def test_json_on_a_terminal_is_the_same_value(instance: Instance, hostile: None) -> None:
    _, output = on_terminal(instance, "kvs", "get", "-j", f"{BAD}.json")
    assert json.loads(output) == {HOSTILE: [HOSTILE]}


def test_columns_are_as_wide_as_what_is_shown(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.commit({"term.columns.a\x1bb": 1, "term.columns.abcdef": 1})
    _, output = on_terminal(instance, "kvs", "ls", "-w", "24", "term.columns")
    assert output == rb"a\x1bb    abcdef" + b"\n"


def test_an_eventlog_has_colours_of_its_own_only(instance: Instance, hostile: None) -> None:
    _, output = on_terminal(instance, "kvs", "eventlog", "get", f"{BAD}.log")
    assert OWN.search(output)
    check(OWN.sub(b"", output))


def test_events_are_shown_with_escapes(instance: Instance) -> None:
    terminal, end = pty.openpty()
    words = [*FLUXMPI, "event", "sub", "-c", "2", "t\x1b"]
    with (
        instance.connect(1) as h,
        subprocess.Popen(words, stdout=end, stderr=end, env=environment(instance.rank_uri(1))) as process,
    ):
        os.close(end)
        deadline = time.monotonic() + END_S
        while h.rpc("stats.get", target=1)["event"]["subscriptions"] < 1 and time.monotonic() < deadline:
            pass
        for _ in range(2):
            h.event.publish(f"t{HOSTILE}", BYTES)
        assert process.wait(END_S) == 0
        check(os.read(terminal, 1 << 16).replace(b"\r\n", b"\n"))
        os.close(terminal)


def test_the_output_of_a_command_is_its_own(instance: Instance) -> None:
    """As with ssh: the command knows what it writes."""
    _, output = on_terminal(instance, "exec", "-l", "-r", "0", "printf", r"\033[1mbold")
    assert output == b"0: \x1b[1mbold\n"
