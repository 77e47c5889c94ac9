"""Workload: the simulated clients and what they do.

``client`` is a client over the real protocol core; ``load_generator`` draws its requests by a ``request_mix``;
``transcript`` records what it asked and was answered. May import ``cluster``, ``plan``, ``fluxmpi.client``.
Start with ``client``.
"""
