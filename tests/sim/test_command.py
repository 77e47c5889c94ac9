"""``python -m fluxmpi.simulator``: its output and exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.simulator.__main__ import main

SCENARIO = Path(__file__).parents[1] / "scenarios" / "inner-broker-is-killed.txt"


def test_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--ranks", "5", "--steps", "50", "--topology", "flat", "--cache-bytes", "300"]) == 0
    out = capsys.readouterr().out
    assert "seed 3: 5 brokers as flat" in out
    assert "caches of 300 bytes" in out
    assert "trace " in out


def test_a_rank_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--ranks", "5", "--kill", "2"]) == 0
    assert "rank 2 killed" in capsys.readouterr().out


def test_a_trace_shows_messages_and_digest_alike(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "3", "--trace"])
    traced = capsys.readouterr().out
    main(["--seed", "3"])
    plain = capsys.readouterr().out
    assert "kvs.commit" in traced
    assert traced.split()[-1] == plain.split()[-1]


def test_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0..5", "--steps", "20"]) == 0
    assert "5 seeds without a violation" in capsys.readouterr().out


def test_a_violation_is_printed_with_the_command_that_reproduces_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batch, "conflicts", lambda self, keys: False)
    assert main(["--seeds", "0..50", "--mix", "hot", "--steps", "200"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATION" in out
    again = out.splitlines()[-1].strip()
    assert again.startswith("again: python -m fluxmpi.simulator --seed ")
    assert again.endswith("--steps 200 --mix hot")
    assert main(again.partition("fluxmpi.simulator ")[2].split()) == 1


def test_scenarios(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--scenario", str(SCENARIO)]) == 0
    assert "ok     An inner broker is killed" in capsys.readouterr().out
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("Nothing is everything.\n\n1 broker\nthe version is 7\n")
    assert main(["--scenario", str(SCENARIO), str(wrong)]) == 1
    assert "FAILED Nothing is everything." in capsys.readouterr().out


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "python -m fluxmpi.simulator --seeds 0..1000" in capsys.readouterr().out
