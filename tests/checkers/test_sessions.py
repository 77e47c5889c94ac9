"""The session checker: each guarantee broken by hand, with and without a move to another broker, and kept."""

from __future__ import annotations

import pytest

from fluxmpi.simulator.checkers.history import KeyStep, Operation
from fluxmpi.simulator.checkers.replay import replay
from fluxmpi.simulator.checkers.sessions import violations


def commit(start: float, version: int, *, broker: int = 0, client: str = "c", namespace: str = "primary") -> Operation:
    steps = [KeyStep("put", "k", version)]
    return Operation(client, "commit", start, start + 1, steps, [None], version, namespace, broker)


def read(
    start: float, version: int | None, value: int | None = None, *, broker: int = 0, client: str = "c"
) -> Operation:
    return Operation(
        client, "read", start, start + 1, [KeyStep("get", "k")], [value or version], version, "primary", broker
    )


def root(start: float, version: int, *, least: int = 0, at: bool = False, client: str = "c") -> Operation:
    return Operation(client, "root", start, start + 1, version=version, least=least, at=at)


def notified(start: float, end: float, version: int, stream: str = "1") -> Operation:
    return Operation("c", "watch", start, end, version=version, stream=stream, pattern="k")


BROKEN = {
    "read-your-writes": [commit(0, 5), read(2, 4)],
    "monotonic reads": [read(0, 5), read(2, 4)],
    "monotonic writes": [commit(0, 5), commit(2, 4)],
    "writes-follow-reads": [read(0, 5), commit(2, 5)],
}


@pytest.mark.parametrize("rule", BROKEN)
@pytest.mark.parametrize("broker", [0, 3])
def test_a_broken_guarantee_is_reported(rule: str, broker: int) -> None:
    first, second = BROKEN[rule]
    second = Operation(**{**{name: getattr(second, name) for name in second.__struct_fields__}, "broker": broker})
    (text,) = violations([first, second])
    assert text.startswith(f"sessions: {rule}: c went back")
    assert ("having moved from broker 0 to 3" in text) is (broker == 3)


@pytest.mark.parametrize("rule", BROKEN)
def test_another_client_has_a_session_of_its_own(rule: str) -> None:
    first, second = BROKEN[rule]
    second.client = "other"
    try:
        assert violations([first, second]) == []
    finally:
        second.client = "c"


def test_two_writes_of_one_client_one_after_the_other_do_not_share_a_version() -> None:
    assert violations([commit(0, 5), commit(2, 5)])[0].startswith("sessions: monotonic writes")
    assert violations([commit(0, 5), commit(0.5, 5)]) == []


def test_concurrent_operations_have_no_order() -> None:
    assert violations([read(0, 5), read(0.5, 4)]) == []
    assert violations([commit(0, 5), read(0.5, 4)]) == []


def test_a_read_at_a_version_says_nothing_about_the_session() -> None:
    assert violations([read(0, 5), root(2, 3, at=True), read(4, 5)]) == []
    assert violations([root(0, 9, at=True), read(2, 5)]) == []


def test_a_wait_ends_at_its_version() -> None:
    assert violations([root(0, 5, least=5)]) == []
    assert violations([root(0, 4, least=5)])[0].startswith("sessions: it was to wait for version 5")
    assert violations([root(0, 5, least=5), read(2, 4)])[0].startswith("sessions: monotonic reads")


def test_a_watch_begins_no_earlier_than_its_client_and_may_lag_afterwards() -> None:
    assert violations([commit(0, 5), notified(2, 3, 4)])[0].startswith("sessions: read-your-writes")
    assert violations([notified(0, 1, 4), read(2, 6), notified(0, 3, 5)]) == []
    assert violations([notified(0, 1, 6), read(2, 5)])[0].startswith("sessions: monotonic reads")


def test_namespaces_have_versions_of_their_own() -> None:
    assert violations([commit(0, 5, namespace="work"), read(2, 4)]) == []


# --------------------------------------------------------------------------------------- reads that name no version


def judged(*operations: Operation) -> list[str]:
    """With a writer whose versions are 1 to 5, each with its number as the value."""
    writers = [commit(-10 + version, version, client="w") for version in range(1, 6)]
    return violations(operations, replay([*writers, *operations]))


def test_values_show_the_version() -> None:
    assert judged(read(0, None, 3), read(2, None, 3), read(4, None, 5)) == []


def test_a_value_that_is_older_than_the_last_one() -> None:
    (text,) = judged(read(0, None, 3), read(2, None, 2, broker=1))
    assert text.startswith("sessions: monotonic reads: c went back, having moved from broker 0 to 1")
    assert "which was right in version 2, and not since" in text


def test_a_value_that_is_older_than_what_a_root_said() -> None:
    assert judged(root(0, 4), read(2, None, 3))[0].startswith("sessions: monotonic reads")


def test_a_value_that_is_older_than_the_own_commit() -> None:
    own = Operation("c", "commit", 0, 1, [KeyStep("put", "other", 1)], [None], 6)
    assert judged(own, read(2, None, 5)) == []
    assert judged(own, read(2, None, 3))[0].startswith("sessions: read-your-writes")


def test_a_value_that_never_was() -> None:
    assert judged(read(0, None, 77))[0].startswith("sessions: no version has that")
