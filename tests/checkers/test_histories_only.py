"""The checkers judge histories only: they import neither the simulated instance nor any machine of a broker."""

from __future__ import annotations

import ast
from pathlib import Path

import fluxmpi.simulator.checkers

ALLOWED = (
    "fluxmpi.errors",
    "fluxmpi.blobref",
    "fluxmpi.kvs.objects",
    "fluxmpi.kvs.wire",
    "fluxmpi.kvs.store.node",
    "fluxmpi.kvs.store.pattern",
    "fluxmpi.overlay.wire",
    "fluxmpi.simulator.checkers",
)
"""Errors, values, records, and pure functions of the store."""


def test_checkers_import_no_insider() -> None:
    folder = Path(fluxmpi.simulator.checkers.__file__).parent
    found = {
        (path.stem, node.module)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fluxmpi")
    }
    assert len(found) > 20
    assert {(name, module) for name, module in found if not module.startswith(ALLOWED)} == set()
