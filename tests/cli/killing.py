"""Instances for tests that kill processes: all processes, files and shared segments are known, to find leftovers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from instance import FLUXMPI, environment

from fluxmpi.client.handle import Handle, connect

START_S = 60.0
END_S = 40.0


class Victim:
    """An instance of ``size`` brokers with its own folders. Its command writes the address to a file, then sleeps."""

    def __init__(
        self, size: int, *options: str, mpirun: bool = False, stdin: int = subprocess.DEVNULL, **env: str
    ) -> None:
        self.size = size
        self.base = Path(tempfile.mkdtemp(prefix="fxk-"))
        for name in ("run", "tmp"):
            (self.base / name).mkdir(mode=0o700)
        self.environ = environment(FLUXMPI_RUNDIR=str(self.base / "run"), TMPDIR=str(self.base / "tmp"), **env)
        self.checkpoint = self.base / "store.h5"
        self.mark = f"fxk{os.urandom(4).hex()}"
        ready = self.base / "ready"
        script = f'echo "$FLUXMPI_URI $$" > {ready}.new && mv {ready}.new {ready}; exec sleep 1000 # {self.mark}'
        words = [*FLUXMPI, "start", *options, "--", "sh", "-c", script]
        if mpirun:
            words = [*mpirun_words(size), *words]
        else:
            words[len(FLUXMPI) + 1 : len(FLUXMPI) + 1] = ["-n", str(size)]
        self.log = self.base / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=self.environ, stdin=stdin, stdout=log, stderr=log)
        try:
            self._connect_all(ready)
        except BaseException:
            self.kill_all()
            raise

    def _connect_all(self, ready: Path) -> None:
        wait(ready.exists, START_S, lambda: f"no instance: {self.text()}")
        uri, command = ready.read_text().split()
        self.folder = Path(uri.removeprefix("local://")).parent
        self.command = int(command)
        self.brokers = []
        for rank in range(self.size):
            with self.connect(rank) as h:
                self.brokers.append(h.broker_pid)
        self.everybody = processes_of(self.base)
        self.segments = {segment for process in self.everybody for segment in segments_of(process.pid)}

    def connect(self, rank: int = 0) -> Handle:
        return connect(f"local://{self.folder}/broker.{rank}.sock")

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def launcher(self) -> int:
        """The process id of the launcher that ``fluxmpi start -n`` started: our own, or mpirun."""
        children = psutil.Process(self.process.pid).children()
        return next(c.pid for c in children if str(self.size) in cmdline(c) and "start" in cmdline(c))

    def wait(self) -> int:
        """Wait for the process that the user started. Return its exit status."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            alive = "\n".join(f"{p.pid} {' '.join(p.cmdline())}" for p in processes_of(self.base))
            raise AssertionError(
                f"the instance has not ended in {END_S} s; still running:\n{alive}\n{self.text()}"
            ) from None

    def leftovers(self, *, litter: bool = True) -> list[str]:
        """Return what remains after 10 s. ``litter``: include files that killed processes could not remove."""
        end = time.monotonic() + 10
        while True:
            left = [f"process {p.pid}: {' '.join(cmdline(p))}" for p in processes_of(self.base)]
            left += [str(path) for name in ("run", "tmp") for path in sorted((self.base / name).iterdir())]
            left += [segment for segment in sorted(self.segments) if os.path.exists(segment)]
            left = left if litter else [what for what in left if "/run/fluxmpi-" not in what]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)

    def kill_all(self) -> None:
        for process in processes_of(self.base):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def clean(self) -> None:
        self.kill_all()
        shutil.rmtree(self.base, ignore_errors=True)


@contextlib.contextmanager
def victim(size: int, *options: str, **arguments: object) -> Iterator[Victim]:
    instance = Victim(size, *options, **arguments)  # type: ignore[arg-type]
    try:
        yield instance
    finally:
        instance.clean()


def mpirun_words(size: int) -> list[str]:
    from fluxmpi.drivers.starter import mpirun_command

    return ["env", *(f"{name}={value}" for name, value in mpirun_command(size)[1].items()), *mpirun_command(size)[0]]


def wait(holds, limit_s: float = 20.0, what=lambda: "the condition did not become true") -> None:
    """Poll a condition, with a time limit: foreign processes provide no event to wait for."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


def processes_of(base: Path) -> list[psutil.Process]:
    """Return all processes, of any parent, that have the instance's folder in their environment."""
    wanted = f"FLUXMPI_RUNDIR={base}/run".encode()
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and wanted in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.append(process)
    return found


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def segments_of(pid: int) -> set[str]:
    """Return the files in /dev/shm that a process has mapped, also those whose names are removed."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(None, 5)[5].removesuffix(" (deleted)") for line in lines if "/dev/shm/" in line}


__all__ = ["END_S", "Victim", "signal", "sys", "victim", "wait"]
