"""The rows of RESULTS.md (what is measured, the target, flux-core's figure), and the file itself.

flux-core's figures are of version 0.88 (fences: 0.70, since later versions have none), on a machine of the same kind:
two cores, eight brokers, ``kary:2``, a leaf three hops down. Its runs differed by up to 40 %.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import median, quantile
from reasons import reason

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
MEMORY_PLOT = RESULTS.with_name("memory.svg")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table. ``limit`` is in the unit of the samples: seconds, 1/s, bytes, a share of one core, or a ratio.

    ``above``: the target is at least ``limit`` instead of at most.
    """

    key: str
    what: str
    unit: str
    limit: float | None = None
    above: bool = False
    flux: str = ""

    @property
    def command(self) -> str:
        return f"`python benchmarks/run.py {self.key.partition('.')[0]}`"

    @property
    def target(self) -> str:
        if self.limit is None:
            return ""
        return f"{'≥' if self.above else '≤'} {show(self.limit, self.unit)}"

    def measured(self, samples: Sequence[float]) -> str:
        middle = median(samples)
        text = show(middle, self.unit)
        if len(samples) > 1:
            text += f" [{show(quantile(samples, 0.1), self.unit)} .. {show(quantile(samples, 0.9), self.unit)}]"
        if self.limit is not None:
            reached = middle >= self.limit if self.above else middle <= self.limit
            text = text if reached else f"**{text}**"
        return text


S, RATE, BYTES, CORE, RATIO = "s", "/s", "B", "core", "x"

ROWS = [
    Row("idle.cpu", "idle broker, CPU", CORE, 0.001, flux="0.03 %"),
    Row("idle.memory", "idle broker, memory", BYTES, 50 << 20, flux="14 MiB"),
    Row("rpc.busy-8", "RPC leaf → rank 0, one in flight, 8 brokers (3 hops)", S, 0.0004, flux="1.0 ms"),
    Row("rpc.busy-4", "… 4 brokers (2 hops)", S),
    Row("rpc.busy-2", "… 2 brokers (1 hop)", S),
    Row("rpc.quiet-8", "RPC leaf → rank 0 after 20 ms of quiet, 8 brokers", S, 0.0012, flux="1.7 ms"),
    Row("rpc.quiet-4", "… after 20 ms of quiet, 4 brokers", S),
    Row("rpc.quiet-2", "… after 20 ms of quiet, 2 brokers", S),
    Row("rpc.64-8", "RPC leaf → rank 0, 64 in flight, 8 brokers", RATE, 40_000, True, "6,000 to 7,700/s"),
    Row("rpc.64-4", "… 64 in flight, 4 brokers", RATE),
    Row("rpc.64-2", "… 64 in flight, 2 brokers", RATE),
    Row("rpc.1000-8", "RPC leaf → rank 0, 1,000 in flight, 8 brokers", RATE),
    Row("rpc.1000-4", "… 1,000 in flight, 4 brokers", RATE),
    Row("rpc.1000-2", "… 1,000 in flight, 2 brokers", RATE),
    Row("rpc.local", "RPC to the client's own broker, one in flight", S),
    Row("get.repeated-root", "get, repeated, at rank 0", S, 0.00001, flux="100 to 190 µs"),
    Row("get.repeated-leaf", "get, repeated, at the leaf", S, 0.00001, flux="100 to 190 µs"),
    Row("get.neighbour-leaf", "get, of one key after another of a directory of 1,000, read before", S, 0.00001),
    Row("get.absent-leaf", "get, repeated, of a key that does not exist", S, 0.00001),
    Row("get.snapshot-leaf", "get, repeated, at a snapshot", S, 0.00001),
    Row("get.asked-leaf", "get, repeated, answered by the broker: a client without the page", S, flux="100 to 190 µs"),
    Row("get.linear-leaf", "get, repeated, with fresh=True, at the leaf", S),
    Row("get.changed-leaf", "get, of a key of a directory in which another one was just changed", S),
    Row("get.page", "what a version costs a broker to show it in its page", S),
    Row("get.fresh-8", "get, first at a leaf, of a key just committed, 8 B", S, 0.0015, flux="6 ms"),
    Row("get.fresh-65536", "get, first at a leaf, of a key just committed, 64 KiB", S, 0.003, flux="10 ms"),
    Row("get.cold-8", "get, first at a leaf after dropcache on its whole path, 8 B", S, 0.0015, flux="6 ms"),
    Row("get.cold-65536", "get, first at a leaf after dropcache on its whole path, 64 KiB", S, 0.003, flux="10 ms"),
    Row("commit.one-root", "commit, one client, one in flight, at rank 0", S, 0.0004, flux="1.3 ms"),
    Row("commit.one-leaf", "commit, one client, one in flight, at the leaf", S, 0.0008, flux="2.1 ms"),
    Row("commit.64-root", "commits, 64 in flight, 64 keys in turn, at rank 0", RATE, 25_000, True, "7,000 to 12,000/s"),
    Row(
        "commit.64-leaf", "commits, 64 in flight, 64 keys in turn, at the leaf", RATE, 25_000, True, "4,000 to 5,000/s"
    ),
    Row("commit.fresh-root", "… each a new key of one directory, at rank 0", RATE),
    Row("commit.fresh-leaf", "… each a new key of one directory, at the leaf", RATE),
    Row(
        "commit.same-root",
        "commits, 64 in flight, all to one key: each its own version",
        RATE,
        5_000,
        True,
        "600 to 1,000/s",
    ),
    Row("clients.commit", "8 clients, one per rank, one commit in flight each", RATE, 6_000, True, "900 to 1,300/s"),
    *(
        Row(f"add.{what}-{count}", text.format(f"{count} client{'s' * (count > 1)}"), unit)
        for count in (1, 8, 64, 256)
        for what, text, unit in (
            ("rate", "additions to one key, {} over 8 brokers, one in flight each", RATE),
            ("latency", "… one addition, {}", S),
            ("messages", "… messages that reach rank 0, for an addition, {}", RATIO),
            ("links", "… … over its links, for an addition by a client of another broker, {}", RATIO),
            ("redis-rate", "… Redis: INCRBY, {} on one socket each", RATE),
            ("redis-latency", "… Redis: one INCRBY, {}", S),
        )
    ),
    *[
        Row(
            f"directory.{place}-{size}",
            f"one commit into a directory of {size:,} keys, at {name}",
            S,
            0.0005 if size == 100_000 and place == "root" else None,
            flux="700 ms" if size == 100_000 and place == "root" else "",
        )
        for place, name in (("root", "rank 0"), ("leaf", "the leaf"))
        for size in (100, 1_000, 10_000, 100_000)
    ],
    Row("directory.ratio-root", "… 100,000 keys over 100 keys, at rank 0", RATIO, 2.0),
    Row("directory.ratio-leaf", "… 100,000 keys over 100 keys, at the leaf", RATIO, 2.0),
    Row("directory.service-ratio", "… the same without the way there: processor time of rank 0 per commit", RATIO, 2.0),
    Row("bulk.commit", "100,000 keys in one commit, at rank 0", S, 0.7, flux="1.4 s"),
    Row("bulk.list", "list 100,000 keys, at rank 0", S, 0.3, flux="0.5 s"),
    *(
        Row(f"bulk.{what}-{kind}", text.format(name), S, limit)
        for kind, name in (
            ("commit", "commit of 100,000 keys"),
            ("else", "else branch of 100,000 keys"),
            ("fence", "fence of 8 with 100,000 keys"),
            ("namespace", "new namespace from a root of 100,000 keys"),
        )
        for what, text, limit in (
            ("other", "{}: longest commit of others to another namespace meanwhile", 0.05),
            ("same", "… {}: longest one to the same namespace", None),
            ("turn", "… {}: longest turn of rank 0's broker", 0.05),
        )
    ),
    Row("watch.leaf", "commit at rank 0 → watch callback at the leaf", S, 0.0008, flux="3 to 5 ms"),
    *(
        Row(f"watches.{kind}.{what}.{count}", f"{text}, {count:,} watches of distinct {kinds} at its broker", S)
        for kind, kinds in (("keys", "keys"), ("globs", "patterns"), ("beginnings", "patterns job.w17-*"))
        for what, text in (("commit", "commit that concerns one watch"), ("callback", "… to the watch's callback"))
        for count in (10, 10_000)
    ),
    Row("event.latency", "event rank 0 → leaf", S, 0.0004, flux="0.5 ms"),
    Row("event.rate", "events per second, rank 0 → leaf", RATE, 40_000, True, "6,000 to 10,000/s"),
    Row("fence.8", "fence of 8 processes over 8 brokers", S, 0.0012, flux="2.5 to 4.7 ms"),
    Row("fence.32", "fence of 32 processes over 8 brokers", S, 0.0025, flux="7 to 11 ms"),
    *(
        Row(f"fence.cpu-{who}-{size}", f"processor time of a fence of {size}, {text}", S)
        for size in (8, 32)
        for who, text in (("brokers", "all 8 brokers"), ("processes", f"all {size} processes"))
    ),
    Row("fence.bytes-distinct-8", "bytes on the links, a fence of 8 distinct values of 512 B", BYTES),
    Row("fence.bytes-equal-8", "… of 8 equal values of 512 B", BYTES),
    Row("fence.bytes-distinct-32", "… of 32 distinct values of 512 B", BYTES),
    Row("fence.bytes-equal-32", "… of 32 equal values of 512 B", BYTES),
    Row("large.bcast", "MPI_Bcast of 256 MiB to 8 ranks, the slowest", S),
    Row("large.get", "get of one 256 MiB array by 8 ranks at 8 brokers at a time, cold, the slowest", S),
    Row("large.ratio", "… over MPI_Bcast of the same bytes to the same ranks, round by round", RATIO, 2.0),
    Row("large.touch", "… reading a byte of each of its pages then, the slowest", S),
    Row("large.again", "… the same get again: the broker has it", S),
    Row("checkpoint.build", "1,000,000 small keys committed, 100,000 at a time", S),
    Row("checkpoint.save", "checkpoint of 1,000,000 small keys", S, 3.0, flux="10 s"),
    Row("checkpoint.stall", "longest commit meanwhile", S, 0.05),
    Row("checkpoint.restore", "restore of it into a running instance", S, 3.0, flux="8 s"),
    Row("checkpoint.restore-stall", "longest commit meanwhile, restoring", S),
    Row("checkpoint.resume", "start of 2 brokers with `--resume` from it, to first command", S),
    Row("memory.keys", "rank 0 memory with 100,000 keys", BYTES, 120 << 20, flux="195 MiB"),
    Row("memory.overwrites", "… after 200,000 overwrites more", BYTES, flux="grows (1.5 GiB seen)"),
    Row("gc.memory_begin", "rank 0 memory after a quarter of 1,000,000 overwrites of 1,000 keys", BYTES),
    Row("gc.memory_end", "… after all of them", BYTES, 120 << 20),
    Row("gc.memory_most", "… the most", BYTES),
    Row("gc.rate", "overwrites, 64 in flight", RATE),
    Row("gc.other_median", "another client's commit meanwhile, median", S),
    Row("gc.other_longest", "… the longest", S),
    Row("gc.slice_longest", "longest turn of the collector", S, 0.05),
    Row("start.4", "start of 4 brokers to first command", S, 0.8, flux="1.7 s"),
    Row("start.16", "start of 16 brokers to first command", S, 2.5, flux="4.2 s"),
    Row("peers.redis-set", "Redis: SET over a Unix socket, one in flight", S),
    Row("peers.redis-pipeline", "Redis: SET, 64 in flight", RATE),
    Row("peers.etcd-put", "etcd, one node: put, one in flight", S),
    Row("peers.fluxmpi-put", "fluxmpi, one broker: commit, one in flight", S),
    Row("peers.fluxmpi-pipeline", "fluxmpi, one broker: commits, 64 in flight", RATE),
]
BY_KEY = {row.key: row for row in ROWS}


def show(value: float, unit: str) -> str:
    """Return a value with its unit, rounded."""
    if unit == S:
        for factor, name in ((1, "s"), (1e3, "ms")):
            if value * factor >= 1:
                return f"{value * factor:.3g} {name}"
        return f"{value * 1e6:.3g} µs" if value < 100e-6 else f"{value * 1e3:.2g} ms"
    if unit == RATE:
        return f"{round(value, -2) if value >= 10_000 else round(value):,.0f}/s"
    if unit == BYTES:
        return f"{value / (1 << 20):.3g} MiB" if value >= 1 << 20 else f"{value:,.0f} B"
    if unit == CORE:
        return f"{value * 100:.2g} %"
    return f"{value:.2f}"


def update(results: dict[str, list[float]], notes: list[str], quick: bool) -> None:
    """Write RESULTS.md: replace the rows of ``results``, keep the others."""
    old = _measured_before()
    stamp = time.strftime("%Y-%m-%d")
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/run.py`. Measured: median [10th .. 90th percentile] of the samples; bold misses the",
        "target. flux-core: version 0.88 (fences: 0.70) on a machine of the same kind: two cores, 8 brokers, `kary:2`, a leaf",
        "three hops down.",
        "",
        "| what | target | measured | flux-core | command |",
        "|---|---|---|---|---|",
    ]
    missed = []
    for row in ROWS:
        measured = row.measured(results[row.key]) if row.key in results else old.get(row.what, "")
        lines.append(f"| {row.what} | {row.target} | {measured} | {row.flux} | {row.command} |")
        if measured.startswith("**"):
            missed.append(f"- {row.what}: {reason(row.key) or 'the reason is not known.'}")
    mode = ", with `--quick`" if quick else ""
    lines += ["", f"Last run: {stamp}{mode}, on {machine()}."]
    notes = [*_notes_before({key.partition(".")[0] for key in results}), *notes]
    lines += ["", *[f"- {note}" for note in notes]] if notes else []
    if missed:
        lines += ["", "## Missed targets", "", *missed]
    if MEMORY_PLOT.exists():
        lines += [
            "",
            "## Memory",
            "",
            "Memory of rank 0 during the overwrites of `gc`, from its last run at full length:",
            "",
        ]
        lines += [f"![memory of rank 0 over 1,000,000 overwrites]({MEMORY_PLOT.name})"]
    RESULTS.write_text("\n".join(lines) + "\n")


def _measured_before() -> dict[str, str]:
    found = {}
    if RESULTS.exists():
        for line in RESULTS.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 5:
                found[cells[0]] = cells[2]
    return found


def _notes_before(again: set[str]) -> list[str]:
    """Return the notes of the benchmarks that were not run ``again``. A note begins with its benchmark's name."""
    if not RESULTS.exists():
        return []
    notes = RESULTS.read_text().partition("\nLast run: ")[2].partition("\n## ")[0].splitlines()
    return [note[2:] for note in notes if note.startswith("- ") and note[2:].split()[0].rstrip(":") not in again]


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    release = platform.release().partition("-")[0]
    return f"{os.cpu_count()} cores ({model}), Linux {release}, Python {platform.python_version()}"
