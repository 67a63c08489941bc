"""Operators on tokens: patchify and merging."""
