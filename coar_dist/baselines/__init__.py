"""Attributions by other methods, in the same tables as COAR's."""
