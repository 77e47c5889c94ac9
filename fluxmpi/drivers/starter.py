"""``fluxmpi start -n N``: start N ranks on this host, and run the command in this terminal.

    this process ──spawns──▶ pmi.py or mpirun ──▶ N brokers       in a session of their own: Ctrl-C does not reach them
         │  ◀──── "ready URI" ──── rank 0 connects to our socket
         ├──spawns──▶ the command (or a shell), in the terminal, with FLUXMPI_URI
         │            its end ──▶ "end STATUS" to rank 0, which ends the instance
         ◀──── "ended STATUS" ──── rank 0; mpirun ends

If one of the three dies, the others end: rank 0 notices that this process's socket is closed, this process that mpirun
has ended, and a command without an instance gets SIGTERM, then SIGKILL. Rank 0 prints why an instance has ended. If it
is gone, each broker that it has cut off reports to this process, which prints the first report. The files that a killed
broker leaves in the run directory are removed here.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

from fluxmpi.drivers import pmi
from fluxmpi.drivers.clients import peer_process
from fluxmpi.drivers.directory import path_of
from fluxmpi.drivers.environment import scrub
from fluxmpi.drivers.guard import ProcessGuard
from fluxmpi.drivers.log import LINE_BYTES_MAX, complain
from fluxmpi.drivers.mpi_settings import one_host
from fluxmpi.drivers.start import INSTANCE_VARIABLE, STARTER_VARIABLE
from fluxmpi.errors import LaunchError

TERM_GRACE_S = 10.0
"""From SIGTERM to the command to SIGKILL."""

END_GRACE_S = 120.0
"""Time limit for the end of the instance, in which rank 0 may write a large checkpoint."""

READY_S = 120.0

REPORTS_MAX = 128
"""Brokers that may report at the same moment; a further one waits."""

REPORT_S = 1.0
"""Time limit for reading one report."""


def launch_command(size: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that starts ``size`` ranks on this host, and its variables; raises LaunchError.

    With MPICH beside this Python (the wheel) it is our own launcher, which opens no port (``drivers/pmi.py``), unless
    the user has set variables of MPICH's launcher. Otherwise it is mpirun.
    """
    beside = os.path.dirname(sys.executable)
    if all(os.access(os.path.join(beside, name), os.X_OK) for name in ("mpiexec.hydra", "mpichversion")) and not any(
        name.startswith("HYDRA_") for name in os.environ
    ):
        return [sys.executable, "-I", "-S", pmi.__file__, str(size)], one_host(os.environ, mpich=True)
    return mpirun_command(size)


def mpirun_command(size: int) -> tuple[list[str], dict[str, str]]:
    """Return the mpirun command that starts ``size`` ranks on this host, and its variables.

    It is the mpirun in the folder of this Python, else the one on PATH. Raises LaunchError if there is none.
    """
    beside = os.path.dirname(sys.executable)
    for folder in (beside, None):
        mpirun = shutil.which("mpirun", path=folder) if folder else shutil.which("mpirun")
        if mpirun:
            break
    else:
        raise LaunchError(
            "no mpirun beside this Python or on PATH: pip install 'fluxmpi[mpich]', or load your cluster's MPI"
        )
    folder = os.path.dirname(os.path.realpath(mpirun))
    if any(os.path.exists(os.path.join(place, "mpiexec.hydra")) for place in (folder, os.path.dirname(mpirun))):
        words = [mpirun, "-launcher", "fork", "-hosts", "localhost", "-bind-to", "none"]
        return [*words, "-n", str(size)], one_host(os.environ, mpich=True)
    environ = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        **one_host(os.environ, mpich=False),
    }
    return [mpirun, "--host", f"localhost:{size}", "--bind-to", "none", "-n", str(size)], environ


@dataclass(slots=True)
class _Run:
    """The processes and sockets of one run, and its status so far."""

    mpirun: subprocess.Popen[bytes]
    listener: socket.socket
    ours: bool
    """``mpirun`` is our own launcher, ``drivers/pmi.py``."""
    rank0: socket.socket | None = None
    command: subprocess.Popen[bytes] | None = None
    uri: str = ""
    status: int | None = None
    """The exit status of the instance; the first cause determines it."""
    ended: bool = False
    """Rank 0 has said that the instance has ended, and why."""
    report: str = ""
    """The first report of a broker that was cut off from rank 0."""
    received: bytes = b""
    """The begin of a line from rank 0."""
    signals: list[int] = field(default_factory=list)


class Starter:
    """One run of ``fluxmpi start -n``."""

    def __init__(self, size: int, arguments: list[str], command: list[str] | None) -> None:
        """``arguments`` go to each ``fluxmpi start``; ``command`` None: no command, the instance runs until shut down."""
        self._command = command
        self._instance = os.urandom(5).hex()
        name = f"fluxmpi-start-{self._instance}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind("\0" + name)  # abstract: a SIGKILL leaves no file behind
        listener.listen(REPORTS_MAX)
        words, environ = launch_command(size)
        environ |= {INSTANCE_VARIABLE: self._instance, STARTER_VARIABLE: name}
        mpirun = subprocess.Popen(
            [*words, sys.executable, "-m", "fluxmpi.cli.main", "start", *arguments],
            env={**scrub(os.environ), **environ},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._run = _Run(mpirun, listener, ours=pmi.__file__ in words)
        self._guard = ProcessGuard()

    def run(self) -> int:
        """Run until all processes have ended; returns the exit status."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            return self._loop(reader)
        finally:
            self._clean_up()

    def _loop(self, signals: int) -> int:
        """Handle signals, the end of mpirun, rank 0's messages and the end of the command."""
        run = self._run
        poller = select.poll()
        mpirun_fd = os.pidfd_open(run.mpirun.pid)
        listener_fd = run.listener.fileno()
        for fd in (signals, mpirun_fd, listener_fd):
            poller.register(fd, select.POLLIN)
        rank0_fd = command_fd = -1
        timeout: float | None = READY_S
        while True:
            ready = {fd for fd, _ in poller.poll(None if timeout is None else timeout * 1000)}
            if not ready:
                timeout = self._timed_out()
            if signals in ready:
                timeout = self._signalled(os.read(signals, 64), timeout)
            if listener_fd in ready:
                caller, _ = run.listener.accept()
                if peer_process(caller)[1] != os.getuid():
                    caller.close()  # an abstract socket has no permissions
                elif run.rank0 is None:
                    run.rank0 = caller
                    rank0_fd = caller.fileno()
                    poller.register(rank0_fd, select.POLLIN)
                else:
                    self._read_report(caller)
            if rank0_fd in ready:
                was_up = bool(run.uri)
                if not self._read_rank0():
                    poller.unregister(rank0_fd)
                if run.uri and not was_up:
                    timeout = self._up()
                    if run.command is not None:
                        command_fd = os.pidfd_open(run.command.pid)
                        poller.register(command_fd, select.POLLIN)
            if command_fd in ready and run.command is not None:
                poller.unregister(command_fd)
                os.close(command_fd)
                command_fd = -1
                timeout = self._end(_status(run.command.wait()))
            if mpirun_fd in ready:
                os.close(mpirun_fd)
                return self._mpirun_ended()

    def _read_report(self, caller: socket.socket) -> None:
        """Read why a broker has ended that was cut off from rank 0; it sends that and closes its end."""
        with caller, contextlib.suppress(OSError):
            caller.settimeout(REPORT_S)
            data = b""
            while len(data) < LINE_BYTES_MAX and (more := caller.recv(LINE_BYTES_MAX)):
                data += more
            self._run.report = self._run.report or data.decode(errors="replace")

    def _read_rank0(self) -> bool:
        """Read rank 0's lines: ``ready URI``, later ``ended STATUS``.

        Returns False at the end of the file.
        """
        run = self._run
        assert run.rank0 is not None
        data = run.rank0.recv(4096)
        run.received += data
        *lines, run.received = run.received.split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "ready":
                run.uri = rest
            elif word == "ended":  # with the command's status, or with another if the checkpoint was not written
                run.status = run.status or int(rest)
                run.ended = True
        return bool(data)

    def _up(self) -> float | None:
        """Start the command: the brokers are up. Returns the time limit for the next event, None for no limit."""
        run = self._run
        if run.ours:
            run.mpirun.send_signal(pmi.UP_SIGNAL)
        if run.status is not None:
            return self._end(run.status)
        if self._command is None:
            complain(f"fluxmpi: the instance is up; use it with: export FLUXMPI_URI={run.uri}")
            return None
        environ = {**scrub(os.environ), "FLUXMPI_URI": run.uri, "FLUXMPI_RANK": "0"}
        try:
            run.command = subprocess.Popen(self._command, env=environ)
            self._guard.add(run.command.pid)
        except OSError as error:
            complain(f"fluxmpi start: {self._command[0]}: cannot be started: {error.strerror}")
            return self._end(126 if isinstance(error, PermissionError) else 127)
        return None

    def _end(self, status: int) -> float:
        """Have rank 0 end the instance with this status, or end mpirun if rank 0 is not up yet.

        Returns the time limit.
        """
        run = self._run
        if run.status is None:
            run.status = status
        if run.rank0 is not None:
            with contextlib.suppress(OSError):
                run.rank0.sendall(f"end {run.status}\n".encode())
        else:
            run.mpirun.terminate()
        return END_GRACE_S

    def _signalled(self, numbers: bytes, timeout: float | None) -> float | None:
        """Handle signals. The command gets Ctrl-C itself; without a command it ends the instance, as SIGTERM does.

        The third signal kills everything.
        """
        run = self._run
        for number in numbers:
            if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                continue
            if number == signal.SIGINT and run.command is not None and run.status is None:
                continue  # also if it has ended meanwhile: its own status is the result
            run.signals.append(number)
            if len(run.signals) > 2:
                self._kill()
            elif run.command is not None and run.command.poll() is None:
                run.status = 128 + number if run.status is None else run.status
                run.command.send_signal(number)
                timeout = TERM_GRACE_S
            else:
                timeout = self._end(128 + number)
        return timeout

    def _timed_out(self) -> float | None:
        """Handle a time limit: kill the command, or the brokers."""
        run = self._run
        if not run.uri and run.status is None:
            complain(f"fluxmpi start: the brokers were not up after {READY_S:.0f} s; giving up")
            run.status = 1
        if run.command is not None and run.command.poll() is None:
            run.command.kill()
            return TERM_GRACE_S
        self._kill()
        return None

    def _kill(self) -> None:
        """Kill mpirun and all ranks."""
        if self._run.ours:
            self._run.mpirun.send_signal(pmi.KILL_SIGNAL)  # each rank has a session of its own
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._run.mpirun.pid, signal.SIGKILL)

    def _mpirun_ended(self) -> int:
        run = self._run
        status = _status(run.mpirun.wait())
        if run.rank0 is not None:
            run.rank0.setblocking(False)
            with contextlib.suppress(OSError):
                while self._read_rank0():
                    pass
        if run.report and not run.ended:
            complain(run.report)
        if run.command is not None and run.command.poll() is None:
            complain("fluxmpi: the instance is gone; ending the command")
            run.command.terminate()
            try:
                run.command.wait(TERM_GRACE_S)
            except subprocess.TimeoutExpired:
                run.command.kill()
                run.command.wait()
            return run.status or status or 1
        if not run.uri:
            return status or run.status or 1
        return status if run.status is None else run.status or status

    def _clean_up(self) -> None:
        """Remove everything that is left: ranks, the directory."""
        run = self._run
        if run.mpirun.poll() is None:
            self._kill()
            run.mpirun.wait()
        if run.command is not None:
            self._guard.remove(run.command.pid)
        self._guard.close()
        run.listener.close()
        if run.rank0 is not None:
            run.rank0.close()
        shutil.rmtree(path_of(self._instance), ignore_errors=True)
        if not run.ours:  # Open MPI's mpirun may leave its folder when a rank is killed, and does when it is
            shutil.rmtree(os.path.join(tempfile.gettempdir(), f"ompi.{run.mpirun.pid}"), ignore_errors=True)


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
