"""The load: each client sends random requests of a mix (see ``request_mix``), several at a time, through any broker."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Append, Put, RootInfo
from fluxmpi.message import OK
from fluxmpi.simulator.plan import Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.random_requests import RandomRequests
from fluxmpi.simulator.workload.request_mix import (
    CELL,
    COUNTS,
    DIRECTORIES,
    HOT,
    HUGE,
    LINKED_KEYS,
    LINKS,
    MIXES,
    PATTERNS,
    TOPICS,
    TRANSACTIONS,
)
from fluxmpi.simulator.workload.transcript import ClientCall, SubscribedCall


class PlannedFence(NamedTuple):
    """A fence that a client contributes to when ``steps_left`` are left. ``equal``: all contribute the same value."""

    steps_left: int
    name: str
    size: int
    equal: bool


class LoadGenerator:
    """Drives one client: sends a random request, waits for its think time, and repeats until ``steps`` are done."""

    def __init__(self, client: Client, plan: Plan, rng: Random, steps: int) -> None:
        self.client = client
        self.steps = steps
        self.quits_after = rng.randrange(1, steps + 1) if rng.random() < plan.faults.quits else -1
        self.fences: list[PlannedFence] = []
        """By falling ``steps_left``."""
        self.rounds = 0
        """Rounds left of the fence that several clients pass repeatedly, under one name."""
        self.passing = 0
        """The number of those clients."""
        self._round: ClientCall | None = None
        self._plan = plan
        self._rng = rng
        self._random = RandomRequests(client, plan, rng)
        self._waiting = False
        self._watches: list[ClientCall] = []
        self._subscribed: list[SubscribedCall] = []
        self._commits: list[ClientCall] = []
        self._roots: list[ClientCall] = []
        mix = MIXES[plan.mix] | (TRANSACTIONS if plan.transactions else {})
        self._actions = list(mix)
        self._weights = list(mix.values())
        client.on_idle = self._continue

    @property
    def done(self) -> bool:
        client = self.client
        return client.gone or (self.steps == 0 and not self.fences and not self.rounds and not client.open)

    def act(self) -> None:
        """Send one request now, and the next one later."""
        client = self.client
        if client.gone:
            return
        while self.fences and self.fences[0].steps_left >= self.steps:
            _, name, size, equal = self.fences.pop(0)
            value = Val("raw", b"the same for all") if equal else self._random.value(40)
            self._sent(client.fence(name, size, [Put(f"fence.{name}.{client.name}", value)]))
        self._pass()
        if self.steps == 0:
            return
        waiting = sum(call.topic != "kvs.fence" for call in client.open.values())
        if waiting >= self._plan.window or not client.main.open:
            self._waiting = True
            return
        self.steps -= 1
        if self.steps == self.quits_after:
            client.quit()
            return
        action = self._rng.choices(self._actions, self._weights)[0]
        getattr(self, f"_{action}")()
        self._later()

    def _later(self) -> None:
        self.client.cluster.schedule.after(self._rng.expovariate(1 / self._plan.think_s), self.act)

    def _pass(self) -> None:
        """Contribute to the next round if the last one is over."""
        if self.rounds and not self.client.gone and (self._round is None or self._round.done):
            self.rounds -= 1
            self._round = self.client.fence("round", self.passing, [Append(f"rounds.{self.client.name}", b"+")])
            self._sent(self._round)

    def _continue(self) -> None:
        if self.rounds and self._round is not None and self._round.done and not self.client.gone:
            self.client.cluster.schedule.after(self._rng.expovariate(1 / self._plan.think_s), self._pass)
        if self._waiting:
            self._waiting = False
            self._later()

    def _rank(self) -> int | None:
        """Return a broker that is up, or None."""
        up = [node.rank for node in self.client.cluster.nodes if node.up]
        return self._rng.choice(up) if up else None

    # ------------------------------------------------------------------------------------------------------- requests

    def _commit(self) -> None:
        rng, ops, namespace = self._rng, self._random.transaction(), self._random.namespace()
        if not self._plan.transactions or rng.random() < 0.7:
            self._sent(self.client.commit(ops, namespace))
            return
        guards = [self._random.guard(namespace) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
        otherwise = self._random.transaction()[:4] if guards and rng.random() < 0.5 else []
        events = []
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._random.serial += 1
            events.append(
                (self._random.pick(("run.ready", "run.commit")), f"{self.client.name}.{self._random.serial}".encode())
            )
        self._sent(self.client.commit(ops, namespace, guards, otherwise, events))

    def _add(self) -> None:
        rng = self._rng
        key = rng.choice((*COUNTS, *COUNTS, *COUNTS, self._random.pick(HOT), self._random.pick(LINKED_KEYS)))
        self._sent(self.client.add(key, rng.choice((1, 1, 2, -3, HUGE, -HUGE)), self._random.namespace()))

    def _sent(self, call: ClientCall) -> None:
        """Remember a commit or contribution; perhaps send it again later, through any broker."""
        self._commits.append(call)
        if self._rng.random() < self._plan.faults.resends:
            delay = self._rng.expovariate(1 / (4 * self._plan.think_s))
            self.client.cluster.schedule.after(delay, lambda: self._again(call))

    def _again(self, call: ClientCall) -> None:
        rank = self._rank()
        if rank is not None and not self.client.gone:
            self.client.resend(call, rank)

    def _resend(self) -> None:
        if self._commits:
            self._again(self._rng.choice(self._commits[-8:]))

    def _get(self) -> None:
        rng = self._rng
        get = self.client.read if rng.random() < 0.5 else self.client.get
        call = get(self._random.key(), self._random.namespace(), follow=rng.random() < 0.8, load=rng.random() < 0.7)
        if not call.body.load and call.body.follow and call.body.key in DIRECTORIES:
            self._random.objects.append(call)

    def _at(self) -> tuple[str, int | bytes] | None:
        """Return a namespace and a version or root of it that this client knows."""
        known = [call.answers[0].body for call in self._roots + self._commits if call.answers]
        roots = [body for body in known if isinstance(body, RootInfo) and body.ref]
        if not roots:
            return None
        root = self._rng.choice(roots)
        return root.namespace, self._rng.choice((root.version, root.version + self._rng.randrange(2), root.ref))

    def _get_at(self) -> None:
        at = self._at()
        if at is not None:
            get = self.client.read if self._rng.random() < 0.5 else self.client.get
            get(self._random.key(), at[0], at[1])

    def _list(self) -> None:
        rng = self._rng
        at = self._at() if rng.random() < 0.3 else None
        namespace, root = at or (self._random.namespace(), None)
        key = rng.choice((".", self._random.pick(DIRECTORIES), self._random.pick(LINKS), self._random.pick(HOT)))
        prefix, after = rng.choice(("", "", "k1", "k")), rng.choice(("", "", "k3"))
        listing = self.client.list_read if rng.random() < 0.5 else self.client.listing
        listing(key, namespace, root, prefix, after, rng.choice((1, 5, 1000)))

    def _getroot(self) -> None:
        getroot = self.client.root_shown if self._rng.random() < 0.5 else self.client.getroot
        self._roots.append(getroot(self._random.namespace()))

    def _fresh(self) -> None:
        self._roots.append(self.client.getroot(self._random.namespace(), fresh=True))

    def _get_fresh(self) -> None:
        """Read a hot key at a version that was the newest when its fresh root was answered."""
        ready = [call for call in self._roots[-4:] if call.body.fresh and call.answers and call.answers[0].status == OK]
        if ready:
            root = self._rng.choice(ready).answers[0].body
            self.client.get(self._random.pick((*HOT, *COUNTS, CELL)), root.namespace, root.ref)

    def _use_known_version(self) -> None:
        """Wait for the version of another client's commit, or read at its root, as if that client had passed it on."""
        calls = self.client.transcript.calls[-60:]
        commits = [
            call for call in calls if call.topic == "kvs.commit" and call.body.namespace in self._plan.namespaces
        ]
        roots = [call.answers[0].body for call in commits if call.answers and call.answers[0].status == OK]
        if roots:
            root = self._rng.choice(roots)
            if self._rng.random() < 0.5:
                self.client.wait_version(root.version, root.namespace)
            else:
                self.client.get(self._random.pick(HOT), root.namespace, root.ref)

    def _getroot_at(self) -> None:
        at = self._at()
        if at is not None and isinstance(at[1], int):
            self.client.getroot(at[0], at=at[1])

    def _watch(self) -> None:
        rng = self._rng
        recursive = rng.random() < 0.5
        key = (
            rng.choice((".", self._random.pick(DIRECTORIES), self._random.pick(LINKED_KEYS)))
            if recursive
            else self._random.key()
        )
        namespace, more = self._random.namespace(), {}
        if self._plan.mix == "watched":  # every watch reports all versions: from the initial state, or after a version
            if rng.random() < 0.5:
                more["after"] = max(0, self.client.session.at_least(namespace) - rng.choice((0, 1, 3, 20)))
        else:
            if not recursive and rng.random() < 0.5:
                key, more["glob"] = self._random.pick(PATTERNS), True
            if rng.random() < 0.02:
                namespace, more["wait"] = "nowhere", True
            else:
                more |= self._options(namespace)
            if not (recursive or "glob" in more or "after" in more) and rng.random() < 0.3:
                key, more["uniq"] = self._random.pick(HOT), False
        call = self.client.watch(key, namespace, recursive, rng.random() < 0.9, **more)
        if rng.random() < 0.4:
            self.client.slow(call, rng.expovariate(1 / (20 * self._plan.think_s)))
        self._watches.append(call)

    def _options(self, namespace: str) -> dict[str, Any]:
        """Return random options of a watch: where it begins and ends, and its credit."""
        rng = self._rng
        more: dict[str, Any] = {
            "latest": rng.random() < 0.25,
            "initial": rng.random() < 0.8,
            "wait": rng.random() < 0.3,
        }
        if rng.random() < 0.3:
            known = self.client.session.at_least(namespace)
            more["after"] = max(0, known + rng.choice((0, 0, -1, -3, -20, -1000, 1)))
        if rng.random() < 0.2:
            more["count"] = rng.randrange(1, 5)
        if rng.random() < 0.3:
            more["window"] = rng.choice((1, 300, 2000))
        return more

    def _progress(self) -> None:
        if self._watches:
            self.client.progress(self._rng.choice(self._watches))

    def _cancel(self) -> None:
        if self._watches:
            self.client.cancel(self._watches.pop(self._rng.randrange(len(self._watches))))

    def _publish(self) -> None:
        self._random.serial += 1
        topic = self._random.pick(("run.ready", "run.done", "log.line"))
        self.client.publish(topic, f"{self.client.name}.{self._random.serial}".encode())

    def _subscribe(self) -> None:
        self._subscribed.append(self.client.subscribe(self._random.pick(TOPICS)))

    def _unsubscribe(self) -> None:
        if self._subscribed:
            subscribed = self._subscribed.pop()
            if subscribed.call.done:
                self.client.unsubscribe(subscribed)

    def _store(self) -> None:
        blob = self._random.value(self._rng.choice((10, 400, 3000))).data
        digest = self.client.cluster.digest(blob)
        self.client.transcript.blobs[digest] = blob
        self._random.stored.append((self.client.store(blob), len(blob)))

    def _load(self) -> None:
        ready = [call for call, _ in self._random.stored if call.answers and call.answers[0].status == OK]
        if ready:
            self.client.load(self._rng.choice(ready).answers[0].body.ref)

    def _map(self) -> None:
        """Map one of few values, so that clients share them. Some are wrong: a wrong size, or a missing blob."""
        rng = self._rng
        ready = self._random.ready()[:3]
        if not ready:
            return
        parts = [ready[index % len(ready)] for index in range(rng.choice((1, 2, 5, 12)))]
        size = sum(size for _, size in parts) + rng.choice((0, 0, 0, 0, 1, -1))
        refs = [ref for ref, _ in parts]
        if rng.random() < 0.1:
            refs[-1] = rng.randbytes(len(refs[-1]))
        self.client.map(refs, size)

    def _dropcache(self) -> None:
        self.client.dropcache()

    def _collect(self) -> None:
        self.client.call("gc.run", None)

    def _ping(self) -> None:
        self.client.ping(self._rng.randrange(self._plan.shape.ranks))

    def _run(self) -> None:
        words = self._rng.choice((["echo", "hello"], ["exit", "3"], ["sleep", "0.05"], ["no-such-program"]))
        self.client.run(words, self._rng.randrange(self._plan.shape.ranks))

    def _status(self) -> None:
        self.client.call("overlay.status", None, target=0)

    def _save(self) -> None:
        self.client.save(f"file{self._rng.randrange(2)}")

    def _restore(self) -> None:
        if self._plan.reference_steps or self._plan.past_steps:  # it would restore the namespaces of these clients
            return
        self.client.restore(f"file{self._rng.randrange(2)}")

    def _move(self) -> None:
        rank = self._rank()
        if rank is not None:
            self.client.move(rank, leave=self._rng.random() < 0.5)


def load_generators(clients: list[Client], plan: Plan) -> list[LoadGenerator]:
    """Return a generator for each client, and distribute the plan's steps and fences."""
    rng = plan.rng("workload")
    found = []
    for index, client in enumerate(clients):
        steps = plan.steps // len(clients) + (index < plan.steps % len(clients))
        found.append(LoadGenerator(client, plan, plan.rng(client.name), max(1, steps)))
    staying = [one for one in found if one.quits_after < 0]
    for number in range(plan.fences if staying else 0):
        size, equal = rng.randint(1, 2 * len(staying)), rng.random() < 0.5
        for _ in range(size):
            one = rng.choice(staying)
            one.fences.append(PlannedFence(rng.randint(0, one.steps), f"f{number}", size, equal))
    passing = rng.sample(staying, rng.randint(1, len(staying))) if staying and plan.rounds else []
    for one in passing:
        one.rounds, one.passing = plan.rounds, len(passing)
    for one in staying:
        one.fences.sort(key=lambda fence: -fence.steps_left)
    return found
