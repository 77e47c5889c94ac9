"""Records of the ``checkpoint`` service."""

from __future__ import annotations

from typing import Any

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.kvs.wire.base import Record, RootInfo
from fluxmpi.kvs.wire.versions import Retention


class SavedNamespace(Record):
    """What a checkpoint keeps of a namespace: its newest version, its owner (a uid) and its retention.

    ``owner`` -1, ``retention`` None, ``keys`` -1: the file does not tell. ``keys``: the number of its keys, directories
    not counted.
    """

    namespace: str
    version: int
    ref: Ref
    time: float
    owner: int = -1
    retention: Retention | None = None
    keys: int = -1

    @property
    def root(self) -> RootInfo:
        return RootInfo(self.namespace, self.version, self.ref, self.time)


class _Settings(msgspec.Struct, omit_defaults=True):
    """The JSON object that a file has for each namespace. A later fluxmpi may add names, which are ignored here."""

    owner: int = -1
    retention: dict[str, Any] | None = None
    """The fields of Retention by name, without the namespace."""
    keys: int = -1


def encode_settings(saved: SavedNamespace) -> str:
    """Return owner, retention and number of keys as JSON, for a file that other programs may read."""
    retention = None
    if saved.retention is not None:
        retention = dict(zip(Retention.__struct_fields__, msgspec.to_builtins(saved.retention), strict=True))
        del retention["namespace"]
    return msgspec.json.encode(_Settings(saved.owner, retention, saved.keys)).decode()


def decode_settings(root: RootInfo, text: str) -> SavedNamespace:
    """Return the record of a saved root and its settings; an empty text is that of a file without settings.

    Raises msgspec.DecodeError for a text of another form.
    """
    settings = msgspec.json.decode(text or "{}", type=_Settings)
    retention = None
    if settings.retention is not None:
        names = Retention.__struct_fields__[1:]
        known = {name: settings.retention[name] for name in names if name in settings.retention}
        retention = msgspec.convert(msgspec.to_builtins(Retention(root.namespace, **known)), Retention)
    return SavedNamespace(root.namespace, root.version, root.ref, root.time, settings.owner, retention, settings.keys)


class Save(Record):
    """``checkpoint.save`` → Progress with MORE, then Saved. ``path`` None: the instance's checkpoint file.

    ``verify``: the file is read afterwards, and every digest compared.
    """

    path: str | None = None
    verify: bool = False


class Progress(Record):
    """Blobs written, and blobs found so far."""

    done: int
    total: int


class Saved(Record):
    """``roots``: namespace, version, root ref, time (seconds since 1970)."""

    path: str
    blobs: int
    bytes: int
    roots: list[tuple[str, int, Ref, float]]


class SavedFile(Record):
    """CONTROL ``lifecycle.checkpoint``, down the tree: a complete checkpoint file that rank 0 has written or read.

    ``time``: of the state that it has, seconds since 1970; ``version``: of the primary namespace, one of
    ``namespaces``.
    """

    path: str
    time: float
    version: int
    namespaces: int


class Restore(Record):
    """``checkpoint.restore`` → Progress with MORE, then Restored. Each saved root becomes a new version."""

    path: str


class Restored(Record):
    """``roots``: the new versions, as in Saved."""

    path: str
    blobs: int
    roots: list[tuple[str, int, Ref, float]]
