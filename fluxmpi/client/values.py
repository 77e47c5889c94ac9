"""Python values to typed bytes, and back. Nothing is pickled: reading a value never runs code.

==============================  ====================  ===========================================
put                             stored type           get
==============================  ====================  ===========================================
bytes, bytearray, memoryview    ``raw``               bytes
str int float bool None         ``json``              the same
dict list tuple of those        ``json``              the same, a tuple as a list
numpy array or scalar           ``ndarray;…;…``       a numpy array; a scalar is 0-d
==============================  ====================  ===========================================

JSON is canonical, so that equal values are equal bytes: sorted keys, no blanks, UTF-8, shortest floats. **NaN and the
infinities are not JSON, and are refused**; numpy scalars and arrays may have them. Dict keys that are not str are
refused, since JSON would turn them into str.

An array's type is ``ndarray;DTYPE;SHAPE``: DTYPE is numpy's ``dtype.str`` (``<f8``) or, of a structured type, its
``descr`` in JSON; SHAPE is the lengths with commas, empty for a 0-d array. The data are the elements in C order.

An array of MAPPED_BYTES_MIN or more is read-only, in memory that the readers of a node share; ``.copy()`` it to write.
A smaller one is the reader's own.

numpy is imported only to read an array, since a program that never imported it cannot put one.
"""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from fluxmpi.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy

RAW = "raw"
JSON = "json"
NDARRAY = "ndarray"

MAPPED_BYTES_MIN = 1 << 20
"""Arrays of so many bytes and more are read-only when they are read."""

VIEWED_BYTES_MIN = 1 << 20
"""Longer data are put from the caller's buffer, piece by piece; shorter data are copied first."""

_encode_json = msgspec.json.Encoder(order="deterministic").encode
_decode_json = msgspec.json.Decoder().decode

_PLAIN = frozenset((str, int, bool, type(None)))


def encode_value(value: Any) -> tuple[str, bytes | memoryview]:
    """Return the type and bytes of a Python value; long data are a view of its buffer.

    Raises InvalidRequest for a value that cannot be stored.
    """
    kind = type(value)
    if kind is bytes:
        return RAW, value
    if kind is bytearray or kind is memoryview:
        view = memoryview(value)
        return RAW, view.cast("B") if view.nbytes > VIEWED_BYTES_MIN and view.c_contiguous else bytes(view)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _encode_array(value)
    if kind not in _PLAIN:
        try:
            _check_json(value)
        except RecursionError:
            raise InvalidRequest("the value is nested too deeply, or contains itself") from None
    return JSON, encode_json(value)


def encode_json(value: Any) -> bytes:
    """Return a value that ``_check_json`` allows as canonical JSON. Raises InvalidRequest."""
    try:
        return _encode_json(value)
    except OverflowError:  # an int of more than 64 bits
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the value holds a str that is not valid Unicode; put it as bytes") from None
    except ValueError:
        raise InvalidRequest("the value holds an int that is too long: put it as bytes, or as a str") from None
    except RecursionError:
        raise InvalidRequest("the value is nested too deeply, or contains itself") from None


def _check_json(value: Any) -> None:
    """Raise InvalidRequest for what JSON would change: NaN, keys that are not str, and every other type."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is float:
        if not math.isfinite(value):
            raise InvalidRequest(f"JSON has no {value}: put it as a numpy scalar or array, or as a str")
    elif kind is list or kind is tuple:
        for item in value:
            _check_json(item)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise InvalidRequest(
                    f"a dict's keys must be str to be stored as JSON, and {key!r} is {type(key).__name__}"
                )
            _check_json(item)
    else:
        raise InvalidRequest(
            f"a value of type {kind.__name__} cannot be stored: "
            "use str, int, float, bool, None, list, dict, bytes or a numpy array"
        )


def decode_value(type_: str, data: bytes | bytearray | memoryview) -> Any:
    """Return the Python value of typed bytes. An array in a view is an array on that memory, as writable as it is.

    Raises InvalidRequest if the bytes are not what the type says.
    """
    if type_ == RAW:
        return bytes(data)
    if type_ == JSON:
        try:
            return _decode_json(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"a value of type json does not decode: {error}") from None
    if is_array(type_):
        return _decode_array(type_, data)
    raise InvalidRequest(f"a value of type '{type_}' is not known to this client")


# ----------------------------------------------------------------------------------------------------------- arrays


def is_array(type_: str) -> bool:
    """Return whether a value of this type is an array."""
    return type_.startswith(NDARRAY + ";")


def array_parts(type_: str) -> tuple[str, str]:
    """Return the texts of an array type's dtype and shape."""
    dtype, _, shape = type_.removeprefix(NDARRAY + ";").rpartition(";")
    return dtype, shape


def _encode_array(array: numpy.ndarray | numpy.generic) -> tuple[str, bytes | memoryview]:
    import numpy

    if isinstance(array, numpy.ma.MaskedArray):
        raise InvalidRequest("a masked array would lose its mask: put its .data and .mask")
    array = numpy.asarray(array)
    dtype = array.dtype
    if dtype.hasobject:
        raise InvalidRequest(f"an array of dtype {dtype} holds Python objects: give it a fixed-size dtype")
    if dtype.isbuiltin == 2:
        raise InvalidRequest(
            f"an array of dtype {dtype} is not one of numpy's own types: put array.view('V{dtype.itemsize}')"
        )
    shape = ",".join(map(str, array.shape))
    type_ = f"{NDARRAY};{_dtype_text(dtype)};{shape}"
    if array.nbytes <= VIEWED_BYTES_MIN:
        return type_, array.tobytes()
    return type_, numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8).data


def _dtype_text(dtype: numpy.dtype) -> str:
    if dtype.names is None:
        return dtype.str
    from numpy.lib import format as npy

    try:
        descr = npy.dtype_to_descr(dtype)
        text = json.dumps(descr, separators=(",", ":"))
        same = _dtype(text) == dtype
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InvalidRequest(
            f"an array of dtype {dtype} has fields that overlap or are out of order: copy it to a plain layout"
        )
    return text


def _dtype(text: str) -> numpy.dtype:
    import numpy

    if not text.startswith("["):
        return numpy.dtype(text)
    from numpy.lib import format as npy

    return npy.descr_to_dtype(_descr(json.loads(text)))


def _descr(fields: list[Any]) -> list[Any]:
    """Return a descr in numpy's form: JSON made its tuples lists."""
    descr = []
    for name, format_, *shape in fields:
        name = tuple(name) if isinstance(name, list) else name
        format_ = _descr(format_) if isinstance(format_, list) else format_
        descr.append((name, format_, *map(tuple, shape)))
    return descr


def _decode_array(type_: str, data: bytes | bytearray | memoryview) -> numpy.ndarray:
    import numpy

    dtype_text, shape_text = array_parts(type_)
    try:
        dtype = _dtype(dtype_text)
        shape = tuple(map(int, shape_text.split(","))) if shape_text else ()
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"it has {len(data)} bytes")
        array = numpy.ndarray(shape, dtype, buffer=bytearray(data) if isinstance(data, bytes) else data)
        if len(data) >= MAPPED_BYTES_MIN:
            array.flags.writeable = False
        return array
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:
        raise InvalidRequest(f"a value of type {type_} does not decode: {error}") from None
