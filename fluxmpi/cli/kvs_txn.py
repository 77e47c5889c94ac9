"""``fluxmpi kvs txn``: a transaction from a file or stdin, a line for each guard and operation; and ``kvs add``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fluxmpi.cli.common import Command, connect, namespace_option, write_line
from fluxmpi.cli.kvs_get import in_json
from fluxmpi.client.txn import ABSENT, COMPARISONS
from fluxmpi.client.values import JSON, RAW, encode_json
from fluxmpi.errors import FluxmpiError, InvalidRequest, TooLarge
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef
from fluxmpi.kvs.wire import PRIMARY
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.txn import Result, Transaction

OTHERWISE_STATUS = 3
"""Exit status when the guards did not hold."""

TEXT_MAX = 256 << 20
"""Characters of a transaction that are read. What it makes has its own limit."""

_scan = json.JSONDecoder().raw_decode


@click.command(
    cls=Command,
    examples="""
printf 'when run.state == "ready"\\nput run.state="busy"\\nadd run.starts\\n' | fluxmpi kvs txn
printf 'when lock absent\\nput lock="me"\\n' | fluxmpi kvs txn || echo 'somebody has it'
fluxmpi kvs txn steps.txt
echo '{"when": [["n", "<", 10]], "then": [["add", "n", 1]]}' | fluxmpi kvs txn --json
""",
)
@namespace_option
@click.option("-j", "--json", "as_json", is_flag=True, help="Read the transaction as JSON, and print JSON.")
@click.option("--durable", is_flag=True, help="Return when it is on stable storage: refused, there is no journal.")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
def txn(namespace: str | None, as_json: bool, durable: bool, file: Any) -> None:
    """Do all of a transaction, read from FILE or stdin, or nothing, as one version.

    Guards first; if all hold, the operations are done, else those after 'else'. Exit status: 0, or 3 if the guards did not
    hold. A line is one of:

    \b
    when KEY ==|!=|<|<=|>|>= VALUE    put KEY=VALUE       add KEY [N] [limit LIMIT]
    when KEY version <=|… VERSION     append KEY=TEXT     exchange KEY VALUE
    when KEY exists|absent            unlink KEY          swap KEY OLD|absent NEW|absent
    else                              mkdir KEY           publish TOPIC [VALUE]
    # a comment                       link TARGET KEY

    VALUE is JSON, or else a text. add, exchange and swap print a line each: the integer, and 'limit' if it was not added to;
    what was there, or 'absent'; 'true', or 'false' and what was there. As JSON: {"when": [["KEY", "==", VALUE], …], "then":
    [["put", "KEY", VALUE], ["add", "KEY", 1, LIMIT], …], "else": […], "publish": [["TOPIC", VALUE], …]}.
    """
    with connect() as handle:
        made = handle.kvs.txn(namespace=namespace or PRIMARY, durable=durable)
        try:
            text = file.read(TEXT_MAX + 1)
        except UnicodeDecodeError:
            raise InvalidRequest("the input is no UTF-8: a transaction is a text, and its values too") from None
        if len(text) > TEXT_MAX:
            raise TooLarge(f"the text of a transaction has {TEXT_MAX:,} characters at most: split it")
        (_read_json if as_json else _read_lines)(made, text)
        made.commit()
        told = [_told(result) for result in made.results]
        if as_json:
            results = [_plain(result) for result in made.results]
            write_line(encode_json({"succeeded": made.succeeded, "version": made.version, "results": results}).decode())
        else:
            for line in told:
                if line is not None:
                    write_line(line)
        if not made.succeeded:
            sys.exit(OTHERWISE_STATUS)


class _AddCommand(Command):
    """A negative amount looks like an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            amounts = [at for at, arg in enumerate(given) if arg.startswith("-") and arg[1:].isdecimal()]
            if not amounts or not amounts[-1]:
                raise
            at = amounts[-1]
            hint = " ".join([ctx.command_path, *given[: at - 1], *given[at + 1 :], "--", given[at - 1], given[at]])
            raise click.UsageError(f"{given[at]} looks like an option: write {hint}", ctx) from None


@click.command(
    cls=_AddCommand,
    examples="""
fluxmpi kvs add run.count
fluxmpi kvs add run.count -- -5
fluxmpi kvs add --limit 100 run.tickets
""",
)
@namespace_option
@click.option("--limit", type=int, help="Only if it is less than this; else exit status 3.")
@click.argument("key")
@click.argument("amount", type=int, default=1)
def add(namespace: str | None, limit: int | None, key: str, amount: int) -> None:
    """Add AMOUNT (1) to an integer, which starts at 0, and print what it is then."""
    with connect() as handle:
        number = handle.kvs.add(key, amount, limit=limit, namespace=namespace or PRIMARY)
    if number is None:
        sys.exit(OTHERWISE_STATUS)
    write_line(str(number))


# --------------------------------------------------------------------------------------------------------------- lines


def _read_lines(txn: Transaction, text: str) -> None:
    branches = text_branches(text)
    for number, word, rest in branches[0]:
        _line(txn, number, word, rest)
    if len(branches) > 1:
        with txn.otherwise():
            for number, word, rest in branches[1]:
                _line(txn, number, word, rest)


def text_branches(text: str) -> list[list[tuple[int, str, str]]]:
    """Number, first word and rest of each line, before and after 'else'."""
    branches: list[list[tuple[int, str, str]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if line == "else":
            if len(branches) > 1:
                raise InvalidRequest(f"line {number}: a second 'else'")
            branches.append([])
        else:
            branches[-1].append((number, word, rest.strip()))
    return branches


def _line(txn: Transaction, number: int, word: str, rest: str) -> None:
    read = _WORDS.get(word)
    try:
        if read is None:
            raise InvalidRequest(f"'{word}' is none of {', '.join(_WORDS)}, else")
        read(txn, rest)
    except RecursionError:
        raise InvalidRequest(f"line {number}: the value is nested too deeply") from None
    except FluxmpiError as error:
        raise type(error)(f"line {number}: {error.text}") from None


def _word(text: str, what: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    if not word:
        raise InvalidRequest(f"{what} is missing")
    return word, rest.strip()


def _value(text: str, what: str) -> tuple[Any, str]:
    """The JSON, or the word, that the text begins with; and the rest."""
    if not text:
        raise InvalidRequest(f"{what} is missing: JSON, or a word")
    try:
        value, end = _scan(text)
        if end == len(text) or text[end] == " ":
            return value, text[end:].strip()
    except ValueError:
        pass
    return _word(text, what)


def _whole(text: str) -> Any:
    """JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _done(rest: str) -> None:
    if rest:
        raise InvalidRequest(f"'{rest}' is too much")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"'{text}' is no integer") from None


def _version(number: Any) -> Any:
    """What else is wrong with it, the transaction says."""
    if isinstance(number, int) and abs(number) > INTEGER_MAX:
        raise InvalidRequest(f"'{number}': a version has 64 bits at most")
    return number


def _when(txn: Transaction, rest: str) -> None:
    key, rest = _word(rest, "a key")
    how, rest = _word(rest, f"{' '.join(COMPARISONS)}, version, exists or absent")
    if how in ("exists", "absent"):
        _done(rest)
        (txn.when_exists if how == "exists" else txn.when_absent)(key)
    elif how == "version":
        compare, rest = _word(rest, f"one of {' '.join(COMPARISONS)}")
        txn.when_version(key, compare, _version(_integer(rest)))
    elif how not in COMPARISONS:
        raise InvalidRequest(
            f"'{how}' compares nothing: a guard has one of {' '.join(COMPARISONS)}, version, exists or absent"
        )
    else:
        if not rest:
            raise InvalidRequest("a value is missing: JSON, or a text")
        txn.when(key, how, _whole(rest))


def _assigned(read: Callable[[Transaction, str, str], None]) -> Callable[[Transaction, str], None]:
    def line(txn: Transaction, rest: str) -> None:
        key, equals, value = rest.partition("=")
        if not equals:
            raise InvalidRequest(f"'{rest}' must read KEY=VALUE")
        read(txn, key.strip(), value.strip())

    return line


def _add(txn: Transaction, rest: str) -> None:
    key, rest = _word(rest, "a key")
    amount, limit = 1, None
    if rest and not rest.startswith("limit"):
        number, rest = _word(rest, "a number")
        amount = _integer(number)
    if rest:
        word, rest = _word(rest, "limit")
        if word != "limit":
            raise InvalidRequest(f"'{word}' is too much: add KEY [N] [limit LIMIT]")
        limit = _integer(rest)
    txn.add(key, amount, limit=limit)


def _exchange(txn: Transaction, rest: str) -> None:
    key, rest = _word(rest, "a key")
    if not rest:
        raise InvalidRequest("a value is missing: JSON, or a text")
    txn.exchange(key, _whole(rest))


def _swap(txn: Transaction, rest: str) -> None:
    key, rest = _word(rest, "a key")
    sides = []
    for what in ("the old value", "the new value"):
        absent = rest.split(" ", 1)[0] == "absent"
        value, rest = _value(rest, what)
        sides.append(ABSENT if absent else value)
    _done(rest)
    txn.swap(key, *sides)


def _link(txn: Transaction, rest: str) -> None:
    target, rest = _word(rest, "a target")
    key, rest = _word(rest, "a key")
    _done(rest)
    txn.link(target, key)


def _publish(txn: Transaction, rest: str) -> None:
    topic, rest = _word(rest, "a topic")
    txn.publish(topic, _whole(rest) if rest else b"")


_WORDS: dict[str, Callable[[Transaction, str], None]] = {
    "when": _when,
    "put": _assigned(lambda txn, key, value: txn.put(key, _whole(value))),
    "append": _assigned(lambda txn, key, value: txn.append(key, value)),
    "unlink": lambda txn, rest: txn.unlink(rest),
    "mkdir": lambda txn, rest: txn.mkdir(rest),
    "link": _link,
    "add": _add,
    "exchange": _exchange,
    "swap": _swap,
    "publish": _publish,
}


# ---------------------------------------------------------------------------------------------------------------- JSON

_OPERATIONS = ("put", "append", "unlink", "mkdir", "link", "add", "exchange", "swap")


def _read_json(txn: Transaction, text: str) -> None:
    try:
        asked = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"this is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the transaction is nested too deeply") from None
    known = "when", "then", "else", "publish"
    if not isinstance(asked, dict) or set(asked) - set(known):
        raise InvalidRequest(f"a transaction is a JSON object with some of {', '.join(known)}")
    for guard in _lists(asked, "when"):
        match guard:
            case [str(key), "exists"]:
                txn.when_exists(key)
            case [str(key), "absent"]:
                txn.when_absent(key)
            case [str(key), "version", str(compare), version]:
                txn.when_version(key, compare, _version(version))
            case [str(key), str(compare), value]:
                txn.when(key, compare, value)
            case _:
                raise InvalidRequest(f'a guard reads ["KEY", "==", VALUE], and this is {json.dumps(guard)}')
    for op in _lists(asked, "then"):
        _operation(txn, op)
    for event in _lists(asked, "publish"):
        match event:
            case [str(topic)]:
                txn.publish(topic)
            case [str(topic), value]:
                txn.publish(topic, value)
            case _:
                raise InvalidRequest(f'an event reads ["TOPIC", VALUE], and this is {json.dumps(event)}')
    if "else" in asked:
        with txn.otherwise():
            for op in _lists(asked, "else"):
                _operation(txn, op)


def _lists(asked: dict[str, Any], name: str) -> list[list[Any]]:
    found = asked.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, list) for one in found):
        raise InvalidRequest(f'"{name}" is a list of lists')
    return found


def _operation(txn: Transaction, op: list[Any]) -> None:
    match op:
        case ["add", str(key), amount, limit]:
            txn.add(key, amount, limit=limit)
        case ["add", str(key), *rest]:
            txn.add(key, *rest[:1])
        case [("put" | "exchange") as name, str(key), value]:
            getattr(txn, name)(key, value)
        case ["swap", str(key), old, new]:
            txn.swap(key, old, new)
        case [("append" | "link") as name, str(first), str(second)]:
            getattr(txn, name)(first, second)
        case [("unlink" | "mkdir") as name, str(key)]:
            getattr(txn, name)(key)
        case _:
            raise InvalidRequest(
                f"{json.dumps(op)} is no operation: {', '.join(_OPERATIONS)}, each with its key and values"
            )


# -------------------------------------------------------------------------------------------------------------- results


def _text_of(result: Result) -> bytes:
    """What was there, for a person; bytes as they are, as 'kvs get' writes them."""
    match result.object:
        case None:
            return b"absent"
        case Dir():
            return b"directory"
        case Link(target=target):
            return f"link {target}".encode()
        case Val(type=type_) | ValRef(type=type_):
            value = result.value
            if type_ == RAW:
                return bytes(value)
            text = value if isinstance(value, str) else encode_json(value).decode() if type_ == JSON else str(value)
            return text.encode()
    raise AssertionError(result.object)


def _told(result: Result) -> bytes | None:
    """The line of one operation, or None if it has nothing to tell."""
    kind = result.kind
    if kind == "add":
        return (f"{result.number}" if result else f"{result.number} limit").encode()
    if kind == "exchange":
        return _text_of(result)
    if kind == "swap":
        return b"true" if result else b"false " + _text_of(result)
    return None


def _plain(result: Result) -> dict[str, Any] | None:
    """The same as JSON."""
    if result.kind not in ("add", "exchange", "swap"):
        return None
    told: dict[str, Any] = {"done": result.done}
    if result.kind == "add":
        told["number"] = result.number
    elif isinstance(result.object, Val | ValRef):
        told["value"] = in_json(result.object.type, result.value)
    else:
        told["value"] = None
        told["found"] = result.found
    return told
