"""A real broker of one rank, with its loop in a thread of this process, for tests of the client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import Shutdown
from fluxmpi.client.channel import Channel, open_channel
from fluxmpi.client.handle import Handle, connect
from fluxmpi.client.limits import DEFAULT_LIMITS, HandleLimits
from fluxmpi.drivers.clients import LIMITS, ClientLimits
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.local import LocalTransport
from fluxmpi.drivers.loop import Loop
from fluxmpi.message import LOOP, control

END_S = 20.0


class RunningBroker:
    def __init__(self, folder: Path, config: Config, client_limits: ClientLimits) -> None:
        clock = Clock()
        self.path = str(folder / "broker.0.sock")
        self.broker = Broker(config, clock.now())
        self.loop = Loop(self.broker, LocalTransport(), clock, self.path, client_limits=client_limits)
        self.status: int | None = None
        """The exit status, when the loop has ended."""
        self.thread = threading.Thread(target=self._run, name="broker")

    def _run(self) -> None:
        self.status = self.loop.run()

    def connect(self, limits: HandleLimits = DEFAULT_LIMITS) -> Handle:
        return connect(f"local://{self.path}", limits=limits)

    def open_channel(self) -> Channel:
        """A connection without services, for tests of what services are made of."""
        return open_channel(f"local://{self.path}")


@contextmanager
def running_broker(folder: Path, client_limits: ClientLimits = LIMITS, **config: object) -> Iterator[RunningBroker]:
    made = RunningBroker(folder, Config(**config), client_limits)  # type: ignore[arg-type]
    made.thread.start()
    try:
        yield made
    finally:
        made.loop.post(control("lifecycle.stop", Shutdown(0, ""), LOOP))
        made.thread.join(END_S)
        assert not made.thread.is_alive(), "the broker did not end"
