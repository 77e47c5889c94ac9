"""Long values through a real broker's socket: mapped, streamed, put from files; and failures."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import mmap
import os
import random
import resource
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from running_broker import RunningBroker, running_broker

from fluxmpi import errors
from fluxmpi.blobref import digest_function
from fluxmpi.client.channel import Channel
from fluxmpi.client.future import Future
from fluxmpi.client.handle import Handle
from fluxmpi.client.kvs.stored_value import descriptor, view
from fluxmpi.client.kvs.value_file import ValueFile, store_file
from fluxmpi.client.sockets import DescriptorQueue
from fluxmpi.content.wire import Map
from fluxmpi.drivers.clients import ClientLimits
from fluxmpi.drivers.segments import SEALS
from fluxmpi.kvs.objects import ValRef

MIB = 1 << 20
LONG = random.Random(1).randbytes(3 * MIB + 12345)
SHA256 = digest_function("sha256")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("b"), ClientLimits(unread_descriptors_max=12)) as made:
        yield made


@pytest.fixture
def channel(broker: RunningBroker) -> Iterator[Channel]:
    with contextlib.closing(broker.open_channel()) as made:
        yield made


@pytest.fixture
def h(broker: RunningBroker) -> Iterator[Handle]:
    with broker.connect() as handle:
        yield handle
        statistics = handle.rpc("stats.get")
        assert (statistics["value"]["pending"], statistics["content"]["pending"]) == (0, 0)


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def segments_open() -> int:
    """The descriptors of segments that this process has open, broker and clients together; each mapping has one."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += "memfd:fluxmpi-value" in os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
    return found


# -------------------------------------------------------------------------------------------------------------- mapped


def test_an_array_comes_read_only_and_is_nobodys_copy(h: Handle, broker: RunningBroker) -> None:
    array = np.arange(MIB // 2, dtype="<f8").reshape(4, -1)
    h.kvs.put("map.array", array)
    with broker.connect() as other:
        first, second = h.kvs.get("map.array"), other.kvs.get("map.array")
    assert first.shape == array.shape
    assert first.dtype == array.dtype
    assert (first == array).all()
    assert (second == array).all(), "also after its handle was closed"
    assert isinstance(first.base, mmap.mmap)
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.flags.writeable = True
    assert h.rpc("stats.get")["value"]["filled"] >= 1
    copy = first.copy()
    copy[0, 0] = 7


@pytest.mark.parametrize(("size", "writeable"), [(MIB - 1, True), (MIB, False), (MIB + 1, False)])
def test_from_a_mib_on_arrays_are_read_only(h: Handle, size: int, writeable: bool) -> None:
    h.kvs.put("map.size", np.frombuffer(LONG[:size], dtype=np.uint8))
    got = h.kvs.get("map.size")
    assert got.tobytes() == LONG[:size]
    assert got.flags.writeable == writeable


@pytest.mark.parametrize("kind", ["<f8", ">i4", "<U3", "datetime64[s]", [("a", "<i2"), ("b", "<f4", (2,))]], ids=str)
def test_long_arrays_of_any_dtype(h: Handle, kind: object) -> None:
    dtype = np.dtype(kind)
    array = np.frombuffer(b"\x07\x00\x00\x00" * dtype.itemsize * 150_000, dtype=dtype).reshape(2, -1)
    for put in (array, array[:, ::2], np.asfortranarray(array)):
        h.kvs.put("map.kind", put)
        got = h.kvs.get("map.kind")
        assert got.dtype == dtype
        assert got.tobytes() == put.tobytes()


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_long_bytes(h: Handle, make: type) -> None:
    h.kvs.put("map.bytes", make(LONG))
    got = h.kvs.get("map.bytes")
    assert type(got) is bytes
    assert got == LONG
    seen = h.kvs.view("map.bytes")
    assert seen.readonly
    assert seen == LONG


def test_a_buffer_that_is_no_row_of_bytes(h: Handle) -> None:
    doubles = memoryview(np.arange(MIB, dtype="<f8"))
    h.kvs.put("map.doubles", doubles)
    assert h.kvs.get("map.doubles") == doubles.tobytes()
    h.kvs.put("map.strided", memoryview(bytearray(LONG))[::2])
    assert h.kvs.get("map.strided") == LONG[::2]


def test_the_pages_are_sealed_and_the_descriptors_stay_in_this_program(h: Handle, channel: Channel) -> None:
    h.kvs.put("map.sealed", LONG)
    found = h.kvs.get_object("map.sealed")
    assert isinstance(found, ValRef)
    fd = descriptor(channel, found)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        assert os.fstat(fd).st_size == len(LONG)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 10)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_WRITE)
        for number in os.listdir("/proc/self/fd"):
            if os.path.exists(f"/proc/self/fd/{number}") and "memfd" in os.readlink(f"/proc/self/fd/{number}"):
                assert fcntl.fcntl(int(number), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


def test_no_descriptor_is_left_behind(h: Handle, broker: RunningBroker) -> None:
    gc.collect()
    h.content.dropcache()
    until(lambda: segments_open() == 0, "what was dropped is closed")
    for turn in range(5):
        h.kvs.put("map.left", LONG[turn:])
        got = [h.kvs.view("map.left") for _ in range(3)]
        assert segments_open() == 1 + turn + 3, "the broker's of each value, and one a mapping"
        del got
        assert h.kvs.get("map.left") == LONG[turn:]
    h.content.dropcache()
    until(lambda: segments_open() == 0, "the broker has none any more")


def test_a_client_that_leaves_while_it_waits(h: Handle, broker: RunningBroker) -> None:
    h.kvs.put("map.leave", LONG)
    found = h.kvs.get_object("map.leave")
    assert isinstance(found, ValRef)
    h.content.dropcache()
    until(lambda: segments_open() == 0, "what was dropped is closed")
    for _ in range(20):
        leaving = broker.connect()
        leaving.rpc_async("value.map", Map(list(found.refs), found.size))
        socket.socket(fileno=os.dup(leaving.fileno())).shutdown(socket.SHUT_RDWR)
    until(lambda: h.rpc("stats.get")["clients"]["clients"] == 1, "they are gone")
    assert h.rpc("stats.get")["value"]["pending"] == 0
    h.content.dropcache()
    until(lambda: segments_open() == 0, "nothing of theirs is left")


def test_a_map_that_is_given_up_is_closed_when_it_comes(
    h: Handle, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    h.kvs.put("map.late", LONG)
    found = h.kvs.get_object("map.late")
    assert isinstance(found, ValRef)
    h.content.dropcache()
    until(lambda: segments_open() == 0, "what was dropped is closed")

    def late(self: Future, timeout: float | None = None) -> None:
        raise errors.RequestTimeout("too late")

    with monkeypatch.context() as patch:
        patch.setattr(Future, "get", late)
        for _ in range(10):
            with pytest.raises(errors.RequestTimeout):
                descriptor(channel, found)
    until(lambda: channel.rpc("ping.ping", [0]) is not None and channel.descriptors is None, "all answers have come")
    assert segments_open() == 1, "the broker's"
    assert view(channel, found) == LONG


def test_values_that_are_refused(h: Handle) -> None:
    h.kvs.put("map.refused", LONG)
    found = h.kvs.get_object("map.refused")
    assert isinstance(found, ValRef)
    refs = list(found.refs)
    for wrong, kind in (
        (Map(refs, found.size + 1), errors.InvalidRequest if found.size % MIB == 0 else errors.DigestMismatch),
        (Map(refs[:-1], found.size), errors.InvalidRequest),
        (Map([*refs[:-1], SHA256(b"nobody has this")], found.size), errors.NoSuchBlob),
        (Map(refs * 250_000, 1 << 30), errors.TooLarge),
        (Map([], 0), errors.InvalidRequest),
    ):
        with pytest.raises(kind):
            h.rpc("value.map", wrong)
    with pytest.raises(errors.InvalidRequest):
        h.rpc("value.map", "what")


def test_a_value_whose_blob_is_missing(h: Handle) -> None:
    refs = (h.content.store_all([LONG[:MIB]])[0], SHA256(b"nobody has this"))
    damaged = ValRef("raw", MIB + 15, refs)
    with pytest.raises(errors.SnapshotCollected):
        h.kvs.value_of(damaged)
    with pytest.raises(errors.SnapshotCollected), h.kvs.file_of(damaged) as reader:
        reader.read()


def test_a_value_that_the_broker_may_not_hold_is_loaded(tmp_path: Path) -> None:
    with running_broker(tmp_path, segments_bytes_max=MIB) as small, small.connect() as h:
        h.kvs.put("a", np.frombuffer(LONG, dtype=np.uint8))
        got = h.kvs.get("a")
        assert got.tobytes() == LONG
        assert not got.flags.writeable, "it does not depend on the free memory"
        with h.kvs.open("a") as reader:
            reader.seek(-5, os.SEEK_END)
            assert reader.read() == LONG[-5:]
        statistics = h.rpc("stats.get")
        assert (statistics["value"]["filled"], statistics["value"]["pending"]) == (0, 0)


def test_a_descriptor_that_there_is_no_room_for() -> None:
    ours, theirs = socket.socketpair()
    source = os.memfd_create("fluxmpi-value")
    socket.send_fds(theirs, [b"ab"], [source])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = DescriptorQueue()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    filled = []
    try:
        while True:
            try:
                filled.append(os.dup(source))
            except OSError:
                break
        assert descriptors.receive(ours, 10) == b"ab"
    finally:
        for fd in filled:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(descriptors.arrived) == [-1]
    ours.close()
    theirs.close()
    os.close(source)


def test_a_client_that_hoards_descriptors_is_closed(broker: RunningBroker, h: Handle) -> None:
    h.kvs.put("map.hoard", LONG)
    found = h.kvs.get_object("map.hoard")
    assert isinstance(found, ValRef)
    h.kvs.view("map.hoard")
    hoarder = broker.connect()
    with hoarder.batch():
        for _ in range(20):
            hoarder.rpc_async("value.map", Map(list(found.refs), found.size))
    until(lambda: h.rpc("stats.get")["clients"]["clients"] == 1, "it is closed")
    with pytest.raises(errors.ConnectionLost):
        hoarder.rpc("ping.ping", [0])
    hoarder.close()
    for _ in range(20):
        assert h.kvs.view("map.hoard") == LONG, "a client that reads them is not closed"
    gc.collect()


# ------------------------------------------------------------------------------------------------------------ streamed


@pytest.mark.parametrize("length", [0, 1, 256, 257, 70_000, MIB, MIB + 1, len(LONG)])
def test_a_file_goes_in_and_comes_out(h: Handle, tmp_path: Path, length: int) -> None:
    data = LONG[:length]
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    told: list[int] = []
    h.kvs.put_file("file", source, progress=told.append)
    assert told == sorted(told)
    assert told[-1:] == ([length] if length > 256 else [])
    assert h.kvs.get("file") == data
    told.clear()
    assert h.kvs.get_file("file", target, progress=told.append) == length
    assert target.read_bytes() == data
    assert told[-1:] == ([length] if length else [])
    buffer = io.BytesIO()
    assert h.kvs.get_file("file", buffer) == length
    assert buffer.getvalue() == data
    with open(source, "rb") as file, h.kvs.txn() as txn:
        assert txn.put_file("again", file) == length
        txn.put("beside", length)
    assert h.kvs.get_object("again") == h.kvs.get_object("file")


def test_a_pipe_that_gives_little_at_a_time_is_cut_all_the_same(h: Handle, channel: Channel) -> None:
    ours, theirs = os.pipe()

    def write() -> None:
        with open(theirs, "wb", buffering=0) as pipe:
            for begin in range(0, len(LONG), 50_001):
                pipe.write(LONG[begin : begin + 50_001])

    writer = threading.Thread(target=write)
    writer.start()
    with open(ours, "rb", buffering=0) as pipe:
        size, found = store_file(channel, pipe)
    writer.join()
    assert size == len(LONG)
    assert isinstance(found, ValRef)
    assert len(found.refs) == 4
    assert h.kvs.bytes_of(found) == LONG


def test_a_text_file_is_refused(h: Handle) -> None:
    with pytest.raises(errors.InvalidRequest, match="open for bytes"):
        h.kvs.put_file("text", io.StringIO("x"))  # type: ignore[arg-type]
    with pytest.raises(errors.NoSuchKey):
        h.kvs.get("text")


def test_a_file_that_cannot_be_written_is_not_left_half(h: Handle, tmp_path: Path) -> None:
    h.kvs.put("half", LONG)

    def stop(done: int) -> None:
        if done > MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        h.kvs.get_file("half", tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert h.kvs.get("half") == LONG, "the handle is usable as before"


@pytest.mark.parametrize("mapped", [True, False])
def test_reading_anywhere(h: Handle, channel: Channel, mapped: bool) -> None:
    """Blobs of odd sizes, as appends make them, are read in any order and past the end as a file of that content is."""
    rng = random.Random(4)
    sizes = [700_000, MIB, 5, 1, MIB, 300_000, MIB - 1]
    blobs, begin = [], 0
    for size in sizes:
        blobs.append(LONG[begin % MIB : begin % MIB + size])
        begin += 1234
    data = b"".join(blobs)
    found = ValRef("raw", len(data), tuple(h.content.store_all(blobs)))
    same = io.BytesIO(data)
    with ValueFile(channel, found, mappable=mapped) as reader:
        for _ in range(120):
            if rng.random() < 0.4:
                to, whence = rng.choice(((rng.randrange(len(data) + 50), 0), (-rng.randrange(len(data)), 2), (0, 1)))
                assert reader.seek(to, whence) == same.seek(to, whence)
            size = rng.choice((0, 1, 100, 70_000, 2 * MIB))
            wanted = same.read(size)
            got = b""
            while len(got) < len(wanted):
                piece = reader.read(size - len(got))
                assert piece
                got += piece
            assert got == wanted
            assert reader.tell() == same.tell()
        assert reader.is_mapped == mapped
        with pytest.raises(ValueError, match="before the start"):
            reader.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        reader.read(1)


def test_a_reader_is_a_file(h: Handle) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(200_000))
    h.kvs.put("lines", lines)
    with io.BufferedReader(h.kvs.open("lines")) as file:
        assert sum(1 for _ in file) == 200_000
    h.kvs.put("npy", np.arange(10))
    with h.kvs.open("npy") as small:
        assert small.size == 80
        assert small.readall() == np.arange(10).tobytes()
    h.kvs.mkdir("directory")
    with pytest.raises(errors.IsADirectory):
        h.kvs.open("directory")


@pytest.mark.parametrize("size", [2 * MIB + 5, 2 * MIB - 5])
def test_a_stream_of_another_size_than_said(h: Handle, size: int) -> None:
    found = ValRef("raw", size, tuple(h.content.store_all([LONG[:MIB], LONG[MIB : 2 * MIB]])))
    with pytest.raises(errors.DigestMismatch, match="stored damaged"), h.kvs.file_of(found) as reader:
        reader.readall()


def test_streams_need_little_memory(h: Handle, tmp_path: Path) -> None:
    """64 MiB are written and read with less than 40 MiB, of this thread and of the broker together."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    tracemalloc.start()
    try:
        h.kvs.put_file("sparse", path)
        h.kvs.get_file("sparse", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size == 64 * MIB
    assert peak < 40 * MIB, f"{peak / MIB:.0f} MiB"


def test_an_array_is_put_without_a_copy_of_the_whole(h: Handle) -> None:
    array = np.zeros(64 * MIB, dtype=np.uint8)
    tracemalloc.start()
    try:
        h.kvs.put("zeros", array)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * MIB, f"{peak / MIB:.0f} MiB"
    assert h.kvs.get("zeros").nbytes == 64 * MIB
