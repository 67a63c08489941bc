"""Validated, dispatching operators: `attention` and `points`."""
