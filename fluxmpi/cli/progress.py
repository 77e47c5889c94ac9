"""Progress bar of a long transfer, on stderr if that is a terminal."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fluxmpi.drivers.printable import printable

SHOWN_BYTES_MIN = 8 << 20
"""A shorter transfer ends before the bar could be read."""

Report = Callable[..., None]
"""Called with the bytes that are done, and with the total if it has changed."""


@contextmanager
def show_progress(what: str, total: int | None = None) -> Iterator[Report | None]:
    """Yield a function that reports progress in bytes, or None if stderr is not a terminal.

    The bar is removed when the block ends.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        update: Report | None = None

        def report(done: int, total: int | None = total) -> None:
            nonlocal update
            if update is None and done >= SHOWN_BYTES_MIN:
                update = _bar(stack, what, total)
            if update is not None:
                update(done, total)

        yield report


def _bar(stack: ExitStack, what: str, total: int | None) -> Report:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True)]
    ending = [TransferSpeedColumn(), *([] if total is None else [TimeRemainingColumn()])]
    bar = stack.enter_context(Progress(*columns, *ending, console=Console(stderr=True), transient=True))
    task = bar.add_task(printable(what, one_line=True), total=total)
    return lambda done, total: bar.update(task, completed=done, total=total)


def size_of(fd: int) -> int | None:
    """Return the bytes of a file that are not read yet; None for a pipe or a terminal."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(fd, 0, os.SEEK_CUR))
