"""What programs import, through ``fluxmpi``: the handle, its services, and their protocol without I/O.

It may import the records of every service (``wire``), the store's pure modules, and nothing above it; no module is in
an import cycle. Without I/O, and so usable by an asyncio client: ``protocol``, ``session``, ``cached_reader``,
``snapshot``, ``values``. Start reading with ``handle``; ``channel`` is the socket below it, ``kvs/`` the key-value
store.
"""
