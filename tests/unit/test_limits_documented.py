"""``docs/limits.md`` has a row for every bound: the fields of all ``…Limits`` records, with their defaults."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import msgspec

import fluxmpi
from fluxmpi import blobref, message
from fluxmpi.drivers import loop, mpi
from fluxmpi.kvs import objects
from fluxmpi.kvs.wire import base, commits, watches

PAGE = Path(__file__).parents[2] / "docs/limits.md"
CONSTANTS = {
    "BACKLOG_HIGH": loop,
    "BLOB_BYTES_MAX": blobref,
    "EVENT_PAYLOAD_BYTES_MAX": message,
    "EVENT_TOPIC_MAX": message,
    "FENCE_NAME_CHARS_MAX": commits,
    "FRAME_BYTES_MAX": message,
    "KEY_BYTES_MAX": objects,
    "KEY_DEPTH_MAX": objects,
    "LINKS_MAX": objects,
    "NAME_CHARS_MAX": base,
    "PEER_BYTES_MAX": mpi,
    "TYPE_CHARS_MAX": objects,
    "VAL_BYTES_MAX": objects,
    "WINDOW_MAX": watches,
}
"""Bounds of single requests, which are constants."""

UNIT_FREE = "BACKLOG_HIGH", "WINDOW_MAX"
"""Counts of bytes whose names do not say so."""


def shown(name: str, value: object) -> str:
    """Return a default as the page shows it: bytes in the largest unit that divides them, times in seconds."""
    if isinstance(value, float):
        return f"{value:g} s" if name.endswith("_s") else f"{value:g}"
    assert isinstance(value, int)
    if "bytes" not in name.lower() and name not in UNIT_FREE:
        return f"{value:,}"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size and not value % size:
            return f"{value // size} {unit}"
    return f"{value:,} bytes"


def bounds() -> dict[str, str]:
    """Return the default of every bound by its name."""
    found = {name: shown(name, getattr(module, name)) for name, module in CONSTANTS.items()}
    for info in pkgutil.walk_packages(fluxmpi.__path__, "fluxmpi."):
        if info.name.startswith("fluxmpi.simulator") or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, record in vars(module).items():
            if not (isinstance(record, type) and issubclass(record, msgspec.Struct) and name.endswith("Limits")):
                continue
            for field in msgspec.structs.fields(record):
                if not isinstance(field.default, msgspec.Struct):
                    found[f"{name}.{field.name}"] = shown(field.name, field.default)
    return found


def rows() -> dict[str, str]:
    """Return the second column of the page by the first."""
    found = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| [^|]+ \| ?[^|]* ?\|$", PAGE.read_text(), re.M)
    names = [name for name, _ in found]
    assert len(names) == len(set(names)), "a limit has two rows"
    return {name: default.strip() for name, default in found}


def test_every_bound_has_a_row_with_its_default() -> None:
    assert rows() == bounds()
