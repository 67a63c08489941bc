"""Norms of tokens, and merging fixed ones into the linear layer that follows.

Which to take: `LayerNorm` unless there is a reason not to. `RMSNorm` and `CRMSNorm` say the same with less where
vectors have mean zero (`backbone.convert` makes them so). `UnifiedNorm` and `PRepBN` are for training encoders that are
to run without any norm: their statistics are fixed afterwards and merge into linear layers.
"""

from torch.nn import LayerNorm, RMSNorm

from polysense.kernels.norms.compressed import CRMSNorm, compress, expand
from polysense.kernels.norms.merge import merge_repbn, merge_scale_shift, merge_unified
from polysense.kernels.norms.repbn import PRepBN, RepBN
from polysense.kernels.norms.tokens import TokenNorm
from polysense.kernels.norms.unified import UnifiedNorm

__all__ = [
    "CRMSNorm",
    "LayerNorm",
    "PRepBN",
    "RMSNorm",
    "RepBN",
    "TokenNorm",
    "UnifiedNorm",
    "compress",
    "expand",
    "merge_repbn",
    "merge_scale_shift",
    "merge_unified",
]
