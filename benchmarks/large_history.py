"""Resident memory of rank 0 while one large array is overwritten many times, with default settings.

    python benchmarks/large_history.py                     200 puts of 20 MB, one broker
    python benchmarks/large_history.py -n 4 --limit 1.5G   in a cgroup (version 1 or 2, as root) for all brokers

It prints a line per 20 puts, and at the end rank 0's peak, the store's numbers, and how many versions are readable.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = "FLUXMPI_LARGE_HISTORY"


def resident(pid: int, field: str = "VmRSS") -> float:
    """Return the resident memory of a process in MiB; VmHWM is its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def program(puts: int, megabytes: float) -> None:
    """Overwrite the array; this is the instance's initial program."""
    import numpy

    import fluxmpi

    with fluxmpi.connect() as h:
        pid = h.broker_pid
        array = numpy.zeros(int(megabytes * 1e6 / 8))
        began = time.monotonic()
        for number in range(puts):
            array[:] = number + numpy.arange(array.size)
            h.kvs.put("array", array)
            if (number + 1) % 20 == 0:
                seconds = time.monotonic() - began
                print(f"{number + 1} puts, {seconds:.1f} s: rank 0 has {resident(pid):.0f} MiB", flush=True)
        h.kvs.gc()
        numbers = {name: value for name, value in h.rpc("stats.get", target=0)["gc"].items() if "bytes" in name}
        versions = sum(1 for _ in h.kvs.history("array"))
        print(json.dumps({"peak_mib": round(resident(pid, "VmHWM")), "readable": versions, **numbers}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1, help="brokers")
    parser.add_argument("--puts", type=int, default=200)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--limit", metavar="SIZE", help="memory of a cgroup for all brokers, e.g. 1.5G")
    parser.add_argument("options", nargs="*", help="options of fluxmpi start, after --")
    asked = parser.parse_args()
    if os.environ.get(PROGRAM):
        program(asked.puts, asked.megabytes)
        return 0
    again = [sys.executable, __file__, "--puts", str(asked.puts), "--megabytes", str(asked.megabytes)]
    start = [str(Path(sys.executable).parent / "fluxmpi"), "start", "-n", str(asked.n), *asked.options, "--", *again]
    group = cgroup(asked.limit) if asked.limit else None
    try:
        join = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
        return subprocess.run(start, env={**os.environ, PROGRAM: "1"}, preexec_fn=join, check=False).returncode
    finally:
        if group:
            report(group)
            group.rmdir()


def cgroup(limit: str) -> Path:
    """Make a cgroup with this limit."""
    size = int(float(limit.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(limit[-1], 1))
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.is_dir() else first.parent) / f"fluxmpi-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")).write_text(str(size))
    return group


def report(group: Path) -> None:
    for name in ("memory.max_usage_in_bytes", "memory.peak", "memory.failcnt", "memory.events"):
        if (group / name).exists():
            print(f"{name}: {' '.join((group / name).read_text().split())}")


if __name__ == "__main__":
    sys.exit(main())
