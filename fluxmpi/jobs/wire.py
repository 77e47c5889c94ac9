"""Bodies of the exec service's messages."""

from __future__ import annotations

from fluxmpi.message import Record

STDOUT, STDERR = 1, 2


class RunRequest(Record):
    """``exec.run`` to a rank → a stream of Output, then one Exit.

    ``env`` is added to the broker's scrubbed environment.
    """

    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] = {}
    stdin: bytes = b""


class Output(Record):
    stream: int
    data: bytes


class Exit(Record):
    """The end of a command. ``status`` as in a shell: 128 + signal if a signal ended it."""

    status: int


class Kill(Record):
    """``exec.kill`` to the same rank → null: send ``signal`` to a process group.

    It is that of the command that the request with ``tag`` started.
    """

    tag: int
    signal: int


class Spawn(Record):
    """CONTROL to the LAUNCHER: start a process. It sends Spawned messages back (``launcher.spawned``)."""

    id: int
    argv: list[str]
    cwd: str | None
    env: dict[str, str]
    stdin: bytes
    inherit: bool = False
    """The process shares the broker's stdin, stdout and stderr: the instance's initial program."""


class Signal(Record):
    """CONTROL to the LAUNCHER: send ``signal`` to the process group of command ``id``."""

    id: int
    signal: int


class Spawned(Record):
    """CONTROL from the LAUNCHER.

    ``status`` None: output of one ``stream``. Else the end; ``error``: the reason if it did not start.
    """

    id: int
    stream: int = 0
    data: bytes = b""
    status: int | None = None
    error: str = ""
