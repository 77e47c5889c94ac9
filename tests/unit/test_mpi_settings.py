"""What a broker sets for its MPI, and whether MPI can start with a host's /dev/shm."""

from __future__ import annotations

import os
from collections.abc import Callable

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


@pytest.fixture
def shm(monkeypatch, tmp_path) -> Callable[[float, float], str]:
    """Make an empty folder of this size, with this much free, in MiB; returns its path."""

    def make(size: float, free: float) -> str:
        blocks, left = int(size * MIB) // 4096, int(free * MIB) // 4096
        values = (4096, 4096, blocks, left, left, 0, 0, 0, 0, 255)
        monkeypatch.setattr(mpi_settings.os, "statvfs", lambda path: os.statvfs_result(values))
        return str(tmp_path)

    return make


def ranks(size: int, number: int = 0) -> dict[str, str]:
    return {"MPI_LOCALNRANKS": str(size), "MPI_LOCALRANKID": str(number)}


def test_too_small_a_shared_memory_is_told_with_the_remedy(shm):
    folder = shm(4, 4)
    problem, starts = shared_memory_problem(MPICH, ranks(8), folder)
    assert not starts
    assert problem.startswith(f"{folder} has 4.0 MiB free, and MPICH needs 9 MiB there for 8 ranks on one host")
    assert "docker run --shm-size=64m" in problem
    assert shared_memory_problem(MPICH, ranks(2), folder) == ("", False)


def test_the_size_advised_is_twice_what_is_needed(shm):
    problem, _ = shared_memory_problem(MPICH, ranks(64), shm(64, 64))
    assert "needs 65 MiB" in problem
    assert "--shm-size=130m" in problem


def test_open_mpi_starts_with_less_than_it_may_come_to_need(shm):
    problem, starts = shared_memory_problem(OPENMPI, ranks(4), shm(64, 40))
    assert starts
    assert "Open MPI may come to need 64 MiB" in problem
    problem, starts = shared_memory_problem(OPENMPI, ranks(4), shm(64, 10))
    assert not starts
    assert "Open MPI needs 64 MiB" in problem


def test_what_the_other_ranks_have_allocated_already_is_not_missed(shm):
    """Only the first rank of a host counts what is free, and then what is new in it."""
    folder = shm(64, 8)
    assert shared_memory_problem(MPICH, ranks(8, 1), folder) == ("", False)
    assert shared_memory_problem(MPICH, ranks(8, 0), folder)[0] != ""
    with open(f"{folder}/mpich_shm", "wb") as file:
        file.write(bytes(MIB))
    assert shared_memory_problem(MPICH, ranks(8, 0), folder) == ("", False)


def test_nothing_is_needed_alone_or_of_an_mpi_that_is_not_known(shm):
    assert shared_memory_problem(MPICH, {}, shm(0, 0)) == ("", False)
    assert shared_memory_problem(OTHER, ranks(8), shm(0, 0)) == ("", False)


def test_a_host_without_shared_memory_is_told():
    problem, starts = shared_memory_problem(MPICH, ranks(2), "/nonexistent")
    assert not starts
    assert "No such file" in problem
