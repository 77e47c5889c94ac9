"""Files and sockets of a broker on this node: open its socket and its root page, receive descriptors over the socket."""

from __future__ import annotations

import mmap
import os
import socket
import stat
import struct
from collections import deque

from fluxmpi.errors import NoInstance, PermissionDenied
from fluxmpi.kvs.replica.root_page import PAGE_BYTES, RootPage

HINT = "start one with 'fluxmpi start -n N -- COMMAND', or run inside of it"


def open_socket(path: str) -> socket.socket:
    """Return a connected socket whose peer is verified to be a process of the same user."""
    uid = os.geteuid()
    folder = os.path.dirname(path)
    try:
        owner = os.stat(folder).st_uid
    except OSError as error:
        raise NoInstance(
            f"no instance at {path}: {error.strerror}; it has ended, or runs on another node; {HINT}"
        ) from None
    if owner != uid:
        raise PermissionDenied(
            f"{folder} belongs to uid {owner}, and you are uid {uid}: only who started an instance may use it"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
        peer = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]
    except ConnectionRefusedError:
        sock.close()
        raise NoInstance(f"no process listens at {path}: its broker was killed; {HINT}") from None
    except OSError as error:
        sock.close()
        raise NoInstance(f"no instance at {path}: {error.strerror or error}; it has ended; {HINT}") from None
    if peer != uid:
        sock.close()
        raise PermissionDenied(f"the process that listens at {path} is uid {peer}'s, and you are uid {uid}")
    return sock


def open_root_page(path: str, instance: str, rank: int, pid: int) -> RootPage | None:
    """Return the root page at ``path`` if it is that broker's and readable; None if there is none, which is no error."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size < PAGE_BYTES:
            return None
        page = RootPage(mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return page if page.is_of(instance, rank, pid) else None


class DescriptorQueue:
    """File descriptors that arrived with responses and were not taken yet.

    The n-th response that carries a descriptor carries the n-th descriptor.
    """

    def __init__(self) -> None:
        self.expected = 0
        """Pending requests whose responses may carry a descriptor."""
        self.arrived: deque[int] = deque()

    def receive(self, sock: socket.socket, size: int) -> bytes:
        """Receive like ``sock.recv``. A descriptor that this process has no room for counts as -1."""
        data, control, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(content) >= 4:
                self.arrived.append(int.from_bytes(content[:4], "little"))
                return data
        if flags & socket.MSG_CTRUNC:
            self.arrived.append(-1)
        return data
