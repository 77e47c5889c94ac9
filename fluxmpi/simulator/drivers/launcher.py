"""LAUNCHER: simulated processes, which do what the words of their command say.

("sleep", "0.5")   runs for so many virtual seconds, or until a signal
("echo", "text")   writes the words, ends with 0
("exit", "3")      ends with that status
("stubborn",)      ends only by SIGKILL
anything else      cannot be started (127)
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fluxmpi.jobs.wire import STDOUT, Signal, Spawn, Spawned
from fluxmpi.message import LAUNCHER, Body, Message, control
from fluxmpi.simulator.schedule import Schedule

SIGKILL = 9

_decode_spawn = Body(Spawn)
_decode_signal = Body(Signal)


class SimulatedLauncher:
    """``running``: process ids to their commands."""

    def __init__(self, schedule: Schedule, rng: Random, deliver: Callable[[Message], None]) -> None:
        self._schedule = schedule
        self._rng = rng
        self._deliver = deliver
        self.running: dict[int, tuple[str, ...]] = {}

    def step(self, msg: Message) -> None:
        if msg.topic == "launcher.spawn":
            self._spawn(_decode_spawn(msg))
        elif msg.topic == "launcher.signal":
            signal = _decode_signal(msg)
            words = self.running.get(signal.id)
            if words is not None and (words[0] != "stubborn" or signal.signal == SIGKILL):
                self._later(lambda: self._end(signal.id, 128 + signal.signal))

    def _spawn(self, spawn: Spawn) -> None:
        words, number = tuple(spawn.argv), spawn.id
        match words:
            case ("sleep", seconds):
                self.running[number] = words
                self._schedule.after(float(seconds), lambda: self._end(number, 0))
            case ("echo", *rest):
                self.running[number] = words
                self._later(lambda: self._write(number, " ".join(rest).encode()))
            case ("exit", status):
                self.running[number] = words
                self._later(lambda: self._end(number, int(status)))
            case ("stubborn",):
                self.running[number] = words
            case _:
                self._send(
                    Spawned(number, status=127, error=f"{words[0]}: cannot be started: No such file or directory")
                )

    def _later(self, action: Callable[[], None]) -> None:
        self._schedule.after(self._rng.uniform(0.0001, 0.005), action)

    def _write(self, number: int, text: bytes) -> None:
        self._send(Spawned(number, STDOUT, text))
        self._end(number, 0)

    def _end(self, number: int, status: int) -> None:
        if self.running.pop(number, None) is not None:
            self._send(Spawned(number, status=status))

    def _send(self, spawned: Spawned) -> None:
        self._deliver(control("launcher.spawned", spawned, LAUNCHER))
