"""Memory that brokers hold when they are used hard, and hostile clients. RELIABILITY.md has the figures.

python benchmarks/reliability.py history             200 puts of one 20 MB array, default settings
python benchmarks/reliability.py cgroup              the same, all brokers in a memory cgroup of 1.5 GB (needs root)
python benchmarks/reliability.py sweep               2 GB of values, removed again: what goes back to the system
python benchmarks/reliability.py hostile             the attacks of a client that fills what a broker keeps
python benchmarks/reliability.py history --puts 50 --brokers 2

Each measure prints a table as Markdown. Memory of a broker is its resident memory (VmRSS) and the pages of its segments
(memfd), which no process list shows where the broker has not mapped them. The exit status is 0 if the instance answered
to the end and ended with status 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy
from common import Instance, resident_bytes

from fluxmpi.kvs.wire import Append, Commit, CommitId, Contribution, Fence, GetRequest, WatchRequest
from fluxmpi.message import REQUEST, Message, encode_batch, encode_body

MB, MIB = 1_000_000, 1 << 20
ARRAY_BYTES = 20 * MB
CGROUP_BYTES = 1_500 * MB
SETTLE_S = 30.0
"""Time limit for the collection of garbage."""

ANSWER_S = 60.0


# ------------------------------------------------------------------------------------------------------------- memory


def segment_bytes(pid: int) -> int:
    """Return the pages of the memfds that a process has open, mapped or not."""
    found: dict[int, int] = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith("/memfd:"):
                status = link.stat()
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


class Memory:
    """What the brokers of an instance hold: now, and at most so far."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids
        self.most = [0] * len(pids)
        self.most_together = 0

    def sample(self) -> list[tuple[int, int]]:
        """Return (resident, segments) of each broker, in bytes; zeros for one that has ended."""
        now = []
        for pid in self.pids:
            try:
                now.append((resident_bytes(pid), segment_bytes(pid)))
            except OSError:
                now.append((0, 0))
        self.most = [max(most, sum(each)) for most, each in zip(self.most, now, strict=True)]
        self.most_together = max(self.most_together, sum(map(sum, now)))
        return now

    def line(self, what: object) -> str:
        """Return a row: rank 0's resident memory and segments, and the sum of all brokers."""
        now = self.sample()
        resident, segments = now[0]
        return f"| {what} | {resident / MIB:,.0f} | {segments / MIB:,.0f} | {sum(map(sum, now)) / MIB:,.0f} |"


HEAD = "| {} | rank 0, resident, MiB | rank 0, segments, MiB | all brokers, MiB |\n|---|---|---|---|"


# ------------------------------------------------------------------------------------------------------------- history


def put_arrays(instance: Instance, puts: int, reads: bool) -> bool:
    """Put one array ``puts`` times, each other than the last. With ``reads`` the last rank gets each of them."""
    memory = Memory(instance.pids())
    handle, reader = instance.connect(0), instance.connect(instance.size - 1)
    array = numpy.random.default_rng(1).random(ARRAY_BYTES // 8)
    print(HEAD.format("puts"), flush=True)
    print(memory.line(0), flush=True)
    for number in range(1, puts + 1):
        array[:: 8192 // 8] = number  # something in each 8 KiB: no piece of it is as before
        try:
            handle.kvs.put("state", array)
            if reads:
                got = reader.kvs.get("state", fresh=True)
                assert got[0] == number
                del got
        except Exception as error:
            print(f"\nput {number} failed: {type(error).__name__}: {error}", flush=True)
            return False
        memory.sample()
        if number % max(1, puts // 8) == 0:
            print(memory.line(number), flush=True)
    print(f"\nmost: rank 0 {memory.most[0] / MIB:,.0f} MiB, all brokers together {memory.most_together / MIB:,.0f} MiB")
    return True


def history(args: argparse.Namespace) -> bool:
    with Instance(args.brokers) as instance:
        good = put_arrays(instance, args.puts, args.reads)
    return good and instance.status == 0


# -------------------------------------------------------------------------------------------------------------- cgroup


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[tuple[list[str], Callable[[], str]]]:
    """Make a memory cgroup of ``limit`` bytes without swap, of version 1 or 2.

    Yield the words that start a command in it, and a function that returns its peak and the processes killed.
    """
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    version_1 = (first / "memory.limit_in_bytes").exists()
    group = (first if version_1 else second) / f"fluxmpi-reliability-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
        with contextlib.suppress(OSError):
            (group / ("memory.memsw.limit_in_bytes" if version_1 else "memory.swap.max")).write_text(
                str(limit) if version_1 else "0"
            )

        def told() -> str:
            peak = int((group / ("memory.max_usage_in_bytes" if version_1 else "memory.peak")).read_text())
            events = (group / ("memory.oom_control" if version_1 else "memory.events")).read_text().split()
            return f"cgroup: peak {peak / MIB:,.0f} MiB of {limit / MIB:,.0f}, {events[events.index('oom_kill') + 1]} killed"

        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"], told
    finally:
        end = time.monotonic() + SETTLE_S
        while (group / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.1)
        group.rmdir()


def cgroup(args: argparse.Namespace) -> bool:
    with memory_cgroup(args.limit) as (prefix, told), Instance(args.brokers, prefix=prefix) as instance:
        good = put_arrays(instance, args.puts, args.reads)
        print(told(), flush=True)
    return good and instance.status == 0


# --------------------------------------------------------------------------------------------------------------- sweep


def sweep(args: argparse.Namespace) -> bool:
    """Put 100 values of 20 MB, get them at the last rank, remove them, keep one version."""
    with Instance(args.brokers) as instance:
        memory = Memory(instance.pids())
        handle, reader = instance.connect(0), instance.connect(instance.size - 1)
        chance = numpy.random.default_rng(1)
        print(HEAD.format("after"), flush=True)
        print(memory.line("the start"), flush=True)
        start = sum(map(sum, memory.sample()))
        for number in range(100):
            handle.kvs.put(f"sweep.k{number:02}", chance.random(ARRAY_BYTES // 8))
            del number
        print(memory.line("100 puts of 20 MB"), flush=True)
        for number in range(100):
            reader.kvs.get(f"sweep.k{number:02}")
        print(memory.line("100 gets at the last rank"), flush=True)
        handle.kvs.unlink("sweep")
        handle.kvs.retention(count=1)
        handle.kvs.put("end", 1)
        end = time.monotonic() + SETTLE_S
        while sum(map(sum, memory.sample())) > start + 64 * MIB and time.monotonic() < end:
            handle.kvs.put("end", time.time())  # a version drives the collection
            time.sleep(0.1)
        print(memory.line("unlink, and retention of one version"), flush=True)
        print(
            f"\nmost: rank 0 {memory.most[0] / MIB:,.0f} MiB, all brokers together {memory.most_together / MIB:,.0f} MiB"
        )
    return instance.status == 0


# ------------------------------------------------------------------------------------------------------------- hostile


class RawClient:
    """A connection that sends what it likes. ``ask`` returns the status of the first answer, None if there is none."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(ANSWER_S)
        self._sock.connect(path)
        self._frame()

    def _frame(self) -> list[Message]:
        size = struct.unpack("<I", self._read(4))[0]
        return msgspec.msgpack.decode(self._read(size), type=list[Message])

    def _read(self, size: int) -> bytearray:
        received, at = bytearray(size), 0
        while at < size:
            count = self._sock.recv_into(memoryview(received)[at:])
            if not count:
                raise ConnectionError("the broker has closed the connection")
            at += count
        return received

    def send(self, *messages: Message) -> None:
        payload = encode_batch(list(messages))
        self._sock.sendall(struct.pack("<I", len(payload)) + payload)

    def send_bytes(self, data: bytes) -> None:
        self._sock.sendall(data)

    def ask(self, topic: str, body: object, target: int = -1) -> int | None:
        try:
            self.send(Message(REQUEST, topic, target=target, tag=7, body=encode_body(body)))
            return self._frame()[0].status
        except (OSError, ConnectionError):
            return None

    def close(self) -> None:
        self._sock.close()


def _topics(path: str) -> int:
    """40 requests with topics of 30 MiB, all different."""
    for number in range(40):
        client = RawClient(path)
        client.ask(f"kvs.{number}{'t' * (30 * MIB)}", None)
        client.close()
    return 40


def _client_names(path: str) -> int:
    """60 commits of clients whose names have 10 MiB."""
    for number in range(60):
        client = RawClient(path)
        name = f"{number}{'n' * (10 * MIB)}"
        client.ask("kvs.commit", Commit("primary", CommitId(name, 1), 0, [Append(f"names.k{number}", b"x")]))
        client.close()
    return 60


def _fence_names(path: str) -> int:
    """60 fences that are never complete, with names of 10 MiB; their clients stay connected."""
    clients = []
    for number in range(60):
        client = RawClient(path)
        fence = Fence("primary", f"{number}{'f' * (10 * MIB)}", 2, [Contribution(CommitId(f"c{number}", 1), [])])
        with contextlib.suppress(OSError):
            client.send(Message(REQUEST, "kvs.fence", tag=7, body=encode_body(fence)))
        clients.append(client)
    for client in clients:
        client.close()
    return 60


def _parked_keys(path: str) -> int:
    """60 gets of keys of 10 MiB, at a version that never comes; their clients stay connected."""
    clients = []
    for number in range(60):
        client = RawClient(path)
        get = GetRequest(f"{number}{'k' * (10 * MIB)}", at_least=1 << 40)
        with contextlib.suppress(OSError):
            client.send(Message(REQUEST, "kvs.get", tag=7, body=encode_body(get)))
        clients.append(client)
    for client in clients:
        client.close()
    return 60


def _watches(path: str) -> int:
    """100,000 watches of one client."""
    client = RawClient(path)
    sent = 0
    with contextlib.suppress(OSError):
        for start in range(0, 100_000, 500):
            watches = [
                Message(
                    REQUEST, "kvs.watch", tag=10 + n, body=encode_body(WatchRequest(f"watched.k{n}", initial=False))
                )
                for n in range(start, start + 500)
            ]
            client.send(*watches)
            for _ in range(1_000):  # read the answers, so that the broker reads on
                if not _readable(client):
                    break
            sent += 500
    client.close()
    return sent


def _readable(client: RawClient) -> bool:
    client._sock.setblocking(False)
    try:
        return bool(client._sock.recv(1 << 20))
    except BlockingIOError:
        return False
    finally:
        client._sock.settimeout(ANSWER_S)


def _frames(path: str) -> int:
    """30 connections, each with a frame of 60 MiB of which the last byte is missing."""
    clients = []
    for _ in range(30):
        client = RawClient(path)
        client._sock.settimeout(5.0)
        with contextlib.suppress(OSError):
            client.send_bytes(struct.pack("<I", 60 * MIB) + bytes(60 * MIB - 1))
        clients.append(client)
    for client in clients:
        client.close()
    return 30


ATTACKS: tuple[tuple[str, Callable[[str], int]], ...] = (
    ("topics of 30 MiB", _topics),
    ("client names of 10 MiB", _client_names),
    ("fence names of 10 MiB", _fence_names),
    ("keys of 10 MiB of parked requests", _parked_keys),
    ("watches of one client", _watches),
    ("unfinished frames of 60 MiB", _frames),
)


def hostile(args: argparse.Namespace) -> bool:
    """Each attack at the last rank of a new instance; then an honest client commits and reads there."""
    good = True
    print("| attack at the last rank | number | before, MiB | most, MiB | after, MiB | an honest client |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, attack in ATTACKS:
        with Instance(args.brokers) as instance:
            memory = Memory(instance.pids())
            before = sum(map(sum, memory.sample()))
            with _sampling(memory):
                try:
                    number = attack(instance.uri(instance.size - 1).removeprefix("local://"))
                except OSError:
                    number = 0
                after = _settled(memory)
            answered = _honest(instance)
        good = good and answered and instance.status == 0
        print(
            f"| {name} | {number:,} | {before / MIB:,.0f} | {memory.most_together / MIB:,.0f} | {after / MIB:,.0f} "
            f"| {'is served' if answered else 'is not served: the instance has ended'} |",
            flush=True,
        )
    return good


@contextlib.contextmanager
def _sampling(memory: Memory) -> Iterator[None]:
    """Sample the brokers' memory meanwhile, ten times a second, in a thread."""
    import threading

    ended = threading.Event()

    def run() -> None:
        while not ended.wait(0.1):
            memory.sample()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _settled(memory: Memory) -> int:
    """Return what all brokers hold when it has not changed for a second."""
    last, end = -1, time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        now = sum(map(sum, memory.sample()))
        if abs(now - last) < MIB:
            break
        last = now
        time.sleep(1)
    return now


def _honest(instance: Instance) -> bool:
    try:
        with contextlib.closing(instance.connect(instance.size - 1)) as handle:
            handle.kvs.put("honest", 1, timeout=ANSWER_S)
            return bool(handle.kvs.get("honest") == 1)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return False


MEASURES = {"history": history, "cgroup": cgroup, "sweep": sweep, "hostile": hostile}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--brokers", type=int, default=4, metavar="N", help="default 4, as kary:2")
    parser.add_argument("--puts", type=int, default=200, metavar="N", help="of history and cgroup, default 200")
    parser.add_argument("--reads", action="store_true", help="history and cgroup: the last rank gets each array")
    parser.add_argument(
        "--limit", type=int, default=CGROUP_BYTES, metavar="BYTES", help=f"of cgroup, default {CGROUP_BYTES:,}"
    )
    args = parser.parse_args()
    begin = time.monotonic()
    good = MEASURES[args.measure](args)
    print(f"\n{args.measure}: {'went through' if good else 'FAILED'}, {time.monotonic() - begin:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
