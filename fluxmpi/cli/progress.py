"""How far a long transfer is: a line on stderr, where that is a terminal, once the transfer has shown to be long."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

SHOWN_BYTES_MIN = 8 << 20
"""What is shorter is over before the line could be read."""


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], None] | None]:
    """A function to be told the bytes that are done; None where nobody looks. The line is gone when the block ends,
    however it ends.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        show: Callable[[int], None] | None = None

        def tell(done: int) -> None:
            nonlocal show
            if show is None and done >= SHOWN_BYTES_MIN:
                show = _line(stack, what, total)
            if show is not None:
                show(done)

        yield tell


def _line(stack: ExitStack, what: str, total: int | None) -> Callable[[int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True)]
    ending = [TransferSpeedColumn(), *([] if total is None else [TimeRemainingColumn()])]
    bar = stack.enter_context(Progress(*columns, *ending, console=Console(stderr=True), transient=True))
    task = bar.add_task(what, total=total)
    return lambda done: bar.update(task, completed=done)


def size_of(fd: int) -> int | None:
    """What is left to read of a file; None of a pipe or a terminal."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(fd, 0, os.SEEK_CUR))
