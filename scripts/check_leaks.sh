#!/usr/bin/env bash
# Clients of every kind are killed at random for minutes, in all modes, with too few pages for all; every few seconds the server must be as
# it was: no request, page, descriptor, thread or memory lost, sums equal counters, the answers right. Exit 1 with the first loss.
# A sanitizer build (--build build-asan) finds leaked memory to the byte when the server ends.
#   scripts/check_leaks.sh [--seconds 120] [--round 4] [--clients 32] [--seed 1] [--build DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

build= rest=()
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2 ;;
    --seconds | --round | --clients | --seed) rest+=("$1" "$2") ;;
    *) sed -n '2,5s/^# *//p' "scripts/${0##*/}" && exit 2 ;;
    esac
    shift 2
done

if [ -z "$build" ]; then
    build=build
    if [ ! -x build/trimode ] || ! command -v ninja >/dev/null; then
        scripts/setup.sh
    fi
    [ -f build/build.ninja ] || meson setup build -Dtests=false >/dev/null
    ninja -C build --quiet trimode
fi
E2E_BUILD=$(realpath "$build") exec python3 tests/e2e/leaks.py ${rest[@]+"${rest[@]}"}
