"""Values in, typed bytes, values out: everything that is taken comes back the same, and everything else is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fluxmpi.blobref import to_text
from fluxmpi.client.snapshot import MINUS, UNKNOWN, Moment, Named, Snapshot, moment, parse_at
from fluxmpi.client.treeobj import from_treeobj, to_treeobj
from fluxmpi.client.values import decode_value, encode_value
from fluxmpi.errors import InvalidRequest, VersionUnknown
from fluxmpi.kvs.objects import UNKNOWN_SIZE, VAL_BYTES_MAX, Dir, Link, Val, ValRef

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


def there_and_back(value: Any) -> Any:
    return decode_value(*encode_value(value))


@given(JSON)
def test_json_comes_back_the_same(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@given(st.dictionaries(TEXT, SCALARS))
def test_equal_values_are_equal_bytes(value: dict[str, Any]) -> None:
    assert encode_value(value) == encode_value(dict(reversed(value.items())))


@given(st.binary())
def test_bytes_come_back_the_same(value: bytes) -> None:
    assert there_and_back(value) == there_and_back(bytearray(value)) == there_and_back(memoryview(value)) == value
    assert there_and_back(memoryview(value)[::2]) == value[::2]


def test_tuple_comes_back_as_a_list() -> None:
    assert there_and_back((1, (2, "x"))) == [1, [2, "x"]]


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


class Text(str): ...


REFUSED = {
    "nan": math.nan,
    "infinity": -math.inf,
    "nan inside": {"a": [1, math.nan]},
    "a key that is an int": {1: 2},
    "a key inside that is None": [{"a": {None: 1}}],
    "a set": {1},
    "bytes inside": ["a", b"b"],
    "an object": object(),
    "a class": dict,
    "a lone surrogate": "\ud800",
    "a lone surrogate as key": {"\udfff": 1},
    "too deep": nested(100_000),
    "complex": 1j,
    "a subclass of str": Text("x"),
    "an array inside": {"a": np.zeros(2)},
    "an array of objects": np.array([{}, None], dtype=object),
    "an array of fields with objects": np.zeros(2, dtype=[("a", object)]),
    "a masked array": np.ma.masked_array([1, 2], [True, False]),
    "an array of numpy's variable strings": np.array(["a"], dtype=np.dtypes.StringDType()),
    "overlapping fields": np.zeros(1, dtype={"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]}),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        encode_value(value)


def test_value_that_contains_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(InvalidRequest):
        encode_value(value)


BAD = [
    ("json", b""),
    ("json", b"{"),
    ("json", b"\xff"),
    ("json", b"NaN"),
    ("pickle", b"x"),
    ("", b"x"),
    ("ndarray", b""),
    ("ndarray;<f8;2", b"1234567"),
    ("ndarray;<f8;-1", b""),
    ("ndarray;O;1", b"12345678"),
    ("ndarray;nonsense;1", b"1"),
    ("ndarray;<f8;a", b""),
    ("ndarray;[[;1", b""),
    ('ndarray;[["a","O"]];1', b"12345678"),
    ("ndarray;<f8;99999999999999999999,0", b""),
]


@pytest.mark.parametrize(("type_", "data"), BAD)
def test_bytes_that_are_not_their_type_are_refused(type_: str, data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_value(type_, data)


# ----------------------------------------------------------------------------------------------------------- arrays

DTYPES = (
    npst.scalar_dtypes()
    | npst.unicode_string_dtypes()
    | npst.byte_string_dtypes()
    | npst.array_dtypes(allow_subarrays=True)
    | npst.nested_dtypes()
)
ARRAYS = DTYPES.filter(lambda dtype: dtype.subdtype is None).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
)


def assert_same(back: np.ndarray, array: np.ndarray) -> None:
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # by bytes, so that NaN equals NaN
    assert back.flags.writeable


@given(ARRAYS)
def test_array_comes_back_the_same(array: np.ndarray) -> None:
    assert_same(there_and_back(array), array)


STRUCTURED = np.dtype([("x", "<f8"), ("y", ">i4", (2, 3)), ("z", [("name", "U5"), ("t", "<M8[ns]")])])

SPECIAL = {
    "0-d": np.array(3.5),
    "empty": np.zeros((0,)),
    "zero size, three axes": np.zeros((2, 0, 3), dtype="<i2"),
    "not contiguous": np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
    "Fortran order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big-endian": np.arange(5, dtype=">f4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "half": np.array([1, np.nan], dtype="<f2"),
    "dates": np.array(["2026-01-01"], dtype="<M8[D]"),
    "strings": np.array(["a", "über"]),
    "void": np.zeros(3, dtype="V7"),
    "structured": np.zeros(3, dtype=STRUCTURED),
    "aligned": np.ones(2, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "strange field names": np.zeros(1, dtype=[("a;b,c", "f8"), ("[", "i4")]),
    "read-only": np.broadcast_to(np.int64(7), (3, 2)),
}


@pytest.mark.parametrize("array", SPECIAL.values(), ids=SPECIAL)
def test_special_array_comes_back_the_same(array: np.ndarray) -> None:
    assert_same(there_and_back(array), array)


def test_nan_as_a_numpy_scalar_is_kept() -> None:
    back = there_and_back(np.float64("nan"))
    assert back.shape == ()
    assert math.isnan(back)


def test_type_reads_as_documented() -> None:
    assert encode_value(np.zeros((3, 4)))[0] == "ndarray;<f8;3,4"
    assert encode_value(np.array(1, dtype=">i2"))[0] == "ndarray;>i2;"
    assert encode_value(np.zeros(2, dtype=[("a", "<f8")]))[0] == 'ndarray;[["a","<f8"]];2'


def test_client_does_not_import_numpy() -> None:
    script = "import fluxmpi, sys; fluxmpi.connect; fluxmpi.Snapshot; print('numpy' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=root)
    assert done.stdout == "False\n", done.stderr


# --------------------------------------------------------------------------------------------- snapshots, treeobjs

REFS = st.binary(min_size=32, max_size=32) | st.binary(min_size=20, max_size=20)
TYPES = st.sampled_from(["raw", "json", "ndarray;<f8;2"])
OBJECTS = st.one_of(
    st.builds(Val, TYPES, st.binary(max_size=2 * VAL_BYTES_MAX)),
    st.builds(ValRef, TYPES, st.integers(0, 1 << 40), st.lists(REFS, max_size=3).map(tuple)),
    st.builds(Dir, REFS),
    st.builds(Link, TEXT, st.none() | TEXT),
)


@given(OBJECTS)
def test_treeobj_comes_back_the_same(found: Any) -> None:
    text = to_treeobj(found)
    assert "\n" not in text
    assert from_treeobj(text) == found


BAD_TREEOBJS = {
    "": "it is not JSON",
    "{": "it is not JSON",
    "[" * 100_000: "it is nested too deeply",
    "[]": "it must be a JSON object with 'ver', 'type' and 'data'",
    "null": "it must be a JSON object with 'ver', 'type' and 'data'",
    "{}": "it has no 'ver'",
    '{"ver":1,"type":"val"}': "it has no 'data'",
    '{"ver":2,"type":"val","data":""}': "its 'ver' is 2: only 1 is known",
    '{"ver":1,"type":"val","data":"?"}': "the 'data' of a val must be base64, not \"?\"",
    '{"ver":1,"type":"val","data":7}': "the 'data' of a val must be base64, not 7",
    '{"ver":1,"type":"val","data":"","format":7}': "its 'format' is 7: it must be the type of a value, such as raw or json",
    '{"ver":1,"type":"file","data":""}': "its 'type' is \"file\": it must be val, valref, dirref, symlink or dir",
    '{"ver":1,"type":"dirref","data":[]}': "the 'data' of a dirref must have one blobref, this one has 0",
    '{"ver":1,"type":"dirref","data":42}': "the 'data' of a dirref must be a list of blobrefs, not 42",
    '{"ver":1,"type":"dirref","data":[42]}': "42 in its 'data' is not a blobref",
    '{"ver":1,"type":"dirref","data":["sha256-00"]}': "'sha256-00' is not a blobref: it must read like sha256-<64 hex digits>",
    '{"ver":1,"type":"valref","data":7}': "the 'data' of a valref must be a list of blobrefs, not 7",
    '{"ver":1,"type":"valref","data":[],"size":-5}': "its 'size' is -5: it must be the value's bytes, or be left out",
    '{"ver":1,"type":"valref","data":[],"size":"x"}': "its 'size' is \"x\": it must be the value's bytes, or be left out",
    '{"ver":1,"type":"symlink","data":"x"}': "the 'data' of a symlink must be an object with a 'target', not \"x\"",
    '{"ver":1,"type":"symlink","data":{}}': "the 'target' of a symlink must be a key, not null",
    '{"ver":1,"type":"symlink","data":{"target":"a","namespace":1}}': "the 'namespace' of a symlink must be a text, not 1",
    '{"ver":1,"type":"dir","data":[]}': "the 'data' of a dir must be an object, name → treeobj, not []",
    '{"ver":1,"type":"dir","data":{"a.b":{}}}': "'a.b' in its 'data' is not a name: names have no '.'",
    '{"ver":1,"type":"dir","data":{"":{}}}': "'' in its 'data' is not a name: names have no '.'",
    '{"ver":1,"type":"dir","data":{"a":{}}}': "it has no 'ver'",
}


@pytest.mark.parametrize(("text", "reason"), BAD_TREEOBJS.items(), ids=range(len(BAD_TREEOBJS)))
def test_bad_treeobj_is_refused_with_the_reason(text: str, reason: str) -> None:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    with pytest.raises(InvalidRequest) as raised:
        from_treeobj(text)
    assert raised.value.text == f"'{shown}' is not a treeobj: {reason}; 'fluxmpi kvs get --treeobj KEY' prints one"


def test_treeobjs_of_flux() -> None:
    """A valref of Flux has no size, and a dir has its entries in it."""
    ref = bytes(32)
    valref = f'{{"data":["{to_text(ref)}"],"type":"valref","ver":1}}'
    assert from_treeobj(valref) == ValRef("raw", UNKNOWN_SIZE, (ref,))
    text = f'{{"ver":1,"type":"dir","data":{{"v":{valref},"d":{{"ver":1,"type":"dir","data":{{}}}}}}}}'
    assert from_treeobj(text) == {"v": ValRef("raw", UNKNOWN_SIZE, (ref,)), "d": {}}


@given(st.text("abc-_", min_size=1), st.integers(0), REFS)
def test_snapshot_is_a_text_that_any_process_can_use(namespace: str, version: int, ref: bytes) -> None:
    snapshot = Snapshot(namespace, version, ref)
    assert len(str(snapshot)) == len(f"{namespace}@{version}:") + 16
    found_in, named = parse_at(str(snapshot))
    assert (found_in, named) == (namespace, Named(namespace, version, ref.hex()[:16]))
    named.check(ref)
    with pytest.raises(VersionUnknown, match="of another instance, or was mistyped"):
        named.check(bytes([ref[0] ^ 1]) + ref[1:])
    assert parse_at(snapshot) == parse_at(f"{namespace}@{version}:{snapshot.root}") == (namespace, snapshot)
    assert parse_at(str(snapshot), "ns") == (namespace, named), "a snapshot names its own namespace"
    assert parse_at(snapshot.root, "ns") == ("ns", Snapshot("ns", UNKNOWN, ref))
    assert str(Snapshot(namespace, UNKNOWN, ref)) == snapshot.root
    assert parse_at(to_treeobj(Dir(ref))) == ("primary", Snapshot("primary", UNKNOWN, ref))
    assert parse_at(str(version)) == parse_at(version) == ("primary", version)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "a@b:c", "primary@1", "@1:sha256-00", "primary@-1:sha256-00", "{}", "sha256-zz", "primary@1:0123456789abcde",
        "primary@1:0123456789abcdef0", "primary@1:0123456789ABCDEF", "primary@1:0123456789abcdeg", "@", "@x", "@1e999x", "-5",
        "-5weeks", "5min", "--5min", "-5min ago", "2026-13-01", "2026-01-31T25:00", "12:00", 1.5,
    ],
)  # fmt: skip
def test_bad_snapshot_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_at(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("-5min", 300),
        ("-5m", 300),
        ("-1h30min", 5400),
        ("-1.5s", 1.5),
        ("-100ms", 0.1),
        ("-2d", 172_800),
        (f"{MINUS}1s", 1),
    ],
)
def test_a_time_before_now_reads_as_people_say_it(text: str, seconds: float) -> None:
    assert parse_at(text, "ns") == ("ns", Moment(ago_s=pytest.approx(seconds)))
    assert moment(text) == Moment(ago_s=pytest.approx(seconds))


def test_a_moment_in_any_form() -> None:
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    for form in (
        noon,
        "2026-01-31T12:00Z",
        "2026-01-31T13:00:00.000+01:00",
        "2026-01-31 12:00+00:00",
        f"@{noon.timestamp()}",
    ):
        assert parse_at(form) == ("primary", Moment(time=noon.timestamp())), form
        assert moment(form) == Moment(time=noon.timestamp())
    assert moment(noon.timestamp()) == moment(noon)
    local = datetime(2026, 1, 31, 12).timestamp()
    assert parse_at("2026-01-31T12:00")[1] == parse_at(datetime(2026, 1, 31, 12))[1] == Moment(time=local)
    for bad in ("12", "primary@1:0123456789abcdef", "soon"):
        with pytest.raises(InvalidRequest, match="is not a time"):
            moment(bad)
