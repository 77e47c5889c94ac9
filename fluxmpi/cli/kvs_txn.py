"""``fluxmpi kvs txn``: apply a transaction from a file or stdin, one guard or operation per line; and ``kvs add``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fluxmpi.cli.common import Command, connect, kvs_of, namespace_option, write_line
from fluxmpi.cli.render import decoded_json
from fluxmpi.client.kvs.result import ABSENT
from fluxmpi.client.kvs.transaction import COMPARISONS
from fluxmpi.client.values import JSON, RAW, encode_json
from fluxmpi.errors import FluxmpiError, InvalidRequest, TooLarge
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.kvs.result import Result
    from fluxmpi.client.kvs.transaction import Transaction

GUARDS_FAILED_STATUS = 3
"""Exit status when a guard did not hold, or ``add --limit`` did not add."""

TEXT_CHARS_MAX = 256 << 20
"""Characters of a transaction that are read. The transaction itself has its own limit (TooLarge)."""

_scan = json.JSONDecoder().raw_decode


@click.command(
    cls=Command,
    examples="""
printf 'when run.state == "ready"\\nput run.state="busy"\\nadd run.starts\\n' | fluxmpi kvs txn
printf 'when lock absent\\nput lock="me"\\n' | fluxmpi kvs txn || echo 'already locked'
fluxmpi kvs txn steps.txt
echo '{"when": [["n", "<", 10]], "then": [["add", "n", 1]]}' | fluxmpi kvs txn --json
""",
)
@namespace_option
@click.option("-j", "--json", "as_json", is_flag=True, help="Read the transaction as JSON, and print JSON.")
@click.option("--durable", is_flag=True, help="Not supported: refused, since there is no journal.")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
def txn(namespace: str | None, as_json: bool, durable: bool, file: Any) -> None:
    """Apply a transaction, read from FILE or stdin, atomically: all of it in one version, or nothing.

    If all guards ('when') hold, the operations are applied, otherwise those after 'else'. One line each:

    \b
    when KEY ==|!=|<|<=|>|>= VALUE    put KEY=VALUE       add KEY [N] [limit LIMIT]
    when KEY version <=|… VERSION     append KEY=TEXT     exchange KEY VALUE
    when KEY exists|absent            unlink KEY          swap KEY OLD|absent NEW|absent
    else                              mkdir KEY           publish TOPIC [VALUE]
    # a comment                       link TARGET KEY

    VALUE is JSON; any other text is a string. Three operations print a line each:

    \b
    add        the new integer, or the old one and 'limit' if the limit prevented the addition
    exchange   the previous value, or 'absent'
    swap       'true', or 'false' and the value found

    \b
    With --json, FILE is one object:
      {"when": [["KEY", "==", VALUE], …],
       "then": [["put", "KEY", VALUE], ["add", "KEY", 1, LIMIT], …],
       "else": […], "publish": [["TOPIC", VALUE], …]}

    Exit status: 0 if the guards held, 3 if a guard did not hold (the operations after 'else' were applied), 1 if
    nothing was applied.
    """
    with connect() as handle:
        transaction = kvs_of(handle, namespace).txn(durable=durable)
        try:
            text = file.read(TEXT_CHARS_MAX + 1)
        except UnicodeDecodeError:
            raise InvalidRequest("the input is not UTF-8: a transaction is text, and so are its values") from None
        if len(text) > TEXT_CHARS_MAX:
            raise TooLarge(f"the transaction has more than {TEXT_CHARS_MAX:,} characters: split it")
        (_read_json if as_json else _read_lines)(transaction, text)
        transaction.commit()
        lines = [_result_line(result) for result in transaction.results]
        if as_json:
            results = [_result_json(result) for result in transaction.results]
            write_line(
                encode_json(
                    {"succeeded": transaction.succeeded, "version": transaction.version, "results": results}
                ).decode()
            )
        else:
            for line in lines:
                if line is not None:
                    write_line(line)
        if not transaction.succeeded:
            sys.exit(GUARDS_FAILED_STATUS)


class _AddCommand(Command):
    """Suggests ``--`` when a negative amount was parsed as an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption:
            amounts = [index for index, arg in enumerate(given) if arg.startswith("-") and arg[1:].isdecimal()]
            if not amounts or not amounts[-1]:
                raise
            index = amounts[-1]
            key, amount = given[index - 1 : index + 1]
            hint = " ".join([ctx.command_path, *given[: index - 1], *given[index + 1 :], "--", key, amount])
            raise click.UsageError(f"{amount} looks like an option: use {hint}", ctx) from None


@click.command(
    cls=_AddCommand,
    examples="""
fluxmpi kvs add run.count
fluxmpi kvs add run.count -- -5
fluxmpi kvs add --limit 100 run.tickets
""",
)
@namespace_option
@click.option("--limit", type=int, metavar="LIMIT", help="Add only if the integer is less than LIMIT.")
@click.argument("key")
@click.argument("amount", type=int, default=1)
def add(namespace: str | None, limit: int | None, key: str, amount: int) -> None:
    """Add AMOUNT, by default 1, to the integer at KEY, and print the sum.

    A KEY that does not exist counts as 0.

    Exit status: 3 if --limit prevented the addition; nothing is printed then.
    """
    with connect() as handle:
        number = kvs_of(handle, namespace).add(key, amount, limit=limit)
    if number is None:
        sys.exit(GUARDS_FAILED_STATUS)
    write_line(str(number))


# --------------------------------------------------------------------------------------------------------------- lines


def _read_lines(txn: Transaction, text: str) -> None:
    branches = split_branches(text)
    for number, word, rest in branches[0]:
        _line(txn, number, word, rest)
    if len(branches) > 1:
        with txn.otherwise():
            for number, word, rest in branches[1]:
                _line(txn, number, word, rest)


def split_branches(text: str) -> list[list[tuple[int, str, str]]]:
    """Return (line number, first word, rest) of each line, in one list before 'else' and one after it."""
    branches: list[list[tuple[int, str, str]]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if line == "else":
            if len(branches) > 1:
                raise InvalidRequest(f"line {number}: 'else' may occur only once")
            branches.append([])
        else:
            branches[-1].append((number, word, rest.strip()))
    return branches


def _line(txn: Transaction, number: int, word: str, rest: str) -> None:
    parse = _STATEMENTS.get(word)
    try:
        if parse is None:
            raise InvalidRequest(f"unknown statement '{word}': use one of {', '.join(_STATEMENTS)}, else")
        parse(txn, rest)
    except RecursionError:
        raise InvalidRequest(f"line {number}: the value is nested too deeply") from None
    except FluxmpiError as error:
        raise type(error)(f"line {number}: {error.text}") from None


def _next_word(text: str, what: str) -> tuple[str, str]:
    word, _, rest = text.partition(" ")
    if not word:
        raise InvalidRequest(f"{what} is missing")
    return word, rest.strip()


def _next_value(text: str, what: str) -> tuple[Any, str]:
    """Split off the JSON value, or else the word, at the start of the text. Return it and the rest."""
    if not text:
        raise InvalidRequest(f"{what} is missing: use JSON or a word")
    try:
        value, end = _scan(text)
        if end == len(text) or text[end] == " ":
            return value, text[end:].strip()
    except ValueError:
        pass
    return _next_word(text, what)


def _json_or_text(text: str) -> Any:
    """Return the text parsed as JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _expect_end(rest: str) -> None:
    if rest:
        raise InvalidRequest(f"unexpected '{rest}' at the end of the line")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"'{text}' is not an integer") from None


def _version(number: Any) -> Any:
    """Check the range of a version. Other errors are found by the transaction."""
    if isinstance(number, int) and abs(number) > INTEGER_MAX:
        raise InvalidRequest(f"invalid version '{number}': versions are 64-bit integers")
    return number


def _when(txn: Transaction, rest: str) -> None:
    key, rest = _next_word(rest, "a key")
    how, rest = _next_word(rest, f"{' '.join(COMPARISONS)}, version, exists or absent")
    if how in ("exists", "absent"):
        _expect_end(rest)
        (txn.when_exists if how == "exists" else txn.when_absent)(key)
    elif how == "version":
        compare, rest = _next_word(rest, f"one of {' '.join(COMPARISONS)}")
        txn.when_version(key, compare, _version(_integer(rest)))
    elif how not in COMPARISONS:
        raise InvalidRequest(
            f"unknown comparison '{how}': use one of {' '.join(COMPARISONS)}, version, exists or absent"
        )
    else:
        if not rest:
            raise InvalidRequest("a value is missing: use JSON or text")
        txn.when(key, how, _json_or_text(rest))


def _key_value(read: Callable[[Transaction, str, str], None]) -> Callable[[Transaction, str], None]:
    def line(txn: Transaction, rest: str) -> None:
        key, equals, value = rest.partition("=")
        if not equals:
            raise InvalidRequest(f"invalid assignment '{rest}': use KEY=VALUE")
        read(txn, key.strip(), value.strip())

    return line


def _add(txn: Transaction, rest: str) -> None:
    key, rest = _next_word(rest, "a key")
    amount, limit = 1, None
    if rest and not rest.startswith("limit"):
        number, rest = _next_word(rest, "a number")
        amount = _integer(number)
    if rest:
        word, rest = _next_word(rest, "limit")
        if word != "limit":
            raise InvalidRequest(f"unexpected '{word}': use add KEY [N] [limit LIMIT]")
        limit = _integer(rest)
    txn.add(key, amount, limit=limit)


def _exchange(txn: Transaction, rest: str) -> None:
    key, rest = _next_word(rest, "a key")
    if not rest:
        raise InvalidRequest("a value is missing: use JSON or text")
    txn.exchange(key, _json_or_text(rest))


def _swap(txn: Transaction, rest: str) -> None:
    key, rest = _next_word(rest, "a key")
    sides = []
    for what in ("the old value", "the new value"):
        absent = rest.split(" ", 1)[0] == "absent"
        value, rest = _next_value(rest, what)
        sides.append(ABSENT if absent else value)
    _expect_end(rest)
    txn.compare_and_swap(key, *sides)


def _link(txn: Transaction, rest: str) -> None:
    target, rest = _next_word(rest, "a target")
    key, rest = _next_word(rest, "a key")
    _expect_end(rest)
    txn.link(target, key)


def _publish(txn: Transaction, rest: str) -> None:
    topic, rest = _next_word(rest, "a topic")
    txn.publish(topic, _json_or_text(rest) if rest else b"")


_STATEMENTS: dict[str, Callable[[Transaction, str], None]] = {
    "when": _when,
    "put": _key_value(lambda txn, key, value: txn.put(key, _json_or_text(value))),
    "append": _key_value(lambda txn, key, value: txn.append(key, value)),
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
        raise InvalidRequest(f"the input is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the transaction is nested too deeply") from None
    known = "when", "then", "else", "publish"
    if not isinstance(asked, dict) or set(asked) - set(known):
        raise InvalidRequest(f"a transaction is a JSON object with some of {', '.join(known)}")
    for guard in _list_of_lists(asked, "when"):
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
                raise InvalidRequest(f'invalid guard {json.dumps(guard)}: use ["KEY", "==", VALUE]')
    for op in _list_of_lists(asked, "then"):
        _operation(txn, op)
    for event in _list_of_lists(asked, "publish"):
        match event:
            case [str(topic)]:
                txn.publish(topic)
            case [str(topic), value]:
                txn.publish(topic, value)
            case _:
                raise InvalidRequest(f'invalid event {json.dumps(event)}: use ["TOPIC", VALUE]')
    if "else" in asked:
        with txn.otherwise():
            for op in _list_of_lists(asked, "else"):
                _operation(txn, op)


def _list_of_lists(asked: dict[str, Any], name: str) -> list[list[Any]]:
    found = asked.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, list) for one in found):
        raise InvalidRequest(f'"{name}" must be a list of lists')
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
            txn.compare_and_swap(key, old, new)
        case [("append" | "link") as name, str(first), str(second)]:
            getattr(txn, name)(first, second)
        case [("unlink" | "mkdir") as name, str(key)]:
            getattr(txn, name)(key)
        case _:
            raise InvalidRequest(
                f"invalid operation {json.dumps(op)}: use one of {', '.join(_OPERATIONS)}, with its key and values"
            )


# -------------------------------------------------------------------------------------------------------------- results


def _text_of(result: Result) -> bytes:
    """Return the value that an operation found, as 'kvs get' prints it; bytes are unchanged."""
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


def _result_line(result: Result) -> bytes | None:
    """Return the output line of one operation, or None if it prints none."""
    kind = result.kind
    if kind == "add":
        return (f"{result.number}" if result else f"{result.number} limit").encode()
    if kind == "exchange":
        return _text_of(result)
    if kind == "swap":
        return b"true" if result else b"false " + _text_of(result)
    return None


def _result_json(result: Result) -> dict[str, Any] | None:
    """Return the result of one operation as JSON data."""
    if result.kind not in ("add", "exchange", "swap"):
        return None
    line: dict[str, Any] = {"done": result.done}
    if result.kind == "add":
        line["number"] = result.number
    elif isinstance(result.object, Val | ValRef):
        line["value"] = decoded_json(result.object.type, result.value)
    else:
        line["value"] = None
        line["found"] = result.found
    return line
