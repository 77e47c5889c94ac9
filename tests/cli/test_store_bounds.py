"""The bounds of the store and its history, on real instances: options, commands, memory, and a process at its limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from instance import END_S, FLUXMPI, Instance, environment

from fluxmpi.errors import NoSuchKey, SnapshotCollected, StoreFull

MIB = 1 << 20


def array(number: int, megabytes: float = 1.0) -> numpy.ndarray:
    """Return an array of which no two pieces are the same."""
    return numpy.arange(int(megabytes * 1e6 / 8)) + float(number)


def test_overwriting_a_large_array_stays_within_the_history(tmp_path: Path) -> None:
    """Memory of rank 0 stays near the bound, whatever was written."""
    with Instance(1, ["--history-bytes", "20M"]) as instance, instance.connect() as h:
        h.kvs.put("big", array(0, 8.0))
        for number in range(1, 40):
            h.kvs.put("big", array(number, 8.0))
        status = h.kvs.gc()
        assert status.bytes < 30 * 10**6, "one that is live, and two old ones"
        assert h.kvs.retention().bytes == 20 * MIB
        assert [past.version for past in h.kvs.history("big")] == [40, 39]
        assert h.kvs.get("big")[0] == 39.0
        with pytest.raises(SnapshotCollected):
            h.kvs.get("big", at=20)
        peak = next(
            int(line.split()[1]) / 1024
            for line in Path(f"/proc/{h.broker_pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        assert peak < 200, f"{peak} MiB: 320 MB were written"


def test_retention_from_the_command_line(instance: Instance) -> None:
    assert instance.run("kvs", "namespace", "create", "b1").status == 0
    done = instance.run("kvs", "retention", "-N", "b1", "--bytes", "64M", "--count", "100", "--age", "10m")
    assert done.out == "100 versions, 600 s, 64 MiB\n"
    done = instance.run("kvs", "retention", "-N", "b1", "--json")
    found = json.loads(done.out)
    assert (found["count"], found["age_s"], found["bytes"]) == (100, 600.0, 64 * MIB)
    bad = instance.run("kvs", "retention", "-N", "b1", "--bytes", "64Q")
    assert (bad.status, "use a number of bytes, or 512K, 64M" in bad.err) == (2, True)
    bad = instance.run("kvs", "retention", "-N", "b1", "--bytes", "0")
    assert (bad.status, "a count of 1 keeps no older version" in bad.err) == (1, True)
    assert "--bytes 64M" in instance.run("kvs", "retention", "--help").out


def test_numbers_of_the_store(instance: Instance) -> None:
    lines = instance.run("kvs", "gc").lines
    assert [line.partition(":")[0] for line in lines[:5]] == [
        "live", "retained by history", "retained by leases", "garbage, freed", "store",
    ]  # fmt: skip
    assert " of " in lines[4], "the limit of the store"
    numbers = json.loads(instance.run("kvs", "stats", "-r", "0", "--json").out)["gc"]
    assert {"live_bytes", "history_bytes", "leased_bytes", "bytes", "bytes_max", "warned", "refused"} <= set(numbers)
    assert numbers["bytes_max"] > 100 * MIB


def test_a_full_store(tmp_path: Path) -> None:
    """It refuses what does not fit, warns once, and can be read, emptied and saved."""
    file = tmp_path / "full.h5"
    with Instance(2, ["--store-bytes", "12M", "--checkpoint", str(file), "--checkpoint-every", "off"]) as instance:
        with instance.connect(1) as h:
            for number in range(12):
                h.kvs.put(f"k{number}", array(number))
            with pytest.raises(StoreFull) as caught:
                h.kvs.put("k12", array(12))
            assert caught.value.definite
            assert "--store-bytes" in caught.value.text
            refused = instance.run("kvs", "put", "--raw", "text=-", rank=1, stdin=b"x" * 700_000)
            assert (refused.status, "the store is full" in refused.err) == (1, True)
            assert h.kvs.get("k3")[0] == 3.0
            assert h.kvs.unlink("k3").version
            assert h.kvs.put("k4", array(44)).version, "there is room, after a collection"
        assert instance.run("checkpoint", "save").status == 0
        assert instance.log().count("% full: of 12,582,912 bytes") == 1
    with Instance(1, ["--store-bytes", "100M", "--checkpoint", str(file), "--resume"]) as again, again.connect() as h:
        assert h.kvs.get("k4")[0] == 44.0
        with pytest.raises(NoSuchKey):
            h.kvs.get("k3")


def test_retention_is_kept_across_a_resume(tmp_path: Path) -> None:
    file = str(tmp_path / "kept.h5")
    with (
        Instance(1, ["--checkpoint", file, "--history-bytes", "7M", "--history-age", "1h"]) as instance,
        instance.connect() as h,
    ):
        h.kvs.namespaces.create("work")
        h.kvs.namespace("work").retention(count=5)
    with Instance(1, ["--checkpoint", file, "--resume", "--history-age", "2h"]) as again, again.connect() as h:
        kept = h.kvs.namespace("work").retention()
        assert (kept.count, kept.age_s, kept.bytes) == (5, 7200.0, 7 * MIB)
        kept = h.kvs.retention()
        assert (kept.count, kept.age_s, kept.bytes) == (10_000, 7200.0, 7 * MIB)


PROGRAM = """
import numpy, fluxmpi
h = fluxmpi.connect()
stored, errors = 0, []
for number in range(400):
    try:
        h.kvs.put(f"k{number}", numpy.full(250_000, number, dtype="f8"))
        stored += 1
    except fluxmpi.FluxmpiError as error:
        errors.append(type(error).__name__)
        h.close()
        if len(errors) == 5:
            break
        h = fluxmpi.connect()
h = fluxmpi.connect()
assert h.kvs.get("k3").nbytes == 2_000_000
for number in range(0, stored, 2):
    h.kvs.unlink(f"k{number}")
h.kvs.retention(count=1)
h.kvs.gc()
h.kvs.put("again", numpy.zeros(100_000))
print(stored, *errors)
"""


@pytest.mark.parametrize("options", [(), ("--store-bytes", "100G")], ids=["default", "too large"])
def test_a_broker_at_its_limit_of_memory(options: tuple[str, ...], tmp_path: Path) -> None:
    """It refuses what lacks memory, goes on, and saves. By default, its store is full before."""
    file = tmp_path / "limit.h5"
    start = [*FLUXMPI, "start", *options, "--checkpoint", str(file), "--", sys.executable, "-c", PROGRAM]
    limited = ["sh", "-c", 'ulimit -v 700000; exec "$@"', "sh", *start]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True, timeout=2 * END_S, check=False)
    assert done.returncode == 0, done.stderr
    stored, *errors = done.stdout.split()
    assert int(stored) > 50
    # The connection is closed when there is no memory to read from it; the error may not arrive before.
    assert errors[0] in (("OutOfMemory", "ConnectionLost") if options else ("StoreFull",)), done.stdout
    assert "failed" not in done.stderr
    with Instance(1, ["--checkpoint", str(file), "--resume"]) as again, again.connect() as h:
        assert h.kvs.get("again").size == 100_000
        assert h.kvs.get("k1")[0] == 1.0
