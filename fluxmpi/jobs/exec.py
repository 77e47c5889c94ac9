"""The exec service: commands on this broker's node, for clients anywhere in the instance.

    exec.run --Spawn--> LAUNCHER --output, exit--> a stream of Output, then Exit
    exec.kill, a client's disconnect --Signal--> LAUNCHER

A command belongs to the request that started it, which is identified by its route and tag. When its client disconnects,
the command gets SIGHUP, as from a terminal that is closed, and SIGKILL after KILL_GRACE_S.

Invariant: each ``exec.run`` gets exactly one final response.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fluxmpi.errors import CommandNotFound, InvalidRequest
from fluxmpi.jobs.wire import Exit, Kill, Output, RunRequest, Signal, Spawn, Spawned
from fluxmpi.machine import NEVER, Answers, Machine, Sender, Topic, client_of
from fluxmpi.message import CONTROL, LAUNCHER, MORE, REQUEST, Body, Message, control, reply, reply_error
from fluxmpi.shares import Pool, take_both

KILL_GRACE_S = 2.0
SIGHUP, SIGKILL, SIGNAL_MAX = 1, 9, 64

_decode_run = Body(RunRequest)
_decode_kill = Body(Kill)
_decode_spawned = Body(Spawned)


class ExecLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of the exec service."""

    commands_max: int = 10_000
    """Running commands at one broker; above that, Overloaded."""
    commands_client_max: int = 2_500
    """Of one client."""
    stdin_bytes_max: int = 256 << 20
    """Bytes of standard input of all running commands; above that, Overloaded."""
    stdin_bytes_client_max: int = 64 << 20
    """Of those of one client."""


EXEC_LIMITS = ExecLimits()


@dataclass(slots=True)
class _Command:
    msg: Message
    stdin_bytes: int
    kill_at: float = NEVER


class ExecService(Machine):
    """The ``exec`` service of one broker."""

    name = "exec"

    def __init__(self, limits: ExecLimits = EXEC_LIMITS) -> None:
        super().__init__()
        self._limits = limits
        self._commands: dict[int, _Command] = {}
        self._running = Pool("commands", limits.commands_max, limits.commands_client_max)
        self._stdin = Pool("bytes of commands' input", limits.stdin_bytes_max, limits.stdin_bytes_client_max)
        self._last = 0
        self.topics = {
            "exec.run": Topic(REQUEST, Sender.CLIENT, self._run, RunRequest, Answers.STREAM),
            "exec.kill": Topic(REQUEST, Sender.CLIENT, self._kill, Kill, isolated=True),
            "exec.disconnect": Topic(REQUEST, Sender.MACHINE, self._client_left, int, Answers.NONE),
            "launcher.spawned": Topic(CONTROL, Sender.LAUNCHER, self._spawned, Spawned),
        }

    def _run(self, msg: Message, now: float) -> list[Message]:
        run = _decode_run(msg)
        if not run.argv or not run.argv[0] or any("\0" in word for word in run.argv):
            raise InvalidRequest("exec.run: a command has at least one word, and no NUL")
        client = tuple(msg.route)
        take_both(client, self._running, self._stdin, len(run.stdin))
        self._last += 1
        msg.body = b""
        self._commands[self._last] = _Command(msg, len(run.stdin))
        return [control("launcher.spawn", Spawn(self._last, run.argv, run.cwd, run.env, run.stdin), LAUNCHER)]

    def _kill(self, msg: Message, now: float) -> list[Message]:
        kill = _decode_kill(msg)
        if not 0 < kill.signal <= SIGNAL_MAX:
            raise InvalidRequest(f"invalid signal {kill.signal}: signals are 1 to {SIGNAL_MAX}")
        for number, command in self._commands.items():
            if command.msg.tag == kill.tag and command.msg.route == msg.route:
                return [control("launcher.signal", Signal(number, kill.signal), LAUNCHER), reply(msg)]
        raise InvalidRequest(f"no command runs for request {kill.tag} on this broker: it may have ended")

    def _spawned(self, msg: Message, now: float) -> list[Message]:
        spawned: Spawned = _decode_spawned(msg)
        if spawned.id == 0:  # the initial program, which the lifecycle started
            return [Message(CONTROL, "lifecycle.program", body=msg.body)]
        command = self._commands.get(spawned.id)
        if command is None:
            return []
        if spawned.error:
            self._forget(spawned.id)
            return [reply_error(command.msg, CommandNotFound(spawned.error))]
        if spawned.status is None:
            return [reply(command.msg, Output(spawned.stream, spawned.data), MORE)]
        self._forget(spawned.id)
        return [reply(command.msg, Exit(spawned.status))]

    def _client_left(self, msg: Message, now: float) -> list[Message]:
        return self._hang_up(client_of(msg), now)

    def _forget(self, number: int) -> None:
        command = self._commands.pop(number)
        client = tuple(command.msg.route)
        self._running.give(client)
        self._stdin.give(client, command.stdin_bytes)

    def _hang_up(self, route: list[int], now: float) -> list[Message]:
        out = []
        for number, command in self._commands.items():
            if command.msg.route == route and command.kill_at == NEVER:
                command.kill_at = now + KILL_GRACE_S
                self.deadline = min(self.deadline, command.kill_at)
                out.append(control("launcher.signal", Signal(number, SIGHUP), LAUNCHER))
        return out

    def disconnect(self, hop: int, now: float) -> list[Message]:
        return self._hang_up([hop], now)

    def tick(self, now: float) -> list[Message]:
        due = [number for number, command in self._commands.items() if command.kill_at <= now]
        for number in due:
            self._commands[number].kill_at = NEVER
        self.deadline = min((command.kill_at for command in self._commands.values()), default=NEVER)
        return [control("launcher.signal", Signal(number, SIGKILL), LAUNCHER) for number in due]

    def statistics(self) -> dict[str, float]:
        return {"running": len(self._commands), "started": self._last, "stdin_bytes": self._stdin.taken}

    def check(self) -> None:
        self._running.check()
        self._stdin.check()
        assert self._running.taken == len(self._commands)
        assert self._stdin.taken == sum(command.stdin_bytes for command in self._commands.values())
