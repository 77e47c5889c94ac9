"""Commands with invalid requests: exit status 1, one line with the reason, nothing applied, no pending state."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from instance import FLUXMPI, Instance, environment

from fluxmpi import Handle

pytestmark = pytest.mark.usefixtures("nothing_left")
LARGEST = (1 << 63) - 1


@pytest.fixture
def kvs(instance: Instance) -> Iterator[Kvs]:
    with instance.connect(2) as h:
        h.kvs.commit({"cmd.number": 1, "cmd.text": "text", "cmd.max": LARGEST, "cmd.dir.x": 1})
        yield Kvs(instance, h)


class Kvs:
    """``fluxmpi kvs`` at rank 2."""

    def __init__(self, instance: Instance, h: Handle) -> None:
        self.instance = instance
        self.root = lambda: h.kvs.snapshot(fresh=True)

    def __call__(self, *words: str, stdin: str = "") -> str:
        done = self.instance.run("kvs", *words, rank=2, stdin=stdin.encode())
        assert (done.status, done.err) == (0, "")
        return done.out

    def refused(self, *words: str, stdin: str = "", expected: str) -> None:
        """Run a command that must fail with one line on stderr and change nothing."""
        before = self.root()
        done = self.instance.run("kvs", *words, rank=2, stdin=stdin.encode())
        assert done.status == 1, done
        assert done.err.startswith(f"fluxmpi kvs {words[0]}")
        assert done.err.count("\n") == 1, "one line states the reason"
        assert expected in done.err
        assert self.root() == before


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        ("when cmd.text < 1", "cmd.text"),
        ("when cmd.number ~ 1", "~"),
        ("when cmd.number version <= soon", "soon"),
        ("when cmd.dir == 1", "cmd.dir"),
        ("when cmd.number", "line 1"),
    ],
)
def test_guards_of_the_wrong_type(kvs: Kvs, guard: str, expected: str) -> None:
    kvs.refused("txn", stdin=f"{guard}\nput cmd.other=1\n", expected=expected)


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        (["cmd.text", "<", 1], "cmd.text"),
        (["cmd.number", "~", 1], "~"),
        (["cmd.number", "version", "<=", "x"], "x"),
        (["cmd.number"], "cmd.number"),
        (7, "list of lists"),
    ],
)
def test_guards_of_the_wrong_type_in_json(kvs: Kvs, guard: object, expected: str) -> None:
    kvs.refused(
        "txn", "--json", stdin=json.dumps({"when": [guard], "then": [["put", "cmd.other", 1]]}), expected=expected
    )


@pytest.mark.parametrize("key", ["cmd.text", "cmd.dir"])
def test_add_to_a_value_that_is_not_an_integer(kvs: Kvs, key: str) -> None:
    kvs.refused("add", key, "1", expected=key)
    kvs.refused("txn", stdin=f"put cmd.other=1\nadd {key}\n", expected=key)


@pytest.mark.parametrize("amount", ["1", str(LARGEST)])
def test_a_sum_over_64_bits(kvs: Kvs, amount: str) -> None:
    kvs.refused("add", "cmd.max", amount, expected="cmd.max")
    kvs.refused("txn", stdin=f"put cmd.other=1\nadd cmd.max {amount}\n", expected="cmd.max")
    kvs.refused("add", "cmd.number", "--", f"-{LARGEST}1", expected="64 bits")
    assert kvs("get", "cmd.max") == f"{LARGEST}\n"


def test_a_pattern_that_matches_many_keys_with_a_small_count(kvs: Kvs) -> None:
    """The command ends after one change, and the broker drops the other pending changes."""
    kvs("txn", stdin="".join(f"put cmd.many.k{n:04}={n}\n" for n in range(2000)))
    assert kvs("watch", "-c", "1", "cmd.many.**").startswith("cmd.many.k0000=0\n")
    for pattern in ("a.***", "[", "a.[b", "*" * 5000):
        kvs.refused("watch", pattern, expected=pattern[:10])
    kvs("unlink", "-R", "cmd.many")


def test_a_watch_whose_output_is_not_read_is_bounded(kvs: Kvs) -> None:
    """The command blocks on its output. The broker's memory is bounded, and freed when the command is killed."""
    with kvs.instance.popen("kvs", "watch", "**", rank=2) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline()
        text = "x" * 10_000
        for n in range(20):
            kvs("txn", stdin="".join(f"put cmd.flood.k{m}={text}{n}\n" for m in range(50)))
        with kvs.instance.connect(2) as h:
            assert h.rpc("stats.get", target=2)["kvs"]["watch_unacknowledged"] <= 3 << 20
        watch.kill()
    kvs("unlink", "-R", "cmd.flood")


def test_compacted_and_future_versions(kvs: Kvs) -> None:
    kvs("namespace", "create", "cmdshort")
    kvs("retention", "-N", "cmdshort", "-c", "1")
    for n in (1, 2):
        kvs("put", "-N", "cmdshort", f"a={n}")
    for version, expected in (("1", "not kept"), ("1000000", "1000000")):
        for words in (("get", "-a", version, "a"), ("diff", version), ("dir", "-a", version)):
            kvs.refused(words[0], "-N", "cmdshort", *words[1:], expected=expected)
        kvs.refused("lease", "-N", "cmdshort", version, "true", expected=expected)
        kvs.refused("watch", "-N", "cmdshort", "-s", version, "a", expected=expected)
    kvs.refused("wait", "-N", "cmdshort", "-t", "100ms", "1000000", expected="1000000")
    kvs("namespace", "remove", "cmdshort")


def test_a_lease_retains_a_version_only_while_its_command_runs(kvs: Kvs) -> None:
    """After the command has ended, the version is compacted as without a lease."""
    kvs("namespace", "create", "cmdlease")
    kvs("retention", "-N", "cmdlease", "-c", "1")
    kvs("put", "-N", "cmdlease", "a=1")
    script = f"{' '.join(FLUXMPI)} kvs put -N cmdlease a=2 && {' '.join(FLUXMPI)} kvs get -N cmdlease --at 1 a"
    assert kvs("lease", "-N", "cmdlease", "1", "sh", "-c", script) == "1\n"
    kvs.refused("get", "-N", "cmdlease", "--at", "1", "a", expected="not kept")
    kvs("namespace", "remove", "cmdlease")


def test_removing_a_namespace_ends_its_watches_and_waits(kvs: Kvs) -> None:
    kvs("namespace", "create", "cmdgone")
    kvs("put", "-N", "cmdgone", "a=1")
    options = {"stderr": subprocess.PIPE}
    with (
        kvs.instance.popen("kvs", "watch", "-N", "cmdgone", "a", rank=2, **options) as watch,
        kvs.instance.popen("kvs", "wait", "-N", "cmdgone", "100", rank=1, **options) as wait,
    ):
        assert watch.stdout is not None
        assert watch.stdout.readline() == b"a=1\n"
        with kvs.instance.connect(1) as h:
            while not h.rpc("stats.get", target=1)["kvs"]["parked"]:
                assert wait.poll() is None
        kvs("namespace", "remove", "cmdgone")
        for process in (watch, wait):
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            assert err.count(b"\n") == 1
            assert b"cmdgone" in err
    kvs.refused("put", "-N", "cmdgone", "a=2", expected="cmdgone")
    kvs.refused("namespace", "remove", "primary", expected="primary")


GIGABYTE = """
import sys
line = b"append cmd.log=" + b"x" * (1 << 20) + b"\\n"
for _ in range(1024):
    sys.stdout.buffer.write(line)
"""


def test_a_transaction_of_a_gigabyte_is_refused(kvs: Kvs) -> None:
    """It is refused before all of it is read. A transaction just over the limit is refused, too."""
    before = kvs.root()
    words = [*FLUXMPI, "kvs", "txn"]
    environ = environment(kvs.instance.rank_uri(2))
    with (
        subprocess.Popen([sys.executable, "-c", GIGABYTE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer,
        subprocess.Popen(words, stdin=writer.stdout, stderr=subprocess.PIPE, env=environ) as txn,
    ):
        assert writer.stdout is not None
        writer.stdout.close()
        _, err = txn.communicate(timeout=120)
        assert txn.returncode == 1
        assert b"split it" in err
        assert writer.wait(60) in (1, 120, -signal.SIGPIPE), "the input was not read to its end"
    kvs.refused("txn", stdin=f"append cmd.log={'x' * (1 << 20)}\n" * 65, expected="split it")
    assert kvs.root() == before
