"""A real instance for tests: ``fluxmpi start`` as a subprocess, with time limits and a check for leftovers."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fluxmpi.client.channel import URI_VARIABLE, Channel
from fluxmpi.client.handle import Handle, connect
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.client.sockets import open_socket
from fluxmpi.kvs.replica.root_page import RootPage

ROOT = Path(__file__).parents[2]
FLUXMPI = [sys.executable, "-m", "fluxmpi.cli.main"]

BYTECODE = tempfile.TemporaryDirectory(prefix="fluxmpi-test-bytecode-")
"""Shared by all commands, so that modules are compiled once even if PYTHONDONTWRITEBYTECODE is set."""

START_S = 60.0
END_S = 60.0
COMMAND_S = 60.0


def environment(uri: str | None = None, **more: str) -> dict[str, str]:
    """Return the test's environment, with this tree's fluxmpi and the instance's address."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80", **more}
    environ.pop(URI_VARIABLE, None)
    if environ.pop("PYTHONDONTWRITEBYTECODE", None):
        environ["PYTHONPYCACHEPREFIX"] = BYTECODE.name
    return environ if uri is None else {**environ, URI_VARIABLE: uri}


@dataclass
class Done:
    """The result of a command. ``out`` is its stdout as text, ``raw`` as bytes."""

    status: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run(*words: str, uri: str | None, stdin: bytes = b"", **environ: str) -> Done:
    """Run ``fluxmpi WORDS`` and wait for its end."""
    done = subprocess.run(
        [*FLUXMPI, *words], input=stdin, capture_output=True, timeout=COMMAND_S, env=environment(uri, **environ)
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


class ChannelWithoutRootPage(Channel):
    """A connection whose reads ask the broker for the newest root each time."""

    def root_page(self) -> RootPage | None:
        return None


@dataclass
class Instance:
    """An instance on this host, as a context manager. ``rank_uri(n)`` is the address of rank n's broker."""

    size: int
    options: list[str] = field(default_factory=list)

    def __enter__(self) -> Instance:
        self._folder = tempfile.TemporaryDirectory(prefix="fluxmpi-test-")
        fifo = os.path.join(self._folder.name, "uri")
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self._log = open(os.path.join(self._folder.name, "log"), "w+b")
        script = f'echo "${URI_VARIABLE}" > {fifo}; exec cat'
        words = ["start", "-n", str(self.size), *self.options, "--", "sh", "-c", script]
        self.process = subprocess.Popen(
            [*FLUXMPI, *words], stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, env=environment()
        )
        try:
            ready, _, _ = select.select([reader], [], [], START_S)
            self.uri = os.read(reader, 1000).decode().strip() if ready else ""
            assert self.uri, f"no instance in {START_S} s: {self.log()}"
        except BaseException:
            self.process.kill()
            raise
        finally:
            os.close(reader)
        self.folder = Path(self.uri.removeprefix("local://")).parent
        self.pids = [self._pid(rank) for rank in range(self.size)]
        self._segments = {segment for pid in self.pids for segment in shared_segments(pid)}
        return self

    def _pid(self, rank: int) -> int:
        with self.connect(rank) as h:
            return h.broker_pid

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def rank_uri(self, rank: int) -> str:
        return f"local://{self.folder}/broker.{rank}.sock"

    def connect(self, rank: int = 0, limits: HandleLimits = DEFAULT_LIMITS) -> Handle:
        return connect(self.rank_uri(rank), limits=limits)

    def connect_without_root_page(self, rank: int = 0) -> Handle:
        return Handle(ChannelWithoutRootPage(open_socket(self.rank_uri(rank).removeprefix("local://"))))

    def run(self, *words: str, rank: int = 0, stdin: bytes = b"", **environ: str) -> Done:
        return run(*words, uri=self.rank_uri(rank), stdin=stdin, **environ)

    def popen(self, *words: str, rank: int = 0, **options: object) -> subprocess.Popen[bytes]:
        environ = environment(self.rank_uri(rank))
        return subprocess.Popen([*FLUXMPI, *words], env=environ, **{"stdout": subprocess.PIPE, **options})  # type: ignore[call-overload]

    def end(self) -> int:
        """End the command, and with it the instance. Return the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(END_S)

    def __exit__(self, *exc: object) -> None:
        try:
            if self.process.poll() is None:
                self.end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()
            log = self.log()
            self._log.close()
            self._folder.cleanup()
        if exc[0] is None:
            assert self.leftovers() == [], log

    def leftovers(self) -> list[str]:
        """Return what remains of the instance: processes, its directory, shared memory."""
        left = [f"process {pid}" for pid in self.pids if psutil.pid_exists(pid)]
        left += [f"directory {self.folder}"] if self.folder.exists() else []
        return left + [f"segment {segment}" for segment in sorted(self._segments) if os.path.exists(segment)]


def shared_segments(pid: int) -> set[str]:
    """Return the files in /dev/shm that a process has mapped, also those whose names are removed."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {
        words[5].removesuffix(" (deleted)")
        for words in (line.split(None, 5) for line in maps)
        if len(words) > 5 and words[5].startswith("/dev/shm/")
    }
