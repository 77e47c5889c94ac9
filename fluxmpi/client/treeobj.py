"""Stored objects as JSON for people and tools (after Flux RFC 11), and back.

``{"ver":1,"type":"val","format":"json","data":"<base64>"}``; a ``valref`` has ``"size"`` and blobrefs, a ``dirref`` one
blobref, a ``symlink`` a target and possibly a namespace. ``format`` is an addition: the type of the value's bytes (see
``values``), raw by default. ``size`` is another one: a valref without it gets it when it is put. A ``dir``, which has its
entries in it, is read but not written.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from fluxmpi.blobref import Ref, from_text, to_text
from fluxmpi.client.values import RAW
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import KEY_DEPTH_MAX, ROOT_KEY, UNKNOWN_SIZE, Dir, Link, Object, Val, ValRef, split_key

VERSION = 1

SHOWN_CHARS_MAX = 60
"""Characters of a wrong treeobj that an error shows."""


def to_treeobj(found: Object) -> str:
    """Return a stored object as one line of JSON."""
    match found:
        case Val(type, data):
            fields: dict[str, Any] = {"type": "val", "data": base64.b64encode(data).decode(), "format": type}
        case ValRef(type, size, refs):
            fields = {"type": "valref", "data": [to_text(ref) for ref in refs], "size": size, "format": type}
        case Dir(ref):
            fields = {"type": "dirref", "data": [to_text(ref)]}
        case Link(target, namespace):
            place = {"target": target} if namespace is None else {"namespace": namespace, "target": target}
            fields = {"type": "symlink", "data": place}
    return json.dumps({**fields, "ver": VERSION}, sort_keys=True, separators=(",", ":"))


TreeObject = Object | dict[str, "TreeObject"]
"""What a treeobj stands for: an object, or the entries of a ``dir``."""


def from_treeobj(text: str) -> TreeObject:
    """Return the object of such a line; of a ``dir`` its entries. Raises InvalidRequest, which says what is wrong."""
    try:
        return _parse(json.loads(text), KEY_DEPTH_MAX)
    except InvalidRequest as error:
        reason = error.text
    except ValueError:
        reason = "it is not JSON"
    except RecursionError:
        reason = "it is nested too deeply"
    raise InvalidRequest(f"'{_shown(text)}' is not a treeobj: {reason}; 'fluxmpi kvs get --treeobj KEY' prints one")


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}…"


def _parse(fields: Any, levels: int) -> TreeObject:
    """Return what decoded JSON of at most so many levels stands for. Raises InvalidRequest with what is wrong with it."""
    if not isinstance(fields, dict):
        raise InvalidRequest("it must be a JSON object with 'ver', 'type' and 'data'")
    missing = [name for name in ("ver", "type", "data") if name not in fields]
    if missing:
        raise InvalidRequest(f"it has no '{missing[0]}'")
    if fields["ver"] != VERSION:
        raise InvalidRequest(f"its 'ver' is {_json(fields['ver'])}: only {VERSION} is known")
    data, format_ = fields["data"], fields.get("format", RAW)
    if not isinstance(format_, str):
        raise InvalidRequest(f"its 'format' is {_json(format_)}: it must be the type of a value, such as raw or json")
    match fields["type"]:
        case "val":
            return Val(format_, _decoded(data))
        case "valref":
            return ValRef(format_, _size(fields.get("size", UNKNOWN_SIZE)), tuple(map(_ref, _list(data, "valref"))))
        case "dirref":
            refs = _list(data, "dirref")
            if len(refs) != 1:
                raise InvalidRequest(f"the 'data' of a dirref must have one blobref, this one has {len(refs)}")
            return Dir(_ref(refs[0]))
        case "symlink":
            return _link(data)
        case "dir":
            if not isinstance(data, dict):
                raise InvalidRequest(f"the 'data' of a dir must be an object, name → treeobj, not {_json(data)}")
            if not levels:
                raise InvalidRequest(
                    f"it has over {KEY_DEPTH_MAX} levels of directories, more than a key has components"
                )
            return {_name(name): _parse(each, levels - 1) for name, each in data.items()}
        case other:
            raise InvalidRequest(f"its 'type' is {_json(other)}: it must be val, valref, dirref, symlink or dir")


def _json(value: Any) -> str:
    return _shown(json.dumps(value, ensure_ascii=False))


def _decoded(data: Any) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError):
        raise InvalidRequest(f"the 'data' of a val must be base64, not {_json(data)}") from None


def _list(data: Any, kind: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequest(f"the 'data' of a {kind} must be a list of blobrefs, not {_json(data)}")
    return data


def _ref(text: Any) -> Ref:
    if not isinstance(text, str):
        raise InvalidRequest(f"{_json(text)} in its 'data' is not a blobref")
    return from_text(text)


def _size(size: Any) -> int:
    if type(size) is not int or (size < 0 and size != UNKNOWN_SIZE):
        raise InvalidRequest(f"its 'size' is {_json(size)}: it must be the value's bytes, or be left out")
    return size


def _link(data: Any) -> Link:
    if not isinstance(data, dict):
        raise InvalidRequest(f"the 'data' of a symlink must be an object with a 'target', not {_json(data)}")
    target, namespace = data.get("target"), data.get("namespace")
    if not isinstance(target, str):
        raise InvalidRequest(f"the 'target' of a symlink must be a key, not {_json(target)}")
    if not isinstance(namespace, str | None):
        raise InvalidRequest(f"the 'namespace' of a symlink must be a text, not {_json(namespace)}")
    return Link(target, namespace)


def _name(name: str) -> str:
    if split_key(name or ROOT_KEY) != [name]:
        raise InvalidRequest(f"'{name}' in its 'data' is not a name: names have no '.'")
    return name
