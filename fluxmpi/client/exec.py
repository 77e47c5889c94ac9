"""Commands on nodes: ``h.exec``. Each runs as a child of that node's broker, with its output streamed back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluxmpi.client.handle import Stream, first_ready
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.errors import CommandNotFound, FluxmpiError
from fluxmpi.jobs.wire import STDOUT, Exit, Kill, Output, RunRequest

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle

SIGTERM = 15
STATUS_NOT_FOUND = 127

_decode_output = decoder(Output)
_decode_exit = decoder(Exit)


@dataclass(slots=True)
class Result:
    """``status`` as in a shell: 128 + signal when a signal ended it, 127 when it could not be started."""

    rank: int
    status: int
    stdout: bytes
    stderr: bytes


@dataclass(slots=True)
class Piece:
    """What came from one rank: output (``stream`` 1 or 2), or its end (``status``; ``error`` if the rank failed)."""

    rank: int
    stream: int = 0
    data: bytes = b""
    status: int | None = None
    error: FluxmpiError | None = None


@dataclass(slots=True)
class Running:
    """One command on several ranks. Iterate for Pieces until all have ended."""

    _handle: Handle
    _streams: dict[int, Stream] = field(default_factory=dict)

    @property
    def ranks(self) -> list[int]:
        """Where it still runs."""
        return list(self._streams)

    def kill(self, signal: int = SIGTERM) -> None:
        """Send a signal to the command's process group wherever it still runs."""
        with self._handle.batch():
            for rank, stream in self._streams.items():
                self._handle.post("exec.kill", Kill(stream.tag, int(signal)), target=rank)

    def take(self) -> Piece | None:
        """A piece that has arrived, without waiting; None when there is none now."""
        for rank, stream in self._streams.items():
            if stream.ready:
                return self._piece(rank, stream)
        return None

    def next(self, timeout: float | None = None) -> Piece | None:
        """The next piece of any rank; None when all have ended. Raises RequestTimeout."""
        if not self._streams:
            return None
        ready = first_ready(self._handle, list(self._streams.values()), timeout)
        rank = next(rank for rank, stream in self._streams.items() if stream is ready)
        return self._piece(rank, ready)

    def _piece(self, rank: int, stream: Stream) -> Piece:
        try:
            output = stream.get()
        except FluxmpiError as error:
            del self._streams[rank]
            status = STATUS_NOT_FOUND if isinstance(error, CommandNotFound) else 1
            return Piece(rank, status=status, error=error)
        if output is not None:
            return Piece(rank, output.stream, output.data)
        del self._streams[rank]
        return Piece(rank, status=stream.last.status)

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self.next()) is not None:
            yield piece


class Exec:
    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def start(
        self,
        argv: Sequence[str],
        ranks: Iterable[int] | None = None,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Running:
        """Start a command on ``ranks`` (default: all) and return at once. ``env`` is added to each broker's
        environment.
        """
        running = Running(self._handle)
        body = encode("exec.run", RunRequest(list(argv), cwd, env or {}, stdin))
        with self._handle.batch():
            for rank in range(self._handle.size) if ranks is None else ranks:
                running._streams[rank] = self._handle.send_stream("exec.run", body, rank, _decode_output, _decode_exit)
        return running

    def run(
        self,
        argv: Sequence[str],
        ranks: Iterable[int] | None = None,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> dict[int, Result]:
        """Run a command on ``ranks`` (default: all), wait, and return each one's Result. Raises what a rank could not
        do.
        """
        results: dict[int, Result] = {}
        for piece in self.start(argv, ranks, cwd=cwd, env=env, stdin=stdin):
            if piece.error is not None and not isinstance(piece.error, CommandNotFound):
                raise piece.error
            result = results.setdefault(piece.rank, Result(piece.rank, 0, b"", b""))
            if piece.error is not None:
                result.stderr += piece.error.text.encode() + b"\n"
            if piece.status is not None:
                result.status = piece.status
            elif piece.stream == STDOUT:
                result.stdout += piece.data
            else:
                result.stderr += piece.data
        return dict(sorted(results.items()))
