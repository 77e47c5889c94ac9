"""``fluxmpi start --log-level`` and ``--log-file`` on real brokers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from instance import Instance, run

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} rank (\d+) (\S+) (DEBUG|INFO|WARNING|ERROR) (\w+): (.*)")


def entries(text: str) -> list[tuple[str, ...]]:
    """(rank, host, level, driver, text) of each line, all of which are records."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [match.groups() for match in found if match]


def test_a_file_a_rank(tmp_path: Path) -> None:
    with Instance(3, ["--log-file", str(tmp_path / "run.{rank}.log")]) as instance:
        instance.run("exec", "-r", "1", "true")
    for rank in range(3):
        found = entries((tmp_path / f"run.{rank}.log").read_text())
        assert {entry[0] for entry in found} == {str(rank)}
        texts = [entry[-1] for entry in found]
        assert re.match(r"starts: pid \d+, 3 ranks, .*(MPICH|Open MPI)", texts[0])
        assert re.match(r"instance \w+, topology kary:2: ", texts[1])
        assert texts[2].startswith("all ranks are up; clients connect to /")
        assert texts[-1] == "ends with status 0"
        assert any(text.startswith("command 1 starts: true") for text in texts) == (rank == 1)


def test_all_ranks_in_one_file_do_not_tear_lines(tmp_path: Path) -> None:
    """Python's unbuffered streams write a line and its end separately."""
    path = tmp_path / "log"
    words = ["start", "-n", "4", "--log-level", "debug", "--log-file", str(path), "--"]
    script = 'for n in 1 2 3; do "$0" -m fluxmpi.cli.main exec true & done; wait'
    done = run(*words, "sh", "-c", script, sys.executable, uri=None, PYTHONUNBUFFERED="1")
    assert done.status == 0, done.err
    found = entries(path.read_text())
    assert {entry[0] for entry in found} == {"0", "1", "2", "3"}
    assert sum(entry[-1].startswith("command ") for entry in found) == 2 * 3 * 4


def test_a_level_without_a_file_logs_on_stderr() -> None:
    done = run("start", "--log-level", "info", "--", "true", uri=None)
    assert done.status == 0
    assert [entry[-1] for entry in entries(done.err)][-1] == "ends with status 0"


def test_nothing_is_logged_by_default() -> None:
    done = run("start", "-n", "2", "--", "true", uri=None)
    assert (done.status, done.out, done.err) == (0, "", "")


def test_a_lost_rank_is_logged_with_the_reason(tmp_path: Path) -> None:
    """Rank 2 is stopped: its neighbours find it by its silence."""
    path = tmp_path / "log.{rank}"
    with Instance(3, ["--heartbeat", "0.1", "--log-level", "warning", "--log-file", str(path)]) as instance:
        os.kill(instance.pids[2], signal.SIGSTOP)
        try:
            assert instance.wait() != 0
        finally:
            with contextlib.suppress(ProcessLookupError):  # mpirun has killed it
                os.kill(instance.pids[2], signal.SIGKILL)
    found = entries((tmp_path / "log.0").read_text())
    assert any(re.match(r"lost rank 2 \(\S+\): no heartbeat for \d+\.\d s", entry[-1]) for entry in found), found
    assert any(entry[2] == "ERROR" and entry[-1].startswith("ends with status 1: broker 2") for entry in found)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--log-level", "loud"], 2, "'loud' is not one of"),
        (["--log-file", "/nowhere/log"], 2, "the folder /nowhere does not exist: create it first"),
        (["--log-file", "/"], 2, "is a folder: name a file in it"),
        (["--log-file", "/proc/{rank}"], 1, "cannot open it"),
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_a_log_that_cannot_be_written_ends_the_start_with_one_line(
    words: list[str], status: int, text: str, size: int
) -> None:
    done = run("start", "-n", str(size), *words, "--", "true", uri=None)
    assert done.status == status
    assert text in done.err
    assert "Traceback" not in done.err
