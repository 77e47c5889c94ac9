"""Stand-in of a broker in which a machine or a driver has raised: it ends the instance in order and serves nothing.

The loop puts it into the broker's place. It has machines of its own, of which it needs two: heartbeats, so that the
neighbours do not take this broker for dead while the instance ends, and the lifecycle::

    rank 0       its driver saves the store ──lifecycle.rescued──▶ END, as always
    other ranks  ask rank 0 to end the instance ──▶ rank 0 saves its checkpoint ──lifecycle.end──▶ END, as always

So the reason reaches rank 0 at once, every broker ends in the usual order and has time to say why, and no launcher
kills a broker that still saves. Requests are answered with InstanceEnding; everything else that passes is dropped: a
response must not overtake the setroot before it, which the broker may have lost when it failed.
"""

from __future__ import annotations

from dataclasses import replace

from fluxmpi.broker.admission import Admission
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.lifecycle import Lifecycle, LifecycleState
from fluxmpi.broker.registry import Registry
from fluxmpi.errors import InstanceEnding
from fluxmpi.message import CONTROL, LOCAL, REQUEST, RESPONSE, Message, reply_error
from fluxmpi.overlay.health import Health
from fluxmpi.overlay.router import Router


class FailedBroker:
    """``reason``: what has failed, in one line."""

    congestion = 0
    """See ``Broker``."""

    def __init__(self, broker: Broker, reason: str, now: float) -> None:
        config, old = broker.config, broker.lifecycle
        self.config = config
        self.reason = reason
        self.router = Router(config.rank, config.size, config.topology)
        self.router.lost = broker.router.lost
        self.router.parent_ended = broker.router.parent_ended
        version = old.version()
        own = replace(config, command=(), checkpoint="", checkpoint_fallbacks=())
        self.lifecycle = Lifecycle(own, self.router, lambda: version, old.newest_checkpoint)
        health = Health(self.router, list(config.hosts), config.heartbeat_s, now)
        self._registry = Registry([health, self.lifecycle])
        self._admission = Admission(self.router)

    def start(self, rescuing: bool, now: float) -> list[Message]:
        """Have the instance end. ``rescuing``: ``lifecycle.rescued`` follows, and the end waits for it; rank 0 only."""
        out: list[Message] = []
        self._emit(self.lifecycle.fail(self.reason, rescuing, now), now, out)
        return out

    @property
    def deadline(self) -> float:
        return self._registry.deadline()

    @property
    def gone(self) -> bool:
        return self.lifecycle.state == LifecycleState.GONE

    def step(self, msg: Message, now: float) -> list[Message]:
        out: list[Message] = []
        if msg.kind == REQUEST:
            msg.route.append(msg.hop)
            config = self.config
            where = f"broker {config.rank} ({config.hosts[config.rank]})"
            self._emit(
                [reply_error(msg, InstanceEnding(f"the instance ends: {where} failed: {self.reason}"))], now, out
            )
        elif msg.kind == CONTROL:
            self._notice(msg, now, out)
        return out

    def tick(self, now: float) -> list[Message]:
        out: list[Message] = []
        for machine in self._registry.machines:
            if machine.deadline <= now:
                self._emit(machine.tick(now), now, out)
        return out

    def disconnect(self, hop: int, now: float) -> list[Message]:
        return []

    def _notice(self, msg: Message, now: float, out: list[Message]) -> None:
        """Deliver a control message of the two machines, if its sender may send it."""
        entry = self._registry.topics.get(msg.topic)
        if entry is not None and entry.kind == CONTROL and entry.senders & self._admission.hops.get(msg.hop, 0):
            self._emit(entry.stepper.step(msg, now), now, out)

    def _emit(self, messages: list[Message], now: float, out: list[Message]) -> None:
        """Route what a machine returned; messages for LOCAL are stepped at once."""
        for msg in messages:
            if msg.kind == RESPONSE:
                msg.hop = msg.route.pop()
                if msg.hop != LOCAL and msg.hop not in self.router.lost:
                    out.append(msg)
            elif msg.kind == REQUEST:
                msg.route.append(LOCAL)
                msg.hop = self.router.parent
                out.append(msg)
            elif msg.hop != LOCAL:
                out.append(msg)
            else:
                self._notice(msg, now, out)

    def check(self) -> None:
        for machine in self._registry.machines:
            machine.check()
