"""One name of a class means one thing in the whole package, also where it is a type alias."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fluxmpi"


def names(source: str) -> Iterator[str]:
    """Yield the names of the classes of a module, also nested ones, and of its type aliases.

    An alias is a name of a module in CamelCase that is assigned once; a name of one letter or in capitals is a
    constant or a type variable.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if name.lstrip("_")[:1].isupper() and not name.isupper():
                    yield name


def duplicates(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names that more than one class or alias has, with their modules."""
    found: dict[str, list[str]] = {}
    for module, source in sources:
        for name in names(source):
            found.setdefault(name, []).append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def test_a_class_name_means_one_thing() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert paths
    assert duplicates((str(path.relative_to(PACKAGE)), path.read_text()) for path in paths) == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("class Walk: ...", "class Walk: ..."),
        ("class Walk: ...", "Walk = Generator[int, None, None]"),
        ("Walk: TypeAlias = int", "Walk = int"),
        ("class A:\n    class Walk: ...", "def f():\n    class Walk: ..."),
        ("class _Items: ...", "class _Items: ..."),
    ],
)
def test_the_checker_finds(one: str, other: str) -> None:
    assert duplicates([("one", one), ("other", other)]) == {"Walk" if "Walk" in one else "_Items": ["one", "other"]}


@pytest.mark.parametrize(
    "source", ["LIMIT = 3", "T = TypeVar('T')", "walk = 3", "from a import Walk", "class Walk: ..."]
)
def test_the_checker_accepts(source: str) -> None:
    assert duplicates([("one", source), ("other", "class Other: ...")]) == {}
