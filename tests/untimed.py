"""Settings for Hypothesis: how long a case takes says nothing on a machine that others use too."""

from hypothesis import HealthCheck, settings

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
