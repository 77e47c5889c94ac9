"""``fluxmpi kvs`` on a real instance: output, exit status and errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from instance import Instance

import fluxmpi
from fluxmpi.errors import NoSuchKey, TooLarge

BINARY = bytes(range(256)) * 20


def test_a_value_put_on_one_rank_is_read_on_another(instance: Instance) -> None:
    put = instance.run("kvs", "put", "-s", "t1.steps=100", "t1.name=demo", rank=1)
    assert put.status == 0
    assert instance.run("kvs", "wait", put.out.strip(), rank=2).status == 0
    got = instance.run("kvs", "get", "t1.steps", "t1.name", rank=2)
    assert (got.status, got.out, got.err) == (0, "100\ndemo\n", "")


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("42", 42, "42\n"),
        ("-1.5e3", -1500.0, "-1.5e3\n"),
        ('{"b": 1,  "a": [true, null]}', {"a": [True, None], "b": 1}, '{"b": 1,  "a": [true, null]}\n'),
        ("two words", "two words", "two words\n"),
        ('"quoted"', "quoted", "quoted\n"),
        ("a=b=c", "a=b=c", "a=b=c\n"),
        ("über", "über", "über\n"),
        ("NaN", "NaN", "NaN\n"),
        ("", "", ""),
        ("line\nline", "line\nline", "line\nline\n"),
    ],
)
def test_a_value_is_printed_as_typed_and_read_as_python(
    instance: Instance, text: str, value: object, shown: str
) -> None:
    assert instance.run("kvs", "put", f"t2.v={text}").status == 0
    assert instance.run("kvs", "get", "t2.v").out == shown
    with instance.connect() as h:
        assert h.kvs.get("t2.v", fresh=True) == value


@pytest.mark.parametrize("size", [0, 1, 256, 257, 5120, 1 << 20, (1 << 20) + 1, 3_500_000])
def test_bytes_of_any_size_are_unchanged(instance: Instance, size: int) -> None:
    data = (BINARY * (size // len(BINARY) + 1))[:size]
    assert instance.run("kvs", "put", "-r", "t3.raw=-", stdin=data, rank=2).status == 0
    assert instance.run("kvs", "get", "-r", "--fresh", "t3.raw", rank=1).raw == data


def test_a_value_that_is_not_utf8_is_stored_as_bytes(instance: Instance) -> None:
    word = os.fsdecode(b"t3.odd=\xff\xfe")
    assert instance.run("kvs", "put", word).status == 0
    assert instance.run("kvs", "get", "t3.odd").raw == b"\xff\xfe\n"


def test_an_array_is_printed_as_text_raw_and_json(instance: Instance) -> None:
    array = np.arange(6.0).reshape(2, 3)
    with instance.connect() as h:
        h.kvs.put("t4.array", array)
    assert instance.run("kvs", "get", "t4.array").out == f"{array}\n"
    assert instance.run("kvs", "get", "-r", "t4.array").raw == array.tobytes()
    assert json.loads(instance.run("kvs", "get", "-j", "--full", "t4.array").out)["data"] == array.tolist()
    summary = {"type": "ndarray", "dtype": array.dtype.str, "shape": list(array.shape)}
    assert json.loads(instance.run("kvs", "get", "-j", "t4.array").out) == summary
    assert json.loads(instance.run("kvs", "get", "-j", "-l", "t4.array").out) == {"t4.array": summary}
    listed = [json.loads(instance.run("kvs", "dir", "-j", *full, "t4").lines[0]) for full in ([], ["--full"])]
    assert [each["value"] for each in listed] == [summary, {**summary, "data": array.tolist()}]
    assert instance.run("kvs", "dir", "--full", "t4").status == 2


def test_append(instance: Instance) -> None:
    for part in ("one", "two"):
        assert instance.run("kvs", "put", "-A", f"t5.log={part}").status == 0
    assert instance.run("kvs", "get", "t5.log").out == "onetwo\n"


def test_a_treeobj_can_be_read_and_stored(instance: Instance) -> None:
    instance.run("kvs", "put", "t6.a=1", "t6.dir.x=2")
    treeobj = instance.run("kvs", "get", "-t", "t6.dir").out
    assert json.loads(treeobj)["type"] == "dirref"
    assert instance.run("kvs", "put", "-t", "t6.copy=-", stdin=treeobj.encode()).status == 0
    assert instance.run("kvs", "get", "t6.copy.x").out == "2\n"


def test_every_form_of_a_root_reads_its_version(instance: Instance) -> None:
    instance.run("kvs", "put", "t7.v=old")
    forms = [instance.run("kvs", "getroot", *option).out.strip() for option in ([], ["-s"], ["-b"], ["-S"])]
    commit = instance.run("kvs", "put", "-O", "t7.v=new").out.strip()
    for form in forms:
        assert instance.run("kvs", "get", "--at", form, "t7.v").out == "old\n", form
    assert instance.run("kvs", "get", "--at", commit, "t7.v").out == "new\n"
    assert instance.run("kvs", "get", "t7.v").out == "new\n"


def test_version_counts_commits(instance: Instance) -> None:
    before = int(instance.run("kvs", "version").out)
    assert int(instance.run("kvs", "put", "-s", "t8=1").out) > before
    assert instance.run("kvs", "getroot", "-o").out == f"{os.geteuid()}\n"


def test_wait_times_out(instance: Instance) -> None:
    done = instance.run("kvs", "wait", "-t", "0.1", "1000000")
    assert done.status == 1
    assert "version 1000000 was not reached in 0.1 s" in done.err


# ------------------------------------------------------------------------------------------------------- directories


@pytest.fixture(scope="module")
def directory(instance: Instance) -> str:
    with instance.connect() as h, h.kvs.txn() as txn:
        txn.put("d.a", 1)
        txn.put("d.long", "x" * 100)
        txn.put("d.lines", "first\nsecond")
        txn.put("d.sub.b", "two")
        txn.put("d.sub.deep.c", None)
        txn.mkdir("d.empty")
        txn.link("d.sub", "d.link")
        txn.link("k", "d.far", target_namespace="other")
    return "d"


def test_ls(instance: Instance, directory: str) -> None:
    names = ["a", "empty", "far", "lines", "link", "long", "sub"]
    assert instance.run("kvs", "ls", "-1", "d").lines == names
    assert json.loads(instance.run("kvs", "ls", "-j", "d").out) == names
    assert instance.run("kvs", "ls", "-w", "0", "d").out.split() == names
    assert instance.run("kvs", "ls", "-1F", "d").lines == ["a", "empty.", "far@", "lines", "link@", "long", "sub."]
    assert instance.run("kvs", "ls", "-w", "20", "d.sub").out == "b       deep\n"
    assert instance.run("kvs", "ls", "-1", "d.link").lines == ["b", "deep"]
    assert instance.run("kvs", "ls", "-d", "d", "d.a").out == "d      d.a\n"
    assert "d" in instance.run("kvs", "ls").out.split()


def test_ls_of_several_directories_and_recursive(instance: Instance, directory: str) -> None:
    assert instance.run("kvs", "ls", "-R1", "d.sub").out == "d.sub:\nb\ndeep\n\nd.sub.deep:\nc\n"
    assert instance.run("kvs", "ls", "-1", "d.sub.deep", "d.a", "d.empty").out == "d.a\n\nd.empty:\n\nd.sub.deep:\nc\n"


def test_ls_continues_after_a_missing_key(instance: Instance, directory: str) -> None:
    done = instance.run("kvs", "ls", "-1", "d.nope", "d.sub", "d.a.")
    assert (done.status, done.out) == (1, "b\ndeep\n")
    assert "d.nope" in done.err
    assert "d.a is not a directory" in done.err


def test_dir(instance: Instance, directory: str) -> None:
    assert instance.run("kvs", "dir", "d").lines == [
        "d.a = 1",
        "d.empty.",
        "d.far -> other::k",
        "d.lines = first...",
        "d.link -> d.sub",
        "d.long = " + "x" * (80 - len("d.long = ...")) + "...",
        "d.sub.",
    ]
    assert instance.run("kvs", "dir", "-R", "d.sub").lines == ["d.sub.b = two", "d.sub.deep.c = null"]
    assert instance.run("kvs", "dir", "-R", "-d", "d.sub").lines == ["d.sub.b", "d.sub.deep.c"]
    assert "d.long = " + "x" * 100 in instance.run("kvs", "dir", "-w", "0", "d").lines
    assert json.loads(instance.run("kvs", "dir", "-j", "d").lines[0])["value"] == 1


def test_dir_and_ls_of_an_older_version(instance: Instance) -> None:
    instance.run("kvs", "put", "t9.a=1")
    at = instance.run("kvs", "getroot", "-S").out.strip()
    instance.run("kvs", "put", "t9.b=1", "t9.a=2")
    assert instance.run("kvs", "dir", "--at", at, "t9").lines == ["t9.a = 1"]
    assert instance.run("kvs", "ls", "--at", at, "t9").lines == ["a"]


def test_many_entries_are_listed_in_order(instance: Instance) -> None:
    names = sorted(f"k{n}" for n in range(2500))
    with instance.connect(2) as h:
        h.kvs.commit({f"t10.{name}": 0 for name in names})
    assert instance.run("kvs", "ls", "-1", "t10", rank=2).lines == names


# ------------------------------------------------------------------------------------------- unlink, mkdir, link


def test_unlink(instance: Instance) -> None:
    instance.run("kvs", "put", "u.a=1", "u.b.c=1")
    refused = instance.run("kvs", "unlink", "u.a", "u.b")
    assert (refused.status, "not empty; -R removes it" in refused.err) == (1, True)
    assert instance.run("kvs", "get", "u.a").status == 0, "nothing was removed"
    assert instance.run("kvs", "unlink", "u.a").status == 0
    assert instance.run("kvs", "unlink", "-R", "u.b").status == 0
    assert instance.run("kvs", "unlink", "u.a").status == 1
    assert instance.run("kvs", "unlink", "-f", "u.a").status == 0


def test_mkdir_keeps_existing_keys(instance: Instance) -> None:
    instance.run("kvs", "put", "m.a=1")
    assert instance.run("kvs", "mkdir", "m", "m.new.deep").status == 0
    assert instance.run("kvs", "ls", "-1F", "m").lines == ["a", "new."]


def test_link(instance: Instance) -> None:
    instance.run("kvs", "put", "l.target=1")
    assert instance.run("kvs", "link", "l.target", "l.name").status == 0
    assert instance.run("kvs", "link", "-T", "other", "x", "l.far").status == 0
    assert instance.run("kvs", "get", "l.name").out == "1\n"
    assert instance.run("kvs", "readlink", "l.name", "l.far").lines == ["l.target", "other::x"]
    assert instance.run("kvs", "readlink", "-o", "l.far").out == "other\n"
    assert instance.run("kvs", "readlink", "-k", "l.far").out == "x\n"
    assert instance.run("kvs", "readlink", "l.target").status == 1
    assert instance.run("kvs", "unlink", "l.name").status == 0
    assert instance.run("kvs", "get", "l.target").status == 0


# ---------------------------------------------------------------------------------------------------------- watching


def test_get_watch_prints_every_value(instance: Instance) -> None:
    instance.run("kvs", "put", "w.a=0")
    with instance.popen("kvs", "get", "-w", "-c", "4", "w.a", rank=2) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"0\n"  # the watch is active
        with instance.connect(1) as h, h.batch():
            for value in (1, 2, 3):
                h.kvs.commit_async({"w.a": value})
        assert watching.stdout.read() == b"1\n2\n3\n"
    assert watching.returncode == 0


def test_get_waitcreate_waits_for_the_key(instance: Instance) -> None:
    with instance.popen("kvs", "get", "-W", "w.later", "w.b", rank=2) as waiting:
        with instance.connect() as h:
            h.kvs.put("w.b", "x")
            h.kvs.put("w.later", "now")
        assert waiting.stdout is not None
        assert waiting.stdout.read() == b"now\nx\n"


def test_get_watch_append_prints_the_appended_text(instance: Instance) -> None:
    instance.run("kvs", "put", "-A", "w.log=one")
    with instance.popen("kvs", "get", "-w", "-A", "-c", "2", "w.log") as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"one\n"
        instance.run("kvs", "put", "-A", "w.log=two")
        assert watching.stdout.read() == b"two\n"


def test_get_watch_ends_when_the_key_is_removed(instance: Instance) -> None:
    instance.run("kvs", "put", "w.gone=1")
    with instance.popen("kvs", "get", "-w", "w.gone", stderr=-1) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"1\n"
        instance.run("kvs", "unlink", "w.gone")
        _, err = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert b"'w.gone' was removed in version" in err


def test_get_watch_of_a_missing_key_fails(instance: Instance) -> None:
    done = instance.run("kvs", "get", "-w", "w.never")
    assert (done.status, "--waitcreate" in done.err) == (1, True)


def test_watch_of_a_directory(instance: Instance) -> None:
    instance.run("kvs", "put", "w.dir.a=1")
    with instance.popen("kvs", "watch", "-c", "4", "w.dir.", rank=1) as watching:
        assert watching.stdout is not None
        assert watching.stdout.readline() == b"w.dir.a=1\n"
        with instance.connect() as h:
            h.kvs.commit({"w.dir.a": 2, "w.dir.sub.b": "x", "w.else": 1})
            h.kvs.unlink("w.dir.a")
        assert watching.stdout.read() == b"w.dir.a=2\nw.dir.sub.b=x\n-w.dir.a\n"


def test_watch_prints_the_snapshot_of_each_change(instance: Instance) -> None:
    instance.run("kvs", "put", "w.s=old", "w.t=then")
    line = json.loads(instance.run("kvs", "watch", "--json", "-c", "1", "w.s").out)
    instance.run("kvs", "put", "w.t=now")
    assert line["value"] == "old"
    assert instance.run("kvs", "get", "--at", line["snapshot"], "w.t").out == "then\n"


# ------------------------------------------------------------------------------------------------------------ caches


def test_dropcache_loses_nothing(instance: Instance) -> None:
    data = BINARY * 100
    instance.run("kvs", "put", "-r", "c.v=-", stdin=data)
    assert instance.run("kvs", "dropcache", "--all").status == 0
    assert instance.run("kvs", "get", "-r", "c.v", rank=2).raw == data
    assert instance.run("content", "dropcache", "-r", "2").out.endswith(" bytes\n")
    assert instance.run("kvs", "get", "-r", "c.v", rank=2).raw == data


def test_stats(instance: Instance) -> None:
    assert "kvs.version" in instance.run("kvs", "stats").out
    assert json.loads(instance.run("kvs", "stats", "-r", "0", "--json").out)["leader"]


# --------------------------------------------------------------------------------------------------------- bad input

BAD = [
    (["get", "b..c"], 1, "no key 'b..c'"),
    (["get", "..."], 1, "is a directory"),
    (["get", ""], 1, "the key is empty"),
    (["get", "k" * 10_000], 1, "has over 4096 bytes"),
    (["get", ".".join("k" * 200)], 1, "has over 128 components"),
    (["put", "=1"], 1, "the key is empty"),
    (["put", ".=1"], 1, "root directory"),
    (["put", "...=1"], 1, "root directory"),
    (["put", "novalue"], 2, "use novalue=VALUE"),
    (["put", "-r", "x=-", "y=-"], 2, "only one value can be read from stdin"),
    (["put", "-t", "x={"], 1, "'{' is not a treeobj: it is not JSON"),
    (["put", "-t", "-A", "x={"], 2, "--treeobj cannot be combined with"),
    (["get", "bad.nope"], 1, "bad.nope"),
    (["get", "bad"], 1, "is a directory"),
    (["get", "bad.loop1"], 1, "links"),
    (["get", "bad.value.below"], 1, "bad.value.below"),
    (["get", "-N", "nowhere", "a"], 1, "nowhere"),
    (["get", "--at", "nonsense", "a"], 1, "'nonsense' names no version: give a snapshot"),
    (["get", "--at", "1000000", "a"], 1, "1000000"),
    (["get", "--at", "sha256-" + "0" * 64, "a"], 1, "sha256-" + "0" * 64),
    (["get", "-w", "--at", "1", "a"], 2, "--at reads one version"),
    (["get", "-c", "1", "a"], 2, "need --watch"),
    (["get"], 2, "Missing argument"),
    (["unlink", "bad.nope"], 1, "bad.nope"),
    (["unlink", "-R", "."], 1, "root directory"),
    (["unlink", "-R", ".."], 1, "root directory"),
    (["dir", "bad.value"], 1, "bad.value"),
    (["link", "", "c"], 1, "the key is empty"),
    (["wait", "-1"], 2, ""),
    (["wait", "soon"], 2, "soon"),
    (["nonsense"], 2, "No such command"),
]


@pytest.fixture(scope="module")
def bad_keys(instance: Instance) -> None:
    with instance.connect() as h, h.kvs.txn() as txn:
        txn.put("bad.value", 1)
        txn.link("bad.loop2", "bad.loop1")
        txn.link("bad.loop1", "bad.loop2")


@pytest.mark.parametrize(("words", "status", "text"), BAD, ids=[" ".join(words)[:40] for words, _, _ in BAD])
@pytest.mark.parametrize("rank", [0, 2])
def test_bad_input(instance: Instance, bad_keys: None, words: list[str], status: int, text: str, rank: int) -> None:
    done = instance.run("kvs", *words, rank=rank)
    assert (done.status, done.out) == (status, "")
    assert text in done.err
    if status == 1:
        assert done.err.startswith(f"fluxmpi kvs {words[0]}: ")
        assert done.err.count("\n") == 1


def test_a_refused_commit_changes_nothing(instance: Instance, bad_keys: None) -> None:
    before = instance.run("kvs", "getroot", "-b").out
    assert instance.run("kvs", "put", "-A", "bad.other=1", "bad=1").status == 1
    assert instance.run("kvs", "getroot", "-b", "--fresh").out == before


def test_a_key_with_a_nul_is_invalid(instance: Instance) -> None:
    with instance.connect(1) as h:
        with pytest.raises(fluxmpi.InvalidKey):
            h.kvs.put("a\0b", 1)
        with pytest.raises(fluxmpi.InvalidKey):
            h.kvs.get("a\0b")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_large_value_is_written_completely(instance: Instance, unbuffered: str) -> None:
    with instance.connect() as h:
        h.kvs.put("p.big", BINARY * 200)
    assert instance.run("kvs", "get", "-r", "p.big", PYTHONUNBUFFERED=unbuffered).raw == BINARY * 200


def test_a_closed_pipe_is_not_reported(instance: Instance) -> None:
    with instance.connect() as h:
        h.kvs.put("p.big", BINARY * 200)
    with instance.popen("kvs", "get", "-r", "p.big", stderr=-1) as reading:
        assert reading.stdout is not None
        reading.stdout.read(10)  # of a value larger than a pipe's buffer
        reading.stdout.close()
        assert reading.stderr is not None
        assert reading.stderr.read() == b""
    assert reading.returncode == 141


# ------------------------------------------------------------------------------------------------- the Python client


def test_a_session_reads_its_own_writes_on_every_rank(instance: Instance) -> None:
    for rank in range(instance.size):
        with instance.connect(rank) as h:
            for n in range(20):
                h.kvs.put("s.own", [rank, n])
                assert h.kvs.get("s.own") == [rank, n]


def test_a_transaction_that_raises_sends_nothing(instance: Instance) -> None:
    with instance.connect() as h:
        with pytest.raises(ZeroDivisionError), h.kvs.txn() as txn:  # noqa: PT012
            txn.put("s.never", 1)
            raise ZeroDivisionError
        with pytest.raises(fluxmpi.InvalidRequest, match="was committed or dropped"):
            txn.put("s.never", 1)
        with pytest.raises(NoSuchKey):
            h.kvs.get("s.never", fresh=True)


def test_a_fence_of_three_ranks_is_one_version(instance: Instance) -> None:
    handles = [instance.connect(rank) for rank in range(3)]
    futures = []
    for rank, h in enumerate(handles):
        txn = h.kvs.txn()
        txn.put(f"f.{rank}", rank)
        futures.append(txn.fence_async("f", 3))
    snapshots = [future.get(30) for future in futures]
    assert len({str(snapshot) for snapshot in snapshots}) == 1
    assert list(handles[2].kvs.ls("f", at=snapshots[0])) == ["0", "1", "2"]
    for h in handles:
        h.close()


def test_a_snapshot_is_unchanged_by_later_commits(instance: Instance) -> None:
    with instance.connect(2) as h, instance.connect(1) as other:
        snapshot = h.kvs.commit({"s.x": 1, "s.array": np.arange(300_000)})
        other.kvs.wait_version(snapshot.version, timeout=30)
        other.kvs.commit({"s.x": 2, "s.array": None})
        text = str(snapshot)
        assert other.kvs.get("s.x", at=text) == 1
        assert np.array_equal(other.kvs.get("s.array", at=text), np.arange(300_000))
        assert other.kvs.get("s.x") == 2


def test_pipelined_commits_and_reads(instance: Instance) -> None:
    with instance.connect(2) as h:
        with h.batch():
            commits = [h.kvs.commit_async({f"pipe.k{n}": n}) for n in range(500)]
            versions = [commit.get(60).version for commit in commits]
            reads = [h.kvs.get_async(f"pipe.k{n}") for n in range(500)]
        assert [read.get(60) for read in reads] == list(range(500))
        assert versions == sorted(versions)


def test_a_full_socket_does_not_deadlock(instance: Instance) -> None:
    """40 MiB of requests, whose responses arrive while they are sent: neither side may block on the other."""
    blob = os.urandom(1 << 20)
    with instance.connect(1) as h, h.batch():
        pongs = [h.rpc_async("ping.ping", [n, blob], target=0) for n in range(40)]
        assert [pong.get(60)[1] == blob for pong in pongs] == [True] * 40


def test_put_raw_reads_files_and_stdin(instance: Instance, tmp_path: Path) -> None:
    file, long = tmp_path / "a file", tmp_path / "long"
    file.write_bytes(b"\x00\xff bytes\n")
    long.write_bytes(os.urandom(3 << 20))
    words = [f"at.file=@{file}", f"at.long=@{long}", "at.stdin=@-", "at.text=@@home", "at.mail=me@home"]
    assert instance.run("kvs", "put", "-r", *words, stdin=b"from stdin").status == 0
    for name, data in (
        ("file", file.read_bytes()),
        ("long", long.read_bytes()),
        ("stdin", b"from stdin"),
        ("text", b"@home"),
        ("mail", b"me@home"),
    ):
        assert instance.run("kvs", "get", "-r", f"at.{name}").raw == data
    assert instance.run("kvs", "put", "-r", "-A", f"at.file=@{file}").status == 0
    assert instance.run("kvs", "get", "-r", "at.file").raw == 2 * file.read_bytes()
    assert instance.run("kvs", "put", "at.json=@home").status == 0
    assert instance.run("kvs", "get", "at.json").out == "@home\n", "only --raw and --treeobj read files"
    (tmp_path / "treeobj").write_bytes(instance.run("kvs", "get", "-t", "at.mail").raw)
    assert instance.run("kvs", "put", "-t", f"at.copy=@{tmp_path}/treeobj").status == 0
    assert instance.run("kvs", "get", "at.copy").out == "me@home\n"


@pytest.mark.parametrize(
    ("value", "status", "text"),
    [
        ("@none", 1, "none: No such file or directory"),
        ("@/", 1, "/: Is a directory"),
        ("@", 2, "names no file"),
    ],
)
def test_put_raw_of_a_file_that_cannot_be_read(instance: Instance, value: str, status: int, text: str) -> None:
    done = instance.run("kvs", "put", "-r", "at.other=1", f"at.bad={value}")
    assert done.status == status
    assert text in done.err
    assert instance.run("kvs", "get", "at.other").status == 1, "nothing was committed"


@pytest.mark.parametrize("levels", [129, 400, 100_000])
def test_a_treeobj_that_nests_too_deeply_is_refused(instance: Instance, levels: int) -> None:
    head, tail = '{"ver":1,"type":"dir","data":{"a":', "}}"
    leaf = '{"ver":1,"type":"val","data":"MQ=="}'
    done = instance.run("kvs", "put", "-t", "at.deep=-", stdin=(head * levels + leaf + tail * levels).encode())
    assert done.status == 1
    assert "levels" in done.err or "components" in done.err or "deeply" in done.err
    assert done.err.count("\n") == 1
    assert instance.run("kvs", "get", "-t", "at.deep").status == 1


def test_copies_cannot_nest_past_what_a_key_can_name(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.put(".".join(["at.nest", *"d" * 100]), 1)
        for _ in range(2):
            h.kvs.copy("at.nest", "at.more")
        with pytest.raises(TooLarge, match="components"):
            h.kvs.copy("at.nest", ".".join(["at.more", *"d" * 30]))
        assert h.kvs.exists("at.more")
        assert sum(1 for _ in h.kvs.entries("at", recursive=True)) > 200
