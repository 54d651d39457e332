#!/usr/bin/env bash
# Installs what the build (and with --tests, the tests) needs on Debian 12, saying so; does nothing when all is there.
# Works as root or with sudo.  usage: scripts/setup.sh [--tests]
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(gcc libc6-dev meson ninja-build pkg-config libuv1-dev libmicrohttpd-dev libcjson-dev libyaml-dev libpcre2-dev
    uthash-dev libxxhash-dev)
if [ "${1:-}" = --tests ]; then
    packages+=(g++ libcmocka-dev clang clang-format libclang-rt-14-dev binutils python3 python3-venv python3-numpy curl
        haproxy prometheus)
fi

missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "setup: not root and no sudo; install: ${missing[*]}" >&2; exit 1; }
        sudo=sudo
    fi
    echo "setup: installing ${missing[*]}"
    $sudo apt-get update -qq
    # No recommended packages: they would start services (haproxy, prometheus) and pull in desktops.
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ "${1:-}" = --tests ] && ! cmp -s tests/e2e/requirements.txt build/venv/requirements.txt; then
    echo "setup: making build/venv with $(tr '\n' ' ' <tests/e2e/requirements.txt)"
    mkdir -p build
    # Debian's own interpreter, whose numpy the reference uses.
    /usr/bin/python3 -m venv --clear --system-site-packages build/venv
    build/venv/bin/pip install -q --disable-pip-version-check -r tests/e2e/requirements.txt
    cp tests/e2e/requirements.txt build/venv/requirements.txt
fi
