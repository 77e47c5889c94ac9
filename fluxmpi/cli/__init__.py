"""The command line ``fluxmpi``: parses arguments, calls the client, prints results; commands follow flux-core's.

May import client, the wire records and, in ``start``, drivers. A command is imported when it is run.
Start at ``main.py`` (table of commands, exit statuses), then ``kvs.py`` (the table of ``fluxmpi kvs``); ``common.py``
has shared options, errors and output, ``render.py`` the text and JSON forms of values.
"""
