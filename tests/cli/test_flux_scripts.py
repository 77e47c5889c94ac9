"""Scripts written for ``flux kvs``, run with ``fluxmpi`` under the name ``flux``: same output, same exit status."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from instance import COMMAND_S, FLUXMPI, Done, Instance, environment

import fluxmpi

PRELUDE = "flux() { " + " ".join(f"'{word}'" for word in FLUXMPI) + ' "$@"; }\n'


def sh(instance: Instance, script: str, rank: int = 0, **environ: str) -> Done:
    done = subprocess.run(
        ["bash", "-c", PRELUDE + script],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_S,
        env=environment(instance.rank_uri(rank), **environ),
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


# Name, script, expected output.
SCRIPTS = {
    "values": (
        "flux kvs put x1.a=42 x1.b='two words' x1.c= x1.d='[1,2]'; flux kvs get x1.a x1.b x1.c x1.d",
        "42\ntwo words\n[1,2]\n",
    ),
    "get raw": ("flux kvs put x2.a=one x2.b=two; flux kvs get --raw x2.a x2.b", "onetwo"),
    "get in a substitution": ('flux kvs put x3.a=foo; test "$(flux kvs get -r x3.a)" = foo && echo same', "same\n"),
    "get label": ("flux kvs put x4.a=1 x4.b=b; flux kvs get -l x4.a x4.b", "x4.a=1\nx4.b=b\n"),
    "put raw from stdin": ("printf abc | flux kvs put --raw x5.a=- x5.b=42; flux kvs get --raw x5.a x5.b", "abc42"),
    "binary": (r"printf 'a\0b' | flux kvs put -r x6.a=-; flux kvs get -r x6.a | od -An -c", "   a  \\0   b\n"),
    "append to a text": (
        "flux kvs put x7.a=abc; flux kvs put -A x7.a=def; flux kvs put --append x7.a=; flux kvs get x7.a",
        "abcdef\n",
    ),
    "append lines": (
        "for w in abc def; do echo $w | flux kvs put --append --raw x8.a=-; done; flux kvs get --raw x8.a",
        "abc\ndef\n",
    ),
    "append to nothing": ("flux kvs put -A x9.a=abc; flux kvs get x9.a", "abc\n"),
    "several values of one key": ("flux kvs put -n y0.a=1 y0.a=2; flux kvs get y0.a", "2\n"),
    "treeobj types": (
        "flux kvs put y1.v=hi y1.long=$(seq -s, 200); flux kvs mkdir y1.d; flux kvs link x y1.l\n"
        'for k in v long d l; do flux kvs get --treeobj y1.$k | grep -o \'"type":"[a-z]*"\'; done',
        '"type":"val"\n"type":"valref"\n"type":"dirref"\n"type":"symlink"\n',
    ),
    "treeobj put": (
        """flux kvs put --treeobj y2.v='{"data":"Yg==","type":"val","ver":1}'; flux kvs get y2.v""",
        "b\n",
    ),
    "treeobj of stored blobs, without a size": (
        "store() { flux content store; }\n"
        "one=$(printf abcd | store); none=$(store </dev/null); two=$(printf efgh | store)\n"
        'valref() { echo "{\\"data\\":[$1],\\"type\\":\\"valref\\",\\"ver\\":1}"; }\n'
        'flux kvs put -t q3.a="$(valref "\\"$one\\",\\"$none\\",\\"$two\\"")" q3.b="$(valref "\\"$none\\"")"\n'
        "flux kvs get q3.a; flux kvs get -r q3.b | wc -c; flux kvs get -t q3.a | grep -o '\"size\":8'",
        'abcdefgh\n0\n"size":8\n',
    ),
    "treeobj of a directory with its entries": (
        """flux kvs put q4.d.old=1
        val='{"data":"Yg==","type":"val","ver":1}'; link='{"data":{"target":"x"},"type":"symlink","ver":1}'
        dir='{"data":{"v":'$val',"l":'$link',"e":{"data":{},"type":"dir","ver":1}},"type":"dir","ver":1}'
        flux kvs put -t q4.d="$dir"; flux kvs dir -R q4""",
        "q4.d.e.\nq4.d.l -> x\nq4.d.v = b\n",
    ),
    "treeobj of a string of Flux, which ends with a NUL": (
        """flux kvs put -t q7.a='{"data":"YgA=","type":"val","ver":1}'; flux kvs get q7.a; flux kvs dir q7
        flux kvs get -r q7.a | od -An -c""",
        "b\nq7.a = b\n   b  \\0\n",
    ),
    "count of 0 is no limit": (
        "flux kvs eventlog append -t 1 q8 a; flux kvs eventlog append -t 2 q8 b; flux kvs eventlog get -c 0 q8",
        "1.000000 a\n2.000000 b\n",
    ),
    "treeobj of a long val": (
        """flux kvs put -t q5='{"data":"'$(seq 200 | base64 -w0)'","type":"val","ver":1}'
        flux kvs get -r q5 | cmp - <(seq 200) && flux kvs get -t q5 | grep -o '"type":"[a-z]*"'""",
        '"type":"valref"\n',
    ),
    "treeobj copies a directory": (
        'flux kvs put y3.a.a=hello y3.a.b=goodbye; flux kvs put -t y3.b="$(flux kvs get -t y3.a)"; flux kvs get y3.b.a y3.b.b',
        "hello\ngoodbye\n",
    ),
    "a snapshot by its treeobj": (
        'flux kvs put y4.a=old; ref=$(flux kvs getroot); flux kvs put y4.a=new; flux kvs get -a "$ref" y4.a; flux kvs get y4.a',
        "old\nnew\n",
    ),
    "dir of a snapshot": (
        'flux kvs put y5.a=1; ref=$(flux kvs getroot); flux kvs put y5.b=1; flux kvs dir -a "$ref" y5',
        "y5.a = 1\n",
    ),
    "put prints the root": (
        'ref=$(flux kvs put -O y6.a=1); flux kvs put y6.a=2; flux kvs get --at "$ref" y6.a',
        "1\n",
    ),
    "put prints the sequence": (
        "v=$(flux kvs put -s y7.a=1); w=$(flux kvs put --sequence y7.a=2); flux kvs wait $w; test $w -gt $v && echo later",
        "later\n",
    ),
    "put prints the blobref": ("flux kvs put --blobref y8.a=1 | grep -Ec '^sha256-[0-9a-f]{64}$'", "1\n"),
    "unlink prints the sequence": (
        'flux kvs put y9.a=1; v=$(flux kvs version); flux kvs unlink -s y9.a | awk "\\$1 > $v {print 1}"',
        "1\n",
    ),
    "unlink of nothing prints the sequence": ("flux kvs unlink -f -s z0.no | grep -Ec '^[0-9]+$'", "1\n"),
    "getroot": (
        "flux kvs getroot -o; flux kvs getroot | grep -c dirref; flux kvs getroot -s | grep -Ec '^[0-9]+$'",
        f"{os.geteuid()}\n1\n1\n",
    ),
    "ls": ("flux kvs put z1.a=69 z1.b.d=1; flux kvs link b z1.c; flux kvs ls -1F z1", "a\nb.\nc@\n"),
    "ls of keys": (
        "flux kvs put z2.a=69 z2.b.d=1; flux kvs link b z2.c; flux kvs ls -1Fd z2.a z2.b z2.c",
        "z2.a\nz2.b.\nz2.c@\n",
    ),
    "ls recursive": ("flux kvs put z3.a=1 z3.b.c.d=1; flux kvs ls -R z3", "z3:\na    b\n\nz3.b:\nc\n\nz3.b.c:\nd\n"),
    "ls in 80 columns": ("flux kvs put $(seq -f 'z4.%04g=x' 50); flux kvs ls z4 | wc -wl | tr -s ' '", " 5 50\n"),
    "ls in 40 columns": ("flux kvs put $(seq -f 'z5.%04g=x' 50); flux kvs ls -w40 z5 | wc -wl | tr -s ' '", " 10 50\n"),
    "ls in COLUMNS": (
        "flux kvs put $(seq -f 'z6.%04g=x' 50); COLUMNS=20 flux kvs ls z6 | wc -wl | tr -s ' '",
        " 25 50\n",
    ),
    "ls marks do not widen columns": (
        "flux kvs put z7.aa=1 z7.bb.c=1 z7.dd.e=1; flux kvs ls -F -w 18 z7",
        "aa    bb.   dd.\n",
    ),
    "ls of a directory with a dot": ("flux kvs mkdir z8.a; flux kvs ls -d z8.a.", "z8.a\n"),
    "ls follows a link to a directory": ("flux kvs put z9.d.x=1; flux kvs link z9.d z9.l; flux kvs ls z9.l", "x\n"),
    "dir": (
        "flux kvs put d1.a=1 d1.b.c=2; flux kvs link d1.a d1.l; flux kvs dir d1",
        "d1.a = 1\nd1.b.\nd1.l -> d1.a\n",
    ),
    "dir recursive": (
        "flux kvs put d2.a=69 d2.c.d.e=3.14; flux kvs mkdir d2.m; flux kvs dir -R d2",
        "d2.a = 69\nd2.c.d.e = 3.14\nd2.m.\n",
    ),
    "dir without values": ("flux kvs put d3.a=1 d3.b.c=2; flux kvs dir -R -d d3", "d3.a\nd3.b.c\n"),
    "dir of an empty value": ("flux kvs put --raw d4.a=; flux kvs dir d4", "d4.a = \n"),
    "dir cuts to three less than the width": (
        "flux kvs put d5.a=0123456789; for w in 20 19 18 3 0; do flux kvs dir -w $w d5; done",
        "d5.a = 0123456789\nd5.a = 012345678...\nd5.a = 01234567...\nd5.a = 0123456789\nd5.a = 0123456789\n",
    ),
    "dir cuts at a line's end and at what cannot be shown": (
        r"printf 'one\ntwo' | flux kvs put -r d6.a=-; printf 'one\n' | flux kvs put -r d6.b=-; "
        r"printf 'o\1ne' | flux kvs put -r d6.c=-; flux kvs dir d6",
        "d6.a = one...\nd6.b = one\nd6.c = o...\n",
    ),
    "readlink": (
        "flux kvs link t l1.a; flux kvs link --target-namespace=n t l1.b\n"
        "flux kvs readlink l1.a l1.b; flux kvs readlink -o l1.a l1.b; flux kvs readlink -k l1.a l1.b",
        "t\nn::t\nt\nn\nt\nt\n",
    ),
    "copy": ("flux kvs put c1.a.b.c=foo; flux kvs copy c1.a c1.d; flux kvs get c1.a.b.c c1.d.b.c", "foo\nfoo\n"),
    "move": (
        "flux kvs put c2.a.b.c=foo; flux kvs move c2.a c2.d; flux kvs get c2.d.b.c; flux kvs get -t c2.a || echo gone",
        "foo\ngone\n",
    ),
    "copy of a link is a link": ("flux kvs link t c3.a; flux kvs copy c3.a c3.b; flux kvs readlink c3.b", "t\n"),
    "dropcache": ("flux kvs put e1.a=1; flux kvs dropcache; flux kvs dropcache --all; flux kvs get e1.a", "1\n"),
    "get watch count": ("flux kvs put w1.a=42; flux kvs get --watch --count=1 w1.a", "42\n"),
    "get full": ("flux kvs put w2.a=42; flux kvs get --watch --full -f --count=1 w2.a", "42\n"),
    "get waitcreate of what is there": (
        "flux kvs put w3.a=1; flux kvs get --waitcreate w3.a; flux kvs get -S w3.a",
        "1\n1\n",
    ),
    "eventlog": (
        """flux kvs eventlog append --timestamp=1 g1 name '{"data":"foo"}'; flux kvs eventlog append -t 2 g1 end
        flux kvs eventlog get --unformatted g1; flux kvs eventlog get g1; flux kvs eventlog get -c 1 g1""",
        '{"timestamp":1.0,"name":"name","context":{"data":"foo"}}\n{"timestamp":2.0,"name":"end"}\n'
        '1.000000 name data="foo"\n2.000000 end\n1.000000 name data="foo"\n',
    ),
    "eventlog context of several words": (
        "flux kvs eventlog append -t 1 g2 x { '\"n\": [1, 2]' }; flux kvs eventlog get g2",
        "1.000000 x n=[1,2]\n",
    ),
    "eventlog in human form": (
        "flux kvs eventlog append -t 120 g3 a; flux kvs eventlog append -t 121 g3 b; flux kvs eventlog append -t 180 g3 c\n"
        "TZ=UTC flux kvs eventlog get --human g3",
        "[Jan01 00:02] a\n[  +1.000000] b\n[Jan01 00:03] c\n",
    ),
    "eventlog watch": (
        "flux kvs eventlog append -t 42 g4 foo; flux kvs eventlog append -t 43 g4 bar\n"
        "flux kvs eventlog get --watch -u --count=2 g4",
        '{"timestamp":42.0,"name":"foo"}\n{"timestamp":43.0,"name":"bar"}\n',
    ),
    "wait-event": (
        "flux kvs eventlog append -t 42 g5 foo; flux kvs eventlog append -t 43 g5 bar\n"
        "flux kvs eventlog wait-event g5 foo; flux kvs eventlog wait-event -v -u g5 bar; flux kvs eventlog wait-event -q g5 bar",
        '42.000000 foo\n{"timestamp":42.0,"name":"foo"}\n{"timestamp":43.0,"name":"bar"}\n',
    ),
    "wait-event that matches": (
        """for n in 1 2 3; do flux kvs eventlog append -t $n g6 step '{"n":'$n',"who":"a"}'; done
        flux kvs eventlog wait-event -m n=2 --match-context=who=a g6 step""",
        '2.000000 step n=2 who="a"\n',
    ),
    "eventlog colours": (
        "flux kvs eventlog append -t 1 g7 a; flux kvs eventlog get -L g7; flux kvs eventlog get --color=never g7",
        "\x1b[32m1.000000\x1b[0m \x1b[33ma\x1b[0m\n1.000000 a\n",
    ),
    "namespaces": (
        "flux kvs namespace create n1a n1b; flux kvs put -N n1a x=1; flux kvs get --namespace=n1a x\n"
        "flux kvs get -N n1b x || echo none; FLUXMPI_KVS_NAMESPACE=n1a flux kvs get x\n"
        "flux kvs namespace remove n1a n1b; flux kvs get -N n1a x || echo removed",
        "1\nnone\n1\nremoved\n",
    ),
    "namespace remove of one that does not exist": (
        "flux kvs namespace remove n1-none && flux kvs namespace create n1c; flux kvs namespace remove n1-none n1c\n"
        "flux kvs get -N n1c x || echo removed",
        "removed\n",
    ),
    "namespace list": (
        "flux kvs namespace create n2; flux kvs namespace list | grep -E 'NAMESPACE|^n2 '; flux kvs namespace remove n2",
        "NAMESPACE                                 OWNER      FLAGS\n"
        f"n2                                   {os.geteuid():>10} 0x00000000\n",
    ),
    "namespace with a root": (
        'flux kvs put n3.a=1; flux kvs namespace create -r "$(flux kvs getroot -b)" n3; flux kvs get -N n3 n3.a\n'
        'flux kvs namespace create --rootref="$(flux kvs getroot)" --owner=12345 n3b; flux kvs getroot -o -N n3b\n'
        "flux kvs namespace remove n3 n3b",
        "1\n12345\n",
    ),
    "copy and move between namespaces": (
        "flux kvs namespace create n4; flux kvs put n4.a=foo; flux kvs copy --dst-namespace=n4 n4.a b\n"
        "flux kvs move -S n4 b n4.c; flux kvs get n4.a n4.c; flux kvs get -N n4 b || echo gone; flux kvs namespace remove n4",
        "foo\nfoo\ngone\n",
    ),
    "a link into a namespace": (
        "flux kvs namespace create n5; flux kvs put -N n5 a=far; flux kvs link -T n5 a n5.l; flux kvs get n5.l\n"
        "flux kvs readlink n5.l; flux kvs dir n5; flux kvs namespace remove n5",
        "far\nn5::a\nn5.l -> n5::a\n",
    ),
    "versions of a namespace": (
        "flux kvs namespace create n6; v=$(flux kvs version -N n6); flux kvs put -N n6 a=1\n"
        "flux kvs wait -N n6 $((v + 1)); echo $(( $(flux kvs getroot -s -N n6) - v )); flux kvs namespace remove n6",
        "1\n",
    ),
    "normalized keys": (
        "flux kvs put ......q1.a.b=1 q1.c......=2 q1.....d...e=3; flux kvs get q1.a.b q1.c q1.d.e\n"
        "flux kvs get .q1..a...b.... ; flux kvs dir -R q1..; flux kvs ls -1 ...q1; flux kvs link ..q1...c. q1.l\n"
        "flux kvs readlink q1.l; flux kvs get q1.l; flux kvs unlink .q1.c; flux kvs get q1..c || echo none",
        "1\n2\n3\n1\nq1.a.b = 1\nq1.c = 2\nq1.d.e = 3\na\nc\nd\n..q1...c.\n2\nnone\n",
    ),
    "a directory that may be the root": (
        'put() { flux kvs put "$DIR.$1"; }; get() { flux kvs get "$DIR.$1"; }\n'
        'for DIR in . q2 q2.; do put q2a=$DIR; get q2a; done; flux kvs get q2a; flux kvs ls -d "$DIR."; flux kvs ls -1 q2..',
        ".\nq2\nq2.\n.\nq2\nq2a\n",
    ),
    "a value in the way becomes a directory": (
        "flux kvs put q6.a=1; flux kvs put q6.a.b=2 q6.a.c.d=3; flux kvs dir -R q6; flux kvs mkdir q6.a.b q6.a.c.d.e\n"
        "flux kvs dir -R q6; flux kvs put q6.v=1; flux kvs link q6.a q6.v.l; flux kvs readlink q6.v.l\n"
        "printf x | flux kvs put -r q6.v.l2=1 q6.v.l2.m=-; flux kvs get -r q6.v.l2.m",
        "q6.a.b = 2\nq6.a.c.d = 3\nq6.a.b.\nq6.a.c.d.e.\nq6.a\nx",
    ),
    "ls -d of dots is the root": ("flux kvs ls -d . ..", ".    .\n"),
    "a script that counts in the store": (
        "flux kvs put s1.n=0; for i in 1 2 3; do flux kvs put s1.n=$(( $(flux kvs get s1.n) + i )); done; flux kvs get s1.n",
        "6\n",
    ),
    "a loop over a directory": (
        "flux kvs put s2.job.1.state=done s2.job.2.state=failed s2.job.3.state=done\n"
        "for job in $(flux kvs ls -1 s2.job); do test $(flux kvs get s2.job.$job.state) = done && echo $job; done",
        "1\n3\n",
    ),
}


@pytest.mark.parametrize(("script", "printed"), SCRIPTS.values(), ids=SCRIPTS)
def test_script(instance: Instance, script: str, printed: str) -> None:
    done = sh(instance, script, rank=1)
    assert (done.out, done.status) == (printed, 0), done.err


FAILURES = [
    "flux kvs get ff.no",
    "flux kvs get",
    "flux kvs get ff.d",
    "flux kvs get ff.v ff.no",
    "flux kvs get --watch --count=1 ff.no",
    "flux kvs get --watch --append --count=1 ff.d",
    "flux kvs get -N ff-nowhere a",
    "flux kvs put",
    "flux kvs put ff.novalue",
    "flux kvs put -t ff.x=nonsense",
    """flux kvs put -t ff.x='{"data":"MQA=","type":"FOO","ver":1}'""",
    """flux kvs put -t ff.x='{"data":42,"type":"symlink","ver":1}'""",
    """flux kvs put -t ff.x='{"data":42,"type":"dirref","ver":1}'""",
    """flux kvs put -t ff.x='{"data":["sha1-aaa"],"type":"dirref","ver":1}'""",
    """flux kvs get --at '{"data":["sha1-aaa"],"type":"dirref","ver":1}' ff.v""",
    """flux kvs get --at '{"data":42,"type":"dirref","ver":1}' ff.v""",
    "flux kvs dir ff.no",
    "flux kvs dir ff.v",
    "flux kvs dir ff.d ff.v",
    "flux kvs ls ff.no",
    "flux kvs ls -d ff.v.",
    "flux kvs unlink ff.no",
    "flux kvs unlink ff.d",
    "flux kvs link ff.v",
    "flux kvs readlink ff.v",
    "flux kvs copy ff.v",
    "flux kvs copy ff.no ff.x",
    "flux kvs move ff.no ff.x",
    "flux kvs copy --src-namespace=ff-nowhere ff.v ff.x",
    "flux kvs move --dst-namespace=ff-nowhere ff.v ff.x",
    "flux kvs wait",
    "flux kvs getroot x",
    "flux kvs namespace create",
    "flux kvs namespace create primary",
    "flux kvs namespace create -r nonsense ff-new",
    "flux kvs namespace remove primary",
    "flux kvs namespace nonsense",
    "flux kvs eventlog get ff.no",
    "flux kvs eventlog get ff.v",
    "flux kvs eventlog get",
    "flux kvs eventlog get -Hu ff.log",
    "flux kvs eventlog get -u --color=always ff.log",
    "flux kvs eventlog get -u -L ff.log",
    "flux kvs eventlog get --watch --stream ff.log",
    "flux kvs eventlog wait-event -Hu ff.log foo",
    "flux kvs eventlog wait-event -u --color ff.log foo",
    "flux kvs eventlog wait-event --color=foo ff.log foo",
    "flux kvs get --watch --stream ff.v",
    "flux kvs put .=1",
    "flux kvs put ...=1",
    "flux kvs sync",
    "flux kvs sync x",
    "flux kvs eventlog get --color=foo ff.log",
    "flux kvs eventlog append ff.log",
    "flux kvs eventlog append ff.log foo not_an_object",
    "flux kvs eventlog append ff.log foo 12",
    "flux kvs eventlog wait-event ff.log",
    "flux kvs eventlog wait-event ff.no foo",
    "flux kvs eventlog wait-event --timeout=0.1 ff.log baz",
    "flux kvs",
    "flux kvs nonsense",
]


@pytest.fixture(scope="module")
def failing(instance: Instance) -> None:
    with instance.connect() as h:
        h.kvs.commit({"ff.v": "x", "ff.d.a": 1})
        h.eventlog.append("ff.log", "foo")


@pytest.mark.parametrize("script", FAILURES)
def test_a_script_that_fails_with_flux_fails(instance: Instance, failing: None, script: str) -> None:
    done = sh(instance, script)
    assert done.status != 0
    assert done.err
    with instance.connect() as h:
        assert not h.kvs.exists("ff.x", at=h.kvs.snapshot(fresh=True))


def test_values_before_a_failure_are_printed(instance: Instance, failing: None) -> None:
    """As in flux, values before the failing key are printed."""
    assert sh(instance, "flux kvs get ff.v ff.no ff.v").out == "x\n"
    assert sh(instance, "flux kvs ls -1 ff.d ff.no").out == "a\n"


# Setup, background command, commands to run after its first line of output, its whole output, its exit status.
BACKGROUND = {
    "watch in the order of commits": (
        "flux kvs put b1=1",
        "flux kvs get --watch --count=9 b1",
        "for i in $(seq 2 9); do flux kvs put --no-merge b1=$i; done",
        "".join(f"{n}\n" for n in range(1, 10)),
        0,
    ),
    "watch uniq": (
        "flux kvs put b2=1",
        "flux kvs get --count=3 --watch --uniq b2",
        "for i in 1 1 2 2 3; do flux kvs put -n b2=$i; done",
        "1\n2\n3\n",
        0,
    ),
    "watch of appends": (
        "flux kvs put b3=abc",
        "flux kvs get --watch --append --count=3 b3",
        "flux kvs put --append b3=d; flux kvs put --append b3=e",
        "abc\nd\ne\n",
        0,
    ),
    "watch of an append of nothing, which counts": (
        "flux kvs put b9=abc",
        "flux kvs get --watch --append --count=4 b9",
        "flux kvs put --append b9=d; flux kvs put --append b9=; flux kvs put --append b9=e",
        "abc\nd\ne\n",
        0,
    ),
    "watch of two appends in one put": (
        "flux kvs put c0=abc",
        "flux kvs get -w -A -l -c 5 c0",
        "flux kvs put -A c0=d c0=e; flux kvs put -A c0=f c0=g",
        "c0=abc\nc0=d\nc0=e\nc0=f\nc0=g\n",
        0,
    ),
    "watch of appends to long values": (
        "flux kvs put c1=$(seq -s, 100)",
        "flux kvs get -w -A -c 4 c1",
        "flux kvs put -A c1=$(seq -s: 300); flux kvs put -A c1=x; flux kvs put -A -r c1=end",
        ",".join(map(str, range(1, 101))) + "\n" + ":".join(map(str, range(1, 301))) + "\nx\nend\n",
        0,
    ),
    "watch of appends, and an overwrite that begins with the old bytes": (
        "flux kvs put -r c2=abc",
        "flux kvs get -w -A -c 3 c2",
        "flux kvs put -A c2=d; flux kvs put -r c2=abcdef",
        "abc\nd\nabcdef\n",
        0,
    ),
    "watch of raw appends": (
        "echo abc | flux kvs put -r c3=-",
        "flux kvs get -r -w -A -c 3 c3",
        "echo d | flux kvs put -A -r c3=-; echo e | flux kvs put -A -r c3=-",
        "abc\nd\ne\n",
        0,
    ),
    "full watch prints no value twice": (
        "flux kvs put c4.a=abc",
        "flux kvs get --watch --full --count=3 c4.a",
        "flux kvs put c4.a=abc; flux kvs put c4.a=abcdef; flux kvs put c4.a=abcdef; flux kvs put c4.a=xyz",
        "abc\nabcdef\nxyz\n",
        0,
    ),
    "full watch of a replaced directory": (
        "flux kvs put c5.a=abc c5x.a=xyz",
        "flux kvs get --watch --full --count=2 c5.a",
        'flux kvs put --treeobj c5="$(flux kvs get --treeobj c5x)"',
        "abc\nxyz\n",
        0,
    ),
    "full watch of a key that goes with its directory": (
        "flux kvs put c6.a=abc c6x.b=xyz",
        "flux kvs get --watch --full c6.a",
        'flux kvs put --treeobj c6="$(flux kvs get --treeobj c6x)"',
        "abc\n",
        1,
    ),
    "watch of normalized keys": (
        "flux kvs put c7.a=1",
        "flux kvs get -l --watch --count=2 c7...a",
        "flux kvs put .c7....a.=2",
        "c7...a=1\nc7...a=2\n",
        0,
    ),
    "watch of a key that is removed after it was waited for": (
        "flux kvs put c8=1",
        "flux kvs get -w -W --count=2 c8",
        "flux kvs unlink c8",
        "1\n",
        1,
    ),
    "watch of a namespace that is removed": (
        "flux kvs namespace create c9; flux kvs put -N c9 a=1",
        "flux kvs get -N c9 -w -W a",
        "flux kvs namespace remove c9",
        "1\n",
        1,
    ),
    "watch of appends to a key that becomes a directory": (
        "flux kvs put ca.a=1",
        "flux kvs get -w -A ca.a",
        "flux kvs unlink ca.a; flux kvs mkdir ca.a",
        "1\n",
        1,
    ),
    "watch of a key that is removed": ("flux kvs put b4=1", "flux kvs get --watch b4", "flux kvs unlink b4", "1\n", 1),
    "eventlog in the order of appends": (
        "flux kvs eventlog append -t 1 b5 e",
        "flux kvs eventlog get -u --watch --count=5 b5",
        "for i in $(seq 2 5); do flux kvs eventlog append -t $i b5 e; done",
        "".join(f'{{"timestamp":{n}.0,"name":"e"}}\n' for n in range(1, 6)),
        0,
    ),
}


@pytest.mark.parametrize(("before", "watch", "then", "printed", "status"), BACKGROUND.values(), ids=BACKGROUND)
def test_background(instance: Instance, before: str, watch: str, then: str, printed: str, status: int) -> None:
    script = f'{before}; exec 3< <({watch}); pid=$!; read -r line <&3; echo "$line"; {then}; cat <&3; wait $pid'
    done = sh(instance, script, rank=2)
    assert (done.out, done.status) == (printed, status), done.err


@pytest.mark.parametrize(
    ("waiting", "then", "printed"),
    [
        ("flux kvs get --waitcreate b6", "flux kvs put b6=2", "2\n"),
        (
            "flux kvs eventlog get -u --waitcreate b7",
            "flux kvs eventlog append -t 1 b7 foo",
            '{"timestamp":1.0,"name":"foo"}\n',
        ),
        (
            "flux kvs eventlog wait-event -W b8 go",
            "flux kvs eventlog append -t 1 b8 foo; flux kvs eventlog append -t 2 b8 go",
            "2.000000 go\n",
        ),
    ],
)
def test_waiting_for_a_missing_key(instance: Instance, waiting: str, then: str, printed: str) -> None:
    until = "until flux kvs stats -r 1 | grep -q '^kvs.watchers [1-9]'; do :; done"
    done = sh(instance, f"{waiting} & pid=$!; {until}; {then}; wait $pid", rank=1)
    assert (done.out, done.status) == (printed, 0), done.err


def test_namespace_of_the_environment(instance: Instance) -> None:
    assert sh(instance, "flux kvs get a", FLUXMPI_KVS_NAMESPACE="nowhere").status == 1
    assert sh(instance, "flux kvs put n1=1; flux kvs get n1", FLUX_KVS_NAMESPACE="nowhere").out == "1\n", (
        "not flux's own"
    )


def test_timeouts_are_durations(instance: Instance, failing: None) -> None:
    begin = time.monotonic()
    for text in ("100ms", "0.1s", "0.1"):
        done = sh(instance, f"flux kvs eventlog wait-event -t {text} ff.log baz")
        assert (done.status, "no event 'baz' in the eventlog 'ff.log' within 0.1 s; it has 1 events" in done.err) == (
            1,
            True,
        )
    assert sh(instance, "flux kvs wait -t 0.00001d 100000").status == 1
    assert time.monotonic() - begin < 30
    assert sh(instance, "flux kvs wait -t 5y 1").status == 2


def test_values_that_are_not_eventlogs(instance: Instance) -> None:
    for value, text in {
        "x": "does not end with a newline",
        "[1]\n": "line 1: '[1]' is not a JSON object",
        '{"timestamp":1,"name":"a"}\n{"timestamp":0,"name":"a"}\n': 'line 2: \'{"timestamp":0,"name":"a"}\' has no timestamp',
        '{"timestamp":1}\n': "has no name",
        '{"timestamp":1,"name":"a","context":[]}\n': "has a context that is not a JSON object",
        "{\n": "is not JSON",
    }.items():
        with instance.connect() as h:
            h.kvs.put("h.log", value.encode())
        for words in (["get"], ["get", "-w"], ["wait-event"]):
            done = instance.run("kvs", "eventlog", *words, "h.log", *(["a2"] if words == ["wait-event"] else []))
            assert (done.status, text in done.err) == (1, True), (words, value, done.err)
            assert done.err.count("\n") == 1


def test_sync_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    file = tmp_path / "sync.h5"
    with Instance(1, ["--checkpoint", str(file)]) as running:
        before = int(running.run("kvs", "version").out)
        assert sh(running, "flux kvs put -S -s sync.a=1").out == f"{before + 1}\n"
        assert f"primary version {before + 1}" in running.run("checkpoint", "list", str(file)).out
        assert sh(running, "flux kvs put sync.a=2; flux kvs sync").out == ""
        assert f"primary version {before + 2}" in running.run("checkpoint", "list", str(file)).out


def test_sync_reports_a_failed_save(instance: Instance) -> None:
    done = sh(instance, "flux kvs put -S sync.a=1")
    assert (done.status, done.out) == (1, "")
    assert "committed as version" in done.err
    assert "but not saved to disk: " in done.err
    with instance.connect() as h:
        assert h.kvs.get("sync.a", fresh=True) == 1


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            "flux kvs namespace create -r nonsense m-new",
            "m-new: 'nonsense' names no version: give a snapshot as 'kvs getroot -S'",
        ),
        (
            f"flux kvs namespace create -r sha256-{'0' * 64} m-new",
            f"m-new: not all of root sha256-{'0' * 64} is stored in this instance: its version is not kept any more, or",
        ),
        (
            """flux kvs put -t m.x='{"data":["sha256-00"],"type":"valref","ver":1}'""",
            "'sha256-00' is not a blobref: it must read like sha256-<64 hex digits>; 'fluxmpi kvs get --treeobj KEY' prints one",
        ),
        (
            f"""flux kvs put -t m.x='{{"data":["sha256-{"0" * 64}"],"type":"valref","ver":1}}'""",
            f"no blob sha256-{'0' * 64} in this instance: store it before the commit that refers to it",
        ),
    ],
)
def test_what_is_refused_is_named_with_the_remedy(instance: Instance, script: str, text: str) -> None:
    done = sh(instance, script)
    assert (done.status, text in done.err) == (1, True), done.err


def test_the_python_methods_replace_a_value_only_if_told(instance: Instance) -> None:
    with instance.connect() as h:
        h.kvs.put("py.a", 1)
        with pytest.raises(fluxmpi.NotADirectory):
            h.kvs.put("py.a.b", 2)
        guarded = h.kvs.txn()
        guarded.when_exists("py.a")
        with pytest.raises(fluxmpi.InvalidRequest, match="a transaction with guards cannot be repeated"):
            guarded.replacing()
        txn = h.kvs.txn()
        txn.put("py.top", 3)
        txn.append("py.a.log", b"x")
        txn.unlink("py.none.below")
        with pytest.raises(fluxmpi.NotADirectory):
            txn.commit()
        txn.replacing().commit()
        assert [entry.key for entry in h.kvs.entries("py", recursive=True)] == ["py.a", "py.a.log", "py.top"]


def test_a_change_tells_its_appends(instance: Instance) -> None:
    with instance.connect() as h, h.kvs.watch_key("py.log", rewrites=True) as watch:
        watch.update(timeout=COMMAND_S)
        for pieces in ([b"a"], [b"b", b"c"], [b""], [b"d" * 5000]):
            with h.kvs.txn() as txn:
                for piece in pieces:
                    txn.append("py.log", piece)
            change = watch.get(timeout=COMMAND_S)
            assert change is not None
            assert (change.appends, change.appended) == (pieces, b"".join(pieces))
        h.kvs.put("py.log", h.kvs.get("py.log") + b"e")
        change = watch.get(timeout=COMMAND_S)
        assert change is not None
        assert (change.appends, change.appended) == (None, None)
