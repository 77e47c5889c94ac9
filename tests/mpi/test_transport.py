"""The transport over real MPI: order, windows, the counts of bells, and lost peers."""

from __future__ import annotations

import random

import pytest
from ranks import RANK, SIZE, Link, collective, folder, linked

from fluxmpi.drivers.bell import COUNT_MASK
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.loop import Loop
from fluxmpi.drivers.mpi import (
    DETACH_BYTES,
    IRECV_BYTES,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    MpiTransport,
    expected_size,
    world,
)
from fluxmpi.errors import LaunchError, ProtocolError
from fluxmpi.message import CONTROL, REQUEST, RESPONSE, Message

NEXT, PREVIOUS = (RANK + 1) % SIZE, (RANK - 1) % SIZE
RING = sorted({NEXT, PREVIOUS} - {RANK})

SIZES = [0, 1, 100, 5000, DETACH_BYTES - 1, DETACH_BYTES, IRECV_BYTES + 1, 300_000, 3 << 20]


def numbered(number: int, size: int) -> Message:
    """Make a message whose body depends on its size and number."""
    return Message(REQUEST, "t.m", tag=number, route=[RANK, number], body=bytes([number % 251]) * size)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("polling", [False, True], ids=["bell", "poll"])
@collective
def test_order_is_kept_whatever_the_sizes(polling):
    """Small messages, detached bodies and bodies of megabytes, in batches and alone, to all neighbours at once."""
    chance = random.Random(7)
    plan = [[chance.choice(SIZES) for _ in range(chance.randint(1, 4))] for _ in range(40)]
    with linked(RING, polling) as link:
        for near in RING:
            number = 0
            for sizes in plan:
                link.transport.send(near, [numbered(number + n, size) for n, size in enumerate(sizes)])
                number += len(sizes)
                if chance.random() < 0.3:
                    link.turn()
        expected = [size for sizes in plan for size in sizes]
        link.until(lambda: len(link.got) == len(RING) * len(expected), "all messages")
        for near in RING:
            came = [msg for msg in link.got if msg.hop == near]
            assert [msg.tag for msg in came] == list(range(len(expected)))
            assert all(msg.route == [near, msg.tag] for msg in came)
            for msg, size in zip(came, expected, strict=True):
                assert bytes(msg.body) == bytes([msg.tag % 251]) * size
        link.settle()
        assert not link.transport.expecting
        assert link.transport.backlog == 0


@pytest.mark.mpi(min_size=2)
@collective
def test_received_messages_can_be_forwarded():
    """Received bodies (bytearrays) are forwarded unchanged around the ring."""
    if SIZE < 2:
        return
    with linked(RING) as link:
        bodies = [b"", b"x" * 10, b"y" * DETACH_BYTES, b"z" * (1 << 20)]
        if RANK == 0:
            link.transport.send(NEXT, [Message(RESPONSE, "a.b", tag=n, body=body) for n, body in enumerate(bodies)])
        link.until(lambda: len(link.got) == len(bodies), "the messages")
        assert [bytes(msg.body) for msg in link.got] == bodies
        if RANK:
            link.transport.send(NEXT, link.got[:])
        link.settle()


@pytest.mark.mpi(min_size=2)
@collective
def test_the_window_bounds_what_is_in_flight():
    with linked(RING) as link:
        transport = link.transport
        for number in range(24):
            transport.send(NEXT, [numbered(number, 1 << 20)])
        for _ in range(50):
            transport.flush()
            peer = transport.peer(NEXT)
            assert peer["in_flight"] <= WINDOW_MESSAGES
            assert peer["in_flight_bytes"] < WINDOW_BYTES + (1 << 20) + 1000
        assert peer["backlog"] > 0, "no rank has received yet, so most of it is queued"
        assert transport.sending
        assert transport.backlog >= peer["backlog"]
        link.barrier()
        link.until(lambda: len(link.got) == 24, "all of it")
        assert [msg.tag for msg in link.got] == list(range(24))
        link.settle()
        peer = transport.peer(NEXT)
        assert (peer["in_flight"], peer["in_flight_bytes"], peer["backlog"]) == (0, 0, 0)


@pytest.mark.mpi(min_size=2)
@collective
def test_many_small_messages_one_by_one():
    count = 5 * WINDOW_MESSAGES
    with linked(RING) as link:
        for number in range(count):
            link.transport.send(NEXT, [numbered(number, 10)])
            link.transport.flush()
            assert link.transport.peer(NEXT)["in_flight"] <= WINDOW_MESSAGES
        link.until(lambda: len(link.got) == count, "all of them")
        assert [msg.tag for msg in link.got] == list(range(count))
        link.settle()


# --------------------------------------------------------------------------------------------------------------- bells


def ring_all(link: Link, count: int) -> None:
    """Every rank rings the next one, and receives the bell of the one before."""
    bell = link.bell
    heard = bell.heard
    link.barrier()
    bell.ring(NEXT, count)
    link.until(lambda: bell.heard > heard, "the bell")
    assert bell.heard == heard + 1
    link.barrier()


def timeout_of_a_loop(transport: MpiTransport) -> float:
    """Return how long a loop with this transport would sleep now."""
    from fluxmpi.broker.broker import Broker
    from fluxmpi.broker.config import Config

    clock = Clock()
    broker = Broker(Config(rank=transport.rank, size=transport.size, hosts=("h",) * transport.size), clock.now())
    broker.tick(clock.now())
    loop = Loop(broker, transport, clock, f"{folder()}/loop.{transport.rank}", spinning=False)
    try:
        return loop.timeout()
    finally:
        loop.close()


@pytest.mark.mpi(min_size=2)
@collective
def test_a_broker_polls_from_the_bell_until_the_data_has_arrived():
    """A bell often arrives before the data.

    It has the number of messages, so that the broker polls until it has them.
    """
    with linked(RING) as link:
        transport = link.transport
        link.barrier()
        assert not transport.expecting
        assert timeout_of_a_loop(transport) > 0.05, "a loop sleeps if no messages are announced"
        ring_all(link, 3)
        for _ in range(100):
            link.turn()
            assert link.got == []
            assert transport.expecting, "three messages were announced, and none has arrived"
        assert timeout_of_a_loop(transport) == 0
        link.barrier()
        link.mute()  # from here on, only the first bell counts
        for number in range(3):
            link.barrier()
            transport.send(NEXT, [numbered(number, 10)])
            transport.flush()
            link.until(lambda number=number: len(link.got) == number + 1, "the message")
            assert transport.expecting == (number < 2), f"after {number + 1} of 3"
        assert timeout_of_a_loop(transport) > 0.05
        link.barrier()


@pytest.mark.mpi(min_size=2)
@collective
def test_a_bell_for_received_messages_changes_nothing():
    with linked(RING) as link:
        transport = link.transport
        transport.send(NEXT, [numbered(0, 10)])
        link.until(lambda: len(link.got) == 1, "the message")
        link.settle()
        for count in (0, 1):
            ring_all(link, count)
            assert not transport.expecting


@pytest.mark.mpi(min_size=2)
@collective
def test_counts_wrap_around():
    with linked(RING, count=COUNT_MASK - 1) as link:
        transport = link.transport
        for number in range(5):
            ring_all(link, transport.peer(NEXT)["sent"] + 1)
            assert transport.expecting
            link.barrier()
            transport.send(NEXT, [numbered(number, 10)])
            link.until(lambda number=number: len(link.got) == number + 1, "the message")
            assert not transport.expecting
            link.settle()


@pytest.mark.mpi(min_size=2)
@collective
def test_every_send_is_announced_with_the_count_of_all():
    with linked(RING) as link:
        transport = link.transport
        rung: list[tuple[int, int]] = []
        ring = link.bell.ring
        link.bell.ring = lambda rank, count: rung.append((rank, count)) or ring(rank, count)
        transport.send(NEXT, [numbered(0, 10), numbered(1, DETACH_BYTES), numbered(2, 10)])
        transport.send(NEXT, [numbered(3, 10)])
        transport.flush()
        assert rung == [(NEXT, 4)], "one bell a turn; a detached body is an MPI message of its own"
        transport.flush()
        assert rung == [(NEXT, 4)], "and none without further messages"
        link.until(lambda: len(link.got) == 4, "all of them")
        assert transport.peer(PREVIOUS)["received"] == 4
        link.settle()


@pytest.mark.mpi(min_size=2)
@collective
def test_a_bell_that_cannot_be_queued_is_rung_again():
    with linked(RING) as link:
        transport = link.transport
        while link.bell.ring(NEXT, 0):
            pass
        transport.send(NEXT, [numbered(0, 10)])
        transport.flush()
        assert transport.peer(NEXT)["bell_due"], "the queue is full"
        assert transport.sending, "so the loop must take another turn"
        link.barrier()
        link.until(lambda: len(link.got) == 1 and not transport.peer(NEXT)["bell_due"], "the bell to get through")
        link.settle()


# -------------------------------------------------------------------------------------------------- peers that are gone


@pytest.mark.mpi(min_size=2)
@collective
def test_a_closed_doorbell_on_the_same_host_is_a_lost_peer():
    with linked(RING) as link:
        transport = link.transport
        if RANK == SIZE - 1:
            link.bell.close()
        link.barrier()
        if SIZE - 1 in RING:
            transport.send(SIZE - 1, [numbered(0, 10)])
            transport.flush()
            ((rank, reason),) = transport.gone
            assert (rank, "closed its doorbell" in reason) == (SIZE - 1, True)
            transport.send(SIZE - 1, [numbered(1, 10)])
            assert not transport.sending, "nothing is sent to it any more"
        link.barrier()


@pytest.mark.mpi(min_size=2)
@collective
def test_messages_queued_for_a_dropped_peer_are_discarded():
    with linked(RING) as link:
        transport = link.transport
        for number in range(40):
            transport.send(NEXT, [numbered(number, 1 << 18)])
        transport.drop(NEXT)
        assert (transport.sending, transport.backlog) == (False, 0)
        transport.flush()
        transport.send(NEXT, [numbered(0, 10)])
        assert not transport.sending
        link.barrier()
        link.turn()
        assert link.got == []


@pytest.mark.mpi(min_size=2)
@collective
def test_messages_from_others_than_neighbours_are_refused():
    with linked([NEXT] if RANK == 0 else []) as link:
        if RANK == 0:
            link.transport.send(NEXT, [Message(CONTROL, "a.b")])
            link.transport.flush()
        if RANK == 1:
            with pytest.raises(ProtocolError, match="rank 0 sent a message to rank 1, and is not its neighbour"):
                link.until(lambda: False, "the message")
        link.barrier()


# -------------------------------------------------------------------------------------------------------- N worlds of 1


@pytest.mark.mpi
@collective
def test_a_world_that_is_not_the_launchers_is_refused():
    assert world({}).size == SIZE
    assert world({"PMI_SIZE": str(SIZE)}).size == SIZE
    wrong = str(SIZE + 3)
    with pytest.raises(LaunchError, match=rf"srun started {wrong} tasks, .*world of {SIZE}: .*srun --mpi=pmi"):
        world({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": wrong})
    with pytest.raises(LaunchError, match="use the mpirun that belongs to"):
        world({"OMPI_COMM_WORLD_SIZE": wrong})


@pytest.mark.mpi
def test_the_launchers_number_of_ranks():
    assert expected_size({}) == (1, "")
    assert expected_size({"PMI_SIZE": "4"}) == (4, "mpirun")
    assert expected_size({"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "4"}) == (4, "srun")
    assert expected_size({"SLURM_STEP_NUM_TASKS": "4"}) == (1, ""), "a batch script is no step"
    assert expected_size({"PMI_SIZE": "x"}) == (1, "")
