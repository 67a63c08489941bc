#!/bin/sh
# Sees to it that there is a browser for `make test-ui`: Chromium from the system's packages. Called by make.
set -eu

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done

wanted="chromium fonts-dejavu-core" # without a font the page's texts are boxes
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "make test-ui needs a browser: install Chromium (Debian: sudo apt-get install $wanted), then run it again." >&2
  exit 1
fi
echo "Installing $wanted"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $wanted >/dev/null
