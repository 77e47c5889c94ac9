"""What a broker sets for its MPI, and whether MPI can start with a host's /dev/shm."""

from __future__ import annotations

import os

import pytest

from fluxmpi.drivers import mpi_settings
from fluxmpi.drivers.mpi_settings import MIB, interface, local_ranks, one_host, prepare, shared_memory_problem

MPICH, OPENMPI, OTHER = "MPICH Version: 5.0.2", "Open MPI v5.0.11", "Another MPI"


def test_on_one_host_no_transport_uses_a_port():
    assert one_host({}, mpich=True) == {"UCX_TLS": "self,sysv"}
    assert one_host({}, mpich=False) == {"OMPI_MCA_btl": "self,sm"}


@pytest.mark.parametrize("name", ["UCX_TLS", "UCX_NET_DEVICES"])
def test_what_the_user_has_set_is_kept(name):
    assert one_host({name: "mine"}, mpich=True) == {}
    assert one_host({"OMPI_MCA_btl": "mine"}, mpich=False) == {"OMPI_MCA_btl": "mine"}
    assert name not in prepare(MPICH, {name: "mine"}, "eth1")


def test_an_interface_is_set_for_every_transport_that_uses_tcp():
    assert set(interface("eth1").values()) == {"eth1"}
    assert prepare(OPENMPI, {}, "eth1") == interface("eth1")
    assert prepare(OPENMPI, {}, "") == {}
    assert prepare(MPICH, {}, "") == {"UCX_TLS": "^posix"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (1, 0)),
        ({"MPI_LOCALNRANKS": "4", "MPI_LOCALRANKID": "2"}, (4, 2)),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (8, 0)),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "2", "SLURM_LOCALID": "1"}, (2, 1)),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}, (1, 0)),
        ({"SLURM_STEP_TASKS_PER_NODE": "nonsense", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}, (1, 0)),
    ],
)
def test_the_launcher_says_how_many_ranks_share_a_host(environ, expected):
    assert local_ranks(environ) == expected


def shm(monkeypatch, size: int, free: int):
    """A /dev/shm of this size."""
    values = (4096, 4096, size // 4096, free // 4096, free // 4096, 0, 0, 0, 0, 255)
    monkeypatch.setattr(mpi_settings.os, "statvfs", lambda path: os.statvfs_result(values))


def ranks(size: int, number: int = 0) -> dict[str, str]:
    return {"MPI_LOCALNRANKS": str(size), "MPI_LOCALRANKID": str(number)}


def test_too_small_a_shared_memory_is_told_with_the_remedy(monkeypatch):
    shm(monkeypatch, 4 * MIB, 4 * MIB)
    problem, starts = shared_memory_problem(MPICH, ranks(8))
    assert not starts
    assert problem.startswith("/dev/shm has 4.0 MiB free, and MPICH needs 9 MiB there for 8 ranks on one host")
    assert "docker run --shm-size=64m" in problem
    assert shared_memory_problem(MPICH, ranks(2)) == ("", False)


def test_the_size_advised_is_twice_what_is_needed(monkeypatch):
    shm(monkeypatch, 64 * MIB, 64 * MIB)
    problem, _ = shared_memory_problem(MPICH, ranks(64))
    assert "needs 65 MiB" in problem
    assert "--shm-size=130m" in problem


def test_open_mpi_starts_with_less_than_it_may_come_to_need(monkeypatch):
    shm(monkeypatch, 64 * MIB, 40 * MIB)
    problem, starts = shared_memory_problem(OPENMPI, ranks(4))
    assert starts
    assert "Open MPI may come to need 64 MiB" in problem
    shm(monkeypatch, 64 * MIB, 10 * MIB)
    problem, starts = shared_memory_problem(OPENMPI, ranks(4))
    assert not starts
    assert "Open MPI needs 64 MiB" in problem


def test_only_the_first_rank_of_a_host_counts_what_is_free(monkeypatch):
    """The others start while the first has allocated its memory already."""
    shm(monkeypatch, 64 * MIB, 1 * MIB)
    assert shared_memory_problem(MPICH, ranks(8, 0))[0] != ""
    assert shared_memory_problem(MPICH, ranks(8, 1))[0] == ""


def test_nothing_is_needed_alone_or_of_an_mpi_that_is_not_known(monkeypatch):
    shm(monkeypatch, 0, 0)
    assert shared_memory_problem(MPICH, {}) == ("", False)
    assert shared_memory_problem(OTHER, ranks(8)) == ("", False)


def test_a_host_without_shared_memory_is_told():
    problem, starts = shared_memory_problem(MPICH, ranks(2), "/nonexistent")
    assert not starts
    assert "No such file" in problem
