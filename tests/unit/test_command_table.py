"""The tables of commands: each command loads, has help and examples, and uses the letters of common options alike."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import ShellComplete

from fluxmpi.cli import kvs as kvs_table
from fluxmpi.cli.common import LazyGroup, commands
from fluxmpi.cli.main import cli

ALIKE = {"-N": "namespace", "-j": "as_json", "-a": "at", "-t": "timeout"}
"""Option letter → parameter, in most commands of ``kvs``."""

EXCEPTIONS = {
    ("get", "-j"): "form",
    ("get", "-t"): "form",
    ("put", "-t"): "treeobj",
    ("dropcache", "-a"): "all_",
    ("append", "-t"): "timestamp",
}
"""(command, option letter) → parameter, where flux-kvs(1) uses the letter for something else."""


ALL = dict(commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_examples(path: tuple[str, ...]) -> None:
    command = ALL[path]
    assert command.help, "no help"
    assert "Examples:" in (command.epilog or ""), "no example"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{parameter.opts} has no help"


@pytest.mark.parametrize("path", [path for path in ALL if path[0] == "kvs"], ids=" ".join)
def test_option_letters_have_one_meaning(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        for letter in parameter.opts:
            expected = EXCEPTIONS.get((path[-1], letter), ALIKE.get(letter))
            assert expected in (None, parameter.name), f"{letter} is {parameter.name}"


def test_the_help_of_kvs_lists_every_command_under_a_heading() -> None:
    group = kvs_table.kvs
    assert isinstance(group, LazyGroup)
    assert sorted(name for names in kvs_table.SECTIONS.values() for name in names) == sorted(kvs_table.COMMANDS)
    with click.Context(group) as ctx:
        text = group.get_help(ctx)
    for heading in kvs_table.SECTIONS:
        assert f"{heading}:" in text


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [([], "kv", ["kvs"]), (["kvs"], "un", ["unlink"]), (["kvs", "get"], "--wait", ["--waitcreate"])],
)
def test_shells_complete_commands_and_options(words: list[str], begun: str, expected: list[str]) -> None:
    completions = ShellComplete(cli, {}, "fluxmpi", "_FLUXMPI_COMPLETE").get_completions(words, begun)
    assert [item.value for item in completions] == expected
