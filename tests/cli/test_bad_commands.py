"""Commands that ask for what cannot be: one line that says why, exit status 1, nothing half-applied, nothing left over."""

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
        self.root = lambda: h.kvs.getroot(fresh=True)

    def __call__(self, *words: str, stdin: str = "") -> str:
        done = self.instance.run("kvs", *words, rank=2, stdin=stdin.encode())
        assert (done.status, done.err) == (0, "")
        return done.out

    def refused(self, *words: str, stdin: str = "", says: str) -> None:
        """Nothing is changed by it."""
        before = self.root()
        done = self.instance.run("kvs", *words, rank=2, stdin=stdin.encode())
        assert done.status == 1, done
        assert done.err.startswith(f"fluxmpi kvs {words[0]}")
        assert done.err.count("\n") == 1, "one line says why"
        assert says in done.err
        assert self.root() == before


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        ("when cmd.text < 1", "cmd.text"),
        ("when cmd.number ~ 1", "~"),
        ("when cmd.number version <= soon", "soon"),
        ("when cmd.dir == 1", "cmd.dir"),
        ("when cmd.number", "line 1"),
    ],
)
def test_guards_of_the_wrong_type(kvs: Kvs, guard: str, says: str) -> None:
    kvs.refused("txn", stdin=f"{guard}\nput cmd.other=1\n", says=says)


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        (["cmd.text", "<", 1], "cmd.text"),
        (["cmd.number", "~", 1], "~"),
        (["cmd.number", "version", "<=", "x"], "x"),
        (["cmd.number"], "cmd.number"),
        (7, "list of lists"),
    ],
)
def test_guards_of_the_wrong_type_in_json(kvs: Kvs, guard: object, says: str) -> None:
    kvs.refused("txn", "--json", stdin=json.dumps({"when": [guard], "then": [["put", "cmd.other", 1]]}), says=says)


@pytest.mark.parametrize("key", ["cmd.text", "cmd.dir"])
def test_an_add_to_what_is_no_number(kvs: Kvs, key: str) -> None:
    kvs.refused("add", key, "1", says=key)
    kvs.refused("txn", stdin=f"put cmd.other=1\nadd {key}\n", says=key)


@pytest.mark.parametrize("amount", ["1", str(LARGEST)])
def test_a_sum_past_64_bits(kvs: Kvs, amount: str) -> None:
    kvs.refused("add", "cmd.max", amount, says="cmd.max")
    kvs.refused("txn", stdin=f"put cmd.other=1\nadd cmd.max {amount}\n", says="cmd.max")
    kvs.refused("add", "cmd.number", "--", f"-{LARGEST}1", says="64 bits")
    assert kvs("get", "cmd.max") == f"{LARGEST}\n"


def test_a_pattern_that_matches_everything_with_room_for_little(kvs: Kvs) -> None:
    """One change is enough: the command ends, and the broker keeps nothing of what else there is to tell."""
    kvs("txn", stdin="".join(f"put cmd.many.k{n:04}={n}\n" for n in range(2000)))
    assert kvs("watch", "-c", "1", "cmd.many.**").startswith("cmd.many.k0000=0\n")
    for pattern in ("a.***", "[", "a..*", "*" * 5000):
        kvs.refused("watch", pattern, says=pattern[:10])
    kvs("unlink", "-R", "cmd.many")


def test_a_pattern_that_matches_everything_and_an_output_that_nobody_reads(kvs: Kvs) -> None:
    """The command waits for its reader; the broker is bounded, and when the command is gone, has nothing of it."""
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


def test_versions_that_were_and_will_be(kvs: Kvs) -> None:
    kvs("namespace", "create", "cmdshort")
    kvs("retention", "-N", "cmdshort", "-c", "1")
    for n in (1, 2):
        kvs("put", "-N", "cmdshort", f"a={n}")
    for version, says in (("1", "not kept"), ("1000000", "1000000")):
        for words in (("get", "-a", version, "a"), ("diff", version), ("dir", "-a", version)):
            kvs.refused(words[0], "-N", "cmdshort", *words[1:], says=says)
        kvs.refused("lease", "-N", "cmdshort", version, "true", says=says)
        kvs.refused("watch", "-N", "cmdshort", "-s", version, "a", says=says)
    kvs.refused("wait", "-N", "cmdshort", "-t", "100ms", "1000000", says="1000000")
    kvs("namespace", "remove", "cmdshort")


def test_a_lease_that_is_over(kvs: Kvs) -> None:
    """As long as its command runs the version is kept; afterwards it is as if there had been none."""
    kvs("namespace", "create", "cmdlease")
    kvs("retention", "-N", "cmdlease", "-c", "1")
    kvs("put", "-N", "cmdlease", "a=1")
    script = f"{' '.join(FLUXMPI)} kvs put -N cmdlease a=2 && {' '.join(FLUXMPI)} kvs get -N cmdlease --at 1 a"
    assert kvs("lease", "-N", "cmdlease", "1", "sh", "-c", script) == "1\n"
    kvs.refused("get", "-N", "cmdlease", "--at", "1", "a", says="not kept")
    kvs("namespace", "remove", "cmdlease")


def test_a_namespace_that_is_removed_while_it_is_watched_and_waited_for(kvs: Kvs) -> None:
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
    kvs.refused("put", "-N", "cmdgone", "a=2", says="cmdgone")
    kvs.refused("namespace", "remove", "primary", says="primary")


GIGABYTE = """
import sys
line = b"append cmd.log=" + b"x" * (1 << 20) + b"\\n"
for _ in range(1024):
    sys.stdout.buffer.write(line)
"""


def test_a_transaction_of_a_gigabyte(kvs: Kvs) -> None:
    """It is refused before all of it is read; and one that is a little too large, too."""
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
        assert writer.wait(60) in (1, 120, -signal.SIGPIPE), "it was not read to its end"
    kvs.refused("txn", stdin=f"append cmd.log={'x' * (1 << 20)}\n" * 65, says="split it")
    assert kvs.root() == before
