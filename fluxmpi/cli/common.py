"""Shared by the commands: lazily loaded groups, one-line errors, common options, rank sets, output.

Output goes through ``write`` and what is made of it. To a file or a pipe it is byte-exact. On a terminal, control
characters are escaped (``drivers/printable``): keys, values, names and the texts of errors may be anybody's. Only
``get --raw`` and the output of ``exec``'s commands reach a terminal as they are.

A command that waits for something to print connects with ``streaming=True``: it ends when the reader of its output has
gone, also while it waits.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TextIO

import click

from fluxmpi.drivers.printable import printable, printable_json
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchRank
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs.kvs import Kvs

    BytesType = click.ParamType[int, Any]
    SecondsType = click.ParamType[float, Any]
    TextType = click.ParamType[str, Any]
else:  # ParamType is generic since click 8.4 only
    BytesType = SecondsType = TextType = click.ParamType

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

PIPE_CLOSED = 128 + 13
"""Exit status after the reader of stdout closed it, as of a program that SIGPIPE ended."""

WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a write to stdout that has no room."""

SUBJECT_CHARS_MAX = 64
"""Characters of a key in an error line; a longer key is cut, so that the reason stays visible."""

NAMESPACE_VARIABLE = "FLUXMPI_KVS_NAMESPACE"

LEADER = 0
"""The rank that holds the store, orders commits and ends the instance."""


class Command(click.Command):
    """A command that reports an error as one line on stderr, with exit status 1. ``examples`` end its help."""

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
                sys.stdout.flush()  # here, so that a failed write is reported with the command's name
        except FluxmpiError as error:
            print_error(error.text)
            ctx.exit(1)
        except RecursionError:
            print_error("a value is nested too deeply")
            ctx.exit(1)
        except BrokenPipeError:
            ctx.exit(PIPE_CLOSED)
        except OSError as error:
            print_os_error(error)
            ctx.exit(1)


class TimeArgumentCommand(Command):
    """A command whose arguments may be relative times, which look like options (``-5min``).

    The hyphen of such an argument is replaced by a minus sign before click parses it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from fluxmpi.client.snapshot import MINUS, is_ago

        end = len(args) if ctx.allow_interspersed_args else self._first_argument(args, is_ago) + 1
        return super().parse_args(
            ctx,
            [MINUS + arg[1:] if index < end and is_ago(arg) else arg for index, arg in enumerate(args)],
        )

    def _first_argument(self, args: list[str], is_ago: Callable[[str], bool]) -> int:
        """Return the index of the first argument. A command with its own options may follow it."""
        with_value = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag
            for name in param.opts
        }
        index = 0
        while index < len(args) and args[index].startswith("-") and not is_ago(args[index]):
            index += 2 if args[index] in with_value else 1
        return index


class Group(click.Group):
    command_class = Command
    group_class = type


class LazyGroup(Group):
    """A group that imports a command when it is used. ``table``: name → (``module:attribute``, one line of help)."""

    def __init__(
        self,
        *args: Any,
        table: dict[str, tuple[str, str]],
        sections: dict[str, tuple[str, ...]] | None = None,
        **kwargs: Any,
    ) -> None:
        """``sections``: heading → commands, for the help. Commands in no section are listed last."""
        super().__init__(*args, **kwargs)
        self._table = table
        self._sections = dict(sections or {})
        listed = {name for names in self._sections.values() for name in names}
        rest = tuple(name for name in table if name not in listed)
        if rest:
            self._sections["More" if listed else "Commands"] = rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._table:
            return None
        module, _, attribute = self._table[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._table)) + 2
        for heading, names in self._sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self._table[name][1]) for name in names], col_spacing=0)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below a group, with its words; a command that cannot be loaded raises."""
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None, f"{name} is in the table but cannot be loaded"
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))
            else:
                yield (*path, name), command


def print_error(text: str) -> None:
    """Print one line to stderr: the command, and what was wrong. The caller sets the exit status."""
    ctx = click.get_current_context(silent=True)
    prefix = ctx.command_path if ctx else "fluxmpi"
    sys.stdout.flush()
    write_line(f"{prefix}: {' '.join(text.splitlines())}".encode("utf-8", "replace"), out=sys.stderr, flush=True)


def print_os_error(error: OSError) -> None:
    """Print an error of the system. If it was a failed write to stdout, the output that is left is discarded."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        reason = f"{os.fsdecode(error.filename)}: {reason}"
    elif error.errno in WRITE_ERRNOS:
        discard_output()
        reason = f"cannot write: {reason}"
    print_error(reason)


def discard_output() -> None:
    """Redirect stdout to /dev/null: Python flushes its buffer again at exit, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def connect(*, streaming: bool = False) -> Handle:
    """Connect to the instance. ``streaming``: waiting raises BrokenPipeError when the reader of stdout has gone."""
    from fluxmpi.client.handle import connect

    h = connect()
    if streaming:
        h.watch_output(sys.stdout.fileno())
    return h


def pause(seconds: float) -> None:
    """Sleep. Raises BrokenPipeError when the reader of stdout has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(seconds * 1000):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def error_context(subject: str) -> Iterator[None]:
    """Prefix the errors of this block with ``subject``, a key or a file, unless they name it already."""
    subject = subject if len(subject) <= SUBJECT_CHARS_MAX else f"{subject[:SUBJECT_CHARS_MAX]}…"
    try:
        yield
    except FluxmpiError as error:
        if subject not in error.text:
            error.args = (f"{subject}: {error.text}", *error.args[1:])
        raise


# ---------------------------------------------------------------------------------------------------------- options


class Duration(SecondsType):
    """Seconds, or a Flux standard duration (RFC 23): 100ms, 1.5s, 2m, 1h, 1d."""

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
            self.fail(f"invalid duration '{text}': use a number of seconds, or 100ms, 0.5s, 2m, 1h, 1d.", param, ctx)
        return seconds


class Size(BytesType):
    """A number of bytes: 4096, or with a binary unit 512K, 64M, 1.5G, 2T (also KiB, MiB, GiB, TiB)."""

    name = "size"
    UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        words = text.strip().upper().removesuffix("IB").removesuffix("B")
        number = words.rstrip("KMGT")
        try:
            size = float(number) * self.UNITS[words[len(number) :].strip()]
        except (ValueError, KeyError):
            size = -1.0
        if not 0 <= size < INTEGER_MAX:
            self.fail(f"invalid size '{text}': use a number of bytes, or 512K, 64M, 1.5G.", param, ctx)
        return int(size)


class AtParam(TextType):
    """The version to read at. The value stays text; ``check`` raises InvalidRequest if it is invalid."""

    name = "version"

    def check(self, text: str | None) -> None:
        from fluxmpi.client.snapshot import Named, parse_at

        if text is None:
            return
        try:
            _, found = parse_at(text)
        except ValueError:  # more digits than int() accepts
            found = INTEGER_MAX + 1
        version = found.version if isinstance(found, Named) else found
        if isinstance(version, int) and version > INTEGER_MAX:
            raise InvalidRequest(f"invalid version '{text[:SUBJECT_CHARS_MAX]}': versions are 64-bit integers")


def kvs_of(h: Handle, namespace: str | None) -> Kvs:
    """Return the key-value store's namespace that ``-N`` names, by default primary."""
    return h.kvs if namespace is None else h.kvs.namespace(namespace)


namespace_option = click.option(
    "-N", "--namespace", metavar="NS", envvar=NAMESPACE_VARIABLE, default=None,
    help=f"The KVS namespace.  [default: ${NAMESPACE_VARIABLE}, or primary]",
)  # fmt: skip
at_option = click.option(
    "-a", "--at", type=AtParam(), metavar="VERSION",
    help="Read this version: its number, a snapshot (NS@VERSION:DIGITS), a root's blobref or treeobj, "
    "or a time: -5min, 2026-01-31T12:00, @SECONDS.",
)  # fmt: skip
json_option = click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON.")
rank_option = click.option(
    "-r",
    "--rank",
    type=click.IntRange(min=0),
    metavar="RANK",
    default=None,
    help="The broker's rank.  [default: this node's broker]",
)
count_option = click.option(
    "-c", "--count", type=click.IntRange(min=1), metavar="N", help="Exit after N lines of output."
)
duration_option = click.option(
    "-t", "--timeout", type=Duration(), metavar="DURATION",
    help="Give up after DURATION (seconds, or 100ms, 5m, 1h), with exit status 1.  [default: wait forever]",
)  # fmt: skip


def response_timeout_option(default_s: float) -> Callable[[Any], Any]:
    """Return an option ``--timeout`` for a command that waits for responses of brokers."""
    return click.option(
        "-t", "--timeout", type=Duration(), metavar="DURATION", default=f"{default_s:g}s", show_default=True,
        help="Give up when a broker has not answered after DURATION, with exit status 1.",
    )  # fmt: skip


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Combine several option decorators into one, in the order in which the help lists them."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def parse_idset(text: str, size: int) -> list[int]:
    """Parse ``all`` or an RFC 22 idset (``0-3,7`` or ``[0-3,7]``) into ranks: sorted, without duplicates.

    Raises InvalidRequest, and NoSuchRank for a rank that is not below ``size``.
    """
    if text == "all":
        return list(range(size))
    ranks: set[int] = set()
    for part in text.removeprefix("[").removesuffix("]").split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise InvalidRequest(f"invalid set of ranks '{text}': use a list such as 0-3,7, or all")
        begin, end = int(first), int(last or first)
        if end < begin:
            raise InvalidRequest(f"invalid set of ranks '{text}': in {part} the last rank is below the first")
        if end >= size:
            raise NoSuchRank(f"rank {end} does not exist: the instance has ranks 0 to {size - 1}")
        ranks.update(range(begin, end + 1))
    return sorted(ranks)


# ----------------------------------------------------------------------------------------------------------- output


def write(
    data: bytes | str | memoryview, out: TextIO | None = None, *, raw: bool = False, one_line: bool = False
) -> None:
    """Write to stdout, or to ``out``: byte-exact, but with escapes for control characters on a terminal.

    ``raw``: without them. ``one_line``: on a terminal a newline is one of them.
    """
    stream = out or sys.stdout
    if not raw and stream.isatty():
        text = data if isinstance(data, str) else bytes(data).decode("utf-8", "surrogateescape")
        data = printable(text, one_line=one_line)
    rest = memoryview(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
    while rest:  # with PYTHONUNBUFFERED a write may be partial
        rest = rest[stream.buffer.write(rest) :]


def write_line(data: bytes | str, *, flush: bool = False, out: TextIO | None = None, raw: bool = False) -> None:
    """Write one line; on a terminal it is one line whatever the data are, unless ``raw``."""
    write(data, out, raw=raw, one_line=True)
    write(b"\n", out, raw=True)
    if flush:
        (out or sys.stdout).flush()


def write_json(value: Any, *, flush: bool = False) -> None:
    """Write one line of JSON."""
    import json

    write_line(shown_json(json.dumps(value, ensure_ascii=False)), flush=flush)


def shown(text: str) -> str:
    """Return a name as it is shown in one line of stdout, to be laid out in columns or to be coloured."""
    return printable(text, one_line=True) if sys.stdout.isatty() else text


def shown_json(text: str) -> str:
    """Return JSON as it is shown on stdout: on a terminal with the escapes of JSON."""
    return printable_json(text) if sys.stdout.isatty() else text


def write_statistics(statistics: dict[str, Any], prefix: str = "") -> None:
    """Write one line per counter: ``PREFIX`` + ``NAME NUMBER``."""
    for name, value in statistics.items():
        write_line(f"{prefix}{name} {number_text(value)}")


def number_text(value: float) -> str:
    """Return a number with all the digits of its whole part; a fraction in microseconds, or what they are of its unit."""
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def size_text(size: int) -> str:
    """Return a number of bytes for people: 64 MiB, 1.5 GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return plural(size, "byte")


def plural(count: int | None, name: str) -> str:
    """Return "1 blob", "2 blobs"."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def output_width(width: int | None) -> int:
    """Return the columns of the output, as ``flux kvs`` does: ``width``, else the terminal's, else COLUMNS, else 80.

    0 is unlimited.
    """
    if width is not None:
        return width
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() else 80
