"""Output of values that are neither text nor JSON, and the one line that reports an error."""

from __future__ import annotations

import json
import os
import subprocess

import numpy
import pytest
from instance import FLUXMPI, Instance, environment


@pytest.fixture(scope="module")
def kept(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.commit({"msg.a": 1, "msg.dir.x": 1, "msg.big": b"x" * 3_000_000})
        h.kvs.link("msg.a", "msg.link")


def one_line(instance: Instance, *words: str, stdin: bytes = b"", status: int = 1) -> str:
    done = instance.run("kvs", *words, rank=1, stdin=stdin)
    assert (done.status, done.out) == (status, ""), done
    assert done.err.startswith(f"fluxmpi kvs {words[0]}: ")
    assert done.err.count("\n") == 1
    return done.err


# --------------------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [("kvs", "get", "msg.a"), ("kvs", "get", "-r", "msg.big"), ("kvs", "dir", "msg"), ("kvs", "version"), ("--help",)],
    ids=" ".join,
)
def test_a_full_device_is_reported_in_one_line(
    instance: Instance, kept: None, words: tuple[str, ...], unbuffered: str
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*FLUXMPI, *words], stdout=full, stderr=subprocess.PIPE, timeout=60,
            env=environment(instance.rank_uri(1), PYTHONUNBUFFERED=unbuffered),
        )  # fmt: skip
    command = " ".join(["fluxmpi", *words[:2]]) if words[0] == "kvs" else "fluxmpi"
    assert done.stderr.decode() == f"{command}: cannot write: No space left on device\n"
    assert done.returncode == 1


def test_values_found_by_a_transaction_are_printed(instance: Instance) -> None:
    data = b"\xff\x00\xfe"
    with instance.connect(1) as h:
        h.kvs.commit({"msg.t.b": data, "msg.t.s": b"text", "msg.t.n": numpy.float64("nan")})
        h.kvs.mkdir("msg.t.d")
    asked = {"then": [["swap", f"msg.t.{name}", 1, 2] for name in "bsnd"]}
    output = json.loads(instance.run("kvs", "txn", "-j", rank=1, stdin=json.dumps(asked).encode()).out)
    values = [result["value"] for result in output["results"]]
    assert values == [{"base64": "/wD+"}, "text", {"dtype": "<f8", "shape": [], "data": None}, None]
    printed = instance.run("kvs", "txn", rank=1, stdin=b"swap msg.t.b 1 2\nexchange msg.t.b 1\n").raw
    assert printed == b"false %b\n%b\n" % (data, data)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (numpy.float64("nan"), None),
        (numpy.array([[1.5, numpy.inf], [-numpy.inf, 0.1]]), [[1.5, None], [None, 0.1]]),
        (numpy.array([1, 1 << 62]), [1, 1 << 62]),
    ],
)
def test_the_json_of_an_array_is_valid(instance: Instance, value: numpy.ndarray, data: object) -> None:
    with instance.connect(1) as h:
        h.kvs.put("msg.array", value)
    summary = {"type": "ndarray", "dtype": value.dtype.str, "shape": list(value.shape)}
    assert json.loads(instance.run("kvs", "get", "-j", "msg.array", rank=1).out) == summary
    words = ("kvs", "get", "-j", "--full", "msg.array")
    output = json.loads(instance.run(*words, rank=1).out, parse_constant=refuse)
    assert output == {**summary, "data": data}


def test_an_array_of_long_floats_is_base64_in_json(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.put("msg.long", numpy.array([1.5], numpy.longdouble))
    output = json.loads(instance.run("kvs", "get", "-j", "--full", "msg.long", rank=1).out)
    assert sorted(output) == ["base64", "dtype", "shape", "type"]


def test_directories_and_links_have_a_type_in_json(instance: Instance) -> None:
    with instance.connect(1) as h:
        before = h.kvs.put("msg.j.text", "(directory)")
        h.kvs.mkdir("msg.j.dir")
        after = h.kvs.link("msg.j.text", "msg.j.link")
    lines = instance.run("kvs", "diff", "-j", str(before.version), str(after.version), "msg.j", rank=1).lines
    assert [json.loads(line) for line in lines] == [
        {"key": "msg.j.dir", "before": None, "after": {"type": "directory"}},
        {"key": "msg.j.link", "before": None, "after": {"type": "link", "target": "msg.j.text", "namespace": None}},
    ]
    (line,) = instance.run("kvs", "history", "-j", "msg.j.dir", rank=1).lines
    assert json.loads(line)["value"] == {"type": "directory"}


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("options", [(), ("-j",)])
def test_a_transaction_that_is_not_utf8(instance: Instance, options: tuple[str, ...]) -> None:
    assert "is not UTF-8" in one_line(instance, "txn", *options, stdin=b"\xff" + os.urandom(100))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("put msg.deep={}", ()),
        ("swap msg.deep {} 1", ()),
        ("{}", ("-j",)),
        ('{{"then": [["put", "msg.deep", {}]]}}', ("-j",)),
    ],
)
@pytest.mark.parametrize("depth", [1000, 100_000])
def test_values_nested_too_deeply(instance: Instance, text: str, options: tuple[str, ...], depth: int) -> None:
    stdin = text.format("[" * depth + "]" * depth).encode()
    message = one_line(instance, "txn", *options, stdin=stdin)
    assert "nested too deeply" in message or (text == "{}" and "a transaction is a JSON object" in message)


@pytest.mark.parametrize("where", ["foo", "-5", "+5min", "-1w", "tomorrow", ""])
def test_an_invalid_at_lists_the_valid_forms(instance: Instance, where: str) -> None:
    message = one_line(instance, "get", "--at", where, "msg.a")
    for form in (f"'{where}'", "kvs getroot -S", "a version", "a blobref", "-5min", "2026-01-31T12:00", "@1700000000"):
        assert form in message


@pytest.mark.parametrize(
    "words", [("diff", "foo"), ("diff", "0", "foo"), ("lease", "foo", "true"), ("getroot", "-a", "foo")]
)
def test_every_command_rejects_an_invalid_at(instance: Instance, words: tuple[str, ...]) -> None:
    assert "'foo' names no version" in one_line(instance, *words)


@pytest.mark.parametrize("where", ["9" * 23, str(1 << 63), "9" * 5000, f"primary@{'9' * 23}:9f86d081884c7d65"])
def test_a_version_over_64_bits(instance: Instance, where: str) -> None:
    assert "versions are 64-bit integers" in one_line(instance, "get", "--at", where, "msg.a")


@pytest.mark.parametrize("where", ["@1e400", "@nan"])
def test_an_infinite_time_is_invalid(instance: Instance, where: str) -> None:
    assert "is not a time" in one_line(instance, "get", "--at", where, "msg.a")


@pytest.mark.parametrize("words", [("wait",), ("retention", "-c"), ("watch", "msg.a", "-s")])
def test_a_number_over_64_bits(instance: Instance, words: tuple[str, ...]) -> None:
    done = instance.run("kvs", *words, "9" * 23, rank=1)
    assert (done.status, done.out) == (2, "")
    assert f"{'9' * 23} is not in the range" in done.err.splitlines()[-1]


@pytest.mark.parametrize("option", ["-w", "-W"])
def test_get_watch_of_a_directory_names_kvs_watch(instance: Instance, kept: None, option: str) -> None:
    assert "'fluxmpi kvs watch msg.dir.' prints" in one_line(instance, "get", option, "msg.dir")


@pytest.mark.parametrize("options", [(), ("-R",)])
def test_the_root_directory_cannot_be_unlinked(instance: Instance, kept: None, options: tuple[str, ...]) -> None:
    message = one_line(instance, "unlink", *options, ".")
    assert "the root directory '.' cannot be removed" in message
    assert "-R" not in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("when msg.a foo", "unknown comparison 'foo': use one of == != < <= > >=, version, exists or absent"),
        ("when msg.a foo 3", "unknown comparison 'foo': use one of =="),
        (f"when msg.a version <= {'9' * 23}", "versions are 64-bit integers"),
    ],
)
def test_an_invalid_guard(instance: Instance, line: str, expected: str) -> None:
    message = one_line(instance, "txn", stdin=line.encode())
    assert message.startswith("fluxmpi kvs txn: line 1: ")
    assert expected in message


def test_a_negative_amount_needs_two_hyphens(instance: Instance) -> None:
    done = instance.run("kvs", "add", "msg.q", "-5", rank=1)
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith("use fluxmpi kvs add -- msg.q -5\n")
    assert instance.run("kvs", "add", "--", "msg.q", "-5", rank=1).out == "-5\n"
    assert "No such option" in instance.run("kvs", "add", "msg.q", "-x", rank=1).err


def test_lease_with_a_command_that_cannot_run(instance: Instance, kept: None) -> None:
    assert "cannot run nosuchcmd" in one_line(instance, "lease", "0", "--", "nosuchcmd", status=127)
    assert "cannot run /etc/passwd" in one_line(instance, "lease", "0", "--", "/etc/passwd", status=126)
