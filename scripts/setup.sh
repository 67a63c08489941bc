#!/bin/sh
# Creates .venv and installs the pinned stack into it. Called by make; needs no root.
set -eu

# The first interpreter that runs, is a version we support and has venv; $PYTHON, where given, is the only candidate.
# "Runs" is tested because version managers put stubs on the PATH for versions that are not active.
chosen="" spare="" seen=""
for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
  version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  seen="$seen $candidate ($version)"
  case "$version" in 3.11 | 3.12) ;; *) continue ;; esac
  if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then chosen=$candidate; break; fi
  [ -n "$spare" ] || spare=$candidate
done

if [ -z "$chosen" ] && [ -z "$spare" ]; then
  echo "polysense needs Python 3.11 or 3.12; found:${seen:- none that runs}." >&2
  echo "Install it (Debian/Ubuntu: sudo apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2
  exit 1
fi

# Debian's Python comes without ensurepip; its pip package, where installed, can fill an empty environment instead.
if [ -z "$chosen" ] && ! "$spare" -m pip --version >/dev/null 2>&1; then
  version=$("$spare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  echo "$spare has neither venv nor pip. Install one: sudo apt install python$version-venv (then run make again)." >&2
  exit 1
fi

# An environment is kept if it works and stands where it was made (scripts and links in it hold absolute paths).
here=$(pwd -P)
if ! .venv/bin/python -c '' 2>/dev/null || [ "$(cat .venv/.home 2>/dev/null || echo "$here")" != "$here" ] ||
  ! { [ -x .venv/bin/uv ] || .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  python=${chosen:-$spare}
  echo "Creating .venv with $("$python" --version)"
  rm -rf .venv
  if [ -n "$chosen" ]; then
    "$chosen" -m venv .venv
  else
    "$spare" -m venv --without-pip .venv
    "$spare" -m pip --python .venv/bin/python install -q --disable-pip-version-check "uv>=0.5"
  fi
fi
echo "$here" >.venv/.home

# uv resolves from the package index alone; plain pip may pick up a CPU build of torch from a local folder, which
# does not go together with the index's torchvision and torchaudio.
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install -q --disable-pip-version-check "uv>=0.5"

echo "Installing the pinned packages (about 6 GB on disk)"
.venv/bin/uv pip install -q -p .venv/bin/python --require-hashes -r requirements.lock
touch .venv/.installed
