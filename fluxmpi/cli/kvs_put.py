"""``fluxmpi kvs put | mkdir | unlink | link | copy | move``: each command is one commit."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click
import msgspec

from fluxmpi.cli.common import (
    NAMESPACE_VARIABLE,
    Command,
    at_option,
    connect,
    error_context,
    kvs_of,
    namespace_option,
    options,
    write_line,
)
from fluxmpi.client.values import JSON, RAW, encode_json
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import SEPARATOR, Val
from fluxmpi.kvs.wire import PRIMARY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs.kvs import Kvs
    from fluxmpi.client.kvs.transaction import Transaction
    from fluxmpi.client.snapshot import Snapshot
    from fluxmpi.client.treeobj import TreeObject

commit_options = options(
    namespace_option,
    click.option("-O", "--treeobj-root", "form", flag_value="treeobj", help="Print the new root as a treeobj."),
    click.option("-s", "--sequence", "form", flag_value="sequence", help="Print the new version."),
    click.option("-b", "--blobref", "form", flag_value="blobref", help="Print the new root's blobref."),
)


def print_commit(snapshot: Snapshot, form: str | None) -> None:
    if form == "sequence":
        write_line(str(snapshot.version))
    elif form == "blobref":
        write_line(snapshot.root)
    elif form == "treeobj":
        from fluxmpi.client.treeobj import to_treeobj
        from fluxmpi.kvs.objects import Dir

        write_line(to_treeobj(Dir(snapshot.ref)))


@click.command(
    cls=Command,
    examples="""
fluxmpi kvs put run.steps=100 run.name=demo
fluxmpi kvs put 'run.config={"dt": 0.1}'
fluxmpi kvs put -r run.mesh=@mesh.bin run.input=@input.txt
fluxmpi kvs put -r run.mesh=- < mesh.bin
fluxmpi kvs put -A run.log="a line"
""",
)
@commit_options
@click.option("-r", "--raw", is_flag=True, help="Store VALUE as bytes, not as JSON. VALUE may be '-' or @FILE.")
@click.option("-t", "--treeobj", is_flag=True, help="VALUE is a treeobj (RFC 11). It may be '-' or @FILE.")
@click.option("-A", "--append", is_flag=True, help="Append VALUE to the existing value.")
@click.option(
    "-S", "--sync", is_flag=True, help="Then save a checkpoint to the instance's file, and return when it is on disk."
)
@click.option("-n", "--no-merge", is_flag=True, hidden=True, help="Accepted for flux-kvs compatibility.")
@click.argument("assignments", metavar="KEY=VALUE...", nargs=-1, required=True)
def put(
    namespace: str | None,
    form: str | None,
    raw: bool,
    treeobj: bool,
    append: bool,
    sync: bool,
    no_merge: bool,
    assignments: tuple[str, ...],
) -> None:
    """Store values, in one commit. Directories above a KEY are made; a value that is in their way is replaced.

    A VALUE that is valid JSON is stored as JSON, any other as a JSON string. Programs read it as a Python value;
    'kvs get' prints it as it was typed.

    With --raw and --treeobj, the VALUE '-' (or '@-') is what stdin has, and @FILE is what FILE has. A VALUE that begins
    with '@' is written with two: '@@home' stores '@home'.

    Exit status: 1 if nothing was committed, or if --sync could not save the checkpoint (the commit stays).
    """
    if treeobj and (raw or append):
        raise click.UsageError("--treeobj cannot be combined with --raw or --append.")
    words = [_split_assignment(assignment) for assignment in assignments]
    pairs = [(key, _source(key, value) if raw or treeobj else value) for key, value in words]
    stdin = [key for key, value in pairs if value is STDIN]
    if len(stdin) > 1:
        raise click.UsageError(f"only one value can be read from stdin, not those of {' and '.join(stdin)}.")
    with connect() as h:
        txn = kvs_of(h, namespace).txn()
        for key, value in pairs:
            with error_context(key):
                if raw and not append and isinstance(value, _File):
                    _put_file(txn, key, value)
                    continue
                data = value.read() if isinstance(value, _File) else os.fsencode(value)
                if treeobj:
                    from fluxmpi.client.treeobj import from_treeobj

                    _put_tree(txn, key, from_treeobj(data.decode("utf-8", "replace")))
                elif append:
                    txn.append(key, data)
                elif raw:
                    txn.put_typed(key, RAW, data)
                else:
                    txn.put_typed(key, *_parse_value(data))
        snapshot = _commit(txn)
        if sync:
            _save_commit(h, snapshot)
        print_commit(snapshot, form)


def _commit(txn: Transaction) -> Snapshot:
    """Commit, as Flux does: a value above a key is replaced by a directory."""
    try:
        return txn.commit()
    except NotADirectory:
        return txn.replacing().commit()


def _put_tree(txn: Transaction, key: str, tree: TreeObject) -> None:
    """Store an object, or a directory with these entries."""
    if isinstance(tree, dict):
        txn.unlink(key)
        txn.mkdir(key)
        for name, entry in tree.items():
            _put_tree(txn, f"{key}{SEPARATOR}{name}", entry)
    elif isinstance(tree, Val):
        txn.put_typed(key, tree.type, tree.data)
    else:
        txn.put_object(key, tree)


def save_checkpoint(h: Handle) -> None:
    """Save a checkpoint to the instance's file, and wait until it is on disk."""
    from fluxmpi.kvs.wire import Progress, Save, Saved

    for _ in h.stream("checkpoint.save", Save(None), target=0, reply=Progress, last=Saved):
        pass


def _save_commit(h: Handle, snapshot: Snapshot) -> None:
    try:
        save_checkpoint(h)
    except FluxmpiError as error:
        error.args = (f"committed as version {snapshot.version}, but not saved to disk: {error.text}",)
        raise


@click.command(cls=Command, examples="fluxmpi kvs sync")
def sync() -> None:
    """Save a checkpoint to the instance's file, and return when it is on disk.

    It has every commit that was answered before, of all namespaces. The file is that of 'fluxmpi start --checkpoint'.

    Exit status: 1 if it could not be saved.
    """
    with connect() as h:
        save_checkpoint(h)


class _File(NamedTuple):
    """What a VALUE names: a file; without a name, stdin."""

    name: str

    def open(self) -> BinaryIO:
        return open(self.name, "rb") if self.name else open(sys.stdin.fileno(), "rb", closefd=False)

    def read(self) -> bytes:
        with self.open() as opened:
            return opened.read()


STDIN = _File("")


def _source(key: str, value: str) -> str | _File:
    """Return what a VALUE stands for: stdin, a file, or itself."""
    if value in ("-", "@-"):
        return STDIN
    if not value.startswith("@"):
        return value
    if value == "@":
        raise click.UsageError(f"'{key}=@' names no file: use {key}=@FILE, or {key}=@@ for the character.")
    return value[1:] if value.startswith("@@") else _File(value[1:])


def _put_file(txn: Transaction, key: str, file: _File) -> None:
    """Store a file or stdin piece by piece, in bounded memory. Nothing is committed before its end."""
    from fluxmpi.cli.progress import show_progress, size_of

    with file.open() as opened, show_progress(key, size_of(opened.fileno())) as report:
        txn.put_file(key, opened, report)


def _split_assignment(assignment: str) -> tuple[str, str]:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise click.UsageError(f"'{assignment}' has no value: use {assignment}=VALUE.")
    return key, value


def _parse_value(data: bytes) -> tuple[str, bytes]:
    """Return the type and bytes to store: valid JSON as it is, other text as a JSON string, other bytes as raw."""
    try:
        msgspec.json.decode(data)
        return JSON, data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return JSON, encode_json(data.decode())
    except (UnicodeDecodeError, InvalidRequest):
        return RAW, data


@click.command(cls=Command, examples="fluxmpi kvs mkdir run.output\nfluxmpi kvs mkdir -s run.input run.output")
@commit_options
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def mkdir(namespace: str | None, form: str | None, keys: tuple[str, ...]) -> None:
    """Create empty directories, and missing directories above them.

    An existing directory is not changed. A value at KEY, or above it, is replaced.
    """
    with connect() as h:
        txn = kvs_of(h, namespace).txn()
        for key in keys:
            txn.mkdir(key, replace=True)
        print_commit(txn.commit(), form)


@click.command(cls=Command, examples="fluxmpi kvs unlink run.steps\nfluxmpi kvs unlink -R run")
@commit_options
@click.option("-R", "--recursive", is_flag=True, help="Remove directories with all keys below them.")
@click.option("-f", "--force", is_flag=True, help="Ignore keys that do not exist.")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def unlink(namespace: str | None, form: str | None, recursive: bool, force: bool, keys: tuple[str, ...]) -> None:
    """Remove values, links (not their targets) and directories.

    Exit status: 1 if a KEY does not exist, or is a directory with keys and -R is not given. Nothing is removed then.
    """
    with connect() as h:
        txn = kvs_of(h, namespace).txn()
        for key in keys:
            with error_context(key):
                if _removable(kvs_of(h, namespace), key, recursive, force):
                    txn.unlink(key)
        print_commit(txn.commit() if len(txn) else kvs_of(h, namespace).snapshot(), form)


def _removable(kvs: Kvs, key: str, recursive: bool, force: bool) -> bool:
    from fluxmpi.kvs.objects import Dir, split_key

    if not split_key(key):
        raise InvalidRequest("the root directory '.' cannot be removed: remove the keys that 'fluxmpi kvs ls' lists")
    try:
        found = kvs.get_object(key)
    except NoSuchKey:
        if force:
            return False
        raise
    if isinstance(found, Dir) and not recursive and any(kvs.ls(key)):
        raise InvalidRequest(f"cannot unlink '{key}': the directory is not empty; -R removes it with all its keys")
    return True


@click.command(
    cls=Command, examples="fluxmpi kvs link run.output.12 run.latest\nfluxmpi kvs link -T archive run.12 run.previous"
)
@commit_options
@click.option("-T", "--target-namespace", metavar="NS", help="The namespace of TARGET.  [default: that of the link]")
@click.argument("target")
@click.argument("linkname")
def link(namespace: str | None, form: str | None, target_namespace: str | None, target: str, linkname: str) -> None:
    """Create LINKNAME as a symbolic link to TARGET, which need not exist. An existing LINKNAME is replaced."""
    with connect() as h:
        txn = kvs_of(h, namespace).txn()
        txn.link(target, linkname, target_namespace=target_namespace)
        print_commit(_commit(txn), form)


copy_options = options(
    click.option(
        "-S",
        "--src-namespace",
        metavar="NS",
        envvar=NAMESPACE_VARIABLE,
        help="The namespace of SOURCE.  [default: primary]",
    ),
    click.option(
        "-D",
        "--dst-namespace",
        metavar="NS",
        envvar=NAMESPACE_VARIABLE,
        help="The namespace of DESTINATION.  [default: primary]",
    ),
    click.argument("source"),
    click.argument("destination"),
)


@click.command(
    cls=Command,
    examples="fluxmpi kvs copy run.config saved.config\nfluxmpi kvs copy -D archive run run\n"
    "fluxmpi kvs copy --at -1h run run",
)
@at_option
@copy_options
def copy(at: str | None, src_namespace: str | None, dst_namespace: str | None, source: str, destination: str) -> None:
    """Copy SOURCE, a value, a link or a whole directory, to DESTINATION.

    Nothing is stored twice: the copy shares its blobs with SOURCE.
    """
    with connect() as h, error_context(source):
        kvs_of(h, dst_namespace).copy(source, destination, at=at, source_namespace=src_namespace or PRIMARY)


@click.command(cls=Command, examples="fluxmpi kvs move run.new run.current\nfluxmpi kvs move -D archive run.12 run.12")
@copy_options
def move(src_namespace: str | None, dst_namespace: str | None, source: str, destination: str) -> None:
    """Copy SOURCE to DESTINATION, then remove SOURCE. Within one namespace both happen in the same version."""
    with connect() as h, error_context(source):
        kvs_of(h, dst_namespace).move(source, destination, source_namespace=src_namespace or PRIMARY)
