"""``fluxmpi trace``: the messages that brokers handled, merged in causal order.

A broker records nothing by default. With ``--follow`` and ``--seconds`` the brokers record while this command runs,
with ``--on`` until ``--off``. Without an option it prints what they have recorded.

The order is certain only if all brokers between the traced ones record as well. So this command has them record, and
leaves out their records.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fluxmpi.broker.wire import TraceChunk, TraceRead, TraceRecord, TraceStart, TraceState, TraceStop
from fluxmpi.cli.common import (
    Command,
    Duration,
    connect,
    parse_idset,
    pause,
    print_error,
    response_timeout_option,
    write_json,
    write_line,
)
from fluxmpi.cli.trace_formats import Chrome, Merger, Traced, Unanswered, as_json, as_line
from fluxmpi.errors import FluxmpiError, InvalidRequest, RequestTimeout
from fluxmpi.overlay import topology
from fluxmpi.overlay.wire import Info

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle

INTERVAL_S = 0.2
"""Between two readings while brokers record."""

INTERRUPTED = 128 + 2

EXAMPLES = """
fluxmpi trace --follow                            all brokers, until Ctrl-C
fluxmpi trace -r 0,3 --seconds 5                  what ranks 0 and 3 handle in the next five seconds
fluxmpi trace --follow --topic 'kvs.*'            messages of the KVS
fluxmpi trace --on                                record from now on …
fluxmpi trace --unanswered                        … and print the requests that no broker has answered
fluxmpi trace -s 2 --format chrome >trace.json    … to open in https://ui.perfetto.dev
"""

_decode_record = msgspec.msgpack.Decoder(TraceRecord).decode


@click.command(cls=Command, examples=EXAMPLES)
@click.option("-r", "--ranks", metavar="IDSET", default="all", show_default=True, help="Ranks to trace, such as 0-3,7.")
@click.option("--topic", "topics", metavar="GLOB", multiple=True, help="Only topics that match GLOB. May be repeated.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "chrome"]), default="text", show_default=True,
    help="One line of text or JSON per message, or one JSON document for Perfetto and chrome://tracing.",
)  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Record, and print messages until Ctrl-C.")
@click.option("-s", "--seconds", type=Duration(), metavar="DURATION", help="Record for DURATION, then print.")
@click.option("--on", "switch", flag_value="on", help="Have the brokers record until --off; prints nothing.")
@click.option("--off", "switch", flag_value="off", help="End all recording and discard what is recorded.")
@click.option("--unanswered", is_flag=True, help="Only the clients' requests that were not answered.")
@response_timeout_option(5.0)
@click.pass_context
def trace(
    ctx: click.Context,
    ranks: str,
    topics: tuple[str, ...],
    form: str,
    follow: bool,
    seconds: float | None,
    switch: str | None,
    unanswered: bool,
    timeout: float,
) -> None:
    """Print the messages that brokers handled, in causal order: a receipt never before its sending.

    Each line is one message at one broker: time, source and target (a rank, client, machine or driver), kind,
    topic, tag, status (0 success, -1 more to come), target rank (-1 the nearest), route and size.

    \b
    Exit status: 0; 1 if a broker does not answer or does not record; 130 after Ctrl-C.
    """
    if sum((follow, seconds is not None, switch is not None)) > 1:
        raise click.UsageError("--follow, --seconds, --on and --off exclude one another: give one of them.")
    if unanswered and (follow or form == "chrome"):
        raise click.UsageError(
            "--unanswered needs a trace that ends, as text or JSON: use it with --seconds, or alone."
        )
    with connect(streaming=True) as h:
        brokers = Brokers(h, parse_idset(ranks, h.size), timeout)
        if switch is not None:
            brokers.switch(switch == "on")
            ctx.exit(1 if brokers.silent else 0)
        printer = TracePrinter(form, topics, unanswered, brokers.hosts())
        recording = follow or seconds is not None
        interrupted = _catch_interrupt()
        with brokers.recording() if recording else brokers.recorded():
            end = time.monotonic() + (seconds or 0.0)
            while recording and not interrupted and (follow or time.monotonic() < end):
                pause(INTERVAL_S if follow else max(min(INTERVAL_S, end - time.monotonic()), 0.0))
                printer.print(brokers.read())
            printer.print(brokers.read(last=True))
        printer.close()
    ctx.exit(INTERRUPTED if interrupted else 1 if brokers.silent else 0)


def _catch_interrupt() -> list[int]:
    """Return a list that the first Ctrl-C fills. The trace then ends with whole records; a second one interrupts it."""
    caught: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, interrupt)
    return caught


class Brokers:
    """The brokers that are traced, and those between them."""

    def __init__(self, handle: Handle, ranks: list[int], timeout: float) -> None:
        self._handle = handle
        self._timeout = timeout
        self.shown = ranks
        info = handle.rpc("overlay.info", target=handle.rank, timeout=timeout, reply=Info)
        self._between = dict.fromkeys(connecting(ranks, topology.parents(info.topology, info.size)))
        self.silent: dict[int, str] = {}
        """Ranks that do not answer, with the reason."""
        self._next: dict[int, int] = {}
        """Rank to the index of the record to read next."""
        self._recording = False
        """These records began with this command, so that none may be missing."""
        self._merger = Merger(self._between)

    def hosts(self) -> dict[int, str]:
        """Return the host name of each rank."""
        names = self._handle.rpc("lifecycle.getattr", ["hostlist"], target=self._handle.rank, timeout=self._timeout)
        return dict(enumerate(names.split(",")))

    def switch(self, on: bool) -> None:
        """Have the brokers record until they are switched off, or switch them off."""
        body: Any = TraceStart(keep=True) if on else TraceStop(keep=True)
        self._ask("trace.start" if on else "trace.stop", lambda rank: body, TraceState)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Have the brokers record within the block; what they recorded before is not read."""
        for rank, state in self._ask("trace.start", lambda rank: TraceStart(), TraceState).items():
            self._next[rank] = state.next
        self._recording = True
        try:
            yield
        finally:
            for rank in self._next:
                self._handle.rpc_async("trace.stop", TraceStop(), target=rank)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Read what the brokers have recorded. Raises InvalidRequest if one of those shown does not record."""
        states = self._ask("trace.read", lambda rank: TraceRead(1 << 62), TraceChunk)
        off = [rank for rank in self.shown if rank in states and not states[rank].on]
        if off:
            who = f"rank {off[0]} records" if len(off) == 1 else f"ranks {', '.join(map(str, off))} record"
            raise InvalidRequest(f"{who} nothing: use --seconds or --follow, or switch recording on with --on first")
        for rank, state in states.items():
            if state.on:
                self._next[rank] = 0
            else:
                self._merger.leave_out(rank)
        yield

    def read(self, *, last: bool = False) -> Iterator[Traced]:
        """Read the new records of all brokers; yield those of the brokers shown whose order is certain, or all."""
        wanted = dict(self._next)
        while wanted:
            chunks = self._ask("trace.read", lambda rank: TraceRead(self._next[rank]), TraceChunk, list(wanted))
            for rank in list(wanted):
                chunk = chunks.get(rank)
                if chunk is None:
                    del wanted[rank]
                    continue
                self._take(rank, chunk)
                if not chunk.more:
                    del wanted[rank]
        shown = frozenset(self.shown)
        return (entry for entry in self._merger.released(all_of_them=last) if entry[0] in shown)

    def _take(self, rank: int, chunk: TraceChunk) -> None:
        if self._recording and chunk.first > self._next[rank]:
            print_error(
                f"rank {rank} has dropped {chunk.first - self._next[rank]} records: it handles more than its ring holds"
            )
        self._next[rank] = chunk.next
        clock = None if chunk.more else (chunk.time, chunk.count)
        self._merger.add(rank, map(_decode_record, chunk.records), clock)

    def _ask(
        self, topic: str, body: Callable[[int], Any], reply: Any, ranks: list[int] | None = None
    ) -> dict[int, Any]:
        """Ask these brokers, by default all; leave out those that do not answer, and report them."""
        handle = self._handle
        with handle.batch():
            futures = {
                rank: handle.rpc_async(topic, body(rank), target=rank, reply=reply)
                for rank in (self._between if ranks is None else ranks)
                if rank not in self.silent
            }
        answers = {}
        end = time.monotonic() + self._timeout
        for rank, future in futures.items():
            try:
                answers[rank] = future.get(max(0.0, end - time.monotonic()))
            except FluxmpiError as error:
                if handle.closed:
                    raise
                reason = (
                    f"no response within {self._timeout:g} s; it, or a broker on the path to it, does not run"
                    if isinstance(error, RequestTimeout)
                    else error.text
                )
                print_error(f"rank {rank} is left out: {reason}")
                self.silent[rank] = reason
                self._next.pop(rank, None)
                self._merger.leave_out(rank)
        return answers


def connecting(ranks: list[int], parents: list[int]) -> list[int]:
    """Return ``ranks`` and all ranks on the paths between them in the tree, in order."""
    above = {rank: _ancestors(rank, parents) for rank in ranks}
    common = set.intersection(*map(set, above.values())) if above else set()
    lowest = max(common, key=lambda rank: len(_ancestors(rank, parents)), default=0)
    found = set(ranks)
    for path in above.values():
        found.update(path[: path.index(lowest) + 1])
    return sorted(found)


def _ancestors(rank: int, parents: list[int]) -> list[int]:
    path = [rank]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path


class TracePrinter:
    """Writes records in one of the formats."""

    def __init__(self, form: str, topics: tuple[str, ...], unanswered: bool, hosts: dict[int, str]) -> None:
        self._form = form
        self._topics = topics
        self._unanswered = Unanswered() if unanswered else None
        self._chrome = Chrome(hosts)
        self._events = 0

    def print(self, records: Iterator[Traced]) -> None:
        """Write the records that match, and flush."""
        for rank, record in records:
            if self._topics and not any(fnmatchcase(record.topic, glob) for glob in self._topics):
                continue
            if self._unanswered is not None:
                self._unanswered.add(rank, record)
            else:
                self._write(rank, record)
        if self._events == 0 and self._form == "chrome":
            return
        sys.stdout.flush()

    def _write(self, rank: int, record: TraceRecord) -> None:
        if self._form == "text":
            write_line(as_line(rank, record))
        elif self._form == "json":
            write_json(as_json(rank, record))
        else:
            for event in self._chrome.events(rank, record):
                write_line(
                    ("," if self._events else '{"displayTimeUnit": "ms", "traceEvents": [\n') + json.dumps(event)
                )
                self._events += 1

    def close(self) -> None:
        """Write what ends the trace."""
        if self._unanswered is not None:
            for rank, record in self._unanswered.rest():
                self._write(rank, record)
        if self._form == "chrome":
            write_line("]}" if self._events else '{"traceEvents": []}')
        sys.stdout.flush()
