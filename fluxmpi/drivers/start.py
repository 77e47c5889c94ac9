"""How a broker comes to be: transport, directory, doorbell, restored store, loop; and how it goes.

Order matters: rank 0 reads the checkpoint before the ranks meet, since a rank that waits in MPI spins; every problem up to
there is told to all when they meet, so that all ranks end together with one message, and none hangs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import secrets
import socket
from dataclasses import dataclass
from typing import Any

from fluxmpi.blobref import digest_function
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import Shutdown
from fluxmpi.content.store import Store
from fluxmpi.content.values import SEGMENTS_BYTES_MAX
from fluxmpi.drivers.bell import SECRET_BYTES, Doorbell
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.directory import InstanceDirectory, remove_leftovers
from fluxmpi.drivers.local import LocalTransport
from fluxmpi.drivers.loop import Loop
from fluxmpi.errors import FluxmpiError, LaunchError
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import control
from fluxmpi.overlay.router import Router

INSTANCE_VARIABLE = "FLUXMPI_START_INSTANCE"
STARTER_VARIABLE = "FLUXMPI_START_SOCKET"
"""Set by ``fluxmpi start -n``, which waits at the abstract socket of this name for rank 0."""

SEGMENTS_SHARE = 0.25
"""Of a host's memory, for the long values that clients map; it is used only when they do."""

MALLOC_MMAP_BYTES = 4 << 20
"""Longer buffers are mapped one by one, and unmapped when they are freed; pieces are not."""

MALLOC_KEPT_BYTES = 16 << 20
"""Freed memory that malloc keeps: as much as the windows of two long values."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

GC_THRESHOLD = (50_000, 20, 50)
"""Nodes and messages hold no cycles: full collections would only cost latency."""


@dataclass(frozen=True, slots=True)
class Options:
    """What ``fluxmpi start`` was told."""

    topology: str
    algorithm: str
    heartbeat_s: float
    cache_bytes_max: int
    segments_bytes_max: int | None
    """None: SEGMENTS_SHARE of the host's memory, divided among its brokers."""
    checkpoint: str
    resume: bool
    polling: bool
    command: tuple[str, ...]
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Meeting:
    """What the ranks know of one another once they have met. ``bell`` None: one rank, or --wake=poll."""

    instance: str
    hosts: list[str]
    directory: InstanceDirectory
    bell: Doorbell | None
    cards: list[dict]
    """How to ring each rank."""

    restored: tuple[list[RootInfo], Store] | None


def run_broker(options: Options, under_launcher: bool) -> int:
    """Be one broker until the instance ends; the exit status: at a clean end rank 0 has the instance's, the others 0.

    Does not return where MPI cannot be finalized.
    """
    environ = dict(os.environ)
    _keep_freed_memory()
    if under_launcher:
        from fluxmpi.drivers.mpi import MpiTransport, world

        transport: Any = MpiTransport(world(environ))
    else:
        transport = LocalTransport()
    meeting = _meet(transport, options, environ)
    rank, hosts, directory = transport.rank, meeting.hosts, meeting.directory
    clock = Clock()
    broker = Broker(_config(rank, options, meeting), clock.now(), *(meeting.restored or ()))
    if transport.size > 1:
        near = broker.router.neighbours()
        if meeting.bell is not None:
            meeting.bell.meet(meeting.cards, near)
        transport.connect(meeting.bell, near)
    try:
        spare = len(os.sched_getaffinity(0)) > hosts.count(hosts[rank])
        loop = Loop(broker, transport, clock, directory.socket, polling=options.polling, spinning=spare)
        transport.exchange(None)  # from here on, every rank has its socket: the command may use any of them
        starter = _tell_starter(loop, directory, environ) if rank == 0 else None
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        status = loop.run()
    finally:
        directory.close()
    if starter is not None:
        with contextlib.suppress(OSError):
            starter.sendall(f"ended {status}\n".encode())
    if not loop.clean:
        os._exit(status or 1)  # never 0, though the starter has the status: only so does the launcher end who is stuck
    if rank or starter is not None:
        return 0  # rank 0 has the status, or the starter does: a launcher would only complain about it
    return status


def _meet(transport: Any, options: Options, environ: dict[str, str]) -> _Meeting:
    """Collective: agree on the instance, and make this rank's directory and doorbell. Raises on all ranks or on none."""
    rank = transport.rank
    directory, bell, restored, problem = None, None, None, ""
    if rank == 0:
        try:
            digest_function(options.algorithm)
            Router(0, transport.size, options.topology)
            _check_checkpoint(options.checkpoint)
            restored = _restore(options) if options.resume else None
        except FluxmpiError as error:
            problem = error.text
    first = transport.exchange(
        {
            "host": socket.gethostname(),
            "problem": problem,
            "secret": secrets.token_bytes(SECRET_BYTES) if rank == 0 else b"",
            "instance": environ.get(INSTANCE_VARIABLE) or secrets.token_hex(5) if rank == 0 else "",
        }
    )
    _agree(first, rank)
    hosts = [entry["host"] for entry in first]
    card: dict = {}
    try:
        if hosts.index(hosts[rank]) == rank:  # the first of its host
            remove_leftovers()
        directory = InstanceDirectory(first[0]["instance"], rank)
        if transport.size > 1 and not options.polling:
            bell = Doorbell(rank, first[0]["secret"], directory.path)
            card = bell.own(len(set(hosts)) > 1)
    except (FluxmpiError, OSError) as error:
        problem = f"rank {rank} on {hosts[rank]}: {error}"
    second = transport.exchange({"problem": problem, "card": card})
    try:
        _agree(second, rank)
    except FluxmpiError:
        if directory is not None:
            directory.close()
        raise
    assert directory is not None
    return _Meeting(first[0]["instance"], hosts, directory, bell, [entry["card"] for entry in second], restored)


def _config(rank: int, options: Options, meeting: _Meeting) -> Config:
    directory = meeting.directory
    return Config(
        rank=rank,
        size=len(meeting.hosts),
        hosts=tuple(meeting.hosts),
        instance=meeting.instance,
        topology=options.topology,
        algorithm=options.algorithm,
        heartbeat_s=options.heartbeat_s,
        cache_bytes_max=options.cache_bytes_max,
        segments_bytes_max=_segments_bytes(options, meeting.hosts.count(meeting.hosts[rank])),
        owner=os.geteuid(),
        command=options.command,
        checkpoint=options.checkpoint,
        attributes={"local-uri": f"local://{directory.socket}", "rundir": directory.path, **options.attributes},
    )


def _keep_freed_memory() -> None:
    """Have malloc use the buffers of pieces again. It gives freed memory back to the kernel, and taking it anew costs as much
    as digesting what goes into it: 0.5 ms per MiB, a page fault for each page.
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc: it has its own ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MALLOC_MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, MALLOC_KEPT_BYTES)


def _segments_bytes(options: Options, neighbours: int) -> int:
    if options.segments_bytes_max is not None:
        return options.segments_bytes_max
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(SEGMENTS_BYTES_MAX, int(memory * SEGMENTS_SHARE) // neighbours)


def _agree(entries: list[dict], rank: int) -> None:
    """Raise for a problem of any rank, on all ranks; only the lowest one with a problem says what it is."""
    for teller, entry in enumerate(entries):
        if entry["problem"]:
            raise LaunchError(entry["problem"] if teller == rank else "")


def _check_checkpoint(path: str) -> None:
    """What would fail at the end, when the work is done, is told at the beginning."""
    folder = os.path.dirname(path)
    if not path or (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK) and not os.path.isdir(path)):
        return
    if os.path.isdir(path):
        raise LaunchError(f"--checkpoint {path} is a folder: name a file in it")
    what = "may not be written to by you" if os.path.isdir(folder) else "does not exist: make it first"
    raise LaunchError(f"--checkpoint {path}: the folder {folder} {what}")


def _restore(options: Options) -> tuple[list[RootInfo], Store]:
    from fluxmpi.drivers import checkpoint

    saved = checkpoint.read(options.checkpoint)
    if saved.algorithm != options.algorithm:
        raise LaunchError(
            f"{options.checkpoint} was written with hash {saved.algorithm}: start with --hash {saved.algorithm}"
        )
    store = Store()
    for ref, blob in saved.blobs.items():
        store.put(ref, blob)
    return [RootInfo(root.namespace, root.version, root.ref, root.time) for root in saved.roots], store


def shared_memory() -> list[str]:
    """Files in /dev/shm that this process, that is its MPI, has mapped: what stays behind when ranks are killed."""
    with open("/proc/self/maps") as maps:
        paths = [line.rstrip("\n").split(None, 5)[5] for line in maps if " /dev/shm/" in line]
    return [path for path in dict.fromkeys(paths) if " " not in path]


def _tell_starter(loop: Loop, directory: InstanceDirectory, environ: dict[str, str]) -> socket.socket | None:
    """Tell ``fluxmpi start -n`` where we are; when it dies, its end of the connection does, and the instance ends."""
    path = environ.get(STARTER_VARIABLE)
    if not path:
        return None
    starter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    starter.connect("\0" + path)
    for segment in shared_memory():
        starter.sendall(f"segment {segment}\n".encode())
    starter.sendall(f"ready local://{directory.socket}\n".encode())

    def said() -> None:
        words = starter.recv(64).split()
        if not words:
            loop.unwatch(starter.fileno())
        status = int(words[1]) if len(words) == 2 else 1
        reason = "" if words else "the process that started the instance is gone"
        loop.deliver(control("lifecycle.stop", Shutdown(status, reason)))

    loop.watch(starter.fileno(), said)
    return starter
