"""``fluxmpi``: the table of commands, and the conversion of errors to one line on stderr and an exit status.

A command's module is imported when the command is run, so that ``fluxmpi kvs get`` starts fast.

``eval "$(_FLUXMPI_COMPLETE=bash_source fluxmpi)"`` enables completion in bash (``zsh_source``, ``fish_source``).

Exit status: 0 success; 1 failure, with one line on stderr; 2 wrong usage; 130 after Ctrl-C; 141 when the reader of
stdout closed it, without a message. ``exec``, ``start`` and ``kvs lease`` return that of the command they ran.
"""

from __future__ import annotations

import io
import os
import sys

import click

from fluxmpi.cli.common import CONTEXT, PIPE_CLOSED, LazyGroup, discard_output, print_os_error, write

INTERRUPTED = 128 + 2

COMMANDS = {
    "start": ("fluxmpi.cli.start:start", "Start an instance and run a command in it."),
    "kvs": ("fluxmpi.cli.kvs:kvs", "Use the key-value store: get, put, ls, watch, …"),
    "event": ("fluxmpi.cli.event:event", "Publish events and subscribe to them."),
    "exec": ("fluxmpi.cli.exec:exec_", "Run a command on ranks."),
    "checkpoint": ("fluxmpi.cli.checkpoint:checkpoint", "Save the store to an HDF5 file, list one, restore from one."),
    "content": ("fluxmpi.cli.content:content", "Load and store blobs by their digest."),
    "overlay": ("fluxmpi.cli.overlay:overlay", "Show the tree of brokers."),
    "ping": ("fluxmpi.cli.ping:ping", "Measure round-trip times to a broker."),
    "getattr": ("fluxmpi.cli.attr:getattr_", "Print an attribute of a broker."),
    "lsattr": ("fluxmpi.cli.attr:lsattr", "List a broker's attributes."),
    "stats": ("fluxmpi.cli.stats:stats", "Print the statistics of brokers."),
    "trace": ("fluxmpi.cli.trace:trace", "Print the messages that brokers handle."),
    "uptime": ("fluxmpi.cli.attr:uptime", "Print how long the instance has run."),
    "shutdown": ("fluxmpi.cli.shutdown:shutdown", "End the instance."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=CONTEXT)
@click.version_option(package_name="fluxmpi", prog_name="fluxmpi")
def cli() -> None:
    """Coordinate programs in a batch allocation: a key-value store, events and remote execution over MPI.

    \b
    Examples:
      fluxmpi start -n 4 -- bash       start four brokers on this host, and a shell in the instance
      fluxmpi kvs put run.steps=100    in that shell, or in any program of the instance
      fluxmpi kvs get run.steps

    \b
    Exit status:
      0 success   1 failure   2 wrong usage   130 interrupted   141 stdout was closed
      exec, start and kvs lease return the status of the command that they ran.
    """


def _open_streams() -> None:
    """Open a standard stream that the caller closed (``>&-``) on /dev/null.

    Otherwise the next file or socket would get its number, and be written to as stdout, here or in mpirun.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest free number: the closed one
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, mode))


def _show(error: click.ClickException) -> None:
    """Print a usage error on stderr. It repeats the arguments, which may be names that another program chose."""
    text = io.StringIO()
    error.show(file=text)
    write(text.getvalue(), sys.stderr)
    sys.stderr.flush()


def main() -> None:
    """Run the ``fluxmpi`` program, and exit."""
    _open_streams()
    try:
        status = cli.main(prog_name="fluxmpi", standalone_mode=False)
    except click.Abort:  # Ctrl-C
        status = INTERRUPTED
    except click.ClickException as error:
        _show(error)
        status = error.exit_code
    except OSError as error:  # raised while --help or --version writes
        print_os_error(error)
        status = 1
    status = status if isinstance(status, int) else 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = PIPE_CLOSED
    if status == PIPE_CLOSED:
        discard_output()
    sys.exit(status)


if __name__ == "__main__":
    main()
