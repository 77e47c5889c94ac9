"""The examples in the documents run, in one instance per document, and print what the documents show.

A ``console`` block is a shell session: lines that begin with ``$ `` are commands, the others their output, where ``…``
matches any text. The ``python`` blocks of a document share their names, and have two handles: ``h`` on rank 0 and
``there`` on rank 2. The lines ``#> text`` of a block are its output, in order.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from instance import COMMAND_S, FLUXMPI, ROOT, Instance, environment

import fluxmpi

DOCUMENTS = [ROOT / name for name in ("README.md", "docs/kvs.md", "docs/patterns.md")]
DEBUGGING = ROOT / "docs/debugging.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)
END = "\x1e"
"""Printed after each command of a session."""


def matches(line: str, expected: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line) is not None


def compare(printed: list[str], expected: list[str], where: str) -> None:
    same = len(printed) == len(expected) and all(map(matches, printed, expected))
    assert same, f"{where}: prints {printed}, the document shows {expected}"


def session(text: str) -> list[tuple[str, list[str]]]:
    """Return each command with its expected output, as lines."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1] = f"{found[-1][0]}\n{line[2:]}", []
        else:
            found[-1][1].append(line)
    return found


def run_console(text: str, instance: Instance, folder: Path, where: str) -> None:
    steps = session(text)
    script = "".join(f"{command}\nprintf '{END}'\n" for command, _ in steps)
    done = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        timeout=COMMAND_S * 2,
        env=environment(instance.rank_uri(0)),
    )
    for (command, expected), printed in zip(steps, done.stdout.decode().split(END), strict=False):
        compare(printed.splitlines(), expected, f"{where}: $ {command}")


def run_python(text: str, names: dict[str, object], where: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, where, "exec"), names)
    expected = [line.partition("#> ")[2] for line in text.splitlines() if line.lstrip().startswith("#> ")]
    compare(out.getvalue().splitlines(), expected, where)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``fluxmpi`` in it and on PATH."""
    (tmp_path / "fluxmpi").write_text(f'#!/bin/sh\nexec {shlex.join(FLUXMPI)} "$@"\n')
    (tmp_path / "fluxmpi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_debugging(folder: Path) -> None:
    """All examples of the page are one shell session, since they stop a broker and wait for jobs."""
    text = DEBUGGING.read_text()
    with Instance(3, ["--heartbeat", "60"]) as instance:
        session = "".join(block[2] for block in BLOCK.finditer(text) if block[1] == "console")
        run_console(session, instance, folder, DEBUGGING.name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = document.read_text()
    with Instance(3) as instance, instance.connect() as h, instance.connect(2) as there:
        monkeypatch.setenv("FLUXMPI_URI", instance.rank_uri(0))
        names: dict[str, object] = {"__name__": "example", "fluxmpi": fluxmpi, "h": h, "there": there}
        for block in BLOCK.finditer(text):
            where = f"{document.name}, line {text.count(chr(10), 0, block.start()) + 2}"
            if block[1] == "console":
                run_console(block[2], instance, folder, where)
            else:
                run_python(block[2], names, where)
