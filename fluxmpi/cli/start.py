"""``fluxmpi start``: be a broker under mpirun or srun; start the ranks, with ``-n``; or be an instance of one."""

from __future__ import annotations

import os
import sys

import click

from fluxmpi.blobref import DIGESTS
from fluxmpi.cli.common import CONTEXT, Command
from fluxmpi.content.cache import CACHE_BYTES_MAX
from fluxmpi.errors import FluxmpiError
from fluxmpi.overlay.health import HEARTBEAT_S
from fluxmpi.overlay.topology import DEFAULT, parent_function

LAUNCHER_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

EXAMPLES = """
fluxmpi start -n 4 -- bash                      four brokers on this host, and a shell in the instance
mpirun -n 4 fluxmpi start -- ./workflow.sh      the ranks are the brokers; rank 0 runs the script
srun -N 4 --ntasks-per-node=1 --mpi=pmi2 fluxmpi start -- ./workflow.sh
fluxmpi start -n 2 --checkpoint run.h5 --resume -- ./workflow.sh
fluxmpi start -n 2                              without a terminal and a command: until 'fluxmpi shutdown'
"""


def under_launcher() -> bool:
    """This process is one of the tasks of mpirun or srun, not the script of a batch job."""
    if any(variable in os.environ for variable in LAUNCHER_VARIABLES):
        return True
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ


def first_task() -> bool:
    """Among tasks that take themselves for rank 0 each, the one that speaks for all."""
    for variable in ("SLURM_PROCID", *LAUNCHER_VARIABLES):
        if variable in os.environ:
            return os.environ[variable] == "0"
    return True


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
            raise click.BadParameter(f"'{name}' does not read NAME=VALUE")
    return {name: value for name, _, value in pairs}


@click.command(cls=Command, context_settings={**CONTEXT, "allow_interspersed_args": False}, examples=EXAMPLES)
@click.option(
    "-n", "--size", type=click.IntRange(1, 4096), metavar="N", help="Start N brokers on this host with mpirun."
)
@click.option(
    "--topology", default=DEFAULT, show_default=True, callback=_topology, help="The tree: kary:K, binomial or flat."
)
@click.option(
    "--checkpoint", metavar="FILE", help="HDF5 file that a clean end, SIGTERM and 'checkpoint save' write to."
)
@click.option("--resume", is_flag=True, help="Begin with the store of the --checkpoint file.")
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice(list(DIGESTS)),
    default="sha256",
    show_default=True,
    help="What names blobs.",
)
@click.option(
    "--wake", type=click.Choice(["bell", "poll"]), default="bell", show_default=True,
    help="How a sleeping broker learns of a message: by a bell (a FIFO on one host, a datagram between hosts), or by looking.",
)  # fmt: skip
@click.option(
    "--heartbeat", type=click.FloatRange(0.05, 3600), default=HEARTBEAT_S, show_default=True, metavar="SECONDS",
    help="Period of heartbeats; a broker is lost after five.",
)  # fmt: skip
@click.option(
    "--cache-bytes", type=click.IntRange(0), default=CACHE_BYTES_MAX, show_default=True, metavar="BYTES",
    help="Bound of each broker's cache of blobs.",
)  # fmt: skip
@click.option(
    "--segment-bytes", type=click.IntRange(0), default=None, metavar="BYTES",
    help="Bound of the memory in which a broker keeps long values for its clients; longer ones they load in pieces. "
    "A quarter of the node's by default, and 4 GiB at most.",
)  # fmt: skip
@click.option(
    "-o",
    "--setattr",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_attributes,
    help="An attribute of the brokers, for getattr.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def start(
    ctx: click.Context,
    size: int | None,
    topology: str,
    checkpoint: str | None,
    resume: bool,
    algorithm: str,
    wake: str,
    heartbeat: float,
    cache_bytes: int,
    segment_bytes: int | None,
    attributes: dict[str, str],
    command: tuple[str, ...],
) -> None:
    """Start an instance, and run COMMAND in it on rank 0, with FLUXMPI_URI set. Its exit status is the instance's.

    Under mpirun or srun each task becomes a broker. Alone with -n, the ranks are started with the MPI that is installed
    beside fluxmpi. Alone without it, the instance is one broker. Without COMMAND: a shell on a terminal, else the
    instance runs until 'fluxmpi shutdown' or SIGTERM.
    """
    from fluxmpi.drivers.start import Options, run_broker

    if resume and not checkpoint:
        raise click.UsageError("--resume needs --checkpoint FILE to resume from")
    checkpoint = os.path.abspath(checkpoint) if checkpoint else ""
    launched = under_launcher()
    if launched and size is not None:
        raise click.UsageError("-n starts ranks, but this is already a task of mpirun or srun: drop -n")
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
            checkpoint=checkpoint,
            resume=resume,
            polling=wake == "poll",
            command=command,
            attributes=attributes,
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
    if params["checkpoint"]:
        arguments.append(f"--checkpoint={os.path.abspath(params['checkpoint'])}")
    if params["resume"]:
        arguments.append("--resume")
    arguments += [f"--setattr={name}={value}" for name, value in params["attributes"].items()]
    return Starter(size, arguments, list(command) or None).run()
