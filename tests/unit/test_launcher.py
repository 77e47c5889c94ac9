"""Real processes: output, exits, signals, and what they must not inherit."""

from __future__ import annotations

import contextlib
import gc
import os
import signal

import psutil
import pytest
from machines import body, control_from
from turns import Turns

from fluxmpi.drivers.environment import scrub
from fluxmpi.drivers.launcher import READ_BYTES, READS_PER_WAKE, Launcher
from fluxmpi.jobs.wire import STDERR, STDOUT, Signal, Spawn, Spawned


def descriptors() -> dict[str, str]:
    """The open descriptors and their targets, without the one of this listing."""
    gc.collect()  # what other tests left is closed at any time
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


class World:
    def __init__(self) -> None:
        self.turns = Turns()
        self.launcher = Launcher(self.turns, {"FLUXMPI_URI": "local:///x", "FLUXMPI_RANK": "3"})
        self.last = 0

    def spawn(self, *argv: str, cwd=None, stdin=b"", **env: str) -> int:
        self.last += 1
        spawn = Spawn(self.last, list(argv), cwd, env, stdin)
        self.launcher.step(control_from("launcher.spawn", spawn))
        return self.last

    def signal(self, number: int, signal_: int) -> None:
        self.launcher.step(control_from("launcher.signal", Signal(number, signal_)))

    @property
    def said(self) -> list[Spawned]:
        return [body(msg, Spawned) for msg in self.turns.delivered]

    def output(self, number: int, stream: int = STDOUT) -> bytes:
        return b"".join(s.data for s in self.said if (s.id, s.stream) == (number, stream))

    def ended(self, number: int) -> list[Spawned]:
        return [s for s in self.said if s.id == number and s.status is not None]

    def wait(self, number: int) -> Spawned:
        self.turns.until(lambda: self.ended(number))
        assert self.said[-1] == self.ended(number)[0] or any(s.id != number for s in self.said[-1:])
        return self.ended(number)[0]

    def run(self, *argv: str, **options) -> tuple[int, bytes, bytes]:
        number = self.spawn(*argv, **options)
        status = self.wait(number).status
        assert status is not None
        return status, self.output(number), self.output(number, STDERR)


@pytest.fixture
def world():
    before = descriptors()
    made = World()
    yield made
    made.launcher.close()
    made.turns.close()
    assert made.launcher.statistics() == {"processes": 0}
    assert descriptors().items() <= before.items(), "a descriptor leaked"


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_a_command_its_output_and_its_status(world, status):
    assert world.run("sh", "-c", f"echo out; echo err >&2; exit {status}") == (status, b"out\n", b"err\n")


def test_all_output_is_reported_before_the_exit(world):
    number = world.spawn("sh", "-c", "head -c 1000000 /dev/zero; echo end; head -c 300000 /dev/zero >&2")
    world.wait(number)
    assert len(world.output(number)) == 1_000_004
    assert world.output(number).endswith(b"end\n")
    assert len(world.output(number, STDERR)) == 300_000
    assert world.said[-1].status == 0, "the exit is the last message"


def test_stdin_is_written_completely_then_closed(world):
    data = os.urandom(1 << 20)
    assert world.run("cat", stdin=data) == (0, data, b"")
    assert world.run("cat") == (0, b"", b""), "without, it is empty"
    assert world.run("true", stdin=data)[0] == 0, "one that does not read it"


@pytest.mark.parametrize(
    ("argv", "status"), [(["/no/such"], 127), (["no-such-command"], 127), (["/etc/passwd"], 126), (["/tmp"], 126)]
)
def test_a_command_that_cannot_be_started(world, argv, status):
    number = world.spawn(*argv)
    (end,) = world.said
    assert (end.id, end.status) == (number, status)
    assert end.error.startswith(f"{argv[0]}: cannot be started: ")


def test_a_folder_that_does_not_exist(world):
    end = world.wait(world.spawn("true", cwd="/no/such"))
    assert (end.status, end.error) == (127, "true: cannot be started in /no/such: No such file or directory")
    assert world.run("pwd", cwd="/")[1] == b"/\n"


@pytest.mark.parametrize("bad", [{"env": {"A": "b\0c"}}, {"env": {"A=B": "c"}}, {"cwd": "/\0"}, {"argv": ["a\0b"]}])
def test_arguments_that_the_system_refuses(world, bad):
    spawn = Spawn(1, bad.get("argv", ["true"]), bad.get("cwd"), bad.get("env", {}), b"")
    world.launcher.step(control_from("launcher.spawn", spawn))
    world.turns.until(lambda: world.said)
    (end,) = world.said
    assert end.status == 127
    assert end.error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_its_children(world, number):
    running = world.spawn("sh", "-c", "sleep 60 & echo $!; wait")
    world.turns.until(lambda: world.output(running))
    world.signal(running, number)
    if number == signal.SIGINT:  # a shell has its background children ignore it
        world.turns.until(lambda: world.ended(running))
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(world.output(running)), signal.SIGKILL)
    assert world.wait(running).status == 128 + number
    child = int(world.output(running))
    world.turns.until(lambda: not os.path.exists(f"/proc/{child}") or _is_zombie(child))


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_signals_for_ended_or_unknown_commands(world):
    number = world.spawn("true")
    world.wait(number)
    world.signal(number, signal.SIGTERM)
    world.signal(99, signal.SIGTERM)
    running = world.spawn("sleep", "60")
    world.signal(running, 64)
    assert world.wait(running).status == 128 + 64


def test_a_grandchild_that_keeps_the_pipe_does_not_delay_the_exit(world):
    running = world.spawn("sh", "-c", "echo first; sleep 60 & echo $!")
    assert world.wait(running).status == 0
    first, child = world.output(running).split()
    assert first == b"first"
    os.kill(int(child), signal.SIGKILL)


def test_a_grandchild_that_floods_the_pipe_does_not_block_the_broker(world):
    """It writes as fast as the launcher reads, so to read until nothing is left may never end."""
    before = psutil.Process().children()
    running = world.spawn("sh", "-c", "for i in 1 2 3 4; do cat /dev/zero & done; echo $! >&2")
    # The shell is the oldest: when it has ended, its children are those of this process.
    started = [child for child in psutil.Process().children() if child not in before]
    shell = min(started, key=lambda child: (child.create_time(), child.pid)).pid
    os.waitid(os.P_PID, shell, os.WEXITED | os.WNOWAIT)
    turns = 0
    while not world.ended(running):
        world.turns.turn()
        turns += 1
    assert world.ended(running)[0].status == 0
    assert len(world.output(running)) <= turns * READS_PER_WAKE * READ_BYTES + (1 << 20), "and what the pipe held"
    child = int(world.output(running, STDERR))
    world.turns.until(lambda: not os.path.exists(f"/proc/{child}") or _is_zombie(child))


def test_many_at_once(world):
    numbers = [world.spawn("sh", "-c", f"echo {n}; exit {n}") for n in range(40)]
    for n, number in enumerate(numbers):
        assert world.wait(number).status == n
        assert world.output(number) == b"%d\n" % n


def test_commands_end_with_the_broker(world):
    running = world.spawn("sh", "-c", "trap '' TERM HUP INT; echo $$; while :; do sleep 1; done")
    world.turns.until(lambda: world.output(running))
    pid = int(world.output(running))
    world.launcher.close()
    assert not os.path.exists(f"/proc/{pid}")


# ---------------------------------------------------------------------------------------------------- what they inherit


OUTER = {
    "PMI_RANK": "1",
    "PMI_FD": "7",
    "PMIX_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "HYDI_CONTROL_FD": "9",
    "MPI_LOCALRANKID": "0",
    "PRTE_LAUNCHED": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "0",
    "FLUXMPI_START_SOCKET": "/x",
    "FLUXMPI_START_INSTANCE": "abc",
}
KEPT = {
    "PATH": "/bin",
    "HOME": "/root",
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "OMPI_MCA_btl": "^ofi",
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FLUXMPI_RUNDIR": "/run/x",
    "MPICC": "cc",
}


def test_the_outer_launchers_variables_are_scrubbed():
    assert scrub({**OUTER, **KEPT}) == KEPT


def test_a_child_sees_its_broker_and_not_the_outer_mpi(monkeypatch):
    for name, value in OUTER.items():
        monkeypatch.setenv(name, value)
    world = World()
    _, out, _ = world.run("env", MINE="1", FLUXMPI_RANK="9")
    seen = dict(line.split("=", 1) for line in out.decode().splitlines() if "=" in line)
    assert not set(OUTER) & set(seen)
    assert (seen["FLUXMPI_URI"], seen["MINE"], seen["FLUXMPI_RANK"]) == ("local:///x", "1", "9")
    world.launcher.close()
    world.turns.close()


def test_no_descriptor_reaches_a_child(world):
    leaky = os.open("/dev/null", os.O_RDONLY)
    _, out, _ = world.run("sh", "-c", "ls /proc/self/fd")
    assert out.split() == [b"0", b"1", b"2", b"3"], "ls itself has the folder open"
    os.close(leaky)


def test_held_output_stays_in_its_pipe_and_is_complete_afterwards(world):
    number = world.spawn("sh", "-c", "echo first; read line; head -c 1000000 /dev/zero; echo last", stdin=b"go\n")
    world.turns.until(lambda: world.output(number))
    world.launcher.hold(True)
    before = len(world.output(number))
    other = world.spawn("sh", "-c", "cat /dev/zero | head -c 1000000")
    world.turns.quiet()
    assert (len(world.output(number)), len(world.output(other))) == (before, 0)
    world.launcher.hold(False)
    assert (world.wait(number).status, world.wait(other).status) == (0, 0)
    assert len(world.output(number)) == len("first\n") + 1_000_000 + len("last\n")
    assert len(world.output(other)) == 1_000_000
