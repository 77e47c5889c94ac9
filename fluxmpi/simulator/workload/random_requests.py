"""Random keys, values, operations, transactions and guards for one client, by the weights of its mix.

Every value is new: it contains the client's name and a serial number, so checkers can distinguish any two. (Only fences
have equal values on purpose.)
"""

from __future__ import annotations

from random import Random

from fluxmpi.blobref import Ref
from fluxmpi.kvs.objects import UNKNOWN_SIZE, Dir, Link, Object, Val, ValRef
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
    Swap,
    Unlink,
)
from fluxmpi.message import OK
from fluxmpi.simulator.plan import Plan
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.request_mix import (
    ATOMIC,
    CELL,
    COPIES,
    COUNTS,
    DIRECTORIES,
    HOT,
    LINK_TARGETS,
    LINKED_KEYS,
    LINKS,
    OPS,
)
from fluxmpi.simulator.workload.transcript import ClientCall


class RandomRequests:
    """``stored``: calls that stored blobs, with sizes. ``objects``: reads whose answers may be directories."""

    def __init__(self, client: Client, plan: Plan, rng: Random) -> None:
        self.serial = 0
        self.stored: list[tuple[ClientCall, int]] = []
        self.objects: list[ClientCall] = []
        self._client = client
        self._plan = plan
        self._rng = rng
        ops = OPS[plan.mix] | (ATOMIC if plan.transactions else {})
        self._ops, self._op_weights = list(ops), list(ops.values())

    def pick(self, of: tuple[str, ...]) -> str:
        return self._rng.choice(of)

    def namespace(self) -> str:
        return self.pick(self._plan.namespaces)

    def _cold(self) -> str:
        rng = self._rng
        directory = rng.choice(("wide", "wide", "d0", "d1", "d2.e", "top"))
        return f"{directory}.k{rng.randrange(80 if directory == 'wide' else 6)}"

    def key(self) -> str:
        """Return any key, to read."""
        rng = self._rng
        log = f"log.{rng.randrange(2)}"
        return rng.choice((self.pick(HOT), self._cold(), self.pick(LINKED_KEYS), self.pick(DIRECTORIES), log))

    def value(self, size: int) -> Val:
        self.serial += 1
        text = f"{self._client.name}.{self.serial}."
        return Val("raw", (text + "x" * self._rng.randrange(size)).encode())

    def transaction(self) -> list[Op]:
        rng = self._rng
        if "bulk" in self._ops and rng.random() < 0.03:  # too much for a setroot: its nodes must be loaded
            return [Put(f"wide.k{number}", self.value(100)) for number in range(300)]
        count = rng.choice((1, 1, 1, 2, 4, 12))
        return [self._op(rng.choices(self._ops, self._op_weights)[0]) for _ in range(count)]

    def _op(self, kind: str) -> Op:
        rng = self._rng
        match kind:
            case "hot":
                return Put(self.pick(HOT), self.value(20))
            case "append":
                return Append(rng.choice(("log.0", "log.1", self.pick(HOT), self._cold())), self.value(100).data)
            case "unlink":
                return Unlink(rng.choice((self.pick(HOT), self._cold(), self.pick(LINKED_KEYS))))
            case "rmdir":
                return Unlink(self.pick(DIRECTORIES))
            case "mkdir":
                key = rng.choice((f"{self.pick(DIRECTORIES)}.new", self.pick(DIRECTORIES), self._cold()))
                return Mkdir(key, replace=rng.random() < 0.3)
            case "link":
                return Put(self.pick(LINKS), Link(self.pick(LINK_TARGETS)))
            case "through":
                return Put(self.pick(LINKED_KEYS), self.value(20))
            case "long":
                return Put(self._cold(), Val("ndarray;|u1;300", self.value(900).data.ljust(300, b".")))
            case "stored":
                return Put(self._cold(), self._valref())
            case "copy":
                found = [
                    call.answers[0].body.object
                    for call in self.objects
                    if call.answers and call.answers[0].status == OK
                ]
                dirs = [obj for obj in found if isinstance(obj, Dir)]
                return Put(self.pick(COPIES), rng.choice(dirs)) if dirs else Mkdir(self.pick(COPIES))
            case "count":
                return Add(self.pick(COUNTS), rng.randrange(1, 5), rng.choice((None, None, 30)))
            case "exchange":
                return Exchange(CELL, self.value(20))
            case "swap":
                return Swap(CELL, self.last_in_cell(), self.value(20))
            case "atomic":  # on any value: a text, a directory, through links
                key = rng.choice((self.pick(HOT), self.pick(LINKED_KEYS), self.pick(DIRECTORIES), self._cold()))
                swap = Swap(key, rng.choice((None, self.value(20))), rng.choice((None, self.value(20))))
                return rng.choice((Add(key, 1), Exchange(key, self.value(300)), swap))
            case "below":
                return Put(f"{self.pick(HOT)}.x", self.value(10))
            case "bogus":
                size = 20 if self._plan.shape.algorithm == "sha1" else 32
                return Put(self._cold(), ValRef("raw", 1, (rng.randbytes(size),)))
        return Put(self._cold(), self.value(rng.choice((10, 200, 256))))

    def ready(self) -> list[tuple[Ref, int]]:
        """Return the blobs that are stored, by the answers, with sizes."""
        return [
            (call.answers[0].body.ref, size)
            for call, size in self.stored
            if call.answers and call.answers[0].status == OK
        ]

    def last_in_cell(self) -> Object | None:
        """Return a value that was put there lately; it may be the current one."""
        sent = [
            op for call in self._client.transcript.calls[-40:] if call.topic == "kvs.commit" for op in call.body.ops
        ]
        put = [op.object for op in sent if isinstance(op, Exchange | Swap)]
        return self._rng.choice(put[-3:]) if put else None

    def _valref(self) -> Object:
        """Return a value that consists of stored blobs; of three, without its size."""
        ready = self.ready()
        if not ready:
            return self.value(20)
        parts = [self._rng.choice(ready) for _ in range(self._rng.choice((1, 1, 2, 3)))]
        size = UNKNOWN_SIZE if len(parts) == 3 else sum(size for _, size in parts)
        return ValRef("raw", size, tuple(ref for ref, _ in parts))

    def guard(self, namespace: str) -> Guard:
        rng = self._rng
        compare = rng.choice(("==", "!=", "<", "<=", ">", ">="))
        match rng.randrange(5):
            case 0:
                return Guard(self.key(), GUARD_EXISTS, rng.choice(("==", "!=")), rng.random() < 0.5)
            case 1:
                version = self._client.session.at_least(namespace) + rng.randrange(-3, 2)
                return Guard(self.key(), GUARD_VERSION, compare, version)
            case 2:
                return Guard(
                    rng.choice((*COUNTS, *COUNTS, CELL)), GUARD_VALUE, compare, Val("json", b"%d" % rng.randrange(20))
                )
            case 3:
                return Guard(self.key(), GUARD_VALUE, rng.choice(("==", "!=")), self.value(400))
        return Guard(CELL, GUARD_VALUE, rng.choice(("==", "!=")), self.last_in_cell() or self.value(20))
