"""Run the benchmarks and write RESULTS.md.

python benchmarks/run.py                      all of them, about ten minutes
python benchmarks/run.py rpc commit           only these
python benchmarks/run.py --quick              fewer samples: a check that they run, not for publication
python benchmarks/run.py --json out.json      also write every sample, by row
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterable

import table

NAMES = (
    "idle", "rpc", "get", "commit", "clients", "add", "directory", "bulk", "watch", "watches", "event", "fence", "large",
    "checkpoint", "memory", "gc", "start", "peers",
)  # fmt: skip
"""Each is a module ``bench_NAME`` with a function ``measure(bench)``; the keys of its rows are ``NAME.…``."""


class Bench:
    """Argument of a benchmark: the number of repetitions, and the samples that it records."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.results: dict[str, list[float]] = {}
        self.notes: list[str] = []

    def count(self, full: int, quick: int | None = None) -> int:
        """Return the number of repetitions: ``full``, or with --quick ``quick`` (default: a tenth)."""
        if not self.quick:
            return full
        return max(1, full // 10) if quick is None else quick

    def record(self, key: str, samples: Iterable[float]) -> None:
        """Record the samples of one row, in its unit."""
        row = table.BY_KEY[key]
        self.results[key] = found = list(samples)
        print(f"  {row.what:<75} {row.measured(found):<40} {row.target}", flush=True)

    def note(self, text: str) -> None:
        """Record a remark for the reader of the table."""
        self.notes.append(text)
        print(f"  note: {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run: {' '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--no-table", action="store_true", help="do not write RESULTS.md")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: use {' '.join(NAMES)}")
    names = args.names or NAMES
    bench = Bench(args.quick)
    failed = []
    for place, name in enumerate(names, 1):
        print(f"[{place}/{len(names)}] {name}", flush=True)
        begin = time.monotonic()
        try:
            importlib.import_module(f"bench_{name}").measure(bench)
        except Exception as error:
            failed.append(name)
            bench.note(f"{name} failed: {type(error).__name__}: {error}")
        print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(bench.results, file)
    if not args.no_table:
        table.update(bench.results, bench.notes, bench.quick)
        print(f"written: {table.RESULTS}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
