"""Blobs: what clients stored is returned unchanged, alone and as a mapped value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fluxmpi.errors import DigestMismatch, InvalidRequest


@dataclass(slots=True)
class BlobAnswer:
    """``what``: store (``data`` is the ref), load or map (``data`` is the content). ``error``: its name, or empty."""

    client: str
    what: str
    refs: list[bytes]
    size: int
    data: bytes
    error: str = ""
    text: str = ""


def violations(
    answers: Iterable[BlobAnswer], stored: dict[bytes, bytes], digest: Callable[[bytes], bytes]
) -> Iterator[str]:
    """Yield the answers that differ from ``stored``, the blobs that clients stored, by ref."""
    for answer in answers:
        if answer.what == "map":
            yield from _mapped(answer, stored)
        elif not answer.error and answer.what == "load" and digest(answer.data) != answer.refs[0]:
            yield f"content: {answer.client} loaded {answer.refs[0].hex()[:12]} and got another blob"
        elif not answer.error and answer.what == "store" and answer.data not in stored:
            yield f"content: {answer.client} stored a blob and got the ref {answer.data.hex()[:12]} of no stored blob"


def _mapped(answer: BlobAnswer, stored: dict[bytes, bytes]) -> Iterator[str]:
    parts = [stored.get(ref) for ref in answer.refs]
    whole = None if None in parts else b"".join(part for part in parts if part is not None)
    right = whole is not None and len(whole) == answer.size
    where = f"content: {answer.client} mapped {len(answer.refs)} blobs of {answer.size} bytes"
    if not answer.error and answer.data != whole:
        yield f"{where} and got another value"
    if not answer.error and not right:
        yield f"{where}, a value that does not exist"
    if right and answer.error in (DigestMismatch.__name__, InvalidRequest.__name__):
        yield f"{where}, which are stored, and was refused with '{answer.text}'"
