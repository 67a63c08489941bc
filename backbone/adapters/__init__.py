"""Adapters: few weights beside the frozen encoder that learn one task; see `adapted`."""

from polysense.backbone.adapters.adapted import AdaptedEncoder, adapt, load_adapter
from polysense.backbone.adapters.config import METHODS, AdapterConfig

__all__ = ["METHODS", "AdaptedEncoder", "AdapterConfig", "adapt", "load_adapter"]
