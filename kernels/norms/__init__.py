"""Norms, and conversions between them."""
