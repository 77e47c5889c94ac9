"""The log: one line a record in one write, silent by default, and it never ends a broker."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_broker import running_broker

from fluxmpi.drivers import log
from fluxmpi.drivers.log import LINE_BYTES_MAX

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} rank (\d+) (\S+) (DEBUG|INFO|WARNING|ERROR) (\w+): (.*)")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    log.stop()


def lines(path: Path) -> list[tuple[str, ...]]:
    """(rank, host, level, driver, text) of each line."""
    return [match.groups() for line in path.read_text().splitlines() if (match := LINE.fullmatch(line))]


def test_nothing_is_logged_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("", "", 0, "here")
    log.logger("loop").error("not seen")
    assert not log.logger("loop").isEnabledFor(logging.INFO)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("level", log.LEVELS)
def test_a_level_and_those_above_it(tmp_path: Path, level: str) -> None:
    log.configure(level, str(tmp_path / "{rank}.log"), 3, "node3")
    for name in log.LEVELS:
        log.logger("disk").log(logging.getLevelName(name.upper()), "%s %d", name, 1)
    expected = log.LEVELS[log.LEVELS.index(level) :]
    assert lines(tmp_path / "3.log") == [("3", "node3", name.upper(), "disk", f"{name} 1") for name in expected]


def test_a_file_alone_means_info(tmp_path: Path) -> None:
    log.configure("", str(tmp_path / "log"), 0, "here")
    log.logger("loop").info("seen")
    log.logger("loop").debug("not seen")
    assert [line[-1] for line in lines(tmp_path / "log")] == ["seen"]


@pytest.mark.parametrize("file", ["", "-"])
def test_without_a_file_it_goes_to_stderr(capfd: pytest.CaptureFixture[str], file: str) -> None:
    log.configure("info", file, 1, "here")
    log.logger("loop").info("seen")
    assert LINE.fullmatch(capfd.readouterr().err.strip())


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    for rank in range(3):
        log.configure("info", str(tmp_path / "log"), rank, "here")
        log.logger("loop").info("seen")
    assert [line[0] for line in lines(tmp_path / "log")] == ["0", "1", "2"]


def test_each_record_is_one_line_and_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.configure("info", str(tmp_path / "log"), 0, "100%host")
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(data) or write(fd, data))  # type: ignore[func-returns-value]
    log.logger("loop").info("two\nlines, a surrogate \udc80, and 100 %")
    log.logger("loop").info("long %s", "x" * 2 * LINE_BYTES_MAX)
    assert len(writes) == 2
    assert [data.count(b"\n") for data in writes] == [1, 1]
    assert len(writes[1]) <= LINE_BYTES_MAX
    (first, second) = lines(tmp_path / "log")
    assert first[1] == "100%host"
    assert first[-1] == "two\\nlines, a surrogate \\x80, and 100 %"
    assert second[-1].endswith("...")


def test_a_log_that_cannot_be_written_is_no_error() -> None:
    log.configure("info", "/dev/full", 0, "here")
    log.logger("loop").info("lost")


def test_a_file_that_cannot_be_opened_is_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        log.configure("info", str(tmp_path / "none" / "log"), 0, "here")


def test_a_broker_logs_its_clients_commands_and_checkpoints(tmp_path: Path) -> None:
    log.configure("info", str(tmp_path / "log"), 0, "here")
    with running_broker(tmp_path, checkpoint=str(tmp_path / "run.h5")) as world, world.connect() as h:
        h.kvs.put("a", 1)
        h.exec.run(["true"], [0])
    texts = [line[-1] for line in lines(tmp_path / "log")]
    expected = [
        rf"client-16 connects: pid {os.getpid()}",
        r"command 1 starts: true, pid \d+",
        r"command 1 ended with status 0",
        r"client-16 disconnects",
        r"saved checkpoint \S+/run\.h5: \d+ blobs, \d+ bytes, \d+\.\d\d s",
        r"ends with status 0",
    ]
    assert len(texts) == len(expected)
    for pattern in expected:
        assert any(re.fullmatch(pattern, text) for text in texts), pattern
