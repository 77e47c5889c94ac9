"""From ``fluxmpi start -n N -- COMMAND`` to the first output of COMMAND.

The command is ``date``: the sample is the time that it prints, less the time at which this process started
``fluxmpi``. It includes the start of Python, of mpirun and of N ranks, their connection, and the start of the
command; it excludes the end of the instance.
"""

from __future__ import annotations

import subprocess
import time

from common import START, alternate, environment


def measure(bench) -> None:
    variants = {str(size): lambda size=size: [_first_command(size)] for size in (4, 16)}
    for size, samples in alternate(bench.count(10, 2), variants).items():
        bench.record(f"start.{size}", samples)


def _first_command(size: int) -> float:
    command = [*START, "-n", str(size), "--", "date", "+%s.%N"]
    begin = time.time()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return float(done.stdout) - begin
