"""Whole brokers on every rank, over real MPI: commits from everywhere, one order, one root at the end."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable

import pytest
from ranks import RANK, SIZE, WAIT_S, WORLD, collective, folder

from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import Shutdown
from fluxmpi.client.handle import Handle, connect
from fluxmpi.drivers.bell import SECRET_BYTES, Doorbell
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.loop import Loop
from fluxmpi.drivers.mpi import MpiTransport
from fluxmpi.kvs.wire import GetRoot
from fluxmpi.message import LOOP, control

KEYS = 30


def run_instance(work: Callable[[Handle], object], topology: str = "kary:2", polling: bool = False, **config) -> object:
    """A broker on this rank, and ``work`` in a thread as its client; when all have done theirs, the instance ends."""
    transport = MpiTransport(WORLD)
    broker = Broker(Config(rank=RANK, size=SIZE, hosts=("h",) * SIZE, topology=topology, **config), Clock().now())
    near, bell = broker.router.neighbours(), None
    if not polling:
        bell = Doorbell(RANK, b"s" * SECRET_BYTES, folder())
        bell.meet(transport.exchange(bell.own(several_hosts=False)), near)
    transport.connect(bell, near)
    path = f"{folder()}/broker.{RANK}"
    loop = Loop(broker, transport, Clock(), path, polling=polling)
    result: list[object] = []

    def client() -> None:
        try:
            with connect(f"local://{path}") as h:
                result.append(work(h))
                h.kvs.fence("the-end", SIZE)
                if RANK == 0:
                    h.rpc("lifecycle.shutdown", Shutdown(0, "done"), target=0)
        except BaseException as problem:
            result.append(problem)
            with contextlib.suppress(OSError):  # the instance may have ended already
                loop.post(control("lifecycle.signal", int(signal.SIGTERM), LOOP))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    thread = threading.Thread(target=client)
    thread.start()
    status = loop.run()
    thread.join(WAIT_S)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    if result and isinstance(result[0], BaseException):
        raise result[0]
    assert status == 0
    assert not transport.sending
    return result[0]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("topology", "polling"),
    [("kary:2", False), ("kary:2", True), ("binomial", False), ("flat", False), ("kary:1", False)],
)
@collective
def test_commits_from_every_rank_make_one_history(topology, polling):
    def work(h: Handle) -> tuple[int, str, dict[str, int]]:
        for number in range(KEYS):
            h.kvs.commit({f"rank{RANK}.k{number}": number, "shared": [RANK, number]})
            assert h.kvs.get(f"rank{RANK}.k{number}") == number, "a client reads what it wrote"
        root = h.kvs.fence("written", SIZE, {f"fenced.r{RANK}": RANK})
        values = {
            f"rank{rank}.k{number}": h.kvs.get(f"rank{rank}.k{number}", at=root)
            for rank in range(SIZE)
            for number in range(KEYS)
        }
        values |= {f"fenced.r{rank}": h.kvs.get(f"fenced.r{rank}", at=root) for rank in range(SIZE)}
        return root.version, str(root.root), values

    found = run_instance(work, topology, polling)
    everybodys = WORLD.allgather(found)
    assert everybodys == [everybodys[0]] * SIZE, "one version, one root, the same values"
    version, _, values = everybodys[0]
    assert version == SIZE * KEYS + 1, "commits that touch one key are never merged: each is a version"
    assert values == {f"rank{r}.k{n}": n for r in range(SIZE) for n in range(KEYS)} | {
        f"fenced.r{r}": r for r in range(SIZE)
    }


@pytest.mark.mpi
@collective
def test_large_values_and_tiny_caches():
    """Values of several blobs move through brokers that can keep none of them."""
    size = 3_500_000

    def work(h: Handle) -> bool:
        h.kvs.fence("large", SIZE, {f"large.r{RANK}": bytes([RANK]) * size})
        return all(h.kvs.get(f"large.r{rank}") == bytes([rank]) * size for rank in range(SIZE))

    assert run_instance(work, cache_bytes_max=1000)


@pytest.mark.mpi
@collective
def test_watchers_on_every_rank_get_every_version():
    def work(h: Handle) -> list[int]:
        seen = []
        with h.kvs.watch("counter") as watch:
            h.kvs.fence("watching", SIZE)
            if RANK == SIZE - 1:
                for number in range(50):
                    h.kvs.commit({"counter": number})
            for change in watch:
                if change.value is not None:
                    seen.append(change.value)
                if change.value == 49:
                    return seen
        return seen

    assert run_instance(work) == list(range(50))


@pytest.mark.mpi
@collective
def test_requests_that_wait_at_other_ranks_end_with_their_client():
    """The last rank's client asks every broker for a version that is far away, and is cut off."""

    def parked(h: Handle) -> list[float]:
        return [h.rpc("stats.get", target=rank)["kvs"]["parked"] for rank in range(SIZE)]

    def work(h: Handle) -> list[float]:
        end = time.monotonic() + WAIT_S
        if RANK == SIZE - 1:
            with connect(f"local://{folder()}/broker.{RANK}") as other:
                for rank in range(SIZE):
                    other.rpc_async("kvs.getroot", GetRoot("primary", 1_000_000), target=rank)
                assert parked(other) == [1] * SIZE
            while any(parked(h)):
                assert time.monotonic() < end, "something waits for a client that is gone"
        h.kvs.fence("left", SIZE)
        return parked(h)

    assert run_instance(work) == [0] * SIZE


@pytest.mark.mpi
@collective
def test_a_program_that_fails_ends_all():
    """A client's thread that raises ends the instance everywhere: what the tests above rely on."""

    def work(h: Handle) -> None:
        if RANK == SIZE - 1:
            raise RuntimeError("on purpose")

    if RANK == SIZE - 1:
        with pytest.raises(RuntimeError, match="on purpose"):
            run_instance(work)
    else:
        with pytest.raises(Exception, match=r"end|clos|gone|lost|143|nobody listens|no instance"):
            run_instance(work)
