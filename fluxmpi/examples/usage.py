"""Example: a producer replays the log of a parallel machine, and consumers on the other nodes watch it live.

The producer replays a workload log (NASA's iPSC/860, 1993; see ``swf``) into the KVS, many thousand times faster than
in real time. Each event of a job is one commit to several keys:

    submitted   job.ID.state  job.ID.time  job.ID.user  job.ID.procs
    running     job.ID.state  job.ID.time  running.ID = its processors
    complete    job.ID.state  job.ID.time  running.ID is removed

A consumer watches all of ``job``. Each notification has a snapshot, the KVS at that version, although the producer has
continued meanwhile. At the snapshot the consumer reads what is not in the notification (how many processors the job
has), and counts which jobs are running. So it has the number of processors in use twice, as a running sum and as the
count in the snapshot; they must agree at every version.

``Observer`` knows the expected events from the log. It counts those that were missed, repeated or out of order, and the
snapshots that disagreed. Any of these makes the example exit with status 1.

    fluxmpi start -n 4 -- python -m fluxmpi.examples.usage
"""

from __future__ import annotations

import heapq
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from fluxmpi.examples import swf

if TYPE_CHECKING:
    from fluxmpi import Handle, RunningCommand

SUBMITTED, RUNNING, COMPLETE = "submitted", "running", "complete"

END = "job.end"
"""The producer's last commit: how many events there were."""

JOBS = 1000
SECONDS_PER_JOB = 0.012


# ------------------------------------------------------------------------------------------------------ the log


@dataclass(frozen=True, slots=True)
class JobStateChange:
    """A job enters ``state`` at ``time``, seconds since the log began."""

    job: swf.Job
    state: str
    time: int


def replay(jobs: Iterable[swf.Job]) -> Iterator[JobStateChange]:
    """Yield the events of jobs, which are sorted by start, in order of time; of the same time, ends come first."""
    ends: list[tuple[int, int, swf.Job]] = []
    for order, job in enumerate(jobs):
        while ends and ends[0][0] <= job.start:
            end, _, ended = heapq.heappop(ends)
            yield JobStateChange(ended, COMPLETE, end)
        yield JobStateChange(job, SUBMITTED, job.submit)
        yield JobStateChange(job, RUNNING, job.start)
        heapq.heappush(ends, (job.end, order, job))
    while ends:
        end, _, ended = heapq.heappop(ends)
        yield JobStateChange(ended, COMPLETE, end)


# ----------------------------------------------------------------------------------------------------- the observer


@dataclass
class Observer:
    """A consumer's record of the machine, and of the events that the watch delivered.

    ``steps`` has (time, processors in use from then on) for each change. In the log, more processors are in use than
    the machine has at a few moments.
    """

    expected: Sequence[JobStateChange]
    steps: list[tuple[int, int]] = field(default_factory=list)
    in_use: int = 0
    version: int = 0
    seen: int = 0
    missed: int = 0
    twice: int = 0
    disordered: int = 0
    wrong: int = 0

    def __post_init__(self) -> None:
        self._place = {(event.job.id, event.state): place for place, event in enumerate(self.expected)}
        self._seen: set[int] = set()
        self._next = 0

    def see(self, version: int, id: int, state: str, time: int, processors: int, in_use: int) -> None:
        """Record one event of a notification, and the processors ``in_use`` that were counted in its snapshot."""
        self.seen += 1
        self._account(version, id, state)
        self.in_use += {RUNNING: processors, COMPLETE: -processors}.get(state, 0)
        if self.in_use != in_use:
            self.wrong += 1
        if state != SUBMITTED:
            self.steps.append((time, self.in_use))

    def _account(self, version: int, id: int, state: str) -> None:
        place = self._place.get((id, state), -1)
        if place in self._seen:
            self.twice += 1
        elif place < self._next or version <= self.version:
            self.disordered += 1
        self.version = max(version, self.version)
        if place >= 0:
            self._seen.add(place)
            self._next = max(self._next, place + 1)

    def close(self, events: int) -> None:
        """End the record; the producer has committed this many events."""
        self.missed = max(len(self.expected), events) - len(self._seen)

    @property
    def faults(self) -> int:
        return self.missed + self.twice + self.disordered + self.wrong

    def summary(self) -> str:
        """Return the record in one line."""
        return (
            f"saw {self.seen:,} of {len(self.expected):,} events: "
            f"{self.missed} missed, {self.twice} twice, {self.disordered} out of order; "
            f"{self.wrong} snapshots that disagree"
        )


def binned(steps: Sequence[tuple[int, int]], bins: int) -> list[float]:
    """Return the mean of a step function over each of ``bins`` equal parts of its time."""
    begin, end = steps[0][0], steps[-1][0]
    width = max(end - begin, 1) / bins
    area = [0.0] * bins
    for (at, level), (until, _) in pairwise(steps):
        first, last = int((at - begin) / width), min(int((until - begin) / width), bins - 1)
        for place in range(first, last + 1):
            left, right = begin + place * width, begin + (place + 1) * width
            area[place] += level * max(0.0, min(until, right) - max(at, left))
    return [total / width for total in area]


def drawing(levels: Sequence[float], top: float, rows: int = 8, blocks: str = " ▁▂▃▄▅▆▇█") -> list[str]:
    """Return bars, one character wide, as lines of text from top to bottom; ``top`` is the height of all rows."""
    fine = len(blocks) - 1
    heights = [round(min(level / top, 1.0) * rows * fine) for level in levels]
    return [
        "".join(blocks[min(max(height - row * fine, 0), fine)] for height in heights) for row in reversed(range(rows))
    ]


# -------------------------------------------------------------------------------------------------------- the consumer


def consume(handle: Handle, events: Sequence[JobStateChange], consumers: int, name: str) -> Observer:
    """Watch until the producer has ended; store the record in ``report.NAME``."""
    observer = Observer(events)
    kvs = handle.kvs
    with kvs.watch("job.") as watch:
        kvs.fence("usage.ready", consumers + 1)
        for note in watch.updates():
            changes = {change.key: change.value for change in note.changes}
            if not changes:
                continue
            if END in changes:
                observer.close(changes[END])
                break
            states = [key for key in changes if key.endswith(".state")]
            # One event is one version; otherwise the count in the snapshot would disagree.
            in_use = sum(entry.value for entry in kvs.entries("running", at=note.snapshot))
            for key in states:
                job = key.removesuffix(".state")
                # Not among the changes: a job's processors, and a time that has not changed.
                processors, event_time = (kvs.get(f"{job}.{name}", at=note.snapshot) for name in ("procs", "time"))
                id = int(job.removeprefix("job."))
                observer.see(note.version, id, changes[key], event_time, processors, in_use)
    report(handle, name, observer)
    return observer


def report(handle: Handle, name: str, observer: Observer) -> None:
    import numpy

    steps = numpy.array(observer.steps, dtype="<i8").reshape(-1, 2)
    handle.kvs.commit(
        {
            f"report.{name}.summary": observer.summary(),
            f"report.{name}.faults": observer.faults,
            f"report.{name}.steps": steps,
        }
    )


# -------------------------------------------------------------------------------------------------------- the producer


def produce(
    handle: Handle, events: Sequence[JobStateChange], seconds: float, progress: Callable[[JobStateChange], None]
) -> int:
    """Commit the events in order, each at its time; return the last version.

    ``seconds`` is the duration of the replay. If the log has more events than the instance can commit, the producer
    lags until the log has fewer.
    """
    begin, log_begin = time.monotonic(), events[0].time
    pace = seconds / max(events[-1].time - log_begin, 1)
    for event in events:
        early = begin + (event.time - log_begin) * pace - time.monotonic()
        if early > 0:
            time.sleep(early)
        job, key = event.job, f"job.{event.job.id}"
        with handle.kvs.txn() as txn:
            txn.put(f"{key}.state", event.state)
            txn.put(f"{key}.time", event.time)
            if event.state == SUBMITTED:
                txn.put(f"{key}.user", job.user)
                txn.put(f"{key}.procs", job.processors)
            elif event.state == RUNNING:
                txn.put(f"running.{job.id}", job.processors)
            else:
                txn.unlink(f"running.{job.id}")
        progress(event)
    return handle.kvs.commit({END: len(events)}).version


# ------------------------------------------------------------------------------------------------------ the display


def zone(header: dict[str, str]) -> tzinfo:
    """Return the log's time zone by name; if this machine does not know it, by its winter offset from UTC."""
    try:
        return ZoneInfo(header["TimeZoneString"])
    except (KeyError, ZoneInfoNotFoundError):
        return timezone(timedelta(seconds=int(header.get("TimeZone", "0"))))


class Display:
    """The output: with a progress bar on a terminal, otherwise plain lines."""

    def __init__(self, header: dict[str, str], events: Sequence[JobStateChange]) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self._zone = zone(header)
        self._begin = int(header.get("UnixStartTime", "0"))
        self._processors = int(header.get("MaxProcs", "128"))
        self._events = len(events)
        self._done = 0
        self._live: Any = None

    def date(self, event_time: int) -> str:
        moment = datetime.fromtimestamp(self._begin + event_time, self._zone)
        return f"{moment:%a} {moment.day} {moment:%b %Y, %H:%M}"

    def __enter__(self) -> Display:
        if self.console.is_interactive:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._live = Progress(*columns, console=self.console)
            self._task = self._live.add_task("replaying", total=self._events)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live:
            self._live.stop()

    def progress(self, event: JobStateChange) -> None:
        self._done += 1
        if self._live:
            self._live.update(self._task, completed=self._done, description=self.date(event.time))
        elif self._done * 10 // self._events != (self._done - 1) * 10 // self._events:
            self.console.print(f"{self._done * 100 // self._events:3}%  {self.date(event.time)}")

    def usage(self, steps: Sequence[tuple[int, int]]) -> None:
        """Draw the processors in use over time."""
        columns = max(20, min(self.console.width - 10, 100))
        blocks = " ▁▂▃▄▅▆▇█" if "utf" in (self.console.encoding or "").lower() else " .:#"
        lines = drawing(binned(steps, columns), self._processors, blocks=blocks)
        self.console.print("\nProcessors in use, as the consumers saw it:")
        for row, line in enumerate(lines):
            label = str(self._processors) if row == 0 else str(self._processors // 2) if row == len(lines) // 2 else ""
            self.console.print(f"{label:>5} [green]{line}[/green]")
        left, right = self.date(steps[0][0]), self.date(steps[-1][0])
        self.console.print(f"{'':5} {left}{right:>{max(columns - len(left), len(right) + 1)}}\n")


# ------------------------------------------------------------------------------------------------------------- command


@click.command(help="Replay a workload log into the KVS and watch it from the other ranks.")
@click.option("--jobs", default=JOBS, show_default=True, type=click.IntRange(1), help="Number of jobs of the log.")
@click.option("--seconds", type=float, help=f"Duration of the replay.  [default: {SECONDS_PER_JOB} a job]")
@click.option("--consume", "consumers", type=int, hidden=True, help="Run as one of this many consumers.")
def main(jobs: int, seconds: float | None, consumers: int | None) -> None:
    import fluxmpi

    header, log = swf.shipped(jobs)
    events = list(replay(log))
    with fluxmpi.connect() as handle:
        if consumers is not None:
            observer = consume(handle, events, consumers, str(handle.rank))
            click.echo(observer.summary())
            sys.exit(1 if observer.faults else 0)
        sys.exit(run(handle, header, events, jobs * SECONDS_PER_JOB if seconds is None else seconds))


def run(handle: Handle, header: dict[str, str], events: Sequence[JobStateChange], seconds: float) -> int:
    """Run the producer, and a consumer on each other rank, or on this one if it is alone. Return the exit status."""
    ranks = list(range(1, handle.size)) or [0]
    jobs = len({event.job.id for event in events})
    display = Display(header, events)
    print_ = display.console.print
    print_(f"{header['Computer']}, {header['Installation']}: {jobs:,} jobs, {len(events):,} events.")
    print_(f"The producer runs on rank {handle.rank}, consumers on {', '.join(map(str, ranks))}.")

    # Created now, so that a consumer can count running jobs before the first one runs.
    handle.kvs.mkdir("running")
    consumer = [sys.executable, "-m", "fluxmpi.examples.usage", "--jobs", str(jobs), "--consume", str(len(ranks))]
    consumers = handle.exec.start(consumer, ranks)
    try:
        handle.kvs.fence("usage.ready", len(ranks) + 1, timeout=60)
        begin = time.monotonic()
        with display:
            last = produce(handle, events, seconds, display.progress)
        took = time.monotonic() - begin
        print_(f"{len(events):,} commits in {took:.1f} s; the last is version {last}. What the consumers saw:")
        status = finish(consumers)
    finally:
        consumers.kill()
    return status or compare(handle, ranks, display)


def finish(consumers: RunningCommand) -> int:
    """Print the output of the consumers, each line with its rank, until all have ended; return the largest status."""
    status = 0
    output: dict[int, bytes] = {}
    while (piece := consumers.get(timeout=60)) is not None:
        output[piece.rank] = output.get(piece.rank, b"") + piece.data
        if piece.status is not None:
            said = output.pop(piece.rank).decode() or f"ended with status {piece.status} ({piece.error or 'no text'})"
            for line in said.splitlines():
                click.echo(f"rank {piece.rank} {line}")
            status = max(status, piece.status)
    return status


def compare(handle: Handle, ranks: Sequence[int], display: Display) -> int:
    """Draw the record of the consumers, if it is the same for all."""
    pictures = [handle.kvs.get(f"report.{rank}.steps").tolist() for rank in ranks]
    if any(picture != pictures[0] for picture in pictures):
        display.console.print("The consumers' records of the machine differ.")
        return 1
    display.usage(pictures[0])
    return 0


if __name__ == "__main__":
    main()
