"""The doorbell: a notification of sixteen bytes that wakes a sleeping broker. It carries no data.

MPI has no wait that sleeps. So an idle broker sleeps in epoll, on its clients' sockets and on its doorbell, and a
broker that sends it something over MPI rings. A bell can arrive before the data that it announces. It therefore has the
number of messages that its sender has sent so far, and the receiver polls MPI until it has received that many.

    the instance's secret (8), the sender's rank (4), the count of its messages to this receiver, mod 2**32 (4)

A lost bell is covered by the loop's fallback poll. A forged one (without the secret) is ignored, and one with the
secret could only cause polls that find nothing. Between hosts a bell is a UDP datagram. On one host it is written to a
FIFO in the instance's directory. To write and read one costs 1.1 µs, a Unix datagram 5 µs; a full datagram queue holds
10, a FIFO 4,096, and all of them are read at once. A FIFO without a reader means that its broker has ended.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

from fluxmpi.errors import LaunchError

_BELL = struct.Struct("<8sII")
_RANK_AND_COUNT = struct.Struct("<II")
COUNT_MASK = 0xFFFFFFFF
SECRET_BYTES = 8
FIFO_BYTES = 64 << 10
"""Capacity of a FIFO."""

READ_BYTES = 60 * 16
"""Bytes of one read: nearly always all that is there, and malloc has buffers of up to 1 KiB at hand."""


class Doorbell:
    def __init__(self, rank: int, secret: bytes, directory: str) -> None:
        self.rank = rank
        self._secret = secret
        self._path = os.path.join(directory, f"bell.{rank}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.mkfifo(self._path, 0o600)
        # Open for writing as well: a FIFO whose last writer has closed it is readable for ever.
        self._fifo = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._udp: socket.socket | None = None
        self._near: dict[int, int] = {}
        """Rank on this host to its FIFO."""
        self._far: dict[int, tuple[str, int]] = {}
        """Rank on another host to its UDP address."""
        self.rung = self.heard = self.unsent = 0

    def own(self, several_hosts: bool, interface: str = "") -> dict[str, Any]:
        """Return what others need to ring this rank.

        It is the host name, the FIFO and, if there are several hosts, the UDP port and the addresses. With an
        ``interface``, datagrams are received at its first address only. Raises LaunchError if it has none.
        """
        host = socket.gethostname()
        if not several_hosts:
            return {"host": host, "path": self._path, "port": 0, "addresses": []}
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        addresses = _addresses(interface)[: 1 if interface else None]
        if interface and not addresses:
            raise LaunchError(
                f"--mpi-interface {interface}: {host} has no such interface that is up, with an IPv4 address"
            )
        self._udp.bind((addresses[0] if interface else "", 0))
        return {"host": host, "path": self._path, "port": self._udp.getsockname()[1], "addresses": addresses}

    def meet(self, peers: list[dict[str, Any]], near: list[int]) -> None:
        """Prepare to ring the neighbours ``near``. ``peers``: what ``own`` returned, by rank."""
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
        """Ring ``rank``.

        False: its FIFO is full, ring again in the next turn. Raises ConnectionRefusedError if it has no reader.
        """
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
            self.unsent += 1  # no route, a full buffer: the receiver's fallback poll covers it
            return True
        self.rung += 1
        return True

    def listen(self) -> list[tuple[int, int]]:
        """Return (rank, count) of every bell that has arrived."""
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
                continue  # an ICMP error for an earlier bell: that peer has ended
            if len(bell) == _BELL.size:
                self._hear(bell, heard)
        self.heard += len(heard)
        return heard

    def _hear(self, bells: bytes, heard: list[tuple[int, int]]) -> None:
        """Append the bells in ``bells`` to ``heard``; skip bytes that are no bell."""
        secret = self._secret
        at = bells.find(secret)
        while 0 <= at <= len(bells) - _BELL.size:
            heard.append(_RANK_AND_COUNT.unpack_from(bells, at + SECRET_BYTES))
            at = bells.find(secret, at + _BELL.size)

    def close(self) -> None:
        """Close the FIFOs and remove this rank's; may be called twice."""
        if self._fifo < 0:
            return
        for fd in (self._fifo, *self._near.values()):
            os.close(fd)
        self._fifo = -1
        self._near = {}
        if self._udp is not None:
            self._udp.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _addresses(interface: str = "") -> list[str]:
    """Return the IPv4 addresses of this host's interfaces that are up, without loopback, or of one interface."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up
        and name == (interface or name)
        and entry.family == socket.AF_INET
        and not entry.address.startswith("127.")
    ]


def _choose(host: str, theirs: list[str], ours: list[str]) -> str:
    """Return the peer's address to ring.

    It is the one that its name resolves to, if that is among ``theirs``, otherwise one in our subnets.
    """
    with contextlib.suppress(OSError):
        resolved = socket.gethostbyname(host)
        if resolved in theirs:
            return resolved
    near = [address for address in theirs for mine in ours if address.rsplit(".", 1)[0] == mine.rsplit(".", 1)[0]]
    if near or theirs:
        return (near or theirs)[0]
    raise LaunchError(f"host {host} has no IPv4 address for its doorbell: start with --wake=poll")
