"""Checkers: they judge what clients asked and were answered. Start with ``judge``."""
