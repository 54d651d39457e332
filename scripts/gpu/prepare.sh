#!/usr/bin/env bash
# Packs what a machine without a network and without our libraries needs into build-gpu/ (ignored by git): the Debian packages of our
# libraries with what they need to run, and, when nvcc is here, the finished binaries for sm_90, so that no device time goes into compiling.
# Run it on Debian 12 with the packages of setup.sh. Stops when build-gpu/debs and build-gpu/bin are above 64 MiB together.
set -euo pipefail
cd "$(dirname "$0")/../.."
export GPU_ROOT=$PWD GPU_REHEARSE=0
# shellcheck source=scripts/gpu/env.sh
. scripts/gpu/env.sh
max_bytes=$((64 << 20))

wanted=(libuv1-dev libmicrohttpd-dev libcjson-dev libyaml-dev libpcre2-dev uthash-dev libxxhash-dev libcmocka-dev pkgconf)
# Every machine with a compiler has these; a second libc would break it.
never='^(libc6|libc6-dev|libc-dev-bin|libc-bin|linux-libc-dev|gcc-.*-base|libgcc-s1|libstdc\+\+6|rpcsvc-proto|libcrypt.*|libnsl.*|libtirpc.*)$'

mkdir -p "$GPU_DIR/debs"
mapfile -t packages < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    "${wanted[@]}" | grep -E '^[a-z0-9]' | sed 's/:.*//' | sort -u | grep -vE "$never")
echo "prepare: ${#packages[@]} packages: ${packages[*]}"
rm -f "$GPU_DIR"/debs/*.deb
(cd "$GPU_DIR/debs" && apt-get download -q "${packages[@]}" 2>"$GPU_DIR/apt.log") || { cat "$GPU_DIR/apt.log" >&2; exit 1; }

if command -v nvcc >/dev/null; then
    GPU_ARCH=90 gpu_build || exit 1
else
    echo "prepare: no nvcc here, so the device machine builds"
fi
bytes=$(du -scb "$GPU_DIR/debs" "$GPU_BIN" 2>/dev/null | tail -1 | cut -f1)
echo "prepare: $((bytes >> 10)) KiB in build-gpu/debs and build-gpu/bin; carry both paths"
[ "$bytes" -lt "$max_bytes" ] || { echo "prepare: above 64 MiB" >&2; exit 1; }
