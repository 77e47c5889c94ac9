"""Past values of single keys: what ``get(at=…)`` reads where the version has gone and a rule kept the value."""

from __future__ import annotations

from fluxmpi.client.cached_reader import no_such_key
from fluxmpi.client.channel import Channel
from fluxmpi.client.protocol import decoder, encode
from fluxmpi.client.snapshot import UNKNOWN, AtLike, Moment, Named, parse_at
from fluxmpi.errors import SnapshotCollected
from fluxmpi.kvs.objects import Object
from fluxmpi.kvs.wire import KeyVersion, PastRequest
from fluxmpi.message import ANY

_decode_past = decoder(KeyVersion)


def past_object(
    channel: Channel,
    namespace: str,
    key: str,
    at: AtLike,
    follow: bool,
    error: SnapshotCollected,
    timeout: float | None = None,
) -> Object:
    """Return the object at a key in a version that has gone. Raises ``error`` for a state that names no version.

    Raises SnapshotCollected if the value was not kept, NoSuchKey if there was no such key.
    """
    namespace, found = parse_at(at, namespace)
    request = PastRequest(key, namespace, follow=follow)
    if isinstance(found, Moment):
        request.time, request.ago_s = found.time, found.ago_s
    elif isinstance(found, Named):
        request.version, request.root = found.version, bytes.fromhex(found.digits)
    elif isinstance(found, int):
        request.version = found
    elif found.version == UNKNOWN:
        raise error
    else:
        request.version, request.root = found.version, found.ref
    past = channel.send("roots.past", encode("roots.past", request), ANY, _decode_past).get(timeout)
    if past.object is None:
        raise no_such_key(key)
    return past.object
