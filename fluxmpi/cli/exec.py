"""``fluxmpi exec``: run a command on ranks, as flux-exec(1) does.

Ctrl-C interrupts the remote commands; a second Ctrl-C ends this command at once, and the brokers then kill them. The
signal handler only writes to a pipe that the loop polls, so that it never interrupts the handling of a message.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import click

from fluxmpi.cli.common import CONTEXT, PIPE_CLOSED, Command, connect, parse_idset, plural, print_error, write
from fluxmpi.errors import InvalidRequest, NoSuchRank
from fluxmpi.jobs.wire import STDERR, STDOUT

if TYPE_CHECKING:
    from fluxmpi.client.exec import CommandOutput, RunningCommand
    from fluxmpi.client.handle import Handle

EX_NOHOST = 68
"""Exit status for a rank that does not exist, as in flux-exec (sysexits.h)."""

ABANDONED_STATUS = 128 + signal.SIGINT
"""Exit status after a second Ctrl-C."""


@click.command(
    "exec",
    cls=Command,
    context_settings={**CONTEXT, "ignore_unknown_options": True, "allow_interspersed_args": False},
    examples="""
fluxmpi exec hostname
fluxmpi exec -l -r 0-3,7 df -h /tmp
fluxmpi exec -r all -x 0 -- sh -c 'kill -9 $PPID'
""",
)
@click.option(
    "-r", "--rank", "ranks", metavar="IDSET", default="all", show_default=True, help="Ranks to run on: 0-3,7."
)
@click.option("-x", "--exclude", metavar="IDSET", help="Ranks to leave out.")
@click.option("-l", "--label-io", "label", is_flag=True, help="Prefix each line of output with the rank.")
@click.option("-d", "--dir", "cwd", metavar="DIR", help="Working directory of COMMAND.  [default: the current one]")
@click.option(
    "-i",
    "--input",
    "input_",
    type=click.File("rb"),
    metavar="FILE",
    help="Send FILE to each rank as stdin; '-' is stdin.",
)
@click.option("-n", "--noinput", is_flag=True, help="Send nothing on stdin (the default).")
@click.option("-v", "--verbose", is_flag=True, help="Report the exit status of every rank on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Do not report ranks whose COMMAND failed.")
@click.argument("command", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context,
    ranks: str,
    exclude: str | None,
    label: bool,
    cwd: str | None,
    input_: BinaryIO | None,
    noinput: bool,
    verbose: bool,
    quiet: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND on ranks, as a child of each rank's broker, and print its output as it arrives, unchanged.

    Ctrl-C sends SIGINT to the remote commands; a second Ctrl-C exits at once.

    \b
    Exit status: the largest of the ranks, which is
      128 + N   COMMAND was ended by signal N
      127       COMMAND was not found
      68        a rank does not exist; nothing was run
      130       interrupted twice
    """
    stdin = input_.read() if input_ and not noinput else b""
    with connect() as h:
        try:
            chosen = parse_idset(ranks, h.size)
            excluded = set(parse_idset(exclude, h.size)) if exclude else set()
        except NoSuchRank as error:
            print_error(error.text)
            ctx.exit(EX_NOHOST)
        chosen = [rank for rank in chosen if rank not in excluded]
        if not chosen:
            raise InvalidRequest(f"no rank to run on: --exclude {exclude} removes all of {ranks}")
        running = h.exec.start(command, chosen, cwd=cwd or os.getcwd(), stdin=stdin)
        ctx.exit(_Printer(label, verbose, quiet).run(h, running))


class _Printer:
    """Prints the output of all ranks, and computes the exit status."""

    def __init__(self, label: bool, verbose: bool, quiet: bool) -> None:
        self._label = label
        self._verbose = verbose
        self._quiet = quiet
        self._partial: dict[tuple[int, int], bytes] = {}
        """(rank, stream) → an incomplete last line. It is held back, so that labelled lines are complete."""
        self._status = 0

    def run(self, h: Handle, running: RunningCommand) -> int:
        """Print until all ranks have ended. Return the exit status."""
        with _interrupts() as interrupted:
            poll = select.poll()
            poll.register(h.fileno(), select.POLLIN)
            poll.register(interrupted, select.POLLIN)
            poll.register(sys.stdout.fileno(), 0)
            interrupts = 0
            while running.ranks:
                h.poll_input()
                while (piece := running.poll()) is not None:
                    self._piece(piece)
                sys.stdout.flush()
                if not running.ranks:
                    break
                ready = [fd for fd, _ in poll.poll()]
                if sys.stdout.fileno() in ready:  # its reader has gone; the brokers hang up the commands
                    return PIPE_CLOSED
                if interrupted in ready:
                    interrupts += len(os.read(interrupted, 16))
                    if interrupts > 1:
                        print_error("interrupted twice: exit without waiting; the brokers kill the commands")
                        return ABANDONED_STATUS
                    print_error(
                        f"interrupting the command on {plural(len(running.ranks), 'rank')}; Ctrl-C again to give up"
                    )
                    running.kill(signal.SIGINT)
        return self._status

    def _piece(self, piece: CommandOutput) -> None:
        if piece.status is None:
            self._output(piece.rank, piece.stream, piece.data)
            return
        for stream in (STDOUT, STDERR):
            rest = self._partial.pop((piece.rank, stream), b"")
            if rest:
                self._write(stream, f"{piece.rank}: ".encode() + rest + b"\n")
        self._status = max(self._status, piece.status)
        if piece.error is not None:
            print_error(f"rank {piece.rank}: {piece.error.text}")
        elif self._verbose or (piece.status and not self._quiet):
            print_error(f"rank {piece.rank}: {_status_text(piece.status)}")

    def _output(self, rank: int, stream: int, data: bytes) -> None:
        if not self._label:
            self._write(stream, data)
            return
        *lines, rest = (self._partial.pop((rank, stream), b"") + data).split(b"\n")
        if rest:
            self._partial[rank, stream] = rest
        self._write(stream, b"".join(b"%d: %s\n" % (rank, line) for line in lines))

    def _write(self, stream: int, data: bytes) -> None:
        out = sys.stdout if stream == STDOUT else sys.stderr
        write(data, out, raw=True)
        out.flush()


def _status_text(status: int) -> str:
    if status <= 128:
        return f"exit status {status}"
    try:
        return f"ended by signal {signal.Signals(status - 128).name}"
    except ValueError:
        return f"exit status {status}"


@contextmanager
def _interrupts() -> Iterator[int]:
    """Yield a descriptor that receives one byte for each SIGINT or SIGTERM."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def handler(number: int, frame: object) -> None:
        os.write(writer, b"!")

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield reader
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        os.close(reader)
        os.close(writer)
