"""The exec service: one final response for each run, signals for the right process, and disconnected clients."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, OTHER, ask, body, control_from, error, topics

from fluxmpi import errors
from fluxmpi.jobs.exec import KILL_GRACE_S, ExecLimits, ExecService
from fluxmpi.jobs.wire import Exit, Kill, Output, RunRequest, Signal, Spawn, Spawned
from fluxmpi.machine import NEVER
from fluxmpi.message import CONTROL, LAUNCHER, LOCAL, MORE, OK, REQUEST, Message, encode_body

SIGHUP, SIGKILL, SIGTERM = 1, 9, 15


@pytest.fixture
def machine():
    return ExecService()


def run(machine, *argv, hop=CLIENT, tag=1, **options):
    return machine.step(ask("exec.run", RunRequest(list(argv), **options), hop=hop, tag=tag), NOW)


def spawned(machine, *args, **kwargs):
    return machine.step(control_from("launcher.spawned", Spawned(*args, **kwargs), LAUNCHER), NOW)


def signals(out):
    assert {msg.hop for msg in out} <= {LAUNCHER}
    return [(signal.id, signal.signal) for signal in (body(msg, Signal) for msg in out)]


def test_a_run_is_a_stream_of_output_and_one_exit(machine):
    (spawn,) = run(machine, "sh", "-c", "x", cwd="/tmp", env={"A": "1"}, stdin=b"in", tag=7)
    assert (spawn.kind, spawn.topic, spawn.hop) == (CONTROL, "launcher.spawn", LAUNCHER)
    assert body(spawn, Spawn) == Spawn(1, ["sh", "-c", "x"], "/tmp", {"A": "1"}, b"in")
    for stream, data in ((1, b"out"), (2, b"err")):
        (out,) = spawned(machine, 1, stream, data)
        assert (out.status, out.tag, out.route, body(out, Output)) == (MORE, 7, [CLIENT], Output(stream, data))
    (end,) = spawned(machine, 1, status=3)
    assert (end.status, end.tag, body(end, Exit)) == (OK, 7, Exit(3))
    assert spawned(machine, 1, 1, b"late") == spawned(machine, 1, status=0) == []
    assert machine.statistics() == {"running": 0, "started": 1, "stdin_bytes": 0}


def test_a_command_that_cannot_be_started(machine):
    run(machine, "nope")
    (end,) = spawned(machine, 1, status=127, error="nope: cannot be started: No such file or directory")
    assert isinstance(error(end), errors.CommandNotFound)
    assert "No such file" in error(end).text
    assert machine.statistics()["running"] == 0


def test_messages_of_the_initial_program_go_to_the_lifecycle(machine):
    (msg,) = spawned(machine, 0, status=4)
    assert (msg.kind, msg.topic, body(msg, Spawned)) == (CONTROL, "lifecycle.program", Spawned(0, status=4))


@pytest.mark.parametrize("argv", [[], [""], ["", "a"], ["a", "b\0c"], ["\0"]])
def test_invalid_commands_are_refused(machine, argv):
    (answer,) = run(machine, *argv)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert machine.statistics()["started"] == 0


@pytest.mark.parametrize(
    ("topic", "record"), [("exec.run", None), ("exec.kill", [1]), ("exec.other", None), ("launcher.spawn", None)]
)
def test_invalid_requests_are_refused(machine, topic, record):
    (answer,) = machine.step(ask(topic, record), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)


def test_commands_are_bounded():
    machine = ExecService(ExecLimits(commands_max=2))
    run(machine, "a")
    run(machine, "b")
    assert isinstance(error(run(machine, "c")[0]), errors.Overloaded)
    spawned(machine, 1, status=0)
    assert topics(run(machine, "c")) == [("launcher.spawn", LAUNCHER)]


def kill(machine, tag, signal=SIGTERM, hop=CLIENT):
    return machine.step(ask("exec.kill", Kill(tag, signal), hop=hop, tag=99), NOW)


def test_a_signal_reaches_the_run_of_the_same_client_with_that_tag(machine):
    for hop, tag in ((CLIENT, 1), (CLIENT, 2), (OTHER, 1)):
        run(machine, "sleep", hop=hop, tag=tag)
    signal, answer = kill(machine, 2)
    assert signals([signal]) == [(2, SIGTERM)]
    assert (answer.tag, body(answer)) == (99, None)
    assert signals(kill(machine, 1, hop=OTHER)[:1]) == [(3, SIGTERM)]
    assert isinstance(error(kill(machine, 2, hop=OTHER)[0]), errors.InvalidRequest), (
        "the command of another client is not signalled"
    )
    spawned(machine, 2, status=143)
    assert isinstance(error(kill(machine, 2)[0]), errors.InvalidRequest)


@pytest.mark.parametrize("signal", [0, -1, 65, 1 << 40])
def test_an_invalid_signal_is_refused(machine, signal):
    run(machine, "sleep")
    (answer,) = kill(machine, 1, signal)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert error(answer).text == f"invalid signal {signal}: signals are 1 to 64"


def test_the_commands_of_a_disconnected_client_get_sighup_then_sigkill(machine):
    for hop, tag in ((CLIENT, 1), (OTHER, 1), (CLIENT, 2)):
        run(machine, "sleep", hop=hop, tag=tag)
    assert signals(machine.disconnect(CLIENT, NOW)) == [(1, SIGHUP), (3, SIGHUP)]
    assert machine.deadline == NOW + KILL_GRACE_S
    assert machine.disconnect(CLIENT, NOW + 1) == [], "one signal only"
    spawned(machine, 1, status=129)
    assert signals(machine.tick(NOW + KILL_GRACE_S)) == [(3, SIGKILL)]
    assert machine.deadline == NEVER
    spawned(machine, 3, status=137)
    assert machine.statistics()["running"] == 1


def test_the_commands_of_another_brokers_disconnected_client(machine):
    asked = Message(REQUEST, "exec.run", 4, tag=1, route=[CLIENT, 4], body=ask("x", RunRequest(["sleep"])).body)
    machine.step(asked, NOW)
    run(machine, "sleep")
    assert machine.disconnect(OTHER, NOW) == []
    gone = Message(REQUEST, "exec.disconnect", 4, route=[LOCAL, 4], body=encode_body(CLIENT))
    assert signals(machine.step(gone, NOW)) == [(1, SIGHUP)], (
        "a client of this broker with the same hop is another client"
    )


def test_two_clients_that_disconnect_one_after_the_other(machine):
    run(machine, "a", hop=CLIENT)
    run(machine, "b", hop=OTHER)
    machine.disconnect(CLIENT, NOW)
    machine.disconnect(OTHER, NOW + 1)
    assert machine.deadline == NOW + KILL_GRACE_S
    assert signals(machine.tick(NOW + KILL_GRACE_S)) == [(1, SIGKILL)]
    assert machine.deadline == NOW + 1 + KILL_GRACE_S
    assert signals(machine.tick(NOW + 1 + KILL_GRACE_S)) == [(2, SIGKILL)]
