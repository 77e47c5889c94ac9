"""The layers hold: imports point down, services know each other only by messages, and the core touches no world.

The rules are data (LAYERS, WIRE, SERVICES_ALLOWED, SEALED_AGAINST, EDGES); ``violations`` applies them to the text of a
module, and is itself tried on bad modules below, so that a checker that sees nothing cannot pass.
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

# From the lowest to the highest; members of one layer are neighbours. A name stands for a module or a whole subpackage.
LAYERS: list[list[str]] = [
    ["errors"],
    ["message", "blobref"],
    ["machine"],
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

# Inside kvs, from the lowest to the highest: a package imports from lower lines only, neighbours not from one another.
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

# What users import, ``fluxmpi`` itself, is made of the client's names; only these stand above it.
ABOVE_THE_TOP = ["cli", "examples"]

# Services: they talk by messages, so none imports another, though one may lie below the other.
SERVICES = ["overlay", "content", "kvs", "pipe", "jobs"]

# The records of a service's messages; who talks to it imports these, and nothing else of it.
WIRE = "wire"

# (importer, imported): why it is right all the same. Names of modules, or of subpackages with all that is in them.
SERVICES_ALLOWED: dict[tuple[str, str], str] = {}

SEALED_AGAINST = {
    *("_thread", "asyncio", "concurrent", "multiprocessing", "threading", "signal", "subprocess"),
    *("select", "selectors", "socket", "time", "random", "secrets", "uuid"),
    *("os", "pathlib", "shutil", "tempfile", "fcntl", "ctypes", "importlib"),
    *("h5py", "mpi4py"),
}

# Who touches the world, and may therefore import all of the above.
UNSEALED = ["drivers", "cli", "examples"]

# At the edge of the sealed part: what a module or subpackage may import all the same, and why.
EDGES: dict[str, tuple[set[str], str]] = {
    "client.eventlog": ({"time"}, "an event's timestamp, and a time limit over several answers"),
    "client.handle": ({"os", "select", "socket", "threading", "time"}, "a socket; all rules are in client.protocol"),
    "client.page": ({"os"}, "maps the broker's page of roots; its format is in kvs.replica.root_page"),
    "client.large": ({"os"}, "the client's files"),
    "client.mapping": ({"os", "socket"}, "descriptors that come over the client's socket"),
    "simulator": ({"random"}, "chance there is a Random made from the run's seed, and passed in"),
    "simulator.__main__": ({"os", "pathlib", "random", "time"}, "the command that runs seeds and prints"),
}

# Too big to be imported before they are needed: never by merely importing these.
HEAVY = ["numpy", "h5py", "matplotlib"]
LIGHT_ENTRIES = ["fluxmpi", "fluxmpi.cli.main", "fluxmpi.broker.broker", "fluxmpi.drivers.loop", "fluxmpi.drivers.mpi"]


@dataclass(frozen=True)
class Import:
    """One import: the dotted name, its line, and whether it runs (one for the type checker alone does not)."""

    name: str
    line: int
    runs: bool


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in a module, in functions too; ``from a import b`` counts as ``a.b``; relative ones are resolved."""

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
    """The layer of a dotted module of the package, and the member of it that the module belongs to."""
    member = module.split(".")[1]
    for index, members in enumerate(LAYERS):
        if member in members:
            return index, member
    raise AssertionError(f"{module} is in no layer: give it a place in LAYERS")


def kvs_allows(module: str, imported: str) -> bool:
    """Whether the layers of kvs let ``module`` import ``imported``, both in kvs."""
    own, theirs = (f"{name}.".split(".")[2] for name in (module, imported))
    if not own or not theirs or own == theirs:
        return True
    rank = {member: index for index, members in enumerate(KVS_LAYERS) for member in members}
    return rank[theirs] < rank[own]


def covers(name: str, module: str) -> bool:
    """Whether ``name`` (relative to the package) is the module, or a subpackage that holds it."""
    return f"{module}.".startswith(f"fluxmpi.{name}.")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What in a module's text breaks the rules, as lines for a person."""
    found = []
    own, member = layer(module)
    unsealed = any(covers(name, module) for name in UNSEALED)
    allowed = {name for edge, (names, _) in EDGES.items() if covers(edge, module) for name in names}
    for item in imports(source, module, is_package):
        top = item.name.split(".")[0]
        where = f"{module}:{item.line} imports {item.name}"
        if top != "fluxmpi":
            if top in SEALED_AGAINST and item.runs and not unsealed and top not in allowed:
                found.append(f"{where}, which touches the world: only {', '.join(UNSEALED)} may")
            continue
        if not is_known(item.name):
            if member in ABOVE_THE_TOP:
                continue
            found.append(f"{where}, from the top of the package: import from the module that has it")
            continue
        theirs, other = layer(item.name)
        if other == member:
            if member == "kvs" and not kvs_allows(module, item.name):
                found.append(f"{where}: against the layers of kvs")
            continue
        if any(covers(a, module) and covers(b, item.name) for a, b in SERVICES_ALLOWED):
            continue
        if theirs > own:
            found.append(f"{where}: {other} lies above {member}")
        elif member in SERVICES and other in SERVICES:
            if item.name.split(".")[2] != WIRE:
                found.append(f"{where}: {member} and {other} talk by messages")
        elif theirs == own:
            found.append(f"{where}: {member} and {other} are neighbours")
    return found


def is_known(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and any(parts[1] in members for members in LAYERS)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


# The package's own __init__ is what users import: it stands above the layers, so only its weight is checked, below.
CHECKED = [(module, path) for module, path in modules() if module != "fluxmpi"]


@pytest.mark.parametrize(("module", "path"), CHECKED, ids=[module for module, _ in CHECKED])
def test_module_keeps_the_layers(module: str, path: Path) -> None:
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


def test_there_is_something_to_check() -> None:
    names = [module for module, _ in CHECKED]
    for members in LAYERS:
        for member in members:
            if (PACKAGE / member).is_dir() or (PACKAGE / f"{member}.py").exists():
                assert any(covers(member, name) for name in names) or not list((PACKAGE / member).glob("*.py"))
    assert "fluxmpi.message" in names
    exceptions = [*EDGES, *(name for pair in SERVICES_ALLOWED for name in pair)]
    gone = [name for name in exceptions if not any(covers(name, module) for module in names)]
    assert gone == [], "exceptions for what is not there"


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
    "a service's words, but from below": ("overlay.router", "from fluxmpi.kvs.wire import Commit"),
    "a neighbour at the bottom": ("message", "from fluxmpi.blobref import Ref"),
    "drivers from sim": ("simulator.network", "from fluxmpi.drivers.mpi import Transport"),
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
    "by another way": ("kvs.store.edit", "t = __import__('time')"),
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
    "a name that only begins alike": ("kvs.leader.service", "import timeit_like\nimport os_like"),
    "another service's words": ("jobs.exec", "from fluxmpi.kvs.wire import Commit"),
    "as users do": ("examples.usage", "import fluxmpi"),
    "an edge": ("simulator.network", "from random import Random"),
}


@pytest.mark.parametrize(("module", "source"), BAD.values(), ids=BAD.keys())
def test_checker_finds(module: str, source: str) -> None:
    assert len(violations(source, f"fluxmpi.{module}")) == 1


@pytest.mark.parametrize(("module", "source"), GOOD.values(), ids=GOOD.keys())
def test_checker_lets_pass(module: str, source: str) -> None:
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


def loaded_by(statement: str) -> list[str]:
    """Which of HEAVY a fresh interpreter has loaded after ``statement``."""
    script = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("entry", LIGHT_ENTRIES)
def test_import_is_light(entry: str) -> None:
    assert loaded_by(f"import {entry}") == []


def test_the_weighing_sees_numpy() -> None:
    assert loaded_by("import numpy") == ["numpy"]
