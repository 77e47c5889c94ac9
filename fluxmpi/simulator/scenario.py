"""Scenarios: one race each, told in sentences, and played by the same instance, clients and checkers as the random runs.

A file's first paragraph says what must hold. Then each line is one step; ``#`` begins a remark. What a client does, it only
sends; time passes when someone waits::

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
    rank 3 goes on
    anna waits
    anna has read 1

``STEPS`` lists all sentences. At the end the clients must be done, the instance quiet, and every checker content.
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
from fluxmpi.simulator.inspection import end_state as ending
from fluxmpi.simulator.judgement import judge_run
from fluxmpi.simulator.plan import Faults, Plan
from fluxmpi.simulator.run import END_S, Report, Run
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.transcript import ClientCall

PATIENCE_S = 30.0
"""How long ``… waits`` waits, in virtual seconds."""


class Unexpected(AssertionError):
    """A sentence that says how it must be, and it is not."""


class ScenarioPlayer:
    """Where a scenario is played: an instance, and clients by name."""

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

    def goes_on(self, rank: str) -> None:
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
            text for text in ending.ended(cluster, [int(rank)], 1) if not text.startswith(f"end: rank {rank} ended")
        ]
        self._must(not wrong, "; ".join(wrong))
        self.ended = True

    # ------------------------------------------------------------------------------------------------- the clients

    def arrives(self, name: str, rank: str) -> None:
        world = self.world
        self.clients[name] = Client(name, world.cluster, world.monitor, world.history, int(rank))
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

    def quits(self, name: str) -> None:
        self.clients[name].quit()

    def gives_up(self, name: str) -> None:
        self.clients[name].gives_up(self._last(name, "kvs.fence"))

    def again(self, name: str, rank: str | None) -> None:
        call = next(call for call in reversed(self.calls[name]) if call.id is not None)
        self.clients[name].resend(call, None if rank is None else int(rank))

    def moves(self, name: str, how: str, rank: str) -> None:
        self.clients[name].move(int(rank), leave=how == "leaves")

    def reads(self, name: str, key: str, version: str | None) -> None:
        self._did(name, self.clients[name].get(key, at=None if version is None else int(version)))

    def parks(self, name: str, key: str, rank: str, version: str) -> None:
        self._did(name, self.clients[name].get_there(key, int(rank), int(version)))

    def broker_keeps(self, rank: str, count: str, what: str) -> None:
        found = self.world.cluster.nodes[int(rank)].broker.statistics()["kvs"][what]
        self._must(found == int(count), f"rank {rank} keeps {found} {what}")

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

    # ---------------------------------------------------------------------------------------------------- how it is

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

    def was_told(self, name: str, error: str) -> None:
        answers = self._last(name).answers
        names = [errors.BY_CODE[answer.status].__name__ for answer in answers if answer.status > OK]
        self._must(error in names, f"{name} was told {names or answers}")

    def no_answer(self, name: str) -> None:
        answers = self._last(name).answers
        self._must(not answers, f"{name} has an answer: {answers}")

    def saw(self, name: str, values: str) -> None:
        """The values of every notification: one, several with a plus between, or ``nothing``; a key gone is ``gone``."""
        found = []
        for answer in self._last(name, "kvs.watch").answers:
            if answer.status == MORE:
                told = [_text(change.object) for change in answer.body.changes]
                found.append("+".join(told) or "nothing")
        self._must(", ".join(found) == values, f"{name} saw {', '.join(found)}")

    def heard(self, name: str, topics: str) -> None:
        mine = [subscribed for subscribed in self.world.history.subscriptions if subscribed.call.client == name]
        found = [topic for subscribed in mine for topic, _, _ in subscribed.events]
        self._must(", ".join(found) == topics, f"{name} heard {', '.join(found)}")

    def version_is(self, version: str) -> None:
        made = self.world.ledger.setroots["primary"]
        self._must(len(made) == int(version), f"the version is {len(made)}")

    # ----------------------------------------------------------------------------------------------------- the end

    def finish(self) -> list[str]:
        """What is wrong at the end."""
        world = self.world
        found: list[str] = []
        if not self.ended:
            found += [f"hang: {call}" for client in self.clients.values() for call in client.open.values()]
            found += world.settle()
            found += ending.whole(world.cluster)
            world.shut_down()
            found += ending.ended(world.cluster, [], 0)
        return found + world.monitor.violations + judge_run(world.history, world.ledger, world.cluster)


def _val(text: str) -> Val:
    return Val("raw", text.encode())


def _text(obj: object) -> str:
    return obj.data.decode() if isinstance(obj, Val) else "gone" if obj is None else str(obj)


NAME = r"([a-z]+)"

STEPS: list[tuple[str, Callable[..., None]]] = [
    (r"(\d+) brokers?(?: as (\S+))?(?: with caches of (\d+) bytes(?: and (\d+) nodes)?)?", ScenarioPlayer.brokers),
    (r"([\d.]+) seconds? pass(?:es)?", ScenarioPlayer.passes),
    (r"rank (\d+) is paused", ScenarioPlayer.pauses),
    (r"rank (\d+) goes on", ScenarioPlayer.goes_on),
    (r"rank (\d+) is killed", ScenarioPlayer.kill),
    (r"the link from (\d+) to (\d+) is blocked for ([\d.]+) seconds?", ScenarioPlayer.blocks),
    (r"all brokers end, the others naming rank (\d+)", ScenarioPlayer.all_end),
    (rf"{NAME} is at rank (\d+)", ScenarioPlayer.arrives),
    (rf"{NAME} puts ((?:\S+ in \S+(?:, )?)+)", ScenarioPlayer.puts),
    (rf"{NAME} appends (\S+) to (\S+)", ScenarioPlayer.appends),
    (rf"{NAME} unlinks (\S+)", ScenarioPlayer.unlinks),
    (rf"{NAME} makes directory (\S+)", ScenarioPlayer.makes),
    (rf"{NAME} links (\S+) to (\S+)", ScenarioPlayer.links),
    (rf"{NAME} joins fence (\S+) of (\d+) with (\S+) in (\S+)", ScenarioPlayer.joins),
    (rf"{NAME} quits", ScenarioPlayer.quits),
    (rf"{NAME} gives up", ScenarioPlayer.gives_up),
    (rf"{NAME} sends it again(?: at rank (\d+))?", ScenarioPlayer.again),
    (
        rf"{NAME} (moves to|leaves for) rank (\d+)",
        lambda stage, name, how, rank: stage.moves(name, how.split()[0], rank),
    ),
    (rf"{NAME} reads (\S+) at rank (\d+) when it has version (\d+)", ScenarioPlayer.parks),
    (rf"{NAME} reads (\S+?)(?: at version (\d+))?", ScenarioPlayer.reads),
    (
        rf"{NAME} asks(?: rank (\d+))? for version (\d+)",
        lambda stage, name, rank, version: stage.waits_for(name, version, rank),
    ),
    (r"rank (\d+) keeps (\d+) (\w+)", ScenarioPlayer.broker_keeps),
    (rf"{NAME} watches (all below )?(\S+)", ScenarioPlayer.watches),
    (rf"{NAME} subscribes to (\S+)", ScenarioPlayer.subscribes),
    (rf"{NAME} publishes (\S+)", ScenarioPlayer.publishes),
    (rf"{NAME} waits", ScenarioPlayer.waits),
    (rf"{NAME} has read (\S+)", ScenarioPlayer.has_read),
    (rf"{NAME} has version (\d+)", ScenarioPlayer.has_version),
    (rf"{NAME} was told (\w+)", ScenarioPlayer.was_told),
    (rf"{NAME} has no answer", ScenarioPlayer.no_answer),
    (rf"{NAME} saw (.+)", ScenarioPlayer.saw),
    (rf"{NAME} heard (.+)", ScenarioPlayer.heard),
    (r"the version is (\d+)", ScenarioPlayer.version_is),
]

_COMPILED = [(re.compile(pattern), action) for pattern, action in STEPS]


def _find(sentence: str) -> tuple[Callable[..., None], tuple[str | None, ...]]:
    for pattern, action in _COMPILED:
        words = pattern.fullmatch(sentence)
        if words is not None:
            return action, words.groups()
    raise ValueError(f"no such step: '{sentence}'")


def play(text: str, seed: int = 1, trace: Trace | None = None) -> Report:
    """Play a scenario; the report's violations name the line. Raises ValueError for a sentence that is not known."""
    _, _, steps = text.partition("\n\n")
    trace = trace or Trace()
    stage = ScenarioPlayer(seed, trace)
    report = Report(Plan(seed, Shape(1), Faults(), 0, 0))
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
