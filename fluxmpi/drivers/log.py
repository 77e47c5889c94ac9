"""The log of a broker: Python's ``logging``, one line a record, each line one ``os.write``. Silent until ``configure``.

    2026-01-31 12:00:00.123 rank 3 node3 INFO loop: …

Several ranks may share one file or one terminal. A line of at most LINE_BYTES_MAX that is written at once is not mixed
with another rank's; with buffered or unbuffered Python streams it is (``PYTHONUNBUFFERED=1`` writes the text and its
newline separately).

Only drivers log. Hot paths do not: what is logged happens per client, per process, per lost rank or per slow turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback

from fluxmpi.drivers.printable import printable

LEVELS = ("debug", "info", "warning", "error")
LINE_BYTES_MAX = 4096
"""A pipe takes this much at once (PIPE_BUF); a longer line is cut."""

FAILURE_CHARS_MAX = 300

ROOT = logging.getLogger("fluxmpi")
ROOT.addHandler(logging.NullHandler())


class LineHandler(logging.Handler):
    """Write each record to ``fd`` with one system call.

    A write that fails is given up: a broker does not end for its log.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = printable(self.format(record), one_line=True).encode("utf-8", "backslashreplace")
            if len(text) >= LINE_BYTES_MAX:
                text = text[: LINE_BYTES_MAX - 4] + b"..."
            os.write(self.fd, text + b"\n")
        except OSError:
            pass
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        if self.fd > 2:
            with contextlib.suppress(OSError):
                os.close(self.fd)
        super().close()


class LineFormatter(logging.Formatter):
    """Time in milliseconds, rank, host, level, and the driver that logs."""

    def __init__(self, rank: int, host: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d rank {rank} {host} %(levelname)s %(driver)s: %(message)s")
        self.default_time_format = "%Y-%m-%d %H:%M:%S"
        self.default_msec_format = ""

    def format(self, record: logging.LogRecord) -> str:
        record.driver = record.name.rpartition(".")[2]
        return super().format(record)


def configure(level: str, file: str, rank: int, host: str) -> None:
    """Start logging: records of ``level`` (one of LEVELS) and above go to ``file``, where ``{rank}`` is replaced.

    An empty ``level`` is ``info`` if a file is named, else nothing is logged. An empty ``file``, or ``-``, is stderr.
    Raises OSError when the file cannot be opened.
    """
    stop()
    if not level and not file:
        return
    fd = sys.stderr.fileno()
    if file not in ("", "-"):
        path = file.replace("{rank}", str(rank))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    handler = LineHandler(fd)
    handler.setFormatter(LineFormatter(rank, host.replace("%", "%%")))
    ROOT.addHandler(handler)
    ROOT.setLevel((level or "info").upper())
    ROOT.propagate = False


def stop() -> None:
    """End logging and close its file."""
    for handler in list(ROOT.handlers):
        if isinstance(handler, LineHandler):
            ROOT.removeHandler(handler)
            handler.close()
    ROOT.setLevel(logging.NOTSET)
    ROOT.propagate = True


def logger(name: str) -> logging.Logger:
    """Return the logger of one driver."""
    return ROOT.getChild(name)


def failure_text(error: BaseException) -> str:
    """Return what was raised and where, in one line of at most FAILURE_CHARS_MAX characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text if len(text) <= FAILURE_CHARS_MAX else f"{text[:FAILURE_CHARS_MAX]}…"
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    return f"{text} (at {'/'.join(frames[-1].filename.split('/')[-3:])}:{frames[-1].lineno})"


def tell_traceback(rank: int, error: BaseException) -> None:
    """Log the traceback of a failure; without a log, print it on stderr, in one write."""
    text = "".join(traceback.format_exception(error))
    logging_on = any(isinstance(handler, LineHandler) for handler in ROOT.handlers)
    for line in text.splitlines() if logging_on else ():
        logger("loop").error("%s", line)
    if not logging_on:
        complain(f"fluxmpi: rank {rank} failed; please report this:\n{text.rstrip()}")


def complain(text: str) -> None:
    """Print a line for the user on stderr, in one write: other ranks write there too."""
    with contextlib.suppress(OSError):
        shown = printable(text) if sys.stderr.isatty() else text
        os.write(sys.stderr.fileno(), f"{shown}\n".encode("utf-8", "surrogateescape"))
