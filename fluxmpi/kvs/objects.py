"""Objects of the KVS, which are the entries of directories (after Flux RFC 11), and the rules of keys.

- ``Val``: a small value, inline.
- ``ValRef``: a value as a list of blobs, in order.
- ``Dir``: a directory, by the ref of its tree's root node (see ``store/node``).
- ``Link``: a symbolic link to a key, in this or another namespace.

A value is bytes with a type: ``raw``; ``json`` (UTF-8 JSON text); or ``ndarray;DTYPE;SHAPE``, e.g. ``ndarray;<f8;3,4``,
the elements in C order. The encoding of objects is part of every ref: do not change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidKey

VAL_BYTES_MAX = 256
"""A longer value is stored as a blob: nodes stay small, and a commit rewrites only nodes."""

KEY_BYTES_MAX = 4096
KEY_DEPTH_MAX = 128
LINKS_MAX = 10
"""Links followed on one path before it counts as a loop."""

TYPE_CHARS_MAX = 4096
"""Characters of a value's type: that of an array with a structured dtype names its fields."""

LINK_NAMESPACE_CHARS_MAX = 128

_Type = Annotated[str, msgspec.Meta(max_length=TYPE_CHARS_MAX)]
UNKNOWN_SIZE = -1
"""Of a valref of Flux, which has no size. Only a client's put has it: no stored object does."""

SEPARATOR = "."
ROOT_KEY = "."


class Val(msgspec.Struct, array_like=True, tag_field="_", tag=0, frozen=True, gc=False):
    type: _Type
    data: bytes


class ValRef(msgspec.Struct, array_like=True, tag_field="_", tag=1, frozen=True, gc=False):
    """``size`` is the value's bytes, all blobs together; in a client's put, UNKNOWN_SIZE lets rank 0 add them up."""

    type: _Type
    size: int
    refs: tuple[Ref, ...]


class Dir(msgspec.Struct, array_like=True, tag_field="_", tag=2, frozen=True, gc=False):
    ref: Ref


class Link(msgspec.Struct, array_like=True, tag_field="_", tag=3, frozen=True, gc=False):
    """``namespace`` None means the link's own."""

    target: str
    namespace: Annotated[str, msgspec.Meta(max_length=LINK_NAMESPACE_CHARS_MAX)] | None = None


Object = Val | ValRef | Dir | Link


def refs_of(objects: Iterable[Object | None]) -> Iterator[Ref]:
    """Yield the refs of directories and blobs in the objects."""
    for obj in objects:
        if type(obj) is Dir:
            yield obj.ref
        elif type(obj) is ValRef:
            yield from obj.refs


def split_key(key: str) -> list[str]:
    """Split a key into its components; the root, ``.``, has none.

    As in Flux, empty components are left out: ``.a``, ``a.``, ``a..b`` and ``...a`` name what ``a`` and ``a.b`` name, and
    ``...`` is the root. So ``"$DIR.$KEY"`` names a key in the root if ``DIR`` is ``.``.

    Raises InvalidKey for an empty key, a NUL, what is not UTF-8, and a key over KEY_BYTES_MAX or KEY_DEPTH_MAX.
    """
    if key == ROOT_KEY:
        return []
    if not key:
        raise InvalidKey("the key is empty; '.' alone is the root directory")
    ascii_only = key.isascii()
    if len(key) > KEY_BYTES_MAX or not (ascii_only or len(key.encode("utf-8", "surrogatepass")) <= KEY_BYTES_MAX):
        raise InvalidKey(f"key '{key[:32]}…' has over {KEY_BYTES_MAX} bytes")
    if "\0" in key:
        raise InvalidKey(f"key {key!r} contains a NUL")
    if not ascii_only:
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InvalidKey(f"key {key!r} is not UTF-8") from None
    parts = key.split(SEPARATOR)
    if "" in parts:
        parts = [part for part in parts if part]
    if len(parts) > KEY_DEPTH_MAX:
        raise InvalidKey(f"key '{key[:32]}…' has over {KEY_DEPTH_MAX} components")
    return parts


def join_key(parts: list[str]) -> str:
    return SEPARATOR.join(parts) or ROOT_KEY
