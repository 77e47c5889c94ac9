"""A client process that does a bit of everything, and writes its history.

    python -m checkers.client FOLDER NAME RANK SIZE CLIENTS SEED STEPS [--die]

FOLDER is the instance's; RANK, of SIZE, is the broker that it begins at. All CLIENTS that do not die contribute to
fences at the same steps. With ``--die``, it commits and kills itself before an answer can have arrived.

    hot.a … hot.c    values that all clients write        log.a            appended to by all
    cold.*           values of one client each            hot.meet.f.*     written by fences
    count.a, .b      numbers that grow, .b to a limit     cell.a           exchanged, compared and swapped, guarded

Clients pass versions through a file: each writes the newest that it has seen, and another one waits for it.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

from checkers.record import Writer
from fluxmpi.client.handle import connect
from fluxmpi.client.kvs.result import ABSENT
from fluxmpi.client.kvs.watch import Watch
from fluxmpi.client.snapshot import Snapshot
from fluxmpi.errors import RequestTimeout
from fluxmpi.simulator.checkers.history import KeyStep, Operation

HOT = ("hot.a", "hot.b", "hot.c")
LOG = "log.a"
CELL = "cell.a"
ATOMIC = ("count.a", "count.b", CELL)
LIMIT = 20
FENCES = 3


class Client:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rng = Random(f"{options.seed}/{options.name}")
        self._rank = options.rank
        self._handle = connect(self._uri(options.rank))
        self._writer = Writer(Path(options.out) / f"{options.name}.history", options.name)
        self._serial = 0
        self._watch: Watch | None = None
        self._watched: dict[str, Any] = {}
        self._versions = os.open(Path(options.out) / "versions", os.O_RDWR | os.O_CREAT, 0o600)
        self._snapshots: list[Snapshot] = []

    def _uri(self, rank: int) -> str:
        return f"local://{self._options.folder}/broker.{rank}.sock"

    # ------------------------------------------------------------------------------------------------------------- run

    def run(self) -> None:
        options = self._options
        if self._rng.random() < 0.7:
            self._open_watch()
        every = options.steps // FENCES
        actions = [getattr(self, f"_{name}") for name in ACTIONS]
        for step in range(options.steps):
            if options.die and step > options.steps // 2:
                self._die()
            self._rng.choices(actions, list(ACTIONS.values()))[0]()
            if self._watch is not None:
                self._drain()
            if step % every == every - 1 and not options.die:
                self._fence(step // every)
        self._drain_until(self._handle.session.at_least("primary"))

    def _begin(self, kind: str, *steps: KeyStep, **fields: Any) -> Operation:
        return self._writer.begin(kind, steps, broker=self._rank, **fields)

    def _committed(self, operation: Operation, made: Snapshot, **more: Any) -> None:
        self._writer.end(operation, version=made.version, ref=made.root, **more)
        self._pass_on(made.version)

    def _value(self) -> str:
        self._serial += 1
        return f"{self._options.name}.{self._serial}"

    # --------------------------------------------------------------------------------------------------------- commits

    def _put(self) -> None:
        keys = self._rng.sample(HOT, self._rng.choice((1, 1, 2, 3)))
        if self._rng.random() < 0.5:
            keys.append(f"cold.{self._options.name}.k{self._rng.randrange(5)}")
        values = {key: self._value() for key in keys}
        operation = self._begin("commit", *(KeyStep("put", key, value) for key, value in values.items()))
        self._committed(operation, self._handle.kvs.commit(values))

    def _append(self) -> None:
        text = f"{self._value()};"
        operation = self._begin("commit", KeyStep("append", LOG, text))
        with self._handle.kvs.txn() as txn:
            txn.append(LOG, text)
        self._committed(operation, txn.snapshot)

    def _unlink(self) -> None:
        key = self._rng.choice(HOT)
        operation = self._begin("commit", KeyStep("unlink", key))
        self._committed(operation, self._handle.kvs.unlink(key))

    # ---------------------------------------------------------------------------------------------- atomic operations

    def _add(self) -> None:
        """Brokers combine it with others.

        The answer names no version, but it is newer than all that this client knew.
        """
        amount = self._rng.randrange(1, 6)
        operation = self._begin("commit", KeyStep("add", "count.a", amount))
        number = self._handle.kvs.add("count.a", amount)
        version = self._handle.session.at_least("primary")
        self._writer.end(operation, results=[[True, number]], version=version)

    def _add_below(self) -> None:
        operation = self._begin("commit", KeyStep("add", "count.b", 1, limit=LIMIT))
        txn = self._handle.kvs.txn()
        result = txn.add("count.b", 1, limit=LIMIT)
        self._committed(operation, txn.commit(), results=[[bool(result), result.number]])

    def _exchange(self) -> None:
        value = self._value()
        operation = self._begin("commit", KeyStep("exchange", CELL, value))
        txn = self._handle.kvs.txn()
        result = txn.exchange(CELL, value)
        self._committed(operation, txn.commit(), results=[result.value])

    def _swap(self) -> None:
        """Compare with a value read just before: mostly it is still there."""
        seen, value = self._handle.kvs.get(CELL, None), self._value()
        operation = self._begin("commit", KeyStep("swap", CELL, value, seen))
        txn = self._handle.kvs.txn()
        result = txn.compare_and_swap(CELL, ABSENT if seen is None else seen, value)
        self._committed(operation, txn.commit(), results=[[bool(result), result.value]])

    def _guarded(self) -> None:
        """If the guard fails, no version is made: it is only known that the value was another one."""
        seen, value = self._handle.kvs.get(CELL, None), self._value()
        if seen is None:
            return
        operation = self._begin("commit", KeyStep("equals", CELL, seen), KeyStep("put", CELL, value))
        txn = self._handle.kvs.txn()
        txn.when(CELL, "==", seen)
        txn.put(CELL, value)
        made = txn.commit()
        if txn.succeeded:
            self._committed(operation, made)
        else:
            self._writer.end(operation, kind="read", fresh=True, steps=[KeyStep("differs", CELL, seen)])

    def _fence(self, number: int) -> None:
        key, value = f"hot.meet.f{number}.{self._options.name}", self._value()
        operation = self._begin("commit", KeyStep("put", key, value), fence=f"f{number}")
        made = self._handle.kvs.fence(f"f{number}", self._options.clients, {key: value})
        self._committed(operation, made)

    def _die(self) -> None:
        """Kill this process with commits open."""
        for _ in range(3):
            key, value = self._rng.choice(HOT), self._value()
            self._begin("commit", KeyStep("put", key, value), KeyStep("append", LOG, f"{value};"))
            txn = self._handle.kvs.txn()
            txn.put(key, value)
            txn.append(LOG, f"{value};")
            txn.commit_async()
        os.kill(os.getpid(), signal.SIGKILL)

    # ----------------------------------------------------------------------------------------------------------- reads

    def _get(self) -> None:
        self._read(self._key(), fresh=False)

    def _get_fresh(self) -> None:
        self._read(self._key(), fresh=True)

    def _read(self, key: str, fresh: bool) -> None:
        operation = self._begin("read", KeyStep("get", key), fresh=fresh)
        value = self._handle.kvs.get(key, None, fresh=fresh)
        self._writer.end(operation, results=[_text(value)])

    def _key(self) -> str:
        return self._rng.choice((*HOT, LOG, *ATOMIC, f"cold.{self._options.name}.k{self._rng.randrange(5)}"))

    def _root(self) -> None:
        """Read the newest root, and some keys at that or an earlier root: one state, now or later."""
        fresh = self._rng.random() < 0.5
        operation = self._begin("root", fresh=fresh)
        snapshot = self._handle.kvs.snapshot(fresh=fresh)
        self._writer.end(operation, version=snapshot.version, ref=snapshot.root)
        self._pass_on(snapshot.version)
        self._snapshots.append(snapshot)
        snapshot = self._rng.choice(self._snapshots)
        steps = [KeyStep("get", key) for key in (*HOT, LOG)]
        operation = self._begin("read", *steps, at=True)
        values = [_text(self._handle.kvs.get(step.key, None, at=snapshot)) for step in steps]
        self._writer.end(operation, results=values, version=snapshot.version, ref=snapshot.root)

    def _wait(self) -> None:
        """Wait for a version that another client passed on."""
        version = int.from_bytes(os.pread(self._versions, 8, 8 * self._rng.randrange(self._options.clients)), "little")
        operation = self._begin("root", least=version)
        snapshot = self._handle.kvs.wait_version(version)
        self._writer.end(operation, version=snapshot.version, ref=snapshot.root)
        self._read(self._key(), fresh=False)

    def _pass_on(self, version: int) -> None:
        if not self._options.die:
            os.pwrite(self._versions, version.to_bytes(8, "little"), 8 * self._options.place)

    def _move(self) -> None:
        """Move to another broker with the session; the watch is opened again there."""
        self._rank = self._rng.randrange(self._options.size)
        watched, self._watch = self._watch, None
        if watched is not None:
            watched.close()
        self._handle.reconnect(self._uri(self._rank))
        if watched is not None:
            self._open_watch()

    def _move_with_open_commits(self) -> None:
        """Move with commits open: they are sent again there, and applied once."""
        sent = []
        for _ in range(3):
            text = f"{self._value()};"
            operation = self._begin("commit", KeyStep("append", LOG, text))
            txn = self._handle.kvs.txn()
            txn.append(LOG, text)
            sent.append((operation, txn.commit_async()))
        self._move()
        for operation, future in sent:
            self._committed(operation, future.get())

    # --------------------------------------------------------------------------------------------------------- watches

    def _open_watch(self) -> None:
        pattern = self._rng.choice(("hot.", "hot.a", LOG, "."))
        began = self._begin("watching")
        self._watched = {"start": began.start, "stream": str(began.number), "pattern": pattern}
        self._watch = self._handle.kvs.watch(pattern)

    def _drain(self) -> None:
        while self._watch is not None and self._watch.ready:
            self._notified(None)

    def _drain_until(self, version: int) -> None:
        """Wait until a watch of the hot keys reports the last fence; other watches end with what has arrived."""
        pattern = self._watched.get("pattern")
        seen = 0
        while self._watch is not None and pattern in ("hot.", ".") and seen < version:
            try:
                seen = self._notified(10.0)
            except RequestTimeout:
                return

    def _notified(self, timeout: float | None) -> int:
        assert self._watch is not None
        update = self._watch.update(timeout)
        assert update is not None, "a watch ends when it is closed"
        steps = [KeyStep("get", change.key) for change in update.changes]
        results = [[_text(change.value), change.existed] for change in update.changes]
        operation = self._begin("watch", *steps, **{name: self._watched[name] for name in ("stream", "pattern")})
        operation.start = self._watched["start"]
        self._writer.end(operation, results=results, version=update.version, ref=update.snapshot.root)
        return update.version


ACTIONS = {
    "put": 30, "append": 8, "unlink": 3, "get": 20, "get_fresh": 15, "root": 8, "wait": 6, "move": 3, "move_with_open_commits": 2,
    "add": 10, "add_below": 5, "exchange": 4, "swap": 6, "guarded": 5,
}  # fmt: skip


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("name")
    for name in ("place", "rank", "size", "clients", "seed", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--die", action="store_true")
    Client(parser.parse_args()).run()


if __name__ == "__main__":
    main()
