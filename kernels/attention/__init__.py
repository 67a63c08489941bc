"""Attention: `api.attention` validates and dispatches; `reference` is the readable oracle."""

from polysense.kernels.attention.api import attention, available_backends, available_kinds

__all__ = ["attention", "available_backends", "available_kinds"]
