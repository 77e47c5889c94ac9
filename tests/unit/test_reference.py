"""The API reference has every public name, and every class that a public signature mentions is public."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import fluxmpi
import fluxmpi.client

PAGES = Path(__file__).parents[2] / "docs" / "reference"
LISTED = re.compile(r"^::: fluxmpi\.(\w+)$", re.M)
MODULES = ["errors"]
"""Modules of which a page lists everything."""


def listed() -> list[str]:
    """Return the names on the pages of the reference, except those of MODULES."""
    names = [name for page in sorted(PAGES.glob("*.md")) for name in LISTED.findall(page.read_text())]
    return [name for name in names if name not in MODULES]


def public() -> dict[str, Any]:
    """Return the public names with their values, without errors and the version number."""
    found = {name: getattr(fluxmpi, name) for name in fluxmpi.__all__ if name != "__version__"}
    return {name: value for name, value in found.items() if getattr(value, "__module__", "") != "fluxmpi.errors"}


def classes_of_the_client() -> dict[str, type]:
    """Return the classes that the modules of the client define, by name."""
    found = {}
    for module in walk_packages(fluxmpi.client.__path__, "fluxmpi.client."):
        for name, value in vars(import_module(module.name)).items():
            if inspect.isclass(value) and value.__module__ == module.name and not name.startswith("_"):
                found[name] = value
    return found


def signatures(class_: type) -> Iterator[tuple[str, str]]:
    """Yield (name, annotations) of each public method and property of a class."""
    for name in dir(class_):
        member = inspect.getattr_static(class_, name)
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("fluxmpi."):
            yield name, " ".join(map(str, function.__annotations__.values()))


def test_the_reference_lists_each_public_name_once() -> None:
    assert sorted(listed()) == sorted(public())


def test_classes_in_public_signatures_are_public() -> None:
    classes = classes_of_the_client()
    assert "Kvs" in classes
    missing = {
        f"{class_.__name__}.{method}: {name}"
        for class_ in public().values()
        if inspect.isclass(class_)
        for method, text in signatures(class_)
        for name in re.findall(r"\w+", text)
        if name in classes and name not in fluxmpi.__all__
    }
    assert missing == set()
