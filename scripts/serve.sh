#!/usr/bin/env bash
# Builds trimode (installing what is missing) and serves the bundled model on 127.0.0.1:8000.
# Arguments go to `trimode serve`:  scripts/serve.sh --port 9000 --mode ar
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x build/trimode ] || ! command -v ninja >/dev/null; then
    scripts/setup.sh
fi
[ -f build/build.ninja ] || meson setup build -Dtests=false >/dev/null
ninja -C build --quiet trimode
exec build/trimode serve "$@"
