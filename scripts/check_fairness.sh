#!/usr/bin/env bash
# Does whoever shares a server suffer from the others? One API key with one request at a time beside another with 200 at once, and
# running streams while long prompts arrive: prints both tables; exit 1 when the small key's median latency, or the 99th percentile
# of the time between tokens, is more than twice what it is without.
#   scripts/check_fairness.sh [--rounds 5] [--mode ar] [--model DIR] [--build DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

case " $* " in
*" --build "* | *" --build="* | *" --help "* | *" -h "*) ;;
*)
    if [ ! -x build/trimode ] || ! command -v ninja >/dev/null; then
        scripts/setup.sh
    fi
    [ -f build/build.ninja ] || meson setup build -Dtests=false >/dev/null
    ninja -C build --quiet trimode
    ;;
esac
exec python3 scripts/check_fairness.py "$@"
