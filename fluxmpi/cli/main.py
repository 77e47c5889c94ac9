"""``fluxmpi``: the table of commands, and the edge where errors become one line and an exit status.

A command's module is imported when it is run, so ``fluxmpi kvs get`` pays for nothing else.

``eval "$(_FLUXMPI_COMPLETE=bash_source fluxmpi)"`` makes bash complete commands and options (``zsh_source``, ``fish_source``).

Exit status: 0; 1 when something could not be done, with a line on stderr that says what and what to do; 2 when the
command was typed wrongly; 130 after Ctrl-C; 141 when the reader of a pipe went away, silently. ``exec`` and ``start``
give the status of what they ran.
"""

from __future__ import annotations

import os
import sys

import click

from fluxmpi.cli.common import CONTEXT, PIPE_CLOSED, LazyGroup, fail_of_system, give_up_output

INTERRUPTED = 128 + 2

COMMANDS = {
    "start": ("fluxmpi.cli.start:start", "Start an instance, and run a command in it."),
    "kvs": ("fluxmpi.cli.kvs:kvs", "The key-value store: get, put, ls, watch, …"),
    "event": ("fluxmpi.cli.event:event", "Publish events and subscribe to them."),
    "exec": ("fluxmpi.cli.exec:exec_", "Run a command on ranks."),
    "checkpoint": ("fluxmpi.cli.checkpoint:checkpoint", "Save the store to HDF5, list a file, restore from one."),
    "content": ("fluxmpi.cli.content:content", "Load and store blobs by digest."),
    "overlay": ("fluxmpi.cli.overlay:overlay", "Show the tree of brokers."),
    "ping": ("fluxmpi.cli.ping:ping", "Measure round trips to a broker."),
    "getattr": ("fluxmpi.cli.attr:getattr_", "Print an attribute of a broker."),
    "lsattr": ("fluxmpi.cli.attr:lsattr", "List a broker's attributes."),
    "stats": ("fluxmpi.cli.stats:stats", "Print the numbers that brokers keep of themselves."),
    "uptime": ("fluxmpi.cli.attr:uptime", "Tell how long the instance has run."),
    "shutdown": ("fluxmpi.cli.shutdown:shutdown", "End the instance."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=CONTEXT)
@click.version_option(package_name="fluxmpi", prog_name="fluxmpi")
def cli() -> None:
    """Coordination inside a batch allocation: a key-value store, events and remote execution over MPI.

    \b
    fluxmpi start -n 4 -- bash         an instance of four brokers, and a shell in it
    fluxmpi kvs put run.steps=100      … in that shell: on any node
    fluxmpi kvs get run.steps
    """


def _open_streams() -> None:
    """Open what the caller closed (``>&-``) as /dev/null: else the next file or socket would be our stdout, or mpirun's."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so the one that was closed
            os.set_inheritable(fd, True)
            setattr(sys, name, os.fdopen(fd, mode))


def main() -> None:
    """The entry point of the ``fluxmpi`` program."""
    _open_streams()
    try:
        status = cli.main(prog_name="fluxmpi", standalone_mode=False)
    except click.Abort:  # Ctrl-C
        status = INTERRUPTED
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except OSError as error:  # the text of --help, or --version
        fail_of_system(error)
        status = 1
    status = status if isinstance(status, int) else 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = PIPE_CLOSED
    if status == PIPE_CLOSED:
        give_up_output()
    sys.exit(status)


if __name__ == "__main__":
    main()
