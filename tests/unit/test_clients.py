"""The broker's real socket: valid and invalid frames, clients that do not read, and other users."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile

import pytest
from turns import Turns

from fluxmpi import errors
from fluxmpi.drivers.clients import FILES_RESERVED, ClientLimits, ClientSockets
from fluxmpi.drivers.frame_pool import NEVER
from fluxmpi.message import (
    CLIENT_FIRST,
    CONTROL,
    EVENT,
    FRAME_BYTES_MAX,
    OK,
    REQUEST,
    RESPONSE,
    Message,
    control,
    decode_batch,
    encode_batch,
)


def frame(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


def asking(*topics: str, **fields) -> bytes:
    return frame(encode_batch([Message(REQUEST, topic, **fields) for topic in topics]))


class Peer:
    """A client that reads what it gets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(world.path)
        self.sock.setblocking(False)
        self.data = bytearray()
        self.closed = False

    def send(self, data: bytes) -> None:
        """Send all of it while the loop turns."""
        while data:
            try:
                data = data[self.sock.send(data) :]
            except BlockingIOError:
                self.world.turns.turn()
            except OSError:
                return
        self.world.turns.quiet()

    def read(self) -> list[Message]:
        """Return all messages that have arrived."""
        self.world.turns.quiet()
        messages: list[Message] = []
        while not self.closed:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.data += data
            self.closed = not data
            self.world.turns.turn()
        while len(self.data) >= 4:
            size = struct.unpack_from("<I", self.data)[0]
            if len(self.data) < 4 + size:
                break
            messages += decode_batch(self.data[4 : 4 + size])
            del self.data[: 4 + size]
        return messages


class World:
    def __init__(self, path: str, **limits: int) -> None:
        self.path = path
        self.turns = Turns()
        self.got: list[Message] = []
        self.gone: list[int] = []
        self.lagging: list[int] = []
        told = self.got.append, self.gone.append, self.lagging.append
        self.now = 1000.0
        self.clients = ClientSockets(
            self.turns, path, control("hello", "hi"), *told, ClientLimits(**limits), lambda: self.now
        )
        self.peers: list[Peer] = []

    def join(self) -> Peer:
        peer = Peer(self)
        self.peers.append(peer)
        self.turns.quiet()
        return peer

    def greeted(self) -> Peer:
        peer = self.join()
        assert [(msg.kind, msg.topic) for msg in peer.read()] == [(CONTROL, "hello")]
        return peer

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self.clients.close()
        self.turns.close()


@pytest.fixture
def make_world(tmp_path):
    """Make sockets with other limits than the default."""
    made = []

    def make(**limits: int) -> World:
        made.append(World(str(tmp_path / f"s{len(made)}"), **limits))
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world):
    return make_world()


def counts(world: World) -> dict[str, float]:
    found = world.clients.statistics()
    return {name: found[name] for name in ("clients", "accepted", "refused")}


def refusal(peer: Peer) -> errors.FluxmpiError:
    """A client that broke the protocol gets the error on tag 0, and is closed."""
    (msg,) = peer.read()
    assert (msg.kind, msg.tag) == (RESPONSE, 0)
    assert peer.closed
    return errors.decode_error(msg.status, msg.body)


def test_requests_arrive_in_order_with_their_clients_hop(world):
    first, second = world.greeted(), world.greeted()
    first.send(asking("a", "b") + asking("c"))
    second.send(asking("d", tag=7, body=b"x"))
    assert [(msg.topic, msg.hop) for msg in world.got] == [
        ("a", CLIENT_FIRST), ("b", CLIENT_FIRST), ("c", CLIENT_FIRST), ("d", CLIENT_FIRST - 1)
    ]  # fmt: skip
    assert (world.got[3].tag, world.got[3].body) == (7, b"x")
    world.clients.send(CLIENT_FIRST - 1, [Message(RESPONSE, "d", tag=7)])
    assert [(msg.topic, msg.tag) for msg in second.read()] == [("d", 7)]
    assert first.read() == []


def test_a_client_cannot_choose_hop_route_or_status(world):
    world.greeted().send(asking("a", hop=3, route=[1, 2, 3], status=7))
    assert (world.got[0].hop, world.got[0].route, world.got[0].status) == (CLIENT_FIRST, [], OK)


def test_frames_in_pieces(world):
    peer = world.greeted()
    data = asking("a", body=bytes(1000)) + asking("b")
    for at in range(len(data)):
        assert len(world.got) <= 1
        peer.sock.send(data[at : at + 1])
        world.turns.quiet()
    assert [msg.topic for msg in world.got] == ["a", "b"]


def test_an_empty_batch_is_ignored(world):
    peer = world.greeted()
    peer.send(frame(encode_batch([])) + asking("a"))
    assert [msg.topic for msg in world.got] == ["a"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91" * 100_000,
        bytes(range(100, 200)),
        b"\x91\x92\x01\xa2\xff\xff",
        encode_batch([Message(REQUEST, "a")])[:-1],
        encode_batch([Message(REQUEST, "a")]) + b"\xc0",
        encode_batch([Message(CONTROL, "kvs.setroot")]),
        encode_batch([Message(RESPONSE, "a")]),
        encode_batch([Message(EVENT, "a")]),
        encode_batch([Message(0, "a")]),
        encode_batch([Message(REQUEST, "a", target=1 << 31)]),
    ],
)
def test_a_client_that_breaks_the_protocol_gets_an_error_and_is_closed(world, payload):
    bad, good = world.greeted(), world.greeted()
    bad.send(frame(payload))
    assert isinstance(refusal(bad), errors.ProtocolError)
    assert world.got == []
    assert world.gone == [CLIENT_FIRST]
    good.send(asking("a"))
    assert [msg.topic for msg in world.got] == ["a"], "other clients are served"
    assert counts(world) == {"clients": 1, "accepted": 2, "refused": 1}


@pytest.mark.parametrize("size", [FRAME_BYTES_MAX + 1, 1 << 31, (1 << 32) - 1])
def test_a_frame_that_is_too_long_is_refused_before_it_is_read(world, size):
    peer = world.greeted()
    peer.send(struct.pack("<I", size) + b"x")
    failed = refusal(peer)
    assert isinstance(failed, errors.TooLarge)
    assert str(size) in failed.text


def test_requests_before_a_broken_frame_are_delivered(world):
    peer = world.greeted()
    peer.send(asking("a") + frame(b"\xc1") + asking("b"))
    assert [msg.topic for msg in world.got] == ["a"]
    assert isinstance(refusal(peer), errors.ProtocolError)


def test_a_client_that_disconnects_in_the_middle_of_a_frame(world):
    peer = world.greeted()
    peer.send(asking("a") + asking("b")[:-3])
    peer.sock.close()
    world.turns.quiet()
    assert [msg.topic for msg in world.got] == ["a"]
    assert world.gone == [CLIENT_FIRST]
    world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "a")])
    world.turns.quiet()


def test_a_hop_is_never_used_again(world):
    for number in range(5):
        peer = world.greeted()
        peer.send(asking("a"))
        peer.sock.close()
        world.turns.quiet()
        assert world.gone[-1] == world.got[-1].hop == CLIENT_FIRST - number
    assert world.clients.statistics()["clients"] == 0


def test_a_large_response_is_sent_in_pieces_and_complete(world):
    peer = world.greeted()
    body = os.urandom(3 << 20)
    world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "big", body=body)])
    world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "small")])
    messages: list[Message] = []
    while len(messages) < 2:
        world.turns.turn()
        messages += peer.read()
    assert [msg.topic for msg in messages] == ["big", "small"]
    assert messages[0].body == body
    world.turns.quiet()


def test_a_client_that_does_not_read_is_not_read_from(world):
    peer = world.greeted()
    high = 1 + ClientLimits().out_bytes_high // (1 << 20)
    for _ in range(high):
        world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "big", body=bytes(1 << 20))])
    peer.send(asking("a"))
    assert world.got == [], "its request waits in the socket"
    count = 0
    while count < high:
        world.turns.turn()
        count += len(peer.read())
    world.turns.quiet()
    assert [msg.topic for msg in world.got] == ["a"], "until it has read"


def test_a_client_that_never_reads_is_closed(make_world):
    world = make_world(out_bytes_max=8 << 20)
    world.greeted()
    other = world.greeted()
    for _ in range(10):
        world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "big", body=bytes(1 << 20))])
    assert world.gone == [CLIENT_FIRST]
    other.send(asking("a"))
    assert [msg.topic for msg in world.got] == ["a"]


def test_a_client_that_leaves_events_unread_lags(make_world):
    """Only events count: responses may be of any size. Events that it has read do not count any more."""
    world = make_world(event_bytes_max=3 << 20)
    peer = world.greeted()
    for _ in range(9):
        world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "big", body=bytes(1 << 20))])
    for expected in ([], [], [CLIENT_FIRST]):
        world.clients.send(CLIENT_FIRST, [Message(EVENT, "e", body=bytes(1 << 20))])
        assert world.lagging == expected
    count = 0
    while count < 12:
        world.turns.turn()
        count += len(peer.read())
    for _ in range(3):
        world.clients.send(CLIENT_FIRST, [Message(EVENT, "e", body=bytes(1 << 20))])
    assert world.lagging == [CLIENT_FIRST], "some of the last three are in the socket"
    assert world.gone == []


def test_a_refused_client_that_never_reads_delays_no_other(world):
    peer = world.greeted()
    world.clients.send(CLIENT_FIRST, [Message(RESPONSE, "big", body=bytes(2 << 20))])
    peer.send(frame(b"\xc1"))
    world.turns.quiet()
    peer.send(asking("a"))
    assert world.got == []
    peer.sock.close()
    world.turns.quiet()
    assert world.gone == [CLIENT_FIRST]


LARGE = 2 << 20
"""A frame that takes its room from the part of the pool for long frames."""


def push(peer: Peer, data: bytes) -> bytes:
    """Send what the broker takes; return the rest."""
    while data:
        try:
            data = data[peer.sock.send(data) :]
        except BlockingIOError:
            before = len(data)
            peer.world.turns.quiet()
            try:
                data = data[peer.sock.send(data) :]
            except BlockingIOError:
                return data
            assert len(data) < before
    peer.world.turns.quiet()
    return data


def test_unfinished_frames_of_all_clients_are_bounded(make_world):
    world = make_world(frame_bytes_all_max=4 * LARGE)
    slow, waiting, short = world.greeted(), world.greeted(), world.greeted()
    whole = asking("large", body=bytes(2 * LARGE))
    slow.send(whole[:LARGE])
    rest = push(waiting, whole)
    assert len(rest) > LARGE, "what does not fit into the pool is left in the socket"
    numbers = world.clients.statistics()
    assert (numbers["waiting_frames"], numbers["unfinished_bytes"]) == (1, len(whole) - 4)
    short.send(asking("short", body=bytes(1 << 19)))
    assert [msg.topic for msg in world.got] == ["short"], "shorter frames have room of their own"
    slow.send(whole[LARGE:])
    waiting.send(rest)
    assert [(msg.topic, msg.hop) for msg in world.got] == [
        ("short", CLIENT_FIRST - 2), ("large", CLIENT_FIRST), ("large", CLIENT_FIRST - 1)
    ]  # fmt: skip
    numbers = world.clients.statistics()
    assert (numbers["waiting_frames"], numbers["unfinished_bytes"]) == (0, 0)


def test_many_clients_that_stop_in_a_frame_hold_little_memory(make_world):
    world = make_world(frame_bytes_all_max=4 * LARGE)
    peers = [world.greeted() for _ in range(20)]
    start = asking("large", body=bytes(2 * LARGE))[:LARGE]
    taken = sum(LARGE - len(push(peer, start)) for peer in peers)
    assert taken < 3 * LARGE + 20 * (512 << 10), "the others have one read and the kernel's buffer, not a whole start"
    assert world.clients.statistics()["waiting_frames"] == 19
    for peer in peers:
        peer.sock.close()
    world.turns.quiet()
    for _ in peers:
        world.turns.quiet()
    numbers = world.clients.statistics()
    assert (numbers["clients"], numbers["unfinished_bytes"], numbers["waiting_frames"]) == (0, 0, 0)


def test_a_client_that_stops_in_a_frame_is_closed_while_others_wait(make_world):
    world = make_world(frame_bytes_all_max=4 * LARGE)
    stuck, waiting = world.greeted(), world.greeted()
    whole = asking("large", body=bytes(2 * LARGE))
    stuck.send(whole[:LARGE])
    assert world.clients.deadline == NEVER, "while nobody waits, it may take its time"
    world.now += 20
    rest = push(waiting, whole)
    assert world.clients.deadline == world.now + 10
    world.clients.tick(world.now + 9)
    assert world.got == []
    world.now += 10
    world.clients.tick(world.now)
    error = refusal(stuck)
    assert isinstance(error, errors.Overloaded)
    assert "was unfinished for 30 s" in error.text
    waiting.send(rest)
    assert [(msg.topic, msg.hop) for msg in world.got] == [("large", CLIENT_FIRST - 1)]
    assert world.clients.deadline == NEVER


def test_what_all_clients_leave_unread_is_bounded(make_world):
    world = make_world(out_bytes_all_high=2 << 20, out_bytes_all_max=6 << 20)
    peers = [world.greeted() for _ in range(3)]
    answer = [Message(RESPONSE, "x", body=bytes(1 << 20))]
    for _ in range(3):
        world.clients.send(CLIENT_FIRST, answer)
    peers[0].sock.send(asking("a"))
    peers[1].sock.send(asking("b"))
    world.turns.quiet()
    assert [msg.topic for msg in world.got] == ["b"], "only who reads everything is read from"
    for _ in range(2):
        world.clients.send(CLIENT_FIRST - 1, answer)
        world.clients.send(CLIENT_FIRST - 2, answer)
    assert world.gone == [CLIENT_FIRST], "the one with the most unread is closed"
    assert 3 << 20 < world.clients.statistics()["queued_bytes"] <= 4 << 20
    for peer in peers[1:]:
        assert len(peer.read()) == 2
    peers[1].send(asking("c"))
    peers[2].send(asking("d"))
    assert [msg.topic for msg in world.got] == ["b", "c", "d"]
    assert world.clients.statistics()["queued_bytes"] == 0


def test_unread_events_of_all_clients_are_bounded(make_world):
    world = make_world(event_bytes_all_max=3 << 20, event_bytes_share=1 << 20)
    peers = [world.greeted() for _ in range(2)]
    event = [Message(EVENT, "x", body=bytes(1 << 20))]
    for _ in range(2):
        for hop in (CLIENT_FIRST, CLIENT_FIRST - 1):
            world.clients.send(hop, event)
    assert world.lagging == [CLIENT_FIRST - 1]
    world.clients.send(CLIENT_FIRST, event)
    assert world.lagging == [CLIENT_FIRST - 1, CLIENT_FIRST]
    assert [len(peer.read()) for peer in peers] == [3, 2]
    assert world.clients.statistics()["queued_event_bytes"] == 0


def test_held_clients_are_read_again_afterwards(world):
    peers = [world.greeted() for _ in range(3)]
    world.clients.hold(True)
    for peer in peers:
        peer.send(asking("a"))
    late = world.join()
    late.send(asking("late"))
    assert [msg.topic for msg in world.got] in ([], ["late"])
    world.clients.hold(False)
    world.turns.quiet()
    assert sorted(msg.topic for msg in world.got) == ["a", "a", "a", "late"]


def test_a_client_that_disconnects_while_held_is_noticed_afterwards(world):
    peer = world.greeted()
    world.clients.hold(True)
    peer.send(asking("a"))
    peer.sock.close()
    world.clients.hold(False)
    world.turns.quiet()
    assert [msg.topic for msg in world.got] == ["a"]
    assert world.gone == [CLIENT_FIRST]


# --------------------------------------------------------------------------------------------------------- many, others


def test_many_clients(world):
    peers = [world.greeted() for _ in range(300)]
    for number, peer in enumerate(peers):
        peer.sock.send(asking(f"t{number}"))
    world.turns.quiet()
    assert {(msg.topic, msg.hop) for msg in world.got} == {(f"t{n}", CLIENT_FIRST - n) for n in range(300)}
    for peer in peers[::2]:
        peer.sock.close()
    world.turns.quiet()
    assert world.clients.statistics()["clients"] == 150


def test_a_client_too_many_is_refused(make_world):
    world = make_world(clients_max=2)
    first = world.greeted()
    world.greeted()
    assert isinstance(refusal(world.join()), errors.Overloaded)
    first.sock.close()
    world.turns.quiet()
    world.greeted()


def test_when_descriptors_run_out_the_loop_refuses_clients_and_does_not_spin(world):
    """Thousands of open connections must not use the broker's processor, nor descriptors that it needs for files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = world.greeted()
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] < highest + 5:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
    for fd in fillers[-5:]:
        os.close(fd)
    try:
        for sock in waiting:
            sock.connect(world.path)
        world.turns.quiet()
        assert counts(world) == {"clients": 6, "accepted": 21, "refused": 15}
        here.send(asking("a"))
        assert [msg.topic for msg in world.got] == ["a"]
        frame_of_last = waiting[19].recv(1 << 20)
        (told,) = decode_batch(frame_of_last[4:])
        assert isinstance(errors.decode_error(told.status, told.body), errors.Overloaded)
        assert waiting[19].recv(1) == b""
        for sock in waiting:
            sock.close()
        world.turns.quiet()
        world.greeted()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers[:-5]:
            os.close(fd)


def test_the_spare_descriptor_is_closed_once_and_opened_again(world):
    """No client waits: a file that got the spare descriptor's number meanwhile must not be closed."""
    assert not world.clients.refuse_without_descriptor()
    with open(os.devnull) as other:
        assert not world.clients.refuse_without_descriptor()
        os.fstat(other.fileno())
    os.fstat(world.clients.spare)


def test_clients_leave_descriptors_for_the_broker(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_RESERVED + 3, hard))
    try:
        world = World(str(tmp_path / "few"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for _ in range(3):
        world.greeted()
    assert isinstance(refusal(world.join()), errors.Overloaded)
    world.close()


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.settimeout(10)
sock.connect(sys.argv[1])
while data := sock.recv(4096):
    os.write(1, data)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_another_user_is_refused():
    """The directory's mode excludes other users; if it were open, the socket's check would."""
    with tempfile.TemporaryDirectory(prefix="fxt-") as folder:
        os.chmod(folder, 0o755)
        world = World(os.path.join(folder, "s"))
        os.chmod(world.path, 0o777)
        with subprocess.Popen([sys.executable, "-c", STRANGER, world.path], stdout=subprocess.PIPE) as stranger:
            world.turns.until(lambda: world.gone or stranger.poll() is not None)
            assert stranger.stdout is not None
            data = stranger.stdout.read()
        (msg,) = decode_batch(data[4:])
        failed = errors.decode_error(msg.status, msg.body)
        assert isinstance(failed, errors.PermissionDenied)
        assert "belongs to uid 0, not to 65534" in failed.text
        assert world.got == []
        assert counts(world) == {"clients": 0, "accepted": 1, "refused": 1}
        world.close()
