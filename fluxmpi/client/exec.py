"""Commands on nodes: ``h.exec``. Each runs as a child of that node's broker, with its output streamed back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fluxmpi.client.channel import Channel
from fluxmpi.client.future import Stream
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.errors import CommandNotFound, FluxmpiError, NoSuchRank, indefinite
from fluxmpi.jobs.wire import STDOUT, Exit, Kill, Output, RunRequest

SIGTERM = 15
STATUS_NOT_FOUND = 127

_decode_output = decoder(Output)
_decode_exit = decoder(Exit)


@dataclass(slots=True)
class CommandResult:
    """What a command did on one rank.

    Attributes:
        rank: the rank.
        status: its exit status as in a shell: 128 + signal if a signal ended it, 127 if it could not be started.
        stdout: what it wrote to standard output.
        stderr: what it wrote to standard error, or why it could not be started.
    """

    rank: int
    status: int
    stdout: bytes
    stderr: bytes


@dataclass(slots=True)
class CommandOutput:
    """Output of a running command on one rank, or its end there.

    Attributes:
        rank: the rank.
        stream: 1 for standard output, 2 for standard error, 0 for the end.
        data: the bytes.
        status: at the end, the exit status; otherwise None.
        error: at the end, why the rank could not run the command; otherwise None.
    """

    rank: int
    stream: int = 0
    data: bytes = b""
    status: int | None = None
    error: FluxmpiError | None = None


class RunningCommand:
    """A command that runs on several ranks, started by ``h.exec.start``: iterate over its output until all have ended."""

    def __init__(self, channel: Channel, streams: dict[int, Stream[Output]]) -> None:
        self._channel = channel
        self._streams = streams

    @property
    def ranks(self) -> list[int]:
        """The ranks on which it still runs."""
        return list(self._streams)

    def kill(self, signal: int = SIGTERM) -> None:
        """Send a signal to the command's process group on every rank on which it still runs."""
        with self._channel.batch():
            for rank, stream in self._streams.items():
                self._channel.post("exec.kill", Kill(stream.tag, int(signal)), target=rank)

    def poll(self) -> CommandOutput | None:
        """Return output that has arrived, without waiting; None if there is none now."""
        for rank, stream in self._streams.items():
            if stream.ready:
                return self._output(rank, stream)
        return None

    def get(self, timeout: float | None = None) -> CommandOutput | None:
        """Wait for the next output of any rank.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Returns:
            The output, or the end of a rank; None when all ranks have ended.

        Raises:
            RequestTimeout: no output within ``timeout``; the command continues.
        """
        if not self._streams:
            return None
        ready = self._channel.wait_any(list(self._streams.values()), timeout)
        rank = next(rank for rank, stream in self._streams.items() if stream is ready)
        return self._output(rank, ready)

    def _output(self, rank: int, stream: Stream[Output]) -> CommandOutput:
        try:
            output = stream.get()
        except FluxmpiError as error:
            del self._streams[rank]
            status = STATUS_NOT_FOUND if isinstance(error, CommandNotFound) else 1
            return CommandOutput(rank, status=status, error=error)
        if output is not None:
            return CommandOutput(rank, output.stream, output.data)
        del self._streams[rank]
        return CommandOutput(rank, status=stream.last.status)

    def __iter__(self) -> Iterator[CommandOutput]:
        while (output := self.get()) is not None:
            yield output


class Exec:
    """Commands on nodes, ``h.exec``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def start(
        self,
        argv: Sequence[str],
        ranks: Iterable[int] | None = None,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> RunningCommand:
        """Start a command on several ranks, and return at once.

        Args:
            argv: the program and its arguments.
            ranks: where to run it; None is every rank.
            cwd: its working directory; None is each broker's.
            env: variables to add to each broker's environment.
            stdin: what it reads from standard input.

        Returns:
            The running command. What a rank could not do is in its output.

        Raises:
            NoSuchRank: a rank is not one of the instance; nothing was started.

        Example:
            >>> running = h.exec.start(["cat"], ranks=[2], stdin=b"input")
            >>> [(output.rank, output.data, output.status) for output in running]
            [(2, b'input', None), (2, b'', 0)]
        """
        body = encode("exec.run", RunRequest(list(argv), cwd, env or {}, stdin))
        size = self._channel.hello.size
        chosen = range(size) if ranks is None else list(ranks)
        for rank in chosen:  # before the first request is queued
            if type(rank) is not int or not 0 <= rank < size:
                raise NoSuchRank(f"rank {rank!r} does not exist: the instance has ranks 0 to {size - 1}")
        send = self._channel.send_stream
        with self._channel.batch():
            streams = {rank: send("exec.run", body, rank, _decode_output, _decode_exit) for rank in chosen}
        return RunningCommand(self._channel, streams)

    def run(
        self,
        argv: Sequence[str],
        ranks: Iterable[int] | None = None,
        *,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> dict[int, CommandResult]:
        """Run a command on several ranks, and wait until all have ended.

        Args:
            argv: the program and its arguments.
            ranks: where to run it; None is every rank.
            cwd: its working directory; None is each broker's.
            env: variables to add to each broker's environment.
            stdin: what it reads from standard input.

        Returns:
            The result of each rank, in order. A program that cannot be started has status 127.

        Raises:
            NoSuchRank: a rank is not one of the instance; nothing was started.
            FluxmpiError: another error of a rank. It is not ``definite`` if the command was started on other ranks.

        Example:
            >>> results = h.exec.run(["echo", "hello"], ranks=[1, 2])
            >>> [(rank, result.status, result.stdout) for rank, result in results.items()]
            [(1, 0, b'hello\\n'), (2, 0, b'hello\\n')]
        """
        results: dict[int, CommandResult] = {}
        running = self.start(argv, ranks, cwd=cwd, env=env, stdin=stdin)
        alone = len(running.ranks) == 1
        for output in running:
            if output.error is not None and not isinstance(output.error, CommandNotFound):
                raise output.error if alone else indefinite(output.error, f"rank {output.rank}: {output.error.text}")
            result = results.setdefault(output.rank, CommandResult(output.rank, 0, b"", b""))
            if output.error is not None:
                result.stderr += output.error.text.encode() + b"\n"
            if output.status is not None:
                result.status = output.status
            elif output.stream == STDOUT:
                result.stdout += output.data
            else:
                result.stderr += output.data
        return dict(sorted(results.items()))
