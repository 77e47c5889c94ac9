"""Text and JSON forms of stored objects, as the ``fluxmpi kvs`` commands print them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from fluxmpi.client.values import JSON, NDARRAY, RAW, array_parts, decode_value, is_array
from fluxmpi.kvs.objects import Dir, Link, Object, Val, ValRef

if TYPE_CHECKING:
    from fluxmpi.client.kvs.kvs import Kvs

DOUBLE_BYTES = 8
"""JSON numbers are read as doubles by most programs. An array of longer floats is printed as its bytes."""


def value_text(type_: str, data: bytes | bytearray) -> bytes:
    """Return a value as a person reads it: JSON strings without quotes, other JSON as stored, bytes unchanged.

    A final NUL, which ends the strings of C and of Flux, is left out.
    """
    if type_ == RAW:
        return bytes(data).removesuffix(b"\0")
    if type_ == JSON and not data.lstrip().startswith(b'"'):
        return bytes(data)
    value = decode_value(type_, data)
    return value.encode() if isinstance(value, str) else str(value).encode()


def value_bytes(type_: str, data: bytes | bytearray) -> bytes:
    """Return a value as ``--raw`` prints it: the stored bytes, but a JSON string without its quotes."""
    return value_text(type_, data) if type_ == JSON else bytes(data)


def value_json(type_: str, data: bytes | bytearray) -> Any:
    """Return a value as JSON data. Bytes that are not UTF-8, and arrays, become objects."""
    return decoded_json(type_, decode_value(type_, data))


def array_json(type_: str, data: bytes | bytearray | None = None) -> dict[str, Any]:
    """Return an array as JSON data: ``type``, ``dtype`` and ``shape``; with its bytes, also ``data`` or ``base64``."""
    dtype, shape = array_parts(type_)
    base = {"type": NDARRAY, "dtype": dtype, "shape": [int(length) for length in shape.split(",") if length]}
    return base if data is None else {**base, **value_json(type_, data)}


def stored_json(kvs: Kvs, found: Val | ValRef, full: bool) -> Any:
    """Return a stored value as JSON data. ``full``: an array with its elements; else they are not even read."""
    if is_array(found.type):
        return array_json(found.type, kvs.bytes_of(found) if full else None)
    return value_json(found.type, kvs.bytes_of(found))


def decoded_json(type_: str, value: Any) -> Any:
    """Return a decoded value as JSON data. JSON has no NaN or infinity: in an array they become null."""
    if type_ == RAW:
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if type_ != JSON:
        base = {"dtype": value.dtype.str, "shape": list(value.shape)}
        if value.dtype.kind == "f" and value.dtype.itemsize <= DOUBLE_BYTES:
            return {**base, "data": msgspec.json.decode(msgspec.json.encode(value.tolist()))}
        if value.dtype.kind in "biuU":
            return {**base, "data": value.tolist()}
        return {**base, "base64": base64.b64encode(value.tobytes()).decode()}
    return value


def link_text(link: Link) -> str:
    """Return the target of a link: ``KEY``, or ``NS::KEY`` in another namespace."""
    return link.target if link.namespace is None else f"{link.namespace}::{link.target}"


def object_text(kvs: Kvs, found: Object | None) -> str:
    """Return an object as one line of text: its value, ``(directory)``, ``-> TARGET`` or ``(none)``."""
    if isinstance(found, Val | ValRef):
        text = value_text(found.type, kvs.bytes_of(found))
        return text.decode("utf-8", "backslashreplace").replace("\n", "\\n")
    if isinstance(found, Dir):
        return "(directory)"
    if isinstance(found, Link):
        return f"-> {link_text(found)}"
    return "(none)"


def object_json(kvs: Kvs, found: Object | None) -> Any:
    """Return an object as JSON data: its value, or for a directory or link an object with a type."""
    if isinstance(found, Val | ValRef):
        return value_json(found.type, kvs.bytes_of(found))
    if isinstance(found, Dir):
        return {"type": "directory"}
    if isinstance(found, Link):
        return link_json(found)
    return None


def link_json(link: Link) -> dict[str, Any]:
    return {"type": "link", "target": link.target, "namespace": link.namespace}
