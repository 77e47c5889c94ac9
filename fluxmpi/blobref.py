"""Names of blobs: an algorithm and a digest (after Flux RFC 10).

Inside an instance a ref is the digest as bytes, 32 of sha256 or 20 of sha1: an instance uses one algorithm. Users,
files and treeobjs see ``sha256-<hex>``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fluxmpi.errors import InvalidRequest

Ref = bytes
Digest = Callable[[bytes], Ref]

BLOB_BYTES_MAX = 1 << 20
"""Longest blob; a longer value is a list of blobs."""


def _sha256(blob: bytes, _new: Callable[..., hashlib._Hash] = hashlib.sha256) -> Ref:
    return _new(blob).digest()


def _sha1(blob: bytes, _new: Callable[..., hashlib._Hash] = hashlib.sha1) -> Ref:
    return _new(blob, usedforsecurity=False).digest()


DIGESTS: dict[str, Digest] = {"sha256": _sha256, "sha1": _sha1}
SIZES: dict[str, int] = {"sha256": 32, "sha1": 20}
_ALGORITHM_OF_SIZE = {size: name for name, size in SIZES.items()}


def digest_function(algorithm: str) -> Digest:
    """Return the function from a blob to its ref. Raises InvalidRequest for an algorithm that is not in DIGESTS."""
    try:
        return DIGESTS[algorithm]
    except KeyError:
        raise InvalidRequest(f"hash '{algorithm}' is not known: use one of {', '.join(DIGESTS)}") from None


def to_text(ref: Ref) -> str:
    """Convert a digest to ``sha256-<hex>``; its length determines the algorithm."""
    return f"{_ALGORITHM_OF_SIZE[len(ref)]}-{ref.hex()}"


def from_text(text: str) -> Ref:
    """Convert ``sha256-<hex>`` to the digest. Raises InvalidRequest for any other text."""
    algorithm, _, digits = text.partition("-")
    try:
        ref = bytes.fromhex(digits)
    except ValueError:
        ref = b""
    if len(ref) != SIZES.get(algorithm, -1):
        raise InvalidRequest(f"'{text}' is not a blobref: it must read like sha256-<64 hex digits>")
    return ref
