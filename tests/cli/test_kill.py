"""Whatever is killed, everything ends in time, with a status that says so, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import threading
import time

import psutil
import pytest
from instance import FLUXMPI, environment
from killing import END_S, START_S, Victim, mpirun_words, processes_of, victim, wait

from fluxmpi.drivers import checkpoint

pytestmark = pytest.mark.slow

BEAT = ("--heartbeat", "0.3")


def commit(instance: Victim, rank: int = 0, **values: object) -> int:
    with instance.connect(rank) as h:
        return h.kvs.commit({key.replace("_", "."): value for key, value in values.items()}).version


# ------------------------------------------------------------------------------------------------------- fluxmpi start -n


@pytest.mark.parametrize("rank", [0, 1, 3], ids=["rank 0", "an inner broker", "a leaf"])
def test_a_broker_is_killed(rank):
    with victim(4, *BEAT) as instance:
        os.kill(instance.brokers[rank], signal.SIGKILL)
        assert instance.wait() not in (0, None)
        assert instance.leftovers() == []


def test_mpirun_is_killed():
    with victim(4, *BEAT) as instance:
        os.kill(instance.launcher, signal.SIGKILL)
        assert instance.wait() > 0
        assert "the instance is gone" in instance.text()
        assert instance.leftovers() == []


def test_the_starter_is_killed():
    with victim(4, *BEAT) as instance:
        os.kill(instance.process.pid, signal.SIGKILL)
        assert instance.wait() == -signal.SIGKILL
        assert instance.leftovers() == []


def test_the_command_is_killed():
    with victim(4) as instance:
        os.kill(instance.command, signal.SIGKILL)
        assert instance.wait() == 128 + signal.SIGKILL
        assert instance.leftovers() == []


def test_everything_is_killed_and_the_next_start_cleans_up():
    with victim(3) as instance:
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nobody sees another die, and cleans up
            for process in instance.everybody:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        instance.wait()
        wait(lambda: processes_of(instance.base) == [], END_S)
        instance.segments.clear()  # the MPI's own, which only a reboot or the MPI removes
        assert any(path.name.startswith("fluxmpi-") for path in (instance.base / "run").iterdir()), "that is a crash"
        words = [*FLUXMPI, "start", "--", "true"]
        assert subprocess.run(words, env=instance.environ, timeout=END_S).returncode == 0
        assert list((instance.base / "run").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_starter_is_told_to_end_and_the_store_is_saved(number, tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 3, a_b=[1, 2, 3])
        os.kill(instance.process.pid, number)
        assert instance.wait() == 128 + number
        assert [(root.namespace, root.version) for root in checkpoint.read(str(path)).roots] == [("primary", version)]
        assert instance.leftovers() == []


def test_rank_0_is_told_to_end_and_the_store_is_saved(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 3, a=1)
        os.kill(instance.brokers[0], signal.SIGTERM)
        assert instance.wait() not in (0, None)
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


def test_another_broker_is_told_to_end_and_all_do(tmp_path):
    path = tmp_path / "store.h5"
    with victim(4, "--checkpoint", str(path)) as instance:
        version = commit(instance, 1, a=1)
        os.kill(instance.brokers[3], signal.SIGTERM)
        assert instance.wait() not in (0, None)
        assert [root.version for root in checkpoint.read(str(path)).roots] == [version]
        assert instance.leftovers() == []


# -------------------------------------------------------------------------------------------------------------- mpirun


@pytest.mark.parametrize("rank", [0, 1, 3], ids=["rank 0", "an inner broker", "a leaf"])
def test_a_broker_under_mpirun_is_killed(rank):
    with victim(4, *BEAT, mpirun=True) as instance:
        os.kill(instance.brokers[rank], signal.SIGKILL)
        assert instance.wait() not in (0, None)
        assert instance.leftovers(litter=False) == [], "but for what a killed process cannot remove"
        subprocess.run([*FLUXMPI, "start", "--", "true"], env=instance.environ, timeout=END_S, check=True)
        assert list((instance.base / "run").iterdir()) == []


def test_mpirun_itself_is_killed():
    with victim(4, *BEAT, mpirun=True) as instance:
        os.kill(instance.process.pid, signal.SIGKILL)
        assert instance.wait() == -signal.SIGKILL
        assert instance.leftovers(litter=False) == []


def test_the_command_under_mpirun_is_killed():
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


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def interrupted(words: list[str], environ: dict[str, str]) -> tuple[int, str]:
    """Run in a terminal of its own, and press Ctrl-C when it says ``up``; the status and all it wrote."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, environ)
    text, pressed, end = "", False, time.monotonic() + START_S
    while time.monotonic() < end:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        try:
            data = os.read(terminal, 4096) if ready else b""
        except OSError:
            break  # the last process has closed it
        text += data.decode(errors="replace")
        if "up" in text and not pressed:
            os.write(terminal, b"\x03")
            pressed, end = True, time.monotonic() + END_S
    else:
        psutil.Process(pid).kill()
        raise AssertionError(f"Ctrl-C did not end it: {text}")
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
def test_ctrl_c_ends_the_command_and_with_it_all(words, tmp_path):
    run = tmp_path / "r"
    run.mkdir(mode=0o700)
    environ = environment(FLUXMPI_RUNDIR=str(run))
    status, text = interrupted(words, environ)
    assert status in (130, -signal.SIGINT), text
    assert "Traceback" not in text
    wait(lambda: list(run.iterdir()) == [] or "mpirun" in words[0] + words[-1], END_S)


def test_ctrl_c_is_the_commands_to_heed():
    """One that traps it goes on; the instance does too."""
    script = 'trap "echo caught; exit 7" INT; echo up; while :; do sleep 0.1; done'
    status, text = interrupted([*FLUXMPI, "start", "-n", "2", "--", "sh", "-c", script], environment())
    assert status == 7, text
    assert "caught" in text


# --------------------------------------------------------------------------------------------------------- suspended ranks


def suspend_an_inner_broker(commits: int) -> None:
    """Rank 3 commits all the time; rank 1, on its way, is stopped for a while, in which ranks 0 and 2 commit."""
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
            assert len(versions) <= before + 1, "rank 3 is behind it"
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


def test_a_broker_that_is_suspended_for_a_while_loses_nothing():
    suspend_an_inner_broker(30)


def test_a_broker_that_is_suspended_does_not_silence_the_others():
    suspend_an_inner_broker(300)


# ------------------------------------------------------------------------------------------------------- N worlds of size 1


@pytest.mark.parametrize("task", ["0", "3"])
def test_ranks_that_the_launcher_did_not_join_refuse_to_run(task):
    """What ``srun`` without ``--mpi`` starts: four tasks, each of which MPI calls rank 0 of 1."""
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
        assert done.stderr == "", "one of them says it for all"
