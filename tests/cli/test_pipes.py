"""A command whose reader has gone ends: at its next write, or at once if it waits for something to print."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_table import PRINTS, STREAMS
from conftest import pending
from instance import FLUXMPI, Instance, environment

END_S = 60.0
PIPE_CLOSED = 141
INTERRUPTED = 130

STREAMING = [(path, words) for path, several in STREAMS.items() for words in several]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """An instance of this file's own: its checkpoints and keys are seen in other commands' output."""
    with Instance(3) as running:
        yield running


@pytest.fixture(scope="module")
def words_of(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], list[str]]:
    """Return a function that fills in a command's words."""
    with instance.connect(1) as h:
        h.kvs.commit({"pipe.value": 1, "pipe.dir.a": 1})
        h.kvs.link("pipe.value", "pipe.link")
        h.eventlog.append("pipe.log", "start")
        blob = h.content.store(b"blob")
    file = str(tmp_path_factory.mktemp("pipes") / "file.h5")
    assert instance.run("checkpoint", "save", "-f", file).status == 0
    names = {"value": "pipe.value", "dir": "pipe.dir", "link": "pipe.link", "log": "pipe.log", "absent": "pipe.absent"}
    return lambda words: [word.format(file=file, blob=blob, **names) for word in words]


@contextmanager
def waiting(instance: Instance, path: tuple[str, ...], words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, and wait until it waits: something is pending for it at a broker, or it has printed a line."""
    command = [*FLUXMPI, *path, *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment(instance.rank_uri(1)), **options) as process:  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + END_S
            if path[0] in ("ping", "trace"):
                assert process.stdout.readline()
            else:
                while not pending(instance):
                    assert process.poll() is None, process.stderr.read()
                    assert time.monotonic() < deadline
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("path", "words"), STREAMING, ids=lambda item: " ".join(item))
def test_a_streaming_command_ends_with_its_reader(
    instance: Instance, words_of: Callable[[list[str]], list[str]], path: tuple[str, ...], words: list[str]
) -> None:
    if "none.such" in words:
        return  # it prints nothing, so there is no sign that it has begun
    with waiting(instance, path, words_of(words)) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(END_S) == PIPE_CLOSED
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("path", "words"), STREAMING, ids=lambda item: " ".join(item))
def test_a_streaming_command_without_a_reader_ends_at_once(
    instance: Instance, words_of: Callable[[list[str]], list[str]], path: tuple[str, ...], words: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*FLUXMPI, *path, *words_of(words)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, env=environment(instance.rank_uri(1))
    ) as process:
        os.close(writer)
        assert process.wait(END_S) == PIPE_CLOSED
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("path", "words"), STREAMING, ids=lambda item: " ".join(item))
def test_ctrl_c_ends_a_streaming_command(
    instance: Instance, words_of: Callable[[list[str]], list[str]], path: tuple[str, ...], words: list[str]
) -> None:
    if "none.such" in words:
        return
    with waiting(instance, path, words_of(words)) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=END_S)
        assert process.returncode == INTERRUPTED
        assert b"Traceback" not in errors


@pytest.mark.parametrize("path", PRINTS, ids=" ".join)
def test_a_command_that_prints_ends_quietly_without_a_reader(
    instance: Instance, words_of: Callable[[list[str]], list[str]], path: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*FLUXMPI, *path, *words_of(PRINTS[path])]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=END_S,
        env=environment(instance.rank_uri(1)),
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, b"")


def test_a_write_is_done_although_nobody_reads_its_output(instance: Instance) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*FLUXMPI, "kvs", "put", "-s", "pipe.written=1"]
    subprocess.run(command, stdout=writer, stderr=subprocess.DEVNULL, timeout=END_S, env=environment(instance.uri))
    os.close(writer)
    with instance.connect(0) as h:
        assert h.kvs.get("pipe.written") == 1


def test_much_output_into_head(instance: Instance, tmp_path: Path) -> None:
    with instance.connect(1) as h:
        h.kvs.commit({f"pipe.many.k{n:05}": "x" * 100 for n in range(5000)})
    for words in (["ls", "-1", "pipe.many"], ["dir", "pipe.many"], ["log"], ["history", "pipe.value"]):
        command = " ".join([*FLUXMPI, "kvs", *words])
        script = f"{command} 2>{tmp_path}/err | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, timeout=END_S, env=environment(instance.rank_uri(1))
        )
        assert int(done.stdout) in (0, PIPE_CLOSED)
        assert (tmp_path / "err").read_bytes() == b""
