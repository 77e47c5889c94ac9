"""Start and end of a broker process: transport, directory, doorbell, restored store, loop.

The order matters. Rank 0 reads the checkpoint before the ranks meet, because a rank that waits in MPI spins. The ranks
exchange every problem found up to then, so that all ranks end together with one message and none hangs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from fluxmpi.blobref import digest_function
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import Shutdown
from fluxmpi.content.values import SEGMENTS_BYTES_MAX
from fluxmpi.drivers import malloc
from fluxmpi.drivers.bell import SECRET_BYTES, Doorbell
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.directory import InstanceDirectory, remove_leftovers
from fluxmpi.drivers.local import LocalTransport
from fluxmpi.drivers.log import complain, configure, failure_text, logger, tell_traceback
from fluxmpi.drivers.loop import Loop
from fluxmpi.drivers.memory import process_memory_bound, shared_memory_bound
from fluxmpi.drivers.mpi_settings import remove_names
from fluxmpi.drivers.resume import Resumed, check_checkpoint, fallback_files, resume, resumed_text
from fluxmpi.errors import FluxmpiError, LaunchError
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT
from fluxmpi.message import LOOP, control
from fluxmpi.overlay.router import Router

log = logger("start")

INSTANCE_VARIABLE = "FLUXMPI_START_INSTANCE"
STARTER_VARIABLE = "FLUXMPI_START_SOCKET"
"""Set by ``fluxmpi start -n``: the abstract socket on which it waits for rank 0."""

DEBUG_VARIABLE = "FLUXMPI_DEBUG"
"""``fail``: a client may have a broker fail on purpose."""

SEGMENTS_SHARE = 0.25
"""Fraction of the memory that the host or the cgroup gives, for the long values that clients map; it is used only when
they do."""

STORE_SHARE = 0.5
"""Fraction of the memory that rank 0 may use, for the store."""

HISTORY_SHARE = 1 / 16
"""Fraction of that memory for what only older versions of a namespace hold, up to HISTORY_BYTES_MAX."""

REPORT_S = 5.0
"""Time limit for a report to the starter."""

FINALIZE_S = 30
"""Time limit for MPI's finalize after the broker has failed."""

GC_THRESHOLD = (50_000, 20, 50)
"""Nodes and messages hold no cycles: full collections would only cost latency."""


@dataclass(frozen=True, slots=True)
class History:
    """The retention that the options choose; None is the default, or what a checkpoint says."""

    count: int | None = None
    age_s: float | None = None
    bytes: int | None = None

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name for name in ("count", "age_s", "bytes") if getattr(self, name) is not None)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of ``fluxmpi start``."""

    topology: str
    algorithm: str
    heartbeat_s: float
    cache_bytes_max: int
    segments_bytes_max: int | None
    """None: SEGMENTS_SHARE of the memory that the host or the cgroup gives, divided among the brokers there."""
    store_bytes_max: int | None
    """None: STORE_SHARE of the memory that rank 0 may use."""
    history: History
    checkpoint: str
    checkpoint_every_s: float
    """0: no periodic saves."""
    checkpoint_fallback: str
    """A file or a folder; empty: the defaults of `fallback_files`."""
    resume: bool
    polling: bool
    command: tuple[str, ...]
    attributes: dict[str, str]
    interface: str = ""
    """The network interface for MPI and the doorbells between hosts; empty: all."""
    log_level: str = ""
    log_file: str = ""
    """See ``drivers.log.configure``."""


@dataclass(frozen=True, slots=True)
class _Meeting:
    """What the ranks know of one another after they have met. ``bell`` None: one rank, or --wake=poll."""

    instance: str
    hosts: list[str]
    directory: InstanceDirectory
    bell: Doorbell | None
    cards: list[dict[str, Any]]
    """By rank, what its neighbours need to ring it."""

    resumed: Resumed | None
    """At rank 0, the checkpoint to start from."""


def run_broker(options: Options, under_launcher: bool) -> int:
    """Run one broker until the instance ends.

    Returns the exit status: at a clean end rank 0 has the instance's, the others 0.

    Does not return if MPI cannot be finalized.
    """
    environ = dict(os.environ)
    malloc.keep_freed()
    if under_launcher:
        from fluxmpi.drivers.mpi import MpiTransport, world

        transport: Any = MpiTransport(world(environ, options.interface))
    else:
        transport = LocalTransport()
    problem = _open_log(options, transport)
    meeting = _meet(transport, options, environ, problem)
    rank, directory = transport.rank, meeting.directory
    try:
        loop = _make_loop(transport, options, meeting, environ)
        transport.exchange(None)  # from here on, every rank has its socket: the command may use any of them
        log.info("all ranks are up; clients connect to %s", directory.socket)
        starter = _connect_starter(loop, directory, environ) if rank == 0 else None
    except Exception as error:
        directory.close()
        if transport.size > 1:
            _give_up(rank, meeting.hosts[rank], error)
        raise
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    try:
        status = loop.run()
    finally:
        directory.close()
    if starter is not None:
        with contextlib.suppress(OSError):
            starter.sendall(f"ended {status}\n".encode())
    if loop.failed:
        # What has failed may be MPI itself: a finalize that hangs ends by the alarm.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(FINALIZE_S)
    if not loop.clean:
        os._exit(status or 1)  # never 0, though the starter has the status: else the launcher leaves ranks that hang
    if rank or starter is not None:
        return 0  # rank 0 or the starter has the status; a launcher would print a complaint about each rank
    return status


def _make_loop(transport: Any, options: Options, meeting: _Meeting, environ: dict[str, str]) -> Loop:
    """Make the broker and its loop, with its drivers, and connect it to its neighbours."""
    rank, hosts, directory = transport.rank, meeting.hosts, meeting.directory
    clock = Clock()
    broker = _make_broker(rank, options, meeting, clock.now())
    if transport.size > 1:
        near = broker.router.neighbours()
        if meeting.bell is not None:
            meeting.bell.meet(meeting.cards, near)
        transport.connect(meeting.bell, near)
    _log_place(broker, hosts, directory)
    report = partial(_report_to_starter, environ.get(STARTER_VARIABLE, "")) if rank else complain
    spare = len(os.sched_getaffinity(0)) > hosts.count(hosts[rank])
    return Loop(broker, transport, clock, directory.socket, polling=options.polling, spinning=spare, report=report)


def _give_up(rank: int, host: str, error: Exception) -> NoReturn:
    """End this rank, which could not start after the ranks have met: the launcher ends the others, which wait for it."""
    if not isinstance(error, FluxmpiError):
        tell_traceback(rank, error)
    reason = error.text if isinstance(error, FluxmpiError) else failure_text(error)
    complain(f"fluxmpi start: rank {rank} on {host} could not start: {reason}")
    os._exit(1)


def _make_broker(rank: int, options: Options, meeting: _Meeting, now: float) -> Broker:
    """Make the broker; at rank 0, tell the user what it resumes."""
    config, resumed = _config(rank, options, meeting), meeting.resumed
    if resumed is None:
        return Broker(config, now)
    text = resumed_text(resumed, now)
    log.info("%s", text)
    complain(f"fluxmpi: {text}")
    return Broker(config, now, resumed.namespaces, resumed.store, resumed.file)


def _open_log(options: Options, transport: Any) -> str:
    """Start logging; returns the problem, if there is one."""
    rank, host = transport.rank, socket.gethostname()
    try:
        configure(options.log_level, options.log_file, rank, host)
    except OSError as error:
        return f"--log-file {options.log_file}: rank {rank} on {host} cannot open it: {error.strerror}"
    log.info("starts: pid %d, %d ranks, %s", os.getpid(), transport.size, transport.description)
    return ""


def _log_place(broker: Broker, hosts: list[str], directory: InstanceDirectory) -> None:
    """Log where this broker is in the tree."""
    router = broker.router
    above = f"parent {router.parent} ({hosts[router.parent]})" if router.rank else "no parent"
    below = ", ".join(f"{child} ({hosts[child]})" for child in router.children) or "none"
    log.info("instance %s, topology %s: %s; children: %s", broker.config.instance, router.topology, above, below)
    log.debug("directory %s", directory.path)


def _meet(transport: Any, options: Options, environ: dict[str, str], problem: str) -> _Meeting:
    """Agree on the instance, and make this rank's directory and doorbell. Collective; raises on all ranks or on none.

    ``problem``: what went wrong at this rank before.
    """
    rank = transport.rank
    directory, bell, resumed = None, None, None
    if rank == 0 and not problem:
        try:
            digest_function(options.algorithm)
            Router(0, transport.size, options.topology)
            if options.checkpoint:
                check_checkpoint(options.checkpoint, "--checkpoint")
                import h5py  # noqa: F401 - now, as it takes memory and 0.1 s of all threads; a save uses it
            if not os.path.isdir(options.checkpoint_fallback):
                check_checkpoint(options.checkpoint_fallback, "--checkpoint-fallback")
            resumed = resume(options.checkpoint, options.algorithm) if options.resume else None
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
    card: dict[str, Any] = {}
    try:
        if hosts.index(hosts[rank]) == rank:  # the first of its host
            for path in remove_leftovers():
                log.info("removed %s, which an instance that was killed has left", path)
        directory = InstanceDirectory(first[0]["instance"], rank)
        if transport.size > 1 and not options.polling:
            bell = Doorbell(rank, first[0]["secret"], directory.path)
            card = bell.own(len(set(hosts)) > 1, options.interface)
    except (FluxmpiError, OSError) as error:
        problem = f"rank {rank} on {hosts[rank]}: {error}"
    second = transport.exchange({"problem": problem, "card": card})  # all have come from MPI_Init
    log.debug("removed the names of %s", ", ".join(remove_names()) or "no shared memory")
    try:
        _agree(second, rank)
    except FluxmpiError:
        if directory is not None:
            directory.close()
        raise
    assert directory is not None
    return _Meeting(first[0]["instance"], hosts, directory, bell, [entry["card"] for entry in second], resumed)


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
        **_store_bounds(options),
        owner=os.geteuid(),
        command=options.command,
        checkpoint=options.checkpoint,
        checkpoint_every_s=options.checkpoint_every_s,
        checkpoint_fallbacks=fallback_files(options.checkpoint, options.checkpoint_fallback, meeting.instance),
        debug="fail" in os.environ.get(DEBUG_VARIABLE, ""),
        attributes={"local-uri": f"local://{directory.socket}", "rundir": directory.path, **options.attributes},
    )


def _segments_bytes(options: Options, neighbours: int) -> int:
    if options.segments_bytes_max is not None:
        return options.segments_bytes_max
    return min(SEGMENTS_BYTES_MAX, int(shared_memory_bound().bytes * SEGMENTS_SHARE) // neighbours)


def _store_bounds(options: Options) -> dict[str, Any]:
    """Return the fields of Config that bound the store and its history."""
    memory, history = process_memory_bound().bytes, options.history
    default = min(HISTORY_BYTES_MAX, max(1, int(memory * HISTORY_SHARE)))
    return {
        "store_bytes_max": max(
            1, int(memory * STORE_SHARE) if options.store_bytes_max is None else options.store_bytes_max
        ),
        "retention": RETENTION_COUNT if history.count is None else history.count,
        "retention_age_s": history.age_s or 0.0,
        "history_bytes_max": default if history.bytes is None else max(1, history.bytes),
        "retention_chosen": history.chosen,
    }


def _agree(entries: list[dict[str, Any]], rank: int) -> None:
    """Raise LaunchError on all ranks if any has a problem; only the lowest rank with one has the text."""
    for reporter, entry in enumerate(entries):
        if entry["problem"]:
            raise LaunchError(entry["problem"] if reporter == rank else "")


def _report_to_starter(path: str, text: str) -> None:
    """Report why this broker has ended, which is cut off from rank 0: ``fluxmpi start -n`` prints one such report."""
    if path:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as starter:
            starter.settimeout(REPORT_S)
            starter.connect("\0" + path)
            starter.sendall(text.encode())
            return
    complain(text)


def _connect_starter(loop: Loop, directory: InstanceDirectory, environ: dict[str, str]) -> socket.socket | None:
    """Connect to ``fluxmpi start -n`` and send it this broker's address.

    The instance ends when the starter closes it or dies.
    """
    path = environ.get(STARTER_VARIABLE)
    if not path:
        return None
    starter = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    starter.connect("\0" + path)
    starter.sendall(f"ready local://{directory.socket}\n".encode())

    def readable() -> None:
        words = starter.recv(64).split()
        if not words:
            loop.unwatch(starter.fileno())
        status = int(words[1]) if len(words) == 2 else 1
        reason = "" if words else "the process that started the instance is gone"
        loop.deliver(control("lifecycle.stop", Shutdown(status, reason), LOOP))

    loop.watch(starter.fileno(), readable)
    return starter
