"""The embedded encoder, default tokenizers and task bundles (data only)."""
