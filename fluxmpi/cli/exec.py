"""``fluxmpi exec``: a command on ranks, after flux-exec(1).

Ctrl-C goes to the remote commands; a second one gives up on them (their brokers then end them). The signal handler only
writes to a pipe that the loop polls, so that it never strikes in the middle of a message.
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

from fluxmpi.cli.common import CONTEXT, Command, connect, fail, parse_idset, write
from fluxmpi.errors import InvalidRequest, NoSuchRank
from fluxmpi.jobs.wire import STDERR, STDOUT

if TYPE_CHECKING:
    from fluxmpi.client.exec import Piece, Running
    from fluxmpi.client.handle import Handle

EX_NOHOST = 68
"""sysexits.h: a rank that does not exist, as in flux-exec."""

GIVEN_UP = 130


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
@click.option("-r", "--rank", "ranks", metavar="IDSET", default="all", show_default=True, help="Where: like 0-3,7.")
@click.option("-x", "--exclude", metavar="IDSET", help="But not on these ranks.")
@click.option("-l", "--label-io", "label", is_flag=True, help="Begin each line of output with the rank.")
@click.option("-d", "--dir", "cwd", metavar="DIR", help="The working directory there.  [default: as here]")
@click.option("-i", "--input", "input_", type=click.File("rb"), help="Give FILE's contents ('-' is stdin) to each.")
@click.option("-n", "--noinput", is_flag=True, help="Give nothing on stdin; this is the default.")
@click.option("-v", "--verbose", is_flag=True, help="Tell of each rank's end on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Do not tell of commands that failed.")
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
    """Run COMMAND on ranks, as a child of each one's broker. The exit status is the largest of theirs.

    It is 128 + N for a command that signal N ended, 127 for one that is not there, 68 for a rank that is not.
    """
    stdin = input_.read() if input_ and not noinput else b""
    with connect() as h:
        try:
            chosen = parse_idset(ranks, h.size)
            excluded = set(parse_idset(exclude, h.size)) if exclude else set()
        except NoSuchRank as error:
            fail(error.text)
            ctx.exit(EX_NOHOST)
        chosen = [rank for rank in chosen if rank not in excluded]
        if not chosen:
            raise InvalidRequest(f"no rank is left of {ranks} without {exclude}")
        running = h.exec.start(command, chosen, cwd=cwd or os.getcwd(), stdin=stdin)
        ctx.exit(_Printer(label, verbose, quiet).run(h, running))


class _Printer:
    def __init__(self, label: bool, verbose: bool, quiet: bool) -> None:
        self._label = label
        self._verbose = verbose
        self._quiet = quiet
        self._partial: dict[tuple[int, int], bytes] = {}
        """The unfinished last line of each rank's stream, kept back so that labelled lines stay whole."""
        self._status = 0

    def run(self, h: Handle, running: Running) -> int:
        """Print until all have ended; the exit status."""
        with _interrupts() as interrupted:
            poll = select.poll()
            poll.register(h.fileno(), select.POLLIN)
            poll.register(interrupted, select.POLLIN)
            interrupts = 0
            while running.ranks:
                h.poll_input()
                while (piece := running.take()) is not None:
                    self._piece(piece)
                sys.stdout.flush()
                if not running.ranks:
                    break
                ready = [fd for fd, _ in poll.poll()]
                if interrupted in ready:
                    interrupts += len(os.read(interrupted, 16))
                    if interrupts > 1:
                        fail("given up; the commands may still be ending")
                        return GIVEN_UP
                    fail(f"interrupting the command on {len(running.ranks)} ranks; Ctrl-C again to give up")
                    running.kill(signal.SIGINT)
        return self._status

    def _piece(self, piece: Piece) -> None:
        if piece.status is None:
            self._output(piece.rank, piece.stream, piece.data)
            return
        for stream in (STDOUT, STDERR):
            rest = self._partial.pop((piece.rank, stream), b"")
            if rest:
                self._write(stream, f"{piece.rank}: ".encode() + rest + b"\n")
        self._status = max(self._status, piece.status)
        if piece.error is not None:
            fail(f"rank {piece.rank}: {piece.error.text}")
        elif self._verbose or (piece.status and not self._quiet):
            fail(f"rank {piece.rank}: {_ending(piece.status)}")

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
        write(data, out)
        out.flush()


def _ending(status: int) -> str:
    if status <= 128:
        return f"exit status {status}"
    try:
        return f"ended by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"exit status {status}"


@contextmanager
def _interrupts() -> Iterator[int]:
    """A descriptor that becomes readable with SIGINT and SIGTERM, a byte for each."""
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
