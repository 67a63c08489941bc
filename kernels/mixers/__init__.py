"""Token mixers of one interface, for blocks in place of attention: `MIXERS[name](width, heads, **options)`."""

from polysense.kernels.mixers import attention, hyena, mamba, pool
from polysense.kernels.mixers.base import MIXERS, Mixer

__all__ = ["MIXERS", "Mixer", "attention", "hyena", "mamba", "pool"]
