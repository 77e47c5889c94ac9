"""What all tests share: one Hypothesis profile, so that a run tests the same examples as the last one."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")
