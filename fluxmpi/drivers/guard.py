"""The guard process: it ends the commands of a broker that was killed.

Such commands would run on, and one that still holds the launcher's pipes keeps mpirun waiting for ever. So with its
first command a broker (or a starter) starts a guard: a shell in a session of its own that reads from a pipe which
commands run.

    owner ── "+ 123", "- 123", … ──▶ guard ── end of file: the owner has died ──▶ end 123 and all its descendants

An owner that exits normally has ended its commands before, so the guard finds nothing to do. ``PR_SET_PDEATHSIG`` would
be shorter, but it must be set between fork and exec, where a process that uses MPI and threads must not run Python.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

GRACE_S = 1.0
"""From SIGTERM to SIGKILL."""

_SCRIPT = r"""
trap '' HUP INT TERM
running=" "
while read -r what pid; do
    case "$what$running" in
        +*)          running="$running$pid " ;;
        -*" $pid "*) running="${running%% $pid *} ${running#* $pid }" ;;
    esac
done
[ "$running" = " " ] || exec "$0" -m fluxmpi.drivers.guard $running
"""


class ProcessGuard:
    """The owner's side of the pipe to its guard, which starts with the first ``add``."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None

    def add(self, pid: int) -> None:
        """Have the guard end ``pid`` if this process dies before ``remove``."""
        if self._shell is None:
            with contextlib.suppress(OSError):
                self._shell = subprocess.Popen(
                    ["/bin/sh", "-c", _SCRIPT, sys.executable],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,
                    bufsize=0,
                )
        self._write(f"+ {pid}\n")

    def remove(self, pid: int) -> None:
        """Report that ``pid`` has ended."""
        self._write(f"- {pid}\n")

    def _write(self, line: str) -> None:
        if self._shell is not None and self._shell.stdin is not None:
            with contextlib.suppress(OSError):
                self._shell.stdin.write(line.encode())

    def close(self) -> None:
        """End the guard: all commands have ended."""
        if self._shell is not None and self._shell.stdin is not None:
            self._shell.stdin.close()
            self._shell.wait()
            self._shell = None


def end(pids: list[int]) -> None:
    """End these processes and their descendants: SIGTERM, then SIGKILL."""
    import psutil

    processes: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            processes += [process, *process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    end([int(word) for word in sys.argv[1:]])
