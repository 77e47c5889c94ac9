"""The key-value store of a handle, ``h.kvs``: class ``Kvs`` in ``kvs.py``, put together from one mixin for each concern.

It imports the client's core (channel, protocol, cached_reader, snapshot, values) and nothing of event, eventlog, exec
or handle. Start reading with ``reading.py`` for a get, ``writing.py`` and ``transaction.py`` for a commit, ``watch.py``
for a watch.
"""
