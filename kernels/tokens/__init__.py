"""Operators on tokens: cutting images and clips into patches, merging tokens that say the same."""

from polysense.kernels.tokens.merge import Merged, chain_places, merge, size_bias, unmerge
from polysense.kernels.tokens.patchify import patch_linear, patchify, unpatchify

__all__ = ["Merged", "chain_places", "merge", "patch_linear", "patchify", "size_bias", "unmerge", "unpatchify"]
