"""Where polysense keeps what it can make again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """`POLYSENSE_CACHE`; or the folder `polysense` in `XDG_CACHE_HOME`, or else in the platform's usual place."""
    if given := os.environ.get("POLYSENSE_CACHE"):
        return Path(given).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "polysense"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "polysense"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "polysense" / "Cache"
    return Path.home() / ".cache" / "polysense"
