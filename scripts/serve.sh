#!/usr/bin/env bash
# Builds trimode (installing what is missing) and serves the bundled model on 127.0.0.1:8000.
# Arguments go to `trimode serve`:  scripts/serve.sh --port 9000 --mode ar
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x build/trimode ] || ! command -v ninja >/dev/null; then
    scripts/setup.sh
fi
[ -f build/build.ninja ] || meson setup build -Dtests=false >/dev/null
targets=(trimode)
# The module of the CUDA backend, where there is a GPU to use it and nvcc was found to build it.
module=kernels/cuda/trimode-cuda.so
if [ -e /dev/nvidiactl ] && ninja -C build -t targets all | grep -q "^$module:"; then
    targets+=("$module")
fi
ninja -C build --quiet "${targets[@]}"
exec build/trimode serve "$@"
