"""Send random requests and broken frames to the brokers of a real instance, over their sockets, and see that they live.

    python benchmarks/fuzz.py                                       2,000 bodies and 500 frames: some seconds
    python benchmarks/fuzz.py --bodies 200000 --frames 50000        the long run of RELIABILITY.md
    python benchmarks/fuzz.py --seed 7 --topic kvs.fence            one topic, or all of one service (--topic kvs)

A *body* is the body of one request. The topics are those of the brokers' own tables (``Machine.topics``), those of
control messages and of drivers' answers included, so a new topic is covered. Most of the bodies have the shape that the
table declares; the others are cut, changed, of another topic, nested, or noise. Requests go to the client's own broker,
to each rank, and to the nearest one that has the service, many in one frame. Some connections end with
a message of another kind than request. A *frame* is a broken frame, or a valid one that arrives in pieces or is forged.

Between rounds, a client of each rank commits and reads. At the end it prints what was sent, and what came back by
status. The exit status is 1 if a broker ended, a request was answered twice, a broken frame was not refused, a broker
met a defect (an InternalError) or dropped a message of a peer, or its memory grew by more than ``--memory``.

A seed gives the same requests; how brokers interleave them differs. ``lifecycle.shutdown`` is sent with invalid statuses
only, commands are harmless, and checkpoints are written to a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import psutil
from common import Instance

from fluxmpi import Handle
from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.errors import BY_CODE, ProtocolError, TooLarge
from fluxmpi.machine import ANY_TOPIC, Answers, Sender, Topic
from fluxmpi.message import ANY, CONTROL, EVENT, MORE, REQUEST, RESPONSE, Message, decode_batch, encode_batch
from fluxmpi.simulator.workload.random_bodies import RandomBodies
from fluxmpi.simulator.workload.random_frames import Expected, Frame, RandomFrames

WAIT_S = 60.0
"""For an answer, at most: two cores may be busy with others."""
CONNECTION_BODIES = 400
"""Bodies that one connection sends before it closes; so state that is kept for a client is discarded often."""
FRAME_MESSAGES = (1, 1, 3, 20, 100)
CLIENT_SHARE = 0.8
"""Of the bodies that go to topics that clients may send; the others go to all topics."""
SHAPED_SHARE = 0.6
WRONG_KIND_SHARE = 0.1
"""Of the connections that end with a message that is no request."""
RESTORES_MAX = 50
"""Restores of a checkpoint that may be queued when a check begins."""
MIB = 1 << 20
CLIENTS = Sender.CLIENT | Sender.OWN_CLIENT
MAY_WAIT = ("kvs.get", "kvs.list", "kvs.diff", "kvs.getroot", "kvs.fence")
"""These wait, for a version or for others, until they can be answered or their client leaves."""
REFUSED = {ProtocolError.code, TooLarge.code}


class FuzzError(Exception):
    """What the brokers may not do."""


class Peer:
    """A raw connection: it sends bytes, and collects messages."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(path)
        self._inbox = bytearray()
        self.closed = False
        self.received: list[Message] = []
        self.ended: dict[int, None] = {}
        """Tags of the requests that have their last response."""
        self._wait_for(1)  # hello
        self.received.clear()

    def send(self, data: bytes) -> None:
        """Send all of it. Read meanwhile: a broker does not read from a client that leaves much unread."""
        rest = memoryview(data)
        while rest and not self.closed:
            readable, writable, _ = select.select([self._socket], [self._socket], [], WAIT_S)
            if not readable and not writable:
                raise FuzzError(f"a broker took nothing for {WAIT_S:.0f} s")
            if readable:
                self._read()
            if writable and not self.closed:
                try:
                    rest = rest[self._socket.send(rest[: 1 << 16], socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self.closed = True

    def send_batch(self, messages: list[Message]) -> None:
        payload = encode_batch(messages)
        self.send(len(payload).to_bytes(4, "little") + payload)

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 18, 16)
        except OSError:
            self.closed = True
            return
        for fd in descriptors:
            os.close(fd)
        if not data:
            self.closed = True
            return
        self._inbox += data
        at = 0
        while len(self._inbox) - at >= 4:
            end = at + 4 + int.from_bytes(self._inbox[at : at + 4], "little")
            if end > len(self._inbox):
                break
            batch = decode_batch(bytes(self._inbox[at + 4 : end]))
            self.ended.update((msg.tag, None) for msg in batch if msg.kind == RESPONSE and msg.status != MORE)
            self.received += batch
            at = end
        del self._inbox[:at]

    def _wait_for(self, count: int) -> None:
        end = time.monotonic() + WAIT_S
        while not self.closed and len(self.received) < count:
            if time.monotonic() > end:
                raise FuzzError(f"{len(self.received)} of {count} messages arrived in {WAIT_S:.0f} s")
            self._read()

    def wait_for(self, count: int) -> None:
        """Wait until so many messages have arrived, or the broker has closed the connection."""
        self._wait_for(count)

    def wait_for_end(self) -> None:
        """Wait until the broker closes the connection."""
        end = time.monotonic() + WAIT_S
        while not self.closed:
            if time.monotonic() > end:
                raise FuzzError(f"a broker did not close a connection in {WAIT_S:.0f} s")
            self._read()

    def wait_for_tag(self, tag: int, what: str) -> None:
        """Wait for the last response to a request."""
        end = time.monotonic() + WAIT_S
        while tag not in self.ended and not self.closed:
            readable, _, _ = select.select([self._socket], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                raise FuzzError(f"{what} was not answered in {WAIT_S:.0f} s")
            self._read()

    def close(self) -> None:
        self._socket.close()


class Sent(NamedTuple):
    topic: str
    row: Topic
    body: bytes


class Fuzz:
    """One run against one instance."""

    def __init__(self, instance: Instance, arguments: argparse.Namespace) -> None:
        self._instance = instance
        self._rng = Random(arguments.seed)
        self._bodies = RandomBodies(self._rng)
        self._frames = RandomFrames(self._rng)
        table = Broker(Config(), 0.0).registry.topics
        wanted = arguments.topic
        self._topics = {
            topic: entry.row
            for topic, entry in table.items()
            if topic != ANY_TOPIC and (not wanted or topic == wanted or topic.startswith(f"{wanted}."))
        }
        if not self._topics:
            raise SystemExit(f"fuzz: no topic and no service is called '{wanted}'")
        self._all = list(self._topics.items())
        self._for_clients = [
            (topic, row) for topic, row in self._all if row.kind == REQUEST and row.senders & CLIENTS
        ] or self._all
        self._rows = list(self._topics.values())
        self._witnesses = [instance.connect(rank) for rank in range(instance.size)]
        self._processes = [psutil.Process(pid) for pid in instance.pids()]
        self.statuses: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.bodies = self.frames = self._connections = 0
        self._names = 0
        self._started: list[int] = []
        self._middle: list[int] = []

    def path(self, rank: int) -> str:
        return f"{self._instance.directory}/broker.{rank}.sock".removeprefix("local://")

    # -------------------------------------------------------------------------------------------------------- bodies

    def send_bodies(self, count: int) -> None:
        """Send so many bodies, from one connection after another, to one broker after another."""
        end = self.bodies + count
        while self.bodies < end:
            self._refresh_names()
            self._connections += 1
            self._connection(self._connections % self._instance.size, min(end - self.bodies, CONNECTION_BODIES))

    def _refresh_names(self) -> None:
        """Use names and keys that no one has used: what is kept for each must be bounded."""
        self._names += 1
        self._bodies.names[-1] = f"name{self._names}" + "n" * self._rng.choice((0, 0, 200, 4000))
        self._bodies.keys[-1] = f"fresh.key{self._names}"

    def _connection(self, rank: int, count: int) -> None:
        peer = Peer(self.path(rank))
        sent: dict[int, Sent] = {}
        tag = 0
        while tag < count and not peer.closed:
            some = min(self._rng.choice(FRAME_MESSAGES), count - tag)
            peer.send_batch([self._message(tag + index + 1, sent) for index in range(some)])
            tag += some
        self.bodies += tag
        patient = self._rng.random() < 0.9
        if patient and not peer.closed:  # else it closes with its requests in flight
            for target in range(self._instance.size):
                ping = Message(REQUEST, "ping.ping", target=target, tag=(1 << 40) + target, body=b"\x91\x01")
                peer.send_batch([ping])
                peer.wait_for_tag(ping.tag, "ping.ping")
            for tag, (topic, row, raw) in sent.items():
                if row.answers is Answers.ONE and topic not in MAY_WAIT:
                    peer.wait_for_tag(tag, f"{topic} {raw[:200]!r}")
            if self._rng.random() < WRONG_KIND_SHARE:
                kind = self._rng.choice((RESPONSE, EVENT, CONTROL))
                peer.send_batch([Message(kind, self._rng.choice(self._all)[0])])
                peer.wait_for_end()
                self.statuses["closed, because of another kind than request"] += 1
        self._judge(peer, sent, patient)
        peer.close()

    def _message(self, tag: int, sent: dict[int, Sent]) -> Message:
        rng = self._rng
        topic, row = rng.choice(self._for_clients if rng.random() < CLIENT_SHARE else self._all)
        raw = self._bodies.shaped(row) if rng.random() < SHAPED_SHARE else self._bodies.broken(row, self._rows)
        target = rng.choice((ANY, ANY, ANY, ANY, 0, *range(self._instance.size)))
        if rng.random() < 0.02:
            target = rng.choice((self._instance.size, -7, (1 << 31) - 1))
        sent[tag] = Sent(topic, row, raw)
        forged = [rng.randrange(-20, 5)]
        return Message(REQUEST, topic, rng.randrange(-20, 5), target, tag, rng.choice((0, -1, 7)), forged, raw)

    def _judge(self, peer: Peer, sent: dict[int, Sent], patient: bool) -> None:
        """Count the responses; raise FuzzError for a second one, or one that the table does not allow."""
        ended: dict[int, None] = {}
        for msg in peer.received:
            if msg.kind != RESPONSE or msg.tag not in sent:
                continue
            topic, row, _ = sent[msg.tag]
            if msg.tag in ended:
                raise FuzzError(f"{topic} was answered twice")
            if msg.status == MORE:
                if row.answers is not Answers.STREAM:
                    raise FuzzError(f"{topic}, which is no stream, was answered with MORE")
                continue
            ended[msg.tag] = None
            self.statuses[BY_CODE[msg.status].__name__ if msg.status in BY_CODE else str(msg.status)] += 1
            if msg.status == 0 and not (row.kind == REQUEST and row.senders & CLIENTS):
                raise FuzzError(f"{topic} was carried out for a client")
        if patient:
            self.unanswered.update(one.topic for tag, one in sent.items() if tag not in ended)

    # -------------------------------------------------------------------------------------------------------- frames

    def send_frames(self, count: int) -> None:
        for _ in range(count):
            self._send_frame(self.frames % self._instance.size, self._frames.next())
            self.frames += 1

    def _send_frame(self, rank: int, frame: Frame) -> None:
        peer = Peer(self.path(rank))
        for piece in frame.pieces:
            peer.send(piece)
        if frame.outcome is Expected.ANSWERED:
            peer.wait_for(frame.answers)
            if len(peer.received) != frame.answers or any(msg.status for msg in peer.received):
                raise FuzzError(f"frame '{frame.name}': {len(peer.received)} of {frame.answers} responses")
        elif frame.outcome is Expected.REFUSED:
            peer.wait_for_end()
            if not any(msg.tag == 0 and msg.status in REFUSED for msg in peer.received):
                raise FuzzError(f"frame '{frame.name}' was not refused: {peer.received}")
        self.outcomes[f"{frame.name}: {frame.outcome.name.lower()}"] += 1
        peer.close()

    # -------------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Commit and read at every rank; raise FuzzError if a broker has ended."""
        for rank, process in enumerate(self._processes):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise FuzzError(f"broker {rank} has ended")
        for witness in self._witnesses:
            for attempt in range(RESTORES_MAX):
                if self._is_read_everywhere(witness, f"{self.bodies} {self.frames} {attempt}"):
                    break
            else:
                raise FuzzError(f"what rank {witness.rank} committed was not read at every rank")

    def _is_read_everywhere(self, witness: Handle, text: str) -> bool:
        """Commit, and read at every rank. A restore of a checkpoint that was requested before may come in between."""
        version = witness.kvs.put("witness", text).version
        for reader in self._witnesses:
            reader.kvs.wait_version(version, timeout=WAIT_S)
            if reader.kvs.get("witness") != text:
                return False
        return True

    def begin(self) -> None:
        self.check()
        self._started = [process.memory_info().rss for process in self._processes]

    def half(self) -> None:
        """Note the memory in the middle of the run: what grows as much again is not bounded."""
        self._middle = [process.memory_info().rss for process in self._processes]

    def growth(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield each broker's rank, and its resident memory at the start, in the middle and now."""
        middle = self._middle or self._started
        for rank, process in enumerate(self._processes):
            yield rank, self._started[rank], middle[rank], process.memory_info().rss

    def defects(self) -> Iterator[str]:
        for rank, witness in enumerate(self._witnesses):
            numbers = witness.rpc("stats.get", timeout=WAIT_S)["broker"]
            for name in ("internal_errors", "dropped"):
                if numbers[name]:
                    yield f"broker {rank}: {name} = {numbers[name]:.0f}"


def parse(words: list[str]) -> argparse.Namespace:
    story, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="fuzz.py", description=f"{story}\n{rest}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bodies", type=int, default=2000, help="requests to send (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=500, help="frames to send (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=4, help="brokers of the instance (default: %(default)s)")
    parser.add_argument("--topic", default="", help="send this topic only, or those of this service")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this time (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=64, help="MiB that a broker may grow by (default: %(default)s)")
    return parser.parse_args(words)


def run(arguments: argparse.Namespace, instance: Instance) -> list[str]:
    """Run all rounds; return what was wrong."""
    fuzz = Fuzz(instance, arguments)
    fuzz.begin()
    begin = time.monotonic()
    rounds = max(1, arguments.bodies // (CONNECTION_BODIES * 10))
    wrong: list[str] = []
    try:
        for number in range(1, rounds + 1):
            fuzz.send_bodies(arguments.bodies * number // rounds - fuzz.bodies)
            fuzz.send_frames(arguments.frames * number // rounds - fuzz.frames)
            fuzz.check()
            if number == rounds // 2:
                fuzz.half()
            if time.monotonic() - begin > arguments.seconds:
                break
        wrong += fuzz.defects()
    except Exception as error:
        wrong.append(f"after {fuzz.bodies:,} bodies and {fuzz.frames:,} frames: {type(error).__name__}: {error}")
    took = time.monotonic() - begin
    print(f"seed {arguments.seed}: {fuzz.bodies:,} bodies, {fuzz.frames:,} frames in {took:.0f} s")
    titles = {"responses": fuzz.statuses, "without a final response": fuzz.unanswered, "frames": fuzz.outcomes}
    for title, counts in titles.items():
        print(f"{title}: " + "; ".join(f"{name} {count:,}" for name, count in counts.most_common()))
    with contextlib.suppress(psutil.NoSuchProcess):
        for rank, started, middle, now in fuzz.growth():
            sizes = (
                f"{started / MIB:.0f} MiB at the start, {middle / MIB:.0f} in the middle, {now / MIB:.0f} at the end"
            )
            print(f"broker {rank}: RSS {sizes}")
            if now - started > arguments.memory * MIB:
                wrong.append(f"broker {rank} has grown by {(now - started) / MIB:.0f} MiB")
    return wrong


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="fluxmpi-fuzz-") as folder:
        os.chdir(folder)
        with Instance(arguments.ranks) as instance:
            wrong = run(arguments, instance)
        os.chdir("/")
    for line in wrong:
        print(f"WRONG: {line}")
    if not wrong:
        print("no broker ended, every commit was read at every rank")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
