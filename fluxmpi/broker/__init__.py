"""One rank's broker: it composes the machines, routes messages between them, records them, and ends the instance.

Imports the services below it; knows nothing of MPI, sockets or clocks. Start with ``broker.py``, one message's way;
``outbox.py`` sorts what goes out, ``lifecycle.py`` runs and ends an instance, ``tracer.py`` records what the broker
handles.
"""
