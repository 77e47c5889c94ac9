"""The examples in the docstrings of the public API run, and print what they say.

They run in one instance of three brokers; ``h`` is a handle on rank 0, ``there`` one on rank 2. Each module starts with
an empty directory ``doc``.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
from instance import Instance

import fluxmpi
import fluxmpi.client

MODULES = ["fluxmpi", *(found.name for found in pkgutil.walk_packages(fluxmpi.client.__path__, "fluxmpi.client."))]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with Instance(3) as instance:
        yield instance


def examples(module: ModuleType) -> list[doctest.DocTest]:
    return [found for found in doctest.DocTestFinder(exclude_empty=True).find(module) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(importlib.import_module(name))
    if not found:
        pytest.skip("it has no examples")
    monkeypatch.setenv("FLUXMPI_URI", instance.rank_uri(0))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with instance.connect(0) as h, instance.connect(2) as there:
        h.kvs.unlink("doc")
        for test in found:
            test.globs = {"fluxmpi": fluxmpi, "h": h, "there": there}
            report: list[str] = []
            runner.run(test, out=report.append)
            assert runner.failures == 0, "".join(report)


def public_functions() -> Iterator[tuple[str, object]]:
    """The public functions, and the public methods of public classes, that users meet."""
    for name in fluxmpi.__all__:
        thing = getattr(fluxmpi, name)
        if not getattr(thing, "__module__", "").startswith("fluxmpi.client"):
            continue
        if inspect.isclass(thing):
            yield name, thing
            for attribute, _ in inspect.getmembers(thing):
                member = inspect.getattr_static(thing, attribute)
                if attribute.startswith("_") or not getattr(thing, "__module__", "").startswith("fluxmpi"):
                    continue
                if inspect.isfunction(member) or isinstance(member, property | classmethod):
                    yield f"{name}.{attribute}", member
        elif callable(thing):
            yield name, thing


def test_every_public_name_is_documented() -> None:
    assert [name for name, thing in public_functions() if not inspect.getdoc(thing)] == []
