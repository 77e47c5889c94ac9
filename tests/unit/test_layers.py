"""Layers: imports point down, services use each other only by messages, and the core does no I/O.

The rules are data (LAYERS, KVS_LAYERS, WIRE, SERVICES_ALLOWED, SEALED_AGAINST, EDGES). ``violations`` applies them to
the source of a module; tests below apply it to bad sources, so that a checker that finds nothing fails.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fluxmpi"

# From the lowest to the highest. Members of one layer may not import one another. A name is a module or a subpackage.
LAYERS: list[list[str]] = [
    ["errors"],
    ["message", "blobref"],
    ["machine", "shares"],
    ["overlay"],
    ["content"],
    ["kvs"],
    ["pipe", "jobs"],
    ["broker"],
    ["client"],
    ["drivers", "simulator"],
    ["cli"],
    ["examples"],
]

# The same inside kvs.
KVS_LAYERS: list[list[str]] = [
    ["objects"],
    ["wire"],
    ["store"],
    ["mvcc", "replica"],
    ["fence"],
    ["leader", "watch"],
    ["limits"],
    ["service"],
]

# ``fluxmpi`` itself re-exports the client's names; only these may import it.
ABOVE_THE_TOP = ["cli", "examples"]

# Services communicate by messages, so none imports another, not even one in a lower layer.
SERVICES = ["overlay", "content", "kvs", "pipe", "jobs"]

# The module with the records of a service's messages: the only one that other services may import.
WIRE = "wire"

# Exceptions: (importer, imported) → reason. Names of modules or subpackages.
SERVICES_ALLOWED: dict[tuple[str, str], str] = {}

SEALED_AGAINST = {
    *("_thread", "asyncio", "concurrent", "multiprocessing", "threading", "signal", "subprocess"),
    *("select", "selectors", "socket", "time", "random", "secrets", "uuid"),
    *("os", "pathlib", "shutil", "tempfile", "fcntl", "ctypes", "importlib"),
    *("h5py", "mpi4py"),
}

# Packages that do I/O: they may import all of SEALED_AGAINST.
UNSEALED = ["drivers", "cli", "examples"]

# Exceptions at the edge of the sealed part: module or subpackage → (names that it may import, reason).
EDGES: dict[str, tuple[set[str], str]] = {
    "client.eventlog": ({"time"}, "timestamps of events, and a time limit for several responses"),
    "client.channel": (
        {"os", "socket", "time"},
        "a blocking socket; all rules of the protocol are in client.protocol",
    ),
    "client.use": ({"threading"}, "a lock, so that one thread at a time uses a handle"),
    "client.socket_io": ({"select", "socket", "time"}, "the bytes of the socket, and waiting for them"),
    "client.sockets": (
        {"os", "socket"},
        "the broker's socket and root page; the page's format is in kvs.replica.root_page",
    ),
    "client.kvs.value_file": ({"os"}, "the client's files"),
    "client.kvs.stored_value": ({"os"}, "descriptors received over the client's socket"),
    "simulator": ({"random"}, "a Random made from the run's seed is passed in"),
    "simulator.__main__": ({"os", "pathlib", "random", "time"}, "the command that runs seeds and prints"),
}

# Large packages, to be imported at first use only: importing LIGHT_ENTRIES does not load HEAVY.
HEAVY = ["numpy", "h5py", "matplotlib"]
LIGHT_ENTRIES = ["fluxmpi", "fluxmpi.cli.main", "fluxmpi.broker.broker", "fluxmpi.drivers.loop", "fluxmpi.drivers.mpi"]


@dataclass(frozen=True)
class Import:
    """One import: dotted name, line, and whether it is executed (one under TYPE_CHECKING is not)."""

    name: str
    line: int
    runs: bool


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Yield every import of a module, also in functions; ``from a import b`` gives ``a.b``; relative names are resolved."""

    def visit(node: ast.AST, runs: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, runs)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, runs)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "__import__":
            yield Import("importlib", node.lineno, runs)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, runs)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, runs)

    return visit(ast.parse(source), True)


def layer(module: str) -> tuple[int, str]:
    """Return the index of a module's layer, and the member of the layer that contains the module."""
    member = module.split(".")[1]
    for index, members in enumerate(LAYERS):
        if member in members:
            return index, member
    raise AssertionError(f"{module} is in no layer: add it to LAYERS")


def kvs_allows(module: str, imported: str) -> bool:
    """Return whether ``module`` may import ``imported``; both are in kvs."""
    own, theirs = (f"{name}.".split(".")[2] for name in (module, imported))
    if not own or not theirs or own == theirs:
        return True
    rank = {member: index for index, members in enumerate(KVS_LAYERS) for member in members}
    return rank[theirs] < rank[own]


def covers(name: str, module: str) -> bool:
    """Return whether ``name`` (relative to the package) is the module or a subpackage that contains it."""
    return f"{module}.".startswith(f"fluxmpi.{name}.")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return a line for each violation of the rules in a module's source."""
    found = []
    own, member = layer(module)
    unsealed = any(covers(name, module) for name in UNSEALED)
    allowed = {name for edge, (names, _) in EDGES.items() if covers(edge, module) for name in names}
    for item in imports(source, module, is_package):
        top = item.name.split(".")[0]
        where = f"{module}:{item.line} imports {item.name}"
        if top != "fluxmpi":
            if top in SEALED_AGAINST and item.runs and not unsealed and top not in allowed:
                found.append(f"{where}: only {', '.join(UNSEALED)} may do I/O")
            continue
        if not is_known(item.name):
            if member in ABOVE_THE_TOP:
                continue
            found.append(f"{where}: import from the defining module, not from the top of the package")
            continue
        theirs, other = layer(item.name)
        if other == member:
            if member == "kvs" and not kvs_allows(module, item.name):
                found.append(f"{where}: violates KVS_LAYERS")
            continue
        if any(covers(a, module) and covers(b, item.name) for a, b in SERVICES_ALLOWED):
            continue
        if theirs > own:
            found.append(f"{where}: {other} is in a higher layer than {member}")
        elif member in SERVICES and other in SERVICES:
            if item.name.split(".")[2] != WIRE:
                found.append(f"{where}: {member} and {other} communicate by messages")
        elif theirs == own:
            found.append(f"{where}: {member} and {other} are in the same layer")
    return found


def is_known(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and any(parts[1] in members for members in LAYERS)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


# fluxmpi/__init__.py is above all layers; only what it loads is checked, below.
CHECKED = [(module, path) for module, path in modules() if module != "fluxmpi"]


@pytest.mark.parametrize(("module", "path"), CHECKED, ids=[module for module, _ in CHECKED])
def test_module_keeps_the_layers(module: str, path: Path) -> None:
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


def test_every_layer_has_modules() -> None:
    names = [module for module, _ in CHECKED]
    for members in LAYERS:
        for member in members:
            if (PACKAGE / member).is_dir() or (PACKAGE / f"{member}.py").exists():
                assert any(covers(member, name) for name in names) or not list((PACKAGE / member).glob("*.py"))
    assert "fluxmpi.message" in names
    exceptions = [*EDGES, *(name for pair in SERVICES_ALLOWED for name in pair)]
    gone = [name for name in exceptions if not any(covers(name, module) for module in names)]
    assert gone == [], "exceptions for modules that do not exist"


BAD = {
    "upwards": ("kvs.store.edit", "from fluxmpi.broker.broker import Broker"),
    "upwards in a function": ("kvs.store.edit", "def f():\n    from fluxmpi.drivers import clock"),
    "upwards, relative": ("kvs.store.edit", "from ...client import handle"),
    "upwards, for types only": ("overlay.router", "if TYPE_CHECKING:\n    import fluxmpi.kvs.store.edit"),
    "upwards in kvs": ("kvs.store.lookup", "from fluxmpi.kvs.replica.reads import Reads"),
    "a neighbour in kvs": ("kvs.watch.index", "from fluxmpi.kvs.leader.batch import Batch"),
    "upwards in kvs, relative": ("kvs.mvcc.gc", "from ..leader import service"),
    "a neighbour": ("jobs.exec", "from fluxmpi.pipe import queue"),
    "a service below": ("jobs.exec", "from fluxmpi.kvs.store.edit import Tree"),
    "a service's records, but from below": ("overlay.router", "from fluxmpi.kvs.wire import Commit"),
    "a neighbour at the bottom": ("message", "from fluxmpi.blobref import Ref"),
    "drivers from the simulator": ("simulator.network", "from fluxmpi.drivers.mpi import Transport"),
    "cli from drivers": ("drivers.mpi", "import fluxmpi.cli.main"),
    "the top of the package": ("drivers.mpi", "from fluxmpi import connect"),
    "the top itself": ("broker.broker", "import fluxmpi"),
    "time": ("kvs.leader.service", "import time"),
    "time, hidden": (
        "kvs.leader.service",
        "def f():\n    try:\n        from time import time\n    finally:\n        pass",
    ),
    "os.path": ("overlay.health", "import os.path as p"),
    "random": ("overlay.health", "from random import Random"),
    "mpi4py": ("broker.broker", "from mpi4py import MPI"),
    "threading in the simulator": ("simulator.network", "import threading"),
    "asyncio": ("content.cache", "import json, asyncio"),
    "h5py": ("content.cache", "import h5py"),
    "sockets in the client's core": ("client.protocol", "import socket"),
    "by __import__": ("kvs.store.edit", "t = __import__('time')"),
    "by importlib": ("kvs.store.edit", "import importlib"),
    "in an else": ("kvs.store.edit", "if TYPE_CHECKING:\n    pass\nelse:\n    import os"),
}

GOOD = {
    "downwards": (
        "broker.broker",
        "from fluxmpi.kvs.leader.service import Leader\nfrom fluxmpi.message import Message",
    ),
    "own layer": (
        "kvs.leader.batch",
        "from fluxmpi.kvs.store import edit\nfrom ..wire import Op\nfrom .dedup import DeduplicationTable",
    ),
    "plain library": ("kvs.leader.service", "import hashlib\nimport msgspec\nfrom collections import deque"),
    "for types only": ("overlay.health", "if TYPE_CHECKING:\n    from random import Random"),
    "a driver": ("drivers.loop", "import os, socket, time\nfrom fluxmpi.broker.broker import Broker"),
    "a name with the same prefix": ("kvs.leader.service", "import timeit_like\nimport os_like"),
    "another service's records": ("jobs.exec", "from fluxmpi.kvs.wire import Commit"),
    "as users do": ("examples.usage", "import fluxmpi"),
    "an edge": ("simulator.network", "from random import Random"),
}


@pytest.mark.parametrize(("module", "source"), BAD.values(), ids=BAD.keys())
def test_checker_finds(module: str, source: str) -> None:
    assert len(violations(source, f"fluxmpi.{module}")) == 1


@pytest.mark.parametrize(("module", "source"), GOOD.values(), ids=GOOD.keys())
def test_checker_accepts(module: str, source: str) -> None:
    assert violations(source, f"fluxmpi.{module}") == []


def test_every_module_of_kvs_has_a_layer() -> None:
    members = {module.split(".")[2] for module, _ in CHECKED if module.startswith("fluxmpi.kvs.")}
    assert members == {member for members in KVS_LAYERS for member in members}


def test_relative_imports_of_a_package_are_resolved() -> None:
    assert [item.name for item in imports("from .a import b\nfrom .. import c", "fluxmpi.kvs", True)] == [
        "fluxmpi.kvs.a.b",
        "fluxmpi.c",
    ]


def test_a_module_without_a_layer_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"fluxmpi\.misc is in no layer"):
        layer("fluxmpi.misc")


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle among the modules of ``graph``, as a list that begins and ends with the same module; [] if there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            if found := search(imported, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := search(module, []))), [])


def imports_among(names: set[str], sources: dict[str, str]) -> dict[str, set[str]]:
    """The modules of ``names`` that each module imports: in functions too, and for the type checker only."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        found = {item.name for item in imports(source, module)}
        found |= {name.rpartition(".")[0] for name in found}
        graph[module] = (found & names) - {module}
    return graph


def test_the_client_has_no_import_cycle() -> None:
    sources = {module: path.read_text() for module, path in CHECKED if module.startswith("fluxmpi.client")}
    assert "fluxmpi.client.kvs.reading" in sources
    assert cycle(imports_among(set(sources), sources)) == []


def test_a_cycle_is_found() -> None:
    sources = {
        "p.a": "if TYPE_CHECKING:\n    from p.b import B",
        "p.b": "def f():\n    from p import c",
        "p.c": "import p.a",
        "p.d": "import p.a",
    }
    assert cycle(imports_among(set(sources), sources)) == ["p.a", "p.b", "p.c", "p.a"]
    del sources["p.c"]
    assert cycle(imports_among(set(sources), sources)) == []


def loaded_by(statement: str) -> list[str]:
    """Return which of HEAVY a new interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("entry", LIGHT_ENTRIES)
def test_import_is_light(entry: str) -> None:
    assert loaded_by(f"import {entry}") == []


def test_loaded_by_detects_numpy() -> None:
    assert loaded_by("import numpy") == ["numpy"]
