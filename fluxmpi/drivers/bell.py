"""The doorbell: a datagram that says "look", and nothing else.

MPI has no wait that can sleep. So a broker with nothing to do sleeps in epoll, on its clients' sockets and on this one; who
sends it something over MPI rings. A bell can arrive before the data that it announces, so it says how many messages its
sender has sent so far; the receiver then polls MPI until it has that many.

    16 bytes: the instance's secret (8), the sender's rank (4), the count of its messages to this receiver, mod 2**32 (4)

A lost bell is covered by the loop's slow poll, a forged one (without the secret) is ignored; even with it, a bell could only
make the receiver look in vain. On one host the bell is a Unix datagram socket in the instance's directory, between hosts UDP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from fluxmpi.errors import LaunchError

_BELL = struct.Struct("<8sII")
COUNT_MASK = 0xFFFFFFFF
SECRET_BYTES = 8

Address = str | tuple[str, int]


class Doorbell:
    """``own``: what others need to ring us: host name, Unix path, UDP port and addresses of this host."""

    def __init__(self, rank: int, secret: bytes, directory: str) -> None:
        self.rank = rank
        self._secret = secret
        self._path = os.path.join(directory, f"bell.{rank}")
        self._unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._unix.bind(self._path)
        self._udp: socket.socket | None = None
        self._addresses: dict[int, Address] = {}
        self.rung = self.heard = self.unsent = 0

    def own(self, several_hosts: bool) -> dict:
        """Opens the UDP socket where there are several hosts."""
        host = socket.gethostname()
        if not several_hosts:
            return {"host": host, "path": self._path, "port": 0, "addresses": []}
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._udp.bind(("", 0))
        return {"host": host, "path": self._path, "port": self._udp.getsockname()[1], "addresses": _addresses()}

    def meet(self, peers: list[dict], near: list[int]) -> None:
        """Work out how to ring each of the neighbours ``near``, from what all ranks told of themselves."""
        mine = peers[self.rank]
        for rank in near:
            peer = peers[rank]
            if peer["host"] == mine["host"]:
                self._addresses[rank] = peer["path"]
            else:
                self._addresses[rank] = (_choose(peer["host"], peer["addresses"], mine["addresses"]), peer["port"])

    def filenos(self) -> list[int]:
        return [self._unix.fileno()] + ([self._udp.fileno()] if self._udp else [])

    def ring(self, rank: int, count: int) -> bool:
        """False: the peer's queue is full, ring again in the next turn. Raises ConnectionRefusedError: nobody is there."""
        address = self._addresses[rank]
        bell = _BELL.pack(self._secret, self.rank, count & COUNT_MASK)
        try:
            if isinstance(address, str):
                self._unix.sendto(bell, address)
            elif self._udp is not None:
                self._udp.sendto(bell, address)
        except BlockingIOError:
            self.unsent += 1
            return False
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT) and isinstance(address, str):
                raise ConnectionRefusedError(f"rank {rank} has closed its doorbell") from None
            self.unsent += 1  # no route, a full buffer: the receiver's slow poll covers it
            return True
        self.rung += 1
        return True

    def listen(self) -> list[tuple[int, int]]:
        """(rank, count) of every bell that has arrived."""
        heard = []
        for listener in (self._unix, self._udp):
            while listener is not None:
                try:
                    bell = listener.recv(64)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an ICMP error of an earlier bell: a peer that is gone
                if len(bell) == _BELL.size:
                    secret, rank, count = _BELL.unpack(bell)
                    if secret == self._secret:
                        heard.append((rank, count))
        self.heard += len(heard)
        return heard

    def close(self) -> None:
        self._unix.close()
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
