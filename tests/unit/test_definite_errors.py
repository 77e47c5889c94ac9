"""No error says "definite" after a byte was sent, unless it is the broker's own answer: every write, and every fault.

A broker that fails at each point of each request: before it reads, after each part of a frame, in the middle of its
answer, with an answer of every code, with nonsense, with silence. The broker knows what it has received.
"""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import pytest
from running_broker import running_broker
from scripted_broker import ANSWERS, Client, Fault, ScriptedBroker, answered

from fluxmpi import errors
from fluxmpi.client.kvs.history import HeldLease
from fluxmpi.client.protocol import bare
from fluxmpi.errors import BY_CODE, ConnectionLost, FluxmpiError, InvalidRequest, RequestTimeout, encode_error
from fluxmpi.kvs.objects import Val
from fluxmpi.message import ANY, LOCAL, OK, REQUEST, RESPONSE, Message

BIG = bytes(2 << 20)


def txn(h: Client) -> None:
    with h.kvs.txn() as t:
        t.put("a", 1)
        t.publish("e", 1)


def txn_add(h: Client) -> None:
    with h.kvs.txn() as t:
        result = t.add("a")
    assert result.number == 5


def held(h: Client) -> HeldLease:
    return HeldLease(h.channel, ANSWERS["roots.lease"])


WRITES: dict[str, Callable[[Client], Any]] = {
    "commit": lambda h: h.kvs.commit({"a": 1, "b": 2}),
    "commit_async": lambda h: h.kvs.commit_async({"a": 1}).get(),
    "put": lambda h: h.kvs.put("a", 1),
    "put, long": lambda h: h.kvs.put("a", BIG),
    "put_file": lambda h: h.kvs.put_file("a", io.BytesIO(BIG)),
    "txn": txn,
    "txn, add": txn_add,
    "add": lambda h: h.kvs.add("a"),
    "add_async": lambda h: h.kvs.add_async("a").get(),
    "add, limit": lambda h: h.kvs.add("a", limit=7),
    "exchange": lambda h: h.kvs.exchange("a", 1),
    "exchange, long": lambda h: h.kvs.exchange("long", 1),
    "compare_and_swap": lambda h: h.kvs.compare_and_swap("a", 1, 2),
    "fence": lambda h: h.kvs.fence("f", 1, {"a": 1}),
    "fence_async": lambda h: h.kvs.txn().fence_async("f", 1).get(),
    "mkdir": lambda h: h.kvs.mkdir("a"),
    "unlink": lambda h: h.kvs.unlink("a"),
    "link": lambda h: h.kvs.link("a", "b"),
    "copy": lambda h: h.kvs.copy("a", "b"),
    "move": lambda h: h.kvs.move("a", "b"),
    "move, of another namespace": lambda h: h.kvs.move("a", "b", source_namespace="other"),
    "subtree, set": lambda h: h.kvs.subtree("dir").__setitem__("a", 1),
    "subtree, delete": lambda h: h.kvs.subtree("dir").__delitem__("a"),
    "subtree, update": lambda h: h.kvs.subtree("dir").update(a=1),
    "subtree, pop": lambda h: h.kvs.subtree("dir").pop("a"),
    "subtree, clear": lambda h: h.kvs.subtree("dir").clear(),
    "namespaces.create": lambda h: h.kvs.namespaces.create("n"),
    "namespaces.remove": lambda h: h.kvs.namespaces.remove("n"),
    "retention": lambda h: h.kvs.retention(count=10),
    "lease": lambda h: h.kvs.lease(),
    "lease, renew": lambda h: held(h).renew(),
    "lease, release": lambda h: held(h).release(),
    "gc": lambda h: h.kvs.gc(),
    "drop_cache": lambda h: h.content.dropcache(0),
    "event.publish": lambda h: h.event.publish("e", 1),
    "event.subscribe": lambda h: h.event.subscribe("e"),
    "eventlog.append": lambda h: h.eventlog.append("a", "start", timestamp=1.0),
    "exec.run": lambda h: h.exec.run(["x"]),
    "exec.run, one rank": lambda h: h.exec.run(["x"], [1]),
    "content.store": lambda h: h.content.store(b"abc"),
    "content.store_all": lambda h: h.content.store_all([b"a", b"b", b"c"]),
    "rpc": lambda h: h.rpc("x.y", 1, target=2),
    "rpc_async": lambda h: h.rpc_async("x.y", 1).get(),
    "stream": lambda h: list(h.stream("x.y", 1)),
}

READS: dict[str, Callable[[Client], Any]] = {
    "get": lambda h: h.kvs.get("a"),
    "get_async": lambda h: h.kvs.get_async("a").get(),
    "get_object": lambda h: h.kvs.get_object("a"),
    "exists": lambda h: h.kvs.exists("a"),
    "ls": lambda h: list(h.kvs.ls("dir")),
    "version": lambda h: h.kvs.version(fresh=True),
    "wait_version": lambda h: h.kvs.wait_version(7),
    "history": lambda h: list(h.kvs.history("a")),
    "log": lambda h: list(h.kvs.log()),
    "diff": lambda h: list(h.kvs.diff(1, 2)),
    "namespaces.list": lambda h: h.kvs.namespaces.list(),
    "content.load": lambda h: h.content.load("sha256-" + "0" * 64),
    "watch": lambda h: h.kvs.watch("a").update(),
    "eventlog.get": lambda h: h.eventlog.get("a"),
}

DONE = frozenset(
    ("kvs.commit", "kvs.add", "kvs.fence", "exec.run", "event.publish", "roots.create", "roots.lease", "roots.renew")
)
"""Topics after whose answer something has changed: no later error of the same call is definite. (Blobs that were stored
for a commit which did not follow are garbage.)
"""


READ_TOPICS = frozenset(("kvs.get", "kvs.getroot", "kvs.list", "kvs.path"))


def outcome(operation: Callable[[Client], Any], fault: Fault | None) -> tuple[FluxmpiError | None, ScriptedBroker]:
    """Run an operation against a broker with that fault. Return its error, if any, and the broker.

    ``broker.sent`` is the number of requests that the client has queued, whatever arrived.
    """
    broker = ScriptedBroker(fault)
    error: FluxmpiError | None = None
    h = broker.connect()
    try:
        operation(h)
    except FluxmpiError as raised:
        error = raised
    finally:
        broker.sent = h.statistics()["requests"]
        h.close()
        broker.close()
    return error, broker


def refusal(error: FluxmpiError) -> Callable[[Message], list[Message]]:
    status, body = encode_error(error)
    return lambda msg: [Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, status, [], body)]


def undecodable(msg: Message) -> list[Message]:
    """An answer whose body is no such record: a list that is nested too deeply."""
    return [Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, OK, [], b"\x91" * 5000 + b"\xc0")]


def connection_refused(error: FluxmpiError) -> Callable[[Message], list[Message]]:
    status, body = encode_error(error)
    return lambda msg: [Message(RESPONSE, "", LOCAL, ANY, 0, status, [], body)]


CODES = [kind("why") for kind in BY_CODE.values()]
FEW_CODES = [errors.NoSuchKey("why"), errors.TooLarge("why"), errors.Overloaded("why"), errors.ConnectionLost("why")]


def without_an_answer(size: int, requests: int) -> Iterator[tuple[str, Fault]]:
    """Faults after which the client has no answer to a request."""
    for cut in sorted({0, 1, 3, 4, 5, size // 2, size - 1}):
        yield f"closed after {cut} of {size} bytes", Fault(cut=cut)
    half = answered(Message(REQUEST, "roots.list", tag=1))
    for at in range(requests):
        yield f"closed instead of answer {at}", Fault(at=at, raw=b"")
        yield f"half of answer {at}", Fault(at=at, raw=b"\x20\0\0\0" + half[0].body)
        yield f"nonsense instead of answer {at}", Fault(at=at, raw=b"HTTP/1.1 400 Bad Request\r\n\r\n")
        yield f"a frame of 4 GiB instead of answer {at}", Fault(at=at, raw=b"\xff\xff\xff\xff")
        yield f"a frame that does not decode instead of answer {at}", Fault(at=at, raw=b"\x02\0\0\0\xc1\xc1")
        for error in FEW_CODES:
            yield f"{type(error).__name__} for the connection at {at}", Fault(connection_refused(error), at)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_without_an_answer_is_indefinite(name: str) -> None:
    _, whole = outcome(WRITES[name], None)
    requests = min(len(whole.requests), 4)
    reads = sum(1 for _ in takewhile(lambda request: request.topic in READ_TOPICS, whole.requests))
    for what, fault in without_an_answer(whole.received, requests):
        error, broker = outcome(WRITES[name], fault)
        assert broker.failed, what
        assert error is not None, f"{what}: no error"
        if broker.sent > reads:
            assert not error.definite, f"{what}: {type(error).__name__} says that nothing was changed: {error}"
        else:
            assert {read.topic for read in broker.requests} <= READ_TOPICS
    for at in range(requests):
        error, broker = outcome(WRITES[name], Fault(undecodable, at))
        topic = broker.requests[at].topic
        if error is not None and topic not in ("roots.release", "roots.remove"):  # whose answers are not decoded
            assert not error.definite, f"an answer to {topic} that does not decode: {error}"


@pytest.mark.parametrize("name", WRITES)
def test_a_refused_write_is_as_definite_as_the_refusal(name: str) -> None:
    error, whole = outcome(WRITES[name], None)
    done = False
    several = name in ("exec.run", "content.store_all")
    for at, request in enumerate(whole.requests[:4]):
        for refused in CODES if at == 0 else FEW_CODES:
            error, _ = outcome(WRITES[name], Fault(refusal(refused), at))
            if error is None:
                continue  # a value that cannot be mapped is loaded, a program that is not found has a status
            expected = refused.definite and not done and not several
            assert error.definite is expected, f"{type(refused).__name__} for {request.topic}: {error}"
            if not done and not several:
                said = errors.indefinite(refused)
                error, _ = outcome(WRITES[name], Fault(refusal(said), at))
                assert error is not None
                assert not error.definite, f"{type(refused).__name__} for {request.topic}, said to be indefinite"
        done = done or request.topic in DONE


@pytest.mark.parametrize("name", READS)
def test_a_read_ends_with_an_error_of_fluxmpi(name: str) -> None:
    _, whole = outcome(READS[name], None)
    faults = list(without_an_answer(whole.received, min(len(whole.requests), 2)))
    faults += [(f"{error}", Fault(refusal(error))) for error in CODES]
    for what, fault in [*faults, ("an answer that does not decode", Fault(undecodable))]:
        error, broker = outcome(READS[name], fault)
        assert broker.failed, what
        assert error is not None or name in ("exists", "content.load"), f"{what}: no error"


@pytest.mark.parametrize("name", WRITES)
def test_a_write_at_a_closed_handle_sends_nothing_and_says_so(name: str) -> None:
    broker = ScriptedBroker()
    h = broker.connect()
    held = h.kvs, h.event, h.exec, h.content, h.eventlog  # noqa: F841  # made while it is open
    h.close()
    with pytest.raises(ConnectionLost, match="closed") as raised:
        WRITES[name](h)
    broker.close()
    assert raised.value.definite
    assert broker.received == 0


TIMED: dict[str, Callable[[Client, float], Any]] = {
    "commit": lambda h, t: h.kvs.commit({"a": 1}, timeout=t),
    "put": lambda h, t: h.kvs.put("a", 1, timeout=t),
    "put, long": lambda h, t: h.kvs.put("a", BIG, timeout=t),
    "add": lambda h, t: h.kvs.add("a", timeout=t),
    "exchange": lambda h, t: h.kvs.exchange("a", 1, timeout=t),
    "compare_and_swap": lambda h, t: h.kvs.compare_and_swap("a", 1, 2, timeout=t),
    "fence": lambda h, t: h.kvs.fence("f", 2, {"a": 1}, timeout=t),
    "txn": lambda h, t: h.kvs.txn().commit(t),
    "event.publish": lambda h, t: h.event.publish("e", 1, timeout=t),
    "rpc": lambda h, t: h.rpc("x.y", timeout=t),
}


@pytest.mark.parametrize("name", TIMED)
def test_a_write_that_times_out_is_indefinite(name: str) -> None:
    broker = ScriptedBroker(Fault(silent=True))
    with broker.connect() as h, pytest.raises(RequestTimeout) as raised:
        TIMED[name](h, 0.02)
    broker.close()
    assert not raised.value.definite


@pytest.mark.parametrize("name", TIMED)
def test_a_time_limit_holds_for_a_broker_that_does_not_read(name: str) -> None:
    """What could not be sent stays whole: it is sent when the broker reads again."""
    broker = ScriptedBroker()
    with broker.client_of_a_stopped_broker() as h:  # the broker is not started: it reads nothing
        for _ in range(3):
            with pytest.raises(RequestTimeout):
                h.rpc("fill.socket", BIG, timeout=0.01)
        with pytest.raises(RequestTimeout) as raised:
            TIMED[name](h, 0.01)
        assert not raised.value.definite
        broker.start()
        assert h.rpc("x.last") is None
        topics = [request.topic for request in broker.requests]
        assert topics[0] == "fill.socket"
        assert topics[-1] == "x.last"
    broker.close()


def test_what_cannot_be_sent_is_refused_before_anything_is_queued() -> None:
    """A request that the encoder refuses would be lost with all that are queued with it, and their calls would wait for ever."""
    broker = ScriptedBroker()
    with broker.connect() as h:
        for wrong in (
            lambda: h.rpc("x.y", target=1 << 70),
            lambda: h.rpc("x.y", target=-5),
            lambda: h.rpc("x.y", target="a"),  # type: ignore[arg-type]
            lambda: h.rpc("x.\ud800"),
            lambda: h.rpc("é" * (33 << 20)),
            lambda: h.rpc("x.y", object()),
            lambda: h.exec.run(["x"], [0, 99]),
            lambda: h.exec.run(["x"], [0, "a"]),  # type: ignore[list-item]
            lambda: h.kvs.put("a..", object()),
            lambda: h.content.store(bytes(2 << 20)),
        ):
            with h.batch():
                first = h.rpc_async("x.first")
                with pytest.raises(FluxmpiError) as raised:
                    wrong()
            assert raised.value.definite
            assert first.get() is None
        assert {request.topic for request in broker.requests} == {"x.first"}
    broker.close()


def test_a_cancelled_request_has_no_result() -> None:
    broker = ScriptedBroker(Fault(silent=True))
    with broker.connect() as h:
        future = h.rpc_async("x.y")
        future.cancel()
        with pytest.raises(InvalidRequest, match="cancelled") as raised:
            future.get()
        assert not raised.value.definite
    broker.close()


def test_an_answer_that_does_not_decode_is_the_same_error_each_time() -> None:
    broker = ScriptedBroker(Fault(undecodable))
    with broker.connect() as h:
        future = h.kvs.commit_async({"a": 1})
        for _ in range(2):
            with pytest.raises(errors.ProtocolError) as raised:
                future.get()
            assert not raised.value.definite
    broker.close()


def test_the_greeting_fails_before_anything_is_sent() -> None:
    for refused in CODES:
        broker = ScriptedBroker(greeting=connection_refused(refused)(Message(REQUEST, "")))
        with pytest.raises(FluxmpiError) as raised:
            broker.connect()
        broker.close()
        assert raised.value.definite
        assert broker.received == 0


# -------------------------------------------------------------------------------------------------------- interruptions


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_when(condition: Callable[[], Any]) -> threading.Thread:
    """Start a thread that sends this one a Ctrl-C when the condition holds."""

    def run() -> None:
        while not condition():
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_while_waiting_leaves_the_handle_usable() -> None:
    broker = ScriptedBroker(Fault(silent=True))
    with broker.connect() as h:
        future = h.kvs.commit_async({"a": 1})
        thread = interrupt_when(lambda: h.statistics()["receiving"])
        with pytest.raises(KeyboardInterrupt):
            future.get()
        thread.join(10)
        assert h.kvs.put("a", 1).version == 8
        assert not future.ready
        assert not h.closed
    broker.close()


def interrupted_while_sending() -> bool:
    """Interrupt a request that the broker does not read. Return whether that was while it waited, not while it wrote."""
    broker = ScriptedBroker()
    with broker.client_of_a_stopped_broker() as h:
        thread = interrupt_when(broker.has_input)
        with pytest.raises(KeyboardInterrupt):
            h.rpc("fill.socket", bytes(8 << 20))
        thread.join(10)
        waited = not h.closed
        broker.start()
        if waited:
            assert h.kvs.put("a", 1).version == 8
            assert [request.topic for request in broker.requests] == ["fill.socket", "kvs.commit"], "no byte is lost"
        else:
            with pytest.raises(ConnectionLost, match="not sent"):
                h.kvs.put("a", 1)
    broker.close()
    return waited


@pytest.mark.usefixtures("sigint")
def test_ctrl_c_while_the_broker_does_not_read_loses_no_byte() -> None:
    assert any(interrupted_while_sending() for _ in range(200))


def test_an_interruption_in_the_middle_of_an_answer_closes_the_connection() -> None:
    """The rest of what had been read is lost: a later wait would never end."""

    def interrupted(message: Message) -> None:
        raise KeyboardInterrupt

    broker = ScriptedBroker()
    with broker.connect() as h:
        with h.batch():
            h.channel.send("x.first", b"", ANY, bare, interrupted)
            second = h.kvs.commit_async({"a": 1})
        with pytest.raises(KeyboardInterrupt):
            second.get()
        with pytest.raises(ConnectionLost, match="KeyboardInterrupt") as raised:
            second.get()
        assert not raised.value.definite
        with pytest.raises(ConnectionLost, match="not sent") as raised:
            h.kvs.put("a", 1)
        assert raised.value.definite
    broker.close()


# -------------------------------------------------------------------------------------------------------------- threads


def in_thread(action: Callable[[], Any]) -> list[Any]:
    """Run an action in a thread; return what it returned or raised, in a list."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(action())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return out


@pytest.mark.parametrize("name", WRITES | READS)
def test_a_second_thread_is_refused_before_it_sends(name: str) -> None:
    arrived = threading.Event()
    broker = ScriptedBroker(Fault(silent=True))
    broker.on_request = lambda msg: arrived.set()
    h = broker.connect()
    held = h.kvs, h.event, h.exec, h.content, h.eventlog  # noqa: F841
    first: list[Any] = []
    waiting = threading.Thread(target=lambda: first.extend(in_thread(lambda: h.rpc("x.wait"))))
    waiting.start()
    assert arrived.wait(10)
    with pytest.raises(InvalidRequest, match="connect in each thread") as raised:
        (WRITES | READS)[name](h)
    assert raised.value.definite
    assert len(broker.requests) == 1
    h.close()  # wakes the other thread
    waiting.join(10)
    (error,) = first
    assert isinstance(error, ConnectionLost)
    assert not error.definite
    broker.close()


def test_a_result_that_a_second_thread_cannot_wait_for_is_indefinite() -> None:
    broker = ScriptedBroker(Fault(silent=True))
    h = broker.connect()
    commit = h.kvs.commit_async({"a": 1})
    waiting = threading.Thread(target=lambda: in_thread(commit.get))
    waiting.start()
    while not h.statistics()["receiving"]:
        pass
    with pytest.raises(InvalidRequest, match="connect in each thread") as raised:
        commit.get()
    assert not raised.value.definite
    h.close()
    waiting.join(10)
    broker.close()


def test_four_threads_count_what_they_added(tmp_path: Any) -> None:
    """Of 400 additions, 101 returned, 299 raised a definite InvalidRequest, and the counter said 400."""
    added, refused, others = [], [], []
    with running_broker(tmp_path) as broker, broker.connect() as h:
        kvs = h.kvs

        def add() -> None:
            for _ in range(100):
                try:
                    added.append(kvs.add("n"))
                except FluxmpiError as error:
                    (refused if error.definite else others).append(error)

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(added) + len(refused) + len(others) == 400
        assert others == []
        assert kvs.get("n", 0) == len(added) > 0
        assert sorted(added) == list(range(1, len(added) + 1))


def test_a_repeated_get_needs_no_turn(tmp_path: Any) -> None:
    """A read that sends nothing is not refused while another thread waits."""
    with running_broker(tmp_path) as broker, broker.connect() as h:
        h.kvs.put("a", 1)
        assert h.kvs.get("a") == 1
        watch = h.kvs.watch("never")
        watch.update()
        waiting = threading.Thread(target=lambda: in_thread(watch.update))
        waiting.start()
        while not h.statistics()["receiving"]:
            pass
        assert h.kvs.get("a") == 1
        assert h.kvs.get_object("a") == Val("json", b"1")
        h.close()
        waiting.join(10)
        assert not waiting.is_alive()
