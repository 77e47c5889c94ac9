"""Routing of a turn's output: one batch per neighbour and client, drivers in order, and the loop's own messages."""

from __future__ import annotations

import pytest

from fluxmpi.broker.outbox import Outgoing, sort_outgoing
from fluxmpi.broker.wire import Shutdown
from fluxmpi.message import CLIENT_FIRST, DISK, LAUNCHER, LOOP, PAGE, REQUEST, Message, control


def test_each_neighbour_and_client_gets_one_batch_in_the_order_of_the_messages():
    messages = [
        Message(REQUEST, f"t.{n}", hop)
        for n, hop in enumerate([3, CLIENT_FIRST, 0, 3, CLIENT_FIRST - 1, CLIENT_FIRST, 3])
    ]
    outgoing = sort_outgoing(messages)
    assert outgoing.peers == {3: [messages[0], messages[3], messages[6]], 0: [messages[2]]}
    assert outgoing.clients == {CLIENT_FIRST: [messages[1], messages[5]], CLIENT_FIRST - 1: [messages[4]]}
    assert (outgoing.drivers, outgoing.hang_up, outgoing.exit) == ([], [], None)


def test_drivers_get_their_messages_in_order():
    messages = [
        control("page.root", None, PAGE),
        control("disk.refs", None, DISK),
        control("page.removed", None, PAGE),
    ]
    messages.append(control("launcher.spawn", None, LAUNCHER))
    assert sort_outgoing(messages).drivers == messages


def test_the_loop_hangs_up_and_exits():
    out = [
        control("loop.hang-up", 5, LOOP),
        control("loop.hang-up", 6, LOOP),
        control("loop.exit", Shutdown(3, "x"), LOOP),
    ]
    outgoing = sort_outgoing(out)
    assert (outgoing.hang_up, outgoing.exit) == ([5, 6], Shutdown(3, "x"))


def test_an_unknown_message_to_the_loop_is_a_broken_invariant():
    with pytest.raises(AssertionError, match=r"loop\.sleep"):
        sort_outgoing([control("loop.sleep", None, LOOP)])


def test_no_messages_are_no_output():
    assert sort_outgoing([]) == Outgoing()
    first, second = sort_outgoing([]), sort_outgoing([])
    assert first.peers is not second.peers
