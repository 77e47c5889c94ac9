"""Helpers of the tests under mpirun: a failure of one rank is reported by all, and a rank that hangs ends the run.

A test runs in all ranks at once. If one rank raised and the others continued, they would wait for it for ever. So each
test ends with an exchange of outcomes, and every wait in it has a limit. A watchdog ends what hangs nevertheless.
"""

from __future__ import annotations

import faulthandler
import functools
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpi4py import MPI

from fluxmpi.drivers.bell import SECRET_BYTES, Doorbell
from fluxmpi.drivers.mpi import MpiTransport
from fluxmpi.message import Message

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.rank, WORLD.size
WAIT_S = 20.0
WATCHDOG_S = 60.0
stderr = 2
"""Descriptor that the watchdog writes to, which pytest does not capture (see conftest)."""


def collective(test: Callable) -> Callable:
    """Make a test pass on all ranks, or fail on all with the text of each. The test may call ``folder``."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        global _folder
        faulthandler.dump_traceback_later(WATCHDOG_S, exit=True, file=stderr)
        try:
            _folder = WORLD.bcast(tempfile.mkdtemp(prefix="fxt-") if RANK == 0 else "")
            problem = ""
            try:
                test(*args, **kwargs)
            except Exception:
                problem = traceback.format_exc()
            problems = WORLD.allgather(problem)
            if RANK == 0:
                shutil.rmtree(_folder, ignore_errors=True)
        finally:
            faulthandler.cancel_dump_traceback_later()
        reports = [f"rank {rank}:\n{text}" for rank, text in enumerate(problems) if text]
        assert not reports, "\n".join(reports)

    return run


_folder = ""


def folder() -> str:
    """Return the folder that all ranks share in this test."""
    return _folder


def until(holds: Callable[[], object], turn: Callable[[], object], what: str = "it") -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"rank {RANK} waited for {what} for {WAIT_S:.0f} s"
        turn()
        time.sleep(0)


class Link:
    """This rank's transport and doorbell, and all messages that it has received."""

    def __init__(self, transport: MpiTransport, bell: Doorbell | None, sync: MPI.Comm) -> None:
        self.transport = transport
        self._bell = bell
        self.got: list[Message] = []
        self._sync = sync

    @property
    def bell(self) -> Doorbell:
        assert self._bell is not None, "this link polls"
        return self._bell

    def mute(self) -> None:
        """Ring no bell any more."""
        self.bell.ring = lambda rank, count: True  # type: ignore[method-assign]

    def turn(self) -> None:
        """One turn as the loop takes it, without sleeping."""
        self.transport.flush()
        self.transport.listen()
        self.got += self.transport.poll()

    def until(self, holds: Callable[[], object], what: str = "it") -> None:
        until(holds, self.turn, what)

    def barrier(self) -> None:
        """Wait for all ranks, without a blocking call: if one of them has failed, the others must continue."""
        until(self._sync.Ibarrier().Test, lambda: None, "the others")

    def settle(self) -> None:
        """Take turns until all ranks have sent everything and received all bells."""
        self.until(lambda: not self.transport.sending, "its sends to end")
        here = self._sync.Ibarrier()
        self.until(here.Test, "everybody's sends to end")
        self.turn()
        self.barrier()


@contextmanager
def linked(near: list[int], polling: bool = False, count: int = 0) -> Iterator[Link]:
    """A transport on every rank, connected to ``near``. ``count``: the initial value of the message counters."""
    transport = MpiTransport(WORLD)
    bell = None
    if not polling:
        bell = Doorbell(RANK, b"s" * SECRET_BYTES, folder())
        bell.meet(transport.exchange(bell.own(several_hosts=False)), near)
    link = Link(transport, bell, WORLD.Dup())
    transport.connect(bell, near, count)
    link.barrier()
    yield link
    link.barrier()
    transport.close(clean=False)
