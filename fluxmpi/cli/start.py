"""``fluxmpi start``: run as a broker under mpirun or srun; start N brokers (``-n``); or run one broker alone."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from fluxmpi.blobref import DIGESTS
from fluxmpi.cli.common import CONTEXT, Command, Duration, Size
from fluxmpi.content.cache import CACHE_BYTES_MAX
from fluxmpi.drivers.log import LEVELS
from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT, RETENTION_COUNT_MAX
from fluxmpi.overlay.health import HEARTBEAT_S
from fluxmpi.overlay.topology import DEFAULT, parent_function

LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

EXAMPLES = """
fluxmpi start -n 4 -- bash                      four brokers on this host, and a shell in the instance
mpirun -n 4 fluxmpi start -- ./workflow.sh      each task is a broker; rank 0 runs the script
srun -N 4 --ntasks-per-node=1 --mpi=pmi2 fluxmpi start -- ./workflow.sh
fluxmpi start -n 2 --checkpoint run.h5 -- ./workflow.sh       saves every 5 minutes, and at the end
fluxmpi start -n 2 --checkpoint run.h5 --resume -- ./workflow.sh
fluxmpi start -n 2 --checkpoint run.h5 --checkpoint-every 1m --checkpoint-fallback ~/saved -- ./workflow.sh
fluxmpi start -n 2 --store-bytes 8G --history-bytes 64M --history-age 10m -- ./workflow.sh
fluxmpi start -n 4 --log-file 'run.{rank}.log' -- ./workflow.sh
fluxmpi start -n 2 </dev/null                   no command and no terminal: runs until 'fluxmpi shutdown'
"""


def under_launcher() -> bool:
    """Return whether this process is a task of mpirun or srun, and not the script of a batch job."""
    if any(variable in os.environ for variable in LAUNCHER_VARIABLES):
        return True
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ


def first_task() -> bool:
    """Return whether this task prints an error that all tasks have.

    Without a working PMI every task is rank 0 of its own MPI world, so the rank cannot decide.
    """
    for variable in ("SLURM_PROCID", *LAUNCHER_VARIABLES):
        if variable in os.environ:
            return os.environ[variable] == "0"
    return True


class Period(Duration):
    """A duration, or ``off``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return 0.0 if str(value) == "off" else super().convert(value, param, ctx)


def _topology(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        parent_function(value)
    except FluxmpiError as error:
        raise click.BadParameter(error.text) from None
    return value


def _attributes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise click.BadParameter(f"invalid attribute '{name}{equals}': use NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _log_file(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Make the path absolute, since ranks may be started in another folder."""
    if not value or value == "-":
        return value
    path = os.path.abspath(value)
    if "{rank}" not in os.path.dirname(path) and not os.path.isdir(os.path.dirname(path)):
        raise click.BadParameter(f"the folder {os.path.dirname(path)} does not exist: create it first")
    if os.path.isdir(path):
        raise click.BadParameter(f"{path} is a folder: name a file in it")
    return path


def _named(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse an empty path, as of a variable that is not set: without this the run would have no checkpoint."""
    if value == "":
        raise click.BadParameter("the path is empty: name a file, or leave out the option.")
    return value


def _positive(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("0 is not a limit that can be kept: give 1 or more, or leave out the option.")
    return value


@click.command(cls=Command, context_settings={**CONTEXT, "allow_interspersed_args": False}, examples=EXAMPLES)
@click.option(
    "-n", "--size", type=click.IntRange(1, 4096), metavar="N", help="Start N brokers on this host, with mpirun."
)
@click.option(
    "--topology",
    default=DEFAULT,
    show_default=True,
    callback=_topology,
    metavar="SHAPE",
    help="The tree of brokers: kary:K, binomial or flat.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    callback=_named,
    help="HDF5 file for the store: saved periodically, at the end, on SIGTERM and by 'checkpoint save'.",
)
@click.option(
    "--checkpoint-every", type=Period(), metavar="DURATION", default="5m", show_default=True,
    help="Save to the --checkpoint file in this period, if anything has changed: seconds, or 30s, 10m, 1h; off or 0 "
    "for only at the end.",
)  # fmt: skip
@click.option(
    "--checkpoint-fallback", metavar="PATH", callback=_named,
    help="A file or a folder for the save at the end, if the --checkpoint file cannot be written.  [default: "
    "fluxmpi-INSTANCE.h5 in $FLUXMPI_RUNDIR or $TMPDIR, then in the home folder]",
)  # fmt: skip
@click.option(
    "--resume",
    is_flag=True,
    help="Start with the store that the --checkpoint file contains; an error if there is none.",
)
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice(list(DIGESTS)),
    default="sha256",
    show_default=True,
    help="The digest that names blobs.",
)
@click.option(
    "--wake", type=click.Choice(["bell", "poll"]), default="bell", show_default=True,
    help="How a sleeping broker is woken by a message: bell (a FIFO on one host, a datagram between hosts), "
    "or poll (it checks periodically).",
)  # fmt: skip
@click.option(
    "--heartbeat", type=click.FloatRange(0.05, 3600), default=HEARTBEAT_S, show_default=True, metavar="SECONDS",
    help="Interval between heartbeats; a broker that misses five is lost.",
)  # fmt: skip
@click.option(
    "--cache-bytes", type=Size(), default=CACHE_BYTES_MAX, show_default="64M", metavar="SIZE",
    help="Limit of each broker's cache of blobs.",
)  # fmt: skip
@click.option(
    "--segment-bytes", type=Size(), default=None, metavar="SIZE",
    help="Limit of the shared memory in which a broker keeps long values for its clients. A value that does not fit "
    "is loaded in pieces.  [default: a quarter of the memory of the node or cgroup, shared by its brokers; at most 4 GiB]",
)  # fmt: skip
@click.option(
    "--mpi-interface", metavar="IFACE", default="",
    help="With several hosts: the network interface that MPI and the doorbells use, as eth1. Their ports are bound to "
    "it where the MPI can do that; SECURITY.md lists the others.  [default: all interfaces]",
)  # fmt: skip
@click.option(
    "--store-bytes", type=Size(), metavar="SIZE", callback=_positive,
    help="Limit of rank 0's store. A commit that does not fit is refused with StoreFull; keys can still be unlinked.  "
    "[default: half the memory of the node or cgroup]",
)  # fmt: skip
@click.option(
    "--history-versions", type=click.IntRange(1, RETENTION_COUNT_MAX), metavar="N",
    help="Older versions kept of each namespace, as 'kvs retention --count' sets.  "
    f"[default: {RETENTION_COUNT:,}, or what the --resume file says]",
)  # fmt: skip
@click.option(
    "--history-age", type=Duration(), metavar="DURATION",
    help="How long a version is kept after the next one was committed: seconds, or 30s, 10m, 1h; 0 is no limit.  "
    "[default: 0, or what the --resume file says]",
)  # fmt: skip
@click.option(
    "--history-bytes", type=Size(), metavar="SIZE", callback=_positive,
    help="Limit of what only older versions of a namespace hold, as 'kvs retention --bytes' sets.  [default: a "
    "sixteenth of the memory of the node or cgroup, at most 512M, or what the --resume file says]",
)  # fmt: skip
@click.option(
    "-o",
    "--setattr",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_attributes,
    help="Set an attribute of the brokers, which getattr reads. May be repeated.",
)
@click.option(
    "--log-level", type=click.Choice(LEVELS), metavar="LEVEL",
    help=f"Log what the brokers do, from LEVEL on: {', '.join(LEVELS)}.  [default: no log; with --log-file, info]",
)  # fmt: skip
@click.option(
    "--log-file", metavar="FILE", default="", callback=_log_file,
    help="Append the log to FILE, in which {rank} stands for each broker's rank; '-' is stderr.  [default: stderr]",
)  # fmt: skip
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def start(
    ctx: click.Context,
    size: int | None,
    topology: str,
    checkpoint: str | None,
    checkpoint_every: float,
    checkpoint_fallback: str | None,
    resume: bool,
    algorithm: str,
    wake: str,
    heartbeat: float,
    cache_bytes: int,
    segment_bytes: int | None,
    mpi_interface: str,
    store_bytes: int | None,
    history_versions: int | None,
    history_age: float | None,
    history_bytes: int | None,
    attributes: dict[str, str],
    log_level: str | None,
    log_file: str,
    command: tuple[str, ...],
) -> None:
    """Start an instance, and run COMMAND in it on rank 0 with FLUXMPI_URI set.

    Under mpirun or srun each task becomes a broker. With -n N, N brokers are started with the mpirun that is installed
    with fluxmpi. With neither, the instance has one broker.

    Without COMMAND, a shell is run if stdin is a terminal; otherwise the instance runs until 'fluxmpi shutdown' or
    SIGTERM.

    Exit status: that of COMMAND, or of 'fluxmpi shutdown --status'; 1 if the instance could not start, lost a broker
    or could not save its checkpoint.
    """
    from fluxmpi.drivers.start import History, Options, run_broker

    if resume and not checkpoint:
        raise click.UsageError("--resume needs --checkpoint FILE, the file to resume from.")
    if checkpoint_fallback and not checkpoint:
        raise click.UsageError("--checkpoint-fallback needs --checkpoint FILE, the file that it stands in for.")
    given = ctx.get_parameter_source("checkpoint_every") == click.core.ParameterSource.COMMANDLINE
    if given and checkpoint_every and not checkpoint:
        raise click.UsageError("--checkpoint-every needs --checkpoint FILE, the file to save to.")
    checkpoint = os.path.abspath(checkpoint) if checkpoint else ""
    launched = under_launcher()
    if launched and size is not None:
        raise click.UsageError("-n starts brokers, but this process is already a task of mpirun or srun: leave out -n.")
    if mpi_interface and not launched:
        raise click.UsageError(
            "--mpi-interface is for several hosts, under mpirun or srun: on one host MPI uses no network."
        )
    if not command and not launched and sys.stdin.isatty():
        command = (os.environ.get("SHELL") or "/bin/sh",)
    try:
        if size is not None and size > 1:
            ctx.exit(_start_ranks(size, command, ctx))
        options = Options(
            topology=topology,
            algorithm=algorithm,
            heartbeat_s=heartbeat,
            cache_bytes_max=cache_bytes,
            segments_bytes_max=segment_bytes,
            store_bytes_max=store_bytes,
            history=History(history_versions, history_age, history_bytes),
            checkpoint=checkpoint,
            checkpoint_every_s=checkpoint_every if checkpoint else 0.0,
            checkpoint_fallback=os.path.abspath(checkpoint_fallback) if checkpoint_fallback else "",
            resume=resume,
            polling=wake == "poll",
            command=command,
            attributes=attributes,
            interface=mpi_interface,
            log_level=log_level or "",
            log_file=log_file,
        )
        status = run_broker(options, launched)
    except FluxmpiError as error:
        if launched and not first_task() and "world of" in error.text:
            ctx.exit(1)
        if not error.args or not error.args[0]:
            ctx.exit(1)
        raise
    ctx.exit(status)


def _start_ranks(size: int, command: tuple[str, ...], ctx: click.Context) -> int:
    from fluxmpi.drivers.starter import Starter

    params = ctx.params
    arguments = [
        f"--topology={params['topology']}",
        f"--hash={params['algorithm']}",
        f"--wake={params['wake']}",
        f"--heartbeat={params['heartbeat']}",
        f"--cache-bytes={params['cache_bytes']}",
    ]
    if params["segment_bytes"] is not None:
        arguments.append(f"--segment-bytes={params['segment_bytes']}")
    for name in ("store_bytes", "history_versions", "history_age", "history_bytes"):
        if params[name] is not None:
            arguments.append(f"--{name.replace('_', '-')}={params[name]}")
    if params["checkpoint"]:
        arguments.append(f"--checkpoint={os.path.abspath(params['checkpoint'])}")
        arguments.append(f"--checkpoint-every={params['checkpoint_every']}")
    if params["checkpoint_fallback"]:
        arguments.append(f"--checkpoint-fallback={os.path.abspath(params['checkpoint_fallback'])}")
    if params["resume"]:
        arguments.append("--resume")
    arguments += [f"--setattr={name}={value}" for name, value in params["attributes"].items()]
    if params["log_level"]:
        arguments.append(f"--log-level={params['log_level']}")
    if params["log_file"]:
        arguments.append(f"--log-file={params['log_file']}")
    return Starter(size, arguments, list(command) or None).run()
