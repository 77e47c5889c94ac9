"""The doorbell: sixteen bytes that say "look", and nothing else.

MPI has no wait that can sleep. So a broker with nothing to do sleeps in epoll, on its clients' sockets and on this; who sends it
something over MPI rings. A bell can arrive before the data that it announces, so it says how many messages its sender has sent
so far; the receiver then polls MPI until it has that many.

    the instance's secret (8), the sender's rank (4), the count of its messages to this receiver, mod 2**32 (4)

A lost bell is covered by the loop's slow poll, a forged one (without the secret) is ignored; even with it, a bell could only
make the receiver look in vain. Between hosts a bell is a UDP datagram. On one host it goes through a FIFO in the instance's
directory: to write and read one costs 1.1 µs, a Unix datagram 5 µs, of which a full queue holds 10; a FIFO holds 4,096, and all
that wait are read at once. A FIFO that nobody reads any more says that its broker is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from fluxmpi.errors import LaunchError

_BELL = struct.Struct("<8sII")
_RANK_AND_COUNT = struct.Struct("<II")
COUNT_MASK = 0xFFFFFFFF
SECRET_BYTES = 8
FIFO_BYTES = 64 << 10
"""What a FIFO holds at the most."""

READ_BYTES = 60 * 16
"""What is read of it at a time: nearly always it is all there is, and malloc has buffers of up to 1 KiB at hand."""


class Doorbell:
    def __init__(self, rank: int, secret: bytes, directory: str) -> None:
        self.rank = rank
        self._secret = secret
        self._path = os.path.join(directory, f"bell.{rank}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.mkfifo(self._path, 0o600)
        # Open for writing, too: a FIFO whose last writer closed it would wake us for ever.
        self._fifo = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._udp: socket.socket | None = None
        self._near: dict[int, int] = {}
        """Rank on this host to the FIFO that rings it."""
        self._far: dict[int, tuple[str, int]] = {}
        self.rung = self.heard = self.unsent = 0

    def own(self, several_hosts: bool) -> dict:
        """What others need to ring us: host name, FIFO, and where there are several hosts, UDP port and addresses."""
        host = socket.gethostname()
        if not several_hosts:
            return {"host": host, "path": self._path, "port": 0, "addresses": []}
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._udp.bind(("", 0))
        return {"host": host, "path": self._path, "port": self._udp.getsockname()[1], "addresses": _addresses()}

    def meet(self, peers: list[dict], near: list[int]) -> None:
        """Make ready to ring the neighbours ``near``, from what all ranks told of themselves."""
        mine = peers[self.rank]
        for rank in near:
            peer = peers[rank]
            if peer["host"] == mine["host"]:
                self._near[rank] = os.open(peer["path"], os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            else:
                self._far[rank] = (_choose(peer["host"], peer["addresses"], mine["addresses"]), peer["port"])

    def filenos(self) -> list[int]:
        return [self._fifo] + ([self._udp.fileno()] if self._udp else [])

    def ring(self, rank: int, count: int) -> bool:
        """False: the peer's FIFO is full, ring again in the next turn. Raises ConnectionRefusedError: nobody reads it."""
        bell = _BELL.pack(self._secret, self.rank, count & COUNT_MASK)
        try:
            fifo = self._near.get(rank)
            if fifo is not None:
                os.write(fifo, bell)
            elif self._udp is not None:
                self._udp.sendto(bell, self._far[rank])
        except BlockingIOError:
            self.unsent += 1
            return False
        except BrokenPipeError:
            raise ConnectionRefusedError(f"rank {rank} has closed its doorbell") from None
        except OSError:
            self.unsent += 1  # no route, a full buffer: the receiver's slow poll covers it
            return True
        self.rung += 1
        return True

    def listen(self) -> list[tuple[int, int]]:
        """(rank, count) of every bell that has arrived."""
        heard: list[tuple[int, int]] = []
        try:
            for _ in range(FIFO_BYTES // READ_BYTES + 1):
                bells = os.read(self._fifo, READ_BYTES)
                self._hear(bells, heard)
                if len(bells) < READ_BYTES:
                    break
        except BlockingIOError:
            pass
        while self._udp is not None:
            try:
                bell = self._udp.recv(64)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier bell: a peer that is gone
            if len(bell) == _BELL.size:
                self._hear(bell, heard)
        self.heard += len(heard)
        return heard

    def _hear(self, bells: bytes, heard: list[tuple[int, int]]) -> None:
        """Bells in a row; what stands between them is skipped."""
        secret = self._secret
        at = bells.find(secret)
        while 0 <= at <= len(bells) - _BELL.size:
            heard.append(_RANK_AND_COUNT.unpack_from(bells, at + SECRET_BYTES))
            at = bells.find(secret, at + _BELL.size)

    def close(self) -> None:
        for fd in (self._fifo, *self._near.values()):
            os.close(fd)
        self._near = {}
        if self._udp is not None:
            self._udp.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _addresses() -> list[str]:
    """The IPv4 addresses of this host that others might reach, those of interfaces that are up."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    return found


def _choose(host: str, theirs: list[str], ours: list[str]) -> str:
    """The peer's address to ring: the one its name resolves to, if it is one of its own; else one near one of ours."""
    with contextlib.suppress(OSError):
        resolved = socket.gethostbyname(host)
        if resolved in theirs:
            return resolved
    near = [address for address in theirs for mine in ours if address.rsplit(".", 1)[0] == mine.rsplit(".", 1)[0]]
    if near or theirs:
        return (near or theirs)[0]
    raise LaunchError(f"host {host} tells no IPv4 address to ring its doorbell at: start with --wake=poll")
