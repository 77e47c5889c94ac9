"""Processes for the exec service and the initial program: spawn, output, signals, exits.

Driven by epoll, without polling.

Each command leads a session and a process group of its own, so that a signal reaches its descendants. A pidfd is
readable when it has exited. All that it wrote before is read before the exit is reported; a grandchild that keeps its
pipes open does not delay the report. A guard process ends the commands if this broker is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from typing import Protocol

from fluxmpi.drivers.environment import scrub
from fluxmpi.drivers.guard import ProcessGuard
from fluxmpi.drivers.log import logger
from fluxmpi.jobs.wire import STDERR, STDOUT, Signal, Spawn, Spawned
from fluxmpi.message import LAUNCHER, Body, Message, control

log = logger("launcher")

READ_BYTES = 64 << 10
READS_PER_WAKE = 16

_decode_spawn = Body(Spawn)
_decode_signal = Body(Signal)


class DescriptorWatcher(Protocol):
    """The loop: calls back when a descriptor is readable (or writable)."""

    def watch(self, fd: int, callback: Callable[[], None], write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def deliver(self, msg: Message) -> None: ...


class _Process:
    """A running command."""

    def __init__(self, number: int, popen: subprocess.Popen[bytes], foreground: bool) -> None:
        self.number = number
        self.popen = popen
        self.foreground = foreground
        """It shares the terminal, and therefore the process group, with the broker."""
        self.pidfd = os.pidfd_open(popen.pid)
        self.pipes: dict[int, int] = {}
        """Descriptor of each open read end to its stream."""
        self.stdin = memoryview(b"")
        """What the command has not read of its input."""


class Launcher:
    """Starts, feeds, signals and reaps the processes of one broker."""

    def __init__(self, loop: DescriptorWatcher, environ: dict[str, str]) -> None:
        """Create a launcher without processes.

        ``environ``: variables that every child gets beside this process's scrubbed environment, as FLUXMPI_URI.
        """
        self._loop = loop
        self._environ = {**scrub(os.environ), **environ}
        self._processes: dict[int, _Process] = {}
        self._held = False
        self._guard = ProcessGuard()

    def step(self, msg: Message) -> None:
        if msg.topic == "launcher.spawn":
            self._spawn(_decode_spawn(msg))
        elif msg.topic == "launcher.signal":
            wanted = _decode_signal(msg)
            process = self._processes.get(wanted.id)
            if process is not None:
                self._kill(process, wanted.signal)

    def _report(self, spawned: Spawned) -> None:
        self._loop.deliver(control("launcher.spawned", spawned, LAUNCHER))

    def _spawn(self, spawn: Spawn) -> None:
        pipe = None if spawn.inherit else subprocess.PIPE
        stdin = None if spawn.inherit else subprocess.PIPE if spawn.stdin else subprocess.DEVNULL
        foreground = spawn.inherit and _in_foreground()
        try:
            popen = subprocess.Popen(
                spawn.argv,
                cwd=spawn.cwd,
                env={**self._environ, **spawn.env},
                stdin=stdin,
                stdout=pipe,
                stderr=pipe,
                start_new_session=not spawn.inherit,
                process_group=0 if spawn.inherit and not foreground else None,
            )
        except (OSError, ValueError) as error:
            where = f" in {spawn.cwd}" if spawn.cwd else ""
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            status = 126 if isinstance(error, PermissionError) else 127
            log.warning("command %d cannot be started: %s%s: %s", spawn.id, spawn.argv[0], where, reason)
            self._report(Spawned(spawn.id, status=status, error=f"{spawn.argv[0]}: cannot be started{where}: {reason}"))
            return
        self._guard.add(popen.pid)
        log.info("command %d starts: %s, pid %d", spawn.id, spawn.argv[0], popen.pid)
        process = _Process(spawn.id, popen, foreground)
        self._processes[spawn.id] = process
        self._loop.watch(process.pidfd, partial(self._ended, process))
        for pipe_end, stream in ((popen.stdout, STDOUT), (popen.stderr, STDERR)):
            if pipe_end is not None:
                fd = pipe_end.fileno()
                os.set_blocking(fd, False)
                process.pipes[fd] = stream
                if not self._held:
                    self._watch(process, fd)
        if popen.stdin is not None:
            process.stdin = memoryview(spawn.stdin)
            fd = popen.stdin.fileno()
            os.set_blocking(fd, False)
            self._loop.watch(fd, partial(self._write, process), write=True)

    def _watch(self, process: _Process, fd: int) -> None:
        self._loop.watch(fd, partial(self._read, process, fd, READS_PER_WAKE))

    def hold(self, held: bool) -> None:
        """Read no output while the links to other brokers are congested: commands wait when their pipes are full."""
        if held == self._held:
            return
        self._held = held
        for process in self._processes.values():
            for fd in process.pipes:
                if held:
                    self._loop.unwatch(fd)
                else:
                    self._watch(process, fd)

    def _read(self, process: _Process, fd: int, reads: int) -> None:
        while reads and fd in process.pipes:
            reads -= 1
            try:
                data = os.read(fd, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._report(Spawned(process.number, process.pipes[fd], data))
            else:
                self._loop.unwatch(fd)
                del process.pipes[fd]

    def _write(self, process: _Process) -> None:
        pipe = process.popen.stdin
        if pipe is None or pipe.closed:
            return
        try:
            process.stdin = process.stdin[os.write(pipe.fileno(), process.stdin[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            process.stdin = memoryview(b"")
        if not process.stdin:
            self._loop.unwatch(pipe.fileno())
            pipe.close()

    def _ended(self, process: _Process) -> None:
        status = process.popen.wait()
        log.info("command %d ended with status %d", process.number, status if status >= 0 else 128 - status)
        for fd in list(process.pipes):
            # Read no more than the pipe holds now: a grandchild may write as fast as we read.
            self._read(process, fd, 1 + _readable_bytes(fd) // READ_BYTES)
        self._close(process)
        self._report(Spawned(process.number, status=status if status >= 0 else 128 - status))

    def _close(self, process: _Process) -> None:
        self._guard.remove(process.popen.pid)
        self._loop.unwatch(process.pidfd)
        os.close(process.pidfd)
        for fd in process.pipes:
            self._loop.unwatch(fd)
        popen = process.popen
        if popen.stdin is not None and not popen.stdin.closed:
            self._loop.unwatch(popen.stdin.fileno())
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        del self._processes[process.number]

    def _kill(self, process: _Process, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, OSError):
            if process.foreground:
                if number != signal.SIGINT:  # the terminal has sent that to the program already
                    process.popen.send_signal(number)
            else:
                os.killpg(process.popen.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM to all commands."""
        for process in list(self._processes.values()):
            self._kill(process, signal.SIGTERM)

    def close(self) -> None:
        """End all commands, because the broker ends."""
        for process in list(self._processes.values()):
            self._kill(process, signal.SIGKILL)
            process.popen.wait()
            self._close(process)
        self._guard.close()

    def statistics(self) -> dict[str, float]:
        return {"processes": len(self._processes)}


def _in_foreground() -> bool:
    """Return True if this process and its children get the terminal's Ctrl-C."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _readable_bytes(fd: int) -> int:
    """Return how many bytes a pipe holds now: a process that has ended has left no more than these."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
