"""Long values through commands, brokers and MPI: streaming, closed pipes, Ctrl-C, and three readers."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from instance import FLUXMPI, Instance, environment

from fluxmpi.errors import NoSuchBlob, SnapshotCollected
from fluxmpi.kvs.objects import ValRef

MIB = 1 << 20
LONG = random.Random(2).randbytes(40 * MIB + 77)

MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdin=sys.stdin, stdout=sys.stdout).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""
"""Runs a command, and prints its peak memory in KiB."""


def statistics(instance: Instance, rank: int) -> dict:
    with instance.connect(rank) as h:
        return h.rpc("stats.get")


def pending(instance: Instance) -> list[float]:
    found = [statistics(instance, rank) for rank in range(instance.size)]
    return [each[service]["pending"] for each in found for service in ("content", "value")]


def test_a_file_is_streamed_between_ranks_with_little_memory(instance: Instance, tmp_path) -> None:
    """200 MiB by commands whose peak memory is below 120 MiB; the brokers' caches stay within their limits."""
    path, out = tmp_path / "in", tmp_path / "out"
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for number in range(200):
            block = random.Random(number).randbytes(1 << 16) * 16
            file.write(block)
            digest.update(block)
    peaks = []
    with open(path, "rb") as source, open(out, "wb") as target:
        for words, rank in ((["put", "-r", "lt1.file=-"], 1), (["get", "-r", "-f", "lt1.file"], 2)):
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *FLUXMPI, "kvs", *words],
                env=environment(instance.rank_uri(rank)),
                stdin=source,
                stdout=target,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stderr.split()[-1]) >> 10)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest.hexdigest()
    assert max(peaks) < 120, f"{peaks} MiB"
    for rank in (1, 2):
        content = statistics(instance, rank)["content"]
        assert content["bytes"] <= content["bytes_max"]
    assert not any(pending(instance))


def test_a_reader_that_stops_early(instance: Instance) -> None:
    with instance.connect() as h:
        h.kvs.put("lt2.long", LONG)
    command = " ".join([*FLUXMPI, "kvs", "get", "-r", "-f", "lt2.long"])
    script = f"set -o pipefail; {command} | head -c 1000"
    done = subprocess.run(
        ["bash", "-c", script], env=environment(instance.rank_uri(2)), capture_output=True, timeout=60
    )
    assert (done.stdout, done.returncode, done.stderr) == (LONG[:1000], 141, b"")
    assert not any(pending(instance))


def test_ctrl_c_in_the_middle_of_a_put(instance: Instance) -> None:
    """The key is unchanged, and no request of the client is pending."""
    assert instance.run("kvs", "put", "lt3.key=before").status == 0
    process = instance.popen("kvs", "put", "-r", "lt3.key=-", stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(LONG[: 20 * MIB])
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in err
    assert instance.run("kvs", "get", "-f", "lt3.key").out == "before\n"
    assert not any(pending(instance))


def with_terminal(instance: Instance, *words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command whose stderr is a terminal. Return its status, its stdout, and the text on the terminal."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
        except OSError:
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    process = instance.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    out, _ = process.communicate(stdin, timeout=60)
    watcher.join(20)
    os.close(ours)
    return process.returncode, out, bytes(seen)


@pytest.mark.parametrize("length", [0, 100, 5 * MIB, len(LONG)])
def test_the_progress_of_a_long_transfer_is_shown_on_a_terminal(instance: Instance, length: int) -> None:
    data = LONG[:length]
    for words, stdin, wanted in ((["put", "-r", "lt4.key=-"], data, b""), (["get", "-f", "-r", "lt4.key"], b"", data)):
        status, out, seen = with_terminal(instance, "kvs", *words, stdin=stdin)
        assert (status, out == wanted) == (0, True)
        assert (b"lt4.key" in seen) == (length > 8 * MIB), seen[-500:]


def test_every_rank_maps_a_long_array_and_the_tree_carries_it_once(instance: Instance) -> None:
    array = np.frombuffer(LONG[: 40 * MIB], dtype="<u4") ^ 5
    with instance.connect(0) as h:
        version = h.kvs.put("lt5.array", array).version
    handles = [instance.connect(rank) for rank in range(3)]
    before = [h.rpc("stats.get")["content"]["loaded"] for h in handles]
    got: list[np.ndarray] = []

    def read(number: int) -> None:
        handles[number].kvs.wait_version(version)
        got.append(handles[number].kvs.get("lt5.array"))

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert len(got) == 3
    for found in got:
        assert (found == array).all()
        assert not found.flags.writeable
    loaded = [h.rpc("stats.get")["content"]["loaded"] - was for h, was in zip(handles, before, strict=True)]
    assert loaded[0] == 0
    assert all(40 <= count <= 44 for count in loaded[1:]), f"{loaded}: each piece once, and at most a few nodes"
    for h in handles:
        h.content.dropcache(h.rank)
        h.close()
    assert not any(pending(instance))
    assert (got[0] == array).all(), "a mapped value stays readable"


def test_a_value_with_a_missing_blob(instance: Instance) -> None:
    """It cannot be committed; reading it raises SnapshotCollected at any rank."""
    with instance.connect(1) as h:
        (ref,) = h.content.store_all([LONG[:MIB]])
        damaged = ValRef("raw", MIB + 20, (ref, bytes(32)))
        txn = h.kvs.txn()
        txn.put_object("lt6.damaged", damaged)
        with pytest.raises(NoSuchBlob):
            txn.commit()
        with pytest.raises(SnapshotCollected):  # a missing blob means a collected one
            h.kvs.value_of(damaged)
        with pytest.raises(SnapshotCollected), h.kvs.file_of(damaged) as reader:
            reader.readall()
    assert not any(pending(instance))


def test_an_instance_without_segments() -> None:
    array = np.arange(MIB, dtype="<i4")
    with Instance(2, ["--segment-bytes=100"]) as small, small.connect(1) as h:
        h.kvs.put("array", array)
        assert (h.kvs.get("array") == array).all()
        value = statistics(small, 1)["value"]
        assert (value["bytes_max"], value["filled"], value["pending"]) == (100, 0, 0)


def test_a_chain_of_brokers_with_a_tiny_cache() -> None:
    """Each broker requests each piece once, even with a tiny cache: it keeps the pieces in its segment of the value."""
    array = np.frombuffer(LONG[: 40 * MIB], dtype="<u4")
    with Instance(3, ["--cache-bytes=1000", "--topology=kary:1"]) as small:
        with small.connect(2) as leaf:
            version = leaf.kvs.put("array", array).version
            assert small.run("kvs", "get", "-r", "array", rank=2).raw == array.tobytes()
        handles = [small.connect(rank) for rank in (1, 2)]
        before = [h.rpc("stats.get")["content"]["loaded"] for h in handles]
        for h in handles:
            h.kvs.wait_version(version)
            assert (h.kvs.get("array") == array).all()
        loaded = [h.rpc("stats.get")["content"]["loaded"] - was for h, was in zip(handles, before, strict=True)]
        assert all(count <= 44 for count in loaded), loaded
        assert handles[0].rpc("stats.get")["content"]["read"] >= 38, "the leaf's pieces came from rank 1's segment"
        for h in handles:
            h.close()
        assert not any(pending(small))
