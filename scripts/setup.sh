#!/bin/sh
# Creates .venv and installs the pinned stack into it. Called by make; needs no root.
set -eu
[ -n "${PYTHON:-}" ] || { echo "No Python found. Install Python 3.11 or 3.12 (Debian/Ubuntu: apt install python3 python3-venv)." >&2; exit 1; }
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
  3.11|3.12) ;;
  *) echo "polysense needs Python 3.11 or 3.12; $PYTHON is $version. Name another one: make PYTHON=/path/to/python3.11" >&2; exit 1 ;;
esac
if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "$PYTHON has no venv module. Install it (Debian/Ubuntu: apt install python$version-venv) and run make again." >&2
  exit 1
fi
[ -x .venv/bin/python ] || { echo "Creating .venv with Python $version"; "$PYTHON" -m venv .venv; }
# uv resolves from the package index alone; plain pip may pick up a CPU build of torch from a local folder, which
# does not go together with the index's torchvision and torchaudio.
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -q --disable-pip-version-check uv
echo "Installing the pinned packages (about 6 GB on disk)"
.venv/bin/uv pip install -q -p .venv/bin/python -r requirements.lock
touch .venv/.installed
