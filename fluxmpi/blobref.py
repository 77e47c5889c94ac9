"""Names of blobs: an algorithm and a digest (after Flux RFC 10).

Inside the instance a ref is the bare digest as bytes, 32 of sha256 or 20 of sha1, since one instance uses one
algorithm. People, files and treeobjs see ``sha256-<hex>``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from fluxmpi.errors import InvalidRequest

Ref = bytes
Digest = Callable[[bytes], Ref]

BLOB_BYTES_MAX = 1 << 20
"""Upper bound of one blob; longer values are lists of blobs."""


def _sha256(blob: bytes, _new: Callable[..., Any] = hashlib.sha256) -> Ref:
    return _new(blob).digest()


def _sha1(blob: bytes, _new: Callable[..., Any] = hashlib.sha1) -> Ref:
    return _new(blob, usedforsecurity=False).digest()


DIGESTS: dict[str, Digest] = {"sha256": _sha256, "sha1": _sha1}
SIZES: dict[str, int] = {"sha256": 32, "sha1": 20}
_ALGORITHM_OF_SIZE = {size: name for name, size in SIZES.items()}


def digest_function(algorithm: str) -> Digest:
    """The function from a blob to its ref. Raises InvalidRequest for an algorithm that is not one of DIGESTS."""
    try:
        return DIGESTS[algorithm]
    except KeyError:
        raise InvalidRequest(f"hash '{algorithm}' is not known: use one of {', '.join(DIGESTS)}") from None


def to_text(ref: Ref) -> str:
    """``b"..."`` to ``sha256-<hex>``; the digest's length tells the algorithm."""
    return f"{_ALGORITHM_OF_SIZE[len(ref)]}-{ref.hex()}"


def from_text(text: str) -> Ref:
    """``sha256-<hex>`` to the digest. Raises InvalidRequest when it is not such a text."""
    algorithm, _, digits = text.partition("-")
    try:
        ref = bytes.fromhex(digits)
    except ValueError:
        ref = b""
    if len(ref) != SIZES.get(algorithm, -1):
        raise InvalidRequest(f"'{text}' is not a blobref: it must read like sha256-<64 hex digits>")
    return ref
