#!/usr/bin/env bash
# Random loads of the engine, each request's text compared with the same request alone: many on the fake model, some on the bundled one,
# whatever modes, cancels, preemptions and prefix cache hits come together. One closing line each; exit 1 when a text differs, a page is
# lost or a sum is not its counter, with the seed to run it again (what a load is: tests/engine/workload.h).
#   scripts/check_invariance.sh [--fake 1000] [--nano 100] [--seed 1] [--build DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

fake=1000 nano=100 seed=1 build=
while [ $# -gt 0 ]; do
    case $1 in
    --fake) fake=$2 ;;
    --nano) nano=$2 ;;
    --seed) seed=$2 ;;
    --build) build=$2 ;;
    *) sed -n '2,5s/^# *//p' "scripts/${0##*/}" && exit 2 ;;
    esac
    shift 2
done

if [ -z "$build" ]; then
    build=build
    if ! command -v ninja >/dev/null || ! pkg-config --exists cmocka; then
        scripts/setup.sh --tests
    fi
    [ -f build/build.ninja ] || meson setup build >/dev/null
    ninja -C build -n tests/engine/check_invariance >/dev/null 2>&1 || meson configure build -Dtests=true
    ninja -C build --quiet tests/engine/check_invariance
fi
"$build/tests/engine/check_invariance" --workloads "$fake" --seed "$seed"
"$build/tests/engine/check_invariance" --workloads "$nano" --seed "$seed" --model config/models/nano
