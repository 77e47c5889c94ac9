"""``fluxmpi kvs put | mkdir | unlink | link | copy | move``: each makes one commit of all that it is asked for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from fluxmpi.cli.common import NAMESPACE_VARIABLE, Command, about, connect, namespace_option, options, write_line
from fluxmpi.cli.kvs_get import at_option
from fluxmpi.client.values import JSON, RAW, encode_json
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchKey
from fluxmpi.kvs.wire import PRIMARY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.snapshot import Snapshot
    from fluxmpi.client.txn import Transaction

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
fluxmpi kvs put -r run.mesh=- < mesh.bin
fluxmpi kvs put -A run.log="a line"
""",
)
@commit_options
@click.option("-r", "--raw", is_flag=True, help="Store the bytes as they are; the value '-' is read from stdin.")
@click.option("-t", "--treeobj", is_flag=True, help="Store a treeobj; the value '-' is read from stdin.")
@click.option("-A", "--append", is_flag=True, help="Add to the end of the value instead.")
@click.option(
    "-S", "--sync", is_flag=True, help="Then save a checkpoint, to the instance's file; return when it is on disk."
)
@click.option(
    "-n", "--no-merge", is_flag=True, hidden=True, help="For flux-kvs's scripts; two commits to a key never merge."
)
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
    """Store values under keys, in one commit.

    A VALUE that is JSON is stored as JSON, any other as a JSON string; programs read it as the Python value, and
    'kvs get' prints it as it was typed.
    """
    if treeobj and (raw or append):
        raise click.UsageError("--treeobj goes with neither --raw nor --append.")
    pairs = [_split(assignment) for assignment in assignments]
    stdin = [key for key, value in pairs if value == "-" and (raw or treeobj)]
    if len(stdin) > 1:
        raise click.UsageError(f"stdin can be read for one key only, not for {' and '.join(stdin)}.")
    with connect() as h:
        txn = h.kvs.txn(namespace=namespace or PRIMARY)
        for key, text in pairs:
            with about(key):
                if raw and key in stdin and not append:
                    _put_stdin(txn, key)
                    continue
                data = sys.stdin.buffer.read() if key in stdin else os.fsencode(text)
                if treeobj:
                    from fluxmpi.client.treeobj import from_treeobj

                    txn.put_object(key, from_treeobj(data.decode("utf-8", "replace")))
                elif append:
                    txn.append(key, data)
                elif raw:
                    txn.put_typed(key, RAW, data)
                else:
                    txn.put_typed(key, *_typed(data))
        snapshot = txn.commit()
        if sync:
            _save_checkpoint(h, snapshot)
        print_commit(snapshot, form)


def _save_checkpoint(h: Handle, snapshot: Snapshot) -> None:
    from fluxmpi.kvs.wire import Progress, Save, Saved

    try:
        for _ in h.stream("checkpoint.save", Save(None), target=0, reply=Progress, last=Saved):
            pass
    except FluxmpiError as error:
        error.args = (f"committed as version {snapshot.version}, but not saved to disk: {error.text}",)
        raise


def _put_stdin(txn: Transaction, key: str) -> None:
    """Piece by piece, however long it is. Nothing is committed before its end: who is interrupted leaves the key as it was."""
    from fluxmpi.cli.progress import progress, size_of

    with progress(key, size_of(sys.stdin.fileno())) as tell:
        txn.put_file(key, sys.stdin.buffer, tell)


def _split(assignment: str) -> tuple[str, str]:
    key, equals, value = assignment.partition("=")
    if not equals:
        raise click.UsageError(f"'{assignment}' has no value: write {assignment}=VALUE.")
    return key, value


def _typed(data: bytes) -> tuple[str, bytes]:
    """What a person means by a word: JSON as it stands if it is that, else a str; bytes if it is not even text."""
    try:
        msgspec.json.decode(data)
        return JSON, data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return JSON, encode_json(data.decode())
    except (UnicodeDecodeError, InvalidRequest):
        return RAW, data


@click.command(cls=Command, examples="fluxmpi kvs mkdir run.output")
@commit_options
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def mkdir(namespace: str | None, form: str | None, keys: tuple[str, ...]) -> None:
    """Make empty directories, and those above them. A directory that exists stays as it is."""
    with connect() as h, h.kvs.txn(namespace=namespace or PRIMARY) as txn:
        for key in keys:
            txn.mkdir(key)
        print_commit(txn.commit(), form)


@click.command(cls=Command, examples="fluxmpi kvs unlink run.steps\nfluxmpi kvs unlink -R run")
@commit_options
@click.option("-R", "--recursive", is_flag=True, help="Remove directories that are not empty, too.")
@click.option("-f", "--force", is_flag=True, help="A key that does not exist is no error.")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def unlink(namespace: str | None, form: str | None, recursive: bool, force: bool, keys: tuple[str, ...]) -> None:
    """Remove values, links (not what they point to) and directories."""
    with connect() as h:
        txn = h.kvs.txn(namespace=namespace or PRIMARY)
        for key in keys:
            with about(key):
                if _removable(h, key, namespace, recursive, force):
                    txn.unlink(key)
        print_commit(txn.commit() if len(txn) else h.kvs.snapshot(namespace or PRIMARY), form)


def _removable(h: Handle, key: str, namespace: str | None, recursive: bool, force: bool) -> bool:
    from fluxmpi.kvs.objects import ROOT_KEY, Dir

    if key == ROOT_KEY:
        raise InvalidRequest("the root directory '.' cannot be removed: name what is in it, as 'kvs ls' lists it")
    try:
        found = h.kvs.get_object(key, namespace=namespace)
    except NoSuchKey:
        if force:
            return False
        raise
    if isinstance(found, Dir) and not recursive and any(h.kvs.ls(key, namespace=namespace)):
        raise InvalidRequest(f"cannot unlink '{key}': the directory is not empty; -R removes it with all below")
    return True


@click.command(cls=Command, examples="fluxmpi kvs link run.output.12 run.latest")
@commit_options
@click.option("-T", "--target-namespace", metavar="NS", help="The namespace that TARGET is in.")
@click.argument("target")
@click.argument("linkname")
def link(namespace: str | None, form: str | None, target_namespace: str | None, target: str, linkname: str) -> None:
    """Make LINKNAME a symbolic link to TARGET, which need not exist. What LINKNAME was is replaced."""
    with connect() as h:
        snapshot = h.kvs.link(target, linkname, target_namespace=target_namespace, namespace=namespace or PRIMARY)
        print_commit(snapshot, form)


place_options = options(
    click.option(
        "-S", "--src-namespace", metavar="NS", envvar=NAMESPACE_VARIABLE, help="The namespace that SOURCE is in."
    ),
    click.option(
        "-D", "--dst-namespace", metavar="NS", envvar=NAMESPACE_VARIABLE, help="The namespace that DESTINATION is in."
    ),
    click.argument("source"),
    click.argument("destination"),
)


@click.command(
    cls=Command,
    examples="fluxmpi kvs copy run.config saved.config\nfluxmpi kvs copy -D archive run run\nfluxmpi kvs copy --at -1h run run",
)
@at_option
@place_options
def copy(at: str | None, src_namespace: str | None, dst_namespace: str | None, source: str, destination: str) -> None:
    """Make DESTINATION what SOURCE is: a value, a link or a directory. Nothing of it is stored twice."""
    with connect() as h, about(source):
        h.kvs.copy(source, destination, at=at, src_namespace=src_namespace, dst_namespace=dst_namespace or PRIMARY)


@click.command(cls=Command, examples="fluxmpi kvs move run.new run.current")
@place_options
def move(src_namespace: str | None, dst_namespace: str | None, source: str, destination: str) -> None:
    """As copy, and SOURCE is removed: in the same version, within one namespace."""
    with connect() as h, about(source):
        h.kvs.move(source, destination, src_namespace=src_namespace or PRIMARY, dst_namespace=dst_namespace or PRIMARY)
