#!/bin/sh
# Installs polysense itself, editable (strict: file by file, so run again when a file was added or removed).
# $1 is a fingerprint of the files that there are; make compares it to find out.
set -eu
rm -rf build/__editable__.*
.venv/bin/uv pip install -q -p .venv/bin/python --no-deps --no-build-isolation -e .
echo "${1:-}" >.venv/.linked
