"""The launcher of ``start -n`` with MPICH: its answers to the ranks, and what the end of a rank means for the others."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from fluxmpi.drivers import pmi
from fluxmpi.drivers.pmi import PmiServer


def asked(server: PmiServer, rank: int, *lines: str) -> list[str]:
    answers = server.receive(rank, "".join(f"{line}\n" for line in lines).encode())
    return [f"{addressee} {answer.decode().strip()}" for addressee, answer in answers]


def test_a_rank_learns_of_the_others():
    server = PmiServer(3, "space")
    assert asked(server, 1, "cmd=init pmi_version=1 pmi_subversion=1", "cmd=get_my_kvsname") == [
        "1 cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0",
        "1 cmd=my_kvsname kvsname=space rc=0",
    ]
    assert asked(server, 1, "cmd=get kvsname=space key=PMI_process_mapping") == [
        "1 cmd=get_result rc=0 msg=success value=(vector,(0,1,3))"
    ]


def test_what_one_rank_puts_the_others_get():
    server = PmiServer(2, "space")
    assert asked(server, 0, "cmd=get kvsname=space key=address") == [
        "0 cmd=get_result rc=-1 msg=key_not_found value=unknown"
    ]
    asked(server, 1, "cmd=put kvsname=space key=address value=a=b,c")
    assert asked(server, 0, "cmd=get kvsname=space key=address") == ["0 cmd=get_result rc=0 msg=success value=a=b,c"]


def test_a_barrier_ends_when_all_ranks_have_come():
    server = PmiServer(3, "space")
    assert asked(server, 2, "cmd=barrier_in") == []
    assert asked(server, 0, "cmd=barrier_in") == []
    assert asked(server, 1, "cmd=barrier_in") == [f"{rank} cmd=barrier_out rc=0" for rank in (2, 0, 1)]
    assert asked(server, 1, "cmd=barrier_in") == [], "the next one begins"


def test_a_line_may_arrive_in_pieces():
    server = PmiServer(1, "space")
    assert server.receive(0, b"cmd=get_uni") == []
    assert server.receive(0, b"verse_size\ncmd=fin") == [(0, b"cmd=universe_size size=1 rc=0\n")]
    assert server.receive(0, b"alize\n") == [(0, b"cmd=finalize_ack rc=0\n")]


def test_other_bytes_are_no_requests():
    server = PmiServer(1, "space")
    assert server.receive(0, os.urandom(500).replace(b"\n", b" ") + b"\n") == []
    assert asked(server, 0, "mcmd=spawn", "nprocs=2", "endcmd") == ["0 cmd=spawn_result rc=-1 msg=not_supported"]
    with pytest.raises(ValueError, match="more than 4096 bytes"):
        server.receive(0, bytes(5000))


LIMIT_S = 60.0


def launch(size: int, script: str) -> tuple[int, str]:
    words = [sys.executable, "-I", "-S", pmi.__file__, str(size), "sh", "-c", script]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout


def test_the_ranks_run_with_their_numbers():
    status, text = launch(3, 'echo "$PMI_RANK of $PMI_SIZE, $MPI_LOCALNRANKS here"')
    assert status == 0
    assert sorted(text.splitlines()) == [f"{rank} of 3, 3 here" for rank in range(3)]


def test_a_rank_that_is_killed_while_they_start_ends_the_others():
    assert launch(3, "if [ $PMI_RANK = 1 ]; then kill -BUS $$; fi; exec sleep 1000") == (128 + signal.SIGBUS, "")


def test_the_first_status_that_is_not_0_is_the_status():
    assert launch(2, "exit $((3 * PMI_RANK))") == (3, "")


def test_after_they_are_up_the_others_end_by_themselves(tmp_path):
    """Rank 0 prints when rank 1 has been killed, as a broker then saves its checkpoint."""
    fifo = tmp_path / "open"
    os.mkfifo(fifo)
    script = f"""
        if [ $PMI_RANK = 0 ]; then cat {fifo}; echo saved; exit; fi
        exec 3>{fifo}; kill -USR1 $PPID; kill -KILL $$
    """
    assert launch(2, script) == (128 + signal.SIGKILL, "saved\n")


def test_a_rank_that_is_stopped_ends_soon_after_rank_0():
    script = "if [ $PMI_RANK = 1 ]; then kill -STOP $$; fi; kill -USR1 $PPID; exit 1"
    assert launch(2, script) == (1, "")


def test_ranks_get_sigterm_if_the_launcher_is_killed(tmp_path):
    fifo = tmp_path / "ended"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    script = f'trap "echo $PMI_RANK >{fifo}; exit 0" TERM; echo up; while :; do sleep 0.05; done'
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", pmi.__file__, "2", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    process.kill()
    process.wait()
    ended = b""
    while len(ended) < 4 and select.select([reader], [], [], LIMIT_S)[0]:
        ended += os.read(reader, 100)
    os.close(reader)
    process.stdout.close()
    assert sorted(ended.split()) == [b"0", b"1"]
