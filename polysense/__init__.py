"""polysense: one frozen encoder, every sense."""

from __future__ import annotations

from pathlib import Path

# Whoever runs Python in a checkout's root finds this folder before the installed package; its sisters (core, heads, …)
# then stand one level up.
_root = Path(__file__).parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "core" / "registry.py").is_file():
    __path__.append(str(_root))
