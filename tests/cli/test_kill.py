"""Killed processes: the whole instance ends in time, with a status that is not zero, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import psutil
import pytest
from instance import FLUXMPI, environment
from killing import END_S, START_S, Victim, mpirun_words, processes_of, victim, wait

from fluxmpi.broker.wire import FailLater, GetAttr
from fluxmpi.drivers import checkpoint
from fluxmpi.errors import InvalidRequest

pytestmark = pytest.mark.slow

BEAT = ("--heartbeat", "0.3")


def commit(instance: Victim, rank: int = 0, **values: object) -> int:
    with instance.connect(rank) as h:
        return h.kvs.commit({key.replace("_", "."): value for key, value in values.items()}).version


# ----------------------------------------------------------------------------------------------------- fluxmpi start -n


@pytest.mark.parametrize("rank", [0, 1, 3], ids=["rank 0", "an inner broker", "a leaf"])
def test_a_killed_broker_ends_the_instance(rank, tmp_path):
    """One line names it, its host and the newest checkpoint: that of rank 0, which saves the store, or of a survivor."""
    path = tmp_path / "store.h5"
    with victim(4, *BEAT, "--checkpoint", str(path), "--checkpoint-every", "0.1") as instance:
        version = commit(instance, 2, a=1)
        with instance.connect(2) as h:
            wait(lambda: behind(h) == 0)
        os.kill(instance.brokers[rank], signal.SIGKILL)
        assert instance.wait() not in (0, None)
        assert instance.leftovers() == []
        (line,) = [line for line in instance.text().splitlines() if "is gone: " in line]
        assert line.startswith(f"fluxmpi: broker {rank} ({socket.gethostname()}) is gone: ")
        assert f"; newest checkpoint {path}, saved " in line
        assert line.endswith(f", version {version}; no version since is lost")


def test_after_a_broker_was_killed_rank_0_saves_the_store(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, *BEAT, "--checkpoint", str(path)) as instance:
        version = commit(instance, 2, a=1)
        os.kill(instance.brokers[3], signal.SIGKILL)
        assert instance.wait() not in (0, None)
        assert "broker 3" in instance.text()
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


def test_a_killed_launcher_ends_the_instance():
    with victim(4, *BEAT) as instance:
        os.kill(instance.launcher, signal.SIGKILL)
        assert instance.wait() > 0
        assert "the instance is gone" in instance.text()
        assert instance.leftovers() == []


def test_a_killed_starter_ends_the_instance():
    with victim(4, *BEAT) as instance:
        os.kill(instance.process.pid, signal.SIGKILL)
        assert instance.wait() == -signal.SIGKILL
        assert instance.leftovers() == []


def test_a_killed_command_ends_the_instance():
    with victim(4) as instance:
        os.kill(instance.command, signal.SIGKILL)
        assert instance.wait() == 128 + signal.SIGKILL
        assert instance.leftovers() == []


def test_the_next_start_cleans_up_after_everything_was_killed():
    with victim(3) as instance:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stop all first, so that none reacts to the death of another
            for process in instance.everybody:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        instance.wait()
        wait(lambda: processes_of(instance.base) == [], END_S)
        assert instance.segments, "the MPI uses shared memory"
        assert [segment for segment in instance.segments if os.path.exists(segment)] == []
        assert any(path.name.startswith("fluxmpi-") for path in (instance.base / "run").iterdir()), (
            "the crash left its folder"
        )
        words = [*FLUXMPI, "start", "--", "true"]
        assert subprocess.run(words, env=instance.environ, timeout=END_S).returncode == 0
        assert list((instance.base / "run").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_starter_saves_the_store(number, tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 3, a_b=[1, 2, 3])
        os.kill(instance.process.pid, number)
        assert instance.wait() == 128 + number
        assert [(root.namespace, root.version) for root in checkpoint.read(str(path)).roots] == [("primary", version)]
        assert instance.leftovers() == []


def test_sigterm_to_rank_0_saves_the_store(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 3, a=1)
        os.kill(instance.brokers[0], signal.SIGTERM)
        assert instance.wait() not in (0, None)
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


def test_sigterm_to_another_broker_ends_all_and_saves_the_store(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 1, a=1)
        os.kill(instance.brokers[3], signal.SIGTERM)
        assert instance.wait() not in (0, None)
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


# -------------------------------------------------------------------------------------------------------------- mpirun


@pytest.mark.parametrize("rank", [0, 1, 3], ids=["rank 0", "an inner broker", "a leaf"])
def test_a_killed_broker_under_mpirun_ends_the_instance(rank):
    with victim(4, *BEAT, mpirun=True) as instance:
        os.kill(instance.brokers[rank], signal.SIGKILL)
        assert instance.wait() not in (0, None)
        assert instance.leftovers(litter=False) == [], "except what a killed process could not remove"
        subprocess.run([*FLUXMPI, "start", "--", "true"], env=instance.environ, timeout=END_S, check=True)
        assert list((instance.base / "run").iterdir()) == []


def test_nothing_is_left_in_shared_memory_when_all_are_killed_under_mpirun():
    with victim(4, mpirun=True) as instance:
        for process in instance.everybody:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        instance.wait()
        assert instance.segments, "the MPI uses shared memory"
        assert instance.leftovers(litter=False) == []


def test_a_killed_mpirun_of_the_user_ends_the_instance():
    with victim(4, *BEAT, mpirun=True) as instance:
        os.kill(instance.process.pid, signal.SIGKILL)
        assert instance.wait() == -signal.SIGKILL
        assert instance.leftovers(litter=False) == []


def test_a_killed_command_under_mpirun_ends_the_instance():
    with victim(4, mpirun=True) as instance:
        os.kill(instance.command, signal.SIGKILL)
        assert instance.wait() == 128 + signal.SIGKILL
        assert instance.leftovers() == []


def test_sigterm_to_rank_0_under_mpirun_saves_the_store(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path), mpirun=True) as instance:
        version = commit(instance, 2, a=1)
        os.kill(instance.brokers[0], signal.SIGTERM)
        assert instance.wait() not in (0, None)
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


# ------------------------------------------------------------------------------------------------ brokers that fail


@pytest.mark.parametrize("mpirun", [False, True], ids=["start -n", "mpirun"])
@pytest.mark.parametrize("rank", [0, 1, 3], ids=["rank 0", "an inner broker", "a leaf"])
def test_a_broker_that_fails_ends_the_instance_at_once_and_the_store_is_saved(rank, mpirun, tmp_path):
    """No heartbeat is missed for it: that would take 100 s here."""
    path = tmp_path / "store.h5"
    options = ("--heartbeat", "20", "--checkpoint", str(path))
    with victim(4, *options, mpirun=mpirun, FLUXMPI_DEBUG="fail") as instance:
        version = commit(instance, 3, a_b=[1, 2, 3])
        with instance.connect(2) as h:
            h.rpc("lifecycle.fail", FailLater("on purpose"), target=rank)
        assert instance.wait() == 1
        text = instance.text()
        host = socket.gethostname()
        line = f"fluxmpi: broker {rank} ({host}) failed: RuntimeError: on purpose (at fluxmpi/broker/lifecycle.py:"
        assert text.count(line) == 1, "printed once"
        (line,) = [line for line in text.splitlines() if "newest checkpoint" in line]
        assert f"; newest checkpoint {path}, saved " in line
        assert line.endswith(f" ago), version {version}; no version since is lost")
        assert f"rank {rank} failed; please report this:\nTraceback" in text
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


def test_a_broker_that_fails_without_a_checkpoint_says_what_is_lost():
    with victim(2, FLUXMPI_DEBUG="fail") as instance:
        commit(instance, 1, a=1)
        with instance.connect(0) as h:
            h.rpc("lifecycle.fail", FailLater("on purpose"), target=0)
        assert instance.wait() == 1
        assert "; there is no checkpoint: 1 version is lost\n" in instance.text()
        assert instance.leftovers() == []


def test_nobody_has_a_broker_fail_unless_the_instance_is_for_tests():
    with victim(1) as instance, instance.connect(0) as h, pytest.raises(InvalidRequest, match="no method"):
        h.rpc("lifecycle.fail", FailLater("on purpose"), target=0)


FILL = """
import os, sys, fluxmpi
h, saved = fluxmpi.connect(), 0
try:
    for number in range(1000):
        h.kvs.put(f"k{number}", os.urandom(2_000_000))
        saved = number + 1
finally:
    open(sys.argv[1], "w").write(str(saved))
"""


def test_a_broker_without_memory_loses_nothing_that_was_committed(tmp_path):
    """Its address space is limited, and the store fills it. Every commit that was answered is in the checkpoint."""
    path, count = tmp_path / "store.h5", tmp_path / "count"
    start = [*FLUXMPI, "start", "--checkpoint", str(path), "--store-bytes", "8G", "--", sys.executable, "-c", FILL]
    words = ["sh", "-c", f"ulimit -v 800000; exec {shlex.join([*start, str(count)])}"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    committed = int(count.read_text())
    assert 10 < committed < 1000
    assert done.returncode != 0
    found = checkpoint.read(path)
    (saved,) = checkpoint.saved_namespaces(found.path, found.roots)
    assert saved.keys >= committed, done.stderr


# ------------------------------------------------------------------------------------------------- periodic checkpoints


def test_at_most_one_period_is_lost_when_everything_is_killed(tmp_path):
    """Everything is killed at different moments of periodic saves. The file is complete, and has what was saved before."""
    path = tmp_path / "store.h5"
    saved = committed = 0
    for turn in range(4):
        options = ["--checkpoint", str(path), "--checkpoint-every", "0.1", *(["--resume"] if turn else [])]
        with victim(2, *options) as instance:
            with instance.connect(1) as h:
                if turn:
                    found = h.kvs.get("n")
                    assert saved <= found <= committed
                    assert f"resumed from {path}, saved " in instance.text()
                committed = write(h, committed, 30)
                wait(lambda h=h: behind(h) == 0)  # a period has passed, and the file has everything
                saved = committed
                committed = write(h, committed, 17 * turn)
            instance.kill_all()
        assert checkpoint.newest_good(str(path)).path == str(path)


def write(h, last, count):
    """Commit ``count`` numbers after ``last``, each with a key that was there before. Return the last one."""
    for number in range(last + 1, last + 1 + count):
        h.kvs.commit({"n": number, f"pad.k{number % 50}": "x" * 200})
    return last + count


def behind(h):
    return int(h.rpc("lifecycle.getattr", GetAttr("checkpoint-behind"), target=0))


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def interrupted(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
    """Run in a new terminal, and press Ctrl-C when the output contains ``up``. Return the status and the output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, environ)
    text, pressed, end = "", False, time.monotonic() + START_S
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        try:
            data = os.read(terminal, 4096) if ready else b""
        except OSError:
            break  # the last process has closed the terminal
        text += data.decode(errors="replace")
        if "up" in text and not pressed:
            os.write(terminal, b"\x03")
            pressed, end = True, time.monotonic() + END_S
    else:
        psutil.Process(pid).kill()
        raise AssertionError(f"Ctrl-C did not end the command: {text}")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


SCRIPT = ["--", "sh", "-c", "echo up; exec sleep 1000"]


@pytest.mark.parametrize(
    "words",
    [
        [*FLUXMPI, "start", "-n", "3", *SCRIPT],
        [*FLUXMPI, "start", *SCRIPT],
        [*mpirun_words(2), *FLUXMPI, "start", *SCRIPT],
    ],
    ids=["start -n", "start", "mpirun"],
)
def test_ctrl_c_ends_the_command_and_the_instance(words):
    with tempfile.TemporaryDirectory(prefix="fxr-") as run:  # a short path: it contains Unix sockets
        environ = environment(FLUXMPI_RUNDIR=run)
        status, text = interrupted(words, environ)
        assert status in (130, -signal.SIGINT), text
        assert "Traceback" not in text
        wait(lambda: os.listdir(run) == [] or "mpirun" in " ".join(words), END_S)


def test_a_command_may_handle_ctrl_c():
    """A command that traps SIGINT continues, and so does the instance."""
    script = 'trap "echo caught; exit 7" INT; echo up; while :; do sleep 0.1; done'
    status, text = interrupted([*FLUXMPI, "start", "-n", "2", "--", "sh", "-c", script], environment())
    assert status == 7, text
    assert "caught" in text


# ------------------------------------------------------------------------------------------------------ suspended ranks


def suspend_an_inner_broker(commits: int) -> None:
    """Stop rank 1 for a while. Rank 3, below it, commits continuously; ranks 0 and 2 commit meanwhile."""
    with victim(4) as instance:
        versions: list[int] = []

        def work() -> None:
            with instance.connect(3) as h:
                for number in range(2000):
                    versions.append(h.kvs.commit({f"k{number}": number}).version)

        thread = threading.Thread(target=work)
        thread.start()
        wait(lambda: len(versions) > 20)
        os.kill(instance.brokers[1], signal.SIGSTOP)
        try:
            before = len(versions)
            for number in range(commits):
                commit(instance, 2 * (number % 2), **{f"o{number}": number})
            time.sleep(2)
            assert before < 2000
            assert len(versions) <= before + 1, "rank 3 is below the stopped broker"
        finally:
            os.kill(instance.brokers[1], signal.SIGCONT)
        thread.join(20)
        assert len(versions) == 2000
        assert versions == sorted(set(versions))
        with instance.connect(3) as h:
            assert [h.kvs.get(f"k{n}") for n in range(2000)] == list(range(2000))
            assert [h.kvs.get(f"o{n}") for n in range(commits)] == list(range(commits))
        os.kill(instance.command, signal.SIGTERM)
        assert instance.wait() == 128 + signal.SIGTERM
        assert instance.leftovers() == []


def test_a_suspended_broker_loses_no_commit():
    suspend_an_inner_broker(30)


def test_a_suspended_broker_does_not_block_the_others():
    suspend_an_inner_broker(300)


# --------------------------------------------------------------------------------------------------- N worlds of size 1


@pytest.mark.parametrize("task", ["0", "3"])
def test_ranks_without_a_common_mpi_world_do_not_start(task):
    """As with ``srun`` without ``--mpi``: four tasks, each of which is rank 0 of a world of size 1."""
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": task, "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
    done = subprocess.run(
        [*FLUXMPI, "start", "--", "echo", "ran"],
        env=environment(**slurm),
        capture_output=True,
        text=True,
        timeout=END_S,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    if task == "0":
        assert "srun started 4 tasks, but MPI" in done.stderr
        assert "srun --mpi=pm" in done.stderr
    else:
        assert done.stderr == "", "only one task prints the error"
