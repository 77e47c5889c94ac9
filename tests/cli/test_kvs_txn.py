"""``fluxmpi kvs txn`` and ``add``: input, output and exit status."""

from __future__ import annotations

import json

import pytest


def run(instance, *words, status=0, stdin=""):
    ran = instance.run("kvs", *words, rank=1, stdin=stdin.encode())
    assert ran.status == status, ran.err
    return ran


def txn(instance, text, *options, status=0):
    return run(instance, "txn", *options, stdin=text, status=status).out.splitlines()


def test_guards_operations_and_results(instance):
    text = """
        # the first client gets the lock
        when a.lock absent
        when a.count != 7
        put a.lock="me"
        put a.text=two words
        add a.count 2
        add a.count 1 limit 3
        add a.count limit 3
        exchange a.e {"x": 1}
        swap a.e {"x":1} "x y"
        swap a.none absent 1
        append a.log=line
        mkdir a.d
        link a.text a.l
        publish a.ready {"id": 7}
    """
    assert txn(instance, text) == ["2", "3", "3 limit", "absent", "true", "true"]
    assert run(instance, "get", "a.l").out == "two words\n"
    assert txn(instance, "when a.lock absent\nput a.lock=1\nelse\nadd a.tries\nswap a.e 1 2\n", status=3) == [
        "1",
        "false x y",
    ]
    assert (
        txn(instance, "when a.lock exists\nwhen a.count version <= 1000000\nwhen a.count >= 3\nunlink a.lock\n") == []
    )
    assert txn(instance, "when a.lock exists\nput a.z=1\n", status=3) == []
    run(instance, "get", "a.lock", status=1)


def test_json(instance):
    asked = {
        "when": [["j.lock", "absent"], ["j.n", "!=", 5], ["j.n", "version", "<=", 1000000]],
        "then": [["put", "j.lock", "me"], ["add", "j.n"], ["add", "j.n", 5, 3], ["exchange", "j.lock", None]],
        "else": [["unlink", "j.lock"]],
        "publish": [["j.x", {"id": 1}]],
    }
    (line,) = txn(instance, json.dumps(asked), "--json")
    output = json.loads(line)
    assert output["succeeded"] is True
    assert output["results"] == [
        None,
        {"done": True, "number": 1},
        {"done": True, "number": 6},
        {"done": True, "value": "me"},
    ]
    (line,) = txn(instance, json.dumps(asked), "--json", status=3)
    assert json.loads(line)["succeeded"] is False


def test_add(instance):
    assert run(instance, "add", "b.n").out == "1\n"
    assert run(instance, "add", "b.n", "--", "-3").out == "-2\n"
    assert run(instance, "add", "--limit", "0", "b.n").out == "-1\n"
    assert run(instance, "add", "--limit", "-1", "b.n", status=3).out == ""


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("frob x", (), "line 1: unknown statement 'frob': use one of"),
        ("\nput x", (), "line 2: invalid assignment 'x': use KEY=VALUE"),
        ("when x ~ 3", (), "unknown comparison '~'"),
        ("when x", (), "is missing"),
        ("when x version <= soon", (), "'soon' is not an integer"),
        ("add x 3 most 4", (), "unexpected 'most'"),
        ("swap x 1", (), "the new value is missing"),
        ("swap x 1 2 3", (), "unexpected '3'"),
        ("else\nput x=1", (), "without a guard"),
        ("when x exists\nelse\nelse", (), "'else' may occur only once"),
        ("when x exists\nelse\npublish a 1", (), "cannot be published in otherwise()"),
        ("put c.text=text\nadd c.text", (), "only a json integer"),
        ("put c.n=9223372036854775807\nadd c.n", (), "past 64 bits"),
        ("put x=1", ("--durable",), "no journal"),
        ("{", ("--json",), "not JSON"),
        ("[]", ("--json",), "a JSON object"),
        ('{"when": [["x"]]}', ("--json",), "invalid guard"),
        ('{"then": [["frob", "x"]]}', ("--json",), "invalid operation"),
        ('{"then": {}}', ("--json",), "must be a list of lists"),
        ('{"publish": [[]]}', ("--json",), "invalid event"),
    ],
)
def test_an_invalid_transaction_is_reported_and_not_applied(instance, text, options, message):
    assert message in run(instance, "txn", *options, stdin=text, status=1).err
    run(instance, "get", "c.text", status=1)
