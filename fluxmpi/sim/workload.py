"""What the clients do: requests drawn from a mix, over few hot keys and many cold ones, with the names that make trouble.

    hot.a, hot.b, hot.c      everybody writes them, so commits conflict
    wide.k0 … wide.k79       a directory of many nodes
    d0.…, d1.…, d2.e.…       directories that are emptied, removed, copied and put in the place of values
    l0, l1, d0.l             links that change their targets, to directories, values, each other and nowhere
    count.a, count.b         counters, which everybody adds to, alone and combined
    cell.a                   exchanged and swapped
    hot.a.x                  a key below a value: such a commit must fail and change nothing

Every value is new: it names its client and a serial, so that a checker can tell any two apart. (Equal values on purpose: in
fences.)
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import Dir, Link, Object, Val, ValRef
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    GUARD_VERSION,
    Add,
    Append,
    Exchange,
    Guard,
    Mkdir,
    Op,
    Put,
    RootInfo,
    Swap,
    Unlink,
)
from fluxmpi.message import OK
from fluxmpi.sim.client import Client
from fluxmpi.sim.history import Call, Subscribed
from fluxmpi.sim.plan import DESERTED, Plan

HOT = ("hot.a", "hot.b", "hot.c")
COUNTS = ("count.a", "count.b")
CELL = "cell.a"
HUGE = (1 << 63) - 20
"""Added twice it is past 64 bits."""

DIRECTORIES = ("d0", "d1", "d2.e", "d2", "wide", "hot", "log")
LINKS = ("l0", "l1", "d0.l")
TARGETS = ("hot", "hot.a", "d1", "d2.e", "l0", "l1", "d0", "nowhere", "hot.a.x", "wide.k1")
THROUGH = ("l0.a", "l0.k1", "l1.k0", "l1.a", "d0.l.k1", "l0", "l1")
COPIES = ("copy0", "copy1", "d1.copy")
PATTERNS = (
    *("**", "hot.*", "*.k1*", "wide.k?", "wide.k[1-3]*", "d?.**", "**.k2", "d1.**.k3", "l?", "l0.*", "d0.l.k*"),
    *("*", "log.[!1]", "hot.**.x", "nowhere.*", "**.new", "copy*.*", "hot.a"),
)
TOPICS = ("run.", "run.ready", "log.", "")

Weights = dict[str, int]

TRANSACTIONS: Weights = {"add": 12}
ATOMIC: Weights = {"count": 8, "exchange": 5, "swap": 8, "atomic": 4}
"""What is added to any mix of a plan with ``transactions``."""

MIXES: dict[str, Weights] = {
    "everything": {
        "commit": 40, "get": 20, "get_at": 6, "list": 5, "getroot": 3, "fresh": 3, "getroot_at": 2, "watch": 4, "cancel": 2,
        "progress": 2, "publish": 5, "subscribe": 2, "unsubscribe": 1, "store": 5, "load": 2, "map": 3, "dropcache": 1, "ping": 1,
        "run": 1,
        "status": 1, "resend": 3, "move": 2, "save": 1, "restore": 1,
    },
    "hot": {"commit": 70, "get": 20, "watch": 3, "resend": 6, "move": 3, "fresh": 3},
    "fresh": {
        "commit": 50, "get": 20, "fresh": 12, "get_fresh": 24, "hear": 6, "watch": 4, "cancel": 1, "resend": 6, "move": 6,
    },
    "snapshots": {
        "commit": 50, "get_at": 50, "get": 5, "list": 5, "getroot_at": 5, "fresh": 5, "hear": 10, "move": 3, "collect": 5,
        "dropcache": 10,
    },
    "watched": {"commit": 60, "watch": 10, "progress": 2, "cancel": 2, "get": 5, "dropcache": 2, "move": 1, "resend": 3},
    "watchers": {
        "commit": 50, "watch": 10, "progress": 4, "cancel": 4, "dropcache": 2, "move": 1, "publish": 10, "subscribe": 4,
    },
    "links": {"commit": 50, "get": 20, "watch": 8, "progress": 2, "list": 4, "dropcache": 3},
    "directories": {"commit": 50, "get": 15, "list": 10, "watch": 6, "get_at": 10, "store": 5, "map": 5, "dropcache": 2},
}

OPS: dict[str, Weights] = {
    "everything": {
        "hot": 20, "cold": 30, "append": 12, "unlink": 6, "rmdir": 3, "mkdir": 4, "link": 4, "through": 5, "long": 4,
        "stored": 5, "copy": 3, "below": 2, "bogus": 1, "bulk": 0,
    },
    "hot": {"hot": 70, "append": 20, "below": 4, "cold": 20},
    "fresh": {"hot": 50, "append": 15, "unlink": 8, "below": 3, "cold": 15, "count": 8, "exchange": 5, "swap": 6},
    "snapshots": {"hot": 50, "append": 10, "unlink": 8, "cold": 15},
    "watched": {"hot": 30, "append": 5, "unlink": 12, "cold": 30},
    "watchers": {"hot": 20, "cold": 20, "append": 5, "unlink": 8, "rmdir": 4, "mkdir": 2, "long": 5, "copy": 4},
    "links": {"hot": 15, "cold": 10, "link": 15, "through": 20, "unlink": 6, "rmdir": 3, "mkdir": 2, "append": 5},
    "directories": {"cold": 40, "unlink": 10, "rmdir": 5, "mkdir": 5, "copy": 5, "below": 3, "stored": 5, "append": 5, "bulk": 0},
}


class Driver:
    """Drives one client: draws its next request, sends it, thinks, draws again, until ``steps`` are done."""

    def __init__(self, client: Client, plan: Plan, rng: Random, steps: int) -> None:
        self.client = client
        self.steps = steps
        self.quits_after = rng.randrange(1, steps + 1) if rng.random() < plan.faults.quits else -1
        self.fences: list[tuple[int, str, int, bool]] = []
        """(the steps that are left when it contributes, name, size, the same value as all others) of each."""
        self.rounds = 0
        """How often it still has to pass the fence that all who have rounds pass again and again, under one name."""
        self.passing = 0
        """… and how many there are."""
        self._round: Call | None = None
        self._plan = plan
        self._rng = rng
        self._serial = 0
        self._waiting = False
        self._watches: list[Call] = []
        self._subscribed: list[Subscribed] = []
        self._stored: list[tuple[Call, int]] = []
        self._commits: list[Call] = []
        self._roots: list[Call] = []
        self._objects: list[Call] = []
        mix = MIXES[plan.mix] | (TRANSACTIONS if plan.transactions else {})
        self._actions = list(mix)
        self._weights = list(mix.values())
        ops = OPS[plan.mix] | (ATOMIC if plan.transactions else {})
        self._ops, self._op_weights = list(ops), list(ops.values())
        client.on_idle = self._go_on

    @property
    def done(self) -> bool:
        client = self.client
        return client.gone or (self.steps == 0 and not self.fences and not self.rounds and not client.open)

    def act(self) -> None:
        """One request now, and the next after a while."""
        client = self.client
        if client.gone:
            return
        while self.fences and self.fences[0][0] >= self.steps:
            _, name, size, equal = self.fences.pop(0)
            value = Val("raw", b"the same for all") if equal else self._value(40)
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
        """Contribute to the next round, when the last one is over."""
        if self.rounds and not self.client.gone and (self._round is None or self._round.done):
            self.rounds -= 1
            self._round = self.client.fence("round", self.passing, [Append(f"rounds.{self.client.name}", b"+")])
            self._sent(self._round)

    def _go_on(self) -> None:
        if self.rounds and self._round is not None and self._round.done and not self.client.gone:
            self.client.cluster.schedule.after(self._rng.expovariate(1 / self._plan.think_s), self._pass)
        if self._waiting:
            self._waiting = False
            self._later()

    # ------------------------------------------------------------------------------------------------------- drawing

    def _pick(self, of: tuple[str, ...]) -> str:
        return self._rng.choice(of)

    def _namespace(self) -> str:
        return self._pick(self._plan.namespaces)

    def _rank(self) -> int | None:
        """A broker to talk to; None when there is none."""
        up = [node.rank for node in self.client.cluster.nodes if node.up]
        return self._rng.choice(up) if up else None

    def _cold(self) -> str:
        rng = self._rng
        directory = rng.choice(("wide", "wide", "d0", "d1", "d2.e", "top"))
        return f"{directory}.k{rng.randrange(80 if directory == 'wide' else 6)}"

    def _key(self) -> str:
        """Any key, to read."""
        rng = self._rng
        log = f"log.{rng.randrange(2)}"
        return rng.choice((self._pick(HOT), self._cold(), self._pick(THROUGH), self._pick(DIRECTORIES), log))

    def _value(self, size: int) -> Val:
        self._serial += 1
        text = f"{self.client.name}.{self._serial}."
        return Val("raw", (text + "x" * self._rng.randrange(size)).encode())

    def _transaction(self) -> list[Op]:
        rng = self._rng
        if "bulk" in self._ops and rng.random() < 0.03:  # too much for a setroot: its nodes must be asked for
            return [Put(f"wide.k{number}", self._value(100)) for number in range(300)]
        count = rng.choice((1, 1, 1, 2, 4, 12))
        return [self._op(rng.choices(self._ops, self._op_weights)[0]) for _ in range(count)]

    def _op(self, kind: str) -> Op:
        rng = self._rng
        match kind:
            case "hot":
                return Put(self._pick(HOT), self._value(20))
            case "append":
                return Append(rng.choice(("log.0", "log.1", self._pick(HOT), self._cold())), self._value(100).data)
            case "unlink":
                return Unlink(rng.choice((self._pick(HOT), self._cold(), self._pick(THROUGH))))
            case "rmdir":
                return Unlink(self._pick(DIRECTORIES))
            case "mkdir":
                return Mkdir(rng.choice((f"{self._pick(DIRECTORIES)}.new", self._pick(DIRECTORIES), self._cold())))
            case "link":
                return Put(self._pick(LINKS), Link(self._pick(TARGETS)))
            case "through":
                return Put(self._pick(THROUGH), self._value(20))
            case "long":
                return Put(self._cold(), Val("ndarray;|u1;300", self._value(900).data.ljust(300, b".")))
            case "stored":
                return Put(self._cold(), self._valref())
            case "copy":
                found = [call.answers[0].body.object for call in self._objects if call.answers and call.answers[0].status == OK]
                dirs = [obj for obj in found if isinstance(obj, Dir)]
                return Put(self._pick(COPIES), rng.choice(dirs)) if dirs else Mkdir(self._pick(COPIES))
            case "count":
                return Add(self._pick(COUNTS), rng.randrange(1, 5), rng.choice((None, None, 30)))
            case "exchange":
                return Exchange(CELL, self._value(20))
            case "swap":
                return Swap(CELL, self._last_in_cell(), self._value(20))
            case "atomic":  # on whatever is there: a text, a directory, through links
                key = rng.choice((self._pick(HOT), self._pick(THROUGH), self._pick(DIRECTORIES), self._cold()))
                swap = Swap(key, rng.choice((None, self._value(20))), rng.choice((None, self._value(20))))
                return rng.choice((Add(key, 1), Exchange(key, self._value(300)), swap))
            case "below":
                return Put(f"{self._pick(HOT)}.x", self._value(10))
            case "bogus":
                size = 20 if self._plan.shape.algorithm == "sha1" else 32
                return Put(self._cold(), ValRef("raw", 1, (rng.randbytes(size),)))
        return Put(self._cold(), self._value(rng.choice((10, 200, 256))))

    def _ready(self) -> list[tuple[Ref, int]]:
        """Blobs that are in the store already, as the answers said."""
        return [(call.answers[0].body.ref, size) for call, size in self._stored if call.answers and call.answers[0].status == OK]

    def _last_in_cell(self) -> Object | None:
        """What somebody put there lately; perhaps it is there still."""
        sent = [op for call in self.client.history.calls[-40:] if call.topic == "kvs.commit" for op in call.body.ops]
        put = [op.object for op in sent if isinstance(op, Exchange | Swap)]
        return self._rng.choice(put[-3:]) if put else None

    def _valref(self) -> Object:
        """A value made of blobs that are in the store already."""
        ready = self._ready()
        if not ready:
            return self._value(20)
        parts = [self._rng.choice(ready) for _ in range(self._rng.choice((1, 1, 2, 3)))]
        return ValRef("raw", sum(size for _, size in parts), tuple(ref for ref, _ in parts))

    # ------------------------------------------------------------------------------------------------------- requests

    def _commit(self) -> None:
        rng, ops, namespace = self._rng, self._transaction(), self._namespace()
        if not self._plan.transactions or rng.random() < 0.7:
            self._sent(self.client.commit(ops, namespace))
            return
        guards = [self._guard(namespace) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
        otherwise = self._transaction()[:4] if guards and rng.random() < 0.5 else []
        events = []
        for _ in range(rng.choice((0, 0, 1, 2))):
            self._serial += 1
            events.append((self._pick(("run.ready", "run.commit")), f"{self.client.name}.{self._serial}".encode()))
        self._sent(self.client.commit(ops, namespace, guards, otherwise, events))

    def _guard(self, namespace: str) -> Guard:
        rng = self._rng
        compare = rng.choice(("==", "!=", "<", "<=", ">", ">="))
        match rng.randrange(5):
            case 0:
                return Guard(self._key(), GUARD_EXISTS, rng.choice(("==", "!=")), rng.random() < 0.5)
            case 1:
                version = self.client.session.at_least(namespace) + rng.randrange(-3, 2)
                return Guard(self._key(), GUARD_VERSION, compare, version)
            case 2:
                return Guard(rng.choice((*COUNTS, *COUNTS, CELL)), GUARD_VALUE, compare, Val("json", b"%d" % rng.randrange(20)))
            case 3:
                return Guard(self._key(), GUARD_VALUE, rng.choice(("==", "!=")), self._value(400))
        return Guard(CELL, GUARD_VALUE, rng.choice(("==", "!=")), self._last_in_cell() or self._value(20))

    def _add(self) -> None:
        rng = self._rng
        key = rng.choice((*COUNTS, *COUNTS, *COUNTS, self._pick(HOT), self._pick(THROUGH)))
        self._sent(self.client.add(key, rng.choice((1, 1, 2, -3, HUGE, -HUGE)), self._namespace()))

    def _sent(self, call: Call) -> None:
        """A commit or a contribution: perhaps it is sent again later, by whatever broker."""
        self._commits.append(call)
        if self._rng.random() < self._plan.faults.resends:
            delay = self._rng.expovariate(1 / (4 * self._plan.think_s))
            self.client.cluster.schedule.after(delay, lambda: self._again(call))

    def _again(self, call: Call) -> None:
        rank = self._rank()
        if rank is not None and not self.client.gone:
            self.client.resend(call, rank)

    def _resend(self) -> None:
        if self._commits:
            self._again(self._rng.choice(self._commits[-8:]))

    def _get(self) -> None:
        rng = self._rng
        get = self.client.read if rng.random() < 0.5 else self.client.get
        call = get(self._key(), self._namespace(), follow=rng.random() < 0.8, load=rng.random() < 0.7)
        if not call.body.load and call.body.follow and call.body.key in DIRECTORIES:
            self._objects.append(call)

    def _at(self) -> tuple[str, int | bytes] | None:
        """A namespace and a version or root of it that this client has heard of."""
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
            get(self._key(), at[0], at[1])

    def _list(self) -> None:
        rng = self._rng
        at = self._at() if rng.random() < 0.3 else None
        namespace, root = at or (self._namespace(), None)
        key = rng.choice((".", self._pick(DIRECTORIES), self._pick(LINKS), self._pick(HOT)))
        prefix, after = rng.choice(("", "", "k1", "k")), rng.choice(("", "", "k3"))
        listing = self.client.list_read if rng.random() < 0.5 else self.client.listing
        listing(key, namespace, root, prefix, after, rng.choice((1, 5, 1000)))

    def _getroot(self) -> None:
        getroot = self.client.root_shown if self._rng.random() < 0.5 else self.client.getroot
        self._roots.append(getroot(self._namespace()))

    def _fresh(self) -> None:
        self._roots.append(self.client.getroot(self._namespace(), fresh=True))

    def _get_fresh(self) -> None:
        """A hot key as it was in a version that was the newest a moment ago."""
        ready = [call for call in self._roots[-4:] if call.body.fresh and call.answers and call.answers[0].status == OK]
        if ready:
            root = self._rng.choice(ready).answers[0].body
            self.client.get(self._pick((*HOT, *COUNTS, CELL)), root.namespace, root.ref)

    def _hear(self) -> None:
        """Another client tells of its commit, by a channel that we know nothing of: wait for it, or read at its root."""
        calls = self.client.history.calls[-60:]
        told = [call for call in calls if call.topic == "kvs.commit" and call.answers and call.answers[0].status == OK]
        if told:
            root = self._rng.choice(told).answers[0].body
            if self._rng.random() < 0.5:
                self.client.wait_version(root.version, root.namespace)
            else:
                self.client.get(self._pick(HOT), root.namespace, root.ref)

    def _getroot_at(self) -> None:
        at = self._at()
        if at is not None and isinstance(at[1], int):
            self.client.getroot(at[0], at=at[1])

    def _watch(self) -> None:
        rng = self._rng
        recursive = rng.random() < 0.5
        key = rng.choice((".", self._pick(DIRECTORIES), self._pick(THROUGH))) if recursive else self._key()
        namespace, more = self._namespace(), {}
        if self._plan.mix != "watched":  # in that one, all tell everything from what is there on
            if not recursive and rng.random() < 0.5:
                key, more["glob"] = self._pick(PATTERNS), True
            if rng.random() < 0.02:
                namespace, more["wait"] = "nowhere", True
            else:
                more |= self._options(namespace)
            if not (recursive or "glob" in more or "since" in more) and rng.random() < 0.3:
                key, more["uniq"] = self._pick(HOT), False
        call = self.client.watch(key, namespace, recursive, rng.random() < 0.9, **more)
        if rng.random() < 0.4:
            self.client.slow(call, rng.expovariate(1 / (20 * self._plan.think_s)))
        self._watches.append(call)

    def _options(self, namespace: str) -> dict[str, Any]:
        """Of a watch: where it begins and ends, and how much it takes."""
        rng = self._rng
        more: dict[str, Any] = {"latest": rng.random() < 0.25, "initial": rng.random() < 0.8, "wait": rng.random() < 0.3}
        if rng.random() < 0.3:
            known = self.client.session.at_least(namespace)
            more["since"] = max(0, known + rng.choice((0, 0, -1, -3, -20, -1000, 1)))
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
        self._serial += 1
        topic = self._pick(("run.ready", "run.done", "log.line"))
        self.client.publish(topic, f"{self.client.name}.{self._serial}".encode())

    def _subscribe(self) -> None:
        self._subscribed.append(self.client.subscribe(self._pick(TOPICS)))

    def _unsubscribe(self) -> None:
        if self._subscribed:
            subscribed = self._subscribed.pop()
            if subscribed.call.done:
                self.client.unsubscribe(subscribed)

    def _store(self) -> None:
        blob = self._value(self._rng.choice((10, 400, 3000))).data
        digest = self.client.cluster.digest(blob)
        self.client.history.blobs[digest] = blob
        self._stored.append((self.client.store(blob), len(blob)))

    def _load(self) -> None:
        ready = [call for call, _ in self._stored if call.answers and call.answers[0].status == OK]
        if ready:
            self.client.load(self._rng.choice(ready).answers[0].body.ref)

    def _map(self) -> None:
        """The values that many want are the same few: of the first blobs. Some are wrong: a blob too many, or none such."""
        rng = self._rng
        ready = self._ready()[:3]
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
        if self._plan.keeping:  # it would put the keeper's namespaces back
            return
        self.client.restore(f"file{self._rng.randrange(2)}")

    def _move(self) -> None:
        rank = self._rank()
        if rank is not None:
            self.client.move(rank, leave=self._rng.random() < 0.5)


class Deserter:
    """Contributes to one fence and leaves it, as a process that dies or one that gives up."""

    steps = 0

    def __init__(self, client: Client, rng: Random, name: str, size: int) -> None:
        self.client = client
        self._rng = rng
        self._name = name
        self._size = size
        self._left = False

    @property
    def done(self) -> bool:
        return self.client.gone or (self._left and not self.client.open)

    def act(self) -> None:
        self.client.cluster.schedule.after(self._rng.random() * 0.2, self._contribute)

    def _contribute(self) -> None:
        if self.client.gone or not self.client.main.open:  # the instance ended
            self._left = True
            return
        call = self.client.fence(self._name, self._size, [Put(f"fence.{self._name}.{self.client.name}", Val("raw", b"?"))])
        self.client.cluster.schedule.after(self._rng.expovariate(10), lambda: self._leave(call))

    def _leave(self, call: Call) -> None:
        self._left = True
        if not call.done and not self.client.gone:
            if self._rng.random() < 0.5:
                self.client.quit()
            else:
                self.client.gives_up(call)


def deserters(found: list[Driver], plan: Plan, make: Callable[[str], Client]) -> list[Deserter]:
    """One for each fence of which the plan has it so; the other members are among ``found``, and one more may never come."""
    rng = plan.rng("deserted")
    loyal = [driver for driver in found if driver.quits_after < 0]
    leaving = []
    for number in range(plan.deserted):
        name, others = f"{DESERTED}{number}", rng.randint(0, 2 * len(loyal))
        size = others + 1 + rng.randint(0, 1)
        for _ in range(others):
            driver = rng.choice(loyal)
            driver.fences.append((rng.randint(0, driver.steps), name, size, rng.random() < 0.5))
            driver.fences.sort(key=lambda fence: -fence[0])
        leaving.append(Deserter(make(name), plan.rng(name), name, size))
    return leaving


def drivers(clients: list[Client], plan: Plan) -> list[Driver]:
    """A driver for each client, with the plan's steps and fences dealt out."""
    rng = plan.rng("workload")
    found = []
    for index, client in enumerate(clients):
        steps = plan.steps // len(clients) + (index < plan.steps % len(clients))
        found.append(Driver(client, plan, plan.rng(client.name), max(1, steps)))
    loyal = [driver for driver in found if driver.quits_after < 0]
    for number in range(plan.fences if loyal else 0):
        size, equal = rng.randint(1, 2 * len(loyal)), rng.random() < 0.5
        for _ in range(size):
            driver = rng.choice(loyal)
            driver.fences.append((rng.randint(0, driver.steps), f"f{number}", size, equal))
    passing = rng.sample(loyal, rng.randint(1, len(loyal))) if loyal and plan.rounds else []
    for driver in passing:
        driver.rounds, driver.passing = plan.rounds, len(passing)
    for driver in loyal:
        driver.fences.sort(key=lambda fence: -fence[0])
    return found
