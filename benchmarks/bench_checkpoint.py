"""A checkpoint of 1,000,000 small keys (ten directories of 100,000), and its effect on commits during the save.

The keys are committed 100,000 at a time at rank 0 of two brokers. Then, three times: save, and restore into the
running instance. Meanwhile the same process commits one small key after another on a second handle; the longest of
those commits is the stall. That instance has the blobs already, so its restore reads and verifies but stores nothing
new. The last figure is a restore from nothing: another instance of two brokers resumes from the file. With --quick:
100,000 keys.

All keys and values are distinct: the store keeps equal directories once, and ten equal ones would be a tenth of the
work. The size of the file is checked for that.
"""

from __future__ import annotations

import subprocess

from common import START, Instance, clock, environment, once, scratch

from fluxmpi.drivers import checkpoint
from fluxmpi.kvs.wire import Progress, Restore, Restored, Save, Saved

DIRECTORY_KEYS = 100_000
KEY_BYTES_MIN = 20
"""Bytes of a key in the file, at least: a name of ten bytes, its value, and their encoding."""


def measure(bench) -> None:
    with scratch() as folder:
        path = str(folder / "store.h5")
        with Instance(2) as instance:
            handle, committer = instance.connect(0), instance.connect(0)
            build = 0.0
            for number in range(bench.count(10)):
                first = number * DIRECTORY_KEYS
                values = {f"d{number}.key{index:07}": index for index in range(first, first + DIRECTORY_KEYS)}
                build += once(lambda values=values: handle.kvs.commit(values))
            bench.record("checkpoint.build", [build])
            keys = bench.count(10) * DIRECTORY_KEYS
            for kind, body, last in (("save", Save(path), Saved), ("restore", Restore(path), Restored)):
                times, stalls = [], []
                for _ in range(bench.count(3, 1)):
                    took, stall = _meanwhile(handle, committer, f"checkpoint.{kind}", body, last)
                    times.append(took)
                    stalls.append(stall)
                if kind == "save":
                    (newest, *_) = checkpoint.list_generations(path)
                    assert newest.byte_count >= keys * KEY_BYTES_MIN, (
                        f"{newest.byte_count} bytes are too few for {keys} distinct keys"
                    )
                    bench.note(
                        f"checkpoint: {keys:,} distinct keys, {newest.blob_count:,} blobs, {newest.byte_count:,} bytes"
                    )
                bench.record(f"checkpoint.{kind}", times)
                bench.record("checkpoint.stall" if kind == "save" else "checkpoint.restore-stall", stalls)
        bench.record("checkpoint.resume", [once(lambda: _resume(path)) for _ in range(bench.count(3, 1))])
    if bench.quick:
        bench.note("checkpoint: with --quick 100,000 keys, a tenth")


def _meanwhile(handle, committer, topic: str, body, last) -> tuple[float, float]:
    """Return the seconds of the operation, and of the longest commit during it."""
    longest = 0.0
    begin = clock()
    stream = handle.stream(topic, body, target=0, reply=Progress, last=last)
    index = 0
    while not stream.ended:
        before = clock()
        committer.kvs.put("meanwhile.key", index)
        longest = max(longest, clock() - before)
        index += 1
        handle.poll_input()
        while stream.ready and not stream.ended:
            stream.get()
    return clock() - begin, longest


def _resume(path: str) -> None:
    subprocess.run(
        [
            *START,
            "-n",
            "2",
            "--checkpoint",
            path,
            "--checkpoint-fallback",
            f"{path}.spare",
            "--resume",
            "--",
            "sh",
            "-c",
            "kill -9 $PPID",
        ],
        env=environment(),
        stderr=subprocess.DEVNULL,
        check=False,
    )
