"""Start the ranks of MPICH on this host, without a port: the launcher of ``fluxmpi start -n``.

MPICH's own launcher, hydra, listens on all interfaces and asks no connection for a secret: twelve bytes from any process
that reaches the port end it, and with it all brokers. On one host it is not needed. What a rank asks its launcher in
``MPI_Init`` are lines of text (PMI-1): how many ranks there are, which of them share a host, and a barrier. This process
answers them over one socket pair for each rank, which no other process can open.

    rank ── cmd=init … get_maxes, get_appnum, get_my_kvsname, get …, put …, barrier_in … finalize ──▶ this process

It is a program of its own, so that the session of the ranks is not that of the terminal, and imports nothing but the
standard library: ``python -I -S pmi.py N COMMAND...`` starts in 15 ms. Started by ``drivers/starter.py``.

Ends of ranks: while they start, a rank that is killed ends the others, which would wait for it in MPI for ever. After
``UP_SIGNAL`` (the starter sends it when rank 0 is up) they are brokers: they notice the loss, save the checkpoint and
end by themselves, within SURVIVORS_S, and within LAST_S after rank 0. ``KILL_SIGNAL`` kills all. If this process is
killed, the kernel sends each rank SIGTERM, at which a broker saves the checkpoint and ends the instance.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

UP_SIGNAL = signal.SIGUSR1
KILL_SIGNAL = signal.SIGQUIT
SURVIVORS_S = 120.0
"""From the first rank that is lost to SIGKILL for the others; a large checkpoint is saved in this time."""

LAST_S = 5.0
"""From the end of rank 0, which ends last, to SIGKILL for ranks that are stopped or hang."""

STARTING_S = 5.0
"""The same while the ranks start, if the first one has ended with an error: the others print theirs."""

LINE_BYTES_MAX = 4096
"""A longer line of a rank is an error: keys have at most 64 bytes here, values 1,024."""

READ_BYTES = 65536
_PR_SET_PDEATHSIG = 1


class PmiServer:
    """Answers of the process manager to ``size`` ranks. ``receive`` takes what a rank sent, and calls ``send``."""

    def __init__(self, size: int, name: str) -> None:
        """``name``: of the key-value space; MPICH derives the name of its shared memory from it, so it is unique."""
        self.size = size
        self.name = name
        self.aborted: int | None = None
        """The exit status that a rank passed to ``MPI_Abort``."""
        self._values = {"PMI_process_mapping": f"(vector,(0,1,{size}))"}  # all ranks are on one host
        self._rests = [b""] * size
        self._waiting: list[int] = []

    def receive(self, rank: int, data: bytes) -> list[tuple[int, bytes]]:
        """Return the answers to what ``rank`` sent: (rank, bytes). Raises ValueError for what is no PMI."""
        *lines, rest = (self._rests[rank] + data).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ValueError(f"rank {rank} sent a line of more than {LINE_BYTES_MAX} bytes")
        self._rests[rank] = rest
        answers = []
        for line in lines:
            answers += self._answer(rank, line.decode("ascii", "replace"))
        return answers

    def _answer(self, rank: int, line: str) -> list[tuple[int, bytes]]:
        words = dict(word.partition("=")[::2] for word in line.split())
        match words.get("cmd") or words.get("mcmd"):
            case "init":
                answer = "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0"
            case "get_maxes":
                answer = "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024 rc=0"
            case "get_appnum":
                answer = "cmd=appnum appnum=0 rc=0"
            case "get_my_kvsname":
                answer = f"cmd=my_kvsname kvsname={self.name} rc=0"
            case "get_universe_size":
                answer = f"cmd=universe_size size={self.size} rc=0"
            case "put":
                self._values[words.get("key", "")] = words.get("value", "")
                answer = "cmd=put_result rc=0 msg=success"
            case "get":
                value = self._values.get(words.get("key", ""))
                found = "rc=-1 msg=key_not_found value=unknown" if value is None else f"rc=0 msg=success value={value}"
                answer = f"cmd=get_result {found}"
            case "barrier_in":
                self._waiting.append(rank)
                if len(self._waiting) < self.size:
                    return []
                waited, self._waiting = self._waiting, []
                return [(each, b"cmd=barrier_out rc=0\n") for each in waited]
            case "finalize":
                answer = "cmd=finalize_ack rc=0"
            case "abort":
                status = words.get("exitcode", "1")
                self.aborted = int(status) if status.isdigit() else 1
                return []
            case "spawn" | "publish_name" | "unpublish_name" | "lookup_name" as other:
                answer = f"cmd={other}_result rc=-1 msg=not_supported"
            case _:
                return []  # the further lines of a request that is refused
        return [(rank, f"{answer}\n".encode())]


class Ranks:
    """The processes of the ranks, and their sockets."""

    def __init__(self, size: int, command: list[str]) -> None:
        self.server = PmiServer(size, f"fluxmpi-{os.urandom(8).hex()}")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        """Of the ranks that run, by rank."""
        self.status = 0
        """The exit status of the first rank that had another one than 0."""
        self.up = False
        self._command = command
        self._poller = select.poll()
        self._deadline: float | None = None
        """When the ranks that still run are killed."""
        self._sockets: dict[int, socket.socket] = {}
        """By rank; ``_ranks``: the rank of each socket's descriptor."""
        self._ranks: dict[int, int] = {}
        self._pidfds: dict[int, int] = {}

    def start(self) -> None:
        """Start all ranks. Their output is this process's."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 3 * self.server.size + 32
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else hard, hard))
        die_with_parent = _parent_death_signal(signal.SIGTERM)
        for rank in range(self.server.size):
            ours, theirs = socket.socketpair()
            environ = {
                **os.environ,
                "PMI_FD": str(theirs.fileno()),
                "PMI_RANK": str(rank),
                "PMI_SIZE": str(self.server.size),
                "MPI_LOCALRANKID": str(rank),
                "MPI_LOCALNRANKS": str(self.server.size),
            }
            with theirs:
                process = subprocess.Popen(
                    self._command,
                    env=environ,
                    pass_fds=[theirs.fileno()],
                    preexec_fn=die_with_parent,
                    start_new_session=True,  # as hydra does: the kernel shares processors among sessions (autogroup)
                )
            self.processes[rank] = process
            self._watch(rank, ours, os.pidfd_open(process.pid))

    def _watch(self, rank: int, sock: socket.socket, pidfd: int) -> None:
        self._sockets[rank] = sock
        self._ranks[sock.fileno()] = rank
        self._pidfds[pidfd] = rank
        for fd in (sock.fileno(), pidfd):
            self._poller.register(fd, select.POLLIN)

    def run(self, wake: int) -> int:
        """Serve the ranks until all have ended; returns the exit status.

        ``wake``: a pipe with the numbers of the signals; reading it does not block.
        """
        self._poller.register(wake, select.POLLIN)
        while self.processes:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000
            ready = [fd for fd, _ in self._poller.poll(left)]
            if not ready:
                self.kill(signal.SIGKILL)
                self._deadline = None
            with contextlib.suppress(BlockingIOError):  # first: what the end of a rank means depends on it
                self._signalled(os.read(wake, 64))
            for fd in ready:
                if fd in self._ranks:
                    self._read(fd)
                elif fd in self._pidfds:
                    self._ended(fd)
        return self.status

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == UP_SIGNAL:
                self.up = True
            elif number == KILL_SIGNAL:
                self._end(128 + signal.SIGKILL)
                self.kill(signal.SIGKILL)
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                self._end(128 + number)
                self.kill(signal.SIGTERM)

    def _read(self, fd: int) -> None:
        rank = self._ranks[fd]
        sock = self._sockets[rank]
        try:
            data = sock.recv(READ_BYTES)
            answers = self.server.receive(rank, data)
        except (OSError, ValueError):
            data, answers = b"", []
        for addressee, answer in answers:
            with contextlib.suppress(OSError, KeyError):  # that rank has ended
                self._sockets[addressee].sendall(answer)
        if not data:
            self._poller.unregister(fd)
            del self._ranks[fd], self._sockets[rank]
            sock.close()
        if self.server.aborted is not None:
            self._end(self.server.aborted or 1)
            self.kill(signal.SIGKILL)

    def _ended(self, pidfd: int) -> None:
        self._poller.unregister(pidfd)
        rank = self._pidfds.pop(pidfd)
        os.close(pidfd)
        code = self.processes.pop(rank).wait()
        if rank == 0 and code >= 0 and self.up:
            self._deadline = time.monotonic() + LAST_S
        if code:
            self._end(code if code > 0 else 128 - code)
            if code < 0 and not self.up:
                self.kill(signal.SIGKILL)

    def _end(self, status: int) -> None:
        """Set the exit status, and a time limit for the ranks that still run; the first cause decides."""
        if not self.status:
            self.status = status
            if self._deadline is None:
                self._deadline = time.monotonic() + (SURVIVORS_S if self.up else STARTING_S)

    def kill(self, number: int) -> None:
        """Send a signal to all ranks that run."""
        for process in self.processes.values():
            process.send_signal(number)


def _parent_death_signal(number: int) -> Callable[[], None]:
    """Return a function that has the kernel send this signal to its process when the process's parent dies."""
    import ctypes  # here: the starter imports this module for its constants

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before
            os.kill(os.getpid(), number)

    return ask


def main() -> int:
    ranks = Ranks(int(sys.argv[1]), sys.argv[2:])
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (UP_SIGNAL, KILL_SIGNAL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        ranks.start()
        return ranks.run(reader)
    except OSError as error:
        os.write(2, f"fluxmpi start: cannot start {ranks.server.size} ranks: {error.strerror}\n".encode())
        return 1
    finally:
        ranks.kill(signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
