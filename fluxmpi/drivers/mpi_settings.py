"""What a broker sets for its MPI before ``MPI_Init``: the transports, the network interface, the shared memory.

An MPI reads its settings from environment variables. Those that the user has set are never changed.

    one host (``start -n``)   MPI uses shared memory only and opens no port           ``one_host``
    several hosts             the ports that can be bound are bound to one interface   ``interface`` (--mpi-interface)
    any                       too small a /dev/shm is an error with the remedy         ``shared_memory_problem``
                              killed ranks leave nothing in it                        ``remove_names``

SECURITY.md lists the sockets that remain with each MPI.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping

SHM = "/dev/shm"
MIB = 1 << 20

MPICH_RANK_BYTES = 1_057_344
"""Shared memory of MPICH 5 for each rank of a host, measured: one file of that many bytes for all of them together."""

OPENMPI_FILE_BYTES = 16 << 20
"""The file of each rank of Open MPI 5. It is sparse: a rank starts with 0.1 MiB of it, and may come to use all."""

OPENMPI_START_BYTES = 1 << 20

STARTING_S = 30.0
"""A file in /dev/shm that is not older may belong to a rank that starts with this one."""

UCX_VARIABLES = ("UCX_TLS", "UCX_NET_DEVICES")


def one_host(environ: Mapping[str, str], mpich: bool) -> dict[str, str]:
    """Return the variables with which the ranks of one host open no port.

    ``OMPI_MCA_btl``: without ``ofi``, of which MPI_Init takes a second. UCX uses ``sysv``: its ``posix`` files in
    /dev/shm take four times as much as MPICH's own, and where that is short ``MPI_Init`` crashes.
    """
    if not mpich:
        return {"OMPI_MCA_btl": environ.get("OMPI_MCA_btl", "self,sm")}
    return {} if any(name in environ for name in UCX_VARIABLES) else {"UCX_TLS": "self,sysv"}


def interface(name: str) -> dict[str, str]:
    """Return the variables with which both MPIs use one network interface: MPICH with UCX or libfabric, and Open MPI."""
    return {
        "UCX_NET_DEVICES": name,
        "FI_TCP_IFACE": name,
        "FI_SOCKETS_IFACE": name,
        "OMPI_MCA_btl_tcp_if_include": name,
    }


def prepare(library: str, environ: Mapping[str, str], interface_name: str) -> dict[str, str]:
    """Return the variables to set before ``MPI_Init``. ``library``: the version text of the MPI."""
    wanted = interface(interface_name) if interface_name else {}
    if "MPICH" in library and "UCX_TLS" not in environ:
        wanted["UCX_TLS"] = "^posix"  # see one_host
    return {name: value for name, value in wanted.items() if name not in environ}


def local_ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return how many ranks of the instance this host has, and this rank's number among them, as its launcher says."""
    for size, number in (
        ("MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ):
        if environ.get(size, "").isdigit():
            return int(environ[size]), int(environ.get(number, "0"))
    node, local = environ.get("SLURM_NODEID", ""), environ.get("SLURM_LOCALID", "")
    counts = _each(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if node.isdigit() and local.isdigit() and int(node) < len(counts):
        return counts[int(node)], int(local)
    return 1, 0


def _each(text: str) -> list[int]:
    """Return the numbers of Slurm's short form: ``2(x3),1`` is 2, 2, 2, 1."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * min(int(times or 1), 65536)
    return found


def shared_memory_problem(library: str, environ: Mapping[str, str], folder: str = SHM) -> tuple[str, bool]:
    """Return why MPI cannot start with this /dev/shm, "" if it can; and whether it can at first, but may fail later.

    MPI itself ends by SIGBUS or SIGSEGV, or with a text about transports that do not reach a process. All ranks of a
    host find the same: only the first of them counts what is free, and what is new in it, since the others may have
    begun to allocate.
    """
    ranks, number = local_ranks(environ)
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}: MPI needs it for the messages between the ranks of a host", False
    free = found.f_frsize * (found.f_blocks if number else found.f_bavail)
    if not number:
        free += _new_bytes(folder)
    if "Open MPI" in library:
        least, most = OPENMPI_FILE_BYTES + ranks * OPENMPI_START_BYTES, ranks * OPENMPI_FILE_BYTES
    elif "MPICH" in library:
        least = most = ranks * MPICH_RANK_BYTES + (64 << 10)
    else:
        return "", False
    if ranks < 2 or free >= max(least, most):
        return "", False
    wanted = -(-max(least, most) // MIB)
    size = max(64, 2 * wanted)
    name = "Open MPI" if "Open MPI" in library else "MPICH"
    return (
        f"{folder} has {free / MIB:.1f} MiB{'' if number else ' free'}, and {name} "
        f"{'needs' if free < least else 'may come to need'} {wanted} MiB there for {ranks} ranks on one host. Remove what "
        f"is left over in it (ls -l {folder}), make it larger (docker run --shm-size={size}m; as root, mount -o "
        f"remount,size={size}m {folder}), or start fewer ranks on this host",
        free >= least,
    )


def _new_bytes(folder: str) -> int:
    """Return the bytes of this user's files in ``folder`` that are at most STARTING_S old."""
    found = 0
    since, uid = time.time() - STARTING_S, os.getuid()
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == uid and status.st_ctime >= since and entry.is_file(follow_symlinks=False):
                    found += status.st_blocks * 512
    return found


def remove_names(folder: str = SHM) -> list[str]:
    """Remove the names of the files in /dev/shm that this process has mapped, its MPI's; returns them.

    Call it when all ranks of the host have mapped them: no process opens them by name after ``MPI_Init``. They exist
    until the last rank unmaps them, so that nothing is left over when ranks are killed.
    """
    removed = []
    with open("/proc/self/maps") as maps:
        lines = [line.rstrip("\n").split(None, 5) for line in maps if f" {folder}/" in line]
    for _, _, _, _, inode, path in {line[4]: line for line in lines}.values():
        with contextlib.suppress(OSError):
            if os.stat(path, follow_symlinks=False).st_ino == int(inode):
                os.unlink(path)
                removed.append(path)
    return removed
