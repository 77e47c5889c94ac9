"""Doorbells: real FIFOs and sockets; the contents of a bell, and bells that are not delivered."""

from __future__ import annotations

import os
import socket
import struct

import psutil
import pytest

from fluxmpi.drivers import bell as bell_module
from fluxmpi.drivers.bell import COUNT_MASK, Doorbell, _choose
from fluxmpi.errors import LaunchError

SECRET = b"8 bytes!"


@pytest.fixture
def bells(tmp_path):
    made = [Doorbell(rank, SECRET, str(tmp_path)) for rank in range(3)]
    cards = [bell.own(several_hosts=False) for bell in made]
    for bell in made:
        bell.meet(cards, [rank for rank in range(3) if rank != bell.rank])
    yield made
    for bell in made:
        bell.close()


def test_a_bell_has_the_senders_rank_and_count(bells):
    assert bells[1].ring(0, 7)
    assert bells[2].ring(0, 9)
    assert bells[1].ring(0, 8)
    assert bells[0].listen() == [(1, 7), (2, 9), (1, 8)]
    assert bells[0].listen() == []
    assert (bells[0].heard, bells[1].rung) == (3, 2)


def test_counts_wrap(bells):
    bells[1].ring(0, COUNT_MASK + 5)
    assert bells[0].listen() == [(1, 4)]


def test_a_bell_wakes_a_process_that_sleeps_in_epoll(bells):
    import select

    epoll = select.epoll()
    for fd in bells[0].filenos():
        epoll.register(fd, select.EPOLLIN)
    assert epoll.poll(0) == []
    bells[1].ring(0, 1)
    assert epoll.poll(1) == [(bells[0].filenos()[0], select.EPOLLIN)]
    epoll.close()


@pytest.mark.parametrize(
    "forged",
    [b"", b"x", struct.pack("<8sII", b"another!", 1, 9), bytes(64), bytes(2000)],
)
def test_a_bell_without_the_secret_is_ignored(bells, forged):
    if forged:
        with open(bells[0]._path, "wb", buffering=0) as stranger:
            stranger.write(forged)
    bells[1].ring(0, 3)
    assert bells[0].listen() == [(1, 3)]


def test_a_full_fifo_is_reported_to_ring_again(bells):
    rung = 0
    while bells[1].ring(0, rung + 1):
        rung += 1
        assert rung < 100_000, "the queue has no end"
    assert bells[1].unsent == 1
    assert not bells[1].ring(0, rung + 1), "still full"
    assert len(bells[0].listen()) == rung
    assert bells[1].ring(0, rung + 1)
    assert bells[0].listen() == [(1, rung + 1)]


def test_a_fifo_without_a_reader_is_refused(bells):
    """Its process has ended or was killed: the FIFO has no reader."""
    bells[0].close()
    with pytest.raises(ConnectionRefusedError, match="rank 0 has closed its doorbell"):
        bells[1].ring(0, 1)


def test_the_fifo_of_a_killed_broker_is_replaced(tmp_path):
    first = Doorbell(0, SECRET, str(tmp_path))
    os.close(first.filenos()[0])
    second = Doorbell(0, SECRET, str(tmp_path))
    second.close()


def test_between_hosts_it_is_udp(tmp_path):
    bells = [Doorbell(rank, SECRET, str(tmp_path)) for rank in range(2)]
    cards = [bell.own(several_hosts=True) for bell in bells]
    for rank, card in enumerate(cards):
        assert card["port"] > 0
        card |= {"host": f"host{rank}", "addresses": ["127.0.0.1"]}
    for bell in bells:
        assert len(bell.filenos()) == 2
        bell.meet(cards, [1 - bell.rank])
    assert bells[0].ring(1, 5)
    end = 200
    heard = []
    while not heard and end:
        heard, end = bells[1].listen(), end - 1
        os.sched_yield()
    assert heard == [(0, 5)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(struct.pack("<8sII", b"another!", 0, 9), ("127.0.0.1", cards[1]["port"]))
    bells[1].close()
    assert bells[0].ring(1, 6), "a datagram may be lost without an error: the receiver's poll covers it"
    assert bells[0].ring(1, 7)
    assert bells[0].listen() == []
    bells[0].close()


def test_the_address_to_ring():
    assert _choose("no-such-host.invalid", ["10.0.0.7", "192.168.3.7"], ["192.168.3.1"]) == "192.168.3.7"
    assert _choose("no-such-host.invalid", ["10.0.0.7"], ["192.168.3.1"]) == "10.0.0.7"
    assert _choose("localhost", ["10.0.0.7", "127.0.0.1"], ["10.0.0.1"]) == "127.0.0.1"
    with pytest.raises(LaunchError, match="--wake=poll"):
        _choose("no-such-host.invalid", [], ["192.168.3.1"])


def test_an_interface_that_the_host_does_not_have_is_told(tmp_path):
    """Loopback is none either: other hosts do not reach it."""
    bell = Doorbell(0, SECRET, str(tmp_path))
    try:
        for name in ("nosuch0", "lo"):
            with pytest.raises(LaunchError, match=f"--mpi-interface {name}: .* has no such interface"):
                bell.own(True, name)
        assert bell.own(False, "nosuch0")["addresses"] == [], "one host needs none"
    finally:
        bell.close()


def test_datagrams_are_received_at_the_address_of_the_interface(tmp_path):
    names = [name for name, state in psutil.net_if_stats().items() if state.isup and bell_module._addresses(name)]
    if not names:
        pytest.skip("this host has no interface but loopback")
    bell = Doorbell(0, SECRET, str(tmp_path))
    try:
        card = bell.own(True, names[0])
        assert card["addresses"] == bell_module._addresses(names[0])[:1]
        assert bell._udp is not None
        assert bell._udp.getsockname() == (card["addresses"][0], card["port"])
    finally:
        bell.close()
