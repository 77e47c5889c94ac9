"""Scenarios: one race per file, in sentences, played by the same instance, clients and checkers as the random runs.

A file's first paragraph says what must hold. Then each line is one step; ``#`` begins a comment. A client's request is only
sent; virtual time passes when a client waits::

    A reader that moves to a slow broker waits for its version.

    4 brokers as kary:1
    anna is at rank 0
    rank 3 is paused
    anna puts 1 in a
    anna waits
    anna moves to rank 3
    anna reads a
    1 second passes
    anna has no answer
    rank 3 resumes
    anna waits
    anna has read 1

``STEPS`` lists all sentences. At the end the clients must be done, the instance idle, and no checker may find a
violation.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import replace

from fluxmpi import errors
from fluxmpi.kvs.objects import Link, Val
from fluxmpi.kvs.wire import Append, Got, Mkdir, Op, Put, Unlink
from fluxmpi.message import ANY, MORE, OK
from fluxmpi.simulator.cluster import Shape
from fluxmpi.simulator.inspection import end_state
from fluxmpi.simulator.judgement import judge_run
from fluxmpi.simulator.plan import Faults, Plan
from fluxmpi.simulator.run import END_S, Run, RunReport
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.transcript import ClientCall

PATIENCE_S = 30.0
"""How long ``… waits`` waits, in virtual seconds."""


class Unexpected(AssertionError):
    """A sentence that states a fact is false."""


class ScenarioPlayer:
    """Plays a scenario: an instance, and clients by name. One method per sentence."""

    def __init__(self, seed: int, trace: Trace) -> None:
        self._seed = seed
        self._trace = trace
        self.run: Run | None = None
        self.clients: dict[str, Client] = {}
        self.calls: dict[str, list[ClientCall]] = {}
        self.killed: list[int] = []
        self.ended = False

    @property
    def world(self) -> Run:
        if self.run is None:
            raise ValueError("the first step must say how many brokers there are")
        return self.run

    # ------------------------------------------------------------------------------------------------ the instance

    def brokers(self, count: str, topology: str | None, cache: str | None, nodes: str | None) -> None:
        shape = Shape(int(count), topology or "kary:2", check_every=1)
        if cache:
            shape = replace(shape, cache_bytes_max=int(cache), nodes_max=int(nodes or 4))
        self.run = Run(Plan(self._seed, shape, Faults(), 0, 0), self._trace)
        self.run.cluster.start()
        self.passes("0.1")

    def passes(self, seconds: str) -> None:
        schedule = self.world.cluster.schedule
        schedule.run(schedule.now + float(seconds))

    def pauses(self, rank: str) -> None:
        self.world.cluster.pause(int(rank), 1e9)

    def resumes(self, rank: str) -> None:
        self.world.cluster.resume(int(rank))

    def blocks(self, source: str, target: str, seconds: str) -> None:
        self.world.cluster.network.block(int(source), int(target), float(seconds))

    def kill(self, rank: str) -> None:
        self.killed.append(int(rank))
        self.world.cluster.kill(int(rank))

    def all_end(self, rank: str) -> None:
        cluster = self.world.cluster
        cluster.schedule.run(cluster.now + END_S, lambda: cluster.ended)
        self.passes("1")
        wrong = [
            text
            for text in end_state.all_ended(cluster, [int(rank)], 1)
            if not text.startswith(f"end: rank {rank} ended")
        ]
        self._must(not wrong, "; ".join(wrong))
        self.ended = True

    # ------------------------------------------------------------------------------------------------- the clients

    def arrives(self, name: str, rank: str) -> None:
        world = self.world
        self.clients[name] = Client(name, world.cluster, world.monitor, world.transcript, int(rank))
        self.calls[name] = []

    def _did(self, name: str, call: ClientCall) -> None:
        self.calls[name].append(call)

    def _commits(self, name: str, *ops: Op) -> None:
        self._did(name, self.clients[name].commit(list(ops)))

    def puts(self, name: str, pairs: str) -> None:
        ops = [Put(key, _val(value)) for value, key in re.findall(r"(\S+) in ([^\s,]+)", pairs)]
        self._commits(name, *ops)

    def appends(self, name: str, value: str, key: str) -> None:
        self._commits(name, Append(key, value.encode()))

    def unlinks(self, name: str, key: str) -> None:
        self._commits(name, Unlink(key))

    def makes(self, name: str, key: str) -> None:
        self._commits(name, Mkdir(key))

    def links(self, name: str, key: str, target: str) -> None:
        self._commits(name, Put(key, Link(target)))

    def joins(self, name: str, fence: str, size: str, value: str, key: str) -> None:
        self._did(name, self.clients[name].fence(fence, int(size), [Put(key, _val(value))]))

    def exits(self, name: str) -> None:
        self.clients[name].quit()

    def leaves_fence(self, name: str) -> None:
        self.clients[name].leave_fence(self._last(name, "kvs.fence"))

    def again(self, name: str, rank: str | None) -> None:
        call = next(call for call in reversed(self.calls[name]) if call.id is not None)
        self.clients[name].resend(call, None if rank is None else int(rank))

    def moves(self, name: str, how: str, rank: str) -> None:
        self.clients[name].move(int(rank), leave=how == "reconnects")

    def reads(self, name: str, key: str, version: str | None) -> None:
        self._did(name, self.clients[name].get(key, at=None if version is None else int(version)))

    def parks(self, name: str, key: str, rank: str, version: str) -> None:
        self._did(name, self.clients[name].get_at_rank(key, int(rank), int(version)))

    def broker_has(self, rank: str, count: str, what: str) -> None:
        found = self.world.cluster.nodes[int(rank)].broker.statistics()["kvs"][what]
        self._must(found == int(count), f"rank {rank} has {found} {what}")

    def waits_for(self, name: str, version: str, rank: str | None) -> None:
        self._did(name, self.clients[name].wait_version(int(version), target=ANY if rank is None else int(rank)))

    def watches(self, name: str, below: str | None, key: str) -> None:
        self._did(name, self.clients[name].watch(key, recursive=below is not None))

    def subscribes(self, name: str, prefix: str) -> None:
        self.clients[name].subscribe(prefix)

    def publishes(self, name: str, topic: str) -> None:
        self._did(name, self.clients[name].publish(topic, b""))

    def waits(self, name: str) -> None:
        clients = list(self.clients.values()) if name == "everyone" else [self.clients[name]]
        schedule = self.world.cluster.schedule
        done = schedule.run(schedule.now + PATIENCE_S, lambda: not any(client.open for client in clients))
        calls = [str(call) for client in clients for call in client.open.values()]
        self._must(done, f"no answer to {'; '.join(calls)}")

    # ---------------------------------------------------------------------------------------------------- statements

    def _must(self, right: bool, text: str) -> None:
        if not right:
            raise Unexpected(text)

    def _last(self, name: str, *topics: str) -> ClientCall:
        return next(call for call in reversed(self.calls[name]) if not topics or call.topic in topics)

    def has_read(self, name: str, value: str) -> None:
        answer = self._last(name, "kvs.get").answers[0]
        found = (
            answer.body.data.decode() if isinstance(answer.body, Got) and answer.body.data is not None else answer.body
        )
        self._must(found == value, f"{name} has read {found}")

    def has_version(self, name: str, version: str) -> None:
        found = [
            answer.body.version for answer in self._last(name, "kvs.commit", "kvs.fence").answers if answer.status == OK
        ]
        self._must(bool(found) and set(found) == {int(version)}, f"{name} has version {found}")

    def got_error(self, name: str, error: str) -> None:
        answers = self._last(name).answers
        names = [errors.BY_CODE[answer.status].__name__ for answer in answers if answer.status > OK]
        self._must(error in names, f"{name} got {names or answers}")

    def no_answer(self, name: str) -> None:
        answers = self._last(name).answers
        self._must(not answers, f"{name} has an answer: {answers}")

    def was_notified(self, name: str, values: str) -> None:
        """Compare the values of all notifications: several of one are joined by a plus; an empty one is ``nothing``.

        A removed key is ``gone``.
        """
        found = []
        for answer in self._last(name, "kvs.watch").answers:
            if answer.status == MORE:
                texts = [_text(change.object) for change in answer.body.changes]
                found.append("+".join(texts) or "nothing")
        self._must(", ".join(found) == values, f"{name} was notified of {', '.join(found)}")

    def received(self, name: str, topics: str) -> None:
        mine = [subscribed for subscribed in self.world.transcript.subscriptions if subscribed.call.client == name]
        found = [topic for subscribed in mine for topic, _, _ in subscribed.events]
        self._must(", ".join(found) == topics, f"{name} received {', '.join(found)}")

    def version_is(self, version: str) -> None:
        made = self.world.leader_log.setroots["primary"]
        self._must(len(made) == int(version), f"the version is {len(made)}")

    # ----------------------------------------------------------------------------------------------------- the end

    def finish(self) -> list[str]:
        """Return what is wrong at the end."""
        world = self.world
        found: list[str] = []
        if not self.ended:
            found += [f"hang: {call}" for client in self.clients.values() for call in client.open.values()]
            found += world.settle()
            found += end_state.complete_trees(world.cluster)
            world.shut_down()
            found += end_state.all_ended(world.cluster, [], 0)
        return found + world.monitor.violations + judge_run(world.transcript, world.leader_log, world.cluster)


def _val(text: str) -> Val:
    return Val("raw", text.encode())


def _text(obj: object) -> str:
    return obj.data.decode() if isinstance(obj, Val) else "gone" if obj is None else str(obj)


NAME = r"([a-z]+)"

STEPS: list[tuple[str, Callable[..., None]]] = [
    (r"(\d+) brokers?(?: as (\S+))?(?: with caches of (\d+) bytes(?: and (\d+) nodes)?)?", ScenarioPlayer.brokers),
    (r"([\d.]+) seconds? pass(?:es)?", ScenarioPlayer.passes),
    (r"rank (\d+) is paused", ScenarioPlayer.pauses),
    (r"rank (\d+) resumes", ScenarioPlayer.resumes),
    (r"rank (\d+) is killed", ScenarioPlayer.kill),
    (r"the link from (\d+) to (\d+) is blocked for ([\d.]+) seconds?", ScenarioPlayer.blocks),
    (r"all brokers end with an error that names rank (\d+)", ScenarioPlayer.all_end),
    (rf"{NAME} is at rank (\d+)", ScenarioPlayer.arrives),
    (rf"{NAME} puts ((?:\S+ in \S+(?:, )?)+)", ScenarioPlayer.puts),
    (rf"{NAME} appends (\S+) to (\S+)", ScenarioPlayer.appends),
    (rf"{NAME} unlinks (\S+)", ScenarioPlayer.unlinks),
    (rf"{NAME} makes directory (\S+)", ScenarioPlayer.makes),
    (rf"{NAME} links (\S+) to (\S+)", ScenarioPlayer.links),
    (rf"{NAME} joins fence (\S+) of (\d+) with (\S+) in (\S+)", ScenarioPlayer.joins),
    (rf"{NAME} exits", ScenarioPlayer.exits),
    (rf"{NAME} leaves the fence", ScenarioPlayer.leaves_fence),
    (rf"{NAME} sends it again(?: at rank (\d+))?", ScenarioPlayer.again),
    (
        rf"{NAME} (moves|reconnects) to rank (\d+)",
        lambda stage, name, how, rank: stage.moves(name, how, rank),
    ),
    (rf"{NAME} reads (\S+) at rank (\d+) when it has version (\d+)", ScenarioPlayer.parks),
    (rf"{NAME} reads (\S+?)(?: at version (\d+))?", ScenarioPlayer.reads),
    (
        rf"{NAME} asks(?: rank (\d+))? for version (\d+)",
        lambda stage, name, rank, version: stage.waits_for(name, version, rank),
    ),
    (r"rank (\d+) has (\d+) (\w+)", ScenarioPlayer.broker_has),
    (rf"{NAME} watches (all below )?(\S+)", ScenarioPlayer.watches),
    (rf"{NAME} subscribes to (\S+)", ScenarioPlayer.subscribes),
    (rf"{NAME} publishes (\S+)", ScenarioPlayer.publishes),
    (rf"{NAME} waits", ScenarioPlayer.waits),
    (rf"{NAME} has read (\S+)", ScenarioPlayer.has_read),
    (rf"{NAME} has version (\d+)", ScenarioPlayer.has_version),
    (rf"{NAME} got error (\w+)", ScenarioPlayer.got_error),
    (rf"{NAME} has no answer", ScenarioPlayer.no_answer),
    (rf"{NAME} was notified of (.+)", ScenarioPlayer.was_notified),
    (rf"{NAME} received (.+)", ScenarioPlayer.received),
    (r"the version is (\d+)", ScenarioPlayer.version_is),
]

_COMPILED = [(re.compile(pattern), action) for pattern, action in STEPS]


def _find(sentence: str) -> tuple[Callable[..., None], tuple[str | None, ...]]:
    for pattern, action in _COMPILED:
        words = pattern.fullmatch(sentence)
        if words is not None:
            return action, words.groups()
    raise ValueError(f"no such step: '{sentence}'")


def play(text: str, seed: int = 1, trace: Trace | None = None) -> RunReport:
    """Play a scenario; the report's violations name the line. Raises ValueError for an unknown sentence."""
    _, _, steps = text.partition("\n\n")
    trace = trace or Trace()
    stage = ScenarioPlayer(seed, trace)
    report = RunReport(Plan(seed, Shape(1), Faults(), 0, 0))
    for line in steps.splitlines():
        sentence = line.partition("#")[0].strip()
        if not sentence:
            continue
        if stage.run is not None:
            trace.note(stage.run.cluster.now, f"=== {sentence}")
        action, words = _find(sentence)
        try:
            action(stage, *words)
        except Unexpected as error:
            report.violations.append(f"'{sentence}': {error}")
            break
        except Exception as error:
            where = "".join(traceback.format_exception(error)[-3:])
            report.violations.append(f"'{sentence}': {type(error).__name__}: {error}\n{where}")
            break
    else:
        report.violations += stage.finish()
    report.plan = stage.world.plan
    report.digest = trace.digest
    return report
