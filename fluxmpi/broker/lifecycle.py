"""The lifecycle of an instance: start of the initial program, and an ordered end.

    RUN ──shutdown, signal, program's end, lost rank──▶ STOP ──▶ SAVE ──▶ END ──▶ GONE

Rank 0 decides. In STOP it sends SIGTERM to the initial program, if that still runs, and SIGKILL later. In SAVE the
checkpoint service writes the store, if the instance has a file. In END a broker has sent ``lifecycle.end`` to its
children and waits for a ``lifecycle.bye`` from each. After the last one, or after a time limit, it sends bye to its
parent and has the loop exit. So every broker ends after its whole subtree, and rank 0 last.

``lifecycle.end`` is the last message to a child: nothing is sent to it any more, not even a heartbeat. A child without
children finalizes MPI at once, without a barrier, and MPICH over OFI ends a process that sends to one that has
finished.

A lost rank ends the instance with status 1 and a text that names the rank and its host. A broker that loses its parent,
or rank 0, ends its own subtree in the same way.

Invariants: the state only moves to the right; the first cause determines the exit status, and a later failure can only
change a 0 to 1.

**The newest checkpoint.** Rank 0 publishes each file that it has written, or started from, down the tree
(``lifecycle.checkpoint``). So a broker that is cut off from rank 0 can still say what is saved, and how many versions
are not. If the file cannot be written at the end, the fallbacks are tried in order, and the reason names each
file that could not be written, and the one that has the store.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import FailLater, GetAttr, Rescued, Shutdown
from fluxmpi.errors import InstanceEnding, InvalidRequest, decode_error
from fluxmpi.jobs.wire import Signal, Spawn, Spawned
from fluxmpi.kvs.wire import Save, Saved, SavedFile
from fluxmpi.machine import NEVER, Machine, Sender, Topic
from fluxmpi.message import (
    CONTROL,
    LAUNCHER,
    LOOP,
    MORE,
    OK,
    REQUEST,
    Body,
    Message,
    control,
    reply,
)
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import LostRank

END_GRACE_S = 5.0
"""Time limit for the children's bye, and for the initial program to end after SIGTERM."""

END_GRACE_PER_LEVEL_S = 1.0
"""A broker waits longer than its children do, so that the error names the silent broker, and not one that waits for
it.
"""

PROGRAM = 0
"""The id of the initial program at the launcher; the exec service counts from 1."""

RESCUE_S = 600.0
"""Time limit for saving the store after the broker of rank 0 has failed."""

SIGINT, SIGKILL, SIGTERM, SIGNAL_MAX = 2, 9, 15, 64

_decode_shutdown = Body(Shutdown)
_decode_getattr = Body(GetAttr)
_decode_lost = Body(LostRank)
_decode_spawned = Body(Spawned)
_decode_signal = Body(int)
_decode_rescued = Body(Rescued)
_decode_fail = Body(FailLater)
_decode_checkpoint = Body(SavedFile)
_decode_saved = Body(Saved)


class LifecycleState(enum.IntEnum):
    RUN = 0
    STOP = 1
    SAVE = 2
    END = 3
    GONE = 4


class Lifecycle(Machine):
    """The ``lifecycle`` service of one broker."""

    name = "lifecycle"

    def __init__(
        self,
        config: Config,
        router: Router,
        version: Callable[[], int] = lambda: 0,
        newest_checkpoint: SavedFile | None = None,
    ) -> None:
        """``version``: returns the primary namespace's newest version at this broker.

        ``newest_checkpoint``: at rank 0, the file that the instance starts from.
        """
        super().__init__()
        self.version = version
        self.newest_checkpoint = newest_checkpoint
        self.cut_off = False
        """It ended its subtree itself: no broker above can say why."""
        self._fallbacks = list(config.checkpoint_fallbacks)
        self._fault = ""
        """What a client has asked this broker to fail with."""
        self._save_errors: list[str] = []
        """Why the checkpoint file, and the fallbacks tried so far, could not be written at the end."""
        self._config = config
        self.router = router
        self.state = LifecycleState.RUN
        self.ending = Shutdown()
        """The reason and the exit status; valid from STOP on."""
        self._children: dict[int, None] = {}
        """Children whose bye has not arrived."""
        self._program_runs = False
        self._save_tag = 0
        self._started = 0.0
        client, machine, loop = Sender.CLIENT, Sender.MACHINE, Sender.LOOP
        self.topics = {
            "lifecycle.shutdown": Topic(REQUEST, client | machine, self._shutdown, Shutdown),
            "lifecycle.getattr": Topic(REQUEST, client, self._getattr, GetAttr, isolated=True),
            "lifecycle.lsattr": Topic(REQUEST, client, self._lsattr, isolated=True),
            "lifecycle.end": Topic(CONTROL, Sender.PARENT, self._end_from_parent, Shutdown),
            "lifecycle.bye": Topic(CONTROL, Sender.CHILD, self._bye_from_child),
            "lifecycle.checkpoint": Topic(CONTROL, Sender.PARENT | machine, self._checkpoint_saved, SavedFile),
            "lifecycle.lost": Topic(CONTROL, machine, self._lost_rank, LostRank),
            "lifecycle.stop": Topic(CONTROL, loop, self._stop, Shutdown),
            "lifecycle.signal": Topic(CONTROL, loop, self._signal, int),
            "lifecycle.program": Topic(CONTROL, machine, self._program_ended, Spawned),
            "lifecycle.rescued": Topic(CONTROL, loop, self._rescued, Rescued),
        }
        if config.debug:
            self.topics["lifecycle.fail"] = Topic(REQUEST, client, self._fail_later, FailLater)

    def start(self, now: float) -> list[Message]:
        """Start the initial program at rank 0: all ranks are up."""
        self._started = now
        out = [] if self.newest_checkpoint is None else self._checkpoint(self.newest_checkpoint)
        if self.router.rank or not self._config.command:
            return out
        self._program_runs = True
        spawn = Spawn(PROGRAM, list(self._config.command), None, {}, b"", inherit=True)
        return [*out, control("launcher.spawn", spawn, LAUNCHER)]

    def _shutdown(self, msg: Message, now: float) -> list[Message]:
        shutdown = _decode_shutdown(msg)
        if not 0 <= shutdown.status <= 255:
            raise InvalidRequest(f"invalid exit status {shutdown.status}: use 0 to 255")
        if self.router.rank:
            raise InvalidRequest("lifecycle.shutdown goes to rank 0")
        if self.state != LifecycleState.RUN:
            raise InstanceEnding("the instance is ending already")
        return [reply(msg), *self._shut_down(shutdown, now)]

    def _getattr(self, msg: Message, now: float) -> list[Message]:
        name = _decode_getattr(msg).name
        try:
            return [reply(msg, self._attributes(now)[name])]
        except KeyError:
            raise InvalidRequest(f"there is no attribute '{name}': lsattr lists them") from None

    def _lsattr(self, msg: Message, now: float) -> list[Message]:
        return [reply(msg, self._attributes(now))]

    def _fail_later(self, msg: Message, now: float) -> list[Message]:
        """Fail with the next tick: in an instance for tests only."""
        self._fault = _decode_fail(msg).reason
        self.deadline = now
        return [reply(msg)]

    def _attributes(self, now: float) -> dict[str, str]:
        config = self._config
        newest = self.newest_checkpoint
        return {
            "rank": str(config.rank),
            "size": str(config.size),
            "hostname": config.hosts[config.rank],
            "hostlist": ",".join(config.hosts),
            "instance": config.instance,
            "topology": config.topology,
            "hash": config.algorithm,
            "parent": str(self.router.parent),
            "state": self.state.name,
            "starttime": f"{self._started:.6f}",
            "checkpoint": config.checkpoint,
            "checkpoint-every": f"{config.checkpoint_every_s:g}",
            "checkpoint-newest": "" if newest is None else newest.path,
            "checkpoint-time": "" if newest is None else f"{newest.time:.6f}",
            "checkpoint-age": "" if newest is None else f"{max(0.0, now - newest.time):.3f}",
            "checkpoint-version": "" if newest is None else str(newest.version),
            "checkpoint-behind": str(self.version() - (0 if newest is None else newest.version)),
            **config.attributes,
        }

    def _end_from_parent(self, msg: Message, now: float) -> list[Message]:
        self.router.parent_ended = True
        return self._end(_decode_shutdown(msg), now)

    def _bye_from_child(self, msg: Message, now: float) -> list[Message]:
        return self._bye(msg.hop, now)

    def _checkpoint_saved(self, msg: Message, now: float) -> list[Message]:
        return self._checkpoint(_decode_checkpoint(msg))

    def _checkpoint(self, saved: SavedFile) -> list[Message]:
        """Remember the newest checkpoint, and pass it down; to no child that was ordered to end."""
        self.newest_checkpoint = saved
        if self.state >= LifecycleState.END:
            return []
        return [control("lifecycle.checkpoint", saved, child) for child in self.router.live_children()]

    def _lost_rank(self, msg: Message, now: float) -> list[Message]:
        lost: LostRank = _decode_lost(msg)
        if not 0 <= lost.rank < self.router.size:
            raise InvalidRequest(f"rank {lost.rank} does not exist")
        return self._lost(lost, now)

    # ------------------------------------------------------------------------------------------- causes of the end

    def _stop(self, msg: Message, now: float) -> list[Message]:
        return self._shut_down(_decode_shutdown(msg), now)

    def _program_ended(self, msg: Message, now: float) -> list[Message]:
        spawned: Spawned = _decode_spawned(msg)
        self._program_runs = False
        status = spawned.status or 0
        if self.state == LifecycleState.RUN:
            return self._shut_down(Shutdown(status, spawned.error), now)
        return self._save(now) if self.state == LifecycleState.STOP else []

    def _signal(self, msg: Message, now: float) -> list[Message]:
        """Pass SIGINT to the initial program, if one runs; any other signal ends the instance."""
        signal: int = _decode_signal(msg)
        if not 0 < signal <= SIGNAL_MAX:
            raise InvalidRequest(f"{signal} is no signal")
        if self.state != LifecycleState.RUN:
            return []
        if self.router.rank:
            return [self.ask("lifecycle.shutdown", Shutdown(128 + signal, f"signal {signal}"), 0)]
        if signal == SIGINT and self._program_runs:
            return [control("launcher.signal", Signal(PROGRAM, signal), LAUNCHER)]
        return self._shut_down(Shutdown(128 + signal, f"signal {signal}"), now)

    def _lost(self, lost: LostRank, now: float) -> list[Message]:
        """End the instance for any lost rank; a broker that is cut off from rank 0 ends its own subtree."""
        if lost.rank in self._children:
            return self._bye(lost.rank, now)
        if self.state >= LifecycleState.END:
            return []
        host = self._config.hosts[lost.rank]
        shutdown = Shutdown(1, f"broker {lost.rank} ({host}) is gone: {lost.reason}", lost=True)
        if self.router.rank == 0:
            return self._shut_down(shutdown, now)
        if lost.rank in (0, self.router.parent):
            self.cut_off = True
            return self._end(shutdown, now)
        return []

    # ---------------------------------------------------------------------------------------- a broker that has failed

    def fail(self, reason: str, rescuing: bool, now: float) -> list[Message]:
        """End the instance, because this broker has failed: see ``broker/failed``.

        Rank 0 ends it after ``lifecycle.rescued`` if that follows, another rank asks rank 0 to.
        """
        host = self._config.hosts[self.router.rank]
        shutdown = Shutdown(1, f"broker {self.router.rank} ({host}) failed: {reason}", failed=True)
        if self.router.rank == 0:
            if not rescuing:
                return self._end(shutdown, now)
            self.state = LifecycleState.SAVE
            self.ending = shutdown
            self.deadline = now + RESCUE_S
            return []
        if self.router.parent in self.router.lost or 0 in self.router.lost:
            self.cut_off = True
            return self._end(shutdown, now)
        return [self.ask("lifecycle.shutdown", shutdown, 0)]

    def _rescued(self, msg: Message, now: float) -> list[Message]:
        return self._end_with(_decode_rescued(msg), now)

    def _end_with(self, rescued: Rescued, now: float) -> list[Message]:
        """Continue with END: the driver has saved the store of this failed broker, or could not."""
        if self.state != LifecycleState.SAVE:
            return []
        out: list[Message] = []
        if rescued.problem:
            self._worsen(rescued.problem)
        if rescued.file is not None:
            out += self._checkpoint(rescued.file)
        return [*out, *self._end(self.ending, now)]

    # ------------------------------------------------------------------------------------------- steps of the end

    def _shut_down(self, shutdown: Shutdown, now: float) -> list[Message]:
        """End the program, then save the checkpoint if there is a file, then END. Rank 0 only."""
        if self.state != LifecycleState.RUN:
            return []
        self.state = LifecycleState.STOP
        self.ending = shutdown
        if not self._program_runs:
            return self._save(now)
        self.deadline = now + END_GRACE_S
        return [control("launcher.signal", Signal(PROGRAM, SIGTERM), LAUNCHER)]

    def _save(self, now: float) -> list[Message]:
        self.state = LifecycleState.SAVE
        self.deadline = NEVER
        if not self._config.checkpoint:
            return self._end(self.ending, now)
        return self._ask_save(Save())

    def _ask_save(self, save: Save) -> list[Message]:
        ask = self.ask("checkpoint.save", save, 0)
        self._save_tag = ask.tag
        return [ask]

    def answered(self, msg: Message, now: float) -> list[Message]:
        """Continue with END after the checkpoint was written, or with the next fallback, or without any.

        A failure is reported with the end.
        """
        if msg.status == MORE or self.state != LifecycleState.SAVE or msg.tag != self._save_tag:
            return []
        if msg.status != OK:
            error = decode_error(msg.status, msg.body)
            if error.text not in self._save_errors:
                self._save_errors.append(error.text)
            if self._fallbacks:
                return self._ask_save(Save(self._fallbacks.pop(0), verify=True))
            self._worsen(f"the checkpoint was not written: {' '.join(self._save_errors)}")
        elif self._save_errors:
            path = _decode_saved(msg).path
            self._worsen(
                f"the checkpoint was not written: {' '.join(self._save_errors)} The store was saved to {path} instead: "
                f"resume with --checkpoint {path} --resume"
            )
        return self._end(self.ending, now)

    def _worsen(self, what: str) -> None:
        """Add a failure during the end: status 0 becomes 1, and the reason so far is kept."""
        ending = self.ending
        reason = f"{ending.reason}; {what}" if ending.reason else what
        self.ending = Shutdown(ending.status or 1, reason, ending.lost, ending.failed)

    def _end(self, shutdown: Shutdown, now: float) -> list[Message]:
        if self.state >= LifecycleState.END:
            return []
        self.state = LifecycleState.END
        self.ending = shutdown
        self._children = dict.fromkeys(self.router.live_children())
        self.deadline = now + END_GRACE_S + END_GRACE_PER_LEVEL_S * self.router.height
        out = [control("lifecycle.end", shutdown, child) for child in self._children]
        out += [control("loop.hang-up", child, LOOP) for child in self._children]
        return out or self._gone(now)

    def _bye(self, child: int, now: float) -> list[Message]:
        self._children.pop(child, None)
        return [] if self._children else self._gone(now)

    def tick(self, now: float) -> list[Message]:
        """Handle a time limit: kill the program, or mark the children without bye as lost and name them."""
        self.deadline = NEVER
        if self._fault:
            raise RuntimeError(self._fault)
        if self.state == LifecycleState.SAVE:
            return self._end_with(Rescued(None, f"the store was not saved in {RESCUE_S:.0f} s"), now)
        if self.state == LifecycleState.STOP:
            return [control("launcher.signal", Signal(PROGRAM, SIGKILL), LAUNCHER)]
        silent = list(self._children)
        for child in silent:
            self.router.mark_lost(child, "it did not end in time")
        if silent:
            names = ", ".join(f"{child} ({self._config.hosts[child]})" for child in silent)
            self._worsen(f"broker {names} did not end in time")
        return self._gone(now)

    def _gone(self, now: float) -> list[Message]:
        if self.state != LifecycleState.END:
            return []
        self.state = LifecycleState.GONE
        self.deadline = NEVER
        out = []
        parent = self.router.parent
        if parent >= 0 and parent not in self.router.lost:
            out.append(control("lifecycle.bye", None, parent))
        return [*out, control("loop.exit", self.ending, LOOP)]

    def statistics(self) -> dict[str, float]:
        newest = self.newest_checkpoint
        return {
            "state": int(self.state),
            "started": self._started,
            "checkpoint_time": 0.0 if newest is None else newest.time,
            "checkpoint_version": -1 if newest is None else newest.version,
        }
