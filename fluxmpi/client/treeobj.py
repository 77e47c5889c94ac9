"""Stored objects as JSON for people and tools (after Flux RFC 11), and back.

``{"ver":1,"type":"val","format":"json","data":"<base64>"}``; a ``valref`` has ``"size"`` and blobrefs, a ``dirref`` one
blobref, a ``symlink`` a target and possibly a namespace. ``format`` is an addition: the type of the value's bytes (see
``values``), raw by default.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from fluxmpi.blobref import from_text, to_text
from fluxmpi.client.values import RAW
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.objects import VAL_BYTES_MAX, Dir, Link, Object, Val, ValRef

VERSION = 1


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


def from_treeobj(text: str) -> Object:
    """Return the object of such a line. Raises InvalidRequest, which says what is wrong with it."""
    try:
        fields = json.loads(text)
        if fields["ver"] != VERSION:
            raise InvalidRequest(f"unknown version {fields['ver']} of a treeobj: only {VERSION} is known")
        data = fields["data"]
        match fields["type"]:
            case "val":
                value = base64.b64decode(data, validate=True)
                if len(value) > VAL_BYTES_MAX:
                    raise InvalidRequest(
                        f"a val holds at most {VAL_BYTES_MAX} bytes, this one {len(value)}: store a valref"
                    )
                return Val(str(fields.get("format", RAW)), value)
            case "valref":
                return ValRef(str(fields.get("format", RAW)), int(fields["size"]), tuple(map(from_text, data)))
            case "dirref":
                (ref,) = data
                return Dir(from_text(ref))
            case "symlink":
                return Link(data["target"], data.get("namespace"))
            case other:
                raise InvalidRequest(f"unknown type '{other}' of a treeobj: use val, valref, dirref or symlink")
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, RecursionError) as error:
        raise InvalidRequest(f"'{text[:60]}' is not a treeobj: {error or type(error).__name__}") from None
