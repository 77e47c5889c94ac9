"""The scenarios of tests/scenarios, each with several seeds: the delays of links differ."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fluxmpi.simulator.scenario import play

FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_scenario(path: Path) -> None:
    text = path.read_text()
    assert text.splitlines()[0].endswith("."), "a scenario begins with what must hold"
    for seed in range(1, 6):
        assert play(text, seed).violations == []


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        ("anna has read 2", "anna has read 1"),
        ("the version is 2", "the version is 1"),
        ("anna has version 7", r"anna has version \[1\]"),
        ("anna got error NoSuchKey", "anna got"),
        ("all brokers end with an error that names rank 1", "rank 0 has not ended"),
        ("anna has no answer", "anna has an answer"),
    ],
)
def test_a_false_sentence_is_noticed(wrong: str, noticed: str) -> None:
    steps = "2 brokers\nanna is at rank 1\nanna puts 1 in a\nanna waits\n"
    if "version 7" not in wrong:
        steps += "anna reads a\nanna waits\n"
    report = play(f"Something.\n\n{steps}{wrong}\n")
    assert len(report.violations) == 1
    assert re.search(noticed, report.violations[0])


def test_a_hang_is_noticed() -> None:
    report = play("Something.\n\n2 brokers\nanna is at rank 1\nanna joins fence f of 2 with 1 in a\n")
    assert any("hang:" in violation for violation in report.violations)


def test_an_unknown_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="no such step: 'anna sings'"):
        play("Something.\n\n2 brokers\nanna sings\n")
