"""Reader of the Standard Workload Format, which the Parallel Workloads Archive uses for logs of parallel machines.

A file is text, or text in gzip. Lines that start with ``;`` are its header, ``; Label: value``; every other line is one
job: 18 numbers, where -1 means "not known". See D. Feitelson et al., "Experience with using the Parallel Workloads
Archive", JPDC 74(10), 2014. The package contains one log, ``shipped()``; ``data/README.md`` has its credit.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

SHIPPED = "NASA-iPSC-1993-3.1-cln.swf.gz"

_FIELDS = 18


class SwfError(ValueError):
    """A line that is not in the format; the message has its number."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line of a log. Times are in seconds; ``submit`` is since the start of the log; -1 is not known."""

    id: int
    submit: int
    wait: int
    run: int
    processors: int
    user: int

    @property
    def start(self) -> int:
        """Start of the run; an unknown wait counts as 0."""
        return self.submit + max(self.wait, 0)

    @property
    def end(self) -> int:
        return self.start + max(self.run, 0)


def parse(lines: Iterable[str]) -> Iterator[Job]:
    """Yield the jobs of a log, in its order. Raises SwfError for an invalid line."""
    for number, line in enumerate(lines, 1):
        if line.startswith(";") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != _FIELDS:
            raise SwfError(f"line {number}: {len(fields)} fields where a job has {_FIELDS}: {line.strip()[:80]!r}")
        try:
            # Only these are integers in every log: some logs have averages (CPU time, memory) with decimals.
            id, submit, wait, run, processors, user = (int(fields[i]) for i in (0, 1, 2, 3, 4, 11))
        except ValueError as error:
            raise SwfError(f"line {number}: {error}") from None
        yield Job(id, submit, wait, run, processors, user)


def header(lines: Iterable[str]) -> dict[str, str]:
    """Return the ``Label: value`` lines of the header; a repeated label has its first value."""
    found: dict[str, str] = {}
    for line in lines:
        if not line.startswith(";"):
            break
        label, colon, value = line[1:].partition(":")
        if colon:
            found.setdefault(label.strip(), value.strip())
    return found


def read(data: bytes, limit: int | None = None) -> tuple[dict[str, str], list[Job]]:
    """Return the header and the first ``limit`` jobs of a file's bytes, compressed or not."""
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("latin-1")
    lines = text.splitlines()
    return header(lines), list(islice(parse(lines), limit))


def shipped(limit: int | None = None) -> tuple[dict[str, str], list[Job]]:
    """Return the header and the first ``limit`` jobs of the log that comes with the package (NASA iPSC/860, 1993)."""
    return read(files("fluxmpi.examples").joinpath("data", SHIPPED).read_bytes(), limit)
