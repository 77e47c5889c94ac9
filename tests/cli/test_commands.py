"""The commands other than kvs, against a real instance: event, exec, content, overlay, ping, attributes, shutdown."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from instance import FLUXMPI, ROOT, Instance, environment, run
from killing import wait

from fluxmpi.cli.attr import attribute_text
from fluxmpi.cli.common import number_text
from fluxmpi.client.event import Events
from fluxmpi.drivers import checkpoint as checkpoint_files
from fluxmpi.errors import RemoteError
from fluxmpi.message import encode_batch

ALL = "exec", "-r", "all"


# ------------------------------------------------------------------------------------------------------------ event


def publish_until(instance: Instance, done: subprocess.Popen[bytes], *events: tuple[str, bytes]) -> None:
    """Publish repeatedly until the subscriber ends: the start of its subscription is not visible from outside."""
    with instance.connect() as h:
        while done.poll() is None:
            for topic, payload in events:
                h.event.publish(topic, payload)


def test_events_are_printed_one_per_line(instance: Instance) -> None:
    with instance.popen("event", "sub", "-c", "2", "ev1.", rank=2) as subscriber:
        publish_until(instance, subscriber, ("ev1.a", b'{"x": 1}'), ("other", b""), ("ev1.b", b""))
        assert subscriber.stdout is not None
        lines = subscriber.stdout.read().splitlines()
    assert sorted(lines) == [b'ev1.a\t{"x": 1}', b"ev1.b"]


def test_events_of_several_topics_as_json(instance: Instance) -> None:
    with instance.popen("event", "sub", "-j", "-c", "4", "ev2.a", "ev2.b", rank=1) as subscriber:
        publish_until(instance, subscriber, ("ev2.a", b"1"), ("ev2.c", b"2"), ("ev2.b", b"3"))
        assert subscriber.stdout is not None
        found = [json.loads(line) for line in subscriber.stdout.read().splitlines()]
    assert {line["topic"] for line in found} == {"ev2.a", "ev2.b"}
    seqs = [line["seq"] for line in found]
    assert seqs == sorted(set(seqs))


def test_a_subscriber_receives_every_later_event(instance: Instance) -> None:
    with instance.connect(1) as publisher, instance.connect(2) as h, h.event.subscribe("ev3.") as subscription:
        seqs = [publisher.event.publish("ev3.x", {"n": n}) for n in range(50)]
        events = [subscription.get(30) for _ in seqs]
    assert [event.seq for event in events] == seqs
    assert [event.value["n"] for event in events] == list(range(50))


def test_pub(instance: Instance) -> None:
    first, second = (int(instance.run("event", "pub", "-s", "ev4", rank=rank).out) for rank in (0, 2))
    assert second > first
    assert instance.run("event", "pub", "-l", "ev4", '{"a":', "1}", rank=2).status == 0
    assert instance.run("event", "pub", "-r", "ev4", "any", "text").status == 0
    bad = instance.run("event", "pub", "ev4", "any", "text")
    assert (bad.status, "--raw" in bad.err) == (2, True)
    assert instance.run("event", "pub", "").status == 1


def test_ctrl_c_ends_a_subscriber(instance: Instance) -> None:
    with instance.popen("event", "sub", "ev5") as subscriber, instance.connect() as h:
        assert subscriber.stdout is not None
        reader = threading.Thread(target=_publish_until_read, args=(h.event, subscriber))
        reader.start()
        subscriber.stdout.readline()
        subscriber.send_signal(signal.SIGINT)
        assert subscriber.wait(30) == 130
        reader.join()


def _publish_until_read(events: Events, subscriber: subprocess.Popen[bytes]) -> None:
    with suppress(RemoteError):  # the instance may end first
        while subscriber.poll() is None:
            events.publish("ev5")


# ------------------------------------------------------------------------------------------------------------- exec


def test_exec_labels_lines_with_the_rank(instance: Instance) -> None:
    done = instance.run("exec", "-l", "-r", "0,2", "sh", "-c", "echo out; echo err >&2; printf rest", rank=1)
    assert done.status == 0
    assert sorted(done.lines) == ["0: out", "0: rest", "2: out", "2: rest"]
    assert sorted(done.err.splitlines()) == ["0: err", "2: err"]


def test_exec_returns_the_largest_status(instance: Instance) -> None:
    script = "case $FLUXMPI_URI in *broker.1.sock) exit 7;; *) exit 3;; esac"
    assert instance.run(*ALL, "sh", "-c", script).status == 7
    assert instance.run(*ALL, "true").status == 0
    assert instance.run(*ALL, "sh", "-c", "kill -9 $$").status == 128 + 9


def test_exec_of_a_missing_command_or_rank(instance: Instance) -> None:
    done = instance.run("exec", "-r", "1", "no-such-command")
    assert done.status == 127
    assert done.err.startswith("fluxmpi exec: rank 1: ")
    assert instance.run("exec", "-r", "0-3", "true").status == 68
    assert instance.run("exec", "-r", "1-0", "true").status == 1
    assert instance.run("exec", "-r", "x", "true").status == 1
    assert instance.run("exec", "-r", "0", "-x", "0", "true").status == 1
    assert instance.run("exec").status == 2


def test_exec_options(instance: Instance, tmp_path: Path) -> None:
    assert instance.run("exec", "-r", "2", "-d", str(tmp_path), "pwd").out == f"{tmp_path}\n"
    assert instance.run("exec", "-r", "1", "pwd").out == f"{os.getcwd()}\n"
    assert instance.run("exec", "-r", "1-2", "-i", "-", "cat", stdin=b"\0bin").raw == b"\0bin" * 2
    assert instance.run("exec", "-r", "1", "cat", stdin=b"not for it").out == ""
    assert instance.run("exec", "-l", "-r", "all", "-x", "0,1", "--", "echo", "-n", "hi").out == "2: hi\n"
    assert "rank 1: exit status 4" in instance.run("exec", "-r", "1", "sh", "-c", "exit 4").err
    assert instance.run("exec", "-q", "-r", "1", "sh", "-c", "exit 4").err == ""


def test_exec_passes_large_output_unchanged(instance: Instance) -> None:
    done = instance.run("exec", "-r", "2", "head", "-c", "3000000", "/dev/zero")
    assert done.raw == bytes(3_000_000)


def test_exec_sets_the_address_of_the_instance(instance: Instance) -> None:
    words = ("sh", "-c", "echo $FLUXMPI_URI")
    assert instance.run("exec", "-l", "-r", "1", *words).out == f"1: {instance.rank_uri(1)}\n"


def test_ctrl_c_reaches_the_remote_commands(instance: Instance) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    with instance.popen("exec", "-l", "-r", "1,2", "sh", "-c", script, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert {running.stdout.readline(), running.stdout.readline()} == {b"1: ready\n", b"2: ready\n"}
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    assert sorted(out.splitlines()) == [b"1: caught", b"2: caught"]
    assert running.returncode == 9


def test_second_ctrl_c_gives_up(instance: Instance) -> None:
    script = "trap '' INT HUP; echo ready; while :; do sleep 0.1; done"
    with instance.popen("exec", "-r", "2", "sh", "-c", script, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGINT)
        assert b"again to give up" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130


# ---------------------------------------------------------------------------------------------------------- content


def test_stored_content_is_loaded_unchanged(instance: Instance) -> None:
    data = os.urandom(2_500_000)
    refs = instance.run("content", "store", stdin=data, rank=2).lines
    assert len(refs) == 3
    assert instance.run("content", "load", *refs, rank=1).raw == data
    assert instance.run("content", "load", stdin="\n".join(refs).encode(), rank=0).raw == data
    assert len(instance.run("content", "store", "-c", "10", stdin=b"x" * 25).lines) == 3
    empty = instance.run("content", "store").out.strip()
    assert instance.run("content", "load", empty).raw == b""


@pytest.mark.parametrize("ref", ["sha256-" + "0" * 64, "sha256-00", "nonsense", ""])
@pytest.mark.parametrize("rank", [0, 2])
def test_loading_missing_content_fails(instance: Instance, ref: str, rank: int) -> None:
    done = instance.run("content", "load", ref, rank=rank)
    assert (done.status, done.raw) == (1, b"")
    assert done.err.startswith("fluxmpi content load: ")


def test_content_stats(instance: Instance) -> None:
    assert json.loads(instance.run("content", "stats", "--json").out)


# ---------------------------------------------------------------------------------------- overlay, ping, attributes


def test_overlay_status(instance: Instance) -> None:
    host = os.uname().nodename
    assert instance.run("overlay", "status", rank=1).lines == [
        f"0 {host}: full",
        f"├─ 1 {host}: full",
        f"└─ 2 {host}: full",
    ]
    assert instance.run("overlay", "status", "-r", "2").lines == [f"2 {host}: full"]
    assert instance.run("overlay", "status", "--summary").lines == [f"0 {host}: full"]
    assert instance.run("overlay", "status", "-r", "9").status == 1
    peers = json.loads(instance.run("overlay", "status", "--json").out)
    assert [(peer["rank"], peer["parent"], peer["state"]) for peer in peers] == [
        (0, -1, "up"),
        (1, 0, "up"),
        (2, 0, "up"),
    ]


def test_overlay_info(instance: Instance) -> None:
    assert json.loads(instance.run("overlay", "info", "-j").out)["children"] == [1, 2]
    assert "parent 0" in instance.run("overlay", "info", rank=2).lines


def test_ping_prints_the_route(instance: Instance) -> None:
    line = instance.run("ping", "-c", "1", "-p", "5", "2", rank=1).out
    assert line.startswith("2!broker.ping pad=5 seq=0 time=")
    assert line.endswith(" ms (1!0!2)\n")
    assert len(instance.run("ping", "-c", "3", "-i", "0").lines) == 3
    assert json.loads(instance.run("ping", "-j", "-c", "1", "0!broker", rank=2).out)["route"] == [2, 0]


@pytest.mark.parametrize(
    ("target", "text"), [("9", "rank 9"), ("nope", "nope"), ("x!y", "invalid target 'x!y'"), ("1!nope", "nope")]
)
def test_ping_of_an_invalid_target_fails(instance: Instance, target: str, text: str) -> None:
    done = instance.run("ping", "-c", "1", target, rank=1)
    assert (done.status, done.out) == (1, "")
    assert text in done.err


def test_attributes(instance: Instance) -> None:
    assert instance.run("getattr", "size").out == "3\n"
    assert instance.run("getattr", "-r", "2", "rank").out == "2\n"
    assert instance.run("getattr", "nope").status == 1
    assert "topology" in instance.run("lsattr").lines
    assert json.loads(instance.run("lsattr", "-j", rank=1).out)["rank"] == "1"
    assert "size 3" in instance.run("uptime").out


def test_the_hosts_are_printed_as_slurm_writes_them(instance: Instance) -> None:
    host = os.uname().nodename
    assert instance.run("getattr", "hostlist").out == f"{host}\n"
    assert json.loads(instance.run("lsattr", "-j").out)["hostlist"] == f"{host},{host},{host}"
    hosts = "node1,node2,node3,node10,login"
    assert attribute_text("hostlist", hosts) == "login,node[1-3,10]"
    assert attribute_text("hostname", hosts) == hosts


def test_stats(instance: Instance) -> None:
    assert set(json.loads(instance.run("stats", "-r", "all", "--json").out)) == {"0", "1", "2"}
    assert all(line.startswith("1 event.") for line in instance.run("stats", "-r", "1", "event").lines)
    assert instance.run("stats", "nope").status == 1


def test_every_command_has_help_with_examples() -> None:
    from click import Context

    from fluxmpi.cli.main import cli

    def leaves(command, name):  # type: ignore[no-untyped-def]
        if hasattr(command, "list_commands"):
            ctx = Context(command)
            for child in command.list_commands(ctx):
                yield from leaves(command.get_command(ctx, child), f"{name} {child}")
        else:
            yield name, command.get_help(Context(command, info_name=name))

    found = dict(leaves(cli, "fluxmpi"))
    assert len(found) > 30
    assert [name for name, text in found.items() if f"  {name}" not in text.partition("Examples:")[2]] == []


# --------------------------------------------------------------------------------------------- no instance, other users


def test_without_an_instance() -> None:
    done = run("kvs", "get", "a", uri=None)
    assert (done.status, done.out) == (1, "")
    assert "FLUXMPI_URI is not set; start one with" in done.err


def test_an_invalid_address(tmp_path: Path) -> None:
    for uri in ("nonsense", "ssh://host/x", "local://relative", "local://" + "/x" * 100):
        done = run("kvs", "version", uri=uri)
        assert (done.status, done.err.count("\n")) == (1, 1), uri


def test_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "broker.0.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    for name, text in (
        ("broker.0.sock", "no process listens"),
        ("broker.9.sock", "it has ended"),
        ("no/x.sock", "it has ended"),
    ):
        done = run("kvs", "get", "a", uri=f"local://{tmp_path}/{name}")
        assert done.status == 1
        assert text in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_directory(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, 12345, 12345)
    done = run("kvs", "get", "a", uri=f"local://{theirs}/broker.0.sock")
    assert done.status == 1
    assert "belongs to uid 12345" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_by_the_broker(instance: Instance) -> None:
    """The broker checks the peer's uid, too, in case the directory's mode admits others."""
    mode = instance.folder.stat().st_mode
    os.chmod(instance.folder, 0o755)
    os.chmod(instance.folder / "broker.0.sock", 0o777)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.setgid(12345); os.setuid(12345);"
        "s.settimeout(30); s.connect(sys.argv[1]); data = b''\n"
        "while (more := s.recv(65536)): data += more\n"
        "sys.stdout.buffer.write(data)"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(instance.folder / "broker.0.sock")], capture_output=True, timeout=60
        )
    finally:
        os.chmod(instance.folder, mode)
    assert done.returncode == 0, done.stderr
    assert b"uid" in done.stdout


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x04\0\0\0\xc1\xc1\xc1\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\0\0\0\x01",
        b"\x10\0\0\0\x90",
    ],
    ids=["oversized", "no msgpack", "http", "no batch", "cut off"],
)
def test_a_bad_frame_ends_only_its_connection(instance: Instance, data: bytes) -> None:
    for rank in (0, 2):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(instance.folder / f"broker.{rank}.sock"))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        assert instance.run("kvs", "version", rank=rank).status == 0


def test_forbidden_messages_of_a_client_are_ignored(instance: Instance) -> None:
    from fluxmpi.kvs.wire import Setroot
    from fluxmpi.message import CONTROL, EVENT, REQUEST, RESPONSE, Message, encode_body

    setroot = encode_body(Setroot("primary", 10**6, b"\0" * 32, 0.0, None, []))
    bad = [
        Message(CONTROL, "kvs.setroot", body=setroot),
        Message(CONTROL, "lifecycle.end", body=encode_body([0, ""])),
        Message(EVENT, "fake", body=encode_body([10**6, 0.0, b""])),
        Message(RESPONSE, "x", tag=1, route=[-1]),
        Message(REQUEST, "ping.ping", tag=1, route=[0, 1, 2, -1], body=b"\x01"),
        Message(99, "x"),
    ]
    for message in bad:
        batch = encode_batch([message])
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(instance.folder / "broker.1.sock"))
            sock.sendall(len(batch).to_bytes(4, "little") + batch)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    assert int(instance.run("kvs", "version", rank=1).out) < 10**6
    assert instance.run("event", "pub", "-l", "after", rank=1).status == 0


# ---------------------------------------------------------------------------------------------------- start to end


def test_shutdown_ends_the_instance_with_its_status() -> None:
    with Instance(2) as own:
        own.run("kvs", "put", "a=1", rank=1)
        assert own.run("shutdown", "--status", "5", rank=1).status == 0
        assert own.wait() == 5


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: it contains Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="fxr-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("size", ["1", "2"])
@pytest.mark.parametrize("where", ["the instance's file system", "the home folder", "a named folder", "nowhere"])
def test_a_checkpoint_that_cannot_be_written_is_a_failure_of_start(
    size: str, where: str, tmp_path: Path, short_folder: Path
) -> None:
    """The store is saved elsewhere, the line says where, and an instance resumes from there."""
    folder, home, spare = (tmp_path / name for name in ("gone", "home", "spare"))
    for made in (folder, home, spare):
        made.mkdir()
    named = {"a named folder": ["--checkpoint-fallback", str(spare)], "nowhere": ["--checkpoint-fallback", str(folder)]}
    options = ["--checkpoint", str(folder / "store.h5"), *named.get(where, [])]
    script = f"{shlex.join(FLUXMPI)} kvs put a=42 && rmdir {folder}"
    if where == "the home folder":
        script += f" && mkdir {short_folder}/fluxmpi-$({shlex.join(FLUXMPI)} getattr instance).h5"
    done = run(
        *("start", "-n", size, *options, "--", "sh", "-c", script),
        uri=None,
        FLUXMPI_RUNDIR=str(short_folder),
        HOME=str(home),
    )
    assert done.status == 1
    assert done.err.count("the checkpoint was not written: cannot save the checkpoint") == 1
    found = [*short_folder.glob("*.h5"), *home.glob("*.h5"), *spare.glob("*.h5")]
    files = [file for file in found if file.is_file()]
    if where == "nowhere":
        assert files == []
        return
    (file,) = files
    assert file.parent == {"the home folder": home, "a named folder": spare}.get(where, short_folder)
    assert f"The store was saved to {file} instead: resume with --checkpoint {file} --resume" in done.err
    done = run("start", "--checkpoint", str(file), "--resume", "--", *FLUXMPI, "kvs", "get", "a", uri=None)
    assert (done.status, done.out) == (0, "42\n")
    assert re.search(
        r"fluxmpi: resumed from \S+, saved \S+ \(\d+ s ago\) by instance \w+: version 1, 1 key\n", done.err
    )


def test_a_checkpoint_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    done = run("start", "--checkpoint", str(tmp_path / "none.h5"), "--resume", "--", "true", uri=None)
    assert done.status == 1
    assert f"cannot read the checkpoint '{tmp_path / 'none.h5'}': there is no such file" in done.err
    assert "To start with an empty store, leave out --resume." in done.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--checkpoint-fallback", "x"], "--checkpoint-fallback needs --checkpoint"),
        (["--checkpoint-every", "10s"], "--checkpoint-every needs --checkpoint"),
        (["--checkpoint", "x.h5", "--checkpoint-fallback", "none/x"], "--checkpoint-fallback"),
        (["--checkpoint", "x.h5", "--checkpoint-every", "often"], "invalid duration 'often'"),
        (["--checkpoint", ""], "'--checkpoint': the path is empty: name a file"),
        (["--checkpoint", "x.h5", "--checkpoint-fallback", ""], "'--checkpoint-fallback': the path is empty"),
        (["--store-bytes", "0"], "'--store-bytes': 0 is not a limit that can be kept: give 1 or more"),
        (["--history-bytes", "0"], "'--history-bytes': 0 is not a limit that can be kept: give 1 or more"),
    ],
)
def test_options_of_start_that_make_no_sense(words: list[str], text: str, tmp_path: Path) -> None:
    done = run("start", *words, "--", "true", uri=None)
    assert done.status != 0
    assert text in done.err


def test_periodic_checkpoints_are_saved_when_something_has_changed_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "store.h5"
    with Instance(2, ["--checkpoint", str(path), "--checkpoint-every", "0.1s"]) as own:
        assert own.run("getattr", "checkpoint-every").out == "0.1\n"
        assert own.run("getattr", "checkpoint-newest").out == "\n"
        own.run("kvs", "put", "a=1", rank=1)
        for rank in (0, 1):
            wait(lambda rank=rank: own.run("getattr", "checkpoint-version", rank=rank).out == "1\n")
            assert own.run("getattr", "checkpoint-newest", rank=rank).out == f"{path}\n"
            assert own.run("getattr", "checkpoint-behind", rank=rank).out == "0\n"
        statistics = json.loads(own.run("stats", "--json", "checkpoint").out)
        assert statistics["0"]["checkpoint"]["periodic"] == 1, "nothing has changed since"
        status = own.run("overlay", "status").lines
        assert re.fullmatch(rf"checkpoint {path}: saved \S+ \(\d+ s ago\), version 1; no version since", status[-1])
        (first, *_) = json.loads(own.run("overlay", "status", "--json").out)
        assert first["checkpoint"]["path"] == str(path)
        assert (first["checkpoint"]["version"], first["checkpoint"]["behind"]) == (1, 0)
    assert [root.version for root in checkpoint_files.read(path).roots] == [1]


def test_a_failure_of_periodic_checkpoints_is_told_once_and_when_it_works_again(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with Instance(1, ["--checkpoint", str(folder / "store.h5"), "--checkpoint-every", "0.1"]) as own:
        folder.rmdir()
        own.run("kvs", "put", "a=1")
        wait(lambda: "the checkpoint was not saved" in own.log())
        assert own.run("getattr", "checkpoint-version").out == "\n"
        folder.mkdir()
        wait(lambda: f"fluxmpi: checkpoints are saved again: {folder}/store.h5\n" in own.log())
        assert own.log().count("the checkpoint was not saved") == 1
        assert "as they were; the next attempt is in 0.1 s\n" in own.log()


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_start_with_closed_standard_streams(closing: str) -> None:
    script = f"{shlex.join(FLUXMPI)} kvs version && exit 3"
    line = f"{shlex.join([*FLUXMPI, 'start', '-n', '2', '--', 'sh', '-c', script])} {closing}"
    done = subprocess.run(
        ["sh", "-c", line], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 3, done.stderr.decode()


def test_a_client_reports_that_its_instance_ended(tmp_path: Path) -> None:
    with Instance(1) as own:
        with own.popen("event", "sub", stderr=-1) as subscriber, own.connect() as h:
            assert subscriber.stdout is not None
            thread = threading.Thread(target=_publish_until_read, args=(h.event, subscriber))
            h.event.publish("ev5")
            thread.start()
            subscriber.stdout.readline()
            own.run("shutdown")
            _, err = subscriber.communicate(timeout=60)
            thread.join()
        assert subscriber.returncode == 1
        assert b"closed the connection" in err or b"end" in err
    assert run("kvs", "version", uri=own.uri).status == 1


def test_checkpoint_is_listed_and_restored(tmp_path: Path) -> None:
    file = tmp_path / "store.h5"
    with Instance(2) as own:
        own.run("kvs", "put", "a=1", "b.c=x")
        saved = own.run("checkpoint", "save", "-f", str(file), rank=1)
        assert (saved.status, saved.out.startswith(f"{file}: ")) == (0, True)
        root = own.run("kvs", "getroot", "-b").out
    listed = json.loads(run("checkpoint", "list", "--verify", "--json", str(file), uri=None).out)
    assert (listed["state"], listed["roots"][0]["root"], listed["roots"][0]["keys"]) == ("ok", root.strip(), 2)
    assert ", 2 keys  " in run("checkpoint", "list", str(file), uri=None).out
    with Instance(1) as other:
        assert other.run("checkpoint", "restore", str(file)).status == 0
        assert other.run("kvs", "getroot", "-b").out == root
        assert other.run("kvs", "get", "b.c").out == "x\n"
        for bad in (tmp_path / "none.h5", ROOT / "pyproject.toml"):
            done = other.run("checkpoint", "restore", str(bad))
            assert (done.status, str(bad) in done.err) == (1, True)
        assert other.run("kvs", "getroot", "-b").out == root
    assert run("checkpoint", "list", str(ROOT / "pyproject.toml"), uri=None).status == 1
    assert run("checkpoint", "list", str(tmp_path / "none.h5"), uri=None).status == 1


SECONDS = ("_s", "started", "_time")
"""Ends of the names of statistics that are times."""


def test_counts_are_whole_numbers(instance: Instance) -> None:
    """A megabyte was printed as 1.04858e+06."""
    with instance.connect(0) as h:
        h.kvs.put("stats.big", bytes(3 << 20))
        h.kvs.gc()
        live = h.kvs.gc(run=False).live_bytes
    assert live > 1 << 20
    printed = instance.run("kvs", "stats", "-r", "0")
    assert f"gc.live_bytes {live}" in printed.lines
    assert "e+" not in printed.out
    assert f"0 gc.live_bytes {live}" in instance.run("stats", "-r", "0", "gc").lines
    for services in json.loads(instance.run("stats", "-r", "all", "-j").out).values():
        for service, numbers in services.items():
            for name, value in numbers.items():
                assert isinstance(value, int) or name.endswith(SECONDS), f"{service}.{name} is {value}"


def test_numbers_have_all_their_digits() -> None:
    texts = [number_text(value) for value in (0, 7, 1048576.0, 1 << 62, 1795561116.1645734, 0.25, 1e-9, -3.5, 1e15)]
    assert texts == ["0", "7", "1048576", str(1 << 62), "1795561116.164573", "0.25", "0", "-3.5", "1000000000000000"]
