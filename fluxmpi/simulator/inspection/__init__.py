"""Checks that need the brokers' state: what clients' answers alone cannot show.

``monitor`` checks every step of every broker; ``leader_log`` records what the leader was given and answered;
``leader_replay`` applies that to the model and compares each version with rank 0's tree; ``end_state`` checks
what is left when a run ends. They may import the brokers' packages and ``checkers``, not ``workload``.
Start with ``monitor``.
"""
