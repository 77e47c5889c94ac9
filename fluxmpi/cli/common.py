"""What commands share: groups that load lazily, errors as one line, options, idsets, and output that keeps bytes
intact.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

import click

from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchRank
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

PIPE_CLOSED = 128 + 13
"""Exit status when the reader of our output went away, as of a program that SIGPIPE ended."""

NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says when our output has no room."""

SUBJECT_MAX = 64
"""Characters of a key in an error's line; the text after it says what is wrong with a longer one."""

NAMESPACE_VARIABLE = "FLUXMPI_KVS_NAMESPACE"


class Command(click.Command):
    """A command whose errors are one line on stderr and exit status 1. ``examples`` end its help."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        if examples:
            lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
            kwargs["epilog"] = f"\b\nExamples:\n{lines}"
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            for param in self.params:
                if isinstance(param.type, AtParam) and param.name is not None:
                    param.type.check(ctx.params[param.name])
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # here, where it is known which command could not write
        except FluxmpiError as error:
            fail(error.text)
            ctx.exit(1)
        except RecursionError:
            fail("a value is nested too deeply")
            ctx.exit(1)
        except BrokenPipeError:
            ctx.exit(PIPE_CLOSED)
        except OSError as error:
            fail_of_system(error)
            ctx.exit(1)


class PlaceCommand(Command):
    """A command whose arguments may be times before now, which begin as options do: ``-5min``. They get a true minus sign."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from fluxmpi.client.snapshot import MINUS, is_ago

        end = len(args) if ctx.allow_interspersed_args else self._first_argument(args, is_ago) + 1
        return super().parse_args(
            ctx, [MINUS + arg[1:] if at < end and is_ago(arg) else arg for at, arg in enumerate(args)]
        )

    def _first_argument(self, args: list[str], is_ago: Callable[[str], bool]) -> int:
        """Behind it another command may stand, with options of its own."""
        valued = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        at = 0
        while at < len(args) and args[at].startswith("-") and not is_ago(args[at]):
            at += 2 if args[at] in valued else 1
        return at


class Group(click.Group):
    command_class = Command
    group_class = type


class LazyGroup(Group):
    """A group whose commands are named in a table: name to (``module:attribute``, one line of help)."""

    def __init__(
        self,
        *args: Any,
        table: dict[str, tuple[str, str]],
        sections: dict[str, tuple[str, ...]] | None = None,
        **kwargs: Any,
    ) -> None:
        """``sections``: under which headings the help lists the commands; those in none come last."""
        super().__init__(*args, **kwargs)
        self._table = table
        self._sections = dict(sections or {})
        named = {name for names in self._sections.values() for name in names}
        rest = tuple(name for name in table if name not in named)
        if rest:
            self._sections["More" if named else "Commands"] = rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._table:
            return None
        module, _, attribute = self._table[name][0].partition(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._table)) + 2
        for heading, names in self._sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self._table[name][1]) for name in names], col_spacing=0)


def fail(text: str) -> None:
    """Say on stderr, in one line, which command failed and why. It goes on; its exit status is its own to set."""
    ctx = click.get_current_context(silent=True)
    prefix = ctx.command_path if ctx else "fluxmpi"
    sys.stdout.flush()
    sys.stderr.write(f"{prefix}: {' '.join(text.splitlines())}\n".encode("utf-8", "replace").decode())


def fail_of_system(error: OSError) -> None:
    """As ``fail``; after output that could not be written, what is left of it is given up."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        reason = f"{os.fsdecode(error.filename)}: {reason}"
    elif error.errno in NOT_WRITTEN:
        give_up_output()
        reason = f"cannot write: {reason}"
    fail(reason)


def give_up_output() -> None:
    """What stdout still holds goes nowhere: Python flushes once more on its way out, and would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def connect() -> Handle:
    from fluxmpi.client.handle import connect

    return connect()


@contextmanager
def about(subject: str) -> Iterator[None]:
    """An error in this block names ``subject``, a key or a file, if it does not yet."""
    subject = subject if len(subject) <= SUBJECT_MAX else f"{subject[:SUBJECT_MAX]}…"
    try:
        yield
    except FluxmpiError as error:
        if subject not in error.text:
            error.args = (f"{subject}: {error.text}", *error.args[1:])
        raise


# ---------------------------------------------------------------------------------------------------------- options

namespace_option = click.option(
    "-N", "--namespace", metavar="NS", envvar=NAMESPACE_VARIABLE, default=None, help="The KVS namespace (primary)."
)
json_option = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON, for programs.")
rank_option = click.option(
    "-r", "--rank", type=click.IntRange(min=0), default=None, help="Ask the broker of this rank."
)


class Duration(click.ParamType):
    """Seconds, or as Flux writes durations (RFC 23): 100ms, 1.5s, 2m, 1h, 1d."""

    name = "duration"
    UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        number = text.rstrip("mshd")
        unit = text[len(number) :]
        try:
            seconds = float(number) * self.UNITS[unit]
        except (ValueError, KeyError):
            seconds = -1.0
        if not 0 <= seconds < 1e9:
            self.fail(f"'{text}' is not a time: it reads like 10, 0.5s, 100ms, 2m, 1h or 1d.", param, ctx)
        return seconds


class AtParam(click.ParamType):
    """What ``--at`` takes. It stays the text that it is; ``check`` says what is wrong with it."""

    name = "where"

    def check(self, text: str | None) -> None:
        from fluxmpi.client.snapshot import Named, where

        if text is None:
            return
        try:
            _, found = where(text, None)
        except ValueError:  # more digits than Python makes a number of
            found = INTEGER_MAX + 1
        version = found.version if isinstance(found, Named) else found
        if isinstance(version, int) and version > INTEGER_MAX:
            raise InvalidRequest(f"'{text[:SUBJECT_MAX]}': a version has 64 bits at most")


duration_option = click.option(
    "-t", "--timeout", type=Duration(), metavar="TIME", help="Give up after 10, 100ms, 5m …, with exit status 1."
)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order they are shown."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def parse_idset(text: str, size: int) -> list[int]:
    """``all``, or ranks like ``0-3,7``, with or without brackets; each once, in order. Raises NoSuchRank,
    InvalidRequest.
    """
    if text == "all":
        return list(range(size))
    ranks: set[int] = set()
    for part in text.removeprefix("[").removesuffix("]").split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise InvalidRequest(f"'{text}' is not a set of ranks: it reads like 0-3,7 or all")
        begin, end = int(first), int(last or first)
        if end < begin:
            raise InvalidRequest(f"'{text}' is not a set of ranks: {part} runs backwards")
        if end >= size:
            raise NoSuchRank(f"rank {end} does not exist: the instance has ranks 0 to {size - 1}")
        ranks.update(range(begin, end + 1))
    return sorted(ranks)


# ----------------------------------------------------------------------------------------------------------- output


def write(data: bytes | str | memoryview, out: TextIO | None = None) -> None:
    """To stdout, or another, bytes as they are."""
    rest = memoryview(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
    buffer = (out or sys.stdout).buffer
    while rest:  # with PYTHONUNBUFFERED a write may take only a part
        rest = rest[buffer.write(rest) :]


def write_line(data: bytes | str, *, flush: bool = False) -> None:
    write((data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data) + b"\n")
    if flush:
        sys.stdout.flush()


def write_json(value: Any, *, flush: bool = False) -> None:
    """One line of JSON."""
    import json

    write_line(json.dumps(value, ensure_ascii=False), flush=flush)


def counted(count: int | None, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def window_width(width: int | None) -> int:
    """As ``flux kvs``: what was asked for, else the terminal's, else COLUMNS, else 80. 0 is unlimited."""
    if width is not None:
        return width
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() else 80
